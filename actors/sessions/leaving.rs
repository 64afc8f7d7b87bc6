//! Ends of connections that are on their way into the database. Who comes back at once waits for the end of its own earlier
//! connection: else that would count as taken over, its will be sent although the client took its leave, and a session go on
//! that was to end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wakala::id::ClientId;
use wakala::session::Change;

use super::{Inner, Sessions};
use crate::store::Error;
use crate::store::again::insist;
use crate::store::sessions::{Ended, Left};
use crate::store::subscriptions::Changed;

/// Longer nobody waits: somebody else may have the session locked, and then this end comes too late.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Longer a node that stops waits for nobody.
const ALL_MAX: Duration = Duration::from_secs(5);

/// Who is leaving. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaving(Arc<Mutex<BTreeMap<ClientId, watch::Receiver<()>>>>);

/// Held until the end is stored, or cannot be.
#[derive(Debug)]
pub(super) struct Leaves {
    leaving: Leaving,
    client: ClientId,
    /// Closed with this.
    stored: watch::Sender<()>,
}

impl Leaving {
    /// A client leaves; of two ends of one client the later is waited for, which is stored last.
    pub(super) fn leaves(&self, client: &ClientId) -> Leaves {
        let (stored, hears) = watch::channel(());
        self.all().insert(client.clone(), hears);
        Leaves { leaving: self.clone(), client: client.clone(), stored }
    }

    /// Done when the end of this client's connection is stored.
    pub(super) async fn left(&self, client: &ClientId) {
        let leaving = self.all().get(client).cloned();
        if let Some(mut stored) = leaving {
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

    fn all(&self) -> MutexGuard<'_, BTreeMap<ClientId, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Has the end of a connection stored, and before it what the client has changed that is not stored yet. It is the
    /// database's to keep trying: whoever dropped is gone.
    pub(crate) fn ended(&self, ended: Ended, change: Option<Change>) {
        let (inner, leaves) = (Arc::clone(&self.0), self.0.leaving.leaves(&ended.client));
        let Some(change) = change else { return inner.ended(ended, leaves) };
        self.0.deps.store.handle().spawn(async move {
            let changed = Changed { client: ended.client.clone(), epoch: ended.epoch, change };
            let stored = insist(|| inner.changes.clone().store(changed.clone())).await;
            Self(Arc::clone(&inner)).tell_changed(&changed.client).await;
            match stored {
                // Who came back asks for it again: it was not acknowledged.
                Ok(()) | Err(Error::Fenced(_)) => {}
                Err(error) => {
                    let client = leaves.client();
                    tracing::warn!(%client, %error, "what a client subscribed to before it left could not be stored");
                }
            }
            inner.ended(ended, leaves);
        });
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
    fn ended(&self, ended: Ended, leaves: Leaves) {
        let noticed = (ended.will == Left::Will).then(|| Arc::clone(&self.ended));
        self.ends.hand_over(ended, move |stored| {
            match stored {
                Ok(_) => noticed.iter().for_each(|noticed| noticed.notify_one()),
                // If it is lost, the session counts as cut: what was in flight goes out with DUP.
                Err(error) => {
                    let client = leaves.client();
                    tracing::warn!(%client, %error, "the end of a connection could not be stored");
                }
            }
        });
    }
}

impl Leaves {
    pub(super) fn client(&self) -> &ClientId {
        &self.client
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut all = self.leaving.all();
        if all.get(&self.client).is_some_and(|hears| hears.same_channel(&self.stored.subscribe())) {
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
        let (first, second) = (leaving.leaves(&a), leaving.leaves(&a));
        leaving.left(&b).await;
        let waits = tokio::spawn({
            let (leaving, a) = (leaving.clone(), a.clone());
            async move { leaving.left(&a).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "the later end is not stored");
        drop(second);
        waits.await.expect("no panic");
        assert!(leaving.all().is_empty(), "nothing is kept");
        leaving.all_left().await;
        let (first, second) = (leaving.leaves(&a), leaving.leaves(&b));
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
        let _stuck = leaving.leaves(&a);
        leaving.left(&a).await;
    }
}
