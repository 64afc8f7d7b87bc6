//! A message on its way from a publisher to its subscribers: what a PUBLISH carries but for what belongs to one connection
//! (packet identifier, DUP, topic alias) or to one subscription (subscription identifiers).

use std::num::NonZeroU32;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Publish, PublishProperties, QoS, UserProperties};

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
    pub properties: Option<Box<Properties>>,
}

/// The properties of a PUBLISH that a server forwards unaltered (3.3.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// In memory, all of it. Counted once: a message has many subscribers, and there may be thousands of user properties.
    bytes: u32,
    /// Payload Format Indicator 1: the payload is UTF-8.
    pub is_utf8_payload: bool,
    pub content_type: Option<ByteString>,
    pub response_topic: Option<ByteString>,
    pub correlation_data: Option<Bytes>,
    /// In their order [MQTT-3.3.2-18].
    pub user_properties: UserProperties,
}

impl Default for Properties {
    fn default() -> Self {
        Self::new(false, None, None, None, UserProperties::new())
    }
}

impl Properties {
    #[must_use]
    pub fn new(
        is_utf8_payload: bool,
        content_type: Option<ByteString>,
        response_topic: Option<ByteString>,
        correlation_data: Option<Bytes>,
        user_properties: UserProperties,
    ) -> Self {
        let new = Self { bytes: 0, is_utf8_payload, content_type, response_topic, correlation_data, user_properties };
        let each = size_of_val(new.user_properties.as_slice());
        Self { bytes: length(size_of::<Self>() + each + new.byte_len()), ..new }
    }
}

impl Message {
    /// What a client published; its topic alias has been resolved.
    #[must_use]
    pub fn of(publish: Publish, payload: Bytes, now: Time) -> Self {
        let Publish { qos, retain, topic, properties, .. } = publish;
        let seconds = |interval: NonZeroU32| std::time::Duration::from_secs(interval.get().into());
        let expires_at = properties.message_expiry_interval.map(|interval| now + seconds(interval));
        let forwarded = Properties::new(
            properties.is_utf8_payload,
            properties.content_type,
            properties.response_topic,
            properties.correlation_data,
            properties.user_properties,
        );
        let properties = (forwarded != Properties::default()).then(|| Box::new(forwarded));
        Self { topic, payload, qos, retain, expires_at, properties }
    }

    /// What it takes in memory: its topic, its payload and its properties.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        let properties = self.properties.as_ref().map_or(0, |properties| properties.bytes);
        length(self.topic.len() + self.payload.len()).saturating_add(properties)
    }

    #[must_use]
    pub fn is_over(&self, now: Time) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The properties of the PUBLISH that carries it on, with what is left of its life [MQTT-3.3.2-6].
    #[must_use]
    pub fn publish_properties(&self, now: Time) -> PublishProperties {
        let left = self.expires_at.map(|at| {
            // Rounded up: what is not over has a second left.
            let seconds = at.since(now).as_millis().div_ceil(1000);
            NonZeroU32::new(u32::try_from(seconds).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
        });
        let forwarded = self.properties.as_deref().cloned().unwrap_or_default();
        PublishProperties {
            message_expiry_interval: left,
            is_utf8_payload: forwarded.is_utf8_payload,
            content_type: forwarded.content_type,
            response_topic: forwarded.response_topic,
            correlation_data: forwarded.correlation_data,
            user_properties: forwarded.user_properties,
            ..PublishProperties::default()
        }
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// How many bytes of a PUBLISH are its topic, its properties and its payload.
#[must_use]
pub fn published_bytes(publish: &Publish, payload: &Bytes) -> usize {
    let properties = &publish.properties;
    let forwarded = forwarded_bytes(
        properties.is_utf8_payload,
        [&properties.content_type, &properties.response_topic],
        properties.correlation_data.as_ref(),
        &properties.user_properties,
    );
    publish.topic.len() + forwarded + payload.len()
}

/// How many bytes such properties have on the wire, without the length before them.
fn forwarded_bytes(
    is_utf8_payload: bool,
    texts: [&Option<ByteString>; 2],
    correlation_data: Option<&Bytes>,
    user_properties: &UserProperties,
) -> usize {
    let texts = texts.into_iter().flatten().map(|text| 3 + text.len());
    2 * usize::from(is_utf8_payload)
        + texts.sum::<usize>()
        + correlation_data.map_or(0, |value| 3 + value.len())
        + user_property_bytes(user_properties)
}

/// How many bytes user properties have on the wire.
#[must_use]
pub fn user_property_bytes(properties: &UserProperties) -> usize {
    properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum()
}

/// The identifiers of table 2-4.
mod id {
    pub(super) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(super) const CONTENT_TYPE: u8 = 0x03;
    pub(super) const RESPONSE_TOPIC: u8 = 0x08;
    pub(super) const CORRELATION_DATA: u8 = 0x09;
    pub(super) const USER: u8 = 0x26;
}

/// Stored properties cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of MQTT 5 properties")]
pub struct Unreadable;

impl Properties {
    /// As they are stored: as a PUBLISH has them on the wire (2.2.2.2), without the length before them.
    ///
    /// # Panics
    /// Never: each value came with a length of two bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.is_utf8_payload {
            out.extend([id::PAYLOAD_FORMAT, 1]);
        }
        let mut put = |id: Option<u8>, value: &[u8]| {
            out.extend(id);
            out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.extend(value);
        };
        if let Some(value) = &self.content_type {
            put(Some(id::CONTENT_TYPE), value.as_bytes());
        }
        if let Some(value) = &self.response_topic {
            put(Some(id::RESPONSE_TOPIC), value.as_bytes());
        }
        if let Some(value) = &self.correlation_data {
            put(Some(id::CORRELATION_DATA), value);
        }
        for (name, value) in &self.user_properties {
            put(Some(id::USER), name.as_bytes());
            put(None, value.as_bytes());
        }
        out
    }

    /// How many bytes [`Properties::to_bytes`] gives.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        forwarded_bytes(
            self.is_utf8_payload,
            [&self.content_type, &self.response_topic],
            self.correlation_data.as_ref(),
            &self.user_properties,
        )
    }

    /// # Errors
    /// When it is not what [`Properties::to_bytes`] made.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut read = Self::default();
        while let Some((&id, rest)) = bytes.split_first() {
            bytes = rest;
            match id {
                id::PAYLOAD_FORMAT => {
                    let (&flag, rest) = bytes.split_first().ok_or(Unreadable)?;
                    read.is_utf8_payload = flag == 1;
                    bytes = rest;
                }
                id::CONTENT_TYPE => read.content_type = Some(text(&mut bytes)?),
                id::RESPONSE_TOPIC => read.response_topic = Some(text(&mut bytes)?),
                id::CORRELATION_DATA => read.correlation_data = Some(Bytes::copy_from_slice(value(&mut bytes)?)),
                id::USER => read.user_properties.push((text(&mut bytes)?, text(&mut bytes)?)),
                _ => return Err(Unreadable),
            }
        }
        let Self { is_utf8_payload, content_type, response_topic, correlation_data, user_properties, .. } = read;
        Ok(Self::new(is_utf8_payload, content_type, response_topic, correlation_data, user_properties))
    }
}

