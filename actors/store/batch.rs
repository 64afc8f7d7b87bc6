//! Natural batching: while one commit is under way, what comes gathers, and the next commit takes all of it.
//!
//! Under little load a commit carries one thing and nobody waits for company; under much it carries many, and latency
//! stays near that of one commit. There is no timer.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{Error, Store};
use crate::metrics::Batch;

type Commit<T, R> = Box<dyn FnMut(Vec<T>) -> Pin<Box<dyn Future<Output = Result<Vec<R>, Error>> + Send>> + Send>;

/// The way in. Clones feed the same batches. When the last is dropped, what gathered is still committed.
pub struct Batcher<T, R> {
    queue: mpsc::UnboundedSender<Waiting<T, R>>,
    /// For those who wait.
    room: Arc<Semaphore>,
}

/// A thing, who brought it, and the place of one who waits.
type Waiting<T, R> = (T, Caller<R>, Option<OwnedSemaphorePermit>);

/// Who is told what became of a thing.
enum Caller<R> {
    /// It waits.
    Waits(oneshot::Sender<Result<R, Error>>),
    /// It went on.
    WentOn(Box<dyn FnOnce(Result<R, Error>) + Send>),
}

impl<R> Caller<R> {
    fn tell(self, result: Result<R, Error>) {
        match self {
            // Whoever stopped waiting is not told.
            Self::Waits(caller) => drop(caller.send(result)),
            // A panic in it must not end the batches that follow.
            Self::WentOn(then) => drop(catch_unwind(AssertUnwindSafe(|| then(result)))),
        }
    }
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), room: Arc::clone(&self.room) }
    }
}

