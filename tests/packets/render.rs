//! A decoded packet in one line, so that a wrong decoding is seen. A property is `Name=value` in the order of its number; one
//! that is absent, or at its default, is not written.

use std::fmt::Display;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec as v5;
use v5::{Packet, RetainHandling};
use wakala::mqtt::{Property, Publish};

use super::frames::Inbound;

pub(crate) fn packet(inbound: &Inbound) -> String {
    match inbound {
        Inbound::Publish(publish, payload) => self::publish(publish, payload),
        Inbound::Packet(packet) => other(packet),
    }
}

fn other(packet: &Packet) -> String {
    match packet {
        Packet::Connect(it) => connect(it),
        Packet::PublishAck(it) => {
            acknowledgement("PUBACK", it.packet_id, it.reason_code.into(), &it.reason_string, &it.properties)
        }
        Packet::PublishReceived(it) => {
            acknowledgement("PUBREC", it.packet_id, it.reason_code.into(), &it.reason_string, &it.properties)
        }
        Packet::PublishRelease(it) => {
            acknowledgement("PUBREL", it.packet_id, it.reason_code.into(), &it.reason_string, &it.properties)
        }
        Packet::PublishComplete(it) => {
            acknowledgement("PUBCOMP", it.packet_id, it.reason_code.into(), &it.reason_string, &it.properties)
        }
        Packet::Subscribe(it) => subscribe(it),
        Packet::Unsubscribe(it) => {
            let mut line = Line::new(format!("UNSUBSCRIBE {}", it.packet_id));
            it.topic_filters.iter().for_each(|filter| line.word(text(filter)));
            line.users(&it.user_properties)
        }
        Packet::PingRequest => "PINGREQ".to_owned(),
        Packet::Disconnect(it) => {
            let mut line = Line::new("DISCONNECT".to_owned());
            line.reason(it.reason_code.into());
            line.property("SessionExpiryInterval", it.session_expiry_interval_secs);
            line.property("ServerReference", it.server_reference.as_ref().map(text));
            line.property("ReasonString", it.reason_string.as_ref().map(text));
            line.users(&it.user_properties)
        }
        other => format!("{other:?}"),
    }
}

fn connect(it: &v5::Connect) -> String {
    let mut line = Line::new("CONNECT".to_owned());
    if it.clean_start {
        line.word("clean");
    }
    line.word(format!("keep={} id={}", it.keep_alive, text(&it.client_id)));
    if let Some(will) = &it.last_will {
        line.word(self::will(will));
    }
    line.property("user", it.username.as_ref().map(text));
    line.property("password", it.password.as_ref().map(binary));
    line.property("SessionExpiryInterval", present(it.session_expiry_interval_secs, 0));
    line.property("AuthenticationMethod", it.auth_method.as_ref().map(text));
    line.property("AuthenticationData", it.auth_data.as_ref().map(binary));
    line.property("RequestProblemInformation", present(u8::from(it.request_problem_info), 1));
    line.property("RequestResponseInformation", present(u8::from(it.request_response_info), 0));
    line.property("ReceiveMaximum", it.receive_max);
    line.property("TopicAliasMaximum", present(it.topic_alias_max, 0));
    line.users_then(&it.user_properties, |line| line.property("MaximumPacketSize", it.max_packet_size))
}

fn will(it: &v5::LastWill) -> String {
    let mut line = Line::new(format!("will{{q{}", u8::from(it.qos)));
    if it.retain {
        line.word("retain");
    }
    line.word(format!("{} {}", text(&it.topic), payload(&it.message)));
    line.property("PayloadFormatIndicator", it.is_utf8_payload.map(u8::from));
    line.property("MessageExpiryInterval", it.message_expiry_interval);
    line.property("ContentType", it.content_type.as_ref().map(text));
    line.property("ResponseTopic", it.response_topic.as_ref().map(text));
    line.property("CorrelationData", it.correlation_data.as_ref().map(binary));
    line.property("WillDelayInterval", it.will_delay_interval_sec);
    line.users(&it.user_properties) + "}"
}

