//! The ISO 8583 codec against an independent one: messages as pyiso8583 wrote, spoilt and read them
//! (`tests/foreign/iso8583_cases.py`, which has the dialects written down a second time).

#![expect(clippy::expect_used, reason = "a test says what it expects")]

use std::collections::BTreeMap;

use serde_json::Value as Json;
use wakala::iso8583::{Body, Class, Dialect, Fault, Layout, Message, Mti, Value};

const CASES: &str = include_str!("vectors/iso8583.jsonl");

fn layouts() -> BTreeMap<&'static str, Layout> {
    let sandbox = include_str!("../config/banks/sandbox.toml");
    let packed = sandbox
        .replace("mti = \"ascii\"", "mti = \"bcd\"")
        .replace("digits = \"ascii\"", "digits = \"bcd\"")
        .replace("variable = \"ascii\"", "variable = \"bcd\"");
    let read = |text: &str| Dialect::parse(text).expect("a dialect").layout;
    let ascii_hex = include_str!("../config/banks/ascii-hex.toml");
    BTreeMap::from([("sandbox", read(sandbox)), ("ascii-hex", read(ascii_hex)), ("packed", read(&packed))])
}

/// As pyiso8583 has a message: text by data element, a binary one in hexadecimal.
type Fields = BTreeMap<String, String>;

fn ours(layout: &Layout, message: &Message) -> Fields {
    let text = |field: u8, value: &Value| {
        if layout.fields[&field].class == Class::B {
            hex::encode_upper(value.as_bytes())
        } else {
            String::from_utf8(value.as_bytes().to_vec()).expect("text")
        }
    };
    let fields = message.fields().map(|(field, value)| (field.to_string(), text(field, value)));
    fields.chain([("t".to_owned(), message.mti.to_string())]).collect()
}

fn theirs(layout: &Layout, fields: &Fields) -> Message {
    let mut message = Message::new(Mti::parse(&fields["t"]).expect("an MTI"));
    for (name, text) in fields.iter().filter(|(name, _)| *name != "t") {
        let field = name.parse().expect("a data element");
        let binary = layout.fields[&field].class == Class::B;
        let bytes = if binary { hex::decode(text).expect("hexadecimal") } else { text.as_bytes().to_vec() };
        message.set(field, Value::new(bytes));
    }
    message
}

#[test]
fn pyiso8583_and_we_write_and_read_the_same() {
    let layouts = layouts();
    let (mut whole, mut refused, mut stricter) = (0, 0, 0);
    for line in CASES.lines() {
        let case: Json = serde_json::from_str(line).expect("a case");
        let layout = &layouts[case["dialect"].as_str().expect("a dialect")];
        let bytes = hex::decode(case["bytes"].as_str().expect("bytes")).expect("hexadecimal");
        let fields: Option<Fields> = serde_json::from_value(case["fields"].clone()).expect("fields");
        let read = layout.parse(&bytes);
        match (fields, read) {
            (Some(fields), Ok(message)) => {
                assert_eq!(ours(layout, &message), fields, "{line}");
                if case["spoilt"] == false {
                    let written = layout.encode(&theirs(layout, &fields)).expect("fits");
                    assert_eq!(hex::encode(&*written), hex::encode(&bytes), "{line}");
                    whole += 1;
                }
            }
            (None, Err(_)) => refused += 1,
            (None, Ok(_)) => panic!("pyiso8583 refuses what we read: {line}"),
            // It does not look at the characters.
            (Some(_), Err(malformed)) => {
                assert!(case["spoilt"] == true, "{malformed}: {line}");
                assert!(matches!(malformed.fault, Fault::Character | Fault::NotDigits), "{malformed}: {line}");
                stricter += 1;
            }
        }
    }
    assert!(
        whole >= 200 && refused >= 50 && stricter >= 5,
        "{whole} whole, {refused} refused, {stricter} refused by us"
    );
    assert!(layouts["packed"].mti == Body::Bcd);
}
