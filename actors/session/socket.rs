//! The session's turn: what is written goes out, what arrived from others goes in, what the client sent is read.
//!
//! It is polled in the actor's own task, so a packet costs no message between actors. While the client does not read what
//! is written to it, nothing more is, and nothing of it is read; while its twin is full it is left unread, and while it has
//! publishes among too many that wait to be stored.

use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use actix::prelude::*;
use ntex::io::{IoBoxed, RecvError};
use wakala::session::Event;
use wakala::time::Time;

use super::frames::Inbound;
use super::inbox::Arrival;
use super::{Session, TURN, Turn};
use crate::sessions::owed::LOOKS_MAX;
use crate::terminal::Who;

/// Frames of one client that are read in one turn; then others have theirs.
const FRAMES_MAX: usize = 64;

/// Polls the session whenever its task is.
pub(super) struct Ear;

impl ActorFuture<Session> for Ear {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        session: &mut Session,
        ctx: &mut Context<Session>,
        task: &mut task::Context<'_>,
    ) -> Poll<()> {
        if !session.waker.as_ref().is_some_and(|waker| waker.will_wake(task.waker())) {
            session.waker = Some(task.waker().clone());
        }
        let mut turn = TURN.take();
        let polled = session.turn(&mut turn, ctx, task);
        TURN.set(turn);
        session.count();
        session.set_wake_up(ctx);
        if session.answer.is_some() {
            task.waker().wake_by_ref();
        }
        polled
    }
}

impl Session {
    fn turn(&mut self, turn: &mut Turn, ctx: &mut Context<Self>, task: &mut task::Context<'_>) -> Poll<()> {
        let now = self.now();
        let (mut frames, mut broken) = (0, false);
        self.looks = LOOKS_MAX;
        loop {
            if self.closed {
                return Poll::Ready(());
            }
            if (frames == 0 || self.has_unread()) && self.acknowledge(turn, now, ctx) {
                continue;
            }
            if !broken && self.io.is_wr_backpressure() {
                match self.io.poll_flush(task, false) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    // What the client said before it went is heard: it may have taken its leave [MQTT-3.14.4-3].
                    Poll::Ready(Err(_)) => broken = true,
                }
            }
            if !broken && let Some(event) = self.arrival(now, task) {
                self.twin.handle(event, now, &mut turn.effects);
                self.act(turn, now, ctx);
                continue;
            }
            if self.twin.full() {
                if let Some(too_fast) = self.twin.held_by().filter(|_| !self.unread) {
                    self.sessions.counts().holds(too_fast);
                }
                self.unread = true;
                return Poll::Pending;
            }
            // Who has none there is read on: a PINGREQ must not wait for the publishes of others. A terminal's requests go elsewhere.
            let guest = matches!(self.who, Who::Guest { .. });
            let busy = guest && self.twin.publishes();
            let held_up = busy && self.sessions.router().is_full(self.twin.client(), task.waker());
            self.twin.hold_up(held_up, now);
            if held_up {
                return Poll::Pending;
            }
            if frames == FRAMES_MAX {
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            frames += 1;
            let event = match self.io.poll_recv(&self.frames, task) {
                Poll::Ready(Ok(Inbound::Packet(packet))) => Event::Packet(packet),
                Poll::Ready(Ok(Inbound::Publish(publish, payload))) => Event::Publish(publish, payload),
                Poll::Ready(Err(RecvError::Decoder(flaw))) => {
                    tracing::info!(client = %self.twin.client(), why = flaw.why, "a frame was refused");
                    Event::End(flaw.reason, flaw.why)
                }
                Poll::Ready(Err(RecvError::WriteBackpressure)) if !broken => continue,
                Poll::Ready(Err(RecvError::PeerGone(None))) => return self.gone("the connection ended", ctx),
                Poll::Ready(Err(
                    RecvError::PeerGone(Some(_)) | RecvError::KeepAlive | RecvError::WriteBackpressure,
                )) => {
                    return self.gone("the connection broke", ctx);
                }
                Poll::Pending => {
                    self.twin.partial(self.has_unread(), now);
                    return Poll::Pending;
                }
            };
            self.heard(&event);
            let owed = self.owed(&event, now);
            self.twin.handle(event, now, &mut turn.effects);
            if let Some(until) = owed {
                self.twin.handle(Event::Owed { until }, now, &mut turn.effects);
            }
            self.act(turn, now, ctx);
        }
    }

    /// Acknowledges the publish whose subscribers were to be first: before the next frame or in the next turn, whichever
    /// comes first.
    pub(super) fn acknowledge(&mut self, turn: &mut Turn, now: Time, ctx: &mut Context<Self>) -> bool {
        let Some(ticket) = self.answer.take() else { return false };
        self.twin.handle(Event::Durable { ticket }, now, &mut turn.effects);
        self.act(turn, now, ctx);
        true
    }

    fn has_unread(&self) -> bool {
        self.io.with_read_buf(|unread| !unread.is_empty())
    }

    /// Takes a terminal's publish out of what it shares with the others of its agent; until when they owe it, if they do.
    fn owed(&self, event: &Event, now: Time) -> Option<Time> {
        match (&self.purse, event) {
            (Some(purse), Event::Publish(publish, payload)) => purse.pay(publish.message_bytes(payload), now),
            _ => None,
        }
    }

    /// The next thing that others had for this session, if its twin has room.
    fn arrival(&mut self, now: Time, task: &task::Context<'_>) -> Option<Event> {
        if self.nothing_arrived() {
            self.take_owed(now);
            if self.owed.is_none() && self.nothing_arrived() && self.inbox.take(&mut self.arrivals, task.waker()) {
                return Some(Event::Look);
            }
        }
        if !self.twin.has_room() {
            return None;
        }
        Some(match self.arrivals.as_mut()?.pop_front()? {
            Arrival::Message(addressed) => Event::Message(addressed),
            Arrival::Row(seq, what) => Event::Hint { seq, what: Some(what) },
        })
    }

    fn nothing_arrived(&self) -> bool {
        self.arrivals.as_ref().is_none_or(|arrivals| arrivals.is_empty())
    }

    /// Has the next turn come.
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn gone(&mut self, why: &'static str, ctx: &mut Context<Self>) -> Poll<()> {
        self.closed = true;
        self.link.because(why);
        ctx.stop();
        Poll::Ready(())
    }
}

/// How long a client has to read why its connection ends.
const LINGER: Duration = Duration::from_secs(1);

/// Takes leave of a socket: what was written still goes out. Behind a DISCONNECT the client has time to read it, and what
/// it sends meanwhile is thrown away: a socket that is closed with bytes unread is reset, and the DISCONNECT with it
/// (RFC 1122 §4.2.2.13).
pub(super) async fn part(io: IoBoxed, lingers: bool) {
    if lingers {
        let unheard = async {
            while let Ok(Some(())) = io.read_ready().await {
                io.with_read_buf(|unread| unread.clear());
            }
        };
        // The client that goes first need not be waited for.
        let _ = tokio::time::timeout(LINGER, unheard).await;
    }
    let _ = io.shutdown().await;
}
