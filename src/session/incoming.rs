//! What a client publishes: held until it is durable, answered in the order of arrival [MQTT-4.6.0-2], [MQTT-4.6.0-3].
//!
//! At QoS 2 the packet identifier is remembered from the PUBLISH to the PUBREL, so that a repetition is not taken for
//! another message (4.3.3, method A). For a session that outlives its connection it is remembered with the message, in one
//! commit, and PUBCOMP waits until it is forgotten: a client that uses the identifier again must not be taken for one that
//! repeats itself.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Packet, PublishAck, PublishAck2, PublishAck2Reason, PublishAckReason, QoS};

use super::aliases::Heard;
use super::{Effect, Flaw, Limits, Version, protocol};
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
    /// Identifiers of publishes on this connection that are not complete: they count against the Receive Maximum, which is
    /// a connection's own (4.9).
    here: BTreeMap<NonZeroU16, Stage>,
    /// Those of QoS 2 that an earlier connection left and this one has not heard of.
    earlier: BTreeMap<NonZeroU16, Stage>,
    /// Whether identifiers outlive the connection.
    kept: bool,
    max: u16,
    unreleased_max: u16,
    admitting_max: u16,
}

#[derive(Debug)]
struct Arrived {
    /// None at QoS 0, and where nothing is to be said any more.
    packet_id: Option<NonZeroU16>,
    qos: QoS,
    state: State,
}

