//! Cases that follow from the standards' tables.

mod cuts;
mod flags;
mod lengths;
mod properties;
mod texts;

use wakala::session::Version;

use super::case::{BYTES_MAX, Case, Wanted};

pub(crate) const VERSIONS: [Version; 2] = [Version::V3, Version::V5];

pub(crate) fn all() -> Vec<Case> {
    let families: [(&str, Vec<Case>, usize); 5] = [
        ("flags", flags::all(), 1500),
        ("properties", properties::all(), 1000),
        ("texts", texts::all(), 500),
        ("lengths", lengths::all(), 50),
        ("cuts", cuts::all(), 500),
    ];
    let mut all = Vec::new();
    for (name, cases, fewest) in families {
        assert!(cases.len() >= fewest, "the family {name} has {} cases only", cases.len());
        all.extend(cases);
    }
    all
}

/// A case of the family `place`.
pub(crate) fn case(place: &str, name: String, by: Version, bytes: Vec<u8>, wanted: Wanted, rule: &str) -> Case {
    Case { place: place.to_owned(), name, by, first: false, bytes_max: BYTES_MAX, bytes, wanted, rule: rule.to_owned() }
}
