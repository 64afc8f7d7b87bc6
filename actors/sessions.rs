//! The sessions of the terminals that are connected here: who they are, how they are woken, what their deaths mean.
//!
//! A terminal has one connection. A later one takes over: it raises the session's epoch in the database, after which
//! nothing that the earlier one writes has an effect, and the earlier one is told to go. The registry is one map for all
//! workers. A session that panics closes its connection and comes back with the terminal's own reconnect; too many
//! panics within a period escalate like those of any other actor.

pub mod admission;
mod agents;
mod barred;
pub mod bounds;
mod elsewhere;
pub mod evacuation;
mod leaving;
mod neighbours;
mod operator;
mod overtaken;
pub(crate) mod owed;
mod presence;
mod traces;
mod wakes;
mod wills;

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix::prelude::*;
use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use wakala::ban::Traits;
use wakala::id::{AgentId, ClientId, Epoch};
use wakala::session::Limits;

use crate::listener::tls::Papers;
use crate::neighbours::Neighbours;
use crate::ports::{Clock, Wait};
use crate::presence::{self as told, Presence};
use crate::router::{self, Router};
use crate::session::{End, Panic, Resume, Session};
use crate::store::Store;
use crate::store::marks::Marks;
use crate::store::queues::Pages;
use crate::store::sessions::{Acknowledgements, Ends};
use crate::store::subscriptions::Changes;
use crate::store::words::Word;
use crate::supervision::{BranchState, Exit, Policy, Tree};
use crate::tap::{self, Taps};
use crate::terminal::Enrolled;

pub(crate) use agents::Purse;
pub(crate) use barred::Vouch;
pub(crate) use elsewhere::STOPPING;
pub(crate) use operator::ANSWER_WITHIN;
pub use operator::Here;

/// Limits of every session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The longest keep-alive. A client of MQTT 5 that asks for more, or for none, is told that it has this one.
    #[serde(with = "humantime_serde")]
    pub keep_alive_max: Duration,
    /// The same for a client of MQTT 3.1.1, which cannot be told: after one and a half of it in silence its link is dead.
    #[serde(with = "humantime_serde")]
    pub keep_alive_unannounced_max: Duration,
    /// The longest time that subscriptions and messages are kept for a terminal that is away. Receipts are kept for ever.
    #[serde(with = "humantime_serde")]
    pub session_expiry_max: Duration,
    /// The largest packet that is taken, header included, in bytes.
    pub packet_bytes_max: u32,
    /// Requests of one terminal that may wait for the log (MQTT 5: Receive Maximum).
    pub inbound_max: NonZeroU16,
    /// Deliveries to one guest that may wait for its PUBACK or PUBCOMP.
    pub outbound_max: NonZeroU16,
    /// Deliveries to one terminal that may wait for its PUBACK: few, for on 2G each delays all that follows it.
    pub terminal_outbound_max: NonZeroU16,
    /// Publishes of a 3.1.1 client at QoS 1 and 2 that may be incomplete; more end its connection.
    pub unreleased_max: NonZeroU16,
    /// Messages for one client whose session ends with its connection that may wait for it; more are dropped.
    pub direct_max: NonZeroU16,
    /// Bytes that they take in memory, with their topics and properties, in each of the two places where they wait.
    pub direct_bytes_max: NonZeroU32,
    /// Subscriptions of one client; more are refused.
    pub subscriptions_max: NonZeroU16,
    /// Topic aliases of one connection, in each direction (MQTT 5: Topic Alias Maximum).
    pub topic_alias_max: u16,
    /// Requests of one terminal that are on their way into the log at once. With 1 they enter it as they arrived.
    pub admitting_max: NonZeroU16,
    /// Deliveries of one terminal that are kept in memory, in rows.
    pub page: NonZeroU16,
    /// Messages of `wakala terminals tell` that may wait for one terminal, in rows; more are refused. Receipts are not counted.
    pub messages_max: u32,
    /// The longest that they wait, whatever is said of each; without, for as long as the terminal's session lives.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub messages_ttl_max: Option<Duration>,
    /// News (`--class news`) that may wait for one terminal, in rows; of more the oldest are dropped.
    pub news_max: u32,
    /// The longest that news wait.
    #[serde(with = "humantime_serde")]
    pub news_ttl_max: Duration,
    /// How long a client may leave every delivery without PUBACK before its connection is given up.
    #[serde(with = "humantime_serde")]
    pub ack_within: Duration,
    /// How often sessions and messages are looked for whose time is over.
    #[serde(with = "humantime_serde")]
    pub expire_every: Duration,
    /// How often it is looked which sessions of this node have a later connection at another one. Whoever holds on to the
    /// earlier one gets no receipts until then.
    #[serde(with = "humantime_serde")]
    pub overtaken_every: Duration,
    /// How long nobody holds a node's name before another one says that it died. One that lives takes it again within ten
    /// seconds of a restart of Postgres.
    #[serde(with = "humantime_serde")]
    pub dead_after: Duration,
    /// How often it is looked who has been banned, wherever that was done, and who has connected to another node.
    #[serde(with = "humantime_serde")]
    pub blocked_every: Duration,
    /// Sessions that are discarded in one commit, at most, and messages.
    pub expire_batch_max: u32,
    /// Messages that may wait for one session's actor.
    pub mailbox: usize,
    /// Acknowledgements that may wait for the database, of all terminals together; and as many changes of subscriptions.
    pub acks_waiting_max: usize,
    /// Acknowledgements, or changes of subscriptions, that go into one commit, at most.
    pub acks_batch_max: usize,
    /// Terminals whose queues are read at once, at most.
    pub pages_batch_max: usize,
    /// Terminals that wait to be let in.
    pub admission: admission::Options,
    /// What one client may cost.
    pub bounds: bounds::Options,
    /// Panics of sessions together that are borne. A session is started again by its terminal's reconnect, so the
    /// back-off is not used.
    pub policy: Policy,
}

