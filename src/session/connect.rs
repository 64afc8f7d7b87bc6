//! What a CONNECT asks for, what is granted, and how a refusal is said.

use std::num::NonZeroU32;
use std::time::Duration;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{Connect, ConnectAck, ConnectAckReason, DisconnectReasonCode as Reason, LastWill, QoS};

use super::rights::Rights;
use super::strict::Flaw;
use super::{Limits, Version};
use crate::id::ClientId;
use crate::mqtt::PACKET_BYTES_MAX;
use crate::topics;

/// What holds for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub version: Version,
    /// Whatever is left of an earlier session is discarded [MQTT-3.1.2-4].
    pub clean_start: bool,
    /// How long the session outlives the connection, in seconds; 0 for not at all.
    pub expiry_s: u32,
    /// The longest that may be, in seconds.
    expiry_max_s: u32,
    /// What was asked for, where the answer says that it is something else.
    asked: Asked,
    keep_alive_ms: u32,
    /// The client's Receive Maximum.
    pub receive_max: u16,
    /// The client's Maximum Packet Size, in bytes.
    pub packet_bytes_max: u32,
    /// The client's Topic Alias Maximum.
    pub topic_alias_max: u16,
    /// Whether reasons may be given in words (3.1.2.11.7).
    pub problem_info: bool,
    pub will: Option<Box<LastWill>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    keep_alive_s: u16,
    expiry_s: u32,
    named: bool,
    response_info: bool,
}

/// The largest CONNACK without texts: 5 bytes and 25 of properties.
const CONNACK_BYTES: u32 = 30;
/// The bytes around the codes of the largest of the other answers.
const SHORT_BYTES: u32 = 10;
/// The largest CONNACK that says when to come again: two texts of 20 digits each.
const BUSY_BYTES: u32 = 100;
/// The bytes around a text: the property's identifier, its length, and one more in each of the lengths before it.
const AROUND_TEXT: usize = 5;

impl Terms {
    /// The terms on which a CONNECT is accepted, if its sender is who it says.
    ///
    /// # Errors
    /// The reason for which the CONNACK refuses it.
    pub fn of(connect: &Connect, version: Version, limits: &Limits, rights: &Rights) -> Result<Self, ConnectAckReason> {
        if connect.auth_method.is_some() {
            return Err(ConnectAckReason::BadAuthenticationMethod);
        }
        // MQTT 3.1.1 cannot announce what is offered, and so is taken as it comes: a retained will is kept.
        if version == Version::V5
            && let Some(will) = &connect.last_will
            && will.retain
            && !rights.offers().retained
        {
            return Err(ConnectAckReason::RetainNotSupported);
        }
        if connect.last_will.as_ref().is_some_and(|will| !topics::fits(&will.topic)) {
            return Err(ConnectAckReason::TopicNameInvalid);
        }
        if connect.last_will.as_ref().is_some_and(|will| !rights.will(&will.topic)) {
            return Err(ConnectAckReason::NotAuthorized);
        }
        if connect.client_id.is_empty() && version == Version::V3 && !connect.clean_start {
            return Err(ConnectAckReason::ClientIdentifierNotValid);
        }
        // [MQTT-3.1.2-24]: what it could not be sent, it cannot be promised.
        let packet_bytes_max = connect.max_packet_size.map_or(PACKET_BYTES_MAX, NonZeroU32::get).min(PACKET_BYTES_MAX);
        if packet_bytes_max < CONNACK_BYTES {
            return Err(ConnectAckReason::PacketTooLarge);
        }
        let expiry_max_s = u32::try_from(limits.session_expiry_max.as_secs()).unwrap_or(u32::MAX);
        let asked_expiry_s = match version {
            Version::V3 if connect.clean_start => 0,
            Version::V3 => u32::MAX,
            Version::V5 => connect.session_expiry_interval_secs,
        };
        let asked = Duration::from_secs(connect.keep_alive.into());
        let longest = match version {
            // It cannot be told of another one (3.2.2.3.14 is new in MQTT 5), and may be found dead at any time (3.1.2.10).
            Version::V3 => limits.keep_alive_unannounced_max,
            Version::V5 => limits.keep_alive_max,
        };
        let keep_alive = if asked.is_zero() { longest } else { asked.min(longest) };
        Ok(Self {
            version,
            clean_start: connect.clean_start,
            expiry_s: asked_expiry_s.min(expiry_max_s),
            expiry_max_s,
            asked: Asked {
                keep_alive_s: connect.keep_alive,
                expiry_s: asked_expiry_s,
                named: !connect.client_id.is_empty(),
                response_info: connect.request_response_info,
            },
            keep_alive_ms: u32::try_from(keep_alive.as_millis()).unwrap_or(u32::MAX),
            receive_max: connect.receive_max.map_or(u16::MAX, std::num::NonZeroU16::get),
            packet_bytes_max,
            topic_alias_max: connect.topic_alias_max,
            problem_info: connect.request_problem_info,
            will: connect.last_will.clone().map(Box::new),
        })
    }

