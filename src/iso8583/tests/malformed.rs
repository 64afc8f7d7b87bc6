//! What no core should send: an approval of 77 bytes, spoilt in one place each time.

use super::*;

/// MTI 0..4, bit map 4..12, DE3 12, DE4 18, DE7 30, DE11 40, DE37 46, DE38 58, DE39 64, DE41 66, DE49 74..77.
fn good() -> Vec<u8> {
    sandbox().layout.encode(&approval()).expect("fits").to_vec()
}

fn fault(bytes: &[u8]) -> Malformed {
    sandbox().layout.parse(bytes).map(|_| ()).expect_err("malformed")
}

fn at(place: Place, at: usize, fault: Fault) -> Malformed {
    Malformed { place, at, fault }
}

/// The approval with these bytes in place of what is there.
fn with(from: usize, bytes: &[u8]) -> Vec<u8> {
    let mut spoilt = good();
    spoilt[from..from + bytes.len()].copy_from_slice(bytes);
    spoilt
}

/// The approval with this data element's bit turned.
fn turned(field: usize) -> Vec<u8> {
    let mut spoilt = good();
    spoilt[4 + (field - 1) / 8] ^= 0x80 >> ((field - 1) % 8);
    spoilt
}

#[test]
fn a_message_may_end_nowhere_but_at_its_end() {
    let good = good();
    assert_eq!(good.len(), 77);
    assert_eq!(sandbox().layout.parse(&good), Ok(approval()));
    let parts = [
        (0, 4, Place::Mti),
        (4, 8, Place::Bitmap),
        (12, 6, Place::Field(3)),
        (18, 12, Place::Field(4)),
        (30, 10, Place::Field(7)),
        (40, 6, Place::Field(11)),
        (46, 12, Place::Field(37)),
        (58, 6, Place::Field(38)),
        (64, 2, Place::Field(39)),
        (66, 8, Place::Field(41)),
        (74, 3, Place::Field(49)),
    ];
    for end in 0..good.len() {
        let (from, needed, place) = *parts.iter().rev().find(|(from, ..)| *from <= end).expect("a part");
        assert_eq!(fault(&good[..end]), at(place, from, Fault::Short { needed, left: end - from }), "cut at {end}");
    }
}

#[test]
fn nothing_may_follow() {
    for more in 1..4 {
        let mut long = good();
        long.extend(std::iter::repeat_n(b'0', more));
        assert_eq!(fault(&long), at(Place::End, 77, Fault::Trailing(more)));
    }
    // Two messages in one frame.
    let two = [good(), good()].concat();
    assert_eq!(fault(&two), at(Place::End, 77, Fault::Trailing(77)));
}

#[test]
fn a_message_type_is_four_digits() {
    for mti in [b"02x0", b"    ", b"-210", b"\0\0\0\0", b"HTTP", b"\xFF210"] {
        let found = fault(&with(0, mti));
        assert_eq!((found.place, found.fault), (Place::Mti, Fault::NotDigits), "{mti:?}");
        assert_eq!(found.at, mti.iter().position(|byte| !byte.is_ascii_digit()).expect("one"));
    }
}

