//! What a client published, on its way out of its session: into the log, to subscribers, into the database.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::{DisconnectReasonCode as Reason, QoS};
use wakala::message::Message as Published;
use wakala::session::{Addressed, Event};
use wakala::time::Time;

use super::inbox::Arrival;
use super::{Done, End, RETRY_MAX, RETRY_MIN, Session, TAKEN_OVER};
use crate::sessions::{Away, Sessions};
use crate::store::publications::{Mark, Publication, Remembered};
use crate::terminal::Who;

impl Session {
    /// Has a request admitted and logged, however long the log is away; the PUBACK waits. The work outlives this actor,
    /// so that a request half-way is not left there; only the trying again ends with the connection.
    pub(super) fn admit(&self, ticket: u32, payload: Bytes, remember: Option<NonZeroU16>, ctx: &mut Context<Self>) {
        // A guest's rights lead nowhere here.
        let Who::Terminal(enrolled) = &self.who else { return };
        let (sessions, enrolled, addr) = (self.sessions.clone(), Arc::clone(enrolled), ctx.address());
        let (client, epoch, at) = (self.client(), self.epoch, self.now());
        let intake = sessions.intake();
        tokio::task::spawn_local(async move {
            let mut wait = RETRY_MIN;
            while let Err(Away(why)) = intake.take(&enrolled, payload.clone()).await {
                if !addr.connected() {
                    return;
                }
                tracing::warn!(terminal = %enrolled.terminal, why, ?wait, "a request waits; its PUBACK is withheld");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            if let Some(packet_id) = remember {
                let remember = Some(Remembered { client, epoch, packet_id });
                let publication = Publication { remember, ..Publication::at(at) };
                store_publication(&sessions, publication, &addr).await;
            }
            // Nobody is left to acknowledge it when the connection is gone; the terminal sends it again.
            let _ = addr.send(Done(Event::Durable { ticket })).await;
        });
    }

    /// Sends a message on its way. Where nothing of it is to be stored, it is as durable as it will be.
    pub(super) fn route(
        &mut self,
        ticket: u32,
        message: &Arc<Published>,
        remember: Option<NonZeroU16>,
        now: Time,
        ctx: &mut Context<Self>,
    ) -> Option<Event> {
        let client = self.twin.client();
        let remember = remember.map(|packet_id| Remembered { client: client.clone(), epoch: self.epoch, packet_id });
        let Some(publication) = self.sessions.router().route(Some(client), message, remember, now) else {
            return Some(Event::Durable { ticket });
        };
        let (sessions, addr, began) = (self.sessions.clone(), ctx.address(), Instant::now());
        tokio::task::spawn_local(async move {
            if store_publication(&sessions, publication, &addr).await {
                sessions.store().metrics().durable_publishes.0.took(began.elapsed());
                let _ = addr.send(Done(Event::Durable { ticket })).await;
            }
        });
        None
    }

    /// What was retained before a subscription: stored for a session that is kept, like what comes after it.
    pub(super) fn deliver_retained(&mut self, retained: Vec<Addressed>, now: Time, ctx: &mut Context<Self>) {
        if retained.is_empty() {
            return;
        }
        let kept = self.sessions.router().keeps(self.twin.client());
        let (stored, direct): (Vec<_>, Vec<_>) = retained
            .into_iter()
            .partition(|addressed| kept && addressed.qos.min(addressed.message.qos) != QoS::AtMostOnce);
        self.sessions.store().metrics().direct.addressed.add(u64::try_from(direct.len()).unwrap_or(u64::MAX));
        self.arrivals.get_or_insert_default().extend(direct.into_iter().map(Arrival::Message));
        self.wake();
        if !stored.is_empty() {
            let to = stored.into_iter().map(|addressed| (self.client(), addressed)).collect();
            let publication = Publication { to, ..Publication::at(now) };
            let (sessions, addr) = (self.sessions.clone(), ctx.address());
            tokio::task::spawn_local(async move { store_publication(&sessions, publication, &addr).await });
        }
    }

    /// Stores what the client has done with a packet of QoS 2, however long the database is away.
    pub(super) fn mark(&self, mark: Mark, then: Event, ctx: &mut Context<Self>) {
        let (marks, addr) = (self.sessions.marks(), ctx.address());
        tokio::task::spawn_local(async move {
            let mut wait = RETRY_MIN;
            loop {
                match marks.submit(mark.clone()).await {
                    Ok(true) => {
                        let _ = addr.send(Done(then)).await;
                        return;
                    }
                    Ok(false) => {
                        let _ = addr.send(End(Reason::SessionTakenOver, TAKEN_OVER)).await;
                        return;
                    }
                    Err(_) if !addr.connected() => return,
                    Err(error) => {
                        tracing::debug!(%error, "a mark of QoS 2 waits");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            }
        });
    }
}

/// False when it was not stored: then its publisher is not told that it was.
async fn store_publication(sessions: &Sessions, publication: Publication, addr: &Addr<Session>) -> bool {
    match sessions.router().store(publication).await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, "a publish could not be stored");
            let _ = addr.send(End(Reason::UnspecifiedError, "the message could not be stored")).await;
            false
        }
    }
}
