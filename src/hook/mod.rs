//! Asking somebody outside whether a client may connect, without ever waiting for him in a crowd.
//!
//! What he said is remembered, yes and no, for as long as he said. A question that is under way is not asked twice. So
//! many are asked at once, so many clients wait, and whoever comes then hears so at once. When he does not answer, a
//! breaker spares him and those who would wait. This decides; `actors/listener/identity/hook.rs` asks.

mod answer;
mod breaker;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::time::Time;
pub use answer::{Allowed, Answer, Lifetimes, NoAnswer};
pub use breaker::Breaker;

/// Which question it is: a keyed hash over all of it, for it has a password in it.
pub type Key = [u8; 32];

/// What a desk may take, each with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Questions under way at the same time.
    pub at_once: usize,
    /// Clients that may wait for an answer at the same time.
    pub waiting_max: usize,
    /// Decisions that are remembered.
    pub known_max: usize,
    /// Failures in a row after which the breaker opens.
    pub breaker_after: u32,
    /// How long it stays open.
    pub breaker: Duration,
    /// How long beyond its time a decision to let in is used while there is no other.
    pub stale_for: Option<Duration>,
}

/// What is decided about a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(Arc<Allowed>),
    Deny,
}

/// What a client is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Known(Decision),
    /// The question is to be asked now, and the client to wait for its answer.
    Ask,
    /// The question is to be kept until its turn, and the client to wait.
    Queue,
    /// The question is under way already; the client is to wait.
    Join,
    /// Too many wait.
    Full,
    /// The breaker is open.
    Shut,
}

/// What those who waited are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Decided(Decision),
    /// There was no answer.
    Unanswered,
}

#[derive(Debug)]
struct Known {
    decision: Decision,
    /// Used until then.
    until: Time,
    /// Kept until then, for want of a better one.
    kept: Time,
}

/// What became of clients since the start, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Questions that were asked.
    pub asked: u64,
    /// Of those, without a right answer in time.
    pub failed: u64,
    /// Clients about whom it was known already.
    pub known: u64,
    /// Of those, by a decision beyond its time, for want of another.
    pub stale: u64,
    /// Clients that found too many waiting.
    pub full: u64,
    /// Clients that found the breaker open.
    pub shut: u64,
    /// Clients that wait now.
    pub waiting: usize,
    /// Decisions that are remembered now.
    pub remembered: usize,
    /// The breaker is open now.
    pub open: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Desk {
    limits: Limits,
    known: BTreeMap<Key, Known>,
    /// The same by the end of each: the first is the first to be forgotten.
    ends: BTreeSet<(Time, Key)>,
    /// Asked or to be asked.
    open: BTreeSet<Key>,
    queue: VecDeque<Key>,
    under_way: usize,
    waiting: usize,
    breaker: Breaker,
    report: Report,
}

impl Desk {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            breaker: Breaker::new(limits.breaker_after, limits.breaker),
            limits,
            known: BTreeMap::new(),
            ends: BTreeSet::new(),
            open: BTreeSet::new(),
            queue: VecDeque::new(),
            under_way: 0,
            waiting: 0,
            report: Report::default(),
        }
    }

    /// A client comes with a question. With [`Reply::Ask`], [`Reply::Queue`] and [`Reply::Join`] it waits, until it
    /// [leaves](Self::leaves).
    pub fn comes(&mut self, key: &Key, now: Time) -> Reply {
        if let Some(known) = self.known.get(key)
            && now < known.until
        {
            self.report.known += 1;
            return Reply::Known(known.decision.clone());
        }
        let reply = if self.waiting >= self.limits.waiting_max {
            self.report.full += 1;
            Reply::Full
        } else if self.open.contains(key) {
            Reply::Join
        } else if self.under_way >= self.limits.at_once && !self.breaker.is_open() {
            Reply::Queue
        } else if self.under_way < self.limits.at_once && self.breaker.lets_through(now) {
            Reply::Ask
        } else {
            self.report.shut += 1;
            Reply::Shut
        };
        match reply {
            Reply::Full | Reply::Shut => return self.stale(key, now).map_or(reply, Reply::Known),
            Reply::Ask => self.sent(),
            Reply::Queue => self.queue.push_back(*key),
            Reply::Join | Reply::Known(_) => {}
        }
        self.open.insert(*key);
        self.waiting += 1;
        reply
    }

    /// A client waits no longer, whatever became of it.
    pub fn leaves(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// What came of a question that was under way: a decision and how long it holds, or nothing. Gives what those are to
    /// be told who wait for it.
    pub fn settle(&mut self, key: &Key, answer: Option<(Decision, Duration)>, now: Time) -> Outcome {
        self.under_way = self.under_way.saturating_sub(1);
        self.open.remove(key);
        if let Some((decision, holds)) = answer {
            self.breaker.answered();
            self.remember(*key, decision.clone(), holds, now);
            Outcome::Decided(decision)
        } else {
            self.report.failed += 1;
            self.breaker.failed(now);
            self.stale(key, now).map_or(Outcome::Unanswered, Outcome::Decided)
        }
    }

    /// The next question whose turn it is, to be asked now. One for which nobody waits any more is to be
    /// [dropped](Self::drop_question).
    pub fn next(&mut self, now: Time) -> Option<Key> {
        if self.queue.is_empty() || self.under_way >= self.limits.at_once || !self.breaker.lets_through(now) {
            return None;
        }
        let key = self.queue.pop_front()?;
        self.sent();
        Some(key)
    }

    /// A question that [`Self::next`] gave is not asked.
    pub fn drop_question(&mut self, key: &Key) {
        self.under_way = self.under_way.saturating_sub(1);
        self.report.asked -= 1;
        self.open.remove(key);
    }

    /// The questions that will not be asked, for the breaker is open, with what is known about them all the same.
    pub fn given_up(&mut self, now: Time) -> Vec<(Key, Outcome)> {
        if !self.breaker.is_open() {
            return Vec::new();
        }
        let given_up: Vec<Key> = std::mem::take(&mut self.queue).into();
        let outcome = |desk: &mut Self, key: Key| {
            desk.open.remove(&key);
            let outcome = desk.stale(&key, now).map_or(Outcome::Unanswered, Outcome::Decided);
            (key, outcome)
        };
        given_up.into_iter().map(|key| outcome(self, key)).collect()
    }

    #[must_use]
    pub fn report(&self) -> Report {
        Report { waiting: self.waiting, remembered: self.known.len(), open: self.breaker.is_open(), ..self.report }
    }

    fn sent(&mut self) {
        self.under_way += 1;
        self.report.asked += 1;
    }

    /// A decision whose time is over, where such are used.
    fn stale(&mut self, key: &Key, now: Time) -> Option<Decision> {
        let known = self.known.get(key).filter(|known| now < known.kept)?;
        self.report.stale += 1;
        Some(known.decision.clone())
    }

    fn remember(&mut self, key: Key, decision: Decision, holds: Duration, now: Time) {
        let until = now + holds;
        // One to keep out is used no longer: it would keep out whoever was let in since.
        let kept = match (&decision, self.limits.stale_for) {
            (Decision::Allow(_), Some(longer)) => until + longer,
            _ => until,
        };
        if let Some(before) = self.known.insert(key, Known { decision, until, kept }) {
            self.ends.remove(&(before.kept, key));
        }
        self.ends.insert((kept, key));
        // Whoever draws passwords by lot fills it with decisions that end soon, and these go first.
        while let Some(&(end, first)) = self.ends.first()
            && (end <= now || self.known.len() > self.limits.known_max)
        {
            self.ends.pop_first();
            self.known.remove(&first);
        }
    }
}
