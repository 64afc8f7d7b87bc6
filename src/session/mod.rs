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

pub mod connect;
mod incoming;
pub mod lift;
mod outgoing;
pub mod strict;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec as mqtt;
use ntex_mqtt::v5::codec::{Disconnect, DisconnectReasonCode as Reason, Packet, QoS};

use crate::id::TerminalId;
use crate::time::Time;
use connect::Terms;
use incoming::Incoming;
use outgoing::Outgoing;
pub use outgoing::{Beyond, Delivery, What, packet_id, payload_bytes_max};
pub use subscriptions::{Change, Subscription};
use subscriptions::{Pending, decide};

/// The two protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V3,
    /// MQTT 5, protocol level 5.
    V5,
}

/// What a session may take, each with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest keep-alive; a client that asks for more, or for none, has this one.
    pub keep_alive_max: Duration,
    /// The longest time that a session outlives its connection.
    pub session_expiry_max: Duration,
    /// The largest packet that is taken, in bytes.
    pub packet_bytes_max: u32,
    /// Publishes of a client that may wait to be durable (Receive Maximum).
    pub inbound_max: NonZeroU16,
    /// Publishes to a client that may wait for its PUBACK; a client's own Receive Maximum may be less.
    pub outbound_max: NonZeroU16,
    /// Requests of one client on their way into the log at once; with 1 they enter it in the order of arrival.
    pub admitting_max: NonZeroU16,
    /// Deliveries that a session keeps in memory; the rest stay in the database.
    pub page: NonZeroU16,
    /// How long a client may leave every delivery unacknowledged before the connection is given up.
    pub ack_within: Duration,
}

/// A session as the database gave it when the connection opened it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// There was a session, and it goes on (the CONNACK's Session Present).
    pub present: bool,
    pub subscriptions: Vec<Subscription>,
    /// Deliveries up to this place may have been sent before: they go out with DUP.
    pub sent_to: i64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet of the client's other than PUBLISH, after [`strict::frame`].
    Packet(Packet),
    Publish(mqtt::Publish, Bytes),
    /// The request of this [`Effect::Admit`] is durable.
    Durable {
        ticket: u32,
    },
    /// The change of the latest [`Effect::Store`] is durable.
    Stored,
    /// The answer to [`Effect::Fetch`]: what is queued, in order, and the last place given out when it was read.
    Fetched {
        deliveries: Vec<Delivery>,
        last: i64,
    },
    /// Something was queued at this place; with its payload if it is a receipt that is at hand.
    Hint {
        seq: i64,
        receipt: Option<Bytes>,
    },
    /// Something may be queued that no hint told of.
    Look,
    /// Time has passed.
    Wake,
    /// The connection is to end, for a reason that is not the client's doing.
    End(Reason, &'static str),
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send(Packet),
    Publish(mqtt::Publish, Bytes),
    /// Have the request admitted and logged; [`Event::Durable`] when it is.
    Admit {
        ticket: u32,
        payload: Bytes,
    },
    /// Have the change stored; [`Event::Stored`] when it is. One at a time.
    Store(Change),
    /// The client has this delivery.
    Acked {
        seq: i64,
        receipt: bool,
    },
    /// Read the queue beyond these places; [`Event::Fetched`] when that is done.
    Fetch {
        beyond: Beyond,
        max: u16,
    },
    /// A delivery cannot be sent on this connection. A receipt stays queued; another message is given up.
    TooLarge {
        seq: i64,
    },
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
    /// The will, unless the client took its leave.
    pub will: Option<Box<mqtt::LastWill>>,
}

/// One connected terminal's session.
#[derive(Debug)]
pub struct Session {
    terminal: TerminalId,
    terms: Terms,
    present: bool,
    incoming: Incoming,
    outgoing: Outgoing,
    subscriptions: Vec<Subscription>,
    /// SUBSCRIBE and UNSUBSCRIBE packets whose changes are not durable yet, oldest first.
    pending: VecDeque<Pending>,
    heard: Time,
    closed: bool,
}

/// SUBSCRIBE and UNSUBSCRIBE packets that may wait for the database before the socket is left unread.
const PENDING_MAX: usize = 4;

impl Session {
    /// A session at its CONNECT.
    #[must_use]
    pub fn load(terminal: TerminalId, terms: Terms, limits: &Limits, loaded: Loaded, now: Time) -> Self {
        let outgoing = Outgoing::new(&terminal, &terms, limits, loaded.sent_to, now);
        Self {
            incoming: Incoming::new(limits),
            outgoing,
            subscriptions: loaded.subscriptions,
            pending: VecDeque::new(),
            heard: now,
            closed: false,
            present: loaded.present,
            terms,
            terminal,
        }
    }

