//! Looks for sessions whose terminal has gone elsewhere, and for nodes that died with theirs. Who is taken for dead and lives finds
//! that out too.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use wakala::id::{ClientId, Epoch};

use super::{Deps, Sessions};
use crate::session::End;
use crate::store::Error;
use crate::store::sessions::{Held, Lost};

/// Sessions in one look for those that are lost.
const LOST_PAGE: usize = 1000;

/// Sessions that other nodes have opened, in one look.
const OPENED_MAX: u32 = 10_000;

impl Sessions {
    /// Looks again and again for sessions of this node that are lost, and for nodes that are dead.
    pub(super) fn look_for_overtaken(&self) {
        let Deps { store, options, .. } = &self.0.deps;
        let (sessions, every) = (Arc::downgrade(&self.0), options.overtaken_every);
        store.handle().spawn(async move {
            let mut missed = Missed::default();
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade() else { break };
                let sessions = Self(sessions);
                sessions.end_lost().await;
                if let Err(error) = sessions.bury(&mut missed).await {
                    tracing::warn!(%error, "could not look for nodes that died");
                    // While the database was away nobody could hold a name.
                    missed = Missed::default();
                }
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
                        sessions.end_if(&client, here, Lost::Overtaken);
                    }
                }
            }
        });
    }

    /// Ends the sessions of this node that a later connection has opened elsewhere: their terminals are served here as far as
    /// they can tell, but their receipts are another node's to deliver, or nobody's when that connection is gone too. And
    /// those of which it was told that they died with this node: their wills are sent, and in one epoch nothing is after the end.
    /// Their clients begin a later one.
    async fn end_lost(&self) {
        let held: Vec<Held> = {
            let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
            let held = connected.iter();
            held.map(|(client, each)| Held { client: client.clone(), epoch: each.epoch, stored: each.stored }).collect()
        };
        let mut buried = 0;
        for page in held.chunks(LOST_PAGE) {
            match self.0.deps.store.lost(page.to_vec()).await {
                Ok(lost) => {
                    for (Held { client, epoch, .. }, why) in lost {
                        buried += usize::from(why == Lost::Buried);
                        self.end_if(&client, epoch, why);
                    }
                }
                Err(error) => return tracing::warn!(%error, "could not look for sessions with a later connection"),
            }
        }
        if buried > 0 {
            tracing::warn!(
                count = buried,
                "connections are ended of which another node said that they died with this one"
            );
        }
    }

    /// Says of the connections of nodes that died, and have not come back, that they are gone: their wills fall due.
    async fn bury(&self, missed: &mut Missed) -> Result<(), Error> {
        let Deps { store, node, clock, options, .. } = &self.0.deps;
        let missing = store.missing_nodes(node).await?;
        for dead in missed.dead(missing, Instant::now(), options.dead_after) {
            let ended = store.bury(&dead, clock.now()).await?;
            self.0.ended.notify_one();
            if ended.is_empty() {
                continue;
            }
            tracing::info!(node = dead, count = ended.len(), "connections ended with another node's life");
            let over: Vec<ClientId> = ended.iter().filter(|cut| cut.over).map(|cut| cut.client.clone()).collect();
            self.0.router.over(&over);
            self.0.presence.died(&ended, clock.now());
        }
        Ok(())
    }

    /// Ends a session if it is still the one of this epoch.
    fn end_if(&self, terminal: &ClientId, epoch: Epoch, why: Lost) {
        let end = match why {
            Lost::Overtaken => End(Reason::SessionTakenOver, "the session was taken over at another node"),
            Lost::Buried => End(Reason::UnspecifiedError, "its node was taken for dead"),
        };
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = connected.get(terminal).filter(|present| present.epoch == epoch) {
            // A full mailbox: the next look finds it again.
            let _ = present.addr.try_send(end);
        }
    }
}

/// Nodes whose names were free at every look since then. A node that lives is without its name for a moment too, when Postgres
/// was started again or the connection broke that held it.
#[derive(Debug, Default)]
struct Missed(BTreeMap<String, Instant>);

impl Missed {
    /// These are missing now. Gives those that have been for so long.
    fn dead(&mut self, missing: Vec<String>, now: Instant, patience: Duration) -> Vec<String> {
        self.0.retain(|node, _| missing.contains(node));
        let mut dead = missing;
        dead.retain(|node| now.duration_since(*self.0.entry(node.clone()).or_insert(now)) >= patience);
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_missing_at_every_look_for_long_enough_is_dead() {
        let (mut missed, began, patience) = (Missed::default(), Instant::now(), Duration::from_secs(15));
        let mut dead = |second, missing: &[&str]| {
            let missing = missing.iter().map(|&node| node.to_owned()).collect();
            missed.dead(missing, began + Duration::from_secs(second), patience)
        };
        assert!(dead(0, &["a", "b"]).is_empty() && dead(5, &["a", "b"]).is_empty());
        // It has its name again, and is missed anew.
        assert!(dead(10, &["a"]).is_empty());
        assert_eq!(dead(15, &["a", "b"]), ["a"]);
        assert!(dead(29, &["b"]).is_empty());
        assert_eq!(dead(30, &["b"]), ["b"]);
    }
}