const fn count(number: u16) -> NonZeroU16 {
    match NonZeroU16::new(number) {
        Some(number) => number,
        None => NonZeroU16::MIN,
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_alive_max: Duration::from_secs(20 * 60),
            keep_alive_unannounced_max: Duration::from_secs(3600),
            session_expiry_max: Duration::from_secs(30 * 24 * 3600),
            packet_bytes_max: 64 * 1024,
            inbound_max: count(16),
            outbound_max: count(16),
            terminal_outbound_max: count(4),
            unreleased_max: count(1000),
            direct_max: count(1000),
            direct_bytes_max: NonZeroU32::MIN.saturating_add(16 * 1024 * 1024 - 1),
            subscriptions_max: count(1000),
            topic_alias_max: 16,
            admitting_max: count(1),
            page: count(32),
            messages_max: 100,
            news_max: 20,
            messages_ttl_max: None,
            news_ttl_max: Duration::from_secs(24 * 3600),
            ack_within: Duration::from_secs(120),
            expire_every: Duration::from_secs(60),
            overtaken_every: Duration::from_secs(5),
            dead_after: Duration::from_secs(15),
            blocked_every: Duration::from_millis(500),
            expire_batch_max: 1000,
            mailbox: 16,
            acks_waiting_max: 4096,
            acks_batch_max: 512,
            pages_batch_max: 16,
            admission: admission::Options::default(),
            bounds: bounds::Options::default(),
            policy: Policy::default(),
        }
    }
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            keep_alive_max: self.keep_alive_max,
            keep_alive_unannounced_max: self.keep_alive_unannounced_max,
            session_expiry_max: self.session_expiry_max,
            packet_bytes_max: self.packet_bytes_max,
            inbound_max: self.inbound_max,
            outbound_max: self.outbound_max,
            terminal_outbound_max: self.terminal_outbound_max,
            unreleased_max: self.unreleased_max,
            direct_max: self.direct_max,
            direct_bytes_max: self.direct_bytes_max,
            subscriptions_max: self.subscriptions_max,
            topic_alias_max: self.topic_alias_max,
            admitting_max: self.admitting_max,
            page: self.page,
            ack_within: self.ack_within,
            pace: self.bounds.pace(),
        }
    }
}

