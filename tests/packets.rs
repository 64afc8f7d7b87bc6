//! MQTT 3.1.1 and MQTT 5, packet by packet: bytes of a client, and what the standard says of them.
//!
//! `tests/packets/*.txt` are tables for people to read and extend; `tests/packets/notation.rs` says how a line is
//! written. Families that a table would only repeat (every first byte, every reason code, every property in every
//! packet, every cut) are made in `tests/packets/families`, from the standards' own tables in
//! `tests/packets/standard.rs`. Nothing of either is taken from the code under test.
//!
//! Where a standard forbids something and names no reason code, either is right: `81|82`. MQTT 3.1.1 has no reason codes;
//! there a refusal is the end of the connection.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test: what does not hold is to be seen")]

#[path = "packets/case.rs"]
mod case;
#[path = "packets/families/mod.rs"]
mod families;
// The very join of check and codec that a connection has; nothing in it needs the runtime.
#[path = "../actors/session/frames.rs"]
#[allow(dead_code, unreachable_pub, reason = "a connection uses more of it")]
mod frames;
#[path = "packets/notation.rs"]
mod notation;
#[path = "packets/render.rs"]
mod render;
#[path = "packets/seen.rs"]
mod seen;
#[path = "packets/spoil.rs"]
mod spoil;
#[path = "packets/standard.rs"]
mod standard;
#[path = "packets/stranger.rs"]
mod stranger;
#[path = "packets/tables.rs"]
mod tables;

use std::collections::BTreeSet;

use case::Case;
use tables::tables;

#[test]
fn every_packet_is_taken_or_refused_as_the_standards_say() {
    let (tables, families) = (tables(), families::all());
    let (written, made) = (tables.len(), families.len());
    let all: Vec<Case> = tables.into_iter().chain(families).collect();
    let distinct: BTreeSet<_> = all.iter().map(|case| (case.version(), case.bytes_max, case.bytes.clone())).collect();
    let wrong: Vec<String> = all.iter().filter_map(Case::fault).collect();
    assert!(wrong.is_empty(), "{}\n{} of {} cases are wrong", wrong.join("\n"), wrong.len(), all.len());
    println!("{written} cases in tables, {made} in families; {} of them distinct", distinct.len());
    assert!(distinct.len() >= 5000, "cases got lost: {} distinct ones are left", distinct.len());
}

/// Bytes that nobody thought of: the tables' own, spoilt at random. `WAKALA_FUZZ` says how many times; `tests/fuzz` does
/// the same guided by coverage.
#[test]
fn whatever_arrives_is_refused_or_means_what_it_says_when_written_again() {
    let times = std::env::var_os("WAKALA_FUZZ")
        .map_or(100_000, |times| times.to_str().and_then(|times| times.parse().ok()).expect("WAKALA_FUZZ is a number"));
    let corpus: Vec<Vec<u8>> =
        tables().into_iter().chain(families::all()).map(|case| case.bytes).filter(|bytes| bytes.len() < 1024).collect();
    let taken = spoil::all(&corpus, times);
    assert!(taken >= times / 20, "only {taken} of {times} were packets at all: it looks at refusals only");
}
