//! MQTT sessions, key counters and PIN tries. See `actors/store/sessions.rs` and `migrations/m0012_admission.rs`.

use std::time::Duration;

use wakala::card::{Ksn, Token};
use wakala::id::{RequestKey, TerminalId};
use wakala::session::{Change, Loaded, Subscription};
use wakala::time::Time;

use super::{Attempt, Error, Postgres};

#[derive(Debug)]
pub(super) struct Row {
    pub(super) epoch: i64,
    pub(super) next_seq: i64,
    pub(super) connected: bool,
    node: Option<usize>,
    expiry_s: u32,
    expires_at: Option<Time>,
    /// How far the last connection sent; nobody can say while one lives.
    sent_to: Option<i64>,
    subscriptions: Vec<Subscription>,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            epoch: 0,
            next_seq: 1,
            connected: false,
            node: None,
            expiry_s: 0,
            expires_at: None,
            sent_to: None,
            subscriptions: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Try {
    digest: RequestKey,
    number: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Card {
    counted: i64,
    cleared: i64,
}

/// What a CONNECT opens a session with.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) terminal: TerminalId,
    pub(crate) node: usize,
    pub(crate) clean_start: bool,
    pub(crate) expiry_s: u32,
}

/// A connection that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) terminal: TerminalId,
    pub(crate) epoch: i64,
    pub(crate) expiry_s: u32,
    pub(crate) sent_to: i64,
    /// What was not stored before.
    pub(crate) change: Change,
}

/// A request whose code is right.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) terminal: TerminalId,
    pub(crate) key: RequestKey,
    pub(crate) digest: RequestKey,
    pub(crate) ksn: Ksn,
    pub(crate) token: Token,
    pub(crate) pin: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Replayed,
    UnknownCard,
    LetIn { attempt: Option<i64> },
}

const TRIES_MAX: i64 = 3;

impl Postgres {
    pub(crate) fn open_session(&mut self, opening: &Opening, now: Time) -> Attempt<(i64, Loaded)> {
        let Some(row) = self.sessions.get_mut(&opening.terminal) else { return Attempt::Done(Err(Error::Broken)) };
        let present = !opening.clean_start && row.expiry_s > 0 && row.expires_at.is_none_or(|at| at > now);
        let loaded = if present {
            Loaded {
                present,
                subscriptions: row.subscriptions.clone(),
                // No terminal of this village asks at QoS 2.
                received: Vec::new(),
                sent_to: row.sent_to.unwrap_or(row.next_seq - 1),
            }
        } else {
            row.subscriptions.clear();
            Loaded::default()
        };
        row.epoch += 1;
        (row.node, row.connected) = (Some(opening.node), true);
        (row.expiry_s, row.expires_at, row.sent_to) = (opening.expiry_s, None, None);
        Attempt::ok((row.epoch, loaded))
    }

    pub(crate) fn change_subscriptions(&mut self, terminal: &TerminalId, epoch: i64, change: &Change) -> Attempt<()> {
        let owned = self.sessions.get_mut(terminal).filter(|row| row.epoch == epoch);
        let Some(row) = owned else { return Attempt::Done(Err(Error::Fenced)) };
        change.clone().apply(&mut row.subscriptions);
        Attempt::ok(())
    }

    pub(crate) fn end_session(&mut self, ended: &Ended, now: Time) -> Attempt<()> {
        if let Some(row) = self.sessions.get_mut(&ended.terminal)
            && row.epoch == ended.epoch
        {
            (row.connected, row.node, row.expiry_s) = (false, None, ended.expiry_s);
            row.expires_at = Some(now + Duration::from_secs(ended.expiry_s.into()));
            row.sent_to = Some(ended.sent_to);
            ended.change.clone().apply(&mut row.subscriptions);
            if ended.expiry_s == 0 {
                row.subscriptions.clear();
            }
        }
        Attempt::ok(())
    }

    /// Which of these sessions a later connection has opened since.
    pub(crate) fn overtaken(&self, held: &[(TerminalId, i64)]) -> Attempt<Vec<(TerminalId, i64)>> {
        let later = |(terminal, epoch): &&(TerminalId, i64)| {
            self.sessions.get(terminal).is_some_and(|session| session.epoch > *epoch)
        };
        Attempt::ok(held.iter().filter(later).cloned().collect())
    }

    /// The node has begun a new life: the connections of its last one are gone.
    pub(crate) fn forget_connections(&mut self, node: usize, now: Time) -> Attempt<()> {
        for row in self.sessions.values_mut().filter(|row| row.node == Some(node) && row.connected) {
            (row.connected, row.node) = (false, None);
            row.expires_at = Some(now + Duration::from_secs(row.expiry_s.into()));
        }
        Attempt::ok(())
    }

    pub(crate) fn expire_sessions(&mut self, now: Time) -> Attempt<()> {
        let over = |row: &&mut Row| !row.connected && row.expiry_s > 0 && row.expires_at.is_some_and(|at| at <= now);
        for row in self.sessions.values_mut().filter(over) {
            row.subscriptions.clear();
            row.expiry_s = 0;
        }
        Attempt::ok(())
    }

    /// Is the key counter a new one, and which try of the card is it?
    pub(crate) fn admit(&mut self, arrival: &Arrival) -> Attempt<Admission> {
        let Arrival { terminal, key, digest, ksn, token, pin } = arrival;
        let mine = (terminal.clone(), *key);
        let counter = self.key_counters.get(&ksn.initial_key_id);
        let fresh = counter.is_none_or(|(seen, by, under)| {
            *seen < ksn.counter || (*seen == ksn.counter && by == terminal && under == key)
        });
        if fresh {
            self.key_counters.insert(ksn.initial_key_id, (ksn.counter, terminal.clone(), *key));
        } else if self.tries.get(&mine).is_none_or(|earlier| earlier.digest != *digest) {
            return Attempt::ok(Admission::Replayed);
        }
        let card = self.cards.get_mut(token);
        let known = card.is_some();
        let attempt = match self.tries.get(&mine) {
            Some(earlier) if earlier.digest == *digest && earlier.number != Some(0) => earlier.number,
            _ => {
                let counted = card.filter(|card| *pin && card.counted - card.cleared < TRIES_MAX);
                let number = counted.map(|card| {
                    card.counted += 1;
                    card.counted
                });
                self.tries.insert(mine, Try { digest: *digest, number });
                number
            }
        };
        Attempt::ok(if known { Admission::LetIn { attempt } } else { Admission::UnknownCard })
    }

    pub(crate) fn settle(
        &mut self,
        terminal: &TerminalId,
        key: RequestKey,
        token: Token,
        attempt: i64,
        correct: bool,
    ) -> Attempt<()> {
        let Some(card) = self.cards.get_mut(&token) else { return Attempt::ok(()) };
        if correct {
            card.cleared = card.cleared.max(attempt);
        } else if let Some(tried) = self.tries.get_mut(&(terminal.clone(), key))
            && tried.number == Some(attempt)
        {
            tried.number = Some(0);
            if card.cleared < attempt {
                card.cleared += 1;
            }
        }
        Attempt::ok(())
    }
}
