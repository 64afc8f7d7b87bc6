//! Looks for sessions that may no longer be connected: whose certificate is not good any more, or who is banned.
//!
//! Whoever revokes or bans means now, and may do so at any node or in the database itself. So nothing is waited for:
//! each look is over all sessions of this node, and one that could not be told to go is found by the next. The bans in
//! force are in memory, so that a CONNECT asks nothing for them; what is looked at each time is whether they are the same.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use actix::prelude::*;
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use rustls::pki_types::UnixTime;
use wakala::ban::Bans;
use wakala::id::ClientId;

use super::Sessions;
use super::bounds::{Counts, Report};
use crate::listener::tls::{Papers, Trust};
use crate::session::lease::calendar;
use crate::session::{End, Session};
use crate::store::Error;
use crate::store::bans::InForce;

/// The authorities have changed: the session is to have them vouch for its certificate, or to end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Vouch {
    pub trust: Arc<Trust>,
    pub papers: Arc<Papers>,
}

impl Sessions {
    /// Ends the sessions whose certificate is revoked or has expired, and has those asked again whose authorities have
    /// changed.
    pub(crate) fn end_without_papers(&self, trust: &Arc<Trust>) {
        let now = UnixTime::now();
        self.each_with_papers(|terminal, papers, addr| {
            if let Some(objection) = trust.objection(papers, now) {
                end(terminal, addr, objection.text());
            } else if trust.must_vouch_for(papers) {
                // It has the whole certificate, on its worker. A full mailbox: the next look asks again.
                let _ = addr.try_send(Vouch { trust: Arc::clone(trust), papers: Arc::clone(papers) });
            }
        });
    }

    /// Shows the sessions that came with a certificate, one by one.
    fn each_with_papers(&self, mut show: impl FnMut(&ClientId, &Arc<Papers>, &Addr<Session>)) {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        for (client, each) in connected.iter() {
            if let Some(papers) = &each.papers {
                show(client, papers, &each.addr);
            }
        }
    }

    /// The bans in force, as of the latest look. Until when is by the calendar, as whoever bans has it.
    pub(crate) fn bans(&self) -> Arc<Bans> {
        Arc::clone(&self.0.barred.read().bans)
    }

    /// What was counted of who wanted too much.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.0.barred.counts
    }

    /// The counts at this moment.
    #[must_use]
    pub fn bounds_report(&self) -> Report {
        self.counts().report(self.bans().len())
    }

    /// Looks at once which bans are in force, and ends the sessions that one names; gives how many.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn look_for_bans(&self) -> Result<usize, Error> {
        let (now, max) = (calendar(), self.0.deps.options.bounds.bans_max);
        let known = self.0.barred.read().known.clone();
        if let Some(InForce { all: known, bans, left_out }) = self.store().bans_in_force(now, known, max).await? {
            let bans = Arc::new(Bans::of(bans));
            tracing::info!(count = bans.len(), "bans in force");
            if left_out > 0 {
                tracing::error!(left_out, max, "more bans than sessions.bounds.bans_max: the oldest keep nobody out");
            }
            *self.0.barred.latest.write().unwrap_or_else(PoisonError::into_inner) = Latest { known, bans };
        }
        Ok(self.end_banned())
    }

    /// Looks again and again, for bans that were added or lifted wherever that was done.
    pub(super) async fn look_again_for_bans(&self) {
        let mut away = false;
        if let Err(error) = self.look_for_bans().await {
            away = true;
            tracing::warn!(%error, "nobody is banned until the database can be asked");
        }
        let (store, options) = (self.store(), &self.0.deps.options);
        let (sessions, every) = (Arc::downgrade(&self.0), options.blocked_every);
        store.handle().spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade().map(Self) else { break };
                match sessions.look_for_bans().await {
                    Ok(_) => away = false,
                    // Once: it is asked often, and whoever sees to the database need not read it as often.
                    Err(error) if !away => {
                        away = true;
                        tracing::warn!(%error, "could not look for bans; those that are known stay, and it is tried again and again");
                    }
                    Err(_) => {}
                }
            }
        });
    }

    fn end_banned(&self) -> usize {
        let (bans, now) = (self.bans(), calendar());
        if bans.is_empty() {
            return 0;
        }
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        let named = connected
            .iter()
            .filter_map(|(client, each)| Some((client, &each.addr, bans.on(client.as_str(), &each.traits, now)?)));
        let mut ended = 0;
        for (client, addr, ban) in named {
            // 0x8A is for a CONNACK alone (MQTT 5, table 2-6). A full mailbox: the next look finds it again.
            if addr.try_send(End(Reason::AdministrativeAction, "banned")).is_ok() {
                tracing::info!(%client, ban, "a session was ended: it is banned");
                ended += 1;
            }
        }
        self.counts().ended.add(ended);
        usize::try_from(ended).unwrap_or(usize::MAX)
    }
}

/// What is known of bans.
#[derive(Debug, Default)]
pub(super) struct Barred {
    latest: RwLock<Latest>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Latest {
    /// What they came to in the database.
    known: String,
    bans: Arc<Bans>,
}

impl Barred {
    fn read(&self) -> RwLockReadGuard<'_, Latest> {
        self.latest.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end(client: &ClientId, addr: &Addr<Session>, why: &'static str) {
    // A full mailbox: the next look finds it again.
    if addr.try_send(End(Reason::NotAuthorized, why)).is_ok() {
        tracing::info!(%client, why, "a session was ended");
    }
}
