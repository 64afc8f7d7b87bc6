//! A partition's twin on a real database: what its actor does, without the actor.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wakala::card::{CardRef, Expiry, Ksn, Masked, Sealed, Token};
use wakala::id::{AgentId, CoreId, Epoch, Offset, PartitionNo, RequestKey, TerminalId};
use wakala::money::{Currency, Money};
use wakala::partition::{Act, Decision, Event, Partition, Supply};
use wakala::receipt::Answer;
use wakala::record::{Asked, Body, Pin, Record};
use wakala::request::Kind;
use wakala::time::Time;
use wakala::transaction::{CoreAnswer, Patience, Transaction};
use wakala_node::store::partitions::{Hint, Work};
use wakala_node::store::{Error, Store};

/// By this machine's calendar.
///
/// # Panics
/// When that is before 1970.
#[must_use]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Time::from_millis(i64::try_from(since.as_millis()).expect("before the year 292,000,000"))
}

/// # Panics
/// When the text is no name.
#[must_use]
pub fn terminal(name: &str) -> TerminalId {
    name.parse().expect("a name")
}

/// # Panics
/// When the text is no name.
#[must_use]
pub fn agent(name: &str) -> AgentId {
    name.parse().expect("a name")
}

/// # Panics
/// Never.
#[must_use]
pub fn core() -> CoreId {
    "sandbox".parse().expect("a name")
}

/// A request of terminal `T<n>` of agent `A<n>`, its key told from others by one number.
///
/// # Panics
/// When the amount is none.
#[must_use]
pub fn record(kind: Kind, n: u8, key: u8, minor: u64) -> Record {
    Record {
        terminal: terminal(&format!("T{n}")),
        agent: agent(&format!("A{n}")),
        core: core(),
        key: RequestKey([key; 16]),
        at: now(),
        ksn: Ksn::from_bytes(&[3; 12]),
        body: Body::Asked(Asked {
            kind,
            amount: Money::new(minor, Currency::TZS).expect("an amount"),
            card: CardRef {
                token: Token([9; 16]),
                masked: Masked::stored("411111******1111"),
                sealed: Sealed([1, 2, 3].into()),
                expiry: Expiry { year: 99, month: 12 },
            },
            pin: if kind == Kind::Withdrawal { Pin::Correct } else { Pin::NotAsked },
        }),
    }
}

#[must_use]
pub fn withdrawal(n: u8, key: u8, minor: u64) -> Record {
    record(Kind::Withdrawal, n, key, minor)
}

#[must_use]
pub fn deposit(n: u8, key: u8, minor: u64) -> Record {
    record(Kind::Deposit, n, key, minor)
}

/// One partition, decided by hand.
#[derive(Debug)]
pub struct Desk {
    pub store: Store,
    pub twin: Partition,
    pub epoch: Epoch,
    /// What the last commit said is to be done.
    pub acts: Vec<Act>,
    /// Whether the core takes requests.
    pub room: usize,
}

impl Desk {
    /// Claims all partitions for `node` and loads one.
    ///
    /// # Panics
    /// When the database does not do it.
    pub async fn open(store: &Store, node: &str, partition: u16) -> Self {
        store.claim_partitions(node, 4, Duration::from_secs(60)).await.expect("leases");
        let number = PartitionNo(partition);
        let (epoch, position, open) = store.load_partition(number, node).await.expect("the lease is ours");
        let patience = Patience {
            request: Duration::from_secs(300),
            room: Duration::from_secs(30),
            answer: Duration::from_secs(30),
            reversal_first: Duration::from_secs(30),
            reversal_max: Duration::from_secs(30),
        };
        let twin = Partition::load(number, position, open, patience, now());
        Self { store: store.clone(), twin, epoch, acts: Vec::new(), room: 100 }
    }

    /// Opens the work for some events and decides, without committing.
    ///
    /// # Errors
    /// What the store said.
    pub async fn decide(&mut self, events: Vec<Event>) -> Result<(Work, Decision, Vec<(Answer, Vec<u8>)>), Error> {
        let room: BTreeMap<CoreId, usize> = [(core(), self.room)].into();
        let needs = self.twin.needs(&events, &room);
        let position = self.twin.position();
        let mut work = self.store.begin(self.twin.number(), self.epoch, position, &needs).await?;
        let supply = Supply {
            now: now(),
            known: std::mem::take(&mut work.known),
            floats: std::mem::take(&mut work.floats),
            stans: std::mem::take(&mut work.stans),
            room,
        };
        let mut decision = self.twin.handle(events, supply);
        self.acts = std::mem::take(&mut decision.acts);
        let sealed = decision.answers.iter().map(|answer| (answer.clone(), answer.envelope(None))).collect();
        Ok((work, decision, sealed))
    }

    /// Decides and commits.
    ///
    /// # Errors
    /// What the store said.
    pub async fn take(&mut self, events: Vec<Event>) -> Result<Vec<Hint>, Error> {
        let (work, decision, sealed) = self.decide(events).await?;
        work.commit(decision, sealed).await
    }

    /// Takes records as the next ones of the log.
    ///
    /// # Errors
    /// What the store said.
    pub async fn records(&mut self, records: Vec<Record>) -> Result<Vec<Hint>, Error> {
        let events = self.as_events(records);
        self.take(events).await
    }

    /// Records as the next ones of the log.
    #[must_use]
    pub fn as_events(&self, records: Vec<Record>) -> Vec<Event> {
        let from = self.twin.position().0;
        (from..).zip(records).map(|(offset, record)| Event::Record { offset: Offset(offset), record }).collect()
    }

    /// Answers everything that was just sent to the core.
    ///
    /// # Errors
    /// What the store said.
    pub async fn answer(&mut self, answer: CoreAnswer) -> Result<Vec<Hint>, Error> {
        let asked: VecDeque<Transaction> = std::mem::take(&mut self.acts)
            .into_iter()
            .map(|act| match act {
                Act::Ask(transaction) | Act::Reverse(transaction) => *transaction,
            })
            .collect();
        let events = asked.iter().map(|t| Event::Answer { transaction: t.id, answer: answer.clone() }).collect();
        self.take(events).await
    }
}
