//! The tables' own bytes, spoilt at random: no coverage guides it, but it needs nothing but the tables.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use wakala::session::Version;

use super::notation::variable;
use super::stranger::is_packet;

/// Spoils the corpus at random, as often as it is told; says how often it was a packet all the same.
pub(crate) fn all(corpus: &[Vec<u8>], times: usize) -> usize {
    let mut chance = ChaCha8Rng::seed_from_u64(3);
    let mut packets = 0;
    for _ in 0..times {
        let mut bytes = corpus[chance.random_range(0..corpus.len())].clone();
        for _ in 0..chance.random_range(0..4) {
            spoil_once(&mut bytes, corpus, &mut chance);
        }
        if chance.random_bool(0.7) {
            right_length(&mut bytes);
        }
        let version = if chance.random_bool(0.5) { Version::V3 } else { Version::V5 };
        packets += usize::from(is_packet(version, &bytes));
    }
    packets
}

fn spoil_once(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut ChaCha8Rng) {
    let at = chance.random_range(0..=bytes.len());
    match chance.random_range(0..6) {
        0 => bytes.insert(at, chance.random()),
        1 => bytes.truncate(at),
        2 => {
            let other = &corpus[chance.random_range(0..corpus.len())];
            bytes.splice(at.., other[chance.random_range(0..=other.len())..].iter().copied());
        }
        3 if at < bytes.len() => bytes[at] ^= 1 << chance.random_range(0..8),
        4 if at < bytes.len() => _ = bytes.remove(at),
        _ if at < bytes.len() => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][chance.random_range(0..5)],
        _ => {}
    }
}

/// Says the length that there is, so that what lies behind it is looked at.
fn right_length(bytes: &mut Vec<u8>) {
    let header = 1 + bytes.iter().skip(1).take(4).take_while(|&&byte| byte & 0x80 != 0).count() + 1;
    if header < bytes.len() {
        let length = variable(bytes.len() - header);
        bytes.splice(1..header, length);
    }
}
