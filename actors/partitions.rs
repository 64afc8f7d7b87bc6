//! Supervises the partitions: claims them, starts an actor for each, and lets go of those that another node has.
//!
//! Ownership is a lease in Postgres for both kinds of log, so that one arbiter decides: Postgres. The lease says who
//! works; the epoch, raised by every load, is what makes a late owner's write change nothing (law 6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use wakala::id::PartitionNo;
use wakala::partition::Event;
use wakala::transaction::Patience;

use crate::partition::{Deciding, Deps, Heard, Panic, Partition};
use crate::supervision::{End, Policy, Registry, Start, Stop, Supervisor, Tree};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Threads that the partitions of this node share.
    pub threads: usize,
    /// Events decided in one commit, at most.
    pub batch_max: usize,
    /// Open transactions of one partition; above it the log is not read on.
    pub open_max: usize,
    /// Messages that may wait in one partition's mailbox.
    pub mailbox: usize,
    /// How long this node keeps a partition without renewing.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How often it renews, and looks for partitions that nobody has.
    #[serde(with = "humantime_serde")]
    pub renew: Duration,
    /// How long to wait before a log that is away is read again.
    #[serde(with = "humantime_serde")]
    pub log_retry: Duration,
    /// How old a request may get that has not left for its core; then it is declined with code 91.
    #[serde(with = "humantime_serde")]
    pub request_patience: Duration,
    /// How long a transaction waits for room at its core before it is declined with code 91.
    #[serde(with = "humantime_serde")]
    pub room_patience: Duration,
    /// How long a transaction waits for its core's answer before it is in doubt.
    #[serde(with = "humantime_serde")]
    pub answer_patience: Duration,
    /// The wait before a reversal is repeated for the first time; doubled each time.
    #[serde(with = "humantime_serde")]
    pub reversal_first: Duration,
    /// The longest wait between two repeats of a reversal.
    #[serde(with = "humantime_serde")]
    pub reversal_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            batch_max: 256,
            open_max: 4096,
            mailbox: 4096,
            lease: Duration::from_secs(10),
            renew: Duration::from_secs(3),
            log_retry: Duration::from_millis(500),
            request_patience: Duration::from_secs(300),
            room_patience: Duration::from_secs(30),
            answer_patience: Duration::from_secs(15),
            reversal_first: Duration::from_secs(2),
            reversal_max: Duration::from_secs(60),
        }
    }
}

impl Options {
    #[must_use]
    pub fn patience(&self) -> Patience {
        Patience {
            request: self.request_patience,
            room: self.room_patience,
            answer: self.answer_patience,
            reversal_first: self.reversal_first,
            reversal_max: self.reversal_max,
        }
    }
}

/// The living partitions of this node, from any thread.
#[derive(Clone, Debug, Default)]
pub struct Partitions(Registry<PartitionNo, Partition>);

impl Partitions {
    /// Tells a partition what its core said. A word that finds the mailbox full, or the partition between two lives, is
    /// lost; the transaction is then in doubt when it is due, and reversed. Nothing waits for a slow partition.
    pub fn tell(&self, partition: PartitionNo, event: Event) {
        let told = self.0.get(&partition).is_some_and(|addr| addr.try_send(Heard(event)).is_ok());
        if !told {
            tracing::warn!(
                partition = partition.0,
                "a core's word found no partition; its transaction will be in doubt"
            );
        }
    }

