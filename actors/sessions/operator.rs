//! What an operator asks of the sessions that are connected here: how they stand, that one ends, what one says.

use std::ops::Bound;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use serde::{Deserialize, Serialize};
use wakala::id::{ClientId, Epoch};
use wakala::session::redacted::Whose;

use super::Sessions;
use crate::session::End;
use crate::session::about::{About, Describe};
use crate::store::presence::Connection;
use crate::store::standing::Action;
use crate::tap::Taps;

/// A session that is connected here, at this moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    pub client: String,
    pub epoch: i64,
    pub connection: Connection,
    /// Deliveries that wait for the client's acknowledgement.
    pub in_flight: usize,
    /// Deliveries that are in memory, to be sent.
    pub held: usize,
    /// How long the session outlives the connection, in seconds.
    pub expiry_s: u32,
}

/// How long sessions and the database may take to answer an operator.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(2);

const KICKED: &str = "an operator ended the connection";

impl Sessions {
    pub(crate) fn taps(&self) -> &Taps {
        &self.0.taps
    }

    /// What a client's topics may show. Where nobody can say who it is, as little as may be.
    pub(crate) async fn whose(&self, client: &ClientId) -> Whose {
        if self.open().anonymous {
            return Whose::Guest;
        }
        let standing = tokio::time::timeout(ANSWER_WITHIN, self.store().standing(client)).await;
        match standing {
            Ok(Ok(found)) if self.open().is_open() && !found.as_ref().is_some_and(|found| found.enrolled) => {
                Whose::Guest
            }
            _ => Whose::Terminal,
        }
    }

    /// Those connected here with a name that begins with `prefix`, after `after`, by name, at most `limit`. One that does not
    /// answer in time, or goes meanwhile, is left out.
    pub(crate) async fn here(&self, prefix: &str, after: &str, limit: usize) -> Vec<Here> {
        let page: Vec<_> = {
            let from = ClientId::new(after.max(prefix)).ok();
            let from = from.as_ref().map_or(Bound::Unbounded, Bound::Included);
            let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
            let each = connected.range::<ClientId, _>((from, Bound::Unbounded));
            // The first that does not begin like this is beyond all that do.
            each.skip_while(|(client, _)| client.as_str() <= after)
                .take_while(|(client, _)| client.as_str().starts_with(prefix))
                .take(limit)
                .map(|(client, each)| (client.clone(), each.epoch, each.addr.clone()))
                .collect()
        };
        let asked = page.into_iter().map(|(client, epoch, addr)| async move {
            let about = addr.send(Describe).await.ok()?;
            let About { connection, in_flight, held, expiry_s } = about;
            Some(Here { client: client.as_str().to_owned(), epoch: epoch.0, connection, in_flight, held, expiry_s })
        });
        let answers = asked.map(|asked| tokio::time::timeout(ANSWER_WITHIN, asked));
        futures_util::future::join_all(answers).await.into_iter().filter_map(|answer| answer.ok().flatten()).collect()
    }

    /// The same of one.
    pub(crate) async fn one_here(&self, client: &ClientId) -> Option<Here> {
        let name = client.as_str();
        self.here(name, "", 1).await.pop().filter(|here| here.client == name)
    }

    /// Ends a client's connection, such as when it was blocked. False when it is not connected here.
    #[must_use]
    pub fn kick(&self, client: &str) -> bool {
        self.tell(client, || End(Reason::AdministrativeAction, KICKED))
    }

    /// Ends a client's connection and records who wanted that. False when it is not connected here.
    pub(crate) fn kick_for(&self, client: &ClientId, who: String, why: String) -> bool {
        let epoch = self.epoch_of(client);
        if epoch == Epoch(0) || !self.kick(client.as_str()) {
            return false;
        }
        tracing::info!(%client, who, why, "an operator ended a connection");
        let (at, node) = (self.clock().now(), self.node().to_owned());
        let action = Action {
            at,
            what: "kick",
            client: client.clone(),
            epoch: Some(epoch),
            node,
            who,
            why,
            done_at: Some(at),
            outcome: Some("ended".to_owned()),
        };
        // It has happened, whether the database is there or not.
        let store = self.store().clone();
        store.handle().clone().spawn(async move {
            if let Err(error) = store.record_action(action).await {
                tracing::warn!(%error, "who ended a connection is in this log only");
            }
        });
        true
    }

    /// Looks again and again for connections of this node that an operator wants ended and could not tell this node so.
    pub(super) fn look_for_kicks(&self) {
        let (sessions, every) = (Arc::downgrade(&self.0), self.0.deps.options.blocked_every);
        self.store().handle().spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade().map(Self) else { break };
                // While the database is away others say so.
                let owed = sessions.store().kicks_owed(sessions.node()).await.unwrap_or_default();
                for (id, client, epoch) in owed {
                    let outcome = if sessions.epoch_of(&client) != epoch {
                        "the connection had ended"
                    } else if sessions.kick(client.as_str()) {
                        tracing::info!(%client, "an operator ended a connection, from another node");
                        "ended"
                    } else {
                        // A full mailbox: the next look finds it again.
                        continue;
                    };
                    let done = sessions.store().action_done(id, sessions.clock().now(), outcome.to_owned()).await;
                    if let Err(error) = done {
                        tracing::warn!(%client, %error, "it could not be stored that a connection was ended");
                    }
                }
            }
        });
    }
}