fn publish(it: &Publish, carried: &Bytes) -> String {
    let mut line = Line::new(format!("PUBLISH q{}", u8::from(it.qos)));
    if it.dup {
        line.word("dup");
    }
    if it.retain {
        line.word("retain");
    }
    line.property("id", it.packet_id);
    line.word(format!("{} {}", text(&it.topic), payload(carried)));
    let mut shown: Vec<_> = it.properties.iter().map(|property| self::property(property)).collect();
    shown.extend(it.expiry_s.map(|seconds| (0x02, format!("MessageExpiryInterval={seconds}"))));
    shown.extend(it.subscription_ids.iter().map(|id| (0x0B, format!("SubscriptionIdentifier={id}"))));
    shown.extend(it.topic_alias.map(|alias| (0x23, format!("TopicAlias={alias}"))));
    shown.sort_by_key(|(number, _)| *number);
    shown.iter().for_each(|(_, shown)| line.word(shown));
    line.0
}

/// One that goes on with the message, with its number.
fn property(property: Property<'_>) -> (u8, String) {
    let text = |text: &str| self::text(&ByteString::from(text.to_owned()));
    match property {
        Property::PayloadFormat(format) => (0x01, format!("PayloadFormatIndicator={format}")),
        Property::ContentType(it) => (0x03, format!("ContentType={}", text(it))),
        Property::ResponseTopic(it) => (0x08, format!("ResponseTopic={}", text(it))),
        Property::CorrelationData(it) => (0x09, format!("CorrelationData={}", binary(&Bytes::copy_from_slice(it)))),
        Property::User(name, value) => (0x26, format!("UserProperty={}:{}", text(name), text(value))),
        other => panic!("{other:?} does not go on"),
    }
}

fn acknowledgement(
    name: &str,
    packet_id: impl Display,
    reason: u8,
    reason_string: &Option<ByteString>,
    users: &[(ByteString, ByteString)],
) -> String {
    let mut line = Line::new(format!("{name} {packet_id}"));
    line.reason(reason);
    line.property("ReasonString", reason_string.as_ref().map(text));
    line.users(users)
}

fn subscribe(it: &v5::Subscribe) -> String {
    let mut line = Line::new(format!("SUBSCRIBE {}", it.packet_id));
    for (filter, options) in &it.topic_filters {
        let no_local = if options.no_local { ",no-local" } else { "" };
        let as_published = if options.retain_as_published { ",as-published" } else { "" };
        let handling = match options.retain_handling {
            RetainHandling::AtSubscribe => "",
            RetainHandling::AtSubscribeNew => ",retained-if-new",
            RetainHandling::NoAtSubscribe => ",no-retained",
        };
        line.word(format!("{}:q{}{no_local}{as_published}{handling}", text(filter), u8::from(options.qos)));
    }
    line.property("SubscriptionIdentifier", it.id);
    line.users(&it.user_properties)
}

fn present<T: PartialEq>(value: T, default: T) -> Option<T> {
    (value != default).then_some(value)
}

/// A text in quotes; a long one by its beginning and its length.
pub(crate) fn text(text: &ByteString) -> String {
    match text.char_indices().nth(32) {
        None => format!("{:?}", &**text),
        Some((end, _)) => format!("{:?}…{}", &text[..end], text.len()),
    }
}

fn binary(bytes: &Bytes) -> String {
    if bytes.len() > 16 { format!("{} bytes", bytes.len()) } else { hex::encode(bytes) }
}

fn payload(bytes: &Bytes) -> String {
    if bytes.is_empty() { "empty".to_owned() } else { binary(bytes) }
}

struct Line(String);

impl Line {
    fn new(start: String) -> Self {
        Self(start)
    }

    fn word(&mut self, word: impl AsRef<str>) {
        self.0.push(' ');
        self.0.push_str(word.as_ref());
    }

    fn reason(&mut self, code: u8) {
        if code != 0 {
            self.word(format!("reason={code:02x}"));
        }
    }

    fn property(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.word(format!("{name}={value}"));
        }
    }

    fn users(self, pairs: &[(ByteString, ByteString)]) -> String {
        self.users_then(pairs, |_| ())
    }

    fn users_then(mut self, pairs: &[(ByteString, ByteString)], then: impl FnOnce(&mut Self)) -> String {
        for (name, value) in pairs {
            self.word(format!("UserProperty={}:{}", text(name), text(value)));
        }
        then(&mut self);
        self.0
    }
}
