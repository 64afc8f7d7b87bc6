//! Twin of one partition of the log: its open transactions.
//!
//! It takes what happened (records of the log, words from the cores, the clock) and a [`Supply`] read from the database
//! inside the transaction that will commit, and gives back one [`Decision`]: the rows to write and the acts that may be
//! done once they are written. It decides many events at once, for the commit is what costs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::id::{CoreId, Offset, PartitionNo, Rrn, Stan, TransactionId};
use crate::ledger::{Account, Entry, FloatMove, Phase};
use crate::receipt::{self, Answer, Reason, Verdict};
use crate::record::{Asked, Body, Pin, Record};
use crate::request::{Kind, Refusal};
use crate::time::Time;
use crate::transaction::{CoreAnswer, Patience, State, Trace, Transaction};

/// The open transactions of one partition.
#[derive(Debug)]
pub struct Partition {
    number: PartitionNo,
    /// The next record to be read.
    position: Offset,
    patience: Patience,
    open: BTreeMap<TransactionId, Transaction>,
    /// Every open transaction that has a due time, by that time.
    timers: BTreeSet<(Time, TransactionId)>,
    /// ACCEPTED transactions by core, oldest first.
    waiting: BTreeMap<CoreId, VecDeque<TransactionId>>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record of the log, in order.
    Record {
        offset: Offset,
        record: Record,
    },
    /// Bytes in the log that are no record, or one that killed this partition too often.
    Unreadable {
        offset: Offset,
        why: String,
    },
    Answer {
        transaction: TransactionId,
        answer: CoreAnswer,
    },
    /// The request did not leave: the link was down before the first byte.
    Unsent {
        transaction: TransactionId,
    },
    /// The link was lost after the request may have left.
    Lost {
        transaction: TransactionId,
    },
    /// Time has passed, or a core has room again.
    Wake,
}

/// What is to be read for some events, inside the transaction that will commit their decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Which of these are known already?
    pub ids: BTreeSet<TransactionId>,
    /// What is free in these floats? The rows stay locked until the commit.
    pub floats: BTreeSet<Account>,
    /// How many STANs to draw.
    pub stans: usize,
}

/// The answer to [`Needs`], the time, and what the cores have room for.
#[derive(Clone, Debug)]
pub struct Supply {
    pub now: Time,
    pub known: BTreeMap<TransactionId, Known>,
    /// Minor units that may still leave the float: balance less reserved less floor. A float that is not here does
    /// not exist.
    pub floats: BTreeMap<Account, i64>,
    pub stans: VecDeque<Stan>,
    /// How many more requests each core takes now. A core that is not signed on takes none.
    pub room: BTreeMap<CoreId, usize>,
}

/// What the database knows of an identity that came in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Transaction { fingerprint: [u8; 32], state: State },
    Refusal,
}

/// What is to be committed, in one database transaction.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Decision {
    /// The new position in the log, when records were read.
    pub position: Option<Offset>,
    /// Whole rows, new or changed.
    pub transactions: BTreeMap<TransactionId, Transaction>,
    pub entries: Vec<Entry>,
    pub floats: Vec<FloatMove>,
    pub answers: Vec<Answer>,
    /// Stored answers that were asked for again.
    pub again: Vec<TransactionId>,
    /// Words from a core that changed nothing.
    pub late: Vec<Late>,
    pub parked: Vec<Parked>,
    /// To be done after the commit.
    pub acts: Vec<Act>,
}

/// An answer that came too late to be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    pub transaction: TransactionId,
    pub answer: CoreAnswer,
    pub at: Time,
}

/// A record that is not followed, for an operator to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    pub offset: Offset,
    pub why: String,
    pub at: Time,
}

/// What is done in the world once the decision is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask the core. Takes one of the core's places until the transaction leaves SENT.
    Ask(Box<Transaction>),
    /// Tell the core to take it back: 0420, or 0421 when it was told before.
    Reverse(Box<Transaction>),
}

impl Partition {
    /// From the rows of the transactions that are open. What they owe is owed by their due times: a SENT one whose
    /// answer is lost becomes IN_DOUBT when it is due, an IN_DOUBT one repeats its reversal.
    ///
    /// The rows may be of a node whose calendar was ahead of this one: nothing is due later than if it had begun now.
    #[must_use]
    pub fn load(number: PartitionNo, position: Offset, open: Vec<Transaction>, patience: Patience, now: Time) -> Self {
        let mut partition = Self {
            number,
            position,
            patience,
            open: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: BTreeMap::new(),
        };
        let mut open = open;
        open.sort_by_key(|transaction| (transaction.asked_at, transaction.id));
        for mut transaction in open {
            transaction.due = transaction.due.map(|due| due.min(patience.latest(&transaction, now)));
            if transaction.state == State::Accepted {
                partition.waiting.entry(transaction.core.clone()).or_default().push_back(transaction.id);
            }
            partition.keep(transaction);
        }
        partition
    }

