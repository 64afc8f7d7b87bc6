//! What a terminal hears, and what it holds the session to.

use std::num::NonZeroU16;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::{v3::codec as v3, v5::codec as v5};
use prost::Message as _;
use wakala::id::{RequestKey, TransactionId};
use wakala::session::Version;
use wakala::wire;

use super::{ANSWER_WITHIN, Radio, Sort, Terminal};
use crate::simulation::mqtt::Mqtt;
use crate::simulation::stage::{About, Payload, Stage, WireNo};

impl Terminal {
    pub(crate) fn heard(&mut self, wire: WireNo, life: u32, payload: Payload, stage: &mut Stage) {
        if life != self.life || self.wire() != Some(wire) {
            return;
        }
        match payload {
            Payload::End => {
                stage.close(wire, 0);
                self.lost(stage);
            }
            Payload::Mqtt(packet) => self.packet(packet, stage),
            Payload::Open | Payload::Iso { .. } => {}
        }
        self.go_on(stage);
    }

    fn packet(&mut self, packet: Mqtt, stage: &mut Stage) {
        match packet {
            Mqtt::V3(v3::Packet::ConnectAck(ack)) => {
                let well = ack.return_code == v3::ConnectAckReason::ConnectionAccepted;
                self.greeted(well, ack.session_present, stage);
            }
            Mqtt::V5(v5::Packet::ConnectAck(ack)) => {
                self.greeted(ack.reason_code == v5::ConnectAckReason::Success, ack.session_present, stage);
            }
            Mqtt::V3(v3::Packet::SubscribeAck { .. }) | Mqtt::V5(v5::Packet::SubscribeAck(_)) => self.subscribed(stage),
            Mqtt::V3(v3::Packet::PublishAck { packet_id }) => self.acknowledged(packet_id, stage),
            Mqtt::V5(v5::Packet::PublishAck(ack)) => self.acknowledged(ack.packet_id, stage),
            Mqtt::V3(v3::Packet::PingResponse) | Mqtt::V5(v5::Packet::PingResponse) => self.pinged = None,
            Mqtt::V5(v5::Packet::Disconnect(_)) => self.hang_up(stage),
            Mqtt::Publish(_, publish, payload) => {
                self.delivered(publish.packet_id, publish.dup, &publish.topic, payload, stage);
            }
            Mqtt::V3(packet) => panic!("a terminal hears {packet:?}"),
            Mqtt::V5(packet) => panic!("a terminal hears {packet:?}"),
        }
    }

    fn greeted(&mut self, well: bool, present: bool, stage: &mut Stage) {
        let Radio::Greeting { wire, .. } = self.radio else { return };
        if !well {
            return self.hang_up(stage);
        }
        self.failures = 0;
        let until = stage.now + ANSWER_WITHIN;
        if present {
            let resent: Vec<(NonZeroU16, Option<usize>)> = self.in_flight.iter().copied().collect();
            for (packet, place) in resent {
                self.send_publish(packet, place, true, stage);
            }
        } else {
            self.in_flight.clear();
            self.heard.clear();
            for asked in &mut self.journal {
                asked.sent = None;
            }
        }
        // A client that lost its power does not know what it has subscribed to.
        self.radio = Radio::Subscribing { wire, until };
        let packet_id = NonZeroU16::new(65_535).expect("not zero");
        let filter = ByteString::from(format!("r/{}", self.enrolled.id));
        let packet = match self.version {
            Version::V3 => {
                Mqtt::V3(v3::Packet::Subscribe { packet_id, topic_filters: vec![(filter, v5::QoS::AtLeastOnce)] })
            }
            Version::V5 => {
                let options = v5::SubscriptionOptions { qos: v5::QoS::AtLeastOnce, ..Default::default() };
                let subscribe = v5::Subscribe {
                    packet_id,
                    id: None,
                    user_properties: Vec::new(),
                    topic_filters: vec![(filter, options)],
                };
                Mqtt::V5(v5::Packet::Subscribe(subscribe))
            }
        };
        self.send(packet, stage);
    }

    fn subscribed(&mut self, stage: &mut Stage) {
        if let Radio::Subscribing { wire, .. } = self.radio {
            self.radio = Radio::Online { wire };
            self.tell(|| "is online".to_owned(), stage);
        }
    }

