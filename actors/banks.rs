//! Supervises the banks: one actor per core, each on a thread of its own, and the places that partitions take at them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use wakala::bank::{Limits, Unmatched};
use wakala::id::{CoreId, PartitionNo};
use wakala::iso8583::Dialect;
use wakala::partition::Event;
use wakala::transaction::Transaction;

use crate::bank::{Ask, Bank, Panic, Reverse};
use crate::ports::{BankLink, Clock, Hsm};
use crate::supervision::{End, Policy, Registry, Start, Supervisor, Tree};

/// One core: `[cores.mwanga]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The file that says how this core speaks ISO 8583; if not absolute, from the configuration's folder.
    pub dialect: PathBuf,
    /// Host and port.
    pub address: String,
    /// Requests that may wait for this core's answer at once.
    pub in_flight: usize,
    /// Reversals that may wait for this core's answer at once. Those beyond are left to their next repeat.
    pub reversals_in_flight: usize,
    /// Messages that are remembered, so that a late answer names its transaction.
    pub remembered: usize,
    /// How long a message is remembered after it was answered or given up.
    #[serde(with = "humantime_serde")]
    pub memory: Duration,
    /// Messages of one second that nobody waits for, before the link is closed. Each is stored.
    pub unmatched_per_second: u32,
    /// How long to wait for the connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long to wait for the answer to the sign-on.
    #[serde(with = "humantime_serde")]
    pub sign_on_timeout: Duration,
    /// How long the core may be silent before it is asked whether it is there.
    #[serde(with = "humantime_serde")]
    pub echo_idle: Duration,
    /// How long to wait for the answer to that, before the link is given up.
    #[serde(with = "humantime_serde")]
    pub echo_timeout: Duration,
    /// How long one message may take to be written, before the link is given up.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// How long an answer may take before it counts for the breaker. Not shorter than partitions.answer_patience.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// The wait before the second attempt to connect; doubled with each further one, and half of it is drawn by lot.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest wait between two attempts.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Messages in a row that were not answered, before the link is closed.
    pub breaker_after: u32,
    /// How long it then stays closed.
    #[serde(with = "humantime_serde")]
    pub breaker: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dialect: PathBuf::from("banks/sandbox.toml"),
            address: "127.0.0.1:8583".to_owned(),
            in_flight: 64,
            reversals_in_flight: 64,
            remembered: 20_000,
            memory: Duration::from_secs(600),
            unmatched_per_second: 100,
            connect_timeout: Duration::from_secs(5),
            sign_on_timeout: Duration::from_secs(10),
            echo_idle: Duration::from_secs(30),
            echo_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(20),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            breaker_after: 10,
            breaker: Duration::from_secs(15),
        }
    }
}

impl Options {
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            requests: self.in_flight.saturating_mul(2),
            reversals: self.reversals_in_flight,
            remembered: self.remembered,
            unmatched: self.unmatched_per_second,
            connect: self.connect_timeout,
            sign_on: self.sign_on_timeout,
            idle: self.echo_idle,
            echo: self.echo_timeout,
            answer: self.answer_timeout,
            memory: self.memory,
            backoff_min: self.backoff_min,
            backoff_max: self.backoff_max,
            breaker_after: self.breaker_after.max(1),
            breaker: self.breaker,
        }
    }
}

/// # Errors
/// When the file cannot be read or is no dialect; the text names the file, the key and what would be right.
pub fn read_dialect(file: &Path) -> anyhow::Result<Dialect> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Dialect::parse(&text).with_context(|| file.display().to_string())
}

/// Tells a partition what became of its request at a core. It must not block.
pub type Outcome = Arc<dyn Fn(PartitionNo, Event) + Send + Sync>;

/// Stores what a core said that nobody waits for. It must not block.
pub type Remember = Box<dyn Fn(&CoreId, Unmatched) + Send + Sync>;

/// Makes the way to a core.
pub type Driver = Arc<dyn Fn(&Options, &Dialect) -> Arc<dyn BankLink> + Send + Sync>;

/// What every bank is given.
pub struct Deps {
    pub clock: Arc<dyn Clock>,
    pub hsm: Arc<dyn Hsm>,
    pub driver: Driver,
    pub outcome: Outcome,
    pub unmatched: Remember,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}

/// A place at a core: held by whoever has a request there, given back when dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The places of one core. They outlive its actor. Who waits for one is served in turn, before anybody who only looks
/// whether one is free: else a partition that gives a place back would take it again at once, and another would starve.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Places>);

#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    open: watch::Sender<bool>,
}

impl Gate {
    fn new(places: usize) -> Self {
        let all = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Places { all, open: watch::Sender::new(false) }))
    }

    pub(crate) fn set(&self, open: bool) {
        self.0.open.send_replace(open);
    }

    /// Whether the core is signed on.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self.0.open.borrow()
    }

    /// How many places are free, whether or not the core is signed on.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.all.available_permits()
    }

    /// Up to so many places; none while the core is not signed on. It does not wait.
    #[must_use]
    pub fn places(&self, wanted: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        while self.is_open()
            && taken.len() < wanted
            && let Ok(permit) = Arc::clone(&self.0.all).try_acquire_owned()
        {
            taken.push(Place { _permit: permit });
        }
        taken
    }

    /// A place, when the core is signed on and it is the caller's turn.
    pub async fn place(&self) -> Place {
        let mut open = self.0.open.subscribe();
        while open.wait_for(|&open| open).await.is_ok()
            && let Ok(permit) = Arc::clone(&self.0.all).acquire_owned().await
        {
            // The core may have gone while this was waiting for its turn: then it waits for the core again.
            if self.is_open() {
                return Place { _permit: permit };
            }
        }
        // Neither of them is closed as long as there is a gate.
        std::future::pending().await
    }
}

