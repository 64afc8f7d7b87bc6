//! How many come or go at once, so that whoever is inside does not wait for all of them.
//!
//! A worker thread does one thing after the other. When ten thousand connections are accepted in one moment, each is ready
//! for its handshake, its CONNECT, its session; whoever is connected already would have its turn behind all of them. It is
//! the same when ten thousand are cut. So they pass round by round. A round is over when the thread has nothing to do, so that
//! whoever is ready has had a turn, and at the latest when it has been [`LONG`]; and how many each lets through follows from
//! how long the last one took.

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

/// The rate of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turnstile {
    at_once: u32,
}

impl Default for Turnstile {
    fn default() -> Self {
        Self { at_once: 8 }
    }
}

impl Turnstile {
    /// How many the next round lets in: never none, so that nobody waits for ever.
    #[must_use]
    pub fn at_once(self) -> u32 {
        self.at_once
    }

    /// A round took so long.
    pub fn took(&mut self, round: Duration) {
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
            (0..rounds).for_each(|_| turnstile.took(round));
            turnstile.at_once()
        };
        assert_eq!(after(Duration::from_millis(1), 1), 16);
        assert_eq!(after(Duration::from_millis(5), 9), 16, "long enough");
        assert_eq!(after(Duration::from_millis(1), 9), AT_ONCE_MAX);
        assert_eq!(after(Duration::from_millis(8), 1), AT_ONCE_MAX / 2);
        assert_eq!(after(Duration::from_secs(1), 9), AT_ONCE_MIN);
    }
}