#[test]
fn a_bit_map_that_lies_is_found_out() {
    for (field, expected) in [
        // Promises what is not there, and so takes what belongs to the next.
        (2, at(Place::Field(49), 77, Fault::Short { needed: 3, left: 0 })),
        (5, at(Place::Field(39), 76, Fault::Short { needed: 2, left: 1 })),
        (63, at(Place::Field(63), 77, Fault::Short { needed: 3, left: 0 })),
        (64, at(Place::Field(64), 77, Fault::Short { needed: 8, left: 0 })),
        // Hides what is there.
        (49, at(Place::End, 74, Fault::Trailing(3))),
        // Knows what the dialect does not.
        (6, at(Place::Field(6), 30, Fault::Unknown)),
        (9, at(Place::Field(9), 40, Fault::Unknown)),
        (50, at(Place::Field(50), 77, Fault::Unknown)),
    ] {
        assert_eq!(fault(&turned(field)), expected, "DE{field}");
    }
    // A second bit map that is not there takes the first data elements for itself.
    let found = fault(&turned(1));
    assert!(matches!(found.place, Place::Field(_)), "{found}");
    let only = [&b"0210"[..], &[0x80, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(fault(&only), at(Place::Bitmap, 12, Fault::Short { needed: 8, left: 0 }));
    // Bit 65 would announce a third bit map, which the standard of 1987 has no use for.
    let third = [&only[..], &[0x80, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(fault(&third), at(Place::Field(65), 20, Fault::Unknown));
    // An empty second bit map says nothing, and that is allowed.
    let empty = [&only[..], &[0; 8]].concat();
    assert_eq!(sandbox().layout.parse(&empty), Ok(Message::new(Mti::FINANCIAL_REQUEST.response())));
}

#[test]
fn digits_are_digits() {
    for (field, from, bytes, offset) in [
        (3, 12, &b"01000x"[..], 5),
        (4, 18, b" 00005000000", 0),
        (4, 18, b"-00005000000", 0),
        (4, 18, b"+00005000000", 0),
        (4, 18, b"0000050000.0", 10),
        (7, 30, b"112101234\xB5", 9),
        (11, 40, b"00 042", 2),
        (11, 40, b"\0\0\0\0\0\0", 0),
        (49, 74, b"TZS", 0),
    ] {
        assert_eq!(fault(&with(from, bytes)), at(Place::Field(field), from + offset, Fault::NotDigits), "DE{field}");
    }
}

#[test]
fn text_is_text() {
    for (field, from, bytes, offset) in [
        (37, 46, &b"63250100004-"[..], 11),
        (37, 46, b"63250100004\0", 11),
        (38, 58, b"12\xC3\xA956", 2),
        (38, 58, b"\t23456", 0),
        (39, 64, b"\0\0", 0),
        (39, 64, b"0\n", 1),
        (39, 64, b"<>", 0),
        (41, 66, b"T000\x7F001", 4),
        (41, 66, b"T000\r\n01", 4),
    ] {
        assert_eq!(fault(&with(from, bytes)), at(Place::Field(field), from + offset, Fault::Character), "DE{field}");
    }
}

/// A message of this one data element, its bytes given.
fn only(layout: &Layout, field: u8, bytes: &[u8]) -> Result<Message, Malformed> {
    let bits = 1_u64 << (64 - field);
    let mti: &[u8] = if layout.mti == Body::Bcd { &[0x02, 0x10] } else { b"0210" };
    layout.parse(&[mti, &bits.to_be_bytes(), bytes].concat())
}

#[test]
fn variable_lengths_in_ascii() {
    let layout = sandbox().layout;
    for (field, bytes, expected) in [
        (2, &b"1"[..], at(Place::Field(2), 12, Fault::Short { needed: 2, left: 1 })),
        (2, b"x6", at(Place::Field(2), 12, Fault::LengthNotANumber)),
        (2, b"-1", at(Place::Field(2), 12, Fault::LengthNotANumber)),
        (2, b" 6411111", at(Place::Field(2), 12, Fault::LengthNotANumber)),
        (2, b"20", at(Place::Field(2), 12, Fault::TooLong { found: 20, max: 19 })),
        (2, b"99", at(Place::Field(2), 12, Fault::TooLong { found: 99, max: 19 })),
        (2, b"16411111111111111", at(Place::Field(2), 14, Fault::Short { needed: 16, left: 15 })),
        (2, b"0641111x", at(Place::Field(2), 19, Fault::NotDigits)),
        (35, b"054111^", at(Place::Field(35), 18, Fault::Character)),
        (44, b"2601", at(Place::Field(44), 12, Fault::TooLong { found: 26, max: 25 })),
        (48, b"99", at(Place::Field(48), 12, Fault::Short { needed: 3, left: 2 })),
        (48, b"999", at(Place::Field(48), 15, Fault::Short { needed: 999, left: 0 })),
        (48, b"0x1", at(Place::Field(48), 12, Fault::LengthNotANumber)),
        (54, b"121", at(Place::Field(54), 12, Fault::TooLong { found: 121, max: 120 })),
        (55, b"256", at(Place::Field(55), 12, Fault::TooLong { found: 256, max: 255 })),
        (55, b"003\x9F\x26", at(Place::Field(55), 15, Fault::Short { needed: 3, left: 2 })),
    ] {
        assert_eq!(only(&layout, field, bytes).expect_err("malformed"), expected, "DE{field} {bytes:?}");
    }
    assert!(only(&layout, 2, b"00").is_ok(), "an empty value is a value");
}

#[test]
fn variable_lengths_packed_and_binary() {
    for (variable, bytes, expected) in [
        ("bcd", &[0x1A][..], Fault::LengthNotANumber),
        ("bcd", &[0x20], Fault::TooLong { found: 20, max: 19 }),
        ("bcd", &[], Fault::Short { needed: 1, left: 0 }),
        ("binary", &[0xFF], Fault::TooLong { found: 255, max: 19 }),
        ("binary", &[0x14], Fault::TooLong { found: 20, max: 19 }),
        ("binary", &[], Fault::Short { needed: 1, left: 0 }),
    ] {
        let layout = packed(variable).layout;
        assert_eq!(only(&layout, 2, bytes), Err(at(Place::Field(2), 10, expected)), "{variable} {bytes:?}");
    }
    for (bytes, place, fault) in [
        (&[0x03, 0x41, 0x11][..], 11, Fault::NotDigits),
        (&[0x04, 0x41, 0x1A], 12, Fault::NotDigits),
        (&[0x04, 0x41], 11, Fault::Short { needed: 2, left: 1 }),
    ] {
        // Of three digits in two bytes the first half is zero.
        assert_eq!(only(&packed("bcd").layout, 2, bytes), Err(at(Place::Field(2), place, fault)), "{bytes:?}");
    }
    assert_eq!(packed("bcd").layout.parse(&[0x0F, 0x10]), Err(at(Place::Mti, 0, Fault::NotDigits)));
}

#[test]
fn hexadecimal_is_hexadecimal() {
    let layout = Dialect::parse(ASCII_HEX).expect("ascii-hex").layout;
    for (bytes, expected) in [
        (&b"02100000000000000g00"[..], at(Place::Bitmap, 16, Fault::NotHex)),
        (b"021000000000000000", at(Place::Bitmap, 4, Fault::Short { needed: 16, left: 14 })),
        (b"02100000000000001000", at(Place::Field(52), 20, Fault::Short { needed: 16, left: 0 })),
        (b"02100000000000001000000000000000000x", at(Place::Field(52), 34, Fault::NotHex)),
    ] {
        assert_eq!(layout.parse(bytes), Err(expected));
    }
    let small = layout.parse(b"0210000000000000100000000000000000ab").expect("small letters are read too");
    assert_eq!(small.get(52).map(Value::as_bytes), Some(&[0, 0, 0, 0, 0, 0, 0, 0xAB][..]));
}

#[test]
fn a_fault_names_its_place_and_none_of_the_bytes() {
    let text = only(&sandbox().layout, 2, b"16411111111111x111").expect_err("malformed").to_string();
    assert_eq!(text, "DE2, byte 26: is not digits");
    assert!(!text.contains("4111"));
}
