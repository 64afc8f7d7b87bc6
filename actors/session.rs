//! Actor of one connected terminal, on the ntex worker that owns its socket.
//!
//! In its turn ([`socket`]) the actor takes packets from its socket and messages from its [`Inbox`], has its twin decide,
//! and carries out what it says, one arm per effect. A panic closes the connection, for MQTT
//! allows resending on a new connection only [MQTT-4.4.0-1]: the terminal reconnects, and its next actor starts with
//! what is stored. So the restart of this actor is the terminal's reconnect, and its supervisor only counts.

pub(crate) mod about;
mod counted;
pub mod frames;
pub mod inbox;
pub(crate) mod lease;
mod outward;
mod settled;
mod socket;

use std::cell::RefCell;
use std::mem;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use actix::prelude::*;
use ntex::io::{IoBoxed, IoRef};
use ntex::tls::rustls::PeerCertChain;
use ntex_mqtt::v5::codec::{DisconnectReasonCode as Reason, Packet};
use rustls::pki_types::UnixTime;
use wakala::conservation::Fate;
use wakala::id::{ClientId, Epoch};
use wakala::session::pace::LATE;
use wakala::session::{Beyond, Change, Effect, Elsewhere, Event, Session as Twin, What};
use wakala::time::Time;

use self::counted::Counted;
use self::frames::{Frames, Outbound};
use self::inbox::{Arrivals, Inbox};
use self::outward::Debts;
use self::socket::Ear;
use crate::sessions::{Purse, STOPPING, Sessions, Vouch};
use crate::store::Error;
use crate::store::again::{Backoff, insist};
use crate::store::marks::{Mark, Remembered};
use crate::store::openings::WhenLocked;
use crate::store::queues::Wanted;
use crate::store::sessions::{Acknowledged, Ended, Left};
use crate::store::subscriptions::Changed;
use crate::supervision::{Exit, Link, Stop};
use crate::tap::Tapped;
use crate::terminal::Who;

/// See the module's text.
pub struct Session {
    twin: Twin,
    epoch: Epoch,
    who: Who,
    /// What a terminal shares with the others of its agent, if they share anything.
    purse: Option<Arc<Purse>>,
    sessions: Sessions,
    io: IoBoxed,
    frames: Counted<Frames>,
    inbox: Arc<Inbox>,
    /// Taken from the inbox, or a page of what is owed. None when there is nothing.
    arrivals: Option<Arrivals>,
    /// What is retained for new subscriptions and was not taken yet: that goes before whatever is in the inbox.
    owed: Option<Debts>,
    /// How much of that may be looked at in this turn.
    looks: u16,
    /// A DISCONNECT is the last packet: the socket is closed a little later, so that the client can read it.
    lingers: bool,
    /// The socket is left unread while the twin is full.
    unread: bool,
    closed: bool,
    /// It came with a will.
    willed: bool,
    /// Messages that are not stored, as they were last counted.
    waiting: u32,
    /// A publish that went to its subscribers in this turn and is acknowledged in the next.
    answer: Option<u32>,
    /// Of the actor's task.
    waker: Option<Waker>,
    /// For when the wake-up is set that comes first, or [`Time::NEVER`]: an `Option` has the task
    /// beyond its bound.
    wakes_at: Time,
    /// Who looks at its packets.
    tapped: Tapped,
    /// Held for its end: the registry hears of it.
    link: Link,
}

/// The task of an idle session is 1,024 bytes, of which tokio has 112. One more, and the allocator gives it 1,280.
const _: () = assert!(size_of::<actix::dev::ContextFut<Session, Context<Session>>>() <= 912);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("client", self.twin.client()).field("epoch", &self.epoch).finish()
    }
}

/// What was decided and is being carried out.
#[derive(Default)]
struct Turn {
    effects: Vec<Effect>,
    doing: Vec<Effect>,
}

thread_local! {
    /// Effects are carried out before the next event comes, so all sessions of a worker share the buffers.
    static TURN: RefCell<Turn> = RefCell::default();
}

