//! The codec against known bytes, against itself, and against what no core should send.

mod dialects;
mod malformed;

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;

pub(super) const SANDBOX: &str = include_str!("../../../config/banks/sandbox.toml");
pub(super) const ASCII_HEX: &str = include_str!("../../../config/banks/ascii-hex.toml");

pub(super) fn sandbox() -> Dialect {
    Dialect::parse(SANDBOX).expect("config/banks/sandbox.toml")
}

/// The sandbox's fields, packed as tightly as the standard allows.
fn packed(variable: &str) -> Dialect {
    let text = SANDBOX
        .replace("mti = \"ascii\"", "mti = \"bcd\"")
        .replace("digits = \"ascii\"", "digits = \"bcd\"")
        .replace("variable = \"ascii\"", &format!("variable = {variable:?}"));
    Dialect::parse(&text).expect("packed")
}

fn dialects() -> &'static [Dialect; 4] {
    static DIALECTS: OnceLock<[Dialect; 4]> = OnceLock::new();
    let read = || [sandbox(), Dialect::parse(ASCII_HEX).expect("ascii-hex"), packed("bcd"), packed("binary")];
    DIALECTS.get_or_init(read)
}

/// A withdrawal's approval.
pub(super) fn approval() -> Message {
    Message::new(Mti::FINANCIAL_REQUEST.response())
        .with(3, "010000")
        .with(4, "000005000000")
        .with(7, "1121012345")
        .with(11, "000042")
        .with(37, "632501000042")
        .with(38, "123456")
        .with(39, "00")
        .with(41, "T0000001")
        .with(49, "834")
}

#[test]
fn known_bytes_in_ascii() {
    let bytes = sandbox().layout.encode(&approval()).expect("fits");
    let mut expected = b"0210".to_vec();
    // 3 4 7 11 | 37 38 39 41 49
    expected.extend_from_slice(&[0x32, 0x20, 0x00, 0x00, 0x0E, 0x80, 0x80, 0x00]);
    expected.extend_from_slice(b"0100000000050000001121012345000042632501000042123456");
    expected.extend_from_slice(b"00T0000001834");
    assert_eq!(&*bytes, expected);
}

#[test]
fn known_bytes_in_hexadecimal() {
    let dialect = Dialect::parse(ASCII_HEX).expect("ascii-hex");
    let message = Message::new(Mti::NETWORK_REQUEST).with(7, "1121012345").with(11, "000001").with(70, "001");
    let bytes = dialect.layout.encode(&message).expect("fits");
    assert_eq!(std::str::from_utf8(&bytes), Ok("0800822000000000000004000000000000001121012345000001001"));
}

#[test]
fn known_bytes_packed() {
    let message = Message::new(Mti::NETWORK_REQUEST).with(11, "000001").with(32, "12345").with(70, "001");
    for (variable, length) in [("bcd", 0x05), ("binary", 0x05)] {
        let bytes = packed(variable).layout.encode(&message).expect("fits");
        let mut expected = vec![0x08, 0x00, 0x80, 0x20, 0, 0x01, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0, 0, 0];
        // An odd number of digits has a zero before the first.
        expected.extend_from_slice(&[0x00, 0x00, 0x01, length, 0x01, 0x23, 0x45, 0x00, 0x01]);
        assert_eq!(&*bytes, expected);
    }
}

#[test]
fn short_digits_are_filled_with_zeros_and_short_text_with_spaces() {
    let layout = sandbox().layout;
    let message = Message::new(Mti::FINANCIAL_REQUEST).with(4, "1").with(41, "T1");
    let read = layout.parse(&layout.encode(&message).expect("fits")).expect("reads");
    assert_eq!(read.get(4).map(Value::as_bytes), Some(&b"000000000001"[..]));
    assert_eq!((read.get(41).map(Value::as_bytes), read.text(41)), (Some(&b"T1      "[..]), Some("T1")));
}

