//! Twin of one core link: sign-on, echo, requests and reversals in flight, answers to transactions, back-off, breaker.
//!
//! ```text
//!           ┌──────────── back-off ◀──────── down: refused, cut, silent ────────────┐
//!           ▼                                                                       │
//!        WAITING ─▶ CONNECTING ─▶ SIGNING_ON ─ 0810 ─▶ READY ─ echo when idle ──────┤
//!           ▲                                            │                          │
//!           └──────────────── BROKEN ◀─ answers out ─────┘        STOPPED ◀─ signed off
//! ```
//!
//! The twin does not own the time-out of a transaction: its partition does. It says what became of a message (answered,
//! never left, may have left) and remembers for a while which transaction a late answer belongs to. It never holds a
//! card's number: a [`Draft`] goes out, the actor opens the number, writes the message and hands the bytes in again, and
//! only if the message is still wanted then do they go out.

mod compose;
mod flight;
mod limits;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::{PartitionNo, TransactionId};
use crate::iso8583::{Bytes, Dialect, Message, Shape};
use crate::partition;
use crate::receipt::Reason;
use crate::time::Time;
use crate::transaction::{CoreAnswer, Transaction};

pub use compose::{Draft, Order};
pub use limits::Limits;

use flight::{Echoed, Entry, Flight, Key, Stage};

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    Up {
        link: u64,
    },
    /// Not connected, or no longer.
    Down {
        link: u64,
        why: String,
        /// Drawn by the caller: which part of the back-off's second half is waited.
        lot: u8,
    },
    /// A message, without length and header.
    Received {
        link: u64,
        message: Bytes,
    },
    Ask {
        partition: PartitionNo,
        transaction: Box<Transaction>,
    },
    Reverse {
        partition: PartitionNo,
        transaction: Box<Transaction>,
    },
    /// A [`Draft`], encoded, or why it cannot be.
    Prepared {
        ticket: u64,
        message: Result<Bytes, String>,
    },
    Wake,
    /// For good: signs off.
    Stop,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    Connect {
        link: u64,
    },
    /// Nothing that was written before is taken back. To be followed by [`Event::Down`].
    Close {
        link: u64,
        why: String,
    },
    Prepare(Draft),
    /// Without length and header.
    Write {
        link: u64,
        message: Bytes,
    },
    Tell {
        partition: PartitionNo,
        event: partition::Event,
    },
    /// Whether requests are taken.
    Gate {
        open: bool,
    },
    Unmatched(Unmatched),
    /// This transaction does not fit the dialect, or its card cannot be opened.
    Unfit {
        transaction: TransactionId,
        why: String,
    },
}

/// A message from the core that was not followed. There is no card data in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub why: String,
    /// Data elements by number, three digits, and `mti`; empty when the bytes are no message.
    pub summary: BTreeMap<String, String>,
    pub at: Time,
}

/// How a link stands, for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    Waiting,
    Connecting,
    SigningOn,
    Ready,
    Broken,
    Stopped,
}

impl Standing {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "WAITING",
            Self::Connecting => "CONNECTING",
            Self::SigningOn => "SIGNING_ON",
            Self::Ready => "READY",
            Self::Broken => "BROKEN",
            Self::Stopped => "STOPPED",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { until: Time },
    Connecting { until: Time },
    SigningOn { stan: u32, until: Time },
    Ready { since: Time, heard: Time, echo: Option<Echo> },
    Broken { until: Time },
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Echo {
    stan: u32,
    until: Time,
}

/// One core link.
#[derive(Debug)]
pub struct Bank {
    dialect: Arc<Dialect>,
    limits: Limits,
    state: State,
    /// Which connection this is; events of older ones change nothing.
    link: u64,
    flight: Flight,
    tickets: u64,
    /// DE11 of the messages about the link.
    stan: u32,
    /// Connections in a row that came to nothing.
    failures: u32,
    /// Messages in a row that were not answered.
    unanswered: u32,
    /// Since when, and how many messages nobody waited for since.
    unmatched: (Time, u32),
    last_down: Option<String>,
    effects: Vec<Effect>,
}

impl Bank {
    /// A link that connects at the first [`Event::Wake`].
    #[must_use]
    pub fn new(dialect: Arc<Dialect>, limits: Limits, now: Time) -> Self {
        Self {
            dialect,
            limits,
            state: State::Waiting { until: now },
            link: 0,
            flight: Flight::default(),
            tickets: 0,
            stan: 0,
            failures: 0,
            unanswered: 0,
            unmatched: (now, 0),
            last_down: None,
            effects: Vec::new(),
        }
    }

    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.state {
            State::Waiting { .. } => Standing::Waiting,
            State::Connecting { .. } => Standing::Connecting,
            State::SigningOn { .. } => Standing::SigningOn,
            State::Ready { .. } => Standing::Ready,
            State::Broken { .. } => Standing::Broken,
            State::Stopped => Standing::Stopped,
        }
    }

