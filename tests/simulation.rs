//! The simulation: the pure machines (session, partition, bank) in a fake world, with faults by seed.
//!
//! `cargo test -p wakala --test simulation` lives through some hundred seeds; `WAKALA_SEEDS=10000` through ten thousand;
//! `WAKALA_SEED=123 cargo test -p wakala --test simulation one_seed -- --nocapture` tells the whole story of one.

#[cfg(test)]
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

use std::sync::atomic::{AtomicUsize, Ordering};

use simulation::world::{self, Outcome, Story, Tally};

/// Seeds that failed once. They are lived through first, for ever.
const SEEDS: &[u64] = &[];

/// How many seeds without `WAKALA_SEEDS`.
const COUNT: u64 = 1500;

#[expect(clippy::disallowed_methods, reason = "a test is told from outside which seeds to live through")]
fn from_outside(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn report(seed: u64) -> String {
    let Outcome { violation, story, .. } = world::live(seed, Story::Concerned);
    let Some(violation) = violation else { return format!("SEED={seed} fails now and then: it is not one story") };
    let last = &story[story.len().saturating_sub(120)..];
    format!(
        "SEED={seed}\n{}\n{}\n\n{}\n\nWAKALA_SEED={seed} cargo test -p wakala --test simulation one_seed -- --nocapture",
        violation.invariant,
        violation.text,
        last.join("\n")
    )
}

/// What one thread has lived through.
#[derive(Default)]
struct Lived {
    events: u64,
    requests: u64,
    tally: Tally,
    /// The first seed that failed, with its place.
    failed: Option<(usize, u64)>,
}

impl Lived {
    fn count(&mut self, tally: &Tally) {
        for (name, count) in tally {
            *self.tally.entry(name).or_default() += count;
        }
    }
}

/// Takes the next seed until there is none, or one has failed.
fn live_through(seeds: &[u64], next: &AtomicUsize) -> Lived {
    let mut lived = Lived::default();
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some(&seed) = seeds.get(place) else { return lived };
        let outcome = world::live(seed, Story::Untold);
        lived.events += outcome.events;
        lived.requests += outcome.requests;
        lived.count(&outcome.tally);
        if outcome.violation.is_some() {
            next.store(seeds.len(), Ordering::Relaxed);
            lived.failed = Some((place, seed));
            return lived;
        }
    }
}

#[test]
fn every_seed_keeps_the_invariants() {
    let first = from_outside("WAKALA_FIRST").unwrap_or(0);
    let count = from_outside("WAKALA_SEEDS").unwrap_or(COUNT);
    let seeds: Vec<u64> = SEEDS.iter().copied().chain(first..first + count).collect();
    let next = AtomicUsize::new(0);
    let (mut one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| live_through(&seeds, &next));
        (live_through(&seeds, &next), other.join().expect("a panic in a seed is caught"))
    });
    let (requests, events) = (one.requests + two.requests, one.events + two.events);
    one.count(&two.tally);
    println!("{} seeds, {requests} requests, {events} events: {:?}", seeds.len(), one.tally);
    if let Some((place, seed)) = one.failed.into_iter().chain(two.failed).min() {
        panic!("after {} seeds:\n{}", place + 1, report(seed));
    }
    let dull: Vec<_> = one.tally.iter().filter(|(_, count)| **count == 0).collect();
    assert!(count < COUNT || dull.is_empty(), "never happened in {count} worlds: {dull:?}");
}

#[test]
fn one_seed() {
    let Some(seed) = from_outside("WAKALA_SEED") else { return };
    let Outcome { events, requests, violation, story, .. } = world::live(seed, Story::Whole);
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
        let (one, two) = (world::live(seed, Story::Untold), world::live(seed, Story::Whole));
        assert_eq!((one.events, one.digest), (two.events, two.digest), "seed {seed}");
    }
}
