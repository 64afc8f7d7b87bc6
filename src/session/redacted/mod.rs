//! A packet as an operator may see it: what it is about, and nothing that may be card data, a PIN or a password.
//!
//! A [`Summary`] is the only thing that leaves a session for a tap (`wakala tap`), and its fields are of three kinds: numbers
//! and flags; [`Text`], which shows a name only if it cannot hold a card number or a PIN block; and [`Hidden`], a length and
//! a digest. There is no other way to make the last two than a [`Redactor`]. Payloads, passwords, user properties and
//! whatever else carries data are never shown, of guests neither.
//!
//! The digest is keyed, and the key is one tap's: two payloads can be told apart, and seen to be the same, but nobody can
//! try all PINs or cards until one fits.

mod joined;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec as mqtt;
use ntex_mqtt::v5::codec::Packet;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Version;
use crate::id::ClientId;
use crate::mqtt::Property;
pub use joined::Joined;

/// Data that is not shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden {
    bytes: usize,
    /// The same for the same data, as long as the tap lasts.
    digest: String,
}

/// A name from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    Shown(String),
    Hidden(Hidden),
}

/// Whose packets they are, which decides what a topic may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A terminal has topics of its own; a name that is none of these is not its to use, and is not shown.
    Terminal,
    /// A guest's topics are names that all subscribers see.
    Guest,
}

/// Makes summaries.
pub struct Redactor {
    client: ClientId,
    whose: Whose,
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").field("client", &self.client).finish_non_exhaustive()
    }
}

/// What an operator sees of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "packet", rename_all = "UPPERCASE")]
pub enum Summary {
    Connect(Box<Connect>),
    ConnAck {
        reason: Reason,
        session_present: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        keep_alive_s: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry_s: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        assigned: Option<Text>,
    },
    Publish(Box<Publish>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe {
        id: u16,
        filters: Vec<Filter>,
        #[serde(skip_serializing_if = "Option::is_none")]
        identifier: Option<u32>,
    },
    SubAck {
        id: u16,
        reasons: Vec<Reason>,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<Text>,
    },
    UnsubAck {
        id: u16,
        reasons: Vec<Reason>,
    },
    PingReq,
    PingResp,
    Disconnect {
        reason: Reason,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry_s: Option<u32>,
    },
    Auth {
        reason: Reason,
    },
    /// No packet: a frame was refused, and this is why.
    Refused {
        reason: Reason,
        why: String,
    },
    /// No packet: the connection has ended, and this is why.
    Ended {
        why: String,
    },
}

/// A reason code, with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    code: u8,
    name: String,
}

/// See [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    client: Text,
    protocol: String,
    clean_start: bool,
    keep_alive_s: u16,
    expiry_s: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    receive_max: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet_bytes_max: Option<u32>,
    topic_alias_max: u16,
    /// Of a client that does not use its own identifier here it may be a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<Text>,
    password: bool,
    auth_method: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    will: Option<Will>,
    user_properties: usize,
}

/// See [`Connect`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    topic: Text,
    qos: u8,
    retain: bool,
    delay_s: u32,
    payload: Hidden,
}

/// See [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    topic: Text,
    qos: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    dup: bool,
    retain: bool,
    payload: Hidden,
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_s: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_topic: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_data: Option<Hidden>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Hidden>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    identifiers: Vec<u32>,
    user_properties: usize,
}

/// See [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    id: u16,
    reason: Reason,
}

/// See [`Summary`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    filter: Text,
    qos: u8,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: u8,
}

macro_rules! reason {
    ($code:expr) => {
        // The names are the codec's, not the client's.
        Reason { code: $code as u8, name: format!("{:?}", $code) }
    };
}

impl Redactor {
    /// One for a tap of this client. The key is drawn for it and used for nothing else.
    #[must_use]
    pub fn new(client: ClientId, whose: Whose, key: [u8; 32]) -> Self {
        Self { client, whose, key: Zeroizing::new(key) }
    }

    fn hidden(&self, data: &[u8]) -> Hidden {
        let digest = Hmac::<Sha256>::new_from_slice(&*self.key).map(|mut mac| {
            mac.update(data);
            let digest = mac.finalize().into_bytes();
            hex::encode(&digest[..4])
        });
        Hidden { bytes: data.len(), digest: digest.unwrap_or_default() }
    }

