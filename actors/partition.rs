//! Actor of one log partition: decide → commit → act.
//!
//! It gathers what happened (records of the log, words from the cores, the clock), has its twin decide all of it in one
//! go, commits the decision in one database transaction together with the position in the log, and only then asks cores
//! and wakes terminals. If the commit fails it stops: its supervisor loads the rows again, and what is owed follows from
//! them (law 1). There is no roll-back code.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use wakala::id::{CoreId, Epoch, Offset, PartitionNo, TransactionId};
use wakala::partition::{Act, Event, Parked, Partition as Twin, Supply};
use wakala::receipt::Answer;
use wakala::record::Record;
use wakala::transaction::State;

use crate::banks::{Banks, Place};
use crate::partitions::Options;
use crate::ports::{Clock, Hsm, HsmError, Log, LogError, Logged, Reader};
use crate::store::Store;
use crate::store::partitions::{Hint, Work};
use crate::supervision::{Link, Stop};

/// What every partition is given.
pub struct Deps {
    pub options: Options,
    /// Of this node, in leases.
    pub node: String,
    pub store: Store,
    pub log: Arc<dyn Log>,
    pub hsm: Arc<dyn Hsm>,
    pub banks: Banks,
    pub clock: Arc<dyn Clock>,
    /// Wakes the session of a terminal. Lossy.
    pub hint: Box<dyn Fn(Hint) + Send + Sync>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Which records the partition is deciding. It outlives the actor: a successor that finds it not empty knows which
/// records killed its predecessor, and takes them one at a time.
pub type Deciding = Arc<Mutex<Vec<Offset>>>;

/// How often a record may kill its partition before it is parked.
const LIVES: i32 = 3;

/// See the module's text.
pub struct Partition {
    deps: Arc<Deps>,
    twin: Twin,
    epoch: Epoch,
    deciding: Deciding,
    /// Records to be taken one at a time, because one of them killed a predecessor.
    suspects: Vec<Offset>,
    inbox: VecDeque<Event>,
    /// The reader, when it is not reading.
    reader: Option<Box<dyn Reader>>,
    /// A decision is on its way to its commit.
    busy: bool,
    /// The places held at cores by transactions that are SENT.
    places: BTreeMap<TransactionId, Place>,
    /// Cores in whose queues for a place this partition stands, for transactions that wait.
    queueing: BTreeSet<CoreId>,
    /// The places that came of it, for the next decision.
    reserved: BTreeMap<CoreId, Place>,
    wake: Option<SpawnHandle>,
    link: Link,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition")
            .field("number", &self.twin.number())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Something happened outside the log.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Heard(pub Event);

/// Panics; for tests, in sandbox mode.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Panic;

/// What happens in one go: the events, and the room they may use at the cores.
struct Batch {
    events: Vec<Event>,
    places: BTreeMap<CoreId, Vec<Place>>,
}

impl Partition {
    /// Raises the epoch, loads the rows and starts on the arbiter given.
    ///
    /// # Errors
    /// When the partition is not this node's, or the database is away.
    pub async fn start(
        deps: Arc<Deps>,
        number: PartitionNo,
        deciding: Deciding,
        arbiter: ArbiterHandle,
        link: Link,
    ) -> anyhow::Result<Addr<Self>> {
        let (epoch, position, open) = deps.store.load_partition(number, &deps.node).await?;
        let reader = deps.log.read(number, position)?;
        let twin = Twin::load(number, position, open, deps.options.patience(), deps.clock.now());
        let suspects = std::mem::take(&mut *deciding.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::info!(
            partition = number.0,
            epoch = epoch.0,
            position = position.0,
            open = twin.open().len(),
            "loaded"
        );
        Ok(Self::start_in_arbiter(&arbiter, move |ctx| {
            ctx.set_mailbox_capacity(deps.options.mailbox);
            Self {
                deps,
                twin,
                epoch,
                deciding,
                suspects,
                inbox: VecDeque::from([Event::Wake]),
                reader: Some(reader),
                busy: false,
                places: BTreeMap::new(),
                queueing: BTreeSet::new(),
                reserved: BTreeMap::new(),
                wake: None,
                link,
            }
        }))
    }

    /// Reads on while there is room for more.
    fn read(&mut self, ctx: &mut Context<Self>) {
        let room = self.deps.options.batch_max.saturating_sub(self.inbox.len());
        if room == 0 || self.twin.open().len() >= self.deps.options.open_max {
            return;
        }
        let Some(mut reader) = self.reader.take() else { return };
        let reading = async move {
            let read = reader.next(room).await;
            (reader, read)
        };
        ctx.spawn(reading.into_actor(self).map(|(reader, read), this, ctx| match read {
            Ok(records) => {
                this.reader = Some(reader);
                this.inbox.extend(records.into_iter().map(event));
                this.work(ctx);
            }
            Err(LogError::Away(why)) => {
                tracing::warn!(
                    partition = this.twin.number().0,
                    why,
                    "the log is away; reading goes on when it is back"
                );
                this.reader = Some(reader);
                ctx.run_later(this.deps.options.log_retry, Self::read);
            }
            Err(error) => this.stop(&error, ctx),
        }));
    }

    /// Takes the next batch, if none is under way.
    fn work(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            return;
        }
        self.read(ctx);
        let events = self.next_events();
        let due = self.twin.poll_timeout().is_some_and(|due| due <= self.deps.clock.now());
        if events.is_empty() && !due {
            self.sleep(ctx);
            return;
        }
        self.busy = true;
        if let [Event::Record { offset, .. }] = events[..]
            && self.suspects.contains(&offset)
        {
            self.try_suspect(offset, events, ctx);
        } else {
            self.begin(events, ctx);
        }
    }

