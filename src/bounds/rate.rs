//! Token buckets, each as one moment: when all that was taken will have come back (the generic cell rate algorithm,
//! ITU-T I.371 annex A). A bucket whose moment has passed is full, and as good as none.

use std::time::Duration;

use super::kept::Kept;
use crate::time::Time;

/// A token comes back every so often, and so many are there at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Of one token, in nanoseconds.
    every_ns: i64,
    /// Of all of them.
    all_ns: i64,
}

impl Rate {
    /// None when `burst` is 0: no limit.
    #[must_use]
    pub fn new(burst: u32, every: Duration) -> Option<Self> {
        let every_ns = i64::try_from(every.as_nanos()).unwrap_or(i64::MAX).max(1);
        (burst > 0).then(|| Self { every_ns, all_ns: every_ns.saturating_mul(burst.into()) })
    }

    /// None when `per_second` is 0: no limit.
    #[must_use]
    pub fn per_second(per_second: u32, burst: u32) -> Option<Self> {
        let every = Duration::from_nanos(1_000_000_000_u64.checked_div(per_second.into())?);
        Self::new(burst.max(1), every)
    }
}

/// One bucket: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(i64);

const fn nanoseconds(time: Time) -> i64 {
    time.millis().saturating_mul(1_000_000)
}

impl Bucket {
    /// Takes so many tokens, whether they are there or not.
    pub fn take(&mut self, rate: Rate, tokens: u32, now: Time) {
        self.0 = self.0.max(nanoseconds(now)).saturating_add(rate.every_ns.saturating_mul(tokens.into()));
    }

    /// Its moment, for whoever keeps it where many threads take from it.
    #[must_use]
    pub const fn nanoseconds(self) -> i64 {
        self.0
    }

    /// With this moment.
    #[must_use]
    pub const fn at(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// Until when there is no token; `now` or earlier if there is one.
    #[must_use]
    pub fn empty_until(&self, rate: Rate) -> Time {
        let ns = self.0.saturating_sub(rate.all_ns).saturating_add(rate.every_ns);
        Time::from_millis(ns.div_euclid(1_000_000) + i64::from(ns.rem_euclid(1_000_000) > 0))
    }

    fn full_at(self) -> Time {
        Time::from_millis(self.0 / 1_000_000 + 1)
    }
}

/// A bucket for each key.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: Option<Rate>,
    kept: Kept<K, Bucket>,
}

impl<K: Ord + Clone> Buckets<K> {
    pub(super) fn new(rate: Option<Rate>, max: usize) -> Self {
        Self { rate, kept: Kept::new(max) }
    }

    pub(super) fn forget(&mut self, now: Time) {
        self.kept.forget(now);
    }

    /// How long there is no token.
    pub(super) fn wait(&self, key: &K, now: Time) -> Duration {
        match (self.rate, self.kept.get(key, now)) {
            (Some(rate), Some(bucket)) => bucket.empty_until(rate).since(now),
            _ => Duration::ZERO,
        }
    }

    /// Takes a token. Of one that is not there nothing is owed: who goes on trying waits no longer for it.
    pub(super) fn charge(&mut self, key: K, now: Time) {
        let Some(rate) = self.rate else { return };
        let mut bucket = self.kept.get(&key, now).copied().unwrap_or_default();
        if bucket.empty_until(rate) <= now {
            bucket.take(rate, 1, now);
            self.kept.set(key, bucket.full_at(), bucket, now);
        }
    }
}
