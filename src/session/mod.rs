//! Twin of one terminal's MQTT session, for MQTT 3.1.1 and MQTT 5 in one machine.
//!
//! MQTT 5, section 4.1: the session state in the server consists of
//! - the existence of a session, even if the rest of the session state is empty;
//! - the client's subscriptions, including any subscription identifiers;
//! - QoS 1 and QoS 2 messages which have been sent to the client, but have not been completely acknowledged;
//! - QoS 1 and QoS 2 messages pending transmission to the client and, optionally, QoS 0 messages pending transmission;
//! - QoS 2 messages which have been received from the client, but have not been completely acknowledged;
//! - the will message and the will delay interval;
//! - if the session is currently not connected, the time at which the session will end and its state be discarded.
//!
//! Here the messages for the client are the rows of its queue in the database: [`Outgoing`] holds the page of them that
//! is in flight or next. A row's place in the queue (`seq`) gives its packet identifier, so that a resend after a crash
//! carries the original one and nothing is written when a message is sent.
//!
//! The machine speaks the packet types of MQTT 5. [`lift`] raises the packets of a 3.1.1 client to them and lowers the
//! answers; [`strict`] checks frames before they are decoded; [`connect`] decides about a CONNECT.

mod aliases;
pub mod connect;
mod elsewhere;
mod incoming;
pub mod lift;
mod limits;
mod outgoing;
pub mod pace;
pub mod redacted;
mod rights;
mod sizes;
pub mod strict;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::sync::Arc;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Disconnect, DisconnectReasonCode as Reason, Packet, QoS};

use crate::conservation::Fate;
use crate::id::ClientId;
use crate::message::Message;
use crate::mqtt::Publish;
pub use crate::mqtt::Version;
use crate::time::Time;
use crate::topics;
use connect::Terms;
pub use elsewhere::Elsewhere;
use incoming::{Incoming, Work};
pub use limits::Limits;
use outgoing::Outgoing;
pub use outgoing::{Addressed, Beyond, Delivery, Settled, What, packet_id, payload_bytes_max};
use pace::{Pacer, TooFast};
use rights::Target;
pub use rights::{Closed, Granted, Grants, NoTemplate, Rights, TEMPLATE_MAX, Template, Templates};
pub use sizes::Sizes;
use strict::Flaw;
use subscriptions::{Asked, Pending, changed_bytes, sorted};
pub use subscriptions::{Change, Subscription};

