//! The tables that are written by hand.

use super::case::Case;
use super::notation;

/// The tables, and the fewest cases that each has: none gets lost.
const TABLES: [(&str, &str, usize); 9] = [
    ("tests/packets/connect.txt", include_str!("connect.txt"), 70),
    ("tests/packets/publish.txt", include_str!("publish.txt"), 60),
    ("tests/packets/acknowledgements.txt", include_str!("acknowledgements.txt"), 40),
    ("tests/packets/subscribe.txt", include_str!("subscribe.txt"), 60),
    ("tests/packets/unsubscribe.txt", include_str!("unsubscribe.txt"), 20),
    ("tests/packets/ping.txt", include_str!("ping.txt"), 8),
    ("tests/packets/disconnect.txt", include_str!("disconnect.txt"), 20),
    ("tests/packets/server.txt", include_str!("server.txt"), 12),
    ("tests/packets/header.txt", include_str!("header.txt"), 30),
];

pub(crate) fn tables() -> Vec<Case> {
    let mut all = Vec::new();
    for (file, text, fewest) in TABLES {
        let cases = notation::table(file, text);
        assert!(cases.len() >= fewest, "{file} has {} cases only", cases.len());
        all.extend(cases);
    }
    all
}
