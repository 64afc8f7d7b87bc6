//! The codec reads what is written here, and what it writes is read.

use ntex_bytes::BytesMut;
use ntex_codec::{Decoder, Encoder};
use ntex_mqtt::v3::codec as v3;
use ntex_mqtt::v5::codec as v5;
use v5::LastWill;

use super::*;

/// Payload Format Indicator 1, Content Type, Response Topic, Correlation Data and three User Properties.
const WHOLE: &[u8] = b"\x01\x01\x03\x00\x0atext/plain\x08\x00\x03r/1\x09\x00\x03\x00\x01\xff\
    \x26\x00\x01b\x00\x011\x26\x00\x01a\x00\x012\x26\x00\x01b\x00\x00";

fn whole() -> Properties {
    Properties::stored(WHOLE.to_vec()).expect("properties")
}

fn users() -> v5::UserProperties {
    [("b", "1"), ("a", "2"), ("b", "")].map(|(name, value)| (name.into(), value.into())).to_vec()
}

fn publish(qos: QoS) -> Publish {
    Publish {
        dup: qos != QoS::AtMostOnce,
        retain: true,
        qos,
        packet_id: NonZeroU16::new(0x0102).filter(|_| qos != QoS::AtMostOnce),
        topic: "some/topic".into(),
        topic_alias: NonZeroU16::new(7),
        expiry_s: Some(0x0102_0304),
        subscription_ids: [1, 127, 128, 268_435_455].into_iter().filter_map(NonZeroU32::new).collect(),
        properties: whole(),
    }
}

/// The same in the codec's words.
fn in_its_words(publish: &Publish, payload: usize) -> v5::Publish {
    let Publish { dup, retain, qos, packet_id, .. } = *publish;
    let properties = v5::PublishProperties {
        topic_alias: publish.topic_alias,
        correlation_data: Some(Bytes::from_static(&[0, 1, 255])),
        message_expiry_interval: publish.expiry_s.and_then(NonZeroU32::new),
        content_type: Some("text/plain".into()),
        user_properties: users(),
        is_utf8_payload: true,
        response_topic: Some("r/1".into()),
        subscription_ids: publish.subscription_ids.clone(),
    };
    let payload_size = u32::try_from(payload).expect("short");
    v5::Publish { dup, retain, qos, packet_id, topic: publish.topic.clone(), payload_size, properties }
}

fn written(version: Version, publish: &Publish, payload: &Bytes) -> Bytes {
    let mut wire = BytePages::default();
    publish.write(version, payload.clone(), &mut wire);
    assert_eq!(wire.len(), publish.frame_bytes(version, payload.len()), "as many as were told");
    wire.freeze()
}

const EACH_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

#[test]
fn the_codec_of_mqtt_5_reads_what_is_written_and_writes_what_is_read() {
    for qos in EACH_QOS {
        for length in [0, 1, 100, 20_000, 3_000_000] {
            let (publish, payload) = (publish(qos), Bytes::from(vec![b'x'; length]));
            let wire = written(Version::V5, &publish, &payload);
            let read = v5::Codec::new().decode(&mut BytesMut::from(&*wire)).expect("a packet");
            let Some(v5::Decoded::Publish(its, carried, _)) = read else { panic!("{read:?}") };
            assert_eq!((&its, carried), (&in_its_words(&publish, length), payload.clone()));
            let mut wire = BytePages::default();
            v5::Codec::new().encodev(v5::Encoded::Publish(its, Some(payload.clone())), &mut wire).expect("written");
            let (mut read, carried) = Publish::read(Version::V5, &wire.freeze()).expect("read");
            assert_eq!(carried, payload);
            // It has an order of its own.
            let mut properties: Vec<_> = read.properties.iter().collect();
            properties.sort_by_key(|property| whole().iter().position(|each| each == *property));
            assert_eq!(properties, whole().iter().collect::<Vec<_>>());
            read.properties = whole();
            assert_eq!(read, publish);
        }
    }
}