    /// The client's own identifier, which whoever taps it has named, is shown; so is a guest's name without secrets.
    fn name(&self, text: &str) -> Text {
        let plain = self.whose == Whose::Guest && !may_hold_secret(text);
        if plain || text == self.client.as_str() {
            Text::Shown(text.to_owned())
        } else {
            Text::Hidden(self.hidden(text.as_bytes()))
        }
    }

    fn topic(&self, text: &str) -> Text {
        let own = |text: &str| {
            let (lane, client) = text.split_once('/')?;
            (matches!(lane, "q" | "r" | "c") && client == self.client.as_str()).then_some(())
        };
        match self.whose {
            // What an alias stands for is not known here; an empty name shows nothing.
            _ if text.is_empty() => Text::Shown(String::new()),
            _ if own(text).is_some() => Text::Shown(text.to_owned()),
            Whose::Terminal => Text::Hidden(self.hidden(text.as_bytes())),
            Whose::Guest => self.name(text),
        }
    }

    /// A CONNECT, whose password is seen to be there or not.
    #[must_use]
    pub fn connect(&self, connect: &mqtt::Connect, version: Version) -> Summary {
        let protocol = match version {
            Version::V3 => "MQTT 3.1.1",
            Version::V5 => "MQTT 5",
        };
        let user_name = |name: &ByteString| match self.client.as_str() {
            own if own == &**name => Text::Shown(own.to_owned()),
            _ => Text::Hidden(self.hidden(name.as_bytes())),
        };
        Summary::Connect(Box::new(Connect {
            client: self.name(&connect.client_id),
            protocol: protocol.to_owned(),
            clean_start: connect.clean_start,
            keep_alive_s: connect.keep_alive,
            expiry_s: connect.session_expiry_interval_secs,
            receive_max: connect.receive_max.map(std::num::NonZeroU16::get),
            packet_bytes_max: connect.max_packet_size.map(std::num::NonZeroU32::get),
            topic_alias_max: connect.topic_alias_max,
            user_name: connect.username.as_ref().map(user_name),
            password: connect.password.is_some(),
            auth_method: connect.auth_method.is_some(),
            will: connect.last_will.as_ref().map(|will| Will {
                topic: self.topic(&will.topic),
                qos: will.qos as u8,
                retain: will.retain,
                delay_s: will.will_delay_interval_sec.unwrap_or(0),
                payload: self.hidden(&will.message),
            }),
            user_properties: connect.user_properties.len(),
        }))
    }

    #[must_use]
    pub fn publish(&self, publish: &crate::mqtt::Publish, payload: &[u8]) -> Summary {
        let mut shown = Publish {
            topic: self.topic(&publish.topic),
            qos: publish.qos as u8,
            id: publish.packet_id.map(std::num::NonZeroU16::get),
            dup: publish.dup,
            retain: publish.retain,
            payload: self.hidden(payload),
            alias: publish.topic_alias.map(std::num::NonZeroU16::get),
            expiry_s: publish.expiry_s,
            response_topic: None,
            correlation_data: None,
            content_type: None,
            identifiers: publish.subscription_ids.iter().map(|id| id.get()).collect(),
            user_properties: 0,
        };
        for property in publish.properties.iter() {
            match property {
                Property::ResponseTopic(topic) => shown.response_topic = Some(self.topic(topic)),
                Property::CorrelationData(data) => shown.correlation_data = Some(self.hidden(data)),
                Property::ContentType(text) => shown.content_type = Some(self.hidden(text.as_bytes())),
                Property::User(..) => shown.user_properties += 1,
                _ => {}
            }
        }
        Summary::Publish(Box::new(shown))
    }