/// The way of a request out of its session: the edge and the log.
pub trait Intake: Send + Sync {
    /// Takes what a terminal published; done when it is durable (law 2). A request that Wakala cannot carry out is
    /// taken too: its refusal is what becomes durable.
    fn take(&self, terminal: &Enrolled, payload: Bytes) -> Wait<'static, Result<(), Away>>;
}

/// The database, the log or the HSM cannot be reached. The session tries again, and its terminal waits for the PUBACK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("away: {0}")]
pub struct Away(pub String);

/// What the sessions are given.
pub struct Deps {
    pub options: Options,
    pub open: router::Options,
    pub presence: told::Options,
    pub telling: crate::telling::Options,
    pub tap: tap::Options,
    /// Of this node, in `wakala.session`.
    pub node: String,
    pub store: Store,
    pub intake: Arc<dyn Intake>,
    pub clock: Arc<dyn Clock>,
    /// Whether terminals of the sandbox may connect, and sessions be told to panic.
    pub sandbox: bool,
    pub tree: Tree,
    /// Called with the reason when sessions panic too often, and at every further panic.
    pub give_up: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("node", &self.node).field("options", &self.options).finish_non_exhaustive()
    }
}

/// All sessions of this node. Clones are the same ones, for any thread.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    deps: Deps,
    limits: Arc<Limits>,
    acknowledgements: Acknowledgements,
    marks: Marks,
    changes: Changes,
    pages: Pages,
    ends: Ends,
    leaving: leaving::Leaving,
    admission: admission::Admission,
    router: Router,
    neighbours: Arc<Neighbours>,
    doubtful: neighbours::Doubtful,
    presence: Presence,
    storing: owed::Storing,
    taps: Taps,
    traces: traces::Traces,
    connected: RwLock<BTreeMap<ClientId, Connected>>,
    barred: barred::Barred,
    agents: agents::Agents,
    evacuation: evacuation::Slot,
    panics: Mutex<VecDeque<Instant>>,
    /// A connection has ended and left a will.
    ended: Arc<Notify>,
}

struct Connected {
    epoch: Epoch,
    /// Something of it is in the database.
    stored: bool,
    addr: Addr<Session>,
    /// Of the certificate it came with, where authorities are asked.
    papers: Option<Arc<Papers>>,
    traits: Traits,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("connected", &self.len()).finish_non_exhaustive()
    }
}

/// The branch of all sessions in the tree: ten thousand branches would show nothing.
const PATH: &str = "sessions";

impl Sessions {
    #[must_use]
    pub fn new(deps: Deps) -> Self {
        let (room, max) = (deps.options.acks_waiting_max, deps.options.acks_batch_max);
        let acknowledgements = deps.store.acknowledgements(room, max);
        let ends = deps.store.ends(max);
        let marks = deps.store.marks(room, max);
        let (changes, pages) = (deps.store.changes(room, max), deps.store.pages(room, deps.options.pages_batch_max));
        let admission = admission::Admission::new(&deps.options.admission, &deps.store, &deps.clock);
        let neighbours = Arc::new(Neighbours::new(deps.store.words(&deps.node, room, max)));
        let router = Router::new(&deps.open, &deps.store, &neighbours);
        let presence = Presence::new(&deps.presence, &deps.node, deps.store.metrics());
        let taps = Taps::new(deps.tap.clone(), Arc::clone(&deps.clock));
        let traces = traces::Traces::new(&deps.tap, &deps.store, &deps.node);
        deps.tree.set(PATH, BranchState::Running);
        Self(Arc::new(Inner {
            limits: Arc::new(deps.options.limits()),
            acknowledgements,
            marks,
            changes,
            pages,
            admission,
            leaving: leaving::Leaving::default(),
            router,
            neighbours,
            doubtful: neighbours::Doubtful::default(),
            presence,
            storing: owed::Storing::default(),
            taps,
            traces,
            ends,
            agents: agents::Agents::new(deps.options.bounds.shares()),
            deps,
            connected: RwLock::default(),
            barred: Default::default(),
            evacuation: evacuation::Slot::default(),
            panics: Mutex::default(),
            ended: Arc::default(),
        }))
    }

