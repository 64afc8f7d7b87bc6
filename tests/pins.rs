//! `src/pin` against what others computed: 200 random cases by `tests/foreign/pin_cases.py --seed 1 --count 200`.
//! `tests/system` draws thousands of new ones.

#![expect(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "pins/check.rs"]
mod check;

#[test]
fn what_others_computed_is_what_we_compute() {
    assert_eq!(check::all(include_str!("vectors/pins.jsonl")), 200);
}