    /// Whether the client can be told the name that it is given, if it gave none itself [MQTT-3.1.2-24].
    #[must_use]
    pub fn takes(&self, name: &ClientId) -> bool {
        self.assigned_bytes(name) <= self.room(CONNACK_BYTES)
    }

    /// The keep-alive in force.
    #[must_use]
    pub fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms.into())
    }

    /// One and a half keep-alives [MQTT-3.1.2-22]; [MQTT-3.1.2-24] in 3.1.1.
    #[must_use]
    pub fn silence_max(&self) -> Duration {
        self.keep_alive() * 3 / 2
    }

    /// What the client hears when it is let in.
    #[must_use]
    pub fn accept(&self, client: &ClientId, rights: &Rights, session_present: bool, limits: &Limits) -> ConnectAck {
        let offers = rights.offers();
        let keep_alive_s = u16::try_from(self.keep_alive().as_secs()).unwrap_or(u16::MAX);
        ConnectAck {
            session_present,
            session_expiry_interval_secs: (self.expiry_s != self.asked.expiry_s).then_some(self.expiry_s),
            receive_max: limits.inbound_max,
            max_qos: QoS::ExactlyOnce,
            max_packet_size: Some(limits.packet_bytes_max),
            assigned_client_id: (!self.asked.named).then(|| ByteString::from(client.as_str().to_owned())),
            topic_alias_max: limits.topic_alias_max,
            retain_available: offers.retained,
            wildcard_subscription_available: offers.wildcards,
            shared_subscription_available: offers.shared,
            response_info: self.response_info(client),
            server_keepalive_sec: (keep_alive_s != self.asked.keep_alive_s).then_some(keep_alive_s),
            ..ConnectAck::default()
        }
    }

    fn response_info(&self, client: &ClientId) -> Option<ByteString> {
        let info = ByteString::from(format!("r/{}", client.as_str()));
        let bytes = AROUND_TEXT + info.len() + self.assigned_bytes(client);
        (self.asked.response_info && bytes <= self.room(CONNACK_BYTES)).then_some(info)
    }

    /// What the name that the server gives adds to the CONNACK.
    fn assigned_bytes(&self, name: &ClientId) -> usize {
        if self.asked.named { 0 } else { AROUND_TEXT + name.as_str().len() }
    }

    /// What the client's Maximum Packet Size leaves beside so many bytes.
    fn room(&self, beside: u32) -> usize {
        usize::try_from(self.packet_bytes_max.saturating_sub(beside)).unwrap_or(usize::MAX)
    }

    /// A reason in words, where they are wanted and the packet has room for them beside its reason codes
    /// [MQTT-3.14.2-3], [MQTT-3.9.2-1].
    #[must_use]
    pub fn explain(&self, why: &'static str, codes: usize) -> Option<ByteString> {
        let fits = why.len() + codes + AROUND_TEXT <= self.room(SHORT_BYTES);
        (self.problem_info && fits).then(|| ByteString::from_static(why))
    }

    /// Whether an answer with so many reason codes is one that the client takes [MQTT-3.1.2-24].
    pub(super) fn may_answer(&self, codes: usize) -> Result<(), Flaw> {
        let why = "the answer would be larger than the client takes";
        if codes <= self.room(SHORT_BYTES) { Ok(()) } else { Err(Flaw { reason: Reason::PacketTooLarge, why }) }
    }

    /// The client changed its mind at DISCONNECT (3.14.2.2.2).
    pub(super) fn expire_after(&mut self, expiry_s: u32) {
        self.expiry_s = expiry_s.min(self.expiry_max_s);
    }
}

/// What a client hears when it is not let in.
#[must_use]
pub fn refuse(reason_code: ConnectAckReason) -> ConnectAck {
    ConnectAck { reason_code, ..ConnectAck::default() }
}

/// What a client hears when too many come: when it is to come again, for MQTT 5 has no code for that (3.2.2.3.9). A client of
/// 3.1.1 hears that the server is unavailable; one that takes no such packet, of `packet_bytes_max`, hears the code alone
/// [MQTT-3.2.2-19].
#[must_use]
pub fn busy(come_again_s: u64, packet_bytes_max: u32) -> ConnectAck {
    if packet_bytes_max < BUSY_BYTES {
        return refuse(ConnectAckReason::ServerBusy);
    }
    ConnectAck {
        reason_string: Some(ByteString::from(format!("busy; come again in {come_again_s} s"))),
        user_properties: vec![("retry-after".into(), ByteString::from(come_again_s.to_string()))],
        ..refuse(ConnectAckReason::ServerBusy)
    }
}
