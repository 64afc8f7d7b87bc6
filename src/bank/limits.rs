//! What a link is allowed.

use std::time::Duration;

/// What a link is allowed, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait for their answer at once. More than there are places, for a partition that starts again gives
    /// its places back before its requests are answered.
    pub requests: usize,
    /// Reversals that wait for their answer at once. Those beyond are left to their next repeat.
    pub reversals: usize,
    /// Messages that are remembered, with those that wait.
    pub remembered: usize,
    /// Messages of one second that nobody waits for, before the link is closed. Each is stored.
    pub unmatched: u32,
    /// For the connection.
    pub connect: Duration,
    /// For the answer to the sign-on.
    pub sign_on: Duration,
    /// Of silence from the core, before it is asked whether it is there.
    pub idle: Duration,
    /// For the answer to the echo, before the link is given up.
    pub echo: Duration,
    /// For an answer, before the breaker counts. Not shorter than a transaction's patience.
    pub answer: Duration,
    /// That a message is remembered after it was answered or given up.
    pub memory: Duration,
    /// Before the second attempt to connect; doubled with each further one, and half of it is drawn by lot.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Messages in a row that were not answered, before the link is closed.
    pub breaker_after: u32,
    /// That it then stays closed.
    pub breaker: Duration,
}

impl Limits {
    /// The wait before the next connection, after this many in a row that came to nothing.
    pub(super) fn backoff(&self, failures: u32, lot: u8) -> Duration {
        let doublings = failures.saturating_sub(1);
        let doubled = self.backoff_min.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
        let most = doubled.min(self.backoff_max);
        // Half is certain, half is drawn: nodes that lost a core together do not come back together.
        most / 2 + most / 2 * u32::from(lot) / 255
    }
}
