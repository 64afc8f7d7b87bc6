//! Supervision of our own: factory, reload, jittered back-off, intensity per period, escalation.
//!
//! `actix::Supervisor` goes on with the same value after a stop and not at all after a panic (actix 0.13.5), so nothing
//! here uses it. A child holds a [`Link`]; the link's `Drop`, which runs on unwind too, tells the parent. The parent
//! waits, has its factory load the child's state again and start a new child, and puts the new address into the
//! [`Registry`]. More panics than [`Policy::intensity`] within [`Policy::period`] and the supervisor gives up; a
//! supervisor that gave up ends the process with [`EXIT_ESCALATED`], and systemd starts it again.
//!
//! A child that stops by itself (its commit failed, it was fenced off) or cannot load is started again after the
//! back-off, without limit: that is a database or a log that is away, and ending the process would not bring it back.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

/// EX_SOFTWARE: a supervisor gave up. systemd starts the process again.
pub const EXIT_ESCALATED: i32 = 70;

/// How often and how soon a child is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Panics within `period` that a supervisor's children may have together.
    pub intensity: usize,
    /// The time over which panics are counted, and after which a child that lived is as good as new.
    #[serde(with = "humantime_serde")]
    pub period: Duration,
    /// The wait before the first restart; doubled with each further one, and half of it is drawn by lot.
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest wait before a restart.
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            intensity: 20,
            period: Duration::from_secs(60),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
        }
    }
}

impl Policy {
    /// The wait before the `nth` restart in a row, counted from 1.
    fn backoff(&self, nth: u32) -> Duration {
        let doubled = self.backoff_min.saturating_mul(1_u32.checked_shl(nth.saturating_sub(1)).unwrap_or(u32::MAX));
        let most = doubled.min(self.backoff_max);
        // Half is certain, half is drawn: children that died together do not come back together.
        most / 2 + most.mul_f64(f64::from(u8::try_from(getrandom::u32().unwrap_or(0) & 0xFF).unwrap_or(0)) / 512.0)
    }
}

/// How a child ended.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    pub panicked: bool,
    /// The panic's message and place, or what the child said before it stopped.
    pub reason: String,
}

/// What a child holds: when it is dropped, the parent hears of it.
pub struct Link {
    told: Option<Box<dyn FnOnce(Exit) + Send>>,
    reason: Option<Box<str>>,
}

impl Link {
    /// A link whose end is told to `parent`.
    pub fn new(parent: impl FnOnce(Exit) + Send + 'static) -> Self {
        Self { told: Some(Box::new(parent)), reason: None }
    }

    /// Says why, before stopping.
    pub fn because(&mut self, reason: impl Display) {
        self.reason = Some(reason.to_string().into());
    }

    /// Why it stops, as far as it has said.
    #[must_use]
    pub fn reason(&self) -> &str {
        if std::thread::panicking() { "a panic" } else { self.reason.as_deref().unwrap_or("stopped") }
    }
}

impl Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let panicked = std::thread::panicking();
        let reason = if panicked {
            LAST_PANIC.take().unwrap_or_else(|| "panicked".to_owned())
        } else {
            self.reason().to_owned()
        };
        if let Some(told) = self.told.take() {
            told(Exit { panicked, reason });
        }
    }
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has every panic logged once, with its place, and kept for the [`Link`] that is dropped by it.
pub fn catch_panic_messages() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("panicked");
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        tracing::error!(panic = text, place, "an actor panicked");
        LAST_PANIC.set(Some(format!("{text}{place}")));
    }));
}

/// The addresses of living children by identity. Nobody keeps an address: whoever wants to speak to a child asks here.
#[derive(Debug)]
pub struct Registry<K, A: Actor>(Arc<RwLock<BTreeMap<K, Addr<A>>>>);

impl<K, A: Actor> Clone for Registry<K, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Ord, A: Actor> Default for Registry<K, A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord + Clone, A: Actor> Registry<K, A> {
    #[must_use]
    pub fn get(&self, key: &K) -> Option<Addr<A>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    #[must_use]
    pub fn all(&self) -> Vec<(K, Addr<A>)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(key, addr)| (key.clone(), addr.clone())).collect()
    }

    pub fn insert(&self, key: K, addr: Addr<A>) -> Option<Addr<A>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, addr)
    }

    pub fn remove(&self, key: &K) -> Option<Addr<A>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The living tree, for `wakala status`.
#[derive(Clone, Debug, Default)]
pub struct Tree(Arc<Mutex<BTreeMap<String, Branch>>>);

