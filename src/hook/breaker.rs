//! When to stop asking somebody who does not answer, and when to try again.

use std::time::Duration;

use crate::time::Time;

/// Closed: asks. After so many failures in a row it opens: asks nothing for a while. Then one question is let through,
/// and its answer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    after: u32,
    stays_open: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Time,
    },
    /// One question is under way. Should its answer never be told, another is let through then.
    Trying {
        until: Time,
    },
}

impl Breaker {
    #[must_use]
    pub const fn new(after: u32, stays_open: Duration) -> Self {
        Self { after, stays_open, state: State::Closed { failures: 0 } }
    }

    /// Whether a question may be asked now. If it may, it is to be asked.
    pub fn lets_through(&mut self, now: Time) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } | State::Trying { until } => {
                let lets = now >= until;
                if lets {
                    self.state = State::Trying { until: now + self.stays_open };
                }
                lets
            }
        }
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    pub fn answered(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    pub fn failed(&mut self, now: Time) {
        let until = now + self.stays_open;
        self.state = match self.state {
            State::Closed { failures } if failures + 1 < self.after => State::Closed { failures: failures + 1 },
            State::Closed { .. } | State::Trying { .. } => State::Open { until },
            // Asked before it opened: that it failed too is no news.
            State::Open { until } => State::Open { until },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_tries_with_one_question() {
        let mut breaker = Breaker::new(3, Duration::from_secs(10));
        for _ in 0..2 {
            breaker.failed(at(0));
        }
        breaker.answered();
        for _ in 0..2 {
            breaker.failed(at(1));
        }
        assert!(breaker.lets_through(at(1)) && !breaker.is_open(), "not in a row");
        breaker.failed(at(2));
        assert!(breaker.is_open() && !breaker.lets_through(at(11)));
        breaker.failed(at(9));
        assert!(breaker.lets_through(at(12)), "a failure that came late moved its end");
        assert!(!breaker.lets_through(at(12)) && breaker.is_open(), "one question, not two");
        breaker.failed(at(13));
        assert!(!breaker.lets_through(at(22)) && breaker.lets_through(at(23)));
        breaker.answered();
        assert!(!breaker.is_open() && breaker.lets_through(at(23)));
    }

    #[test]
    fn a_trial_whose_answer_is_never_told_is_followed_by_another() {
        let mut breaker = Breaker::new(1, Duration::from_secs(10));
        breaker.failed(at(0));
        assert!(breaker.lets_through(at(10)) && !breaker.lets_through(at(19)) && breaker.lets_through(at(20)));
    }
}
