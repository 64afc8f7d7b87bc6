//! A message on its way from a publisher to its subscribers: what a PUBLISH carries but for what belongs to one connection
//! (packet identifier, DUP, topic alias) or to one subscription (subscription identifiers).

use std::time::Duration;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::QoS;

use crate::mqtt::{Properties, Publish};
use crate::time::Time;

/// An application message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: ByteString,
    pub payload: Bytes,
    /// As it was published.
    pub qos: QoS,
    /// As it was published, or true for a retained message that is sent because of a new subscription.
    pub retain: bool,
    /// When it is over (3.3.2.3.3).
    pub expires_at: Option<Time>,
    /// Most messages have none.
    pub properties: Properties,
}

impl Message {
    /// What a client published; its topic alias has been resolved.
    #[must_use]
    pub fn of(publish: Publish, payload: Bytes, now: Time) -> Self {
        let Publish { qos, retain, topic, expiry_s, properties, .. } = publish;
        // One that lives for no second would be over before anybody has it. Whoever is there is to have it.
        let expires_at = expiry_s.map(|seconds| now + Duration::from_secs(seconds.max(1).into()));
        Self { topic, payload, qos, retain, expires_at, properties }
    }

    /// What it takes in memory: its topic, its payload and its properties.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        u32::try_from(self.topic.len() + self.properties.as_bytes().len() + self.payload.len()).unwrap_or(u32::MAX)
    }

    #[must_use]
    pub fn is_over(&self, now: Time) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What is left of its life, in seconds [MQTT-3.3.2-6]. Rounded up: what is not over has a second left.
    #[must_use]
    pub fn left_s(&self, now: Time) -> Option<u32> {
        let seconds = |at: Time| u32::try_from(at.since(now).as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        self.expires_at.map(|at| seconds(at).max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn a_message_goes_on_with_what_is_left_of_its_life() {
        let begin = Time::from_millis(1_000_000);
        let after = |millis| begin + Duration::from_millis(millis);
        let living = |seconds| {
            let publish = Publish { expiry_s: Some(seconds), ..Publish::default() };
            Message::of(publish, Bytes::new(), begin)
        };
        let left = |millis| living(10).left_s(after(millis));
        assert_eq!((left(0), left(1), left(9_001), left(9_999)), (Some(10), Some(10), Some(1), Some(1)));
        assert_eq!((living(10).is_over(after(9_999)), living(10).is_over(after(10_000))), (false, true));
        assert_eq!((living(0).is_over(after(999)), living(0).is_over(after(1_000))), (false, true), "of no second");
        assert_eq!(living(u32::MAX).left_s(begin), Some(u32::MAX));
    }

    #[test]
    fn what_belongs_to_a_connection_does_not_go_on() {
        let publish = Publish {
            topic: ByteString::from_static("t"),
            packet_id: NonZeroU16::new(7),
            topic_alias: NonZeroU16::new(3),
            properties: Properties::stored(vec![0x01, 0]).expect("a property"),
            ..Publish::default()
        };
        let message = Message::of(publish, Bytes::from_static(b"1234"), Time::from_millis(0));
        assert_eq!((message.properties.as_bytes(), message.expires_at), (&[0x01, 0][..], None));
        assert_eq!(message.bytes(), 1 + 2 + 4);
    }
}