impl<T, R> fmt::Debug for Batcher<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Batches of at most `max`, committed one after the other on `runtime` by `commit`, which gives one result per
    /// thing in the same order, or an error for all. At most `room` wait; who comes then waits to be let in.
    pub fn new<C, F>(runtime: &Handle, room: usize, max: usize, commit: C) -> Self
    where
        C: FnMut(Vec<T>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<R>, Error>> + Send + 'static,
    {
        Self::counted(runtime, room, max, Arc::default(), commit)
    }

    /// The same; sizes and durations are counted there.
    pub fn counted<C, F>(runtime: &Handle, room: usize, max: usize, counts: Arc<Batch>, commit: C) -> Self
    where
        C: FnMut(Vec<T>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<R>, Error>> + Send + 'static,
    {
        Self::patient(runtime, Duration::ZERO, room, max, counts, commit)
    }

    /// The same for what nobody waits for: unless a batch is full, it is given `patience` to gather.
    pub fn patient<C, F>(
        runtime: &Handle,
        patience: Duration,
        room: usize,
        max: usize,
        counts: Arc<Batch>,
        mut commit: C,
    ) -> Self
    where
        C: FnMut(Vec<T>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<R>, Error>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::unbounded_channel();
        let waiting = Gathering { waiting, patience, max: max.max(1) };
        runtime.spawn(work_off(waiting, counts, Box::new(move |batch| Box::pin(commit(batch)))));
        Self { queue, room: Arc::new(Semaphore::new(room.max(1))) }
    }

    /// Done when the commit that carried `thing` is. After an error it may or may not be committed.
    ///
    /// # Errors
    /// What the commit said; [`Error::Away`] when the runtime is gone or the commit panicked.
    pub async fn submit(&self, thing: T) -> Result<R, Error> {
        // The semaphore is never closed.
        let place = Arc::clone(&self.room).acquire_owned().await.map_err(|_| gone())?;
        let (told, hears) = oneshot::channel();
        self.queue.send((thing, Caller::Waits(told), Some(place))).map_err(|_| gone())?;
        hears.await.unwrap_or_else(|_| Err(gone()))
    }

    /// The same for whoever goes on at once, and takes no room: `then` is told, on the commits' runtime. As long as a commit is
    /// under way nobody is woken for it. A task of its own for each of ten thousand that come one after the other would take
    /// the processor away from who brings them, ten thousand times, to find that it has to wait.
    pub fn hand_over(&self, thing: T, then: impl FnOnce(Result<R, Error>) + Send + 'static) {
        if let Err(SendError((_, caller, _))) = self.queue.send((thing, Caller::WentOn(Box::new(then)), None)) {
            caller.tell(Err(gone()));
        }
    }
}

impl Store {
    /// Batches of this store's work, of at most `max`; at most `room` wait.
    pub(super) fn batches<T, R, W, F>(&self, room: usize, max: usize, work: W) -> Batcher<T, R>
    where
        T: Send + 'static,
        R: Send + 'static,
        W: Fn(Self, Vec<T>) -> F + Send + 'static,
        F: Future<Output = Result<Vec<R>, Error>> + Send + 'static,
    {
        let store = self.clone();
        Batcher::new(self.handle(), room, max, move |batch| work(store.clone(), batch))
    }
}

fn gone() -> Error {
    Error::Away("nobody commits any more".to_owned())
}

/// Parts a batch so that nobody is twice in one part, and comes in the order of the batch: each thing with its place there.
pub(super) fn one_each<T, K: Ord>(batch: Vec<T>, who: impl Fn(&T) -> K) -> Vec<Vec<(usize, T)>> {
    let mut parts = Vec::new();
    let mut left: Vec<(usize, T)> = batch.into_iter().enumerate().collect();
    while !left.is_empty() {
        let mut seen = BTreeSet::new();
        let (part, later) = left.into_iter().partition(|(_, thing)| seen.insert(who(thing)));
        parts.push(part);
        left = later;
    }
    parts
}

/// What waits for the next commit.
struct Gathering<T, R> {
    waiting: mpsc::UnboundedReceiver<Waiting<T, R>>,
    patience: Duration,
    max: usize,
}

impl<T, R> Gathering<T, R> {
    /// Puts the next batch into `batch`. False when nothing comes any more.
    async fn next(&mut self, batch: &mut Vec<Waiting<T, R>>) -> bool {
        if self.waiting.recv_many(batch, self.max).await == 0 {
            return false;
        }
        if !self.patience.is_zero() && batch.len() < self.max {
            tokio::time::sleep(self.patience).await;
            while batch.len() < self.max
                && let Ok(another) = self.waiting.try_recv()
            {
                batch.push(another);
            }
        }
        true
    }
}

async fn work_off<T, R>(mut gathering: Gathering<T, R>, counts: Arc<Batch>, mut commit: Commit<T, R>)
where
    T: Send + 'static,
    R: Send + 'static,
{
    let mut gathered = Vec::new();
    while gathering.next(&mut gathered).await {
        let taken = gathered.drain(..).map(|(thing, caller, _place)| (thing, caller));
        let (batch, callers): (Vec<T>, Vec<_>) = taken.unzip();
        let began = Instant::now();
        // In a task of its own: a panic in it must not end the batches that follow.
        let committed = tokio::spawn(commit(batch)).await.unwrap_or_else(|error| Err(Error::Away(error.to_string())));
        counts.seconds.took(began.elapsed());
        counts.sizes.counted(callers.len());
        if committed.is_err() {
            counts.failed.one();
        }
        let failed = |error| (0..callers.len()).map(|_| Err(Error::clone(&error))).collect();
        let results: Vec<_> = match committed {
            Ok(results) if results.len() == callers.len() => results.into_iter().map(Ok).collect(),
            Ok(results) => failed(Error::Broken(format!("{} results for {} things", results.len(), callers.len()))),
            Err(error) => failed(error),
        };
        for (caller, result) in callers.into_iter().zip(results) {
            caller.tell(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn while_one_commit_is_under_way_others_gather() {
        let (sizes, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Notify::new()));
        let (seen, gate) = (Arc::clone(&sizes), Arc::clone(&open));
        let batcher = Batcher::new(&Handle::current(), 16, 8, move |batch: Vec<u32>| {
            seen.lock().expect("no panic").push(batch.len());
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                Ok(batch.into_iter().map(|n| n * 10).collect())
            }
        });
        let callers: Vec<_> = (0..10)
            .map(|n| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.submit(n).await })
            })
            .collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        while sizes.lock().expect("no panic").iter().sum::<usize>() < 10 {
            open.notify_one();
            tokio::task::yield_now().await;
        }
        open.notify_one();
        for (n, caller) in callers.into_iter().enumerate() {
            assert_eq!(caller.await.expect("no panic"), Ok(u32::try_from(n).expect("small") * 10));
        }
        let sizes = sizes.lock().expect("no panic").clone();
        assert!(sizes.len() <= 4 && sizes.iter().all(|&size| size <= 8), "{sizes:?}");
    }

    #[tokio::test]
    async fn who_goes_on_is_told_what_became_of_it_and_takes_nobody_s_room() {
        let batcher = Batcher::new(&Handle::current(), 1, 8, |batch: Vec<u32>| async move {
            tokio::task::yield_now().await;
            if batch.contains(&40) { panic!("on purpose") } else { Ok(batch.into_iter().map(|n| n * 10).collect()) }
        });
        let (told, mut hears) = mpsc::unbounded_channel();
        for n in 0..100_u32 {
            let told = told.clone();
            batcher.hand_over(n, move |result| told.send((n, result)).expect("it hears"));
        }
        assert_eq!(batcher.submit(100).await, Ok(1_000), "there was room");
        for n in 0..100 {
            let (of, result) = hears.recv().await.expect("each is told");
            assert_eq!(of, n, "in their order");
            match result {
                Ok(result) => assert_eq!(result, n * 10),
                Err(error) => assert!((40..48).contains(&n) && matches!(error, Error::Away(_)), "{n}: {error}"),
            }
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_gathers_for_a_while_unless_it_is_a_full_batch() {
        for patience in [Duration::from_millis(999), Duration::from_secs(3600)] {
            let (told, mut hears) = mpsc::unbounded_channel();
            let batcher =
                Batcher::patient(&Handle::current(), patience, 16, 8, Arc::default(), move |batch: Vec<u32>| {
                    told.send(batch.len()).expect("it hears");
                    async move { Ok(batch) }
                });
            let come = |count| (0..count).for_each(|n| batcher.hand_over(n, |_| {}));
            if patience.as_secs() == 0 {
                come(1);
                tokio::time::sleep(Duration::from_millis(50)).await;
                come(2);
                assert_eq!(hears.recv().await, Some(3), "they went together");
            }
            come(9);
            assert_eq!(hears.recv().await, Some(8), "a full batch");
        }
    }

    #[tokio::test]
    async fn a_panic_of_whoever_is_told_is_nobody_else_s() {
        let batcher = Batcher::new(&Handle::current(), 4, 8, |batch: Vec<u32>| async move { Ok(batch) });
        batcher.hand_over(1, |_| panic!("on purpose"));
        let (then, hears) = oneshot::channel();
        batcher.hand_over(2, move |result| then.send(result).expect("it hears"));
        assert_eq!(hears.await.expect("told"), Ok(2), "of the same batch");
        assert_eq!(batcher.submit(3).await, Ok(3), "of a later one");
    }

    #[test]
    fn nobody_is_twice_in_one_part() {
        let parts = one_each(vec!["a1", "b1", "a2", "a3", "c1", "b2"], |thing| thing[..1].to_owned());
        assert_eq!(parts, [vec![(0, "a1"), (1, "b1"), (4, "c1")], vec![(2, "a2"), (5, "b2")], vec![(3, "a3")]]);
    }

    #[tokio::test]
    async fn a_commit_that_fails_or_panics_fails_its_own_callers_only() {
        let batcher = Batcher::new(&Handle::current(), 4, 1, |batch: Vec<u32>| async move {
            match batch[0] {
                0 => Err(Error::Fenced("late".to_owned())),
                1 => panic!("on purpose"),
                2 => Ok(vec![]),
                n => Ok(vec![n]),
            }
        });
        assert_eq!(batcher.submit(0).await, Err(Error::Fenced("late".to_owned())));
        assert!(matches!(batcher.submit(1).await, Err(Error::Away(_))));
        assert!(matches!(batcher.submit(2).await, Err(Error::Broken(_))));
        assert_eq!(batcher.submit(3).await, Ok(3));
    }
}
