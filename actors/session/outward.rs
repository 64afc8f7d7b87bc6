//! What a client published, on its way out of its session: into the log, to subscribers, into the database.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{DisconnectReasonCode as Reason, QoS};
use wakala::message::Message as Published;
use wakala::session::{Event, Subscription};
use wakala::time::Time;

use super::inbox::Arrival;
use super::{Done, End, Session, TAKEN_OVER};
use crate::router::owed::{Only, Owed};
use crate::sessions::Away;
use crate::sessions::owed::queued;
use crate::store::Error;
use crate::store::again::Backoff;
use crate::store::marks::{Mark, Remembered};
use crate::store::publications::{Publication, Stored};
use crate::terminal::Who;

/// What is owed, oldest first. Boxed as [`super::inbox::Arrivals`] are.
pub(super) type Debts = Box<VecDeque<Owed>>;

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
            return self.answer_behind(ticket, message.qos);
        };
        let (metrics, began) = (Arc::clone(self.sessions.store().metrics()), Instant::now());
        self.keep(publication, ctx.address(), move |addr| {
            metrics.durable_publishes.0.took(began.elapsed());
            tell(addr, Done(Event::Durable { ticket }));
        });
        None
    }

    /// Has the subscribers' sockets written to before the publisher's: one of them may answer while the PUBACK goes out. What
    /// was to be acknowledged before is now.
    fn answer_behind(&mut self, ticket: u32, qos: QoS) -> Option<Event> {
        let before = match qos {
            QoS::AtMostOnce => Some(ticket),
            QoS::AtLeastOnce | QoS::ExactlyOnce => self.answer.replace(ticket),
        };
        before.map(|ticket| Event::Durable { ticket })
    }

    /// Messages that match are for this client from now on, and what is retained: stored for a session that is kept, like
    /// what comes after it.
    pub(super) fn subscribed(&mut self, new: &Subscription, existed: bool, now: Time, ctx: &mut Context<Self>) {
        let Who::Guest { .. } = self.who else { return };
        let owed = self.sessions.subscribe(self.twin.client(), self.epoch, new, existed);
        let stores = new.options.qos != QoS::AtMostOnce && self.sessions.router().keeps(self.twin.client());
        for owed in owed.into_iter().flatten() {
            if stores {
                self.store_owed(owed.only(Only::AboveThat), now, ctx);
                self.owe(owed.only(Only::AtMostOnce), existed);
            } else {
                self.owe(owed, existed);
            }
        }
    }

    /// Takes what is owed when it has room for it.
    fn owe(&mut self, owed: Owed, existed: bool) {
        let all = self.owed.get_or_insert_default();
        if existed {
            all.retain(|earlier| !earlier.is_in(&owed));
        }
        all.push_back(owed);
        self.wake();
    }

    /// The first page at once, if this turn has it, so that whatever is published from now on comes behind it.
    fn store_owed(&mut self, mut owed: Owed, now: Time, ctx: &mut Context<Self>) {
        let page = self.sessions.page(&mut owed, &mut self.looks, now);
        if !page.is_empty() {
            self.keep(queued(self.twin.client(), self.epoch, page, now), ctx.address(), |_| {});
        }
        if !owed.is_done() {
            self.sessions.store_owed(self.twin.client(), self.epoch, owed);
        }
    }

    pub(super) fn unsubscribed(&mut self, filter: &ByteString) {
        self.sessions.router().unsubscribe(self.twin.client(), self.epoch, filter);
        if let Some(owed) = &mut self.owed {
            owed.retain(|owed| owed.filter() != filter);
        }
    }

    /// The next page of what is owed, if there is one to be had in this turn; else in the next.
    pub(super) fn take_owed(&mut self, now: Time) {
        while let Some(all) = &mut self.owed {
            let Some(owed) = all.front_mut() else {
                self.owed = None;
                return;
            };
            if self.looks == 0 {
                return self.wake();
            }
            let page = self.sessions.page(owed, &mut self.looks, now);
            if owed.is_done() {
                all.pop_front();
            }
            if !page.is_empty() {
                let addressed = &self.sessions.store().metrics().direct.addressed;
                addressed.add(u64::try_from(page.len()).unwrap_or(u64::MAX));
                let arrivals = self.arrivals.get_or_insert_default();
                return arrivals.extend(page.into_iter().map(Arrival::Message));
            }
        }
    }

    /// Has a publication stored, and `then` done; a publisher whose message was not stored is not told that it was.
    fn keep(&self, publication: Publication, addr: Addr<Self>, then: impl FnOnce(&Addr<Self>) + Send + 'static) {
        self.sessions.router().hand_over(publication, move |stored| match stored {
            Ok(Stored::Late) => tell(&addr, End(Reason::SessionTakenOver, TAKEN_OVER)),
            Ok(Stored::At(_) | Stored::Before | Stored::Told(_)) => then(&addr),
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