fn value<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Unreadable> {
    let (length, rest) = bytes.split_first_chunk().ok_or(Unreadable)?;
    let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(Unreadable)?;
    *bytes = rest;
    Ok(value)
}

fn text(bytes: &mut &[u8]) -> Result<ByteString, Unreadable> {
    let text = std::str::from_utf8(value(bytes)?).map_err(|_| Unreadable)?;
    Ok(ByteString::from(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn whole() -> Properties {
        let text = |text: &'static str| ByteString::from_static(text);
        Properties::new(
            true,
            Some(text("text/plain")),
            Some(text("r/1")),
            Some(Bytes::from_static(&[0, 1, 255])),
            vec![(text("b"), text("1")), (text("a"), text("2")), (text("b"), text(""))],
        )
    }

    #[test]
    fn stored_properties_are_read_as_they_were_written() {
        for properties in [whole(), Properties::default()] {
            assert_eq!(properties.to_bytes().len(), properties.byte_len());
            assert_eq!(Properties::from_bytes(&properties.to_bytes()), Ok(properties));
        }
        assert_eq!(Properties::default().to_bytes(), Vec::<u8>::new());
        let bytes = whole().to_bytes();
        assert_eq!(&bytes[..6], [0x01, 1, 0x03, 0, 10, b't'], "as MQTT 5 writes them");
        let readable = (0..bytes.len()).filter(|&at| Properties::from_bytes(&bytes[..at]).is_ok()).count();
        assert_eq!(readable, 7, "only where a property begins");
        assert_eq!(Properties::from_bytes(&[0x23, 0, 1]), Err(Unreadable), "a topic alias belongs to a connection");
    }

    #[test]
    fn a_message_goes_on_with_what_is_left_of_its_life() {
        let publish = Publish {
            topic: ByteString::from_static("t"),
            properties: PublishProperties {
                message_expiry_interval: NonZeroU32::new(10),
                topic_alias: std::num::NonZeroU16::new(3),
                subscription_ids: vec![NonZeroU32::MIN],
                content_type: Some(ByteString::from_static("x")),
                ..PublishProperties::default()
            },
            ..Publish::default()
        };
        let begin = Time::from_millis(1_000_000);
        let message = Message::of(publish, Bytes::new(), begin);
        let after = |millis| begin + Duration::from_millis(millis);
        let left = |millis| message.publish_properties(after(millis)).message_expiry_interval.map(NonZeroU32::get);
        assert_eq!((left(0), left(1), left(9_001), left(9_999)), (Some(10), Some(10), Some(1), Some(1)));
        assert_eq!((message.is_over(after(9_999)), message.is_over(after(10_000))), (false, true));
        let on = message.publish_properties(begin);
        assert_eq!((on.topic_alias, on.subscription_ids.len(), on.content_type.is_some()), (None, 0, true));
    }

    #[test]
    fn most_messages_have_no_properties() {
        let message = Message::of(Publish::default(), Bytes::new(), Time::from_millis(0));
        assert_eq!((message.properties, message.expires_at), (None, None));
    }

    /// A user property of 5 bytes on the wire is many more in memory.
    #[test]
    fn what_a_message_takes_in_memory_is_counted_with_its_properties() {
        let publish = |count| Publish {
            topic: ByteString::from_static("t"),
            properties: PublishProperties {
                user_properties: vec![(ByteString::new(), ByteString::new()); count],
                ..PublishProperties::default()
            },
            ..Publish::default()
        };
        let payload = Bytes::from_static(b"1234");
        let bytes = |count| Message::of(publish(count), payload.clone(), Time::from_millis(0)).bytes();
        assert_eq!(bytes(0), 5);
        let each = size_of::<(ByteString, ByteString)>();
        assert!(usize::try_from(bytes(13_000)).expect("few") >= 13_000 * each && each >= 32, "{}", bytes(13_000));
        assert_eq!(published_bytes(&publish(13_000), &payload), 5 + 13_000 * 5);
    }
}
