//! A client that follows the standard, and forgets only what it must.

use std::collections::{BTreeMap, BTreeSet};

use ntex_mqtt::v5::codec::PublishAck2;

use super::super::*;
use super::{Tally, Words, broker};

#[derive(Clone, Copy)]
pub(super) struct Unacknowledged {
    packet_id: u16,
    pub(super) number: u32,
    words: Words,
    released: bool,
}

#[derive(Default)]
pub(super) struct Client {
    /// In the order of publishing.
    pub(super) unacknowledged: Vec<Unacknowledged>,
    last_id: u16,
    /// Identifiers of QoS 2 that it has and the server has not released.
    received: BTreeSet<u16>,
    /// Those of them that the server has not released, in the order of its last PUBREC for each.
    unreleased: Vec<u16>,
    /// Those whose PUBREC the server does not have, for it released what came after: it must send the message again.
    unheard: BTreeSet<u16>,
    pub(super) heard: Vec<usize>,
    // Of this connection.
    five: bool,
    receive_max: usize,
    topic_alias_max: u16,
    /// What it said its aliases stand for, and what the server said.
    said: BTreeMap<u16, usize>,
    told: BTreeMap<u16, ByteString>,
    /// Of publishes to it that are not complete.
    in_flight: BTreeSet<u16>,
}

/// What it does about a packet.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) says: Option<Event>,
    /// This copy, for the first or another time.
    pub(super) copy: Option<usize>,
    /// This publish of its own was acknowledged.
    pub(super) acknowledged: Option<u32>,
}

impl Client {
    pub(super) fn connects(&mut self, five: bool, receive_max: u16, topic_alias_max: u16) {
        (self.five, self.receive_max, self.topic_alias_max) = (five, receive_max.into(), topic_alias_max);
        self.said.clear();
        self.told.clear();
        self.in_flight.clear();
    }

    /// What goes out again on a new connection; or, if the server has no session, what it gives up.
    pub(super) fn resumes(&mut self, present: bool) -> (Vec<Event>, Vec<u32>) {
        if !present {
            self.received.clear();
            self.unreleased.clear();
            self.unheard.clear();
            let gone = std::mem::take(&mut self.unacknowledged);
            return (Vec::new(), gone.into_iter().map(|it| it.number).collect());
        }
        let again = self.unacknowledged.clone().into_iter().map(|it| {
            if it.released { release(it.packet_id) } else { self.publish_of(it.packet_id, it.number, it.words, true) }
        });
        (again.collect(), Vec::new())
    }

    /// None if it may not at this time.
    pub(super) fn publishes(&mut self, number: u32, words: Words, tally: &mut Tally) -> Option<Event> {
        let waits = words.qos > 0;
        if waits && self.unacknowledged.len() >= usize::from(limits().inbound_max.get()) {
            return None;
        }
        if waits {
            loop {
                // Few of them, so that they are used again soon.
                self.last_id = self.last_id % 6 + 1;
                if self.unacknowledged.iter().all(|it| it.packet_id != self.last_id) {
                    break;
                }
            }
            let packet_id = self.last_id;
            self.unacknowledged.push(Unacknowledged { packet_id, number, words, released: false });
        }
        let mut event = self.publish_of(self.last_id, number, words, false);
        if let Event::Publish(publish, _) = &mut event
            && words.alias
            && self.five
        {
            let alias = 1 + u16::try_from(words.topic).expect("few") % limits().topic_alias_max;
            publish.topic_alias = NonZeroU16::new(alias);
            if self.said.insert(alias, words.topic) == Some(words.topic) {
                publish.topic = ByteString::new();
                tally.aliases_up += 1;
            }
        }
        Some(event)
    }

    fn publish_of(&self, packet_id: u16, number: u32, words: Words, dup: bool) -> Event {
        let mut publish = Publish {
            dup: dup && words.qos > 0,
            retain: words.retain,
            qos: qos_of(words.qos),
            packet_id: (words.qos > 0).then(|| id(packet_id)),
            topic: broker::TOPICS[words.topic].into(),
            ..Publish::default()
        };
        if self.five {
            publish.expiry_s = words.expiry;
        }
        Event::Publish(publish, Bytes::from(number.to_string()))
    }

