//! The ISO 8583 codec against an independent one: messages as pyiso8583 wrote, spoilt and read them
//! (`tests/foreign/iso8583_cases.py --seed 1 --count 300`, which has the dialects written down a second time).
//! `tests/system` draws thousands of new ones.

#![expect(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "messages/check.rs"]
mod check;

#[test]
fn pyiso8583_and_we_write_and_read_the_same() {
    let counts = check::all(include_str!("vectors/iso8583.jsonl"));
    assert!(counts.whole >= 200 && counts.refused >= 50 && counts.stricter >= 5, "{counts:?}");
}
