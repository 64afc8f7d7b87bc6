//! From the queue to the client and back: the window, the packets of each QoS (4.3), and what fits.

use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{
    DisconnectReasonCode as Reason, Packet, PublishAck2, PublishAck2Reason, PublishAckReason, QoS,
};

use super::super::strict::Flaw;
use super::{
    Addressed, DIRECT_IDENTIFIERS, Effect, Outgoing, Owed, Place, Queued, ROW_IDENTIFIERS, State, What, packet_id,
};
use crate::conservation::Fate;
use crate::mqtt::{Publish, Version};

/// A message as it goes out.
struct Out {
    publish: Publish,
    payload: Bytes,
}

/// What became of one in the queue.
enum Sent {
    /// It stays until it is acknowledged.
    Stays,
    /// It is out of the queue.
    Gone,
}

impl Outgoing {
    /// Sends what the window has room for.
    pub(super) fn fly(&mut self, effects: &mut Vec<Effect>) {
        self.release_again(effects);
        let mut rows = self.queue.iter().filter(|queued| queued.state.in_flight()).filter_map(row);
        let first = rows.next();
        let mut flying = first.map(|first| (first, rows.next_back().unwrap_or(first)));
        let mut place = 0;
        while self.in_flight < self.window
            && let Some(queued) = self.queue.get(place)
        {
            if queued.state.in_flight() {
                place += 1;
                continue;
            }
            let seq = row(queued);
            let span = seq.map(|seq| flying.map_or((seq, seq), |(first, last)| (first.min(seq), last.max(seq))));
            // Two of them in flight would have one identifier.
            if span.is_some_and(|(first, last)| last - first >= ROW_IDENTIFIERS) {
                break;
            }
            match self.send(place, effects) {
                Sent::Stays => {
                    place += 1;
                    flying = span.or(flying);
                }
                Sent::Gone => {}
            }
        }
    }

    /// The PUBRELs that an earlier connection left, before anything else is sent, so that no PUBREC of this connection
    /// overtakes them, and in the order of its PUBRECs [MQTT-4.6.0-4].
    fn release_again(&mut self, effects: &mut Vec<Effect>) {
        while self.owed != Owed::Released && self.in_flight < self.window {
            let Some((_, place, seq)) = self.owed().min() else {
                if self.owed == Owed::Read {
                    self.owed = Owed::Released;
                }
                return;
            };
            let packet_id = packet_id(seq);
            self.flies(place, State::Released(packet_id));
            effects.push(release(packet_id, PublishAck2Reason::Success));
        }
    }

    /// As which one the PUBREC came, its place in the queue, and that among the client's rows.
    fn owed(&self) -> impl Iterator<Item = (u32, usize, i64)> {
        self.queue.iter().enumerate().filter_map(|(place, queued)| match queued.state {
            State::Owed(nth) => Some((nth, place, row(queued)?)),
            _ => None,
        })
    }

    /// Sends one that waits.
    fn send(&mut self, place: usize, effects: &mut Vec<Effect>) -> Sent {
        let Some(queued) = self.queue.get(place) else { return Sent::Gone };
        let (row, what) = (row(queued), queued.what.clone());
        let receipt = matches!(what, What::Receipt(_));
        let out = match self.out(&what, row) {
            Ok(out) => out,
            Err(Unsent::Over) => {
                // [MQTT-3.3.2-5]: it must not be sent.
                self.remove(place);
                self.end(row, receipt, Fate::Expired, effects);
                return Sent::Gone;
            }
            Err(Unsent::TooLarge) => {
                // [MQTT-3.1.2-25]: it is over. But a receipt is never dropped, so it stays in the database.
                self.remove(place);
                effects.push(Effect::TooLarge { seq: row });
                if let Some(seq) = row.filter(|_| !receipt) {
                    effects.push(Effect::Acked { seq, receipt, fate: Fate::TooLarge });
                }
                return Sent::Gone;
            }
        };
        let sent = (out.publish.packet_id, out.publish.qos);
        effects.push(Effect::Publish(out.publish, out.payload));
        if let (Some(packet_id), qos) = sent {
            self.sent_to = row.map_or(self.sent_to, |seq| self.sent_to.max(seq));
            self.flies(place, State::Sent(packet_id, qos));
            return Sent::Stays;
        }
        self.remove(place);
        self.end(row, receipt, Fate::Delivered, effects);
        Sent::Gone
    }

    pub(super) fn send_at_most_once(&mut self, addressed: &Addressed, effects: &mut Vec<Effect>) {
        match self.out(&What::Message(addressed.clone()), None) {
            Ok(out) => {
                self.settled.delivered += 1;
                effects.push(Effect::Publish(out.publish, out.payload));
            }
            Err(Unsent::Over) => self.settled.expired += 1,
            Err(Unsent::TooLarge) => effects.push(Effect::TooLarge { seq: None }),
        }
    }

