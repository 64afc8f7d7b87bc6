//! Cases of pyiso8583, one JSON object a line, against our codec.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use wakala::iso8583::{Body, Class, Dialect, Fault, Layout, Message, Mti, Value};

fn layouts() -> BTreeMap<&'static str, Layout> {
    let sandbox = include_str!("../../config/banks/sandbox.toml");
    let packed = sandbox
        .replace("mti = \"ascii\"", "mti = \"bcd\"")
        .replace("digits = \"ascii\"", "digits = \"bcd\"")
        .replace("variable = \"ascii\"", "variable = \"bcd\"");
    let read = |text: &str| Dialect::parse(text).expect("a dialect").layout;
    let ascii_hex = include_str!("../../config/banks/ascii-hex.toml");
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
        let format = layout.fields[&field];
        let bytes = match (format.class, format.body) {
            (Class::B, _) => hex::decode(text).expect("hexadecimal"),
            // The separator of a packed track: the half byte to them, the character to us.
            (Class::Z, Body::Bcd) => text.replace('D', "=").into_bytes(),
            _ => text.as_bytes().to_vec(),
        };
        message.set(field, Value::new(bytes));
    }
    message
}

/// How the cases went.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Written and read alike.
    pub(super) whole: usize,
    /// Spoilt, and refused by both.
    pub(super) refused: usize,
    /// Spoilt, and refused by us alone, for a character that pyiso8583 lets pass.
    pub(super) stricter: usize,
}

/// Compares each case; panics at the first that differs.
pub(super) fn all(cases: &str) -> Counts {
    let layouts = layouts();
    let mut counts = Counts::default();
    for line in cases.lines() {
        let case: Json = serde_json::from_str(line).expect("a case");
        let layout = &layouts[case["dialect"].as_str().expect("a dialect")];
        let bytes = hex::decode(case["bytes"].as_str().expect("bytes")).expect("hexadecimal");
        let fields: Option<Fields> = serde_json::from_value(case["fields"].clone()).expect("fields");
        let read = layout.parse(&bytes);
        match (fields, read) {
            (Some(fields), Ok(message)) => {
                // Spoilt hexadecimal may have small letters.
                assert_eq!(ours(layout, &message), ours(layout, &theirs(layout, &fields)), "{line}");
                if case["spoilt"] == false {
                    let written = layout.encode(&theirs(layout, &fields)).expect("fits");
                    assert_eq!(hex::encode(&*written), hex::encode(&bytes), "{line}");
                    counts.whole += 1;
                }
            }
            (None, Err(_)) => counts.refused += 1,
            (None, Ok(_)) => panic!("pyiso8583 refuses what we read: {line}"),
            // It does not look at the characters, and Python reads " 3" and "+3" as numbers.
            (Some(_), Err(malformed)) => {
                assert!(case["spoilt"] == true, "{malformed}: {line}");
                let characters = matches!(
                    malformed.fault,
                    Fault::Character | Fault::NotDigits | Fault::NotHex | Fault::LengthNotANumber
                );
                assert!(characters, "{malformed}: {line}");
                counts.stricter += 1;
            }
        }
    }
    counts
}
