//! Numbers that many threads add to.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// One that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn one(&self) {
        self.add(1);
    }

    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

impl Level {
    pub fn change(&self, by: i64) {
        if by != 0 {
            self.0.fetch_add(by, Ordering::Relaxed);
        }
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        u64::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// Bounds of a second, from what memory takes to what nobody waits for.
pub(super) const LATENCY_S: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Bounds of how many go into one commit.
pub(super) const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];

/// How often something was how much.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond the last.
    counts: Box<[AtomicU64]>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    /// `bounds` grow.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub fn took(&self, time: Duration) {
        self.saw(time.as_secs_f64(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn counted(&self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.saw(f64::from(count), u64::from(count) * 1_000_000);
    }

    fn saw(&self, value: f64, millionths: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum.fetch_add(millionths, Ordering::Relaxed);
    }

    /// The sum, the number, and for each bound how many were in it and not in the one before.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum of seconds need not be exact")]
    pub fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        (sum, buckets.iter().map(|(_, count)| count).sum(), buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_bound_is_within_it() {
        let histogram = Histogram::new(&SIZES);
        for count in [1, 2, 3, 1024, 1025] {
            histogram.counted(count);
        }
        let (sum, count, buckets) = histogram.read();
        assert!((sum - 2055.0).abs() < 1e-9 && count == 5);
        let filled: Vec<(f64, u64)> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(1.0, 1), (2.0, 1), (4.0, 1), (1024.0, 1), (f64::INFINITY, 1)]);
        let latency = Histogram::new(&LATENCY_S);
        latency.took(Duration::from_micros(700));
        assert_eq!(latency.read().2[1], (0.001, 1));
    }

    #[test]
    fn a_level_that_is_read_between_two_changes_is_not_below_0() {
        let level = Level::default();
        level.change(-1);
        assert_eq!(level.get(), 0);
        level.change(3);
        assert_eq!(level.get(), 2);
    }
}