impl Session {
    /// Starts the actor. The caller has registered nothing yet.
    pub fn start(
        twin: Twin,
        epoch: Epoch,
        who: Who,
        sessions: Sessions,
        io: IoBoxed,
        frames: Frames,
    ) -> (Addr<Self>, Arc<Inbox>) {
        let (registry, client) = (sessions.clone(), twin.client().clone());
        let link = Link::new(move |exit: Exit| registry.exited(&client, epoch, &exit));
        let inbox = Arc::new(Inbox::new(sessions.limits()));
        let purse = match &who {
            Who::Terminal(enrolled) => sessions.purse_of(&enrolled.agent),
            Who::Guest { .. } => None,
        };
        let session = Self {
            willed: twin.willed(),
            twin,
            epoch,
            who,
            purse,
            sessions,
            io,
            frames: Counted(frames),
            inbox: Arc::clone(&inbox),
            arrivals: None,
            owed: None,
            looks: 0,
            lingers: false,
            unread: false,
            closed: false,
            waiting: 0,
            answer: None,
            waker: None,
            wakes_at: Time::NEVER,
            tapped: Tapped::default(),
            link,
        };
        (Actor::start(session), inbox)
    }

    fn now(&self) -> Time {
        self.sessions.clock().now()
    }

    fn event(&mut self, event: Event, ctx: &mut Context<Self>) {
        let (now, mut turn) = (self.now(), TURN.take());
        if matches!(event, Event::End(..) | Event::Leave(..)) {
            // Nothing is said behind the last word.
            self.acknowledge(&mut turn, now, ctx);
        }
        self.twin.handle(event, now, &mut turn.effects);
        self.act(&mut turn, now, ctx);
        TURN.set(turn);
        self.count();
        self.set_wake_up(ctx);
    }

    /// Carries out what was decided, and what is decided meanwhile.
    fn act(&mut self, turn: &mut Turn, now: Time, ctx: &mut Context<Self>) {
        let Turn { effects, doing } = turn;
        while !effects.is_empty() {
            mem::swap(effects, doing);
            for effect in doing.drain(..) {
                if let Some(at_once) = self.carry_out(effect, now, ctx) {
                    self.twin.handle(at_once, now, effects);
                }
            }
        }
        if self.unread && !self.twin.full() {
            self.unread = false;
            self.wake();
        }
    }

    /// Gives what has come of it already, if anything has.
    fn carry_out(&mut self, effect: Effect, now: Time, ctx: &mut Context<Self>) -> Option<Event> {
        match effect {
            Effect::Send(packet) => {
                self.lingers |= matches!(packet, Packet::Disconnect(_));
                self.write(Outbound::Packet(packet), ctx);
            }
            Effect::Publish(publish, payload) => self.write(Outbound::Publish(publish, payload), ctx),
            Effect::Admit { ticket, payload, remember } => self.admit(ticket, payload, remember, ctx),
            Effect::Route { ticket, message, remember } => {
                return self.route(ticket, &message, remember, now, ctx);
            }
            Effect::Forget { packet_id } => {
                let remembered = Remembered { client: self.client(), epoch: self.epoch, packet_id };
                self.mark(Mark::Forget(remembered), Event::Forgotten { packet_id }, ctx);
            }
            Effect::Received { seq, nth } => {
                let mark = Mark::Received { client: self.client(), epoch: self.epoch, seq, nth };
                self.mark(mark, Event::Kept { seq }, ctx);
            }
            Effect::Subscribed { subscription, existed } => self.subscribed(&subscription, existed, now, ctx),
            Effect::Unsubscribed { filter } => self.unsubscribed(&filter),
            Effect::Dropped => self.sessions.router().dropped(),
            Effect::Store(change) => self.store(change, ctx),
            Effect::Acked { seq, receipt, fate } => self.acked(seq, receipt, fate, ctx),
            Effect::Fetch { beyond, max } => self.fetch(beyond, max, ctx),
            Effect::TooLarge { seq } => {
                tracing::warn!(client = %self.twin.client(), seq, "a delivery exceeds the client's maximum packet size");
                if seq.is_none() {
                    self.sessions.store().metrics().direct.end(Fate::TooLarge, 1);
                }
            }
            Effect::Close(why) => {
                if why == LATE {
                    self.sessions.counts().late.one();
                }
                self.closed = true;
                self.link.because(why);
                ctx.stop();
            }
        }
        None
    }

    fn client(&self) -> ClientId {
        self.twin.client().clone()
    }

    fn write(&mut self, item: Outbound, ctx: &mut Context<Self>) {
        self.told(&item);
        if let Err(error) = self.io.encode(item, &self.frames) {
            tracing::error!(client = %self.twin.client(), ?error, "a packet could not be encoded");
            self.closed = true;
            self.link.because("a packet could not be encoded");
            ctx.stop();
        }
    }

