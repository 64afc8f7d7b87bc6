//! Frames as bytes, and what becomes of them.

use super::hear::{Heard, hear};
use super::*;

/// A frame as a client sends it, with a mask that changes every byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        short @ ..=125 => bytes.push(MASKED | short as u8),
        long @ 126..=0xFFFF => {
            bytes.push(MASKED | 126);
            bytes.extend((long as u16).to_be_bytes());
        }
        longer => {
            bytes.push(MASKED | 127);
            bytes.extend((longer as u64).to_be_bytes());
        }
    }
    let mask = [0x11, 0x22, 0x33, 0x44];
    bytes.extend(mask);
    bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    bytes
}

/// Hears the same however the bytes are cut.
fn heard(sent: &[u8]) -> Heard {
    let whole = hear(sent, sent.len());
    for step in [1, 2, 3, 5, 7, 16, 1000] {
        assert_eq!(hear(sent, step), whole, "{step} bytes at a time");
    }
    whole
}

fn bytes(expected: &[u8]) -> Heard {
    Heard { bytes: expected.to_vec(), ..Heard::default() }
}

#[test]
fn a_packet_may_span_frames_and_frames_may_share_one_mqtt_6_0_0_2() {
    for length in [0, 1, 3, 4, 5, 125, 126, 127, 65_535, 65_536, 70_001] {
        let payload: Vec<u8> = (0..length).map(|n| (n * 7 + n / 256) as u8).collect();
        assert_eq!(heard(&frame(0x82, &payload)), bytes(&payload), "in one frame of {length}");
        let (a, b) = payload.split_at(length / 3);
        assert_eq!(heard(&[frame(0x82, a), frame(0x82, b)].concat()), bytes(&payload), "in two messages");
        let cut = [frame(0x02, a), frame(0x89, b"still there?"), frame(0x00, b""), frame(0x80, b)].concat();
        let pings = vec![b"still there?".to_vec()];
        assert_eq!(heard(&cut), Heard { pings, ..bytes(&payload) }, "in one message of three, with a ping between");
    }
}

