//! Ends of connections that are on their way into the database. Who comes back at once waits for the end of its own earlier
//! connection: else that would count as taken over, its will be sent although the client took its leave, and a session go on
//! that was to end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wakala::id::ClientId;

/// Longer nobody waits: somebody else may have the session locked, and then this end comes too late.
const WAIT_MAX: Duration = Duration::from_secs(1);

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