    /// Stores what is subscribed to. If the connection ends meanwhile, that is not given up ([`Sessions::ended`]).
    fn store(&self, change: Change, ctx: &mut Context<Self>) {
        let changed = Changed { client: self.client(), epoch: self.epoch, change };
        let changes = self.sessions.changes();
        let sessions = self.sessions.clone();
        let stored = async move {
            insist(|| changes.clone().store(changed.clone())).await?;
            sessions.tell_changed(&changed.client).await;
            Ok(())
        };
        let stored = stored.into_actor(self);
        ctx.spawn(stored.map(|answer, this, ctx| match answer {
            Ok(()) => {
                this.event(Event::Stored, ctx);
                // What follows a SUBACK has waited for it.
                this.wake();
            }
            Err(error) => this.lost(&error, ctx),
        }));
    }

    fn fetch(&self, beyond: Beyond, max: u16, ctx: &mut Context<Self>) {
        let (pages, client, clock) = (self.sessions.pages(), self.client(), self.sessions.clock());
        let fetched = insist(move || {
            let (pages, wanted) = (pages.clone(), Wanted { client: client.clone(), beyond, max, at: clock.now() });
            async move { pages.submit(wanted).await }
        });
        ctx.spawn(fetched.into_actor(self).map(|answer, this, ctx| match answer {
            Ok(queued) => this.event(Event::Fetched { deliveries: queued.deliveries, last: queued.last }, ctx),
            Err(error) => this.lost(&error, ctx),
        }));
    }

    /// Marks a delivery. If the mark is lost, the delivery goes out again after the next CONNECT: at least once.
    fn acked(&self, seq: i64, receipt: bool, fate: Fate, ctx: &mut Context<Self>) {
        let marks = self.sessions.acknowledgements();
        let mark = Acknowledged { client: self.client(), epoch: self.epoch, seq, receipt, fate, at: self.now() };
        let addr = ctx.address();
        tokio::task::spawn_local(async move {
            let mut backoff = Backoff::new();
            loop {
                match marks.submit(mark.clone()).await {
                    Ok(true) => return,
                    Ok(false) => {
                        let _ = addr.send(End(Reason::SessionTakenOver, TAKEN_OVER)).await;
                        return;
                    }
                    Err(error) if !addr.connected() => {
                        tracing::warn!(client = %mark.client, seq, %error, "a delivery could not be marked");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(client = %mark.client, seq, %error, "a delivery's mark waits");
                        backoff.wait().await;
                    }
                }
            }
        });
    }

    /// The database answered, and not with what a session can go on with.
    fn lost(&mut self, error: &Error, ctx: &mut Context<Self>) {
        match error {
            Error::Fenced(_) => self.event(Event::End(Reason::SessionTakenOver, TAKEN_OVER), ctx),
            Error::Away(_) | Error::Broken(_) => {
                tracing::error!(client = %self.twin.client(), %error, "a session cannot go on");
                self.event(Event::End(Reason::UnspecifiedError, "the session's state could not be stored"), ctx);
            }
        }
    }

    fn set_wake_up(&mut self, ctx: &mut Context<Self>) {
        let Some(at) = self.twin.poll_timeout() else { return };
        // A packet moves the deadline of the keep-alive on; the wake-up that is set finds that out when it comes.
        if self.wakes_at <= at {
            return;
        }
        self.wakes_at = at;
        let wait = at.since(self.now()) + Duration::from_millis(1);
        ctx.run_later(wait, move |this, ctx| {
            // A node that stood still has heard nobody: what came meanwhile is read before a client counts as silent.
            if this.now().since(at) >= HELD_UP {
                ctx.run_later(HELD_UP, move |this, ctx| this.wake_up(at, ctx));
            } else {
                this.wake_up(at, ctx);
            }
        });
    }

    fn wake_up(&mut self, at: Time, ctx: &mut Context<Self>) {
        if self.wakes_at == at {
            self.wakes_at = Time::NEVER;
        }
        self.event(Event::Wake, ctx);
    }
}

/// A wake-up that comes so late says that the node was held up.
const HELD_UP: Duration = Duration::from_millis(500);

const TAKEN_OVER: &str = "the session was taken over";

/// Something that the actor started has been done.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Done(Event);

/// Something was queued at this place, or at no place in particular. May be lost.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Hint(pub Option<(i64, Option<What>)>);

/// The connection is to end, with this reason for an MQTT 5 client.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct End(pub Reason, pub &'static str);

