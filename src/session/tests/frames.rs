//! Frames as bytes, and what is said to them.

use crate::session::Version;
use crate::session::strict::{frame, frame_bytes, version};

/// `body` behind a first byte and its length.
fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut head, mut left) = (vec![first], body.len());
    while left > 127 {
        head.push(u8::try_from(left % 128).expect("below 128") | 0x80);
        left /= 128;
    }
    head.push(u8::try_from(left).expect("below 128"));
    [&head, body].concat()
}

/// The reason code that a frame earns; 0 for one that is taken.
fn reason(version: Version, first: u8, body: &[u8]) -> u8 {
    frame(version, &framed(first, body)).map_or_else(|flaw| u8::from(flaw.reason), |_| 0)
}

/// The packets that begin or carry; the others are below.
#[test]
fn connect_and_publish_of_mqtt_5() {
    for (what, first, body, wanted) in [
        ("CONNECT", 0x10, &b"\0\x04MQTT\x05\x02\0\x3C\0\0\x01x"[..], 0),
        ("CONNECT, password alone", 0x10, b"\0\x04MQTT\x05\x42\0\x3C\0\0\x01x\0\x01p", 0),
        ("CONNECT, reserved flag", 0x10, b"\0\x04MQTT\x05\x03\0\x3C\0\0\x01x", 0x81),
        ("CONNECT, will QoS without a will", 0x10, b"\0\x04MQTT\x05\x0A\0\x3C\0\0\x01x", 0x81),
        ("CONNECT, will retain without a will", 0x10, b"\0\x04MQTT\x05\x22\0\x3C\0\0\x01x", 0x81),
        ("CONNECT, will", 0x10, b"\0\x04MQTT\x05\x06\0\x3C\0\0\x01x\0\0\x01w\0\x01m", 0),
        ("CONNECT, will QoS 3", 0x10, b"\0\x04MQTT\x05\x1E\0\x3C\0\0\x01x\0\0\x01w\0\x01m", 0x81),
        ("CONNECT, will topic with a wildcard", 0x10, b"\0\x04MQTT\x05\x06\0\x3C\0\0\x01x\0\0\x01#\0\x01m", 0x90),
        ("CONNECT, U+0000 in the identifier", 0x10, b"\0\x04MQTT\x05\x02\0\x3C\0\0\x01\0", 0x81),
        ("CONNECT, control character in the identifier", 0x10, b"\0\x04MQTT\x05\x02\0\x3C\0\0\x01\x01", 0x81),
        ("CONNECT, bytes after the end", 0x10, b"\0\x04MQTT\x05\x02\0\x3C\0\0\x01xy", 0x81),
        ("CONNECT, cut off", 0x10, b"\0\x04MQTT\x05\x82\0\x3C\0\0\x01x", 0x81),
        ("CONNECT, flags in the header", 0x11, b"\0\x04MQTT\x05\x02\0\x3C\0\0\x01x", 0x81),
        ("CONNACK", 0x20, b"\0\0\0", 0x82),
        ("PUBLISH", 0x32, b"\0\x01t\0\x01\0", 0),
        ("PUBLISH, QoS 3", 0x36, b"\0\x01t\0\x01\0", 0x81),
        ("PUBLISH, DUP at QoS 0", 0x38, b"\0\x01t\0", 0x81),
        ("PUBLISH, identifier 0", 0x32, b"\0\x01t\0\0\0", 0x82),
        ("PUBLISH, empty topic", 0x32, b"\0\0\0\x01\0", 0x82),
        ("PUBLISH, empty topic with an alias", 0x32, b"\0\0\0\x01\x03\x23\0\x01", 0),
        ("PUBLISH, alias 0", 0x32, b"\0\x01t\0\x01\x03\x23\0\0", 0x94),
        ("PUBLISH, wildcard", 0x30, b"\0\x02t+\0", 0x90),
        ("PUBLISH, U+0000", 0x30, b"\0\x02t\0\0", 0x81),
        ("PUBLISH, not UTF-8", 0x30, b"\0\x01\xFF\0", 0x81),
        ("PUBLISH, surrogate", 0x30, b"\0\x03\xED\xA0\x80\0", 0x81),
        ("PUBLISH, subscription identifier", 0x30, b"\0\x01t\x02\x0B\x01", 0x82),
        ("PUBLISH, response topic", 0x30, b"\0\x01t\x04\x08\0\x01r", 0),
        ("PUBLISH, response topic with a wildcard", 0x30, b"\0\x01t\x04\x08\0\x01#", 0x82),
        ("PUBLISH, unknown property", 0x30, b"\0\x01t\x02\x7F\0", 0x81),
        ("PUBLISH, properties beyond the end", 0x30, b"\0\x01t\x05\x23", 0x81),
    ] {
        assert_eq!(reason(Version::V5, first, body), wanted, "{what}");
    }
}

