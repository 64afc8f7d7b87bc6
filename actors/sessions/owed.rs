//! What is retained for new subscriptions: a page at a time, into a session or, for one that is kept, into its queue.
//!
//! A session takes all of it before anything that was published later. Into a queue the first page goes when the subscription
//! is read, before anything that is published then; of what is beyond it, a message that was published meanwhile at the same
//! topic and was not to be retained may come first. What is not in the queue when the node dies does not come.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use wakala::id::{ClientId, Epoch};
use wakala::session::{Addressed, Subscription};
use wakala::time::Time;

use super::Sessions;
use crate::router::owed::{Behind, Owed, Share};
use crate::store::publications::{Publication, Recipient};

/// What is owed to sessions that are kept, and is not stored yet. Each has one task that stores it, a page in a commit.
pub(super) type Storing = Mutex<BTreeMap<ClientId, VecDeque<(Epoch, Owed)>>>;

/// What is looked at in one turn, of topics and of clients that are present; then others have theirs.
pub(crate) const LOOKS_MAX: u16 = 256;

impl Sessions {
    /// A guest subscribes: messages that match are for it from now on. Gives what it is owed of what is retained, and of
    /// others' presence.
    pub(crate) fn subscribe(
        &self,
        client: &ClientId,
        epoch: Epoch,
        new: &Subscription,
        existed: bool,
    ) -> [Option<Owed>; 2] {
        [self.0.router.subscribe(client, epoch, new, existed), self.0.presence.owed(client, new, existed)]
    }

    /// The next page of what is owed, out of so many looks.
    pub(crate) fn page(&self, owed: &mut Owed, looks: &mut u16, now: Time) -> Vec<Addressed> {
        let mut share = Share { looks: *looks, bytes: self.0.limits.direct_bytes_max.get() };
        let mut page = match owed.behind() {
            Behind::Retained(_) | Behind::Announced(_) => self.0.router.page(owed, &mut share, now),
            Behind::Present(_) => self.0.presence.page(owed, &mut share, now),
        };
        *looks = share.looks;
        // What was retained before its topic was closed, and what a wider filter asks for besides.
        page.retain(|addressed| !self.0.router.is_closed(&addressed.message.topic));
        page
    }

    /// Has what is owed to a session that is kept stored for it, whether its client stays or not.
    pub(crate) fn store_owed(&self, client: &ClientId, epoch: Epoch, owed: Owed) {
        let mut storing = self.0.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stored = storing.contains_key(client);
        let all = storing.entry(client.clone()).or_default();
        all.retain(|(_, earlier)| !earlier.is_in(&owed));
        all.push_back((epoch, owed));
        drop(storing);
        if !is_stored {
            let (sessions, client) = (self.clone(), client.clone());
            self.0.deps.store.handle().spawn(async move {
                while let Some(page) = sessions.next_to_store(&client) {
                    if page.to.is_empty() {
                        tokio::task::yield_now().await;
                    } else if let Err(error) = sessions.0.router.store(page).await {
                        tracing::error!(%client, %error, "what was retained could not be queued");
                    }
                }
            });
        }
    }

    /// None when nothing is owed any more.
    fn next_to_store(&self, client: &ClientId) -> Option<Publication> {
        let mut storing = self.0.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let all = storing.get_mut(client)?;
        // It may have unsubscribed since, or its session may be over.
        while all.front().is_some_and(|(_, owed)| owed.is_done() || !self.0.router.keeps_for(client, owed.filter())) {
            all.pop_front();
        }
        let Some((epoch, owed)) = all.front_mut() else {
            storing.remove(client);
            return None;
        };
        let now = self.0.deps.clock.now();
        let mut looks = LOOKS_MAX;
        let page = self.page(owed, &mut looks, now);
        Some(queued(client, *epoch, page, now))
    }
}

/// Messages that are all for one client's queue.
pub(crate) fn queued(client: &ClientId, epoch: Epoch, page: Vec<Addressed>, now: Time) -> Publication {
    let to = page.into_iter().map(|addressed| Recipient { client: client.clone(), epoch, addressed });
    Publication { to: to.collect(), ..Publication::at(now) }
}