    /// Makes one panic; for tests, in sandbox mode.
    #[must_use]
    pub fn panic(&self, partition: Option<PartitionNo>) -> bool {
        let addr = match partition {
            Some(number) => self.0.get(&number),
            None => self.0.all().into_iter().next().map(|(_, addr)| addr),
        };
        addr.is_some_and(|addr| addr.try_send(Panic).is_ok())
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Answered when the room is alive: the watchdog asks through the actors, not beside them.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Ping;

/// Claims, renews and lets go.
pub struct Owner {
    deps: Arc<Deps>,
    supervisor: Addr<Supervisor<PartitionNo, Partition>>,
    /// Those whose supervisor was told to start them.
    owned: BTreeSet<PartitionNo>,
    leaving: bool,
    give_up: Box<dyn Fn(&str)>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("owned", &self.owned).finish_non_exhaustive()
    }
}

/// Starts the room. `give_up` hears when partitions panic too often.
pub fn start(
    deps: &Arc<Deps>,
    partitions: &Partitions,
    policy: Policy,
    tree: Tree,
    give_up: impl Fn(&str) + Clone + 'static,
) -> Addr<Owner> {
    let arbiters: Vec<Arbiter> = (0..deps.options.threads.max(1)).map(|_| Arbiter::new()).collect();
    let deciding: Mutex<BTreeMap<PartitionNo, Deciding>> = Mutex::default();
    let shared = Arc::clone(deps);
    let factory = move |number: PartitionNo, link| {
        let mut deciding = deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let deciding = Arc::clone(deciding.entry(number).or_default());
        let arbiter = arbiters[usize::from(number.0) % arbiters.len()].handle();
        let starting = Partition::start(Arc::clone(&shared), number, deciding, arbiter, link);
        Box::pin(starting) as futures_util::future::LocalBoxFuture<'static, _>
    };
    let supervisor =
        Supervisor::new("partitions", policy, tree, partitions.0.clone(), Box::new(factory), give_up.clone()).start();
    let give_up = Box::new(give_up);
    Owner { deps: Arc::clone(deps), supervisor, owned: BTreeSet::new(), leaving: false, give_up }.start()
}

impl Owner {
    fn renew(&mut self, ctx: &mut Context<Self>) {
        if self.leaving {
            return;
        }
        let deps = Arc::clone(&self.deps);
        let renewed =
            async move { deps.store.claim_partitions(&deps.node, deps.log.partitions(), deps.options.lease).await };
        ctx.spawn(renewed.into_actor(self).map(|owned, this, ctx| {
            match owned {
                Ok(owned) => this.own(owned.into_iter().collect()),
                // The fence keeps the money right; the lease only says who works.
                Err(error) => tracing::warn!(%error, "could not renew the partitions' leases"),
            }
            ctx.run_later(this.deps.options.renew, Self::renew);
        }));
    }

    fn own(&mut self, owned: BTreeSet<PartitionNo>) {
        if self.leaving {
            return;
        }
        let taken: Vec<PartitionNo> = owned.difference(&self.owned).copied().collect();
        let lost: Vec<PartitionNo> = self.owned.difference(&owned).copied().collect();
        // Whom the supervisor had no room to hear of is told of with the next renewal: held and not started, it would be
        // served by nobody.
        for number in taken {
            if self.tell(Start(number)) {
                tracing::info!(partition = number.0, "took a partition");
                self.owned.insert(number);
            }
        }
        for number in lost {
            if self.tell(End(number)) {
                tracing::info!(partition = number.0, "another node has a partition of ours");
                self.owned.remove(&number);
            }
        }
    }

    /// Whether the supervisor has room for it.
    fn tell<M>(&self, message: M) -> bool
    where
        M: Message + Send + 'static,
        M::Result: Send,
        Supervisor<PartitionNo, Partition>: Handler<M>,
    {
        let told = self.supervisor.try_send(message).is_ok();
        if !told {
            tracing::warn!("the partitions' supervisor has no room for more at once");
        }
        told
    }
}

impl Drop for Owner {
    /// Without it no lease is renewed: that goes upward at once.
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.give_up)("partitions: their owner panicked");
        }
    }
}

impl Actor for Owner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.renew(ctx);
    }
}

impl Handler<Ping> for Owner {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Context<Self>) {}
}

impl Handler<Stop> for Owner {
    type Result = ResponseFuture<()>;

    /// Ends the partitions and gives the leases back, so that another node need not wait for them to run out.
    fn handle(&mut self, _: Stop, _: &mut Context<Self>) -> Self::Result {
        self.leaving = true;
        for &number in &self.owned {
            self.tell(End(number));
        }
        let deps = Arc::clone(&self.deps);
        Box::pin(async move {
            if let Err(error) = deps.store.release_partitions(&deps.node).await {
                tracing::warn!(%error, "could not give the partitions back; their leases will run out");
            }
        })
    }
}
