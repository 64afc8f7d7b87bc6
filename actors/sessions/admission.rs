//! The way of a CONNECT into the database: whose turn it is decides its twin in `src/admission.rs`, many go into one commit.
//!
//! While one commit is under way those who come gather. Are they more than go into the next, one query says who of them
//! waits for a receipt or has messages, and these come first. Nobody waits for ever: neither for a database that is away nor
//! for a session that somebody else has locked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use wakala::admission::{Claim, Place, Waiting, come_again_in};
use wakala::id::Epoch;
use wakala::session::Loaded;

use crate::metrics::counts::Count;
use crate::ports::Clock;
use crate::store::openings::{Opened, Opening, WhenLocked};
use crate::store::{Error, Store};

/// CONNECTs that wait for their session, when more come than can be opened at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How many may wait. Of more, those are told that the server is busy who have nothing waiting here.
    pub waiting_max: usize,
    /// Sessions that are opened in one commit, at most.
    pub batch_max: usize,
    /// The longest wait; then the server says that it is busy.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// When a client of MQTT 5 that is told so is to come again: drawn by lot, between this
    #[serde(with = "humantime_serde")]
    pub come_again_min: Duration,
    /// and this.
    #[serde(with = "humantime_serde")]
    pub come_again_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            waiting_max: 20_000,
            batch_max: 256,
            wait_max: Duration::from_secs(10),
            come_again_min: Duration::from_secs(2),
            come_again_max: Duration::from_secs(30),
        }
    }
}

/// Why a session was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    #[error("too many wait to be let in")]
    Busy {
        /// When to come again, in seconds.
        come_again_s: u64,
    },
    /// Its connection ended before its turn came.
    #[error("the client is gone")]
    Gone,
    #[error("the node is stopping")]
    Stopping,
    #[error(transparent)]
    Store(#[from] Error),
}

/// CONNECTs that wait for their session, and what became of the others since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    pub waiting: usize,
    pub opened: u64,
    /// Told that the server is busy.
    pub busy: u64,
    /// Gone before their turn came.
    pub gone: u64,
    /// The database did not do it.
    pub failed: u64,
    /// Commits that opened them.
    pub batches: u64,
}

#[derive(Debug, Default)]
struct Counts {
    opened: Count,
    busy: Count,
    gone: Count,
    failed: Count,
    batches: Count,
}

impl Counts {
    fn count(&self, result: &Result<(Epoch, Loaded), NotOpened>) {
        let which = match result {
            Ok(_) => &self.opened,
            Err(NotOpened::Busy { .. } | NotOpened::Stopping) => &self.busy,
            Err(NotOpened::Gone) => &self.gone,
            Err(NotOpened::Store(_)) => &self.failed,
        };
        which.one();
    }
}

/// The way in. Clones are the same one.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Arc<dyn Clock>,
    options: Options,
    waiting: Mutex<Waiting<Caller>>,
    arrived: Arc<Notify>,
    /// Openings that wait for somebody else's lock.
    alone: Arc<Semaphore>,
    /// Nobody is let in any more.
    stopping: watch::Sender<bool>,
    /// Those who are on their way in.
    coming: AtomicUsize,
    counts: Counts,
}

/// Sessions that are waited for at the same time because somebody else has them locked.
const ALONE_MAX: usize = 4;

/// A session that is locked is passed over so often before it is waited for.
const PASSED_OVER_MAX: u8 = 5;

/// How long others have to finish, when all who are there have their sessions locked.
const LOCKED_WAIT: Duration = Duration::from_millis(10);

/// How often it is looked who has waited for too long.
const LOOK: Duration = Duration::from_millis(200);

/// Clients that one query asks about.
const JUDGED_MAX: usize = 1000;

struct Caller {
    opening: Opening,
    /// Its connection has ended.
    gone: Arc<AtomicBool>,
    passed_over: u8,
    told: oneshot::Sender<Result<(Epoch, Loaded), NotOpened>>,
}