#[test]
fn the_other_packets_of_mqtt_5() {
    for (what, first, body, wanted) in [
        ("PUBACK", 0x40, &b"\0\x01"[..], 0),
        ("PUBACK, identifier 0", 0x40, b"\0\0", 0x82),
        ("PUBACK, flags in the header", 0x42, b"\0\x01", 0x81),
        ("PUBREL, flags missing", 0x60, b"\0\x01", 0x81),
        ("SUBSCRIBE", 0x82, b"\0\x01\0\0\x01t\x01", 0),
        ("SUBSCRIBE, flags missing", 0x80, b"\0\x01\0\0\x01t\x01", 0x81),
        ("SUBSCRIBE, no filter", 0x82, b"\0\x01\0", 0x82),
        ("SUBSCRIBE, empty filter", 0x82, b"\0\x01\0\0\0\x01", 0x81),
        ("SUBSCRIBE, identifier 0", 0x82, b"\0\0\0\0\x01t\x01", 0x82),
        ("SUBSCRIBE, bit 6", 0x82, b"\0\x01\0\0\x01t\x41", 0x81),
        ("SUBSCRIBE, QoS 3", 0x82, b"\0\x01\0\0\x01t\x03", 0x82),
        ("SUBSCRIBE, retain handling 3", 0x82, b"\0\x01\0\0\x01t\x31", 0x82),
        ("SUBSCRIBE, a/#", 0x82, b"\0\x01\0\0\x03a/#\x01", 0),
        ("SUBSCRIBE, a#", 0x82, b"\0\x01\0\0\x02a#\x01", 0x81),
        ("SUBSCRIBE, #/a", 0x82, b"\0\x01\0\0\x03#/a\x01", 0x81),
        ("SUBSCRIBE, +a", 0x82, b"\0\x01\0\0\x02+a\x01", 0x81),
        ("SUBSCRIBE, +/+", 0x82, b"\0\x01\0\0\x03+/+\x01", 0),
        ("SUBSCRIBE, shared", 0x82, b"\0\x01\0\0\x0A$share/g/t\x01", 0),
        ("SUBSCRIBE, shared and no local", 0x82, b"\0\x01\0\0\x0A$share/g/t\x05", 0x82),
        ("SUBSCRIBE, share without a name", 0x82, b"\0\x01\0\0\x09$share//t\x01", 0x82),
        ("SUBSCRIBE, share without a filter", 0x82, b"\0\x01\0\0\x08$share/g\x01", 0x82),
        ("SUBSCRIBE, share with an empty filter", 0x82, b"\0\x01\0\0\x09$share/g/\x01", 0x81),
        ("SUBSCRIBE, share with a wildcard in its name", 0x82, b"\0\x01\0\0\x0A$share/+/t\x01", 0x82),
        ("SUBACK", 0x90, b"\0\x01\0\0", 0x82),
        ("UNSUBSCRIBE", 0xA2, b"\0\x01\0\0\x01t", 0),
        ("UNSUBSCRIBE, no filter", 0xA2, b"\0\x01\0", 0x82),
        ("UNSUBSCRIBE, control character", 0xA2, b"\0\x01\0\0\x01\x7F", 0x81),
        ("UNSUBACK", 0xB0, b"\0\x01\0\0", 0x82),
        ("PINGREQ", 0xC0, b"", 0),
        ("PINGREQ with a body", 0xC0, b"\0", 0x81),
        ("PINGRESP", 0xD0, b"", 0x82),
        ("DISCONNECT", 0xE0, b"", 0),
        ("DISCONNECT with will", 0xE0, b"\x04", 0),
        ("DISCONNECT, a server's reason", 0xE0, b"\x8E", 0x82),
        ("DISCONNECT, server reference", 0xE0, b"\0\x04\x1C\0\x01s", 0x82),
        ("DISCONNECT, bytes after the end", 0xE0, b"\0\0\0", 0x81),
        ("DISCONNECT, flags in the header", 0xE1, b"", 0x81),
        ("AUTH", 0xF0, b"\x18\0", 0x82),
        ("type 0", 0x00, b"", 0x81),
    ] {
        assert_eq!(reason(Version::V5, first, body), wanted, "{what}");
    }
}

/// They are decided in one go.
#[test]
fn a_packet_has_so_many_filters_and_no_more() {
    for (first, one) in [(0x82, &b"\0\x01t\x01"[..]), (0xA2, b"\0\x01t")] {
        let of = |filters| [b"\0\x01\0", &*one.repeat(filters)].concat();
        assert_eq!(reason(Version::V5, first, &of(65_536)), 0);
        assert_eq!(reason(Version::V5, first, &of(65_537)), 0x97);
    }
}