/// A session as the database gave it when the connection opened it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// There was a session, and it goes on (the CONNACK's Session Present).
    pub present: bool,
    pub subscriptions: Vec<Subscription>,
    /// Identifiers of publishes at QoS 2 that were taken and are not complete.
    pub received: Vec<NonZeroU16>,
    /// Deliveries up to this place may have been sent before: they go out with DUP.
    pub sent_to: i64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet of the client's other than PUBLISH, after [`strict::frame`].
    Packet(Packet),
    Publish(Publish, Bytes),
    /// With this one's latest publish, what all terminals of its agent have published is paid for at this time only.
    Owed {
        until: Time,
    },
    /// What this [`Effect::Admit`] or [`Effect::Route`] is about is durable.
    Durable {
        ticket: u32,
    },
    /// The change of the latest [`Effect::Store`] is durable.
    Stored,
    /// This identifier of an [`Effect::Forget`] is forgotten.
    Forgotten {
        packet_id: NonZeroU16,
    },
    /// What this [`Effect::Received`] says is stored.
    Kept {
        seq: i64,
    },
    /// The answer to [`Effect::Fetch`]: what is queued, in order, and the last place given out when it was read.
    Fetched {
        deliveries: Vec<Delivery>,
        last: i64,
    },
    /// Something was queued at this place; with what it is, if that is at hand.
    Hint {
        seq: i64,
        what: Option<What>,
    },
    /// A message that is not stored, for this connection alone.
    Message(Addressed),
    /// Something may be queued that no hint told of.
    Look,
    /// Time has passed.
    Wake,
    /// The connection is to end, for a reason that is not the client's doing.
    End(Reason, &'static str),
    /// The server stops.
    Leave(Elsewhere, &'static str),
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send(Packet),
    Publish(Publish, Bytes),
    /// Have the request admitted and logged, and remember the packet identifier; [`Event::Durable`] when that is done.
    Admit {
        ticket: u32,
        payload: Bytes,
        remember: Option<NonZeroU16>,
    },
    /// Have the message on its way to its subscribers, and remember the packet identifier; [`Event::Durable`] when all
    /// that is to be stored is.
    Route {
        ticket: u32,
        message: Arc<Message>,
        remember: Option<NonZeroU16>,
    },
    /// Forget this packet identifier; [`Event::Forgotten`] when that is durable.
    Forget {
        packet_id: NonZeroU16,
    },
    /// Have the change stored; [`Event::Stored`] when it is. One at a time. It has been made already.
    Store(Change),
    /// Messages that match are for this client from now on; and what is retained, as the subscription's options say
    /// (3.8.3.1).
    Subscribed {
        subscription: Subscription,
        /// It is in the place of one with the same filter.
        existed: bool,
    },
    Unsubscribed {
        filter: ByteString,
    },
    /// The client has this delivery at QoS 2; [`Event::Kept`] when that is stored.
    Received {
        seq: i64,
        /// As which one its PUBREC came, of those of the session that are not complete.
        nth: u32,
    },
    /// The client is done with this delivery, in this way.
    Acked {
        seq: i64,
        receipt: bool,
        fate: Fate,
    },
    /// Read the queue beyond these places; [`Event::Fetched`] when that is done.
    Fetch {
        beyond: Beyond,
        max: u16,
    },
    /// A delivery cannot be sent on this connection. A receipt stays queued; another message is given up.
    TooLarge {
        seq: Option<i64>,
    },
    /// A message that is not stored found no room.
    Dropped,
    /// End the connection after what was sent before. The last effect of a session.
    Close(&'static str),
}

/// What remains of a connection when it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// How long the session lives on, in seconds; 0 if it ended with the connection.
    pub expiry_s: u32,
    /// Deliveries up to this place were sent.
    pub sent_to: i64,
    /// There is a will, and the client did not take its leave.
    pub will: bool,
    /// What has been changed and is not known to be stored, of a session that lives on.
    pub change: Option<Change>,
}

/// One connected client's session.
#[derive(Debug)]
pub struct Session {
    client: ClientId,
    rights: Rights,
    terms: Terms,
    /// It has a will. What that says is in the database, or nowhere: a terminal's goes to nobody.
    willed: bool,
    present: bool,
    /// Made when the client publishes first: of many subscribers none ever is.
    incoming: Option<Box<Incoming>>,
    outgoing: Outgoing,
    /// By filter.
    subscriptions: Vec<Subscription>,
    limits: Arc<Limits>,
    /// What SUBSCRIBE and UNSUBSCRIBE packets have changed that is not durable yet. Made when there is one.
    pending: Option<Box<Pending>>,
    pacer: Pacer,
    heard: Time,
    /// It was let in, and heard so.
    greeted: bool,
    /// It is left unread because others have too much under way.
    held_up: bool,
    closed: bool,
}

/// SUBSCRIBE and UNSUBSCRIBE packets that may wait for the database before the socket is left unread.
const PENDING_MAX: usize = 16;

impl Session {
    /// A session at its CONNECT.
    #[must_use]
    pub fn load(
        client: ClientId,
        rights: Rights,
        mut terms: Terms,
        limits: &Arc<Limits>,
        loaded: Loaded,
        now: Time,
    ) -> Self {
        let willed = terms.will.take().is_some();
        let outgoing = Outgoing::new(&client, &rights, &terms, limits, &loaded, now);
        let mut session = Self {
            incoming: None,
            outgoing,
            subscriptions: sorted(loaded.subscriptions),
            limits: Arc::clone(limits),
            pending: None,
            pacer: Pacer::default(),
            heard: now,
            greeted: false,
            held_up: false,
            closed: false,
            present: loaded.present,
            willed,
            terms,
            rights,
            client,
        };
        if !loaded.received.is_empty() {
            session.incoming().remember(loaded.received);
        }
        session
    }

    fn incoming(&mut self) -> &mut Incoming {
        let (limits, kept) = (&self.limits, self.terms.expiry_s > 0);
        self.incoming.get_or_insert_with(|| Box::new(Incoming::new(limits, kept)))
    }

    /// What is owed at the start of a connection: the CONNACK, and then what the client has not acknowledged.
    pub fn resume(&mut self, effects: &mut Vec<Effect>) {
        let ack = self.terms.accept(&self.client, &self.rights, self.present, &self.limits);
        effects.push(Effect::Send(Packet::ConnectAck(Box::new(ack))));
        self.greeted = true;
        self.deliver(effects);
    }

    #[must_use]
    pub fn client(&self) -> &ClientId {
        &self.client
    }

    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Whether it has a will that was not given up.
    #[must_use]
    pub fn willed(&self) -> bool {
        self.willed
    }

    /// How many deliveries wait for the client's acknowledgement, and how many are held to be sent.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        self.outgoing.waiting()
    }

    /// Whether the socket is to be left unread for now.
    #[must_use]
    pub fn full(&self) -> bool {
        let full = self.incoming.as_ref().is_some_and(|incoming| incoming.full(self.terms.version));
        full || self.changes() >= PENDING_MAX || self.pacer.held_by().is_some()
    }

    /// Whether a publish of the client is not answered yet.
    #[must_use]
    pub fn publishes(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.is_busy())
    }

    /// Who was too fast, if the socket is to be left unread because of that.
    #[must_use]
    pub fn held_by(&self) -> Option<TooFast> {
        self.pacer.held_by()
    }

    /// All that came was read; whether that was a part of a packet.
    pub fn partial(&mut self, partial: bool, now: Time) {
        self.pacer.partial(partial, now);
    }

    /// Whether there is room for one more [`Event::Message`]; while a SUBACK is owed, what follows it waits.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending.is_none() && self.outgoing.has_room()
    }

    /// How many SUBSCRIBE and UNSUBSCRIBE packets wait for the database.
    fn changes(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.len())
    }

    /// Whether it is left unread for others' sake: what it sends meanwhile is not heard, and is not held against it.
    pub fn hold_up(&mut self, held_up: bool, now: Time) {
        if std::mem::replace(&mut self.held_up, held_up) && !held_up {
            self.hears(now);
        }
    }

    /// When [`Event::Wake`] is wanted, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.closed {
            return None;
        }
        // A client whose packets are left unread is not silent.
        let full = self.full() || self.held_up;
        let keep_alive = (!full).then(|| self.heard + self.terms.silence_max());
        [keep_alive, self.outgoing.stalls_at(), self.pacer.poll_timeout(full, &self.limits.pace)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Decides. After [`Effect::Close`] nothing more is decided.
    pub fn handle(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        if self.closed {
            return;
        }
        self.outgoing.now(now);
        match event {
            Event::Packet(packet) => {
                self.hears(now);
                if let Some(bytes) = changed_bytes(&packet) {
                    self.pacer.changed(bytes, &self.limits.pace, now);
                }
                if let Err(flaw) = self.packet(packet, effects) {
                    self.close(Some(flaw.reason), flaw.why, effects);
                }
            }
            Event::Publish(publish, payload) => {
                self.hears(now);
                self.pacer.published(publish.message_bytes(&payload), &self.limits.pace, now);
                if let Err(flaw) = self.publish(publish, payload, now, effects) {
                    self.close(Some(flaw.reason), flaw.why, effects);
                }
            }
            Event::Owed { until } => self.pacer.hold(until, TooFast::Agent, now),
            Event::Durable { ticket } => {
                let was_full = self.full();
                self.incoming().durable(ticket, effects);
                if was_full {
                    self.hears(now);
                }
            }
            Event::Stored => self.stored(effects),
            Event::Forgotten { packet_id } => self.incoming().forgotten(packet_id, effects),
            Event::Kept { seq } => self.outgoing.kept(seq, effects),
            Event::Fetched { deliveries, last } => self.outgoing.fetched(deliveries, last),
            Event::Hint { seq, what } => self.outgoing.hint(seq, what),
            Event::Message(addressed) => self.outgoing.direct(addressed, effects),
            Event::Look => self.outgoing.look(),
            Event::Wake => self.wake(now, effects),
            Event::End(reason, why) => self.close(Some(reason), why, effects),
            Event::Leave(elsewhere, why) => self.leave(&elsewhere, why, effects),
        }
        if !self.closed {
            self.deliver(effects);
        }
    }

    /// What became, since this was last asked, of messages that are not stored, and how many of them there are.
    #[must_use]
    pub fn settled(&mut self) -> (Settled, u16) {
        self.outgoing.settled()
    }

    /// What is to be stored of a connection that has ended.
    #[must_use]
    pub fn remains(&mut self) -> Remains {
        let (expiry_s, sent_to) = (self.terms.expiry_s, self.outgoing.sent_to());
        Remains { expiry_s, sent_to, will: self.willed, change: self.unstored() }
    }

    fn packet(&mut self, packet: Packet, effects: &mut Vec<Effect>) -> Result<(), Flaw> {
        match packet {
            Packet::PingRequest => effects.push(Effect::Send(Packet::PingResponse)),
            Packet::PublishAck(ack) => self.outgoing.acked(ack.packet_id, ack.reason_code, effects)?,
            Packet::PublishReceived(ack) => self.outgoing.received(ack.packet_id, ack.reason_code, effects)?,
            Packet::PublishComplete(ack) => self.outgoing.completed(ack.packet_id, effects)?,
            Packet::PublishRelease(release) => self.incoming().released(release.packet_id, effects)?,
            Packet::Subscribe(subscribe) => self.change(Asked::Subscribe(subscribe), effects)?,
            Packet::Unsubscribe(unsubscribe) => self.change(Asked::Unsubscribe(unsubscribe), effects)?,
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect, effects),
            Packet::Connect(_) => return Err(protocol("a second CONNECT [MQTT-3.1.0-2]")),
            Packet::Auth(_) => return Err(protocol("AUTH without a method")),
            Packet::ConnectAck(_) | Packet::SubscribeAck(_) | Packet::UnsubscribeAck(_) | Packet::PingResponse => {
                return Err(protocol("a packet that only a server sends"));
            }
        }
        Ok(())
    }

    fn publish(
        &mut self,
        mut publish: Publish,
        payload: Bytes,
        now: Time,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Flaw> {
        self.incoming().aliases.resolve(&mut publish)?;
        if !topics::fits(&publish.topic) {
            return Err(Flaw { reason: Reason::TopicNameInvalid, why: TOO_LONG });
        }
        if publish.retain && !self.rights.offers().retained {
            let why = "retained messages are not offered [MQTT-3.2.2-14]";
            return Err(Flaw { reason: Reason::RetainNotSupported, why });
        }
        let (packet_id, qos, version) = (publish.packet_id, publish.qos, self.terms.version);
        if let Some(packet_id) = packet_id {
            let incoming = self.incoming();
            let repeated = qos == QoS::ExactlyOnce && incoming.has_received(packet_id);
            if !repeated {
                // A 3.1.1 client may send again while it waits; the answer is on its way.
                if version == Version::V3 && publish.dup && incoming.holds(packet_id) {
                    return Ok(());
                }
                self.unused(packet_id)?;
            }
            if self.incoming().exceeded(packet_id, version) {
                return Err(Flaw { reason: Reason::ReceiveMaximumExceeded, why: "receive maximum exceeded" });
            }
            if repeated {
                self.incoming().repeated(packet_id, effects);
                return Ok(());
            }
        }
        let work = match self.rights.publish(&self.client, &publish.topic) {
            Target::Intake => Work::Admit(payload),
            Target::Subscribers => Work::Route(Arc::new(Message::of(publish, payload, now))),
            Target::Nobody(why) => return self.refuse(packet_id, qos, why, effects),
        };
        self.incoming().arrived(packet_id, qos, work, effects);
        Ok(())
    }

    /// A topic that is not this client's to publish to. MQTT 3.1.1 has no way to say so but to close (3.3.5).
    fn refuse(
        &mut self,
        packet_id: Option<NonZeroU16>,
        qos: QoS,
        why: &'static str,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Flaw> {
        self.outgoing.unauthorised();
        match (self.terms.version, packet_id) {
            (Version::V3, _) => return Err(Flaw { reason: Reason::NotAuthorized, why }),
            (Version::V5, Some(packet_id)) => {
                let why = self.terms.explain(why, 0);
                self.incoming().refused(packet_id, qos, why, effects);
            }
            (Version::V5, None) => {}
        }
        Ok(())
    }

    fn deliver(&mut self, effects: &mut Vec<Effect>) {
        if self.pending.is_none() {
            self.outgoing.deliver(&self.subscriptions, effects);
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect, effects: &mut Vec<Effect>) {
        if let Some(expiry_s) = disconnect.session_expiry_interval_secs {
            if self.terms.expiry_s == 0 && expiry_s > 0 {
                return self.close(
                    Some(Reason::ProtocolError),
                    "session expiry raised from zero (3.14.2.2.2)",
                    effects,
                );
            }
            self.terms.expire_after(expiry_s);
        }
        if disconnect.reason_code == Reason::NormalDisconnection {
            self.willed = false;
        }
        self.close(None, "the client disconnected", effects);
    }

    /// A whole packet came, or the client is read again: nothing is held against it that lies before.
    fn hears(&mut self, now: Time) {
        self.heard = now;
        self.pacer.partial(false, now);
    }

    fn wake(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if self.pacer.release(now) {
            self.hears(now);
        }
        let read = !self.full() && !self.held_up;
        if read && self.pacer.whole_by(&self.limits.pace).is_some_and(|by| now >= by) {
            self.close(Some(Reason::UnspecifiedError), pace::LATE, effects);
        } else if read && now >= self.heard + self.terms.silence_max() {
            self.close(Some(Reason::KeepAliveTimeout), "silent for longer than one and a half keep-alives", effects);
        } else if self.outgoing.stalls_at().is_some_and(|at| now >= at) {
            self.close(Some(Reason::UnspecifiedError), "no delivery was acknowledged in time", effects);
        }
    }

    /// Ends the connection; with a DISCONNECT if the client's version has one, and it was let in [MQTT-3.14.0-1].
    fn close(&mut self, reason: Option<Reason>, why: &'static str, effects: &mut Vec<Effect>) {
        if let Some(reason_code) = reason
            && self.terms.version == Version::V5
            && self.greeted
        {
            let disconnect = Disconnect { reason_string: self.terms.explain(why, 0), ..Disconnect::new(reason_code) };
            effects.push(Effect::Send(Packet::Disconnect(disconnect)));
        }
        self.closed = true;
        effects.push(Effect::Close(why));
    }
}

const TOO_LONG: &str = "a topic that is longer or deeper than is taken here";

const fn protocol(why: &'static str) -> Flaw {
    Flaw { reason: Reason::ProtocolError, why }
}

/// The topic on which a terminal receives its receipts.
#[must_use]
pub fn receipts_topic(terminal: &ClientId) -> ByteString {
    ByteString::from(format!("r/{}", terminal.as_str()))
}

/// The topic on which a terminal receives what is not a receipt.
#[must_use]
pub fn messages_topic(terminal: &ClientId) -> ByteString {
    ByteString::from(format!("c/{}", terminal.as_str()))
}
