//! Receipts: the row is the queue. See `actors/store/decision.rs` and `actors/store/receipts.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use ntex_bytes::Bytes;
use wakala::id::{TerminalId, TransactionId};
use wakala::receipt::{Answer, Stage};
use wakala::session::{Delivery, What};
use wakala::time::Time;

use super::{Attempt, Postgres};
use crate::simulation::stage::About;

#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) terminal: TerminalId,
    pub(crate) seq: i64,
    pub(crate) envelope: Vec<u8>,
    pub(crate) at: Time,
    pub(crate) delivered: bool,
    pub(crate) withdrawn: bool,
}

/// A receipt that was just queued.
#[derive(Clone, Debug)]
pub(crate) struct Hint {
    pub(crate) terminal: TerminalId,
    pub(crate) seq: i64,
    pub(crate) envelope: Vec<u8>,
}

impl Postgres {
    fn draw_seq(&mut self, terminal: &TerminalId) -> i64 {
        let session = self.sessions.get_mut(terminal).expect("a session exists from enrolment on");
        session.next_seq += 1;
        session.next_seq - 1
    }

    pub(super) fn write_receipts(&mut self, sealed: &[(Answer, Vec<u8>)], again: &[TransactionId]) -> Vec<Hint> {
        let fresh: BTreeSet<TransactionId> = sealed.iter().map(|(answer, _)| answer.answers).collect();
        let again: BTreeSet<TransactionId> = again.iter().filter(|id| !fresh.contains(id)).copied().collect();
        let finals: BTreeSet<TransactionId> = sealed
            .iter()
            .filter(|(answer, _)| answer.stage == Stage::Final)
            .map(|(answer, _)| answer.answers)
            .collect();
        let mut hints = Vec::new();
        for (answer, envelope) in sealed {
            let seq = self.draw_seq(&answer.terminal);
            let withdrawn = answer.stage == Stage::Notice && finals.contains(&answer.answers);
            let (terminal, envelope) = (answer.terminal.clone(), envelope.clone());
            let row = Receipt { terminal, seq, envelope, at: answer.at, delivered: false, withdrawn };
            self.insert(answer, row, &mut hints);
        }
        for id in finals {
            self.withdraw(id);
        }
        for id in again {
            self.queue_again(id, &mut hints);
        }
        hints.sort_by(|a, b| (&a.terminal, a.seq).cmp(&(&b.terminal, b.seq)));
        hints
    }

    fn insert(&mut self, answer: &Answer, row: Receipt, hints: &mut Vec<Hint>) {
        let key = (answer.answers, answer.stage);
        if !row.withdrawn {
            self.queue.insert((row.terminal.clone(), row.seq), key);
            hints.push(Hint { terminal: row.terminal.clone(), seq: row.seq, envelope: row.envelope.clone() });
        }
        if self.receipts.insert(key, row).is_some() {
            let text = format!("a second {:?} answer to {}", answer.stage, answer.answers);
            self.violated("I2: one receipt", About::Transaction(answer.answers), text);
        }
    }

    /// A notice that was not delivered when the receipt came says nothing any more.
    fn withdraw(&mut self, id: TransactionId) {
        if let Some(notice) = self.receipts.get_mut(&(id, Stage::Notice))
            && !notice.delivered
        {
            notice.withdrawn = true;
            self.queue.remove(&(notice.terminal.clone(), notice.seq));
        }
    }

    fn queue_again(&mut self, id: TransactionId, hints: &mut Vec<Hint>) {
        let key = [Stage::Final, Stage::Notice].map(|stage| (id, stage));
        let Some(key) = key.into_iter().find(|key| self.receipts.contains_key(key)) else { return };
        let row = self.receipts[&key].clone();
        let seq = if row.delivered { self.draw_seq(&row.terminal) } else { row.seq };
        if let Some(stored) = self.receipts.get_mut(&key) {
            (stored.seq, stored.delivered) = (seq, false);
        }
        self.queue.insert((row.terminal.clone(), seq), key);
        hints.push(Hint { terminal: row.terminal, seq, envelope: row.envelope });
    }

    /// What is queued beyond a place, and the last place given out: one snapshot.
    pub(crate) fn queued(&self, terminal: &TerminalId, after: i64, max: u16) -> Attempt<(Vec<Delivery>, i64)> {
        let last = self.sessions.get(terminal).map_or(0, |session| session.next_seq - 1);
        let waiting = self.queue.range((terminal.clone(), after + 1)..=(terminal.clone(), i64::MAX));
        let deliveries = waiting.take(usize::from(max)).map(|((_, seq), key)| {
            let payload = Bytes::from(self.receipts[key].envelope.clone());
            Delivery { seq: *seq, received: None, what: What::Receipt(payload) }
        });
        Attempt::ok((deliveries.collect(), last))
    }

    /// Marks a delivery; false when a later connection owns the session.
    pub(crate) fn acknowledge(&mut self, terminal: &TerminalId, epoch: i64, seq: i64) -> Attempt<bool> {
        let owned = self.sessions.get(terminal).is_some_and(|session| session.epoch == epoch);
        if owned
            && let Some(key) = self.queue.remove(&(terminal.clone(), seq))
            && let Some(row) = self.receipts.get_mut(&key)
        {
            row.delivered = true;
        }
        Attempt::ok(owned)
    }

    /// Connected terminals with a receipt that waits for longer than this.
    pub(crate) fn terminals_waiting(&self, waited: Duration, now: Time) -> Attempt<Vec<TerminalId>> {
        let waits = |key: &(TransactionId, Stage)| self.receipts[key].at + waited <= now;
        let terminals: BTreeSet<&TerminalId> =
            self.queue.iter().filter(|(_, key)| waits(key)).map(|((terminal, _), _)| terminal).collect();
        let connected = |terminal: &&&TerminalId| self.sessions.get(**terminal).is_some_and(|s| s.connected);
        Attempt::ok(terminals.iter().filter(connected).map(|&terminal| terminal.clone()).collect())
    }

    /// How many receipts wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }
}