    /// Any other packet.
    #[must_use]
    pub fn packet(&self, packet: &Packet, version: Version) -> Summary {
        match packet {
            Packet::Connect(connect) => self.connect(connect, version),
            Packet::ConnectAck(ack) => Summary::ConnAck {
                reason: reason!(ack.reason_code),
                session_present: ack.session_present,
                keep_alive_s: ack.server_keepalive_sec,
                expiry_s: ack.session_expiry_interval_secs,
                assigned: ack.assigned_client_id.as_ref().map(|name| self.name(name)),
            },
            Packet::PublishAck(ack) => {
                Summary::PubAck(Ack { id: ack.packet_id.get(), reason: reason!(ack.reason_code) })
            }
            Packet::PublishReceived(ack) => {
                Summary::PubRec(Ack { id: ack.packet_id.get(), reason: reason!(ack.reason_code) })
            }
            Packet::PublishRelease(ack) => {
                Summary::PubRel(Ack { id: ack.packet_id.get(), reason: reason!(ack.reason_code) })
            }
            Packet::PublishComplete(ack) => {
                Summary::PubComp(Ack { id: ack.packet_id.get(), reason: reason!(ack.reason_code) })
            }
            Packet::Subscribe(subscribe) => Summary::Subscribe {
                id: subscribe.packet_id.get(),
                filters: subscribe
                    .topic_filters
                    .iter()
                    .map(|(filter, options)| self.filter(filter, *options))
                    .collect(),
                identifier: subscribe.id.map(std::num::NonZeroU32::get),
            },
            Packet::SubscribeAck(ack) => Summary::SubAck {
                id: ack.packet_id.get(),
                reasons: ack.status.iter().map(|code| reason!(*code)).collect(),
            },
            Packet::Unsubscribe(unsubscribe) => Summary::Unsubscribe {
                id: unsubscribe.packet_id.get(),
                filters: unsubscribe.topic_filters.iter().map(|filter| self.topic(filter)).collect(),
            },
            Packet::UnsubscribeAck(ack) => Summary::UnsubAck {
                id: ack.packet_id.get(),
                reasons: ack.status.iter().map(|code| reason!(*code)).collect(),
            },
            Packet::PingRequest => Summary::PingReq,
            Packet::PingResponse => Summary::PingResp,
            Packet::Disconnect(disconnect) => Summary::Disconnect {
                reason: reason!(disconnect.reason_code),
                expiry_s: disconnect.session_expiry_interval_secs,
            },
            Packet::Auth(auth) => Summary::Auth { reason: reason!(auth.reason_code) },
        }
    }

    fn filter(&self, filter: &str, options: mqtt::SubscriptionOptions) -> Filter {
        Filter {
            filter: self.topic(filter),
            qos: options.qos as u8,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: options.retain_handling as u8,
        }
    }
}

impl Summary {
    /// A frame that was refused; `why` is the server's own words.
    #[must_use]
    pub fn refused(reason: mqtt::DisconnectReasonCode, why: &'static str) -> Self {
        Self::Refused { reason: reason!(reason), why: why.to_owned() }
    }

    /// A connection has ended; `why` is the server's own words.
    #[must_use]
    pub fn ended(why: &str) -> Self {
        Self::Ended { why: why.to_owned() }
    }
}

/// Digits and hexadecimal digits in a row, whatever stands between them, from which on a text may hold a secret: a card number
/// has 12 digits (ISO/IEC 7812-1), a PIN block 16 hexadecimal ones (ISO 9564-1).
const DIGITS: usize = 12;
const HEX_DIGITS: usize = 16;
/// A longer text is no name.
const NAME_BYTES: usize = 256;

/// Whether a text may have a card number or a PIN block in it, with separators or without.
fn may_hold_secret(text: &str) -> bool {
    let (mut digits, mut hex_digits) = (0, 0);
    for character in text.chars() {
        match character {
            '0'..='9' => (digits, hex_digits) = (digits + 1, hex_digits + 1),
            'a'..='f' | 'A'..='F' => (digits, hex_digits) = (0, hex_digits + 1),
            // Another script's digits are digits; letters and all else that has a meaning of its own end a number.
            other if other.is_numeric() => (digits, hex_digits) = (digits + 1, hex_digits + 1),
            other if other.is_alphabetic() => (digits, hex_digits) = (0, 0),
            _ => {}
        }
        if digits >= DIGITS || hex_digits >= HEX_DIGITS {
            return true;
        }
    }
    text.len() > NAME_BYTES
}
