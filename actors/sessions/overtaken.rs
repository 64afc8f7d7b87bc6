//! Looks for sessions whose terminal has gone elsewhere, and for nodes that died with theirs.

use std::sync::{Arc, PoisonError};

use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use wakala::id::{ClientId, Epoch};

use super::{Deps, Sessions};
use crate::session::End;

/// Sessions in one look for later connections.
const OVERTAKEN_PAGE: usize = 1000;

/// Sessions that other nodes have opened, in one look.
const OPENED_MAX: u32 = 10_000;

impl Sessions {
    /// Looks again and again for sessions of this node that a later connection has opened elsewhere.
    pub(super) fn look_for_overtaken(&self) {
        let Deps { store, options, .. } = &self.0.deps;
        let (sessions, every) = (Arc::downgrade(&self.0), options.overtaken_every);
        store.handle().spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade() else { break };
                let sessions = Self(sessions);
                sessions.end_overtaken().await;
                sessions.bury().await;
            }
        });
    }

    /// The same of those that other nodes open from now on, as soon as they have: a terminal that has moved is to be one
    /// connection, and its will and its presence are to say so. What this misses, the other one finds.
    pub(super) fn look_for_moved(&self) {
        let Deps { store, options, .. } = &self.0.deps;
        let (sessions, every) = (Arc::downgrade(&self.0), options.blocked_every);
        store.handle().spawn(async move {
            let mut after = None;
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade().map(Self) else { break };
                let limit = if after.is_some() { OPENED_MAX } else { 1 };
                let store = sessions.store();
                // While the database is away others say so.
                let Ok((opened, last)) =
                    store.opened_elsewhere(sessions.node(), after.unwrap_or(i64::MAX), limit).await
                else {
                    continue;
                };
                after = Some(last);
                for (client, epoch) in opened {
                    let here = sessions.epoch_of(&client);
                    if here < epoch && here > Epoch(0) {
                        sessions.end_if(&client, here);
                    }
                }
            }
        });
    }

    /// Ends the sessions of this node that a later connection has opened elsewhere. Their terminals are served here as far as
    /// they can tell, but their receipts are another node's to deliver, or nobody's when that connection is gone too.
    async fn end_overtaken(&self) {
        let held: Vec<(ClientId, Epoch)> = {
            let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
            connected.iter().map(|(terminal, each)| (terminal.clone(), each.epoch)).collect()
        };
        for page in held.chunks(OVERTAKEN_PAGE) {
            match self.0.deps.store.overtaken(page.to_vec()).await {
                Ok(overtaken) => overtaken.iter().for_each(|(terminal, epoch)| self.end_if(terminal, *epoch)),
                Err(error) => return tracing::warn!(%error, "could not look for sessions with a later connection"),
            }
        }
    }

    /// Says of the connections of nodes that died, and have not come back, that they are gone: their wills fall due.
    async fn bury(&self) {
        let Deps { store, node, clock, .. } = &self.0.deps;
        match store.bury_nodes(node, clock.now()).await {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                tracing::info!(count = ended.len(), "connections ended with another node's life");
                let over: Vec<ClientId> = ended.iter().filter(|cut| cut.over).map(|cut| cut.client.clone()).collect();
                self.0.router.over(&over);
                self.0.presence.died(&ended, clock.now());
                self.0.ended.notify_one();
            }
            Err(error) => tracing::warn!(%error, "could not look for nodes that died"),
        }
    }

    /// Ends a session if it is still the one of this epoch.
    fn end_if(&self, terminal: &ClientId, epoch: Epoch) {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = connected.get(terminal).filter(|present| present.epoch == epoch) {
            // A full mailbox: the next look finds it again.
            let _ = present.addr.try_send(End(Reason::SessionTakenOver, "the session was taken over at another node"));
        }
    }
}
