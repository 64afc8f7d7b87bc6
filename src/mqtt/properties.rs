//! The properties of a PUBLISH (3.3.2.3), as they are on the wire (2.2.2.2).

use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::LastWill;

/// Those that a server forwards unaltered with the message, in the order in which they came: Payload Format Indicator,
/// Content Type, Response Topic, Correlation Data and User Properties. On the wire, in memory and in the database they are the
/// same bytes, without the length before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties(Bytes);

/// One of a PUBLISH's properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    PayloadFormat(u8),
    /// The Message Expiry Interval, in seconds.
    Expiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(NonZeroU32),
    TopicAlias(NonZeroU16),
    User(&'a str, &'a str),
}

/// Stored properties cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of MQTT 5 properties that belong to a message")]
pub struct Unreadable;

/// The identifiers of table 2-4, of those that a PUBLISH has.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
}

impl<'a> Property<'a> {
    /// The first of them, taken off. None where there is none that a PUBLISH may have.
    pub(super) fn take(rest: &mut &'a [u8]) -> Option<Self> {
        Some(match byte(rest)? {
            id::PAYLOAD_FORMAT => Self::PayloadFormat(byte(rest).filter(|&format| format <= 1)?),
            id::MESSAGE_EXPIRY_INTERVAL => Self::Expiry(u32::from(word(rest)?) << 16 | u32::from(word(rest)?)),
            id::CONTENT_TYPE => Self::ContentType(text(rest)?),
            id::RESPONSE_TOPIC => Self::ResponseTopic(text(rest)?),
            id::CORRELATION_DATA => Self::CorrelationData(binary(rest)?),
            id::SUBSCRIPTION_IDENTIFIER => Self::SubscriptionId(NonZeroU32::new(variable(rest)?)?),
            id::TOPIC_ALIAS => Self::TopicAlias(NonZeroU16::new(word(rest)?)?),
            id::USER_PROPERTY => Self::User(text(rest)?, text(rest)?),
            _ => return None,
        })
    }

    /// Whether it belongs to the message, and not to a connection or a subscription, or to the time that it was under way.
    fn goes_on(self) -> bool {
        !matches!(self, Self::Expiry(_) | Self::SubscriptionId(_) | Self::TopicAlias(_))
    }
}

impl Properties {
    /// Of a PUBLISH's properties those that go on, so many bytes: mostly all, which are not copied.
    pub(super) fn of(all: &[u8], going_on: usize, whole: impl FnOnce(&[u8]) -> Bytes) -> Self {
        if going_on == all.len() {
            return Self(whole(all));
        }
        let (mut rest, mut bytes) = (all, Vec::with_capacity(going_on));
        while let (before, Some(property)) = (rest, Property::take(&mut rest)) {
            if property.goes_on() {
                bytes.extend_from_slice(&before[..before.len() - rest.len()]);
            }
        }
        Self(Bytes::from(bytes))
    }

    /// Of bytes that were stored.
    ///
    /// # Errors
    /// When they are not such properties.
    pub fn stored(bytes: Vec<u8>) -> Result<Self, Unreadable> {
        let mut rest = &*bytes;
        while !rest.is_empty() {
            Property::take(&mut rest).filter(|property| property.goes_on()).ok_or(Unreadable)?;
        }
        Ok(Self(Bytes::from(bytes)))
    }

    /// As they are on the wire, and are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = Property<'_>> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || Property::take(&mut rest))
    }

    fn put(bytes: &mut Vec<u8>, id: u8, values: &[&[u8]]) {
        bytes.push(id);
        for value in values {
            // Each came with a length of two bytes.
            bytes.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
            bytes.extend_from_slice(value);
        }
    }
}

/// A will's go on with the message that it becomes (3.1.3.2).
impl From<&LastWill> for Properties {
    fn from(will: &LastWill) -> Self {
        let mut bytes = Vec::new();
        if let Some(is_utf8) = will.is_utf8_payload {
            bytes.extend([id::PAYLOAD_FORMAT, u8::from(is_utf8)]);
        }
        let texts = [(id::CONTENT_TYPE, &will.content_type), (id::RESPONSE_TOPIC, &will.response_topic)];
        for (id, text) in texts {
            text.iter().for_each(|text| Self::put(&mut bytes, id, &[text.as_slice()]));
        }
        will.correlation_data.iter().for_each(|data| Self::put(&mut bytes, id::CORRELATION_DATA, &[data]));
        for (name, value) in &will.user_properties {
            Self::put(&mut bytes, id::USER_PROPERTY, &[name.as_slice(), value.as_slice()]);
        }
        Self(Bytes::from(bytes))
    }
}

/// How many bytes user properties have on the wire.
#[must_use]
pub fn user_property_bytes(properties: &[(ByteString, ByteString)]) -> usize {
    properties.iter().map(|(name, value)| 5 + name.len() + value.len()).sum()
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    Some(byte)
}

pub(super) fn word(rest: &mut &[u8]) -> Option<u16> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u16::from_be_bytes(*word))
}

pub(super) fn binary<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = word(rest)?.into();
    let (value, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(value)
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(binary(rest)?).ok()
}

/// A Variable Byte Integer (1.5.5).
pub(super) fn variable(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for place in 0..4 {
        let digit = byte(rest)?;
        value |= u32::from(digit & 0x7F) << (7 * place);
        if digit & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