#[test]
fn the_codec_of_mqtt_3_1_1_reads_what_is_written_and_writes_what_is_read() {
    for qos in EACH_QOS {
        let (publish, payload) = (publish(qos), Bytes::from_static(b"payload"));
        let wire = written(Version::V3, &publish, &payload);
        let read = v3::Codec::new().decode(&mut BytesMut::from(&*wire)).expect("a packet");
        let Some(v3::Decoded::Publish(its, carried, _)) = read else { panic!("{read:?}") };
        let same = (its.dup, its.retain, its.qos, its.packet_id, &its.topic, carried);
        assert_eq!(same, (publish.dup, true, qos, publish.packet_id, &publish.topic, payload.clone()));
        let mut wire = BytePages::default();
        v3::Codec::new().encodev(v3::Encoded::Publish(its, Some(payload.clone())), &mut wire).expect("written");
        let without = Publish {
            topic_alias: None,
            expiry_s: None,
            subscription_ids: Vec::new(),
            properties: Properties::default(),
            ..publish
        };
        assert_eq!(Publish::read(Version::V3, &wire.freeze()), Some((without, payload)));
    }
}

#[test]
fn what_goes_on_goes_on_unaltered_and_in_its_order() {
    let (user, format, alias, expiry) =
        (&b"\x26\x00\x01n\x00\x00"[..], &[0x01, 0][..], &[0x23, 0, 9][..], [2, 0, 0, 0, 0]);
    let all = [user, format, alias, &[8, 0, 1, b'r'], &expiry, user].concat();
    let packet = |all: &[u8]| {
        let mut frame = vec![0x30, u8::try_from(4 + all.len()).expect("short"), 0, 1, b't'];
        frame.push(u8::try_from(all.len()).expect("short"));
        frame.extend(all);
        Publish::read(Version::V5, &Bytes::from(frame)).expect("a PUBLISH").0
    };
    let read = packet(&all);
    assert_eq!((read.topic_alias.map(NonZeroU16::get), read.expiry_s), (Some(9), Some(0)));
    assert_eq!(read.properties.as_bytes(), [user, format, &[8, 0, 1, b'r'], user].concat());
    let on = Publish { topic_alias: None, expiry_s: None, ..read.clone() };
    let wire = written(Version::V5, &on, &Bytes::new());
    assert_eq!(Publish::read(Version::V5, &wire), Some((on, Bytes::new())), "a Payload Format Indicator of 0 too");
    assert_eq!(packet(format).properties.as_bytes(), format);
    assert!(packet(alias).properties.is_empty());
}

#[test]
fn stored_properties_are_those_that_go_on_and_whole() {
    assert_eq!(whole().as_bytes(), WHOLE);
    assert!(Properties::default().is_empty() && Properties::stored(vec![]) == Ok(Properties::default()));
    let readable = (0..WHOLE.len()).filter(|&at| Properties::stored(WHOLE[..at].to_vec()).is_ok()).count();
    assert_eq!(readable, 7, "only where a property begins");
    for other in [&[0x23, 0, 1][..], &[0x02, 0, 0, 0, 1], &[0x0B, 1], &[0x01, 2], &[0x11, 0, 0, 0, 1], &[3, 0, 1, 0xFF]]
    {
        assert_eq!(Properties::stored(other.to_vec()), Err(Unreadable), "{other:?}");
    }
}

#[test]
fn a_will_hands_its_properties_to_its_message() {
    let mut will = LastWill {
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "t".into(),
        message: Bytes::new(),
        will_delay_interval_sec: Some(1),
        correlation_data: Some(Bytes::from_static(&[0, 1, 255])),
        message_expiry_interval: NonZeroU32::new(1),
        content_type: Some("text/plain".into()),
        user_properties: users(),
        is_utf8_payload: Some(true),
        response_topic: Some("r/1".into()),
    };
    assert_eq!(Properties::from(&will), whole());
    will = LastWill {
        correlation_data: None,
        content_type: None,
        user_properties: vec![],
        is_utf8_payload: Some(false),
        response_topic: None,
        ..will
    };
    assert_eq!(Properties::from(&will).as_bytes(), [0x01, 0]);
    assert!(Properties::from(&LastWill { is_utf8_payload: None, ..will }).is_empty());
}
