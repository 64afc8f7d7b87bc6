//! The simulation: the pure machines (session, partition, bank) in a fake world, with faults by seed.
//!
//! `cargo test -p wakala --test simulation` lives through some hundred seeds; `WAKALA_SEEDS=10000` through ten thousand;
//! `WAKALA_SEED=123 cargo test -p wakala --test simulation one_seed -- --nocapture` tells the whole story of one.

mod simulation {
    pub(crate) mod auditor;
    pub(crate) mod bank;
    pub(crate) mod chance;
    pub(crate) mod core;
    pub(crate) mod edge;
    pub(crate) mod log;
    pub(crate) mod mqtt;
    pub(crate) mod node;
    pub(crate) mod partition;
    pub(crate) mod postgres;
    pub(crate) mod session;
    pub(crate) mod stage;
    pub(crate) mod terminal;
    pub(crate) mod world;
}

use std::sync::atomic::{AtomicU64, Ordering};

use simulation::world::{self, Outcome};

/// Seeds that failed once. They are lived through first, for ever.
const SEEDS: &[u64] = &[];

/// How many seeds without `WAKALA_SEEDS`.
const COUNT: u64 = 400;

#[expect(clippy::disallowed_methods, reason = "a test is told from outside which seeds to live through")]
fn from_outside(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn report(seed: u64) -> String {
    let Outcome { violation, story, .. } = world::live(seed, true, false);
    let Some(violation) = violation else { return format!("SEED={seed} fails now and then: it is not one story") };
    let last = &story[story.len().saturating_sub(120)..];
    format!(
        "SEED={seed}\n{}\n{}\n\n{}\n\nWAKALA_SEED={seed} cargo test -p wakala --test simulation one_seed -- --nocapture",
        violation.invariant,
        violation.text,
        last.join("\n")
    )
}

#[test]
fn every_seed_keeps_the_invariants() {
    let count = from_outside("WAKALA_SEEDS").unwrap_or(COUNT);
    let first = from_outside("WAKALA_FIRST").unwrap_or(0);
    let next = AtomicU64::new(0);
    let began = time::OffsetDateTime::UNIX_EPOCH;
    let _ = began;
    let pasted = u64::try_from(SEEDS.len()).expect("few");
    let live = || {
        let (mut events, mut requests, mut failed) = (0, 0, None);
        while let Some(nth) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&nth| nth < count + pasted) {
            let pasted = usize::try_from(nth).ok().and_then(|nth| SEEDS.get(nth).copied());
            let seed = pasted.unwrap_or_else(|| first + nth - u64::try_from(SEEDS.len()).expect("few"));
            let outcome = world::live(seed, false, false);
            events += outcome.events;
            requests += outcome.requests;
            if outcome.violation.is_some() {
                failed = Some((nth, seed));
                next.store(count + pasted.map_or(0, |_| 0) + u64::MAX / 2, Ordering::Relaxed);
                break;
            }
        }
        (events, requests, failed)
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(live);
        (live(), other.join().expect("a seed's panic is caught"))
    });
    println!("{count} seeds, {} requests, {} events", one.1 + two.1, one.0 + two.0);
    if let Some((nth, seed)) = one.2.into_iter().chain(two.2).min() {
        panic!("after {} seeds:\n{}", nth + 1, report(seed));
    }
}

#[test]
fn one_seed() {
    let Some(seed) = from_outside("WAKALA_SEED") else { return };
    let Outcome { events, requests, violation, story, .. } = world::live(seed, true, true);
    for line in &story {
        println!("{line}");
    }
    println!("{events} events, {requests} requests");
    if let Some(violation) = violation {
        panic!("{}\n{}", violation.invariant, violation.text);
    }
}

#[test]
fn a_seed_is_one_story() {
    for seed in 0..10 {
        let (one, two) = (world::live(seed, false, false), world::live(seed, true, true));
        assert_eq!((one.events, one.digest), (two.events, two.digest), "seed {seed}");
    }
}
