//! Copies of messages that are not stored are counted here: each that was addressed to this session ends in one way.

use wakala::conservation::Fate;

use super::{Session, inbox};

impl Session {
    /// At the end of a turn: what became of copies in it, and how many wait.
    pub(super) fn count(&mut self) {
        let (settled, in_twin) = self.twin.settled();
        let arrived = self.arrivals.as_ref().map_or(0, |arrivals| inbox::messages(arrivals));
        let waiting = u32::from(in_twin) + u32::try_from(arrived).unwrap_or(u32::MAX);
        if settled == Default::default() && waiting == self.waiting {
            return;
        }
        let metrics = self.sessions.store().metrics();
        metrics.unauthorised.add(settled.unauthorised.into());
        let direct = &metrics.direct;
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
        let left = u64::try_from(self.inbox.messages()).unwrap_or(u64::MAX) + u64::from(self.waiting);
        direct.end(Fate::ConnectionOver, left);
    }
}

fn difference(now: u32, before: u32) -> i64 {
    i64::from(now) - i64::from(before)
}