/// One actor in the tree.
#[derive(Clone, Debug, Serialize)]
pub struct Branch {
    pub state: BranchState,
    pub restarts: u64,
    pub panics: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Exit>,
    /// The last panic stays after later, quieter exits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_panic: Option<String>,
    /// What the actor says of itself, such as its position in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BranchState {
    Starting,
    Running,
    /// Dead, and to be started again after the back-off.
    Waiting,
    Stopped,
}

impl Tree {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Branch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All branches by their path, such as `partitions/3`.
    #[must_use]
    pub fn branches(&self) -> BTreeMap<String, Branch> {
        self.lock().clone()
    }

    pub fn set(&self, path: &str, state: BranchState) {
        self.change(path, |branch| branch.state = state);
    }

    pub fn note(&self, path: &str, note: impl Into<String>) {
        self.change(path, |branch| branch.note = Some(note.into()));
    }

    pub fn exited(&self, path: &str, exit: &Exit) {
        self.change(path, |branch| {
            branch.state = BranchState::Stopped;
            if exit.panicked {
                branch.panics += 1;
                branch.last_panic = Some(exit.reason.clone());
            }
            branch.last_exit = Some(exit.clone());
        });
    }

    pub fn remove(&self, path: &str) {
        self.lock().remove(path);
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Branch)) {
        let mut tree = self.lock();
        change(tree.entry(path.to_owned()).or_insert_with(|| Branch {
            state: BranchState::Starting,
            restarts: 0,
            panics: 0,
            last_exit: None,
            last_panic: None,
            note: None,
        }));
    }
}

/// Loads a child's state and starts it with its link, on whichever thread it is to live.
pub type Factory<K, A> = Box<dyn Fn(K, Link) -> LocalBoxFuture<'static, anyhow::Result<Addr<A>>>>;

/// What can be supervised: an actor that ends when it is told.
pub trait Child: Actor + Handler<Stop>
where
    <Self as Actor>::Context: dev::ToEnvelope<Self, Stop>,
{
}

impl<A> Child for A
where
    A: Actor + Handler<Stop>,
    A::Context: dev::ToEnvelope<A, Stop>,
{
}

/// Ends an actor after the message it is at.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// Starts the child of this key, now and whenever it dies.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Start<K: Send + 'static>(pub K);

/// Ends the child of this key for good.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct End<K: Send + 'static>(pub K);

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Died<K: Send + 'static> {
    key: K,
    /// Which start of this key it was: a death of an older one changes nothing.
    start: u64,
    exit: Exit,
}

/// Parent of the children of one kind.
pub struct Supervisor<K, A: Actor> {
    name: &'static str,
    policy: Policy,
    tree: Tree,
    registry: Registry<K, A>,
    factory: Factory<K, A>,
    wanted: BTreeMap<K, Wanted>,
    starts: u64,
    panics: VecDeque<Instant>,
    give_up: Box<dyn Fn(&str)>,
}

#[derive(Debug)]
struct Wanted {
    start: u64,
    /// Deaths in a row: forgotten when it has lived for a period.
    deaths: u32,
    since: Instant,
}