    /// A PUBACK: from here on the request must not be lost.
    fn acknowledged(&mut self, packet: NonZeroU16, stage: &mut Stage) {
        let place = self.in_flight.iter().position(|(id, _)| *id == packet);
        if place != Some(0) {
            let (who, order) = (self.enrolled.id.clone(), self.in_flight.clone());
            stage.violated(
                "MQTT-4.6.0-2: PUBACKs come in the order of the PUBLISHes",
                About::Terminal(who.clone()),
                || format!("{who}: PUBACK {packet} while {order:?} wait"),
            );
        }
        let Some((_, Some(place))) = place.and_then(|place| self.in_flight.remove(place)) else { return };
        let id = self.id(&self.journal[place]);
        let who = self.enrolled.id.clone();
        stage.tell(|| About::Transaction(id), || format!("{who}: hears PUBACK {packet}"));
        self.journal[place].durable = true;
    }

    fn delivered(&mut self, packet: Option<NonZeroU16>, dup: bool, topic: &str, payload: Bytes, stage: &mut Stage) {
        let who = self.enrolled.id.clone();
        let about = About::Terminal(who.clone());
        let Some(packet) = packet.filter(|_| topic.strip_prefix("r/") == Some(who.as_str())) else {
            return stage.violated("I8: a terminal hears its own topic, at QoS 1", about, || format!("{who}: {topic}"));
        };
        let again = self.heard.insert(packet, payload.clone()).is_some_and(|before| before == payload);
        // A node that slept through its session's takeover goes on sending for a while, and nobody knows how far.
        if again && !dup && !stage.slept {
            stage.violated("MQTT-3.3.1-1: what is sent again has DUP", about, || format!("{who}: packet {packet}"));
        }
        self.receipt(packet, &payload, stage);
        if !self.is_gone(stage) {
            let ack = match self.version {
                Version::V3 => Mqtt::V3(v3::Packet::PublishAck { packet_id: packet }),
                Version::V5 => {
                    Mqtt::V5(v5::Packet::PublishAck(v5::PublishAck { packet_id: packet, ..Default::default() }))
                }
            };
            self.send(ack, stage);
        }
    }

    /// Power fails between the receipt and its PUBACK.
    fn is_gone(&mut self, stage: &mut Stage) -> bool {
        let gone = stage.chance.happens(stage.weather.terminal_dies_on_receipt);
        if gone {
            let off = stage.chance.wait(5_000);
            self.crash(off, stage);
        }
        gone
    }

    fn receipt(&mut self, packet: NonZeroU16, payload: &Bytes, stage: &mut Stage) {
        let who = self.enrolled.id.clone();
        let about = About::Terminal(who.clone());
        let envelope = wire::ReceiptEnvelope::decode(&payload[..]).expect("an envelope");
        let receipt = wire::Receipt::decode(&envelope.body[..]).expect("a receipt");
        if receipt.terminal != who.as_str() {
            return stage
                .violated("I8: a receipt reaches the terminal that asked", about, || format!("{who}: {receipt:?}"));
        }
        let key = RequestKey(receipt.key.as_slice().try_into().expect("a key"));
        let reused = receipt.outcome() == wire::Outcome::Refused && receipt.code == "94";
        let id = TransactionId::of(&who, key);
        stage.tell(
            || About::Transaction(id),
            || format!("{who}: receives {packet}: {:?} {}", receipt.outcome(), receipt.code),
        );
        let place =
            self.journal.iter().rposition(|asked| asked.key == key && matches!(asked.sort, Sort::Reuse(_)) == reused);
        let Some(place) = place else {
            return stage.violated("I8: a receipt is for a request", about, || format!("{who}: {receipt:?}"));
        };
        let asked = &mut self.journal[place];
        if receipt.outcome() == wire::Outcome::Pending {
            if !asked.receipts.is_empty() {
                stage.violated("I2: no notice after the receipt", About::Transaction(id), || {
                    format!("{who}: {receipt:?}")
                });
            }
            return;
        }
        if !asked.receipts.contains(payload) {
            asked.receipts.push(payload.clone());
        }
        // It is in flash before it is acknowledged.
        asked.open = false;
        asked.acknowledged = true;
        // Whose key counter is an old one by now is answered like the key's first request, which is not its own answer.
        let newest = self.journal.len() - 1;
        for (at, again) in self.journal.iter_mut().enumerate().skip(place + 1) {
            if at < newest && again.open && again.sort == Sort::Reuse(place) && again.durable && again.sends > 2 {
                (again.open, again.given_up) = (false, true);
            }
        }
    }
}