    fn flies(&mut self, place: usize, state: State) {
        if self.stalls_at().is_none() {
            self.progress = self.now;
        }
        if let Some(queued) = self.queue.get_mut(place) {
            queued.state = state;
        }
        self.in_flight += 1;
    }

    fn remove(&mut self, place: usize) -> Option<Queued> {
        let queued = self.queue.remove(place)?;
        self.in_flight -= u16::from(queued.state.in_flight());
        if queued.place == Place::Direct {
            self.direct -= 1;
            self.direct_bytes = self.direct_bytes.saturating_sub(queued.what.bytes());
        }
        if self.queue.is_empty() && self.queue.capacity() > 8 {
            self.queue = std::collections::VecDeque::new();
        }
        Some(queued)
    }

    /// The packet, if it may and can be sent.
    fn out(&mut self, what: &What, row: Option<i64>) -> Result<Out, Unsent> {
        let lane = self.lanes.of_row(what);
        let (granted, identifier) = lane.granted.unwrap_or((QoS::AtLeastOnce, None));
        let own_topic = lane.topic.as_deref().cloned();
        let (mut publish, payload) = match what {
            What::Receipt(payload) => (Publish { qos: QoS::AtLeastOnce, ..Publish::default() }, payload.clone()),
            What::Message(Addressed { message, qos, retain, identifiers }) => {
                let qos = message.qos.min(*qos).min(granted);
                // [MQTT-4.3.3-7]: at QoS 2 what was sent is sent again all the same, for its receiver has the identifier.
                let went = qos == QoS::ExactlyOnce && row.is_some_and(|seq| seq <= self.sent_before);
                if message.is_over(self.now) && !went {
                    return Err(Unsent::Over);
                }
                let publish = Publish {
                    retain: *retain,
                    qos,
                    topic: message.topic.clone(),
                    expiry_s: message.left_s(self.now),
                    subscription_ids: identifiers.clone(),
                    properties: message.properties.clone(),
                    ..Publish::default()
                };
                (publish, message.payload.clone())
            }
        };
        if let Some(topic) = own_topic {
            publish.topic = topic;
            publish.subscription_ids = identifier.into_iter().collect();
        }
        publish.packet_id = match (publish.qos, row) {
            (QoS::AtMostOnce, _) => None,
            (_, Some(seq)) => Some(packet_id(seq)),
            (_, None) => Some(self.next_direct_id()),
        };
        publish.dup = publish.packet_id.is_some() && row.is_some_and(|seq| seq <= self.sent_before);
        let (frame, max) = (frame_bytes(&publish, payload.len()), u64::from(self.packet_bytes_max));
        if frame > max {
            return Err(Unsent::TooLarge);
        }
        // With its topic beside it, a new alias makes the packet larger.
        if frame + ALIAS_BYTES <= max {
            (publish.topic, publish.topic_alias) = self.aliases.shorten(&publish.topic);
        }
        Ok(Out { publish, payload })
    }

    fn next_direct_id(&mut self) -> NonZeroU16 {
        loop {
            self.direct_id = if self.direct_id == u16::MAX { *DIRECT_IDENTIFIERS.start() } else { self.direct_id + 1 };
            let id = NonZeroU16::new(self.direct_id).unwrap_or(NonZeroU16::MAX);
            // It ends: the window leaves one of them free.
            if self.place_of(id).is_none() {
                return id;
            }
        }
    }

    fn place_of(&self, packet_id: NonZeroU16) -> Option<usize> {
        self.queue.iter().position(|queued| queued.state.packet_id() == Some(packet_id))
    }