impl<K, A: Actor> Debug for Supervisor<K, A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K, A> Supervisor<K, A>
where
    K: Ord + Clone + Display + Send + Unpin + 'static,
    A: Child,
    A::Context: dev::ToEnvelope<A, Stop>,
{
    /// `give_up` is called with the reason when the children panic too often, or the supervisor itself does.
    pub fn new(
        name: &'static str,
        policy: Policy,
        tree: Tree,
        registry: Registry<K, A>,
        factory: Factory<K, A>,
        give_up: impl Fn(&str) + 'static,
    ) -> Self {
        tree.set(name, BranchState::Running);
        Self {
            name,
            policy,
            tree,
            registry,
            factory,
            wanted: BTreeMap::new(),
            starts: 0,
            panics: VecDeque::new(),
            give_up: Box::new(give_up),
        }
    }

    fn path(&self, key: &K) -> String {
        format!("{}/{key}", self.name)
    }

    fn start(&mut self, key: K, ctx: &mut Context<Self>) {
        let Some(wanted) = self.wanted.get_mut(&key) else { return };
        self.starts += 1;
        wanted.start = self.starts;
        wanted.since = Instant::now();
        let start = self.starts;
        self.tree.set(&self.path(&key), BranchState::Starting);
        let (parent, name) = (ctx.address(), key.clone());
        let link = Link::new(move |exit| {
            // The link's last word may find the mailbox full; it must not be lost.
            parent.do_send(Died { key: name, start, exit });
        });
        // A panic in here is the child's, and its link, which unwinds with it, tells of it. It must not take the parent.
        let made = catch_unwind(AssertUnwindSafe(|| (self.factory)(key.clone(), link)));
        let Ok(loading) = made else { return };
        let loading = AssertUnwindSafe(loading).catch_unwind();
        ctx.spawn(loading.into_actor(self).map(move |loaded, this, _| {
            if let Ok(loaded) = loaded {
                this.loaded(&key, start, loaded);
            }
        }));
    }

    fn loaded(&mut self, key: &K, start: u64, loaded: anyhow::Result<Addr<A>>) {
        match loaded {
            Ok(addr) if self.wanted.get(key).is_some_and(|wanted| wanted.start == start) => {
                self.tree.set(&self.path(key), BranchState::Running);
                self.registry.insert(key.clone(), addr);
            }
            // No longer wanted: it was ended while it loaded.
            Ok(addr) => addr.do_send(Stop),
            // The link went with the factory's future, and its word is on the way.
            Err(error) => tracing::warn!(actor = self.path(key), error = format!("{error:#}"), "could not start"),
        }
    }

    fn died(&mut self, Died { key, start, exit }: Died<K>, ctx: &mut Context<Self>) {
        let path = self.path(&key);
        let Some(wanted) = self.wanted.get_mut(&key) else {
            self.tree.remove(&path);
            return;
        };
        if wanted.start != start {
            return;
        }
        self.tree.exited(&path, &exit);
        self.registry.remove(&key);
        if wanted.since.elapsed() > self.policy.period {
            wanted.deaths = 0;
        }
        wanted.deaths = wanted.deaths.saturating_add(1);
        let wait = self.policy.backoff(wanted.deaths);
        if exit.panicked && self.too_many_panics() {
            let text = format!("{path}: more than {} panics in {:?}", self.policy.intensity, self.policy.period);
            (self.give_up)(&text);
            return;
        }
        tracing::warn!(actor = path, reason = exit.reason, panicked = exit.panicked, ?wait, "died; is started again");
        self.tree.change(&path, |branch| {
            branch.state = BranchState::Waiting;
            branch.restarts += 1;
        });
        // The parent's line is the sum of its children's.
        self.tree.change(self.name, |branch| {
            branch.restarts += 1;
            branch.panics += u64::from(exit.panicked);
            if exit.panicked {
                branch.last_panic = Some(exit.reason.clone());
            }
        });
        ctx.run_later(wait, move |this, ctx| {
            // It may have been ended meanwhile, and wanted again, and started by that.
            if this.wanted.get(&key).is_some_and(|wanted| wanted.start == start) {
                this.start(key, ctx);
            }
        });
    }

    fn too_many_panics(&mut self) -> bool {
        let now = Instant::now();
        self.panics.push_back(now);
        while self.panics.front().is_some_and(|&at| now.duration_since(at) > self.policy.period) {
            self.panics.pop_front();
        }
        self.panics.len() > self.policy.intensity
    }
}

impl<K, A: Actor> Drop for Supervisor<K, A> {
    /// A supervisor that panics starts nobody again: that goes upward at once.
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.give_up)(&format!("{}: the supervisor panicked", self.name));
        }
    }
}

impl<K: Unpin + 'static, A: Actor> Actor for Supervisor<K, A> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl<K, A> Handler<Start<K>> for Supervisor<K, A>
where
    K: Ord + Clone + Display + Send + Unpin + 'static,
    A: Child,
    A::Context: dev::ToEnvelope<A, Stop>,
{
    type Result = ();

    fn handle(&mut self, Start(key): Start<K>, ctx: &mut Context<Self>) {
        if !self.wanted.contains_key(&key) {
            self.wanted.insert(key.clone(), Wanted { start: 0, deaths: 0, since: Instant::now() });
            self.start(key, ctx);
        }
    }
}

impl<K, A> Handler<End<K>> for Supervisor<K, A>
where
    K: Ord + Clone + Display + Send + Unpin + 'static,
    A: Child,
    A::Context: dev::ToEnvelope<A, Stop>,
{
    type Result = ();

    fn handle(&mut self, End(key): End<K>, _: &mut Context<Self>) {
        if self.wanted.remove(&key).is_some()
            && let Some(addr) = self.registry.remove(&key)
        {
            addr.do_send(Stop);
        }
    }
}

impl<K, A> Handler<Died<K>> for Supervisor<K, A>
where
    K: Ord + Clone + Display + Send + Unpin + 'static,
    A: Child,
    A::Context: dev::ToEnvelope<A, Stop>,
{
    type Result = ();

    fn handle(&mut self, died: Died<K>, ctx: &mut Context<Self>) {
        self.died(died, ctx);
    }
}

#[cfg(test)]
mod tests;