/// One that is on his way in, until he is told that he is not or is found among the sessions.
#[must_use]
pub(crate) struct Coming(Arc<Inner>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("waiting", &self.0.waiting().len()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.arrived.notify_one();
    }
}

impl Admission {
    #[must_use]
    pub fn new(options: &Options, store: &Store, clock: &Arc<dyn Clock>) -> Self {
        let arrived = Arc::<Notify>::default();
        let inner = Arc::new(Inner {
            store: store.clone(),
            clock: Arc::clone(clock),
            options: options.clone(),
            waiting: Mutex::new(Waiting::new(options.waiting_max, options.wait_max)),
            arrived: Arc::clone(&arrived),
            alone: Arc::new(Semaphore::new(ALONE_MAX)),
            stopping: watch::Sender::new(false),
            coming: AtomicUsize::new(0),
            counts: Counts::default(),
        });
        store.handle().spawn(work(Arc::downgrade(&inner), Arc::clone(&arrived)));
        store.handle().spawn(turn_away(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Opens a session when its turn comes. `gone` is done when the client is; what was not opened by then will not be.
    ///
    /// # Errors
    /// Why it was not opened.
    pub async fn open(&self, opening: Opening, gone: impl Future<Output = ()>) -> Result<(Epoch, Loaded), NotOpened> {
        let (told, mut hears) = oneshot::channel();
        let left = Arc::<AtomicBool>::default();
        let caller = Caller { opening, gone: Arc::clone(&left), passed_over: 0, told };
        let turned_away = self.0.waiting().come(caller, self.0.clock.now());
        if let Some(caller) = turned_away {
            self.0.tell(caller, Err(self.0.busy()));
        }
        if self.is_stopping() {
            // Whoever opens sessions may be in the middle of a commit.
            self.0.send_all_away();
        }
        self.0.arrived.notify_one();
        let nobody = |_| Err(Error::Away("nobody opens sessions any more".to_owned()).into());
        tokio::select! {
            biased;
            answer = &mut hears => return answer.unwrap_or_else(nobody),
            () = gone => left.store(true, Ordering::Relaxed),
        }
        // Its session may be opened by now; then it has to be ended in order.
        hears.await.unwrap_or_else(nobody)
    }

    /// Lets nobody in any more, also of those who wait.
    pub fn stop(&self) {
        self.0.stopping.send_replace(true);
        self.0.send_all_away();
    }

    /// Comes when nobody is let in any more.
    pub async fn stopped(&self) {
        // No error: what would be dropped is ours.
        let _ = self.0.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    #[must_use]
    pub fn is_stopping(&self) -> bool {
        *self.0.stopping.borrow()
    }

    /// Counts one who is on his way in.
    pub(crate) fn coming(&self) -> Coming {
        self.0.coming.fetch_add(1, Ordering::Relaxed);
        Coming(Arc::clone(&self.0))
    }

    /// Nobody is on his way in.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.coming.load(Ordering::Relaxed) == 0
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.waiting().len()
    }

    #[must_use]
    pub fn admitted(&self) -> Admitted {
        let Counts { opened, busy, gone, failed, batches } = &self.0.counts;
        Admitted {
            waiting: self.len(),
            opened: opened.get(),
            busy: busy.get(),
            gone: gone.get(),
            failed: failed.get(),
            batches: batches.get(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Opens one batch after the other.
async fn work(admission: Weak<Inner>, arrived: Arc<Notify>) {
    loop {
        arrived.notified().await;
        loop {
            let Some(inner) = admission.upgrade() else { return };
            let batch = inner.next().await;
            if batch.is_empty() {
                break;
            }
            // In a task of its own: a panic in it must not end the batches that follow.
            let opening = Arc::clone(&inner);
            if let Err(error) = tokio::spawn(async move { opening.open(batch).await }).await {
                tracing::error!(%error, "sessions could not be opened");
            }
        }
    }
}

/// Tells those who have waited for too long, whatever the database does meanwhile.
async fn turn_away(admission: Weak<Inner>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(inner) = admission.upgrade() else { return };
        let overdue = inner.waiting().overdue(inner.clock.now());
        for caller in overdue {
            inner.tell(caller, Err(inner.busy()));
        }
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting<Caller>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, caller: Caller, result: Result<(Epoch, Loaded), NotOpened>) {
        self.counts.count(&result);
        // Who stopped waiting for it ended with its worker thread.
        let _ = caller.told.send(result);
    }

    fn busy(&self) -> NotOpened {
        let Options { come_again_min, come_again_max, .. } = self.options;
        // Without randomness they come back together, as most did.
        let drawn = getrandom::u64().unwrap_or(0);
        NotOpened::Busy { come_again_s: come_again_in(come_again_min, come_again_max, drawn) }
    }

    fn send_all_away(&self) {
        let waiting = self.waiting().take(usize::MAX);
        for place in waiting {
            self.tell(place.who, Err(NotOpened::Stopping));
        }
    }

    /// Whose turn it is. Who has gone is not among them.
    async fn next(&self) -> Vec<Place<Caller>> {
        if *self.stopping.borrow() {
            self.send_all_away();
        }
        if self.waiting().len() > self.options.batch_max {
            self.judge().await;
        }
        let taken = self.waiting().take(self.options.batch_max);
        let (gone, here): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|place| place.who.gone.load(Ordering::Relaxed));
        for place in gone {
            self.tell(place.who, Err(NotOpened::Gone));
        }
        here
    }

    /// Asks what those who wait have waiting here.
    async fn judge(&self) {
        let (numbers, clients): (Vec<u64>, Vec<_>) = {
            let waiting = self.waiting();
            waiting.unjudged(JUDGED_MAX).map(|(number, caller)| (number, caller.opening.client.clone())).unzip()
        };
        if numbers.is_empty() {
            return;
        }
        let claims = match self.store.claims(clients).await {
            Ok(claims) => claims,
            Err(error) => {
                tracing::debug!(%error, "nobody knows who waits for a receipt");
                // They are not asked about again.
                vec![Claim::None; numbers.len()]
            }
        };
        self.waiting().judge(numbers.into_iter().zip(claims));
    }

    async fn open(self: Arc<Self>, batch: Vec<Place<Caller>>) {
        self.counts.batches.one();
        let openings = batch.iter().map(|place| place.who.opening.clone()).collect();
        match self.store.open_sessions(openings, WhenLocked::PassOver).await {
            Ok(all) => {
                let mut locked = 0;
                let count = batch.len();
                for (place, opened) in batch.into_iter().zip(all) {
                    let answer = match opened {
                        Opened::Session(epoch, loaded) => Ok((epoch, loaded)),
                        Opened::Locked => {
                            locked += 1;
                            self.put_back(place);
                            continue;
                        }
                        // One that the database refuses must not take the others along; what it refused is not committed.
                        Opened::Failed(Error::Broken(_)) if count > 1 => {
                            self.store.open_session(place.who.opening.clone()).await
                        }
                        Opened::Failed(error) => Err(error),
                        Opened::Unknown => Err(Error::Broken(format!("{} has no session", place.who.opening.client))),
                    };
                    self.tell(place.who, answer.map_err(NotOpened::from));
                }
                if locked == count {
                    tokio::time::sleep(LOCKED_WAIT).await;
                }
            }
            Err(error) => {
                for place in batch {
                    self.tell(place.who, Err(error.clone().into()));
                }
            }
        }
    }

    /// Somebody else has its session locked: it comes again, and in the end waits for that lock, with no one behind it.
    fn put_back(self: &Arc<Self>, mut place: Place<Caller>) {
        place.who.passed_over = place.who.passed_over.saturating_add(1);
        if place.who.passed_over < PASSED_OVER_MAX {
            return self.waiting().put_back(place);
        }
        let Ok(permit) = Arc::clone(&self.alone).try_acquire_owned() else { return self.waiting().put_back(place) };
        let inner = Arc::clone(self);
        self.store.handle().spawn(async move {
            let opened = inner.store.open_session(place.who.opening.clone()).await;
            inner.tell(place.who, opened.map_err(NotOpened::from));
            drop(permit);
        });
    }
}