    #[must_use]
    pub fn number(&self) -> PartitionNo {
        self.number
    }

    #[must_use]
    pub fn position(&self) -> Offset {
        self.position
    }

    #[must_use]
    pub fn open(&self) -> &BTreeMap<TransactionId, Transaction> {
        &self.open
    }

    /// How many wait for room at each core.
    pub fn waiting(&self) -> impl Iterator<Item = (&CoreId, usize)> {
        self.waiting.iter().filter(|(_, queue)| !queue.is_empty()).map(|(core, queue)| (core, queue.len()))
    }

    /// When [`Event::Wake`] is wanted, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// How many requests each core would be sent after these events, if it had room for all.
    #[must_use]
    pub fn wants(&self, events: &[Event]) -> BTreeMap<CoreId, usize> {
        let mut wants: BTreeMap<CoreId, usize> = self.waiting().map(|(core, n)| (core.clone(), n)).collect();
        for event in events {
            let core = match event {
                Event::Record { record, .. } if matches!(record.body, Body::Asked(_)) => Some(&record.core),
                Event::Unsent { transaction } => self.open.get(transaction).map(|t| &t.core),
                Event::Record { .. }
                | Event::Unreadable { .. }
                | Event::Answer { .. }
                | Event::Lost { .. }
                | Event::Wake => None,
            };
            if let Some(core) = core {
                *wants.entry(core.clone()).or_default() += 1;
            }
        }
        wants
    }

    /// What is to be read for these events, when the cores have this much room.
    #[must_use]
    pub fn needs(&self, events: &[Event], room: &BTreeMap<CoreId, usize>) -> Needs {
        let mut needs = Needs { stans: room.values().sum(), ..Needs::default() };
        for event in events {
            if let Event::Record { record, .. } = event {
                needs.ids.insert(record.transaction());
                if let Body::Asked(asked) = &record.body {
                    needs.ids.insert(reuse_id(record, asked));
                    if asked.kind == Kind::Deposit {
                        needs.floats.insert(Account::float(record.agent.clone(), asked.amount.currency()));
                    }
                }
            }
        }
        needs
    }

    /// Decides. The machine has moved when this returns: if the commit fails it must be thrown away and loaded again.
    pub fn handle(&mut self, events: Vec<Event>, supply: Supply) -> Decision {
        let mut deciding = Deciding { partition: self, supply, decision: Decision::default() };
        for event in events {
            deciding.event(event);
        }
        deciding.overdue();
        deciding.send_what_has_room();
        deciding.decision
    }

    fn keep(&mut self, transaction: Transaction) {
        if let Some(due) = transaction.due {
            self.timers.insert((due, transaction.id));
        }
        self.open.insert(transaction.id, transaction);
    }

    fn take(&mut self, id: TransactionId) -> Option<Transaction> {
        let transaction = self.open.remove(&id)?;
        if let Some(due) = transaction.due {
            self.timers.remove(&(due, id));
        }
        if transaction.state == State::Accepted
            && let Some(queue) = self.waiting.get_mut(&transaction.core)
        {
            queue.retain(|&waiting| waiting != id);
        }
        Some(transaction)
    }
}

/// The identity of "this key, but asking for that": where the refusal of a reused key is stored.
fn reuse_id(record: &Record, asked: &Asked) -> TransactionId {
    let mut bytes = record.key.0.to_vec();
    bytes.extend_from_slice(&asked.fingerprint());
    TransactionId::of(&record.terminal, crate::id::RequestKey::of_bytes(&bytes))
}

struct Deciding<'a> {
    partition: &'a mut Partition,
    supply: Supply,
    decision: Decision,
}

