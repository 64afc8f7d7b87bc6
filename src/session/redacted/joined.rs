//! Which transaction a terminal's packets are about, as far as one connection shows it.
//!
//! A request names its transaction by its key, a receipt by the key of the request that it answers; the acknowledgements of
//! both have their packet identifier. The bytes are read here, for those who look, and nowhere kept: what comes out is the
//! transaction's identifier, which is in the ledger anyway. Bytes in which no key can be read are about no transaction, for a
//! hash of them could be searched for what they are.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use ntex_mqtt::v5::codec::Packet;

use crate::id::{TerminalId, TransactionId};
use crate::mqtt::Publish;
use crate::{receipt, request};

/// What one connection has shown: at most one transaction for each packet identifier and direction.
#[derive(Debug, Default)]
pub struct Joined {
    asked: BTreeMap<NonZeroU16, TransactionId>,
    told: BTreeMap<NonZeroU16, TransactionId>,
}

impl Joined {
    /// Of what the terminal publishes.
    pub fn asks(&mut self, terminal: &TerminalId, publish: &Publish, payload: &[u8]) -> Option<TransactionId> {
        let key = may_be(&publish.topic, "q/", terminal).then(|| request::Request::key_in(payload)).flatten();
        remember(&mut self.asked, publish, key.map(|key| TransactionId::of(terminal, key)))
    }

    /// Of what is published to it.
    pub fn tells(&mut self, terminal: &TerminalId, publish: &Publish, payload: &[u8]) -> Option<TransactionId> {
        let told = may_be(&publish.topic, "r/", terminal).then(|| receipt::told_of(payload, terminal)).flatten();
        remember(&mut self.told, publish, told)
    }

    /// Of any other packet of the terminal's.
    pub fn heard(&mut self, packet: &Packet) -> Option<TransactionId> {
        match packet {
            Packet::PublishAck(ack) => self.told.remove(&ack.packet_id),
            Packet::PublishRelease(release) => self.asked.get(&release.packet_id).copied(),
            _ => None,
        }
    }

    /// Of any other packet to it.
    pub fn said(&mut self, packet: &Packet) -> Option<TransactionId> {
        match packet {
            Packet::PublishAck(ack) => self.asked.remove(&ack.packet_id),
            Packet::PublishReceived(ack) => self.asked.get(&ack.packet_id).copied(),
            Packet::PublishComplete(ack) => self.asked.remove(&ack.packet_id),
            _ => None,
        }
    }
}

/// An alias in the topic's place may stand for it: what does not read as a request or a receipt is none.
fn may_be(topic: &str, lane: &str, terminal: &TerminalId) -> bool {
    topic.is_empty() || topic.strip_prefix(lane) == Some(terminal.as_str())
}

/// For the acknowledgements. An identifier that is used again is about what it was used for last.
fn remember(
    shown: &mut BTreeMap<NonZeroU16, TransactionId>,
    publish: &Publish,
    transaction: Option<TransactionId>,
) -> Option<TransactionId> {
    if let Some(packet_id) = publish.packet_id {
        shown.remove(&packet_id);
        shown.extend(transaction.map(|transaction| (packet_id, transaction)));
    }
    transaction
}

#[cfg(test)]
mod tests {
    use ntex_mqtt::v5::codec::{PublishAck, PublishAck2, QoS};
    use prost::Message as _;

    use super::*;
    use crate::card::Masked;
    use crate::id::{AgentId, RequestKey};
    use crate::money::{Currency, Money};
    use crate::receipt::{Answer, Told, Verdict};
    use crate::request::{Kind, Refusal};
    use crate::time::Time;
    use crate::wire;

    const KEY: RequestKey = RequestKey([7; 16]);

    fn terminal() -> TerminalId {
        TerminalId::new("T1").expect("a name")
    }