/// How busy a core is, for `wakala status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    pub signed_on: bool,
    /// Of `in_flight`, how many requests more it may have.
    pub places_free: usize,
}

/// The banks of this node, from any thread.
#[derive(Clone)]
pub struct Banks(Arc<Room>);

struct Room {
    gates: BTreeMap<CoreId, Gate>,
    registry: Registry<CoreId, Bank>,
    supervisor: Addr<Supervisor<CoreId, Bank>>,
    outcome: Outcome,
}

impl std::fmt::Debug for Banks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Banks").field("gates", &self.0.gates).finish_non_exhaustive()
    }
}

/// Starts a supervised actor for each core. `give_up` hears when they panic too often.
///
/// # Errors
/// When a dialect cannot be read.
pub fn start(
    cores: &BTreeMap<CoreId, Options>,
    deps: Deps,
    policy: Policy,
    tree: Tree,
    give_up: impl Fn(&str) + 'static,
) -> anyhow::Result<Banks> {
    let mut gates = BTreeMap::new();
    let mut plans = BTreeMap::new();
    for (core, options) in cores {
        let dialect = Arc::new(read_dialect(&options.dialect)?);
        let gate = Gate::new(options.in_flight);
        gates.insert(core.clone(), gate.clone());
        plans.insert(core.clone(), (options.clone(), dialect, gate, Arbiter::new()));
    }
    let outcome = Arc::clone(&deps.outcome);
    let deps = Arc::new(deps);
    let branches = tree.clone();
    let factory = move |core: CoreId, link| {
        let started = match plans.get(&core) {
            None => Err(anyhow::anyhow!("no core {core} is configured")),
            Some((options, dialect, gate, arbiter)) => {
                let (dialect, gate) = (Arc::clone(dialect), gate.clone());
                let bank = Bank::new(core, options, dialect, gate, Arc::clone(&deps), branches.clone(), link);
                Ok(bank.start_on(&arbiter.handle()))
            }
        };
        async move { started }.boxed_local()
    };
    let registry = Registry::default();
    let supervisor = Supervisor::new("banks", policy, tree, registry.clone(), Box::new(factory), give_up).start();
    for core in cores.keys() {
        supervisor.try_send(Start(core.clone())).context("the banks' supervisor does not listen")?;
    }
    Ok(Banks(Arc::new(Room { gates, registry, supervisor, outcome })))
}

impl Banks {
    /// The places of a core; `None` when no such core is configured.
    #[must_use]
    pub fn gate(&self, core: &CoreId) -> Option<&Gate> {
        self.0.gates.get(core)
    }

    /// Up to so many places at a core; none while it is not signed on. It does not wait.
    #[must_use]
    pub fn places(&self, core: &CoreId, wanted: usize) -> Vec<Place> {
        self.gate(core).map(|gate| gate.places(wanted)).unwrap_or_default()
    }

    /// Sends a request to its core. What cannot be taken comes back as [`Event::Unsent`].
    pub fn ask(&self, partition: PartitionNo, transaction: Box<Transaction>) {
        let bank = self.0.registry.get(&transaction.core);
        let ask = Ask::new(partition, transaction, Arc::clone(&self.0.outcome));
        if let Some(bank) = bank
            && bank.try_send(ask).is_err()
        {
            tracing::warn!(partition = partition.0, "a bank's mailbox is full or its actor is between two lives");
        }
    }

    /// Sends a reversal to its core. What cannot be taken is repeated by the partition when it is due.
    pub fn reverse(&self, partition: PartitionNo, transaction: Box<Transaction>) {
        let id = transaction.id;
        let bank = self.0.registry.get(&transaction.core);
        if bank.is_none_or(|bank| bank.try_send(Reverse { partition, transaction }).is_err()) {
            tracing::debug!(transaction = %id, "the reversal waits for its repeat");
        }
    }

    /// What each core has room for at this moment.
    #[must_use]
    pub fn load(&self) -> BTreeMap<String, Load> {
        let load = |gate: &Gate| Load { signed_on: gate.is_open(), places_free: gate.free() };
        self.0.gates.iter().map(|(core, gate)| (core.to_string(), load(gate))).collect()
    }

    /// Signs off from every core and ends the actors.
    pub fn end(&self) {
        for core in self.0.gates.keys() {
            if self.0.supervisor.try_send(End(core.clone())).is_err() {
                tracing::error!(core = %core, "the banks' supervisor does not listen");
            }
        }
    }

    /// Makes one panic; for tests, in sandbox mode.
    #[must_use]
    pub fn panic(&self, core: Option<&CoreId>) -> bool {
        let bank = match core {
            Some(core) => self.0.registry.get(core),
            None => self.0.registry.all().into_iter().next().map(|(_, bank)| bank),
        };
        bank.is_some_and(|bank| bank.try_send(Panic).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_place_has_it_before_who_gave_it_back() {
        let gate = Gate::new(1);
        gate.set(true);
        let held = gate.places(2);
        assert_eq!(held.len(), 1);
        let (mut first, mut second) = (Box::pin(gate.place()), Box::pin(gate.place()));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        drop(held);
        assert!(gate.places(1).is_empty(), "it is the first one's");
        let Poll::Ready(place) = poll!(&mut first) else { panic!("its turn") };
        assert!(poll!(&mut second).is_pending());
        drop(place);
        assert!(poll!(&mut second).is_ready());
    }

    #[tokio::test]
    async fn a_core_that_is_away_has_no_place_until_it_is_back() {
        let gate = Gate::new(1);
        let mut waiting = Box::pin(gate.place());
        assert!(poll!(&mut waiting).is_pending());
        gate.set(true);
        assert!(poll!(&mut waiting).is_ready());
        assert_eq!(gate.free(), 1, "and it was given back");
    }
}
