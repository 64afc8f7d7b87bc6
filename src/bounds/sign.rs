//! What stands for a name in a table.

use sha2::{Digest as _, Sha256};

use super::Place;
use crate::ban::Network;

/// 16 bytes for a name, and for where it was given, however long it is: of the tables that are remembered for days most is
/// names. They are of SHA-256, for nobody is to find another name that has the same ones, and by it be taken for who is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sign([u8; 16]);

impl Sign {
    pub(super) fn of(name: &str) -> Self {
        Self::made(&[], name)
    }

    pub(super) fn at(name: &str, place: Place) -> Self {
        Self::made(&place.octets(), name)
    }

    pub(super) fn within(name: &str, network: Network) -> Self {
        // No network's text has a space in it, and so none is the beginning of another one and a name.
        Self::made(format!("{network} ").as_bytes(), name)
    }

    fn made(before: &[u8], name: &str) -> Self {
        let digest = Sha256::new().chain_update(before).chain_update(name).finalize();
        let mut sign = [0; 16];
        sign.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(sign)
    }
}
