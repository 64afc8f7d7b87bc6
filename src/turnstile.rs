//! How many come or go at once, so that whoever is inside does not wait for all of them.
//!
//! A worker thread does one thing after the other. When ten thousand connections are accepted in one moment, each is ready
//! for its handshake, its CONNECT, its session; whoever is connected already would have its turn behind all of them. It is
//! the same when ten thousand are cut. So they pass round by round. A round is over when the thread has nothing to do, so that
//! whoever is ready has had a turn, and at the latest when it has been [`LONG`]; and how many each lets through follows from
//! how long the last one took.
//!
//! In a storm that is not enough: whoever is inside waits for the database too, which has as little of the processors left as
//! the thread gives it, and for each of the six commits of a transaction. So as long as very many wait, the thread rests for a
//! moment whenever it has worked for them for a [`SPELL`]. That makes a storm a third longer and halves the longest wait of
//! those inside (docs/performance.md).

use std::time::Duration;

/// What a round may take before fewer are let in. A terminal's request has a turn at each of a handful of hops, and its
/// usual time is some tens of milliseconds.
pub const LONG: Duration = Duration::from_millis(8);
/// Below this more are let in.
const SHORT: Duration = Duration::from_millis(2);
/// Each round costs a look at the sockets, which is little beside what these take.
const AT_ONCE_MAX: u32 = 16;
/// Where somebody is always ready they still come in, five hundred in a second.
const AT_ONCE_MIN: u32 = 4;

/// So many who wait are a storm.
pub const STORM: usize = 256;
/// It lasts until a thread has worked so long with fewer.
const LULL: Duration = Duration::from_millis(50);
/// What a thread works in a storm for those who come and go until it rests.
pub const SPELL: Duration = Duration::from_millis(1);
/// How long it rests: the least that the runtime's timer can tell.
pub const REST: Duration = Duration::from_millis(1);

/// The rate of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turnstile {
    at_once: u32,
    /// What is left of a storm.
    storm: Duration,
    /// Since it rested.
    worked: Duration,
}

impl Default for Turnstile {
    fn default() -> Self {
        Self { at_once: 8, storm: Duration::ZERO, worked: Duration::ZERO }
    }
}

impl Turnstile {
    /// How many the next round lets in: never none, so that nobody waits for ever.
    #[must_use]
    pub fn at_once(self) -> u32 {
        self.at_once
    }

    /// A round took so long, and so many wait. Whether the thread is to rest before the next one.
    #[must_use]
    pub fn took(&mut self, round: Duration, waiting: usize) -> bool {
        self.pace(round);
        self.storm = if waiting >= STORM { LULL } else { self.storm.saturating_sub(round) };
        self.worked += round;
        let rests = !self.storm.is_zero() && self.worked >= SPELL;
        if rests {
            self.worked = Duration::ZERO;
        }
        rests
    }

    fn pace(&mut self, round: Duration) {
        if round >= LONG {
            self.at_once = (self.at_once / 2).max(AT_ONCE_MIN);
        } else if round <= SHORT {
            self.at_once = (self.at_once * 2).min(AT_ONCE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rounds_let_more_in_and_long_ones_fewer_but_never_none() {
        let mut turnstile = Turnstile::default();
        let mut after = |round: Duration, rounds: usize| {
            (0..rounds).for_each(|_| assert!(!turnstile.took(round, STORM - 1), "no storm"));
            turnstile.at_once()
        };
        assert_eq!(after(Duration::from_millis(1), 1), 16);
        assert_eq!(after(Duration::from_millis(5), 9), 16, "long enough");
        assert_eq!(after(Duration::from_millis(1), 9), AT_ONCE_MAX);
        assert_eq!(after(Duration::from_millis(8), 1), AT_ONCE_MAX / 2);
        assert_eq!(after(Duration::from_secs(1), 9), AT_ONCE_MIN);
    }

    #[test]
    fn in_a_storm_it_rests_after_each_spell() {
        let (mut turnstile, third) = (Turnstile::default(), SPELL / 3 + Duration::from_micros(1));
        assert_eq!(
            [STORM; 7].map(|waiting| turnstile.took(third, waiting)),
            [false, false, true, false, false, true, false]
        );
        let mut rests = || turnstile.took(SPELL, STORM - 1);
        let spells = std::iter::from_fn(|| rests().then_some(SPELL)).sum::<Duration>();
        assert_eq!(spells, LULL - SPELL, "a little longer");
        assert!(!rests() && !rests(), "it is over");
    }
}
