//! Looks for sessions whose terminal may no longer be connected: its certificate is not good any more, or it was blocked.
//!
//! Whoever revokes or blocks means now, and may do so at any node or in the database itself. So nothing is waited for:
//! each look is over all sessions of this node, and one that could not be told to go is found by the next.

use std::sync::Arc;

use actix::prelude::*;
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use rustls::pki_types::UnixTime;
use wakala::id::{ClientId, TerminalId};

use super::Sessions;
use crate::listener::tls::{Papers, Trust};
use crate::session::{End, Session};

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

    /// Looks again and again for terminals that were blocked while they are connected here.
    pub(super) fn look_for_blocked(&self) {
        let (store, options) = (self.store(), &self.0.deps.options);
        let (sessions, every) = (Arc::downgrade(&self.0), options.blocked_every);
        store.handle().spawn(async move {
            let mut away = false;
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade().map(Self) else { break };
                match sessions.store().blocked_and_connected(sessions.node()).await {
                    Ok(blocked) => {
                        away = false;
                        sessions.end_blocked(&blocked);
                    }
                    // Once: it is asked often, and whoever sees to the database need not read it as often.
                    Err(error) if !away => {
                        away = true;
                        tracing::warn!(%error, "could not look for terminals that were blocked; it is tried again and again");
                    }
                    Err(_) => {}
                }
            }
        });
    }

    fn end_blocked(&self, blocked: &[TerminalId]) {
        for terminal in blocked {
            // Not here when it has just gone, or is just coming: then the next look finds it.
            let client = ClientId::from(terminal);
            if let Some(addr) = self.addr(&client) {
                end(&client, &addr, "the terminal is blocked");
            }
        }
    }
}

fn end(client: &ClientId, addr: &Addr<Session>, why: &'static str) {
    // A full mailbox: the next look finds it again.
    if addr.try_send(End(Reason::NotAuthorized, why)).is_ok() {
        tracing::info!(%client, why, "a session was ended");
    }
}
