//! What a client publishes: held until it is durable, answered in the order of arrival [MQTT-4.6.0-2], [MQTT-4.6.0-3].
//!
//! At QoS 2 the packet identifier is remembered from the PUBLISH to the PUBREL, so that a repetition is not taken for
//! another message (4.3.3, method A). For a session that outlives its connection it is remembered with the message, in one
//! commit, and PUBCOMP waits until it is forgotten: a client that uses the identifier again must not be taken for one that
//! repeats itself.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Packet, PublishAck, PublishAck2, PublishAck2Reason, PublishAckReason, QoS};

use super::aliases::Heard;
use super::{Effect, Limits, Version};
use crate::message::Message;

#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) aliases: Heard,
    arrived: VecDeque<Arrived>,
    /// The ticket of the first of `arrived`.
    first: u32,
    /// How many of `arrived`, from the first on, were handed on.
    handed: usize,
    /// How many requests of those are not durable yet.
    admitting: u16,
    /// How many of `arrived` count against the Receive Maximum; those in `received` do too, but for `earlier`.
    unanswered: u16,
    /// Identifiers of QoS 2: the message is durable, PUBCOMP was not sent.
    received: BTreeSet<NonZeroU16>,
    /// Those of them that an earlier connection left. The Receive Maximum is a connection's own (4.9).
    earlier: BTreeSet<NonZeroU16>,
    /// Those of them that were released and are being forgotten, oldest first.
    releasing: VecDeque<NonZeroU16>,
    /// Whether identifiers outlive the connection.
    kept: bool,
    max: u16,
    unreleased_max: u16,
    admitting_max: u16,
}

#[derive(Debug)]
struct Arrived {
    /// None at QoS 0.
    packet_id: Option<NonZeroU16>,
    qos: QoS,
    /// QoS 2, and its message was taken before.
    repeated: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Work),
    Admitting,
    Routing,
    Durable,
    Refused(Option<ByteString>),
}

/// What is to be done with a publish.
#[derive(Debug)]
pub(super) enum Work {
    Admit(Bytes),
    Route(Arc<Message>),
}

impl Incoming {
    pub(super) fn new(limits: &Limits, kept: bool) -> Self {
        Self {
            aliases: Heard::new(limits.topic_alias_max),
            arrived: VecDeque::new(),
            first: 0,
            handed: 0,
            admitting: 0,
            unanswered: 0,
            received: BTreeSet::new(),
            earlier: BTreeSet::new(),
            releasing: VecDeque::new(),
            kept,
            max: limits.inbound_max.get(),
            unreleased_max: limits.unreleased_max.get(),
            admitting_max: limits.admitting_max.get(),
        }
    }

    /// Identifiers of QoS 2 that an earlier connection left.
    pub(super) fn remember(&mut self, received: Vec<NonZeroU16>) {
        self.earlier.extend(&received);
        self.received.extend(received);
    }

