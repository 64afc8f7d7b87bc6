//! Ends of connections that are on their way into the database. Who comes back at once waits for the end of its own earlier
//! connection: else that would count as taken over, its will be sent although the client took its leave, and a session go on
//! that was to end.
//!
//! An end is tried again until the database has an answer: nobody else says it of a node that lives. A later end of the same
//! client takes its place, for the database would find the earlier one fenced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wakala::id::{ClientId, Epoch};
use wakala::session::Change;

use super::{Inner, Sessions};
use crate::router::Router;
use crate::store::Error;
use crate::store::again::{Backoff, insist};
use crate::store::openings::WhenLocked;
use crate::store::sessions::{Closed, Ended, Left};
use crate::store::subscriptions::Changed;
use crate::store::words::Word;

/// Longer nobody waits: somebody else may have the session locked, and then this end comes too late.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Longer a node that stops waits for nobody.
const ALL_MAX: Duration = Duration::from_secs(5);

/// Who is leaving. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving(Arc<Mutex<BTreeMap<ClientId, Waits>>>);

/// The end that is waited for.
#[derive(Clone, Debug)]
struct Waits {
    epoch: Epoch,
    stored: watch::Receiver<()>,
}

/// Held until the end is stored, or cannot be.
#[derive(Debug)]
pub(super) struct Leaves {
    leaving: Leaving,
    client: ClientId,
    epoch: Epoch,
    /// Closed with this.
    _stored: watch::Sender<()>,
}

impl Leaving {
    /// A client leaves. Of two ends of one client that of the later connection is waited for: the other changes nothing.
    pub(super) fn leaves(&self, client: &ClientId, epoch: Epoch) -> Leaves {
        let (told, stored) = watch::channel(());
        let mut all = self.all();
        if all.get(client).is_none_or(|waits| waits.epoch < epoch) {
            all.insert(client.clone(), Waits { epoch, stored });
        }
        drop(all);
        Leaves { leaving: self.clone(), client: client.clone(), epoch, _stored: told }
    }

    /// Done when the end of this client's connection is stored.
    pub(super) async fn left(&self, client: &ClientId) {
        let leaving = self.all().get(client).cloned();
        if let Some(Waits { mut stored, .. }) = leaving {
            let _ = tokio::time::timeout(WAIT_MAX, stored.changed()).await;
        }
    }