    /// Requests and reversals that wait for their answer.
    #[must_use]
    pub fn in_flight(&self) -> (usize, usize) {
        (self.flight.open(Order::Ask), self.flight.open(Order::Reverse))
    }

    /// Why the link was down the last time.
    #[must_use]
    pub fn last_down(&self) -> Option<&str> {
        self.last_down.as_deref()
    }

    /// When [`Event::Wake`] is wanted, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let link = match self.state {
            State::Waiting { until }
            | State::Connecting { until }
            | State::SigningOn { until, .. }
            | State::Broken { until }
            | State::Ready { echo: Some(Echo { until, .. }), .. } => Some(until),
            State::Ready { heard, echo: None, .. } => self.dialect.echo.as_ref().map(|_| heard + self.limits.idle),
            State::Stopped => None,
        };
        link.into_iter().chain(self.flight.next_due()).min()
    }

    /// What is to be done about it, in this order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Effect> {
        match event {
            Event::Up { link } if link == self.link => self.up(now),
            Event::Down { link, why, lot } if link == self.link => self.down(why, lot, now),
            Event::Received { link, message } if link == self.link => self.received(&message, now),
            Event::Up { .. } | Event::Down { .. } | Event::Received { .. } => {}
            Event::Ask { partition, transaction } => self.ask(partition, transaction, now),
            Event::Reverse { partition, transaction } => self.reverse(partition, transaction, now),
            Event::Prepared { ticket, message } => self.prepared(ticket, message, now),
            Event::Wake => {}
            Event::Stop => self.stop(now),
        }
        self.overdue(now);
        std::mem::take(&mut self.effects)
    }

    fn tell(&mut self, partition: PartitionNo, event: partition::Event) {
        self.effects.push(Effect::Tell { partition, event });
    }

    fn answer(&mut self, entry: (PartitionNo, TransactionId), answer: CoreAnswer) {
        let (partition, transaction) = entry;
        self.tell(partition, partition::Event::Answer { transaction, answer });
    }

    fn up(&mut self, now: Time) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        match self.dialect.sign_on.clone() {
            None => self.ready(now),
            Some(shape) => {
                let stan = self.write_link(&shape, now);
                self.state = State::SigningOn { stan, until: now + self.limits.sign_on };
            }
        }
    }

    fn ready(&mut self, now: Time) {
        self.state = State::Ready { since: now, heard: now, echo: None };
        self.unanswered = 0;
        self.effects.push(Effect::Gate { open: true });
    }

    fn down(&mut self, why: String, lot: u8, now: Time) {
        match self.state {
            State::Waiting { .. } | State::Broken { .. } | State::Stopped => return,
            State::Ready { since, .. } if now.since(since) >= self.limits.backoff_max => self.failures = 0,
            State::Ready { .. } | State::Connecting { .. } | State::SigningOn { .. } => {}
        }
        self.last_down = Some(why);
        self.lose(now);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + self.limits.backoff(self.failures, lot) };
    }

    /// Nothing more comes over this link: says of each message whether it may have left.
    fn lose(&mut self, now: Time) {
        if matches!(self.state, State::Ready { .. }) {
            self.effects.push(Effect::Gate { open: false });
        }
        for key in self.flight.open_keys() {
            let Some(entry) = self.flight.get(&key) else { continue };
            let (partition, transaction, order) = (entry.partition, entry.transaction, entry.order);
            match self.flight.turn(&key, Stage::Past, now + self.limits.memory) {
                Some(Stage::Left) if order == Order::Ask => {
                    self.tell(partition, partition::Event::Lost { transaction });
                }
                Some(Stage::Held { .. }) => {
                    self.flight.remove(&key);
                    if order == Order::Ask {
                        self.tell(partition, partition::Event::Unsent { transaction });
                    }
                }
                // The partition repeats a reversal when it is due.
                Some(Stage::Left | Stage::Past | Stage::Answered) | None => {}
            }
        }
    }

    fn close(&mut self, why: impl Into<String>) {
        self.effects.push(Effect::Close { link: self.link, why: why.into() });
    }

    fn stop(&mut self, now: Time) {
        if matches!(self.state, State::Ready { .. })
            && let Some(shape) = self.dialect.sign_off.clone()
        {
            self.write_link(&shape, now);
        }
        self.lose(now);
        self.state = State::Stopped;
        self.close("stopped");
    }

    fn write_link(&mut self, shape: &Shape, now: Time) -> u32 {
        self.stan = self.stan % 999_999 + 1;
        let message = compose::compose_link(&self.dialect, shape, self.stan, now);
        self.write(&message, now);
        self.stan
    }

    fn write(&mut self, message: &Message, now: Time) {
        match self.dialect.layout.encode(message) {
            Ok(message) => self.effects.push(Effect::Write { link: self.link, message }),
            // A dialect's literals were asked when it was loaded, so this is a reply that carries on what the core said.
            Err(unfit) => self.unmatched(format!("cannot be answered: {unfit}"), Some(message), now),
        }
    }

    fn unmatched(&mut self, why: impl Into<String>, message: Option<&Message>, at: Time) {
        let summary = message.map(Message::summary).unwrap_or_default();
        let why = why.into();
        if self.bears(at) {
            self.effects.push(Effect::Unmatched(Unmatched { why, summary, at }));
        }
    }

    /// Counts a message that nobody waits for, since each is stored; false when they are too many and the link is closed.
    fn bears(&mut self, at: Time) -> bool {
        let (since, count) = self.unmatched;
        self.unmatched = if at.since(since).as_secs() == 0 { (since, count.saturating_add(1)) } else { (at, 1) };
        let bears = self.unmatched.1 <= self.limits.unmatched;
        if !bears {
            self.close("too many messages that nobody waits for");
        }
        bears
    }

    fn ask(&mut self, partition: PartitionNo, transaction: Box<Transaction>, now: Time) {
        let id = transaction.id;
        let takes = matches!(self.state, State::Ready { .. }) && self.flight.open(Order::Ask) < self.limits.requests;
        // One that is due is in doubt by now and may be reversed already, by another node if this one slept: it must not
        // leave after its reversal.
        let late = transaction.due.is_some_and(|due| due <= now);
        if late || !takes {
            return self.tell(partition, partition::Event::Unsent { transaction: id });
        }
        match self.identify(Order::Ask, &transaction, now) {
            // Another request with this STAN has no answer yet: it waits again and draws another.
            Ok((key, _)) if self.flight.get(&key).is_some_and(|entry| entry.stage.is_open()) => {
                self.tell(partition, partition::Event::Unsent { transaction: id });
            }
            Ok((key, echo)) => self.hold(key, echo, Order::Ask, partition, transaction, now),
            Err(why) => self.unfit(Order::Ask, (partition, id), why),
        }
    }

    fn reverse(&mut self, partition: PartitionNo, transaction: Box<Transaction>, now: Time) {
        let id = transaction.id;
        // A request that is still held here must not leave after its reversal.
        if let Ok((key, _)) = self.identify(Order::Ask, &transaction, now)
            && let Some(Entry { transaction, stage: Stage::Held { .. }, .. }) = self.flight.get(&key)
            && *transaction == id
        {
            self.flight.remove(&key);
        }
        let takes = matches!(self.state, State::Ready { .. });
        if !takes || self.flight.open(Order::Reverse) >= self.limits.reversals {
            return;
        }
        match self.identify(Order::Reverse, &transaction, now) {
            // It is on its way already.
            Ok((key, _)) if matches!(self.flight.get(&key).map(|entry| entry.stage), Some(Stage::Held { .. })) => {}
            Ok((key, echo)) => self.hold(key, echo, Order::Reverse, partition, transaction, now),
            Err(why) => self.unfit(Order::Reverse, (partition, id), why),
        }
    }

    /// What its answer will be known by.
    fn identify(&self, order: Order, transaction: &Transaction, now: Time) -> Result<(Key, Echoed), String> {
        let message =
            compose::compose(&self.dialect, order, transaction, now, None).map_err(|unfit| unfit.to_string())?;
        let key = Key::of(&self.dialect, &message).ok_or("a part of the match key is missing")?;
        let echo = self.dialect.matching.echo.iter().filter_map(|&field| {
            let value = compose::comparable(&self.dialect, field, message.text(field)?);
            Some((field, value.into()))
        });
        Ok((key, echo.collect()))
    }

    fn hold(
        &mut self,
        key: Key,
        echo: Echoed,
        order: Order,
        partition: PartitionNo,
        transaction: Box<Transaction>,
        now: Time,
    ) {
        while self.flight.len() >= self.limits.remembered.max(self.limits.requests + self.limits.reversals) {
            self.flight.forget_one();
        }
        self.tickets += 1;
        let stage = Stage::Held { ticket: self.tickets };
        let given_up = now + self.limits.answer;
        let due = match order {
            Order::Ask => transaction.due.map_or(given_up, |due| due.min(given_up)),
            Order::Reverse => given_up,
        };
        self.flight.insert(key, Entry { transaction: transaction.id, partition, order, stage, echo, due });
        self.effects.push(Effect::Prepare(Draft { ticket: self.tickets, order, transaction, at: now }));
    }

    /// It did not leave and never will.
    fn unfit(&mut self, order: Order, entry: (PartitionNo, TransactionId), why: String) {
        self.effects.push(Effect::Unfit { transaction: entry.1, why });
        if order == Order::Ask {
            self.answer(entry, CoreAnswer::Declined(Reason::new(Reason::MALFUNCTION)));
        }
    }

    fn prepared(&mut self, ticket: u64, message: Result<Bytes, String>, now: Time) {
        // Not held any more: it was lost with its link, reversed, or took too long.
        let Some(key) = self.flight.key_of_ticket(ticket) else { return };
        let late = self.flight.get(&key).is_none_or(|entry| entry.due <= now);
        match message {
            // It took too long, and what is due is settled at the end of every event.
            Ok(_) if late => {}
            Ok(message) => {
                self.flight.turn(&key, Stage::Left, now + self.limits.answer);
                self.effects.push(Effect::Write { link: self.link, message });
            }
            Err(why) => {
                if let Some(entry) = self.flight.remove(&key) {
                    self.unfit(entry.order, (entry.partition, entry.transaction), why);
                }
            }
        }
    }

    fn received(&mut self, bytes: &Bytes, now: Time) {
        match &mut self.state {
            State::Ready { heard, .. } => *heard = now,
            State::SigningOn { .. } => {}
            // The link is closed, or not up yet.
            State::Waiting { .. } | State::Connecting { .. } | State::Broken { .. } | State::Stopped => return,
        }
        match self.dialect.layout.parse(bytes) {
            Err(malformed) => self.unmatched(malformed.to_string(), None, now),
            Ok(message) if message.mti.class() == compose::REPLY_MTI.class() => self.network(message, now),
            Ok(message) if message.mti.is_response() => self.matched(&message, now),
            Ok(message) => self.unmatched("a request, and this switch takes none", Some(&message), now),
        }
    }

    fn network(&mut self, message: Message, now: Time) {
        if !message.mti.is_response() {
            let reply = compose::reply(message, "00");
            return self.write(&reply, now);
        }
        let stan = message.text(11).and_then(|stan| stan.parse::<u32>().ok());
        let well = message.text(39).is_some_and(|code| self.dialect.answers.network.contains(code));
        match self.state {
            State::SigningOn { stan: asked, .. } if stan == Some(asked) && well => self.ready(now),
            State::SigningOn { stan: asked, .. } if stan == Some(asked) => {
                self.unmatched("the sign-on was refused", Some(&message), now);
                self.close("the sign-on was refused");
            }
            State::Ready { since, heard, echo: Some(echo) } if stan == Some(echo.stan) => {
                self.state = State::Ready { since, heard, echo: None };
            }
            _ => self.unmatched("no sign-on or echo waits for it", Some(&message), now),
        }
    }

    fn matched(&mut self, message: &Message, now: Time) {
        let Some(key) = Key::of(&self.dialect, message) else {
            return self.unmatched("a part of the match key is missing", Some(message), now);
        };
        let Some(entry) = self.flight.get(&key).filter(|entry| !matches!(entry.stage, Stage::Held { .. })) else {
            return self.unmatched("no request waits for it", Some(message), now);
        };
        let differs = |(field, sent): &&(u8, Box<str>)| {
            let found = message.text(*field);
            found.is_some_and(|text| compose::comparable(&self.dialect, *field, text) != &**sent)
        };
        if let Some((field, _)) = entry.echo.iter().find(differs) {
            let why = format!("DE{field} is not that of its request");
            return self.unmatched(why, Some(message), now);
        }
        let Some(code) = message.text(39) else {
            return self.unmatched("it has no DE39", Some(message), now);
        };
        let (who, order) = ((entry.partition, entry.transaction), entry.order);
        let before = self.flight.turn(&key, Stage::Answered, now + self.limits.memory);
        if before == Some(Stage::Answered) && !self.bears(now) {
            return;
        }
        self.unanswered = 0;
        self.failures = 0;
        let answers = &self.dialect.answers;
        let answer = match order {
            Order::Reverse if answers.settled.contains(code) => CoreAnswer::Reversed,
            Order::Reverse => CoreAnswer::ReversalRefused(Reason::new(code)),
            Order::Ask if answers.approved.contains(code) => {
                CoreAnswer::Approved { authorisation: message.text(38).unwrap_or_default().into() }
            }
            Order::Ask if answers.declined.contains(code) => CoreAnswer::Declined(Reason::new(code)),
            Order::Ask => {
                self.unmatched(format!("{code} means nothing certain in this dialect"), Some(message), now);
                if before == Some(Stage::Left) {
                    self.tell(who.0, partition::Event::Lost { transaction: who.1 });
                }
                return;
            }
        };
        self.answer(who, answer);
    }

    fn overdue(&mut self, now: Time) {
        while let Some(key) = self.flight.due(now) {
            let Some(entry) = self.flight.get(&key) else { break };
            let (stage, order, partition, transaction) = (entry.stage, entry.order, entry.partition, entry.transaction);
            match stage {
                Stage::Past | Stage::Answered => {
                    self.flight.remove(&key);
                }
                Stage::Held { .. } => {
                    self.flight.remove(&key);
                    if order == Order::Ask {
                        self.tell(partition, partition::Event::Unsent { transaction });
                    }
                }
                Stage::Left => {
                    self.flight.turn(&key, Stage::Past, now + self.limits.memory);
                    self.unanswered = self.unanswered.saturating_add(1);
                }
            }
        }
        if matches!(self.state, State::Ready { .. }) && self.unanswered >= self.limits.breaker_after {
            let why = format!("{} messages in a row were not answered", self.unanswered);
            self.last_down = Some(why.clone());
            self.lose(now);
            self.state = State::Broken { until: now + self.limits.breaker };
            self.close(why);
        }
        self.overdue_link(now);
    }

    fn overdue_link(&mut self, now: Time) {
        match self.state {
            State::Waiting { until } | State::Broken { until } if until <= now => {
                self.link += 1;
                self.state = State::Connecting { until: now + self.limits.connect };
                self.effects.push(Effect::Connect { link: self.link });
            }
            State::Connecting { until } if until <= now => self.close("no connection in time"),
            State::SigningOn { until, .. } if until <= now => self.close("the sign-on was not answered"),
            State::Ready { echo: Some(echo), .. } if echo.until <= now => self.close("the echo was not answered"),
            State::Ready { since, heard, echo: None } if heard + self.limits.idle <= now => {
                if let Some(shape) = self.dialect.echo.clone() {
                    let stan = self.write_link(&shape, now);
                    self.state =
                        State::Ready { since, heard, echo: Some(Echo { stan, until: now + self.limits.echo }) };
                }
            }
            _ => {}
        }
    }
}