#[test]
fn what_breaks_a_rule_ends_the_connection_with_its_code() {
    let long = |length: u64| [&[0x82, 0xFF][..], &length.to_be_bytes(), &[0; 4]].concat();
    for (what, sent, code) in [
        ("text [MQTT-6.0.0-1]", frame(0x81, b"CONNECT"), 1003),
        ("the first part of a text", frame(0x01, b"CON"), 1003),
        ("no mask (5.1)", vec![0x82, 0x01, 0x10], 1002),
        ("a ping without a mask", vec![0x89, 0x00], 1002),
        ("reserved bit 1", frame(0xC2, b"x"), 1002),
        ("reserved bit 2", frame(0xA2, b"x"), 1002),
        ("reserved bit 3", frame(0x92, b"x"), 1002),
        ("a ping with a reserved bit", frame(0xC9, b""), 1002),
        ("opcode 3", frame(0x83, b"x"), 1002),
        ("opcode 7", frame(0x87, b"x"), 1002),
        ("opcode 11", frame(0x8B, b""), 1002),
        ("opcode 15", frame(0x8F, b""), 1002),
        ("a ping in parts (5.5)", frame(0x09, b"x"), 1002),
        ("a close in parts", frame(0x08, b""), 1002),
        ("a ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        ("a close of 65,536 bytes", frame(0x88, &[0; 65_536]), 1002),
        ("a continuation of nothing (5.4)", frame(0x80, b"x"), 1002),
        ("a message in a message", [frame(0x02, b"x"), frame(0x82, b"y")].concat(), 1002),
        ("a length of 125 in two bytes (5.2)", [&[0x82, 0xFE, 0, 125][..], &[0; 4]].concat(), 1002),
        ("a length of 65,535 in eight bytes", long(65_535), 1002),
        ("a length with its highest bit", long(1 << 63), 1002),
        ("a close of one byte (5.5.1)", frame(0x88, &[3]), 1002),
        ("a close with code 999", frame(0x88, &[0x03, 0xE7]), 1002),
        ("a close with code 1004", frame(0x88, &[0x03, 0xEC]), 1002),
        ("a close with code 1005", frame(0x88, &[0x03, 0xED]), 1002),
        ("a close with code 1006", frame(0x88, &[0x03, 0xEE]), 1002),
        ("a close with code 1015", frame(0x88, &[0x03, 0xF7]), 1002),
        ("a close with code 2999", frame(0x88, &[0x0B, 0xB7]), 1002),
        ("a close with code 5000", frame(0x88, &[0x13, 0x88]), 1002),
        ("a close whose reason is no text", frame(0x88, &[0x03, 0xE8, 0xFF]), 1007),
        ("a close", frame(0x88, b""), 1000),
        ("a close with code 1000", frame(0x88, &[0x03, 0xE8]), 1000),
        ("a close of one who goes away", frame(0x88, &[&[0x03, 0xE9][..], b"bye"].concat()), 1001),
        ("a close with code 3000", frame(0x88, &[0x0B, 0xB8]), 3000),
        ("a close with code 4999", frame(0x88, &[0x13, 0x87]), 4999),
    ] {
        let before = frame(0x82, b"PING");
        let after = frame(0x82, b"nobody hears this");
        let heard = heard(&[if what.contains("part of") { Vec::new() } else { before.clone() }, sent, after].concat());
        assert_eq!(heard.end, Some(code), "{what}");
        assert!(b"PINGx".starts_with(&heard.bytes), "{what}: {heard:?}");
    }
}

#[test]
fn a_frame_of_any_length_is_handed_on_as_it_comes() {
    let mut frames = Frames::default();
    let mut begun = [&[0x82, 0xFF][..], &((1_u64 << 63) - 1).to_be_bytes(), &[0; 4], &[7; 100]].concat();
    let piece = frames.read(&mut begun).expect("its first bytes");
    assert_eq!(piece, Piece { bytes: 114, what: What::Bytes(14..114) });
    assert_eq!(frames.read(&mut [9; 3]), Some(Piece { bytes: 3, what: What::Bytes(0..3) }));
    assert_eq!(frames.read(&mut []), None);
}

#[test]
fn pongs_are_not_heard_and_pings_of_125_bytes_are() {
    let pings = vec![vec![5; 125], vec![]];
    let sent = [frame(0x8A, b"nobody asked"), frame(0x89, &pings[0]), frame(0x89, b""), frame(0x82, b"x")].concat();
    assert_eq!(heard(&sent), Heard { pings, ..bytes(b"x") });
}

#[test]
fn own_frames_are_whole_and_unmasked_and_say_their_length_in_as_few_bytes_as_it_takes() {
    assert_eq!(binary(0).as_ref(), [0x82, 0]);
    assert_eq!(binary(125).as_ref(), [0x82, 125]);
    assert_eq!(binary(126).as_ref(), [0x82, 126, 0, 126]);
    assert_eq!(binary(65_535).as_ref(), [0x82, 126, 0xFF, 0xFF]);
    assert_eq!(binary(65_536).as_ref(), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(pong(4).as_ref(), [0x8A, 4]);
    assert_eq!(Code::UNSUPPORTED.frame(), [0x88, 2, 0x03, 0xEB]);
}

proptest::proptest! {
    /// Whatever is sent is heard the same however it is cut, and waits for no more than a head or a control frame.
    #[test]
    fn whatever_comes(sent in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), step in 1_usize..50) {
        proptest::prop_assert_eq!(hear(&sent, step), hear(&sent, sent.len()));
    }

    /// The same of frames that are right, which bytes drawn at random seldom are.
    #[test]
    fn whatever_is_said(
        said in proptest::collection::vec((0_u8..3, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)), 0..8),
        step in 1_usize..50,
    ) {
        let (mut sent, mut expected) = (Vec::new(), Heard::default());
        for (kind, payload) in said {
            let control = &payload[..payload.len().min(125)];
            match kind {
                0 => {
                    sent.extend(frame(0x82, &payload));
                    expected.bytes.extend(payload);
                }
                1 => {
                    sent.extend(frame(0x89, control));
                    expected.pings.push(control.to_vec());
                }
                _ => sent.extend(frame(0x8A, control)),
            }
        }
        proptest::prop_assert_eq!(hear(&sent, step), expected);
    }
}
