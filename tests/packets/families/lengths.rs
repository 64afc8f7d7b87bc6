//! Variable Byte Integers: the remaining length and the property length, at their borders and longer than they need be.

use wakala::session::Version;

use super::super::case::{Case, Wanted, refused};
use super::super::notation::{bytes, framed, variable};
use super::super::standard::{OPEN, PLACES};
use super::{VERSIONS, case};

pub(super) fn all() -> Vec<Case> {
    [payloads(), remaining(), properties()].concat()
}

/// A PUBLISH whose remaining length is at the borders of table 1-1, and past 65,535.
fn payloads() -> Vec<Case> {
    let mut cases = Vec::new();
    for by in VERSIONS {
        let start = bytes(if by == Version::V3 { r#""t""# } else { r#""t" 00"# });
        for length in [4, 5, 127, 128, 129, 16_383, 16_384, 65_535, 65_536, 2_097_151, 2_097_152] {
            let payload = length - start.len();
            let reads = match payload {
                0 => "empty".to_owned(),
                1..=16 => "00".repeat(payload),
                _ => format!("{payload} bytes"),
            };
            let wanted = Wanted::Packet(format!(r#"PUBLISH q0 "t" {reads}"#));
            let bytes = framed(0x30, &[start.clone(), vec![0; payload]].concat());
            cases.push(case("lengths", format!("a remaining length of {length}"), by, bytes, wanted, "(1.5.5)"));
        }
    }
    cases
}

/// `value` in `count` bytes, more than it needs.
fn in_bytes(value: usize, count: usize) -> Vec<u8> {
    let mut bytes = variable(value);
    while bytes.len() < count {
        if let Some(last) = bytes.last_mut() {
            *last |= 0x80;
        }
        bytes.push(0);
    }
    bytes
}

/// MQTT 5 demands the shortest form. MQTT 3.1.1 only says how to compute it and that it has four bytes at most (2.2.3).
fn remaining() -> Vec<Case> {
    let mut cases = Vec::new();
    for (first, [body3, body5], reads) in [
        (0xC0, ["", ""], "PINGREQ"),
        (0xE0, ["", ""], "DISCONNECT"),
        (0x40, ["0001", "0001"], "PUBACK 1"),
        (0x62, ["0001", "0001"], "PUBREL 1"),
        (0x30, [r#""t""#, r#""t" 00"#], r#"PUBLISH q0 "t" empty"#),
        (0x82, [r#"0001 "t" 00"#, r#"0001 00 "t" 00"#], r#"SUBSCRIBE 1 "t":q0"#),
        (0xA2, [r#"0001 "t""#, r#"0001 00 "t""#], r#"UNSUBSCRIBE 1 "t""#),
    ] {
        for by in VERSIONS {
            let body = bytes(if by == Version::V3 { body3 } else { body5 });
            for count in 1..=5 {
                let (wanted, rule) = match (count, by) {
                    (5, _) => (refused(by, &[0x81]), "(1.5.5), 3.1.1: (2.2.3)"),
                    (1, _) | (_, Version::V3) => (Wanted::Packet(reads.to_owned()), "(1.5.5), 3.1.1: (2.2.3)"),
                    (_, Version::V5) => (refused(by, &[0x81]), "[MQTT-1.5.5-1]"),
                };
                let bytes = [vec![first], in_bytes(body.len(), count), body.clone()].concat();
                let name = format!("first byte {first:02x}, its length in {count} bytes");
                cases.push(case("lengths", name, by, bytes, wanted, rule));
            }
        }
    }
    cases
}

/// The property length: none, in more bytes than it needs, one too few, one too many, far too many.
fn properties() -> Vec<Case> {
    let mut cases = Vec::new();
    let pair = bytes(r#"26 "k" "v""#);
    for place in PLACES {
        let mut add = |what: &str, properties: Vec<u8>, codes: Option<&[u8]>| {
            let wanted = match (codes, place.reads(if properties.len() > 1 { r#" UserProperty="k":"v""# } else { "" }))
            {
                (None, Some(packet)) => Wanted::Packet(packet),
                (Some(codes), Some(_)) => refused(Version::V5, codes),
                (_, None) => refused(Version::V5, OPEN),
            };
            let name = format!("{place:?}, {what}");
            cases.push(case(
                "lengths",
                name,
                Version::V5,
                place.around(&properties),
                wanted,
                "(2.2.2.1), [MQTT-1.5.5-1]",
            ));
        };
        add("no properties", vec![0], None);
        add("one property", [vec![7], pair.clone()].concat(), None);
        for count in 2..=5 {
            add(
                &format!("a property length in {count} bytes"),
                [in_bytes(7, count), pair.clone()].concat(),
                Some(&[0x81]),
            );
            add(&format!("a property length of 0 in {count} bytes"), in_bytes(0, count), Some(&[0x81]));
        }
        add("properties longer than the packet", [vec![0x7F], pair.clone()].concat(), Some(&[0x81]));
        add("properties of 268,435,455 bytes", [in_bytes(268_435_455, 4), pair.clone()].concat(), Some(&[0x81]));
        // What the length leaves out is read as what follows. In a PUBLISH, that is the payload.
        let (one_less, one_more) = ([vec![6], pair.clone()].concat(), [vec![8], pair.clone()].concat());
        add("a property length that is one too small", one_less, Some(&[0x81]));
        add("a property length that is one too great", one_more, Some(&[0x81]));
    }
    cases
}