#[test]
fn frames_of_mqtt_3() {
    for (what, first, body, taken) in [
        ("CONNECT", 0x10, &b"\0\x04MQTT\x04\x02\0\x3C\0\x01x"[..], true),
        ("CONNECT with both", 0x10, b"\0\x04MQTT\x04\xC2\0\x3C\0\x01x\0\x01u\0\x01p", true),
        ("CONNECT, password alone", 0x10, b"\0\x04MQTT\x04\x42\0\x3C\0\x01x\0\x01p", false),
        ("CONNECT, reserved flag", 0x10, b"\0\x04MQTT\x04\x03\0\x3C\0\x01x", false),
        ("CONNECT, user name flag without one", 0x10, b"\0\x04MQTT\x04\x82\0\x3C\0\x01x", false),
        ("CONNECT, user name without its flag", 0x10, b"\0\x04MQTT\x04\x02\0\x3C\0\x01x\0\x01u", false),
        ("CONNECT, will QoS without a will", 0x10, b"\0\x04MQTT\x04\x0A\0\x3C\0\x01x", false),
        ("CONNECT, U+0000 in the user name", 0x10, b"\0\x04MQTT\x04\x82\0\x3C\0\x01x\0\x01\0", false),
        ("PUBLISH", 0x32, b"\0\x01t\0\x01", true),
        ("PUBLISH, empty topic", 0x30, b"\0\0", false),
        ("PUBLISH, wildcard", 0x30, b"\0\x01#", false),
        ("PUBLISH, DUP at QoS 0", 0x38, b"\0\x01t", false),
        ("PUBACK with more", 0x40, b"\0\x01\0", false),
        ("SUBSCRIBE", 0x82, b"\0\x01\0\x01t\x02", true),
        ("SUBSCRIBE, QoS 3", 0x82, b"\0\x01\0\x01t\x03", false),
        ("SUBSCRIBE, an option of MQTT 5", 0x82, b"\0\x01\0\x01t\x05", false),
        ("SUBSCRIBE, no filter", 0x82, b"\0\x01", false),
        ("UNSUBSCRIBE, no filter", 0xA2, b"\0\x01", false),
        ("UNSUBSCRIBE, empty filter", 0xA2, b"\0\x01\0\0", false),
        ("DISCONNECT", 0xE0, b"", true),
        ("DISCONNECT with a reason", 0xE0, b"\0", false),
        ("AUTH", 0xF0, b"", false),
    ] {
        assert_eq!(reason(Version::V3, first, body) == 0, taken, "{what}");
    }
}

#[test]
fn a_length_has_at_most_four_bytes_and_a_bound() {
    for (bytes, wanted) in [
        (&[][..], Ok(None)),
        (&[0xC0], Ok(None)),
        (&[0xC0, 0], Ok(Some(2))),
        (&[0x30, 0x80], Ok(None)),
        (&[0x30, 0x80, 0x01], Ok(Some(131))),
        (&[0x30, 0xFD, 0x07], Ok(Some(1024))),
        (&[0x30, 0xFE, 0x07], Err(0x95)),
        (&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], Err(0x95)),
        (&[0x30, 0xFF, 0xFF, 0xFF, 0xFF], Err(0x81)),
    ] {
        assert_eq!(frame_bytes(bytes, 1024).map_err(|flaw| u8::from(flaw.reason)), wanted, "{bytes:x?}");
    }
}

#[test]
fn the_version_is_told_by_the_connect() {
    let of = |body: &[u8]| version(&framed(0x10, body)).map_err(|flaw| u8::from(flaw.reason));
    assert_eq!(of(b"\0\x04MQTT\x04"), Ok(Ok(Version::V3)));
    assert_eq!(of(b"\0\x04MQTT\x05"), Ok(Ok(Version::V5)));
    assert_eq!(of(b"\0\x04MQTT\x06"), Ok(Err(6)));
    assert_eq!(of(b"\0\x06MQIsdp\x03"), Ok(Err(3)));
    assert_eq!(of(b"\0\x04MQTX\x04"), Err(0x82));
    assert_eq!(of(b"\0\x04MQ"), Err(0x81));
    assert_eq!(version(&framed(0xC0, b"")).map_err(|flaw| u8::from(flaw.reason)), Err(0x82));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
        for version in [Version::V3, Version::V5] {
            let _ = frame(version, &bytes);
        }
        let _ = version(&bytes);
        let _ = frame_bytes(&bytes, 64);
    }
}