#[test]
fn every_length_up_to_the_bound_and_none_beyond() {
    for dialect in dialects() {
        for (&field, format) in &dialect.layout.fields {
            let (Length::Fixed(max) | Length::Variable { max, .. }) = format.length;
            for length in [0, 1, 2, max.saturating_sub(1), max, max + 1] {
                let written = Message::new(Mti::FINANCIAL_REQUEST).with(field, Value::new(vec![b'7'; length]));
                let fits = match format.length {
                    Length::Fixed(wanted) if format.class == Class::B => length == wanted,
                    Length::Fixed(_) | Length::Variable { .. } => length <= max,
                };
                match dialect.layout.encode(&written) {
                    Err(unfit) => assert!(!fits && unfit.field == field, "{} {unfit}", dialect.name),
                    Ok(bytes) => {
                        assert!(fits, "{} DE{field} {length}", dialect.name);
                        let read = dialect.layout.parse(&bytes).expect("reads");
                        if matches!(format.length, Length::Variable { .. }) || length == max {
                            assert_eq!(read, written, "{} DE{field} {length}", dialect.name);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_without_being_repeated() {
    let layout = sandbox().layout;
    for (field, value, why) in [
        (2, "4111x", Unfitness::Character),
        (4, "-1", Unfitness::Character),
        (41, "T1\n", Unfitness::Character),
        (41, "a name that is too long", Unfitness::TooLong { found: 23, max: 8 }),
        (52, "1234567", Unfitness::WrongLength { found: 7, wanted: 8 }),
        (127, "x", Unfitness::Unknown),
        (1, "x", Unfitness::Unknown),
        (0, "x", Unfitness::Unknown),
        (129, "x", Unfitness::Unknown),
    ] {
        let unfit = layout.encode(&Message::new(Mti::FINANCIAL_REQUEST).with(field, value)).expect_err(value);
        assert_eq!(unfit, Unfit { field, why });
        assert!(!unfit.to_string().contains(value) || value.len() < 2, "{unfit}");
    }
}

#[test]
fn a_message_shows_no_card_data() {
    let message = approval()
        .with(2, "4111111111111111")
        .with(35, "4111111111111111=40121010000000000000")
        .with(45, "B4111111111111111^NAME^4012101")
        .with(52, Value::new(vec![0xAB; 8]))
        .with(55, Value::new(vec![0x9F, 0x26, 0xCD]))
        .with(64, Value::new(vec![0xEF; 8]));
    let text = format!("{message:?}");
    assert!(text.contains("2: 411111******1111") && text.contains("35: …") && text.contains("39: \"00\""), "{text}");
    for secret in ["4111111111111111", "4012101", "abab", "9f26", "NAME"] {
        assert!(!text.to_lowercase().contains(&secret.to_lowercase()), "{secret} in {text}");
    }
    let summary = message.summary();
    assert_eq!(summary.get("039").map(String::as_str), Some("00"));
    assert!(summary.values().all(|value| !value.contains("4111")), "{summary:?}");
    assert_eq!(format!("{:?}", sandbox().layout.encode(&approval())), "Ok(Bytes(77))");
    assert_eq!(format!("{:?}", message.get(35)), "Some(Value(37 bytes))");
    assert_eq!(format!("{:?}", Message::new(Mti::FINANCIAL_REQUEST).with(2, "411111")), "0200 { 2: ****** }");
}

#[test]
fn message_types_answer_and_repeat() {
    let number = |mti: Mti| mti.number();
    for (request, response) in [(200, 210), (420, 430), (421, 430), (800, 810), (100, 110)] {
        let mti = Mti::new(request).expect("four digits");
        assert_eq!((number(mti.response()), mti.is_response()), (response, false));
        assert!(mti.response().is_response());
    }
    assert_eq!(number(Mti::REVERSAL_ADVICE.repeat()), 421);
    assert_eq!(Mti::REVERSAL_ADVICE.class(), 4);
    for wrong in ["", "200", "02000", "02x0", "+200"] {
        assert_eq!(Mti::parse(wrong), None, "{wrong}");
    }
}

/// A value that fits a format, as long as its content says.
fn value(format: Format) -> BoxedStrategy<Vec<u8>> {
    let alphabet: Vec<u8> = match (format.class, format.body) {
        (Class::B, _) => (0..=255).collect(),
        // Packed, there is one separator.
        (Class::Z, Body::Bcd) => b"0123456789=".to_vec(),
        (class, _) => (0..=255).filter(|&byte| class.allows(byte)).collect(),
    };
    let length = match format.length {
        Length::Fixed(length) => length..=length,
        Length::Variable { max, .. } => 0..=max.min(60),
    };
    prop::collection::vec(prop::sample::select(alphabet), length).boxed()
}

fn message(dialect: &Dialect) -> BoxedStrategy<Message> {
    let fields: Vec<(u8, Format)> = dialect.layout.fields.iter().map(|(&field, &format)| (field, format)).collect();
    let some = prop::sample::subsequence(fields.clone(), 0..=fields.len());
    (0..=9999_u16, some)
        .prop_flat_map(|(mti, fields)| {
            let values: Vec<_> = fields.into_iter().map(|(field, format)| (Just(field), value(format))).collect();
            (Just(mti), values)
        })
        .prop_map(|(mti, values)| {
            let mut message = Message::new(Mti::new(mti).expect("four digits"));
            for (field, value) in values {
                message.set(field, Value::new(value));
            }
            message
        })
        .boxed()
}

fn any_message() -> impl Strategy<Value = (usize, Message)> {
    (0..4_usize).prop_flat_map(|which| (Just(which), message(&dialects()[which])))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_written_is_read((which, written) in any_message()) {
        let layout = &dialects()[which].layout;
        let bytes = layout.encode(&written).expect("fits");
        prop_assert_eq!(layout.parse(&bytes), Ok(written));
    }

    /// Any bytes at all give a message or a fault within them, and a message that was read can be written and read again.
    #[test]
    fn reading_is_total(which in 0..4_usize, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let layout = &dialects()[which].layout;
        match layout.parse(&bytes) {
            Ok(message) => prop_assert_eq!(layout.parse(&layout.encode(&message).expect("fits")), Ok(message)),
            Err(malformed) => prop_assert!(malformed.at <= bytes.len()),
        }
    }

    /// Nearly right is the hardest: a written message with some bytes changed, lost or added.
    #[test]
    fn reading_a_spoilt_message_is_total(
        (which, written) in any_message(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let layout = &dialects()[which].layout;
        let mut bytes = layout.encode(&written).expect("fits").to_vec();
        for (at, byte, how) in spoils {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                _ => if let Some(old) = bytes.get_mut(at) { *old = byte },
            }
        }
        match layout.parse(&bytes) {
            Ok(message) => prop_assert_eq!(layout.parse(&layout.encode(&message).expect("fits")), Ok(message)),
            Err(malformed) => prop_assert!(malformed.at <= bytes.len()),
        }
    }
}
