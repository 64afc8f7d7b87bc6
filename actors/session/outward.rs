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
use super::{Done, End, Session, TAKEN_OVER};
use crate::sessions::Away;
use crate::store::Error;
use crate::store::again::Backoff;
use crate::store::marks::{Mark, Remembered};
use crate::store::publications::{Publication, Recipient};
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
        // Where the database's answers come in: on this thread each of the five steps would wait for its turn behind whoever is
        // ready, thousands where thousands come at once.
        let runtime = sessions.store().handle().clone();
        runtime.spawn(async move {
            let mut backoff = Backoff::new();
            while let Err(Away(why)) = intake.take(&enrolled, payload.clone()).await {
                if !addr.connected() {
                    return;
                }
                tracing::warn!(terminal = %enrolled.terminal, why, "a request waits; its PUBACK is withheld");
                backoff.wait().await;
            }
            if let Some(packet_id) = remember {
                let remember = Some(Remembered { client, epoch, packet_id });
                if let Err(error) = sessions.router().store(Publication { remember, ..Publication::at(at) }).await {
                    not_stored(&addr, &error);
                }
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
        let (metrics, began) = (Arc::clone(self.sessions.store().metrics()), Instant::now());
        self.keep(publication, ctx.address(), move |addr| {
            metrics.durable_publishes.0.took(began.elapsed());
            tell(addr, Done(Event::Durable { ticket }));
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
            let to =
                stored.into_iter().map(|addressed| Recipient { client: self.client(), epoch: self.epoch, addressed });
            let to = to.collect();
            self.keep(Publication { to, ..Publication::at(now) }, ctx.address(), |_| {});
        }
    }

    /// Has a publication stored, and `then` done; a publisher whose message was not stored is not told that it was.
    fn keep(&self, publication: Publication, addr: Addr<Self>, then: impl FnOnce(&Addr<Self>) + Send + 'static) {
        self.sessions.router().hand_over(publication, move |stored| match stored {
            Ok(_) => then(&addr),
            Err(error) => not_stored(&addr, &error),
        });
    }

    /// Stores what the client has done with a packet of QoS 2, however long the database is away.
    pub(super) fn mark(&self, mark: Mark, then: Event, ctx: &mut Context<Self>) {
        let (marks, addr) = (self.sessions.marks(), ctx.address());
        tokio::task::spawn_local(async move {
            let mut backoff = Backoff::new();
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
                        backoff.wait().await;
                    }
                }
            }
        });
    }
}

fn not_stored(addr: &Addr<Session>, error: &Error) {
    tracing::error!(%error, "a publish could not be stored");
    tell(addr, End(Reason::UnspecifiedError, "the message could not be stored"));
}

/// From the database's threads. Whoever finds the mailbox full waits in a task; when the connection is gone nobody is left to
/// be told.
fn tell<M>(addr: &Addr<Session>, message: M)
where
    M: Message<Result = ()> + Send + 'static,
    Session: Handler<M>,
{
    if let Err(SendError::Full(message)) = addr.try_send(message) {
        let addr = addr.clone();
        tokio::spawn(async move { addr.send(message).await });
    }
}