/// How far the exchange of a packet identifier has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its PUBLISH is not answered yet.
    Arrived,
    /// QoS 2: the message is durable, PUBREC was sent.
    Received,
    /// PUBREL came, and it is being forgotten.
    Releasing,
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
            here: BTreeMap::new(),
            earlier: BTreeMap::new(),
            kept,
            max: limits.inbound_max.get(),
            unreleased_max: limits.unreleased_max.get(),
            admitting_max: limits.admitting_max.get(),
        }
    }

    /// Identifiers of QoS 2 that an earlier connection left.
    pub(super) fn remember(&mut self, received: Vec<NonZeroU16>) {
        self.earlier.extend(received.into_iter().map(|packet_id| (packet_id, Stage::Received)));
    }

    /// How many publishes, how many identifiers, and how many aliases.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.arrived.len(), self.here.len() + self.earlier.len(), self.aliases.len())
    }

    /// Whether a publish is not answered yet.
    pub(super) fn is_busy(&self) -> bool {
        !self.arrived.is_empty()
    }

    fn stage(&self, packet_id: NonZeroU16) -> Option<Stage> {
        self.here.get(&packet_id).or_else(|| self.earlier.get(&packet_id)).copied()
    }

    /// Whether an identifier belongs to a publish that is not complete.
    pub(super) fn uses(&self, packet_id: NonZeroU16) -> bool {
        self.stage(packet_id).is_some()
    }

    /// Whether an identifier belongs to a publish that is not answered yet.
    pub(super) fn holds(&self, packet_id: NonZeroU16) -> bool {
        self.stage(packet_id) == Some(Stage::Arrived)
    }

    /// Whether an identifier belongs to a publish at QoS 2 that was taken and is not released.
    pub(super) fn has_received(&self, packet_id: NonZeroU16) -> bool {
        self.stage(packet_id) == Some(Stage::Received)
    }

    /// Whether a publish with this identifier is more than the Receive Maximum.
    pub(super) fn exceeded(&self, packet_id: NonZeroU16, version: Version) -> bool {
        let all = self.here.len() + self.earlier.len();
        // MQTT 3.1.1 has none. What a client leaves unreleased is bounded all the same, over all its connections.
        let (max, all_max) = match version {
            Version::V3 => (u16::MAX, self.unreleased_max),
            Version::V5 => (self.max, self.unreleased_max.max(self.max)),
        };
        let (counts, is_new) = (!self.here.contains_key(&packet_id), !self.uses(packet_id));
        counts && self.here.len() >= usize::from(max) || is_new && all >= usize::from(all_max)
    }

    /// MQTT 3.1.1 has no Receive Maximum, and QoS 0 none in either version: then the socket is left unread. The packets
    /// of an MQTT 5 client above QoS 0 count against its Receive Maximum instead, so that its PINGREQ are always read.
    pub(super) fn full(&self, version: Version) -> bool {
        let counted = match version {
            Version::V3 => 0,
            Version::V5 => self.here.len(),
        };
        self.arrived.len() >= usize::from(self.max) + counted
    }

    pub(super) fn arrived(&mut self, packet_id: Option<NonZeroU16>, qos: QoS, work: Work, effects: &mut Vec<Effect>) {
        self.here.extend(packet_id.map(|packet_id| (packet_id, Stage::Arrived)));
        self.push(Arrived { packet_id, qos, state: State::Waiting(work) }, effects);
    }

    /// A publish that is refused is answered in its turn like the others.
    pub(super) fn refused(
        &mut self,
        packet_id: NonZeroU16,
        qos: QoS,
        why: Option<ByteString>,
        effects: &mut Vec<Effect>,
    ) {
        self.here.insert(packet_id, Stage::Arrived);
        self.push(Arrived { packet_id: Some(packet_id), qos, state: State::Refused(why) }, effects);
    }

    /// A publish at QoS 2 whose message was taken before: it is answered, and not taken again [MQTT-4.3.3-10].
    pub(super) fn repeated(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) {
        self.earlier.remove(&packet_id);
        self.here.insert(packet_id, Stage::Received);
        self.push(Arrived { packet_id: Some(packet_id), qos: QoS::ExactlyOnce, state: State::Durable }, effects);
    }

    fn push(&mut self, arrived: Arrived, effects: &mut Vec<Effect>) {
        self.arrived.push_back(arrived);
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
                let (qos, taken) = (arrived.qos, reason_code == PublishAckReason::Success);
                if qos == QoS::ExactlyOnce && taken {
                    self.here.insert(packet_id, Stage::Received);
                } else {
                    self.here.remove(&packet_id);
                }
                effects.push(Effect::Send(if qos == QoS::ExactlyOnce {
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
    pub(super) fn released(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) -> Result<(), Flaw> {
        match self.here.get_mut(&packet_id).or_else(|| self.earlier.get_mut(&packet_id)) {
            Some(Stage::Arrived) => return Err(protocol("PUBREL before PUBREC [MQTT-4.3.3-4]")),
            Some(Stage::Releasing) => return Ok(()),
            Some(stage @ Stage::Received) => *stage = Stage::Releasing,
            None => {
                complete(packet_id, PublishAck2Reason::PacketIdNotFound, effects);
                return Ok(());
            }
        }
        // It has its PUBREC: if it asked for it more than once, a late one would be of the next with this identifier.
        let repetitions = self.arrived.iter_mut().filter(|arrived| arrived.packet_id == Some(packet_id));
        repetitions.for_each(|arrived| arrived.packet_id = None);
        if self.kept {
            effects.push(Effect::Forget { packet_id });
        } else {
            self.forgotten(packet_id, effects);
        }
        Ok(())
    }

    /// An identifier that was released is forgotten. PUBCOMP has no order to keep (4.6).
    pub(super) fn forgotten(&mut self, packet_id: NonZeroU16, effects: &mut Vec<Effect>) {
        if self.stage(packet_id) == Some(Stage::Releasing) {
            self.here.remove(&packet_id);
            self.earlier.remove(&packet_id);
            complete(packet_id, PublishAck2Reason::Success, effects);
        }
    }
}

fn complete(packet_id: NonZeroU16, reason_code: PublishAck2Reason, effects: &mut Vec<Effect>) {
    let complete = PublishAck2 { packet_id, reason_code, ..PublishAck2::default() };
    effects.push(Effect::Send(Packet::PublishComplete(complete)));
}