    /// Up to a batch; suspects come alone.
    fn next_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < self.deps.options.batch_max
            && let Some(event) = self.inbox.front()
        {
            let suspect = matches!(event, Event::Record { offset, .. } if self.suspects.contains(offset));
            if suspect && !events.is_empty() {
                break;
            }
            events.extend(self.inbox.pop_front());
            if suspect {
                break;
            }
        }
        events
    }

    fn sleep(&mut self, ctx: &mut Context<Self>) {
        if let Some(handle) = self.wake.take() {
            ctx.cancel_future(handle);
        }
        if let Some(due) = self.twin.poll_timeout() {
            let wait = due.since(self.deps.clock.now());
            self.wake = Some(ctx.run_later(wait.max(Duration::from_millis(1)), |this, ctx| {
                this.wake = None;
                this.inbox.push_back(Event::Wake);
                this.work(ctx);
            }));
        }
    }

    /// A record that killed a predecessor: counted before it is looked at again.
    fn try_suspect(&mut self, offset: Offset, events: Vec<Event>, ctx: &mut Context<Self>) {
        let deps = Arc::clone(&self.deps);
        let number = self.twin.number();
        let epoch = self.epoch;
        let counted = async move { deps.store.suspect(number, epoch, offset).await };
        ctx.spawn(counted.into_actor(self).map(move |attempts, this, ctx| match attempts {
            Ok(attempts) if attempts > LIVES => {
                let why = format!("killed its partition {LIVES} times");
                this.begin(vec![Event::Unreadable { offset, why }], ctx);
            }
            Ok(_) => this.begin(events, ctx),
            Err(error) => this.stop(&error, ctx),
        }));
    }

    /// Opens the database transaction and reads what the decision needs.
    fn begin(&mut self, events: Vec<Event>, ctx: &mut Context<Self>) {
        let offsets = offsets(&events);
        let wants = self.deciding(offsets.clone(), |twin| twin.wants(&events));
        let mut reserved = std::mem::take(&mut self.reserved);
        let mut places: BTreeMap<CoreId, Vec<Place>> = BTreeMap::new();
        for (core, wanted) in wants {
            let mut taken: Vec<Place> = reserved.remove(&core).into_iter().collect();
            taken.extend(self.deps.banks.places(&core, wanted - taken.len().min(wanted)));
            places.insert(core, taken);
        }
        let room = places.iter().map(|(core, places)| (core.clone(), places.len())).collect();
        let needs = self.deciding(offsets, |twin| twin.needs(&events, &room));
        let deps = Arc::clone(&self.deps);
        let (number, epoch, position) = (self.twin.number(), self.epoch, self.twin.position());
        let begun = async move { deps.store.begin(number, epoch, position, &needs).await };
        let batch = Batch { events, places };
        ctx.spawn(begun.into_actor(self).map(move |work, this, ctx| match work {
            Ok(work) => this.decide(work, batch, ctx),
            Err(error) => this.stop(&error, ctx),
        }));
    }

    fn decide(&mut self, mut work: Work, Batch { events, places }: Batch, ctx: &mut Context<Self>) {
        let supply = Supply {
            now: self.deps.clock.now(),
            known: std::mem::take(&mut work.known),
            floats: std::mem::take(&mut work.floats),
            stans: std::mem::take(&mut work.stans),
            room: places.iter().map(|(core, places)| (core.clone(), places.len())).collect(),
        };
        let offsets = offsets(&events);
        let mut decision = self.deciding(offsets.clone(), |twin| twin.handle(events, supply));
        self.suspects.retain(|&suspect| suspect >= self.twin.position());

        let acts = std::mem::take(&mut decision.acts);
        let gone: Vec<TransactionId> =
            decision.transactions.values().filter(|t| t.state != State::Sent).map(|t| t.id).collect();
        let (number, parked) = (self.twin.number(), decision.parked.clone());
        let (deps, deciding) = (Arc::clone(&self.deps), Arc::clone(&self.deciding));
        let committed = async move {
            let sealed = match seal(&deps.hsm, std::mem::take(&mut decision.answers)).await {
                Ok(sealed) => sealed?,
                // A panic is one wherever it was: it counts, and it accuses these records.
                Err(panic) => {
                    *deciding.lock().unwrap_or_else(PoisonError::into_inner) = offsets;
                    resume_unwind(panic);
                }
            };
            let hints = work.commit(decision, sealed).await?;
            for Parked { offset, why, .. } in parked {
                tracing::error!(partition = number.0, offset = offset.0, why, "parked a record");
            }
            Ok(hints)
        };
        ctx.spawn(committed.into_actor(self).map(move |hints: anyhow::Result<_>, this, ctx| match hints {
            Ok(hints) => this.act(acts, &gone, places, hints, ctx),
            Err(error) => this.stop(&error, ctx),
        }));
    }

