//! Copies of messages that are not stored are counted here: each that was addressed to this session ends in one way.

use wakala::conservation::Fate;

use super::{Session, inbox};

impl Session {
    /// At the end of a turn: what became of copies in it, and how many wait.
    pub(super) fn count(&mut self) {
        let (settled, in_twin) = self.twin.settled();
        let arrived = if self.arrivals.is_empty() { 0 } else { inbox::messages(&self.arrivals) };
        let waiting = usize::from(in_twin) + arrived;
        if settled == Default::default() && waiting == self.waiting {
            return;
        }
        let direct = &self.sessions.store().metrics().direct;
        direct.end(Fate::Delivered, settled.delivered.into());
        direct.end(Fate::Expired, settled.expired.into());
        direct.end(Fate::Declined, settled.declined.into());
        direct.waiting.change(difference(waiting, self.waiting));
        self.waiting = waiting;
    }

    /// At the end of the connection, when nobody hands it anything any more: what waits, waits for nothing.
    pub(super) fn count_last(&mut self) {
        self.count();
        let direct = &self.sessions.store().metrics().direct;
        direct.waiting.change(difference(0, self.waiting));
        let left = self.waiting + self.inbox.messages();
        direct.end(Fate::ConnectionOver, u64::try_from(left).unwrap_or(u64::MAX));
    }
}

fn difference(now: usize, before: usize) -> i64 {
    let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    signed(now) - signed(before)
}
