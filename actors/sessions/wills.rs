//! Wills that are due are sent, of connections to this node, and to nodes that are dead.

use std::sync::Arc;

use wakala::topics::{is_servers, matches};

use super::{Deps, Sessions};
use crate::store::Error;
use crate::store::publications::{Publication, Stored};

/// Wills in one look for those that are due.
const WILLS_PAGE: u32 = 100;

impl Sessions {
    /// Sends wills that are due, again and again.
    pub(super) fn send_wills(&self) {
        let Deps { store, open, .. } = &self.0.deps;
        let (sessions, every) = (Arc::downgrade(&self.0), open.wills_every);
        let ended = Arc::clone(&self.0.ended);
        store.handle().spawn(async move {
            loop {
                let _ = tokio::time::timeout(every, ended.notified()).await;
                let Some(sessions) = sessions.upgrade() else { break };
                if let Err(error) = Self(sessions).send_due_wills().await {
                    tracing::warn!(%error, "wills wait for the database");
                }
            }
        });
    }

    async fn send_due_wills(&self) -> Result<(), Error> {
        let Deps { store, clock, node, .. } = &self.0.deps;
        let router = &self.0.router;
        loop {
            let due = store.wills_due(node, clock.now(), WILLS_PAGE).await?;
            let all = due.len() < usize::try_from(WILLS_PAGE).unwrap_or(usize::MAX);
            for will in due {
                let message = Arc::new(will.message);
                let closed = self.0.deps.open.closed.iter().any(|closed| matches(closed, &message.topic));
                // As it may have become since its client connected.
                let nowhere = closed || is_servers(&message.topic);
                let publication = if nowhere {
                    tracing::info!(client = %will.client, topic = &*message.topic, "a will went nowhere: a closed topic");
                    Publication::at(clock.now())
                } else {
                    router.route_will(&will.client, &message, clock.now())
                };
                let of = Some((will.client, will.epoch));
                let stored = match router.store(Publication { will: of.clone(), ..publication }).await {
                    Err(error @ Error::Broken(_)) => {
                        // It would be the first of those that are due for ever.
                        tracing::error!(client = ?of.as_ref().map(|(client, _)| client), %error, "a will is given up");
                        router.store(Publication { will: of, ..Publication::at(clock.now()) }).await?;
                        continue;
                    }
                    stored => stored?,
                };
                // Else another node has sent it meanwhile.
                if !nowhere && stored != Stored::Before {
                    store.metrics().wills.one();
                }
            }
            if all {
                return Ok(());
            }
        }
    }
}
