//! What one trace is shown, on its way into the database. The session's thread hands it over and goes on; while the database is
//! slow so much waits as may, and what comes then is lost and counted. The loss is a row at its place, like a packet.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use wakala::id::{ClientId, TransactionId};
use wakala::session::redacted::{Summary, Whose};
use wakala::time::Time;

use super::{NoTap, Place, Taps, To, Way};
use crate::store::traces::{Open, Row, Rows, Said};

/// The way of all traces of this node into the database. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Writing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rows: Rows,
    /// What may wait, of one trace.
    max: usize,
    /// What waits, of all.
    waiting: AtomicUsize,
    none: Notify,
}

/// One trace, as this life of the node sees it.
#[derive(Debug)]
pub(super) struct Kept {
    trace: i64,
    /// Which look at the trace this is, of all nodes and their lives.
    look: i32,
    until: Time,
    /// Rows that were made of it, so that one that is stored twice is there once.
    made: AtomicI64,
    state: Arc<State>,
    writing: Writing,
}

#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    lost: AtomicU64,
    /// When the last of them came.
    lost_at: AtomicI64,
}

/// A trace that this node carries out. It goes on until this is dropped.
#[derive(Debug)]
pub struct Keeping(Place);

impl Writing {
    #[must_use]
    pub fn new(rows: Rows, max: usize) -> Self {
        let (waiting, none) = (AtomicUsize::new(0), Notify::new());
        Self(Arc::new(Inner { rows, max: max.max(1), waiting, none }))
    }

    /// Done when nothing waits to be stored.
    pub async fn stored(&self) {
        loop {
            let mut none = std::pin::pin!(self.0.none.notified());
            // Before it is looked: who is told between must not be missed.
            none.as_mut().enable();
            if self.0.waiting.load(Ordering::Acquire) == 0 {
                return;
            }
            none.await;
        }
    }