    /// Done when the ends of all who are leaving are stored.
    pub(super) async fn all_left(&self) {
        loop {
            let Some(client) = self.all().keys().next().cloned() else { return };
            self.left(&client).await;
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ClientId, Waits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held until the end is stored, or cannot be, with what is left over.
struct Ending {
    leaves: Leaves,
    router: Router,
    /// With the connection ends a session that was kept: other nodes may know it.
    over: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.router.settled(&self.leaves.client, self.leaves.epoch);
    }
}

impl Sessions {
    /// Has the end of a connection stored, and what the client has changed that is not stored yet, each by itself: an end that
    /// comes late is not believed, and the will is sent. It is the database's to keep trying: whoever dropped is gone. `over` is
    /// whether a session that was kept ends with it.
    pub(crate) fn ended(&self, ended: Ended, change: Option<Change>, over: bool) {
        let leaves = self.0.leaving.leaves(&ended.client, ended.epoch);
        let ending = Arc::new(Ending { leaves, router: self.router().clone(), over });
        if let Some(change) = change {
            let changed = Changed { client: ended.client.clone(), epoch: ended.epoch, change };
            self.0.deps.store.handle().spawn(self.clone().left_over(changed, Arc::clone(&ending)));
        }
        Arc::clone(&self.0).ended(ended, ending, Backoff::new());
    }

    async fn left_over(self, changed: Changed, ending: Arc<Ending>) {
        let stored = insist(|| self.changes().store(changed.clone())).await;
        self.tell_changed(&changed.client).await;
        match stored {
            // Who came back asks for it again: it was not acknowledged.
            Ok(()) | Err(Error::Fenced(_)) => {}
            Err(error) => {
                let client = &ending.leaves.client;
                tracing::warn!(%client, %error, "what a client subscribed to before it left could not be stored");
            }
        }
    }

    /// Done when the end of a client's connection to this node is stored, if it has just ended.
    pub(crate) async fn left(&self, client: &ClientId) {
        self.0.leaving.left(client).await;
    }

    /// Done when all connections that have ended are stored as ended, or the database does not do it.
    pub async fn all_left(&self) {
        if tokio::time::timeout(ALL_MAX, self.0.leaving.all_left()).await.is_err() {
            tracing::warn!(within = ?ALL_MAX, "not all ends of connections could be stored: those count as cut");
        }
    }
}

impl Inner {
    fn ended(self: Arc<Self>, ended: Ended, ending: Arc<Ending>, backoff: Backoff) {
        let inner = Arc::clone(&self);
        self.ends.hand_over(ended.clone(), move |stored| match stored {
            Ok(Closed::Stored) => {
                if ended.will == Left::Will {
                    inner.ended.notify_one();
                }
                if ending.over {
                    inner.neighbours.tell(|| Word::Changed(ended.client));
                }
            }
            Ok(Closed::Fenced) => {
                drop(ending);
                inner.overtaken(ended.client);
            }
            Ok(Closed::Locked) => inner.again(ended, ending, backoff),
            Err(Error::Away(why)) => {
                let client = &ending.leaves.client;
                tracing::debug!(%client, why, "the end of a connection waits for the database");
                inner.again(ended, ending, backoff);
            }
            // If it is lost, the session counts as cut: what was in flight goes out with DUP.
            Err(error) => {
                let client = &ending.leaves.client;
                tracing::warn!(%client, %error, "the end of a connection could not be stored");
            }
        });
    }

    /// Tries once more, after a while. A row that somebody has locked must not be in the way of the others then.
    fn again(self: Arc<Self>, ended: Ended, ending: Arc<Ending>, mut backoff: Backoff) {
        let (inner, handle) = (Arc::downgrade(&self), self.deps.store.handle().clone());
        handle.spawn(async move {
            backoff.wait().await;
            if let Some(inner) = inner.upgrade().filter(|_| ending.leaves.is_waited_for()) {
                inner.ended(Ended { when_locked: WhenLocked::PassOver, ..ended }, ending, backoff);
            }
        });
    }
}

impl Leaves {
    /// That no later connection of the client has ended since.
    fn is_waited_for(&self) -> bool {
        self.leaving.all().get(&self.client).is_some_and(|waits| waits.epoch == self.epoch)
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut all = self.leaving.all();
        if all.get(&self.client).is_some_and(|waits| waits.epoch == self.epoch) {
            all.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_back_waits_for_the_end_of_its_own_connection() {
        let (leaving, a, b) =
            (Leaving::default(), ClientId::new("a").expect("short"), ClientId::new("b").expect("short"));
        let (first, second) = (leaving.leaves(&a, Epoch(1)), leaving.leaves(&a, Epoch(2)));
        leaving.left(&b).await;
        let waits = tokio::spawn({
            let (leaving, a) = (leaving.clone(), a.clone());
            async move { leaving.left(&a).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "the later end is not stored");
        // One that was taken over ends later than its successor.
        let late = leaving.leaves(&a, Epoch(1));
        assert!(second.is_waited_for() && !late.is_waited_for());
        drop(second);
        waits.await.expect("no panic");
        assert!(leaving.all().is_empty(), "nothing is kept");
        leaving.all_left().await;
        let (first, second) = (leaving.leaves(&a, Epoch(3)), leaving.leaves(&b, Epoch(1)));
        let waits = tokio::spawn({
            let leaving = leaving.clone();
            async move { leaving.all_left().await }
        });
        for each in [first, second] {
            tokio::task::yield_now().await;
            assert!(!waits.is_finished(), "of one the end is not stored");
            drop(each);
        }
        waits.await.expect("no panic");
        // Somebody who never gets through keeps nobody out.
        let _stuck = leaving.leaves(&a, Epoch(4));
        leaving.left(&a).await;
    }
}