    fn id(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).expect("not 0")
    }

    fn transaction() -> TransactionId {
        TransactionId::of(&terminal(), KEY)
    }

    fn asking(key: RequestKey) -> Vec<u8> {
        let request = wire::Request {
            key: key.0.to_vec(),
            kind: wire::Kind::Withdrawal.into(),
            amount: 5_000_000,
            currency: 834,
            card: Some(wire::Card { data: vec![1; 16], pin_block: vec![2; 16] }),
            made_at: 0,
        };
        wire::Envelope { body: request.encode_to_vec(), ksn: vec![3; 12], mac: vec![4; 8] }.encode_to_vec()
    }

    fn answer(verdict: &Verdict) -> Answer {
        let (terminal, agent) = (terminal(), AgentId::new("A1").expect("a name"));
        let told = Told {
            transaction: transaction(),
            terminal: &terminal,
            agent: &agent,
            key: KEY,
            kind: Kind::Withdrawal,
            amount: Money::new(5_000_000, Currency::TZS).expect("an amount"),
            card: &Masked::stored("411111******1111"),
            rrn: None,
            ksn: None,
        };
        told.answer(verdict, Time::from_millis(0))
    }

    fn publish(topic: &str, packet_id: u16) -> Publish {
        let qos = QoS::AtLeastOnce;
        Publish { topic: topic.to_owned().into(), qos, packet_id: Some(id(packet_id)), ..Publish::default() }
    }

    fn ack(packet_id: u16) -> Packet {
        Packet::PublishAck(PublishAck { packet_id: id(packet_id), ..PublishAck::default() })
    }

    fn ack2(packet_id: u16) -> PublishAck2 {
        PublishAck2 { packet_id: id(packet_id), ..PublishAck2::default() }
    }

    #[test]
    fn a_request_and_what_answers_it_are_about_one_transaction_and_so_are_their_acknowledgements() {
        let (mut joined, t1) = (Joined::default(), terminal());
        assert_eq!(joined.asks(&t1, &publish("q/T1", 7), &asking(KEY)), Some(transaction()));
        for verdict in [Verdict::Pending, Verdict::Approved { authorisation: "A".into() }, Verdict::Reversed] {
            let answer = answer(&verdict);
            assert_eq!(answer.answers, transaction());
            let told = joined.tells(&t1, &publish("r/T1", 7), &answer.envelope(Some([1; 8])));
            assert_eq!(told, Some(transaction()), "{verdict:?}");
            assert_eq!(joined.heard(&ack(7)), Some(transaction()));
            assert_eq!(joined.heard(&ack(7)), None, "once");
        }
        assert_eq!(joined.said(&ack(8)), None);
        assert_eq!(joined.said(&ack(7)), Some(transaction()));
        assert_eq!(joined.said(&ack(7)), None);
        // In place of a topic that was said before.
        assert_eq!(joined.asks(&t1, &publish("", 9), &asking(KEY)), Some(transaction()));
        assert!(joined.tells(&t1, &publish("", 9), &answer(&Verdict::Reversed).envelope(None)).is_some());
    }

    #[test]
    fn at_qos_2_all_four_packets_are_about_it() {
        let mut joined = Joined::default();
        assert!(joined.asks(&terminal(), &publish("q/T1", 7), &asking(KEY)).is_some());
        let received = Packet::PublishReceived(PublishAck { packet_id: id(7), ..PublishAck::default() });
        assert_eq!(joined.said(&received), Some(transaction()));
        assert_eq!(joined.heard(&Packet::PublishRelease(ack2(7))), Some(transaction()));
        assert_eq!(joined.said(&Packet::PublishComplete(ack2(7))), Some(transaction()));
        assert!(joined.asked.is_empty());
    }

    #[test]
    fn what_is_no_request_and_no_receipt_is_about_nothing() {
        let (mut joined, t1) = (Joined::default(), terminal());
        let receipt = answer(&Verdict::Reversed).envelope(None);
        for topic in ["q/T2", "c/T1", "q/T1/", "r/T1"] {
            assert_eq!(joined.asks(&t1, &publish(topic, 1), &asking(KEY)), None, "{topic}");
        }
        assert_eq!(joined.asks(&t1, &publish("q/T1", 1), b"4111111111111111"), None);
        for topic in ["r/T2", "c/T1", "q/T1"] {
            assert_eq!(joined.tells(&t1, &publish(topic, 1), &receipt), None, "{topic}");
        }
        assert_eq!(joined.tells(&t1, &publish("r/T1", 1), b"4111111111111111"), None);
        // Its key is the hash of what was sent.
        let hash = RequestKey::of_bytes(b"4111111111111111");
        let agent = AgentId::new("A1").expect("a name");
        let answers = TransactionId::of(&t1, hash);
        let refused = receipt::refusal(answers, &t1, &agent, hash, Refusal::Unreadable, None, Time::from_millis(0));
        assert_eq!(joined.tells(&t1, &publish("r/T1", 1), &refused.envelope(None)), None);
        let other = TerminalId::new("T2").expect("a name");
        assert_eq!(joined.tells(&other, &publish("r/T2", 1), &receipt), None, "another terminal's");
        assert!(joined.asked.is_empty() && joined.told.is_empty());
        // An identifier that is used for something else is no longer about it.
        assert!(joined.asks(&t1, &publish("q/T1", 1), &asking(KEY)).is_some());
        assert_eq!(joined.asks(&t1, &publish("q/T1", 1), b"nothing"), None);
        assert_eq!(joined.said(&ack(1)), None);
    }
}
