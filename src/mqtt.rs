//! What of MQTT both a message and a session know: the versions, PUBLISH, and those of its properties that go on with the
//! message.
//!
//! PUBLISH is not the codec's, which has no place for a Payload Format Indicator of 0 [MQTT-3.3.2-4] or for a life of no
//! second (3.3.2.3.3), and takes all properties apart to put them together again for each subscriber.

mod properties;
#[cfg(test)]
mod tests;

use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::{BufMut, BytePages, ByteString, Bytes};
use ntex_mqtt::v5::codec::QoS;

pub(crate) use properties::id;
pub use properties::{Properties, Property, Unreadable, user_property_bytes};

/// The two protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V3,
    /// MQTT 5, protocol level 5.
    V5,
}

/// A PUBLISH (3.3) without its payload. That of MQTT 3.1.1 has no properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub dup: bool,
    pub retain: bool,
    pub qos: QoS,
    /// At QoS 1 and 2 [MQTT-2.2.1-2].
    pub packet_id: Option<NonZeroU16>,
    /// Empty where an alias stands for it.
    pub topic: ByteString,
    pub topic_alias: Option<NonZeroU16>,
    /// The Message Expiry Interval, in seconds.
    pub expiry_s: Option<u32>,
    pub subscription_ids: Vec<NonZeroU32>,
    /// The others.
    pub properties: Properties,
}

impl Default for Publish {
    fn default() -> Self {
        Self {
            dup: false,
            retain: false,
            qos: QoS::AtMostOnce,
            packet_id: None,
            topic: ByteString::new(),
            topic_alias: None,
            expiry_s: None,
            subscription_ids: Vec::new(),
            properties: Properties::default(),
        }
    }
}

const PUBLISH: u8 = 0x30;

/// The largest packet that there is: a fixed header of five bytes, and what its length can tell (2.1.4).
pub const PACKET_BYTES_MAX: u32 = 5 + 268_435_455;

impl Publish {
    /// Takes a whole frame apart, without a copy. What [`crate::session::strict::frame`] lets pass can be read; of anything
    /// else it is not said what is wrong with it.
    #[must_use]
    pub fn read(version: Version, frame: &Bytes) -> Option<(Self, Bytes)> {
        let (&first, mut rest) = frame.split_first()?;
        let _remaining = properties::variable(&mut rest)?;
        let topic = ByteString::try_from(frame.slice_ref(properties::binary(&mut rest)?)).ok()?;
        let qos = QoS::try_from((first >> 1) & 3).ok()?;
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            _ => Some(NonZeroU16::new(properties::word(&mut rest)?)?),
        };
        let (dup, retain) = (first & 0x08 != 0, first & 0x01 != 0);
        let mut publish = Self { dup, retain, qos, packet_id, topic, ..Self::default() };
        if version == Version::V5 {
            let length = usize::try_from(properties::variable(&mut rest)?).ok()?;
            let (taken, payload) = rest.split_at_checked(length)?;
            publish.read_properties(frame, taken)?;
            rest = payload;
        }
        Some((publish, frame.slice_ref(rest)))
    }

    fn read_properties(&mut self, frame: &Bytes, all: &[u8]) -> Option<()> {
        let (mut rest, mut others) = (all, 0);
        while !rest.is_empty() {
            let before = rest.len();
            match Property::take(&mut rest)? {
                Property::TopicAlias(alias) => self.topic_alias = Some(alias),
                Property::Expiry(seconds) => self.expiry_s = Some(seconds),
                Property::SubscriptionId(id) => self.subscription_ids.push(id),
                _ => others += before - rest.len(),
            }
        }
        self.properties = Properties::of(all, others, |all| frame.slice_ref(all));
        Some(())
    }

    /// How many of its bytes and its payload's belong to the message.
    #[must_use]
    pub fn message_bytes(&self, payload: &[u8]) -> usize {
        self.topic.len() + self.properties.as_bytes().len() + payload.len()
    }

    /// Of MQTT 5, without the length before them.
    fn property_bytes(&self) -> usize {
        let ids = self.subscription_ids.iter().map(|id| 1 + variable_bytes(widened(id.get())));
        self.topic_alias.map_or(0, |_| 3)
            + self.expiry_s.map_or(0, |_| 5)
            + ids.sum::<usize>()
            + self.properties.as_bytes().len()
    }

    /// What follows the fixed header, with a payload of so many bytes.
    fn remaining_bytes(&self, version: Version, payload: usize) -> usize {
        let properties = match version {
            Version::V3 => 0,
            Version::V5 => {
                let bytes = self.property_bytes();
                variable_bytes(bytes) + bytes
            }
        };
        2 + self.topic.len() + self.packet_id.map_or(0, |_| 2) + properties + payload
    }

    /// The length of the whole packet on the wire, with a payload of so many bytes.
    #[must_use]
    pub fn frame_bytes(&self, version: Version, payload: usize) -> usize {
        let remaining = self.remaining_bytes(version, payload);
        1 + variable_bytes(remaining) + remaining
    }

    /// Puts the whole packet on the wire. To be called with what fits into a packet (2.1.4), and with a topic that fits into
    /// a string (1.5.4): all that came in a packet does.
    pub fn write(&self, version: Version, payload: Bytes, dst: &mut BytePages) {
        let flags = u8::from(self.dup) << 3 | u8::from(self.qos) << 1 | u8::from(self.retain);
        dst.put_u8(PUBLISH | flags);
        put_variable(self.remaining_bytes(version, payload.len()), dst);
        dst.put_u16(u16::try_from(self.topic.len()).unwrap_or(u16::MAX));
        dst.put_slice(self.topic.as_slice());
        if let Some(packet_id) = self.packet_id {
            dst.put_u16(packet_id.get());
        }
        if version == Version::V5 {
            self.write_properties(dst);
        }
        dst.append(payload);
    }

    fn write_properties(&self, dst: &mut BytePages) {
        put_variable(self.property_bytes(), dst);
        if let Some(alias) = self.topic_alias {
            dst.put_u8(id::TOPIC_ALIAS);
            dst.put_u16(alias.get());
        }
        if let Some(seconds) = self.expiry_s {
            dst.put_u8(id::MESSAGE_EXPIRY_INTERVAL);
            dst.put_u32(seconds);
        }
        for id in &self.subscription_ids {
            dst.put_u8(id::SUBSCRIPTION_IDENTIFIER);
            put_variable(widened(id.get()), dst);
        }
        dst.put_slice(self.properties.as_bytes());
    }
}

fn widened(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The bytes of a Variable Byte Integer (1.5.5).
fn variable_bytes(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

fn put_variable(mut value: usize, dst: &mut BytePages) {
    loop {
        let digit = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            return dst.put_u8(digit);
        }
        dst.put_u8(digit | 0x80);
    }
}