    /// PUBACK.
    pub(in crate::session) fn acked(
        &mut self,
        packet_id: NonZeroU16,
        reason: PublishAckReason,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Flaw> {
        // An acknowledgement of nothing that is in flight is one that came late: no fault (4.4).
        let Some(place) = self.place_of(packet_id) else { return Ok(()) };
        match self.queue.get(place).map(|queued| queued.state) {
            Some(State::Sent(_, QoS::AtLeastOnce)) => self.done(place, fate(reason), effects),
            _ => return Err(out_of_turn("PUBACK for what was sent at QoS 2 [MQTT-4.3.3-4]")),
        }
        Ok(())
    }

    /// PUBREC: the client has it, or will not have it.
    pub(in crate::session) fn received(
        &mut self,
        packet_id: NonZeroU16,
        reason: PublishAckReason,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Flaw> {
        let Some(place) = self.place_of(packet_id) else {
            effects.push(release(packet_id, PublishAck2Reason::PacketIdNotFound));
            return Ok(());
        };
        let Some(queued) = self.queue.get_mut(place) else { return Ok(()) };
        self.progress = self.now;
        match (queued.state, queued.place) {
            (State::Sent(_, QoS::ExactlyOnce), _) if is_error(reason) => self.done(place, Fate::Declined, effects),
            (State::Sent(_, QoS::ExactlyOnce), Place::Row(seq)) => {
                let nth = self.received;
                queued.state = State::Received(packet_id, nth);
                self.received = nth.wrapping_add(1);
                effects.push(Effect::Received { seq, nth });
            }
            (State::Sent(_, QoS::ExactlyOnce), Place::Direct) | (State::Released(_), _) => {
                queued.state = State::Released(packet_id);
                effects.push(release(packet_id, PublishAck2Reason::Success));
            }
            (State::Received(..) | State::Kept(..), _) => {}
            _ => return Err(out_of_turn("PUBREC for what was sent at QoS 1 (4.3.2)")),
        }
        Ok(())
    }

    /// It is stored that the client has this row: from now on it is released, never sent again. PUBRELs keep the order of
    /// the PUBRECs [MQTT-4.6.0-4], whatever the order in which that was heard of.
    pub(in crate::session) fn kept(&mut self, seq: i64, effects: &mut Vec<Effect>) {
        let id = packet_id(seq);
        for queued in &mut self.queue {
            if let State::Received(packet_id, nth) = queued.state
                && packet_id == id
            {
                queued.state = State::Kept(packet_id, nth);
            }
        }
        while let Some((queued, packet_id)) = self.next_to_release() {
            queued.state = State::Released(packet_id);
            self.progress = self.now;
            effects.push(release(packet_id, PublishAck2Reason::Success));
        }
    }

    /// Of those whose PUBREC came and that are not released the one whose came first, if that is stored.
    fn next_to_release(&mut self) -> Option<(&mut Queued, NonZeroU16)> {
        let waiting = self.queue.iter_mut().filter_map(|queued| match queued.state {
            State::Received(_, nth) => Some((nth, None, queued)),
            State::Kept(packet_id, nth) => Some((nth, Some(packet_id), queued)),
            _ => None,
        });
        let (_, kept, queued) = waiting.min_by_key(|(nth, ..)| *nth)?;
        Some((queued, kept?))
    }

    /// PUBCOMP.
    pub(in crate::session) fn completed(
        &mut self,
        packet_id: NonZeroU16,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Flaw> {
        let Some(place) = self.place_of(packet_id) else { return Ok(()) };
        match self.queue.get(place).map(|queued| queued.state) {
            Some(State::Released(_)) => self.done(place, Fate::Delivered, effects),
            _ => return Err(out_of_turn("PUBCOMP for what was not released (4.3.3)")),
        }
        Ok(())
    }

    fn done(&mut self, place: usize, fate: Fate, effects: &mut Vec<Effect>) {
        self.progress = self.now;
        if let Some(queued) = self.remove(place) {
            self.end(row(&queued), matches!(queued.what, What::Receipt(_)), fate, effects);
        }
    }

    fn end(&mut self, row: Option<i64>, receipt: bool, fate: Fate, effects: &mut Vec<Effect>) {
        match (row, fate) {
            (Some(seq), fate) => effects.push(Effect::Acked { seq, receipt, fate }),
            (None, Fate::Declined) => self.settled.declined += 1,
            (None, Fate::Expired) => self.settled.expired += 1,
            (None, _) => self.settled.delivered += 1,
        }
    }
}

/// Why something is not sent.
enum Unsent {
    Over,
    TooLarge,
}

fn is_error(reason: PublishAckReason) -> bool {
    u8::from(reason) >= 0x80
}

/// An error code ends it as well: it is not sent again (4.3.2).
fn fate(reason: PublishAckReason) -> Fate {
    if is_error(reason) { Fate::Declined } else { Fate::Delivered }
}

fn row(queued: &Queued) -> Option<i64> {
    match queued.place {
        Place::Row(seq) => Some(seq),
        Place::Direct => None,
    }
}

fn release(packet_id: NonZeroU16, reason_code: PublishAck2Reason) -> Effect {
    Effect::Send(Packet::PublishRelease(PublishAck2 { packet_id, reason_code, ..PublishAck2::default() }))
}

fn out_of_turn(why: &'static str) -> Flaw {
    Flaw { reason: Reason::ProtocolError, why }
}

/// The largest payload of a message on this topic in a packet of so many bytes.
#[must_use]
pub fn payload_bytes_max(topic: ByteString, packet_bytes_max: u32) -> u32 {
    let (packet_id, subscription_ids) = (Some(NonZeroU16::MIN), vec![NonZeroU32::MAX]);
    let whole = Publish { topic, packet_id, subscription_ids, expiry_s: Some(1), ..Publish::default() };
    let max = usize::try_from(packet_bytes_max).unwrap_or(usize::MAX);
    let around = frame_bytes(&whole, max) - u64::from(packet_bytes_max);
    packet_bytes_max.saturating_sub(u32::try_from(around).unwrap_or(u32::MAX))
}

/// What a topic alias may add to a packet: the property, and a byte to each of two lengths.
const ALIAS_BYTES: u64 = 5;

/// That of MQTT 5: a client of 3.1.1 names no maximum.
fn frame_bytes(publish: &Publish, payload: usize) -> u64 {
    u64::try_from(publish.frame_bytes(Version::V5, payload)).unwrap_or(u64::MAX)
}