impl Deciding<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Record { offset, record } => {
                if self.advance(offset) {
                    self.record(record);
                }
            }
            Event::Unreadable { offset, why } => {
                if self.advance(offset) {
                    self.decision.parked.push(Parked { offset, why, at: self.supply.now });
                }
            }
            Event::Answer { transaction, answer } => self.answer(transaction, answer),
            Event::Unsent { transaction } => self.unsent(transaction),
            Event::Lost { transaction } => {
                if self.partition.open.get(&transaction).is_some_and(|t| t.state == State::Sent) {
                    self.in_doubt(transaction);
                }
            }
            Event::Wake => {}
        }
    }

    /// False for a record that was read before.
    fn advance(&mut self, offset: Offset) -> bool {
        let new = offset >= self.partition.position;
        if new {
            self.partition.position = Offset(offset.0 + 1);
            self.decision.position = Some(self.partition.position);
        }
        new
    }

    fn record(&mut self, record: Record) {
        match &record.body {
            Body::Refused(refusal) => {
                let id = record.transaction();
                self.refuse(id, &record, *refusal);
            }
            Body::Asked(asked) => {
                let id = record.transaction();
                let fingerprint = asked.fingerprint();
                match self.known(id) {
                    None => self.begin(id, &record, asked),
                    Some(Known::Transaction { fingerprint: stored, .. }) if stored == fingerprint => {
                        self.decision.again.push(id);
                    }
                    Some(_) => self.refuse(reuse_id(&record, asked), &record, Refusal::KeyReused),
                }
            }
        }
    }

    fn known(&self, id: TransactionId) -> Option<Known> {
        // What this very batch decided is not in the database yet.
        let open = self.decision.transactions.get(&id).or_else(|| self.partition.open.get(&id));
        open.map(|t| Known::Transaction { fingerprint: t.fingerprint, state: t.state })
            .or_else(|| self.supply.known.get(&id).copied())
            .or_else(|| self.decision.answers.iter().any(|a| a.answers == id).then_some(Known::Refusal))
    }

    fn refuse(&mut self, id: TransactionId, record: &Record, refusal: Refusal) {
        if self.known(id).is_some() {
            self.decision.again.push(id);
            return;
        }
        let now = self.supply.now;
        let answer = receipt::refusal(id, &record.terminal, &record.agent, record.key, refusal, record.ksn, now);
        self.decision.answers.push(answer);
    }

    fn begin(&mut self, id: TransactionId, record: &Record, asked: &Asked) {
        let now = self.supply.now;
        let transaction = Transaction {
            id,
            partition: self.partition.number,
            terminal: record.terminal.clone(),
            agent: record.agent.clone(),
            core: record.core.clone(),
            key: record.key,
            fingerprint: asked.fingerprint(),
            kind: asked.kind,
            amount: asked.amount,
            card: asked.card.clone(),
            ksn: record.ksn,
            state: State::Accepted,
            asked_at: record.at,
            trace: None,
            due: Some(self.partition.patience.waits_until(record.at, now)),
            reversals: 0,
            code: None,
            authorisation: None,
        };
        if let Some(code) = self.objection(&transaction, asked.pin) {
            self.finish(transaction, State::Declined, Some(Reason::new(code)), None, None);
            return;
        }
        if let Some(free) = self.supply.floats.get_mut(&float_of(&transaction))
            && transaction.kind == Kind::Deposit
        {
            *free -= transaction.amount.minor();
        }
        self.book(&transaction, Phase::Pending);
        self.partition.waiting.entry(transaction.core.clone()).or_default().push_back(id);
        self.store(transaction);
    }

    /// Why it is declined without asking the core.
    fn objection(&self, transaction: &Transaction, pin: Pin) -> Option<&'static str> {
        match pin {
            Pin::NotAsked | Pin::Correct => {}
            Pin::Wrong => return Some(Reason::WRONG_PIN),
            Pin::TriesExceeded => return Some(Reason::PIN_TRIES_EXCEEDED),
            Pin::Malformed => return Some(Reason::PIN_MALFORMED),
            Pin::UnknownCard => return Some(Reason::INVALID_CARD),
            Pin::HsmFault => return Some(Reason::MALFUNCTION),
        }
        if expired(transaction, self.supply.now) {
            return Some(Reason::EXPIRED_CARD);
        }
        match transaction.kind {
            Kind::Withdrawal => None,
            Kind::Deposit => {
                let free = self.supply.floats.get(&float_of(transaction)).copied().unwrap_or(0);
                (free < transaction.amount.minor()).then_some(Reason::INSUFFICIENT)
            }
        }
    }

    fn answer(&mut self, id: TransactionId, answer: CoreAnswer) {
        let state = self.partition.open.get(&id).map(|t| t.state);
        let at = self.supply.now;
        match (state, answer) {
            (Some(State::Sent), CoreAnswer::Approved { authorisation }) => {
                self.settle(id, Phase::Posted, State::Approved, None, Some(authorisation));
            }
            (Some(State::Sent), CoreAnswer::Declined(code)) => {
                self.settle(id, Phase::Voided, State::Declined, Some(code), None);
            }
            (Some(State::InDoubt), CoreAnswer::Reversed) => {
                self.settle(id, Phase::Voided, State::Reversed, None, None);
            }
            // It is repeated when it is due; the refusal is kept for whoever asks why it takes so long.
            (_, answer) => self.decision.late.push(Late { transaction: id, answer, at }),
        }
    }

    fn settle(
        &mut self,
        id: TransactionId,
        phase: Phase,
        state: State,
        code: Option<Reason>,
        authorisation: Option<Box<str>>,
    ) {
        if let Some(transaction) = self.partition.take(id) {
            self.finish(transaction, state, code, authorisation, Some(phase));
        }
    }

    fn finish(
        &mut self,
        mut transaction: Transaction,
        state: State,
        code: Option<Reason>,
        authorisation: Option<Box<str>>,
        phase: Option<Phase>,
    ) {
        if let Some(phase) = phase {
            self.book(&transaction, phase);
        }
        transaction.state = state;
        transaction.due = None;
        transaction.code = code;
        transaction.authorisation = authorisation;
        self.decision.answers.push(transaction.told().answer(&transaction.verdict(), self.supply.now));
        self.decision.transactions.insert(transaction.id, transaction);
    }

    /// It did not leave: it waits again, first in the row, and takes a new STAN when it is its turn.
    fn unsent(&mut self, id: TransactionId) {
        if self.partition.open.get(&id).is_none_or(|t| t.state != State::Sent) {
            return;
        }
        if let Some(mut transaction) = self.partition.take(id) {
            transaction.state = State::Accepted;
            transaction.trace = None;
            transaction.due = Some(self.partition.patience.waits_until(transaction.asked_at, self.supply.now));
            self.partition.waiting.entry(transaction.core.clone()).or_default().push_front(id);
            self.store(transaction);
        }
    }

    fn in_doubt(&mut self, id: TransactionId) {
        if let Some(mut transaction) = self.partition.take(id) {
            transaction.state = State::InDoubt;
            self.decision.answers.push(transaction.told().answer(&Verdict::Pending, self.supply.now));
            self.reverse(transaction);
        }
    }

    fn reverse(&mut self, mut transaction: Transaction) {
        transaction.reversals = transaction.reversals.saturating_add(1);
        transaction.due = Some(self.supply.now + self.partition.patience.reversal(transaction.reversals));
        self.decision.acts.push(Act::Reverse(Box::new(transaction.clone())));
        self.store(transaction);
    }

    fn overdue(&mut self) {
        let now = self.supply.now;
        while let Some(&(due, id)) = self.partition.timers.first()
            && due <= now
        {
            let Some(state) = self.partition.open.get(&id).map(|t| t.state) else {
                self.partition.timers.remove(&(due, id));
                continue;
            };
            match state {
                State::Accepted => {
                    let code = Some(Reason::new(Reason::CORE_UNAVAILABLE));
                    self.settle(id, Phase::Voided, State::Declined, code, None);
                }
                State::Sent => self.in_doubt(id),
                State::InDoubt => {
                    if let Some(transaction) = self.partition.take(id) {
                        self.reverse(transaction);
                    }
                }
                State::Approved | State::Declined | State::Reversed => {
                    self.partition.take(id);
                }
            }
        }
    }

    fn send_what_has_room(&mut self) {
        let cores: Vec<CoreId> = self.partition.waiting.keys().cloned().collect();
        for core in cores {
            while self.supply.room.get(&core).is_some_and(|&room| room > 0)
                && let Some(&id) = self.partition.waiting.get(&core).and_then(VecDeque::front)
                && let Some(stan) = self.supply.stans.pop_front()
            {
                if let Some(room) = self.supply.room.get_mut(&core) {
                    *room -= 1;
                }
                self.send(id, stan);
            }
        }
    }

    fn send(&mut self, id: TransactionId, stan: Stan) {
        if let Some(mut transaction) = self.partition.take(id) {
            let now = self.supply.now;
            transaction.state = State::Sent;
            transaction.trace = Some(Trace { stan, rrn: Rrn::new(now, stan), sent_at: now });
            transaction.due = Some(now + self.partition.patience.answer);
            self.decision.acts.push(Act::Ask(Box::new(transaction.clone())));
            self.store(transaction);
        }
    }

    fn book(&mut self, transaction: &Transaction, phase: Phase) {
        let booked = transaction.booked();
        self.decision.entries.push(booked.entry(phase, self.supply.now));
        self.decision.floats.extend(booked.float_move(phase));
    }

    fn store(&mut self, transaction: Transaction) {
        self.decision.transactions.insert(transaction.id, transaction.clone());
        self.partition.keep(transaction);
    }
}

fn float_of(transaction: &Transaction) -> Account {
    Account::float(transaction.agent.clone(), transaction.amount.currency())
}

fn expired(transaction: &Transaction, now: Time) -> bool {
    let today = now.utc();
    let year = u8::try_from(today.year().rem_euclid(100)).unwrap_or(0);
    let expiry = transaction.card.expiry;
    (expiry.year, expiry.month) < (year, u8::from(today.month()))
}

#[cfg(test)]
mod tests;