    pub(super) fn hears(&mut self, effect: Effect, tally: &mut Tally) -> Heard {
        let place = |packet_id: NonZeroU16| self.unacknowledged.iter().position(|it| it.packet_id == packet_id.get());
        let mut heard = Heard::default();
        match effect {
            Effect::Publish(publish, payload) => return self.hears_publish(&publish, &payload, tally),
            Effect::Send(Packet::PublishRelease(ack)) => {
                self.received.remove(&ack.packet_id.get());
                self.is_released(ack.packet_id.get());
                let ack = PublishAck2 { packet_id: ack.packet_id, ..PublishAck2::default() };
                self.in_flight.remove(&ack.packet_id.get());
                heard.says = Some(Event::Packet(Packet::PublishComplete(ack)));
            }
            Effect::Send(Packet::PublishAck(ack)) => {
                let at = place(ack.packet_id).expect("what it acknowledges was published");
                heard.acknowledged = Some(self.unacknowledged.remove(at).number);
            }
            Effect::Send(Packet::PublishReceived(ack)) => {
                let at = place(ack.packet_id).expect("what it acknowledges was published");
                self.unacknowledged[at].released = true;
                heard.acknowledged = Some(self.unacknowledged[at].number);
                heard.says = Some(release(ack.packet_id.get()));
            }
            Effect::Send(Packet::PublishComplete(ack)) => {
                // A second one for the same: the first PUBREL was answered, and so was its repetition.
                if let Some(at) = place(ack.packet_id).filter(|&at| self.unacknowledged[at].released) {
                    self.unacknowledged.remove(at);
                }
            }
            Effect::Send(
                Packet::ConnectAck(_) | Packet::SubscribeAck(_) | Packet::UnsubscribeAck(_) | Packet::Disconnect(_),
            ) => {}
            other => panic!("{other:?}"),
        }
        heard
    }

    /// In the order of the PUBRECs that the server has, on this connection and those before [MQTT-4.6.0-4]: the client may
    /// pass on a message no sooner than here (figure 4.3).
    fn is_released(&mut self, packet_id: u16) {
        assert!(!self.unheard.contains(&packet_id), "released after one that was received later [MQTT-4.6.0-4]");
        if let Some(at) = self.unreleased.iter().position(|&other| other == packet_id) {
            self.unheard.extend(self.unreleased.drain(..=at).filter(|&other| other != packet_id));
        }
    }

    fn hears_publish(&mut self, publish: &Publish, payload: &[u8], tally: &mut Tally) -> Heard {
        if let Some(alias) = publish.topic_alias {
            assert!(alias.get() <= self.topic_alias_max, "more aliases than it has room for [MQTT-3.1.2-26]");
            if publish.topic.is_empty() {
                tally.aliases_down += 1;
            } else {
                self.told.insert(alias.get(), publish.topic.clone());
            }
            assert!(self.told.contains_key(&alias.get()));
        }
        let copy = std::str::from_utf8(payload).expect("text").parse().expect("a number");
        let mut heard = Heard::default();
        tally.again += u64::from(publish.dup);
        if let Some(packet_id) = publish.packet_id {
            self.in_flight.insert(packet_id.get());
            assert!(self.in_flight.len() <= self.receive_max, "more than it takes at once [MQTT-3.3.4-9]");
        }
        match (publish.qos, publish.packet_id.map(NonZeroU16::get)) {
            (QoS::AtMostOnce, None) => heard.copy = Some(copy),
            (QoS::AtLeastOnce, Some(packet_id)) => {
                heard.copy = Some(copy);
                self.in_flight.remove(&packet_id);
                heard.says = Some(puback(packet_id));
            }
            (QoS::ExactlyOnce, Some(packet_id)) => {
                heard.copy = self.received.insert(packet_id).then_some(copy);
                self.unheard.remove(&packet_id);
                self.unreleased.retain(|&other| other != packet_id);
                self.unreleased.push(packet_id);
                let ack = PublishAck { packet_id: id(packet_id), ..PublishAck::default() };
                heard.says = Some(Event::Packet(Packet::PublishReceived(ack)));
            }
            _ => panic!("{publish:?}"),
        }
        self.heard.extend(heard.copy);
        heard
    }
}

pub(super) fn qos_of(number: u8) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(number)]
}

fn release(packet_id: u16) -> Event {
    Event::Packet(Packet::PublishRelease(PublishAck2 { packet_id: id(packet_id), ..PublishAck2::default() }))
}