    /// What is owed at the start of a connection: the CONNACK, and then what the client has not acknowledged.
    pub fn resume(&mut self, limits: &Limits, effects: &mut Vec<Effect>) {
        let ack = self.terms.accept(&self.terminal, self.present, limits);
        effects.push(Effect::Send(Packet::ConnectAck(Box::new(ack))));
        self.deliver(effects);
    }

    #[must_use]
    pub fn terminal(&self) -> &TerminalId {
        &self.terminal
    }

    /// Whether the socket is to be left unread for now.
    #[must_use]
    pub fn full(&self) -> bool {
        self.pending.len() >= PENDING_MAX || self.incoming.full(self.terms.version)
    }

    /// When [`Event::Wake`] is wanted, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.closed {
            return None;
        }
        // A client whose packets are left unread is not silent.
        let keep_alive = (!self.full()).then(|| self.heard + self.terms.silence_max());
        [keep_alive, self.outgoing.stalls_at()].into_iter().flatten().min()
    }

    /// Decides. After [`Effect::Close`] nothing more is decided.
    pub fn handle(&mut self, event: Event, now: Time, effects: &mut Vec<Effect>) {
        if self.closed {
            return;
        }
        match event {
            Event::Packet(packet) => {
                self.heard = now;
                self.packet(packet, now, effects);
            }
            Event::Publish(publish, payload) => {
                self.heard = now;
                self.publish(publish, payload, effects);
            }
            Event::Durable { ticket } => {
                let was_full = self.full();
                self.incoming.durable(ticket, effects);
                if was_full {
                    self.heard = now;
                }
            }
            Event::Stored => self.stored(effects),
            Event::Fetched { deliveries, last } => self.outgoing.fetched(deliveries, last),
            Event::Hint { seq, receipt } => self.outgoing.hint(seq, receipt),
            Event::Look => self.outgoing.look(),
            Event::Wake => self.wake(now, effects),
            Event::End(reason, why) => self.close(Some(reason), why, effects),
        }
        if !self.closed {
            self.outgoing.now(now);
            self.deliver(effects);
        }
    }

    /// What is to be stored of a connection that has ended.
    #[must_use]
    pub fn remains(&mut self) -> Remains {
        Remains { expiry_s: self.terms.expiry_s, sent_to: self.outgoing.sent_to(), will: self.terms.will.take() }
    }

    fn packet(&mut self, packet: Packet, now: Time, effects: &mut Vec<Effect>) {
        match packet {
            Packet::PingRequest => effects.push(Effect::Send(Packet::PingResponse)),
            Packet::PublishAck(ack) => self.outgoing.acked(ack.packet_id, now, effects),
            Packet::Subscribe(subscribe) => {
                if self.in_use(subscribe.packet_id) {
                    return self.close(Some(Reason::ProtocolError), "packet identifier in use [MQTT-2.2.1-3]", effects);
                }
                self.change(decide::subscribe(&self.terminal, subscribe), effects);
            }
            Packet::Unsubscribe(unsubscribe) => {
                if self.in_use(unsubscribe.packet_id) {
                    return self.close(Some(Reason::ProtocolError), "packet identifier in use [MQTT-2.2.1-3]", effects);
                }
                self.change(decide::unsubscribe(&self.subscriptions, unsubscribe), effects);
            }
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect, effects),
            // No PUBLISH at QoS 2 was ever received: there is nothing to release.
            Packet::PublishRelease(release) => {
                let reason_code = mqtt::PublishAck2Reason::PacketIdNotFound;
                let complete = mqtt::PublishAck2 { packet_id: release.packet_id, reason_code, ..Default::default() };
                effects.push(Effect::Send(Packet::PublishComplete(complete)));
            }
            Packet::PublishReceived(_) | Packet::PublishComplete(_) => {
                self.close(Some(Reason::ProtocolError), "nothing was sent at QoS 2", effects);
            }
            Packet::Connect(_) => self.close(Some(Reason::ProtocolError), "a second CONNECT [MQTT-3.1.0-2]", effects),
            Packet::Auth(_) => self.close(Some(Reason::ProtocolError), "AUTH without a method", effects),
            Packet::ConnectAck(_) | Packet::SubscribeAck(_) | Packet::UnsubscribeAck(_) | Packet::PingResponse => {
                self.close(Some(Reason::ProtocolError), "a packet that only a server sends", effects);
            }
        }
    }

    fn publish(&mut self, publish: mqtt::Publish, payload: Bytes, effects: &mut Vec<Effect>) {
        let refused = if publish.qos == QoS::ExactlyOnce {
            Some((Reason::QosNotSupported, "QoS 2 is not offered [MQTT-3.2.2-11]"))
        } else if publish.retain {
            Some((Reason::RetainNotSupported, "retained messages are not offered [MQTT-3.2.2-14]"))
        } else if publish.properties.topic_alias.is_some() {
            Some((Reason::TopicAliasInvalid, "the topic alias maximum is 0 [MQTT-3.3.2-9]"))
        } else {
            None
        };
        if let Some((reason, why)) = refused {
            return self.close(Some(reason), why, effects);
        }
        if !is_own(&self.terminal, "q/", &publish.topic) {
            return self.foreign(publish.packet_id, effects);
        }
        let Some(packet_id) = publish.packet_id else {
            return self.incoming.arrived(None, payload, effects);
        };
        if self.incoming.holds(packet_id) {
            // A 3.1.1 client may send again while it waits; the answer is on its way.
            if self.terms.version == Version::V3 && publish.dup {
                return;
            }
            return self.close(Some(Reason::ProtocolError), "packet identifier in use [MQTT-2.2.1-3]", effects);
        }
        if self.in_use(packet_id) {
            return self.close(Some(Reason::ProtocolError), "packet identifier in use [MQTT-2.2.1-3]", effects);
        }
        if self.incoming.exceeded() && self.terms.version == Version::V5 {
            return self.close(Some(Reason::ReceiveMaximumExceeded), "receive maximum exceeded", effects);
        }
        self.incoming.arrived(Some(packet_id), payload, effects);
    }

    /// A topic that is not this terminal's to publish to. MQTT 3.1.1 has no way to say so but to close (3.3.5).
    fn foreign(&mut self, packet_id: Option<NonZeroU16>, effects: &mut Vec<Effect>) {
        match (self.terms.version, packet_id) {
            (Version::V3, _) => {
                self.close(Some(Reason::NotAuthorized), "publish to another topic than q/<self>", effects)
            }
            (Version::V5, Some(packet_id)) => {
                let why = self.terms.explain("a terminal publishes on q/<its name> only");
                self.incoming.refused(packet_id, why, effects);
            }
            (Version::V5, None) => {}
        }
    }

    fn in_use(&self, packet_id: NonZeroU16) -> bool {
        self.pending.iter().any(|pending| pending.packet_id() == packet_id) || self.incoming.holds(packet_id)
    }

    fn change(&mut self, pending: Pending, effects: &mut Vec<Effect>) {
        self.pending.push_back(pending);
        if self.pending.len() == 1 {
            self.store_next(effects);
        }
    }

    /// Has the oldest change stored, or applies it at once when there is nothing to keep.
    fn store_next(&mut self, effects: &mut Vec<Effect>) {
        while let Some(pending) = self.pending.front() {
            if let Some(change) = pending.change()
                && self.terms.expiry_s > 0
            {
                effects.push(Effect::Store(change.clone()));
                return;
            }
            self.apply_front(effects);
        }
    }

    fn stored(&mut self, effects: &mut Vec<Effect>) {
        self.apply_front(effects);
        self.store_next(effects);
    }

    fn apply_front(&mut self, effects: &mut Vec<Effect>) {
        if let Some(pending) = self.pending.pop_front() {
            let ack = pending.apply(&mut self.subscriptions, self.terms.problem_info);
            effects.push(Effect::Send(ack));
        }
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
    }

    fn deliver(&mut self, effects: &mut Vec<Effect>) {
        self.outgoing.deliver(&self.subscriptions, effects);
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
            self.terms.will = None;
        }
        self.close(None, "the client disconnected", effects);
    }

    fn wake(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if !self.full() && now >= self.heard + self.terms.silence_max() {
            self.close(Some(Reason::KeepAliveTimeout), "silent for longer than one and a half keep-alives", effects);
        } else if self.outgoing.stalls_at().is_some_and(|at| now >= at) {
            self.close(Some(Reason::UnspecifiedError), "no delivery was acknowledged in time", effects);
        }
    }

    /// Ends the connection; with a DISCONNECT if the client's version has one.
    fn close(&mut self, reason: Option<Reason>, why: &'static str, effects: &mut Vec<Effect>) {
        if let Some(reason_code) = reason
            && self.terms.version == Version::V5
        {
            let disconnect = Disconnect { reason_string: self.terms.explain(why), ..Disconnect::new(reason_code) };
            effects.push(Effect::Send(Packet::Disconnect(disconnect)));
        }
        self.closed = true;
        effects.push(Effect::Close(why));
    }
}

/// Whether `topic` is this terminal's own, such as `q/T1`.
fn is_own(terminal: &TerminalId, prefix: &str, topic: &str) -> bool {
    topic.strip_prefix(prefix) == Some(terminal.as_str())
}

/// The topic on which a terminal receives its receipts.
#[must_use]
pub fn receipts_topic(terminal: &TerminalId) -> ByteString {
    ByteString::from(format!("r/{terminal}"))
}

/// The topic on which a terminal receives what is not a receipt.
#[must_use]
pub fn messages_topic(terminal: &TerminalId) -> ByteString {
    ByteString::from(format!("c/{terminal}"))
}