/// The node stops, or has too many clients: MQTT 5 clients may go elsewhere. And why.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leave(pub Elsewhere, pub &'static str);

/// Sent once, when the session is registered: CONNACK, and then what is owed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Resume;

/// Has the actor panic: how the tests see what a panic leaves behind. Only a node in sandbox mode sends it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Panic;

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(self.sessions.mailbox());
    }
}

impl Drop for Session {
    /// Runs after a panic too: the socket is closed, and what remains is stored, unless a newer connection fenced it.
    fn drop(&mut self) {
        tokio::task::spawn_local(socket::part(self.io.take(), self.lingers));
        self.tapped.ended(self.sessions.taps(), self.twin.client(), self.link.reason());
        let remains = self.twin.remains();
        let ended = Ended {
            client: self.client(),
            epoch: self.epoch,
            expiry_s: remains.expiry_s,
            sent_to: remains.sent_to,
            will: match remains.will {
                true => Left::Will,
                false if self.willed => Left::Void,
                false => Left::Nothing,
            },
            why: self.link.reason().to_owned(),
            at: self.now(),
            when_locked: WhenLocked::Wait,
        };
        let (client, why, mut over) = (self.twin.client(), self.link.reason(), false);
        match self.who {
            Who::Guest { stored } => {
                let kept = remains.expiry_s > 0;
                let over_at = kept.then(|| ended.at + Duration::from_secs(remains.expiry_s.into()));
                over = self.sessions.router().gone(client, self.epoch, over_at);
                self.sessions.went(client, self.epoch, kept, why, ended.at);
                self.count_last();
                if !stored {
                    return;
                }
            }
            Who::Terminal(_) => self.sessions.terminal_went(client, self.epoch, why, ended.at),
        }
        self.sessions.ended(ended, remains.change, over);
    }
}

impl Handler<Resume> for Session {
    type Result = ();

    fn handle(&mut self, _: Resume, ctx: &mut Context<Self>) {
        let (now, mut turn) = (self.now(), TURN.take());
        self.twin.resume(&mut turn.effects);
        self.act(&mut turn, now, ctx);
        TURN.set(turn);
        ctx.spawn(Ear);
    }
}

impl Handler<Done> for Session {
    type Result = ();

    fn handle(&mut self, Done(event): Done, ctx: &mut Context<Self>) {
        self.event(event, ctx);
    }
}

impl Handler<Hint> for Session {
    type Result = ();

    fn handle(&mut self, Hint(hint): Hint, ctx: &mut Context<Self>) {
        match hint {
            Some((seq, what)) => self.event(Event::Hint { seq, what }, ctx),
            None => self.event(Event::Look, ctx),
        }
    }
}

impl Handler<End> for Session {
    type Result = ();

    fn handle(&mut self, End(reason, why): End, ctx: &mut Context<Self>) {
        self.event(Event::End(reason, why), ctx);
    }
}

impl Handler<Vouch> for Session {
    type Result = ();

    fn handle(&mut self, Vouch { trust, papers }: Vouch, ctx: &mut Context<Self>) {
        // Each look asks until one is answered, and signatures take their time.
        if !trust.must_vouch_for(&papers) {
            return;
        }
        let chain = self.io.query::<PeerCertChain<'static>>();
        let Some(PeerCertChain(chain)) = chain.as_ref() else { return };
        if let Err(objection) = trust.vouch(chain, &papers, UnixTime::now()) {
            tracing::info!(client = %self.twin.client(), why = objection.text(), "a session was ended");
            self.event(Event::End(Reason::NotAuthorized, objection.text()), ctx);
        }
    }
}

impl Handler<Stop> for Session {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.event(Event::Leave(Elsewhere::default(), STOPPING), ctx);
    }
}

impl Handler<Leave> for Session {
    type Result = ();

    fn handle(&mut self, Leave(elsewhere, why): Leave, ctx: &mut Context<Self>) {
        self.event(Event::Leave(elsewhere, why), ctx);
    }
}

impl Handler<Panic> for Session {
    type Result = ();

    #[expect(clippy::panic, reason = "it is what the message asks for")]
    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("a session was told to panic");
    }
}

/// Says a last word on a connection that has no session yet.
pub(crate) fn say(io: &IoRef, frames: &Frames, packet: Packet) {
    // The client that does not hear it sees the connection close.
    let _ = io.encode(Outbound::Packet(packet), &Counted(frames));
}
