//! Bytes that nobody chose. What must hold of any: no panic; it is refused, or it is a packet that
//! - is not one before its last byte is there;
//! - has nothing in it that the standards forbid in every packet;
//! - written again by the codec, passes every check and reads the same.

use ntex_bytes::{BytePages, ByteString, BytesMut};
use ntex_codec::{Decoder, Encoder};
use ntex_mqtt::v5::codec::Packet;
use wakala::mqtt::Property;
use wakala::session::{Version, strict};

use super::frames::{Frames, Inbound, Outbound};

/// A terminal sends nothing longer.
const BYTES_MAX: u32 = 1 << 20;

/// Whether the bytes begin with a packet of this version.
///
/// # Panics
/// When what must hold does not.
pub(crate) fn is_packet(version: Version, bytes: &[u8]) -> bool {
    let _ = strict::version(bytes);
    let _ = strict::nameless(bytes);
    let frames = Frames::new(version, BYTES_MAX);
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(inbound)) = frames.decode(&mut buffer) else { return false };
    let taken = bytes.len() - buffer.len();
    for part in [taken / 2, taken - 1] {
        let early = frames.decode(&mut BytesMut::from(&bytes[..part]));
        assert!(matches!(early, Ok(None)), "{part} of {taken} bytes are no packet yet: {early:?}");
    }
    look_through(&inbound);
    let first = format!("{inbound:?}");
    let outbound = match inbound {
        Inbound::Packet(packet) => Outbound::Packet(packet),
        Inbound::Publish(publish, payload) => Outbound::Publish(publish, payload),
    };
    let mut pages = BytePages::default();
    frames.encodev(outbound, &mut pages).expect("what was read can be written");
    let mut again = BytesMut::from(&*pages.freeze());
    // MQTT 3.1.1 does not write what only a client sends.
    if !again.is_empty() {
        let read = frames.decode(&mut again).expect("what was written is right");
        assert_eq!(format!("{:?}", read.expect("and whole")), first, "it reads otherwise once it is written again");
        assert!(again.is_empty(), "more was written than a packet");
    }
    true
}

/// No text has what the standards let a server refuse, no topic a wildcard, and no packet lacks what it is for.
fn look_through(inbound: &Inbound) {
    match inbound {
        Inbound::Publish(publish, _) => {
            assert!(!publish.dup || publish.packet_id.is_some(), "DUP at QoS 0");
            assert!(!publish.topic.is_empty() || publish.topic_alias.is_some(), "a message for nobody");
            assert!(publish.subscription_ids.is_empty(), "a server's property");
            topic(&publish.topic);
            publish.properties.iter().for_each(|property| match property {
                Property::ResponseTopic(it) => topic(it),
                Property::ContentType(it) => text(it),
                Property::User(name, value) => [name, value].into_iter().for_each(text),
                _ => {}
            });
        }
        Inbound::Packet(Packet::Connect(connect)) => {
            assert!(connect.auth_method.is_some() || connect.auth_data.is_none(), "data without a method");
            connect.username.iter().chain([&connect.client_id]).for_each(|it| text(it));
            users(&connect.user_properties);
            if let Some(will) = &connect.last_will {
                assert!(!will.topic.is_empty(), "a will for nobody");
                topic(&will.topic);
                users(&will.user_properties);
            }
        }
        Inbound::Packet(Packet::PublishAck(ack) | Packet::PublishReceived(ack)) => {
            ack.reason_string.iter().for_each(|it| text(it));
            users(&ack.properties);
        }
        Inbound::Packet(Packet::PublishRelease(ack) | Packet::PublishComplete(ack)) => {
            ack.reason_string.iter().for_each(|it| text(it));
            users(&ack.properties);
        }
        Inbound::Packet(Packet::Subscribe(subscribe)) => {
            assert!(!subscribe.topic_filters.is_empty(), "a SUBSCRIBE to nothing");
            users(&subscribe.user_properties);
            subscribe.topic_filters.iter().for_each(|(it, _)| filter(it));
        }
        Inbound::Packet(Packet::Unsubscribe(unsubscribe)) => {
            assert!(!unsubscribe.topic_filters.is_empty(), "an UNSUBSCRIBE from nothing");
            users(&unsubscribe.user_properties);
            unsubscribe.topic_filters.iter().for_each(|it| filter(it));
        }
        Inbound::Packet(Packet::Disconnect(disconnect)) => {
            assert!(disconnect.server_reference.is_none(), "a server's property");
            users(&disconnect.user_properties);
        }
        Inbound::Packet(Packet::PingRequest) => {}
        Inbound::Packet(other) => panic!("not a client's packet: {other:?}"),
    }
}

fn text(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn users(pairs: &[(ByteString, ByteString)]) {
    pairs.iter().flat_map(|(name, value)| [name, value]).for_each(|it| text(it));
}

fn topic(name: &str) {
    text(name);
    assert!(!name.contains(['+', '#']), "{name:?}");
}

fn filter(filter: &str) {
    text(filter);
    let whole = |level: &str| level.len() == 1 || !level.contains(['+', '#']);
    assert!(!filter.is_empty() && filter.split('/').all(whole), "{filter:?}");
    assert!(!filter.contains("#/"), "{filter:?}");
}
