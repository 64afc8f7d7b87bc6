//! What a client publishes: held until it is durable, acknowledged in the order of arrival [MQTT-4.6.0-2].

use std::collections::VecDeque;
use std::num::NonZeroU16;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Packet, PublishAck, PublishAckReason};

use super::{Effect, Limits, Version};

#[derive(Debug)]
pub(super) struct Incoming {
    arrived: VecDeque<Arrived>,
    /// The ticket of the first of `arrived`.
    first: u32,
    /// How many of `arrived`, from the first on, were handed on.
    handed: usize,
    /// How many of those are not durable yet.
    admitting: u16,
    /// How many of `arrived` are at QoS 1.
    unacknowledged: u16,
    max: u16,
    admitting_max: u16,
}

#[derive(Debug)]
struct Arrived {
    /// None at QoS 0.
    packet_id: Option<NonZeroU16>,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting(Bytes),
    Admitting,
    Durable,
    Refused(Option<ByteString>),
}

impl Incoming {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            arrived: VecDeque::new(),
            first: 0,
            handed: 0,
            admitting: 0,
            unacknowledged: 0,
            max: limits.inbound_max.get(),
            admitting_max: limits.admitting_max.get(),
        }
    }

    /// Whether an identifier belongs to a publish that is not acknowledged yet.
    pub(super) fn holds(&self, packet_id: NonZeroU16) -> bool {
        self.arrived.iter().any(|arrived| arrived.packet_id == Some(packet_id))
    }

    /// Whether one more at QoS 1 is more than the Receive Maximum.
    pub(super) fn exceeded(&self) -> bool {
        self.unacknowledged >= self.max
    }

    /// MQTT 3.1.1 has no Receive Maximum, and QoS 0 none in either version: then the socket is left unread. The packets
    /// of an MQTT 5 client at QoS 1 count against its Receive Maximum instead, so that its PINGREQ are always read.
    pub(super) fn full(&self, version: Version) -> bool {
        let counted = match version {
            Version::V3 => self.arrived.len(),
            Version::V5 => self.arrived.len().saturating_sub(usize::from(self.unacknowledged)),
        };
        counted >= usize::from(self.max)
    }

    pub(super) fn arrived(&mut self, packet_id: Option<NonZeroU16>, payload: Bytes, effects: &mut Vec<Effect>) {
        self.unacknowledged += u16::from(packet_id.is_some());
        self.arrived.push_back(Arrived { packet_id, state: State::Waiting(payload) });
        self.hand_on(effects);
    }

    /// A publish that is refused is answered in its turn like the others.
    pub(super) fn refused(&mut self, packet_id: NonZeroU16, why: Option<ByteString>, effects: &mut Vec<Effect>) {
        self.unacknowledged += 1;
        self.arrived.push_back(Arrived { packet_id: Some(packet_id), state: State::Refused(why) });
        self.hand_on(effects);
        self.release(effects);
    }

    pub(super) fn durable(&mut self, ticket: u32, effects: &mut Vec<Effect>) {
        let place = usize::try_from(ticket.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let Some(arrived) = self.arrived.get_mut(place) else { return };
        if matches!(arrived.state, State::Admitting) {
            arrived.state = State::Durable;
            self.admitting -= 1;
            self.release(effects);
            self.hand_on(effects);
        }
    }

    fn hand_on(&mut self, effects: &mut Vec<Effect>) {
        while self.admitting < self.admitting_max
            && let Some(arrived) = self.arrived.get_mut(self.handed)
        {
            if let State::Waiting(payload) = &mut arrived.state {
                let ticket = self.first.wrapping_add(u32::try_from(self.handed).unwrap_or(0));
                effects.push(Effect::Admit { ticket, payload: std::mem::take(payload) });
                arrived.state = State::Admitting;
                self.admitting += 1;
            }
            self.handed += 1;
        }
    }

    /// Acknowledges from the first on, as far as all is settled.
    fn release(&mut self, effects: &mut Vec<Effect>) {
        while let Some(arrived) = self.arrived.front_mut() {
            let (reason_code, reason_string) = match &mut arrived.state {
                State::Waiting(_) | State::Admitting => return,
                State::Durable => (PublishAckReason::Success, None),
                State::Refused(why) => (PublishAckReason::NotAuthorized, why.take()),
            };
            if let Some(packet_id) = arrived.packet_id {
                let ack = PublishAck { packet_id, reason_code, reason_string, ..PublishAck::default() };
                effects.push(Effect::Send(Packet::PublishAck(ack)));
                self.unacknowledged -= 1;
            }
            self.arrived.pop_front();
            self.first = self.first.wrapping_add(1);
            self.handed = self.handed.saturating_sub(1);
        }
        if self.arrived.capacity() > 8 {
            self.arrived = VecDeque::new();
        }
    }
}