    /// Has the twin look at records. If that kills this actor, its successor knows at which.
    fn deciding<T>(&mut self, offsets: Vec<Offset>, look: impl FnOnce(&mut Twin) -> T) -> T {
        *self.deciding.lock().unwrap_or_else(PoisonError::into_inner) = offsets;
        let seen = look(&mut self.twin);
        self.deciding.lock().unwrap_or_else(PoisonError::into_inner).clear();
        seen
    }

    /// It is committed: the world may hear of it.
    fn act(
        &mut self,
        acts: Vec<Act>,
        gone: &[TransactionId],
        mut places: BTreeMap<CoreId, Vec<Place>>,
        hints: Vec<Hint>,
        ctx: &mut Context<Self>,
    ) {
        for id in gone {
            self.places.remove(id);
        }
        let number = self.twin.number();
        for act in acts {
            match act {
                Act::Ask(transaction) => {
                    if let Some(place) = places.get_mut(&transaction.core).and_then(Vec::pop) {
                        self.places.insert(transaction.id, place);
                    }
                    self.deps.banks.ask(number, transaction);
                }
                Act::Reverse(transaction) => self.deps.banks.reverse(number, transaction),
            }
        }
        for hint in hints {
            (self.deps.hint)(hint);
        }
        self.busy = false;
        self.queue_up(ctx);
        self.work(ctx);
    }

    /// Stands in the queue of every core that transactions wait for, once.
    fn queue_up(&mut self, ctx: &mut Context<Self>) {
        let cores: Vec<CoreId> = self.twin.waiting().map(|(core, _)| core.clone()).collect();
        for core in cores {
            let Some(gate) = self.deps.banks.gate(&core).cloned() else { continue };
            if !self.reserved.contains_key(&core) && self.queueing.insert(core.clone()) {
                let queueing = async move { gate.place().await };
                ctx.spawn(queueing.into_actor(self).map(move |place, this, ctx| {
                    this.queueing.remove(&core);
                    this.reserved.insert(core, place);
                    this.inbox.push_back(Event::Wake);
                    this.work(ctx);
                }));
            }
        }
    }

    /// The machine has moved and its commit has not: it is thrown away.
    fn stop(&mut self, error: &dyn std::fmt::Display, ctx: &mut Context<Self>) {
        self.link.because(error);
        ctx.stop();
    }
}

/// What a record of the log is to the twin.
fn event(Logged { offset, bytes }: Logged) -> Event {
    match Record::decode(&bytes) {
        Ok(record) => Event::Record { offset, record },
        Err(unreadable) => Event::Unreadable { offset, why: unreadable.to_string() },
    }
}

/// The records among these events.
fn offsets(events: &[Event]) -> Vec<Offset> {
    let of = |event: &Event| if let Event::Record { offset, .. } = event { Some(*offset) } else { None };
    events.iter().filter_map(of).collect()
}

type Sealed = Vec<(Answer, Vec<u8>)>;

/// What somebody panicked with.
type Payload = Box<dyn std::any::Any + Send>;

/// Makes the authentication codes, on a thread that may block, and with them the bytes that go out.
async fn seal(hsm: &Arc<dyn Hsm>, answers: Vec<Answer>) -> Result<anyhow::Result<Sealed>, Payload> {
    if answers.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let hsm = Arc::clone(hsm);
    let sealing = move || {
        let each = answers.into_iter().map(|answer| {
            let mac = match answer.ksn.map(|ksn| hsm.generate_mac(&ksn, &answer.body)).transpose() {
                Ok(mac) => mac,
                // The key was withdrawn since: the receipt goes out without a code rather than never.
                Err(HsmError::UnknownKey(_) | HsmError::BadCounter | HsmError::BadCard) => None,
                Err(fault @ HsmError::Fault(_)) => return Err(fault),
            };
            let envelope = answer.envelope(mac.map(|mac| mac.0));
            Ok((answer, envelope))
        });
        each.collect::<Result<Vec<_>, _>>()
    };
    match tokio::task::spawn_blocking(sealing).await {
        Ok(sealed) => Ok(sealed.map_err(Into::into)),
        Err(ended) => ended.try_into_panic().map_or_else(|cancelled| Ok(Err(cancelled.into())), Err),
    }
}

impl Actor for Partition {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.work(ctx);
    }
}

impl Handler<Heard> for Partition {
    type Result = ();

    fn handle(&mut self, Heard(event): Heard, ctx: &mut Context<Self>) {
        self.inbox.push_back(event);
        self.work(ctx);
    }
}

impl Handler<Stop> for Partition {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<Panic> for Partition {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("asked to, in sandbox mode");
    }
}