    /// How many publishes, how many identifiers of QoS 2, and how many aliases.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.arrived.len(), self.received.len(), self.aliases.len())
    }

    /// Whether a publish is not answered yet.
    pub(super) fn is_busy(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Whether an identifier belongs to a publish that is not complete.
    pub(super) fn uses(&self, packet_id: NonZeroU16) -> bool {
        self.holds(packet_id) || self.has_received(packet_id)
    }

    /// Whether an identifier belongs to a publish that is not answered yet.
    pub(super) fn holds(&self, packet_id: NonZeroU16) -> bool {
        self.arrived.iter().any(|arrived| arrived.packet_id == Some(packet_id))
    }

    /// Whether an identifier belongs to a publish at QoS 2 that was taken and is not complete.
    pub(super) fn has_received(&self, packet_id: NonZeroU16) -> bool {
        self.received.contains(&packet_id)
    }

    /// Whether one more at QoS 1 or 2 is more than the Receive Maximum.
    pub(super) fn exceeded(&self, version: Version) -> bool {
        let all = usize::from(self.unanswered) + self.received.len();
        // MQTT 3.1.1 has none. What a client leaves unreleased is bounded all the same, over all its connections.
        match version {
            Version::V3 => all >= usize::from(self.unreleased_max),
            Version::V5 => {
                all - self.earlier.len() >= usize::from(self.max)
                    || all >= usize::from(self.unreleased_max.max(self.max))
            }
        }
    }

    /// MQTT 3.1.1 has no Receive Maximum, and QoS 0 none in either version: then the socket is left unread. The packets
    /// of an MQTT 5 client above QoS 0 count against its Receive Maximum instead, so that its PINGREQ are always read.
    pub(super) fn full(&self, version: Version) -> bool {
        let counted = match version {
            Version::V3 => self.arrived.len(),
            Version::V5 => self.arrived.len().saturating_sub(usize::from(self.unanswered)),
        };
        counted >= usize::from(self.max)
    }

    pub(super) fn arrived(&mut self, packet_id: Option<NonZeroU16>, qos: QoS, work: Work, effects: &mut Vec<Effect>) {
        self.unanswered += u16::from(packet_id.is_some());
        self.push(packet_id, qos, false, State::Waiting(work), effects);
    }

    /// A publish that is refused is answered in its turn like the others.
    pub(super) fn refused(
        &mut self,
        packet_id: NonZeroU16,
        qos: QoS,
        why: Option<ByteString>,
        effects: &mut Vec<Effect>,
    ) {
        self.unanswered += 1;
        self.push(Some(packet_id), qos, false, State::Refused(why), effects);
    }

    /// A publish at QoS 2 whose message was taken before: it is answered, and not taken again [MQTT-4.3.3-10].
    pub(super) fn repeated(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) {
        self.push(Some(packet_id), QoS::ExactlyOnce, true, State::Durable, effects);
    }

    fn push(
        &mut self,
        packet_id: Option<NonZeroU16>,
        qos: QoS,
        repeated: bool,
        state: State,
        effects: &mut Vec<Effect>,
    ) {
        self.arrived.push_back(Arrived { packet_id, qos, repeated, state });
        self.hand_on(effects);
        self.answer(effects);
    }

    pub(super) fn durable(&mut self, ticket: u32, effects: &mut Vec<Effect>) {
        let place = usize::try_from(ticket.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let Some(arrived) = self.arrived.get_mut(place) else { return };
        match arrived.state {
            State::Admitting => self.admitting -= 1,
            State::Routing => {}
            State::Waiting(_) | State::Durable | State::Refused(_) => return,
        }
        arrived.state = State::Durable;
        self.answer(effects);
        self.hand_on(effects);
    }

    fn hand_on(&mut self, effects: &mut Vec<Effect>) {
        while let Some(arrived) = self.arrived.get_mut(self.handed) {
            if let State::Waiting(work) = &mut arrived.state {
                let ticket = self.first.wrapping_add(u32::try_from(self.handed).unwrap_or(0));
                let remember = arrived.packet_id.filter(|_| self.kept && arrived.qos == QoS::ExactlyOnce);
                match work {
                    Work::Admit(_) if self.admitting >= self.admitting_max => return,
                    Work::Admit(payload) => {
                        let payload = std::mem::take(payload);
                        effects.push(Effect::Admit { ticket, payload, remember });
                        arrived.state = State::Admitting;
                        self.admitting += 1;
                    }
                    Work::Route(message) => {
                        effects.push(Effect::Route { ticket, message: Arc::clone(message), remember });
                        arrived.state = State::Routing;
                    }
                }
            }
            self.handed += 1;
        }
    }

    /// Answers from the first on, as far as all is settled.
    fn answer(&mut self, effects: &mut Vec<Effect>) {
        while let Some(arrived) = self.arrived.front_mut() {
            let (reason_code, reason_string) = match &mut arrived.state {
                State::Waiting(_) | State::Admitting | State::Routing => return,
                State::Durable => (PublishAckReason::Success, None),
                State::Refused(why) => (PublishAckReason::NotAuthorized, why.take()),
            };
            if let Some(packet_id) = arrived.packet_id {
                let ack = PublishAck { packet_id, reason_code, reason_string, ..PublishAck::default() };
                self.unanswered -= u16::from(!arrived.repeated);
                effects.push(Effect::Send(if arrived.qos == QoS::ExactlyOnce {
                    if reason_code == PublishAckReason::Success {
                        self.received.insert(packet_id);
                    }
                    Packet::PublishReceived(ack)
                } else {
                    Packet::PublishAck(ack)
                }));
            }
            self.arrived.pop_front();
            self.first = self.first.wrapping_add(1);
            self.handed = self.handed.saturating_sub(1);
        }
        if self.arrived.capacity() > 8 {
            self.arrived = VecDeque::new();
        }
    }

    /// A PUBREL: its identifier is forgotten, and then it is complete.
    pub(super) fn released(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) {
        if self.releasing.contains(&packet_id) {
            return;
        }
        if self.kept && self.received.contains(&packet_id) {
            self.releasing.push_back(packet_id);
            return effects.push(Effect::Forget { packet_id });
        }
        let known = self.forget(packet_id);
        complete(packet_id, known, effects);
    }

    /// An identifier that was released is forgotten. PUBCOMP has no order to keep (4.6).
    pub(super) fn forgotten(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) {
        if let Some(place) = self.releasing.iter().position(|releasing| *releasing == packet_id) {
            self.releasing.remove(place);
            self.forget(packet_id);
            complete(packet_id, true, effects);
        }
        if self.releasing.is_empty() {
            self.releasing = VecDeque::new();
        }
    }

    fn forget(&mut self, packet_id: NonZeroU16) -> bool {
        // Released before its repetition is answered, which counts by itself then.
        let repetition = |arrived: &&mut Arrived| arrived.repeated && arrived.packet_id == Some(packet_id);
        if let Some(arrived) = self.arrived.iter_mut().find(repetition) {
            arrived.repeated = false;
            self.unanswered += 1;
        }
        self.earlier.remove(&packet_id);
        self.received.remove(&packet_id)
    }
}

fn complete(packet_id: NonZeroU16, known: bool, effects: &mut Vec<Effect>) {
    let reason_code = if known { PublishAck2Reason::Success } else { PublishAck2Reason::PacketIdNotFound };
    let complete = PublishAck2 { packet_id, reason_code, ..PublishAck2::default() };
    effects.push(Effect::Send(Packet::PublishComplete(complete)));
}