    fn done(&self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

impl State {
    fn lose(&self, count: u64, at: Time) {
        self.lost_at.fetch_max(at.millis(), Ordering::Relaxed);
        self.lost.fetch_add(count, Ordering::Relaxed);
    }
}

impl Kept {
    pub(super) fn keep(&self, at: Time, way: Way, transaction: Option<TransactionId>, what: Summary) {
        if at >= self.until {
            return;
        }
        self.own_up();
        // Behind what is missing, or missing as well.
        let said = Said::Packet { way: way.word().to_owned(), what, transaction };
        if self.state.lost.load(Ordering::Relaxed) > 0 || !self.hand_over(at, said) {
            self.state.lose(1, at);
        }
    }

    /// Has it stored how many are missing, if any are and there is room again.
    fn own_up(&self) {
        let lost = self.state.lost.swap(0, Ordering::Relaxed);
        let at = Time::from_millis(self.state.lost_at.load(Ordering::Relaxed));
        if lost > 0 && !self.hand_over(at, Said::Lost(lost)) {
            self.state.lose(lost, at);
        }
    }

    /// False when there is no room.
    fn hand_over(&self, at: Time, said: Said) -> bool {
        if self.state.waiting.fetch_add(1, Ordering::Relaxed) >= self.writing.0.max {
            self.state.waiting.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.writing.0.waiting.fetch_add(1, Ordering::AcqRel);
        let missing = if let Said::Lost(lost) = &said { *lost } else { 1 };
        let made = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        let row = Row { trace: self.trace, look: self.look, made, at, said };
        let (state, writing) = (Arc::clone(&self.state), self.writing.clone());
        self.writing.0.rows.hand_over(row, move |stored| {
            if stored.is_err() {
                state.lose(missing, at);
            }
            state.waiting.fetch_sub(1, Ordering::Relaxed);
            writing.done();
        });
        true
    }
}

impl Taps {
    /// Begins to store what this client sends and is sent.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn keep(&self, open: &Open, look: i32, whose: Whose, writing: &Writing) -> Result<Keeping, NoTap> {
        let (state, made) = (Arc::default(), AtomicI64::new(0));
        let kept = Kept { trace: open.trace, look, until: open.until, made, state, writing: writing.clone() };
        self.take_place(&open.client, whose, To::Trace(kept)).map(Keeping)
    }
}

impl Keeping {
    #[must_use]
    pub fn client(&self) -> &ClientId {
        &self.0.client
    }

    /// Has it stored how many packets are missing after the last that was shown.
    pub fn own_up(&self) {
        if let To::Trace(kept) = &self.0.tap.to {
            kept.own_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use ntex_mqtt::v5::codec::Packet;
    use tokio::runtime::Handle;
    use tokio::sync::Semaphore;
    use wakala::session::{Event, Version};

    use super::*;
    use crate::ports::Clock;
    use crate::store::Error;
    use crate::store::batch::Batcher;
    use crate::tap::{Of, Options, Tapped};

    const NOW: Time = Time::from_millis(1_795_224_225_000);

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Time {
            NOW
        }
    }

    /// A database that commits when it is let, and fails when it is told to.
    #[derive(Clone)]
    struct Database {
        may: Arc<Semaphore>,
        stored: Arc<Mutex<Vec<Row>>>,
    }

    impl Database {
        fn new() -> Self {
            Self { may: Arc::new(Semaphore::new(0)), stored: Arc::default() }
        }

        fn rows(&self) -> Rows {
            let database = self.clone();
            Batcher::new(&Handle::current(), 1, 1, move |batch: Vec<Row>| {
                let database = database.clone();
                async move {
                    let count = batch.len();
                    match database.may.acquire().await {
                        Ok(permit) => permit.forget(),
                        Err(_) => return Err(Error::Away("it is".to_owned())),
                    }
                    database.stored.lock().expect("no panic").extend(batch);
                    Ok(vec![(); count])
                }
            })
        }

        fn said(&self) -> Vec<String> {
            let stored = self.stored.lock().expect("no panic");
            let said = stored.iter().map(|row| match &row.said {
                Said::Packet { way, what, .. } => format!("{} {way} {what}", row.made),
                Said::Lost(lost) => format!("{} lost {lost}", row.made),
            });
            said.collect()
        }
    }

    fn begin(database: &Database, max: usize, until: Time) -> (Taps, Writing, Keeping) {
        let (taps, writing) = (Taps::new(Options::default(), Arc::new(Still)), Writing::new(database.rows(), max));
        let client = ClientId::new("c").expect("short");
        let keeping = taps.keep(&Open { trace: 3, client, until }, 1, Whose::Guest, &writing).expect("a place");
        (taps, writing, keeping)
    }

    async fn stored(writing: &Writing) {
        tokio::time::timeout(Duration::from_secs(10), writing.stored()).await.expect("as many as may wait");
    }

    fn ping(tapped: &mut Tapped, taps: &Taps) {
        let client = ClientId::new("c").expect("short");
        let of = Of { client: &client, terminal: None, version: Version::V5 };
        tapped.heard(taps, of, &Event::Packet(Packet::PingRequest));
    }

    #[tokio::test]
    async fn a_slow_database_loses_packets_and_stores_how_many_and_where() {
        let database = Database::new();
        let (taps, writing, keeping) = begin(&database, 2, NOW + Duration::from_secs(1));
        let mut session = Tapped::default();
        for _ in 0..5 {
            ping(&mut session, &taps);
        }
        database.may.add_permits(2);
        stored(&writing).await;
        ping(&mut session, &taps);
        database.may.add_permits(2);
        stored(&writing).await;
        assert_eq!(database.said(), ["1 in PINGREQ", "2 in PINGREQ", "3 lost 3", "4 in PINGREQ"]);
        // Nothing comes after these: somebody has to ask.
        for _ in 0..3 {
            ping(&mut session, &taps);
        }
        keeping.own_up();
        database.may.add_permits(2);
        stored(&writing).await;
        keeping.own_up();
        database.may.add_permits(1);
        stored(&writing).await;
        assert_eq!(database.said()[4..], ["5 in PINGREQ", "6 in PINGREQ", "7 lost 1"]);
    }

    #[tokio::test]
    async fn what_could_not_be_stored_is_lost_and_what_comes_after_the_end_is_not() {
        let database = Database::new();
        let (taps, writing, keeping) = begin(&database, 8, NOW + Duration::from_secs(1));
        let mut session = Tapped::default();
        ping(&mut session, &taps);
        ping(&mut session, &taps);
        database.may.close();
        stored(&writing).await;
        let To::Trace(kept) = &keeping.0.tap.to else { panic!("a trace") };
        assert_eq!(kept.state.lost.load(Ordering::Relaxed), 2);
        drop(keeping);
        ping(&mut session, &taps);
        assert!(taps.by_client().is_empty());

        let (taps, writing, _keeping) = begin(&database, 8, NOW);
        ping(&mut Tapped::default(), &taps);
        assert_eq!(writing.0.waiting.load(Ordering::Relaxed), 0, "its time was over");
    }
}