    /// Before the first connection: says of those that this node held when it died that they are gone, and starts to
    /// look for sessions whose time is over.
    pub(crate) async fn begin(&self) {
        let Deps { store, node, clock, options, .. } = &self.0.deps;
        let ended = match store.forget_connections(node, clock.now()).await {
            Ok(ended) => ended,
            Err(error) => {
                // They say so themselves when they connect again.
                tracing::warn!(%error, "connections of the node's last life are still shown");
                Vec::new()
            }
        };
        if !ended.is_empty() {
            tracing::info!(count = ended.len(), "connections ended with the node's last life");
        }
        self.hear_neighbours().await;
        if self.open().is_open() {
            while let Err(error) = self.0.router.load(store, clock.now()).await {
                tracing::warn!(%error, "waiting for the database: what is subscribed and retained");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            self.begin_presence(&ended).await;
            self.send_wills();
        }
        self.look_for_overtaken();
        self.look_for_moved();
        self.look_again_for_bans().await;
        self.look_for_kicks();
        self.look_again_for_traces().await;
        let (sessions, every, batch_max) = (Arc::downgrade(&self.0), options.expire_every, options.expire_batch_max);
        store.handle().spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade() else { break };
                let now = sessions.deps.clock.now();
                sessions.forget_presence(now).await;
                sessions.forget_told(now).await;
                sessions.forget_traces(now).await;
                sessions.router.retained().forget_over(now);
                match sessions.deps.store.forget_retained(now, batch_max).await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "retained messages were deleted that had expired"),
                    Err(error) => tracing::warn!(%error, "retained messages that have expired are kept for now"),
                }
                match sessions.deps.store.expire_messages(now, batch_max).await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "messages were deleted that had expired"),
                    Err(error) => tracing::warn!(%error, "messages that have expired are kept for now"),
                }
                match sessions.deps.store.expire_sessions(now, batch_max).await {
                    Ok(over) if over.is_empty() => {}
                    Ok(over) => {
                        sessions.router.over(&over);
                        sessions.presence.over(&over, u64::MAX);
                        over.iter().for_each(|client| sessions.neighbours.tell(|| Word::Changed(client.clone())));
                        tracing::info!(count = over.len(), "sessions ended whose time was over");
                    }
                    Err(error) => tracing::warn!(%error, "sessions whose time is over are kept for now"),
                }
            }
        });
    }

    /// Has a session panic, of this terminal or, with an empty name, of any. False when there is none, or when this
    /// node is not in sandbox mode.
    #[must_use]
    pub fn panic(&self, terminal: &str) -> bool {
        self.0.deps.sandbox && self.tell(terminal, || Panic)
    }

    /// The epoch of a client's connection here, or 0: a later one has a higher.
    pub(crate) fn epoch_of(&self, client: &ClientId) -> Epoch {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        connected.get(client).map_or(Epoch(0), |present| present.epoch)
    }

    /// How many terminals are connected here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.connected.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all connections; MQTT 5 terminals hear that the node is stopping.
    pub fn end_all(&self) {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        for each in connected.values() {
            // A session that does not hear it is ended with its worker.
            let _ = each.addr.try_send(crate::supervision::Stop);
        }
    }

    fn tell<M>(&self, terminal: &str, message: impl FnOnce() -> M) -> bool
    where
        M: Message<Result = ()> + Send + 'static,
        Session: Handler<M>,
        <Session as Actor>::Context: dev::ToEnvelope<Session, M>,
    {
        let addr = match ClientId::new(terminal) {
            Ok(terminal) => self.addr(&terminal),
            Err(_) if terminal.is_empty() => self.any(),
            Err(_) => None,
        };
        addr.is_some_and(|addr| addr.try_send(message()).is_ok())
    }

    fn addr(&self, terminal: &ClientId) -> Option<Addr<Session>> {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        connected.get(terminal).map(|each| each.addr.clone())
    }

    fn any(&self) -> Option<Addr<Session>> {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        let nth = usize::try_from(getrandom::u32().unwrap_or(0)).unwrap_or(0) % connected.len().max(1);
        connected.values().nth(nth).map(|each| each.addr.clone())
    }

    /// Registers a session. The one before it is told to go; if that one is the later, this one is.
    pub(crate) fn register(
        &self,
        terminal: ClientId,
        (epoch, stored): (Epoch, bool),
        addr: Addr<Session>,
        papers: Option<Papers>,
        traits: Traits,
    ) {
        let taken_over = End(Reason::SessionTakenOver, "the session was taken over");
        let mut connected = self.0.connected.write().unwrap_or_else(PoisonError::into_inner);
        let leaves = match connected.get(&terminal) {
            Some(present) if present.epoch > epoch => Some(addr),
            _ => {
                // In the mailbox before anybody can find it: CONNACK comes first.
                addr.do_send(Resume);
                let papers = papers.map(Arc::new);
                connected.insert(terminal, Connected { epoch, stored, addr, papers, traits }).map(|before| before.addr)
            }
        };
        drop(connected);
        if let Some(leaves) = leaves {
            // A full mailbox must not keep it: it is the last word to this session.
            leaves.do_send(taken_over);
        }
        self.show();
    }

    /// A session has ended, however.
    pub(crate) fn exited(&self, terminal: &ClientId, epoch: Epoch, exit: &Exit) {
        let mut connected = self.0.connected.write().unwrap_or_else(PoisonError::into_inner);
        if connected.get(terminal).is_some_and(|present| present.epoch == epoch) {
            connected.remove(terminal);
        }
        drop(connected);
        if exit.panicked {
            tracing::warn!(%terminal, reason = exit.reason, "a session died; its terminal's reconnect starts it again");
            self.0.deps.tree.exited(PATH, exit);
            self.0.deps.tree.set(PATH, BranchState::Running);
            self.count_panic();
        } else {
            tracing::debug!(%terminal, reason = exit.reason, "disconnected");
        }
        self.show();
    }

    fn count_panic(&self) {
        let (now, policy) = (Instant::now(), self.0.deps.options.policy);
        let mut panics = self.0.panics.lock().unwrap_or_else(PoisonError::into_inner);
        panics.push_back(now);
        while panics.front().is_some_and(|&at| now.duration_since(at) > policy.period) {
            panics.pop_front();
        }
        let too_many = panics.len() > policy.intensity;
        drop(panics);
        if too_many {
            (self.0.deps.give_up)(&format!("{PATH}: more than {} panics in {:?}", policy.intensity, policy.period));
        }
    }

    fn show(&self) {
        self.0.deps.tree.note(PATH, format!("{} connected", self.len()));
    }

    pub(crate) fn router(&self) -> &Router {
        &self.0.router
    }

    /// What the terminals of an agent share, for one of them that is connected.
    pub(crate) fn purse_of(&self, agent: &AgentId) -> Option<Arc<Purse>> {
        self.0.agents.purse_of(agent)
    }

    pub(crate) fn marks(&self) -> Marks {
        self.0.marks.clone()
    }

    pub(crate) fn changes(&self) -> Changes {
        self.0.changes.clone()
    }

    pub(crate) fn pages(&self) -> Pages {
        self.0.pages.clone()
    }

    pub(crate) fn admission(&self) -> &admission::Admission {
        &self.0.admission
    }

    /// CONNECTs that wait for their session, and what became of the others.
    #[must_use]
    pub fn admitted(&self) -> admission::Admitted {
        self.0.admission.admitted()
    }

    /// What there is for guests.
    pub(crate) fn open(&self) -> &router::Options {
        &self.0.deps.open
    }

    pub(crate) fn limits(&self) -> &Arc<Limits> {
        &self.0.limits
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.deps.store
    }

    pub(crate) fn intake(&self) -> Arc<dyn Intake> {
        Arc::clone(&self.0.deps.intake)
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.0.deps.clock)
    }

    pub(crate) fn node(&self) -> &str {
        &self.0.deps.node
    }

    pub(crate) fn sandbox(&self) -> bool {
        self.0.deps.sandbox
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.deps.options
    }

    pub(crate) fn mailbox(&self) -> usize {
        self.0.deps.options.mailbox
    }

    pub(crate) fn acknowledgements(&self) -> Acknowledgements {
        self.0.acknowledgements.clone()
    }
}
