//! What is in a UTF-8 string, in every place that has one (1.5.4). Bytes that are no text may be anything.

use wakala::session::Version;

use super::super::case::{Case, Wanted, refused};
use super::super::notation::{bytes, counted, framed};
use super::super::render::text;
use super::case;

/// First byte, what is before the string, what is after it, and how the packet reads with `{}` for the string.
type Field = (&'static str, u8, &'static str, &'static str, &'static str);

const OF_3: &[Field] = &[
    ("client identifier", 0x10, r#""MQTT" 04 02 003C"#, "", "CONNECT clean keep=60 id={} RequestProblemInformation=0"),
    (
        "will topic",
        0x10,
        r#""MQTT" 04 06 003C "x""#,
        r#""m""#,
        r#"CONNECT clean keep=60 id="x" will{q0 {} 6d} RequestProblemInformation=0"#,
    ),
    (
        "user name",
        0x10,
        r#""MQTT" 04 82 003C "x""#,
        "",
        r#"CONNECT clean keep=60 id="x" user={} RequestProblemInformation=0"#,
    ),
    ("topic", 0x30, "", "", "PUBLISH q0 {} empty"),
    ("filter", 0x82, "0001", "00", "SUBSCRIBE 1 {}:q0"),
    ("filter to leave", 0xA2, "0001", "", "UNSUBSCRIBE 1 {}"),
];

const OF_5: &[Field] = &[
    ("client identifier", 0x10, r#""MQTT" 05 02 003C 00"#, "", "CONNECT clean keep=60 id={}"),
    ("will topic", 0x10, r#""MQTT" 05 06 003C 00 "x" 00"#, r#""m""#, r#"CONNECT clean keep=60 id="x" will{q0 {} 6d}"#),
    ("user name", 0x10, r#""MQTT" 05 82 003C 00 "x""#, "", r#"CONNECT clean keep=60 id="x" user={}"#),
    ("topic", 0x30, "", "00", "PUBLISH q0 {} empty"),
    ("filter", 0x82, "0001 00", "00", "SUBSCRIBE 1 {}:q0"),
    ("filter to leave", 0xA2, "0001 00", "", "UNSUBSCRIBE 1 {}"),
];

/// The same as properties: the string is behind what is before it, and the last of them.
const PROPERTIES: &[Field] = &[
    ("content type", 0x30, "03", "", r#"PUBLISH q0 "t" empty ContentType={}"#),
    ("response topic", 0x30, "08", "", r#"PUBLISH q0 "t" empty ResponseTopic={}"#),
    ("name of a user property", 0x30, "26", r#""v""#, r#"PUBLISH q0 "t" empty UserProperty={}:"v""#),
    ("value of a user property", 0x30, r#"26 "k""#, "", r#"PUBLISH q0 "t" empty UserProperty="k":{}"#),
    ("reason of a PUBACK", 0x40, "1F", "", "PUBACK 1 ReasonString={}"),
    ("reason of a PUBREC", 0x50, "1F", "", "PUBREC 1 ReasonString={}"),
    ("reason of a PUBREL", 0x62, "1F", "", "PUBREL 1 ReasonString={}"),
    ("reason of a PUBCOMP", 0x70, "1F", "", "PUBCOMP 1 ReasonString={}"),
    ("reason of a DISCONNECT", 0xE0, "1F", "", "DISCONNECT ReasonString={}"),
    ("user property of a PUBACK", 0x40, r#"26 "k""#, "", r#"PUBACK 1 UserProperty="k":{}"#),
    ("user property of a SUBSCRIBE", 0x82, r#"26 "k""#, "", r#"SUBSCRIBE 1 "t":q0 UserProperty="k":{}"#),
    ("user property of an UNSUBSCRIBE", 0xA2, r#"26 "k""#, "", r#"UNSUBSCRIBE 1 "t" UserProperty="k":{}"#),
    ("user property of a CONNECT", 0x10, r#"26 "k""#, "", r#"CONNECT clean keep=60 id="x" UserProperty="k":{}"#),
    ("authentication method", 0x10, "15", "", r#"CONNECT clean keep=60 id="x" AuthenticationMethod={}"#),
];

/// Not UTF-8 as Unicode defines it, or U+0000 [MQTT-1.5.4-1, -2].
const MALFORMED: [&[u8]; 17] = [
    b"\x00",
    b"a\x00b",
    b"\x80",
    b"a\xBF",
    b"\xC0\x80",
    b"\xC1\xBF",
    b"\xC3",
    b"\xC3(",
    b"\xE0\x80\x80",
    b"\xE2\x82",
    b"\xED\xA0\x80",
    b"\xED\xBF\xBF",
    b"\xED\xA0\xBD\xED\xB8\x80",
    b"\xF0\x80\x80\x80",
    b"\xF0\x9F\x98",
    b"\xF4\x90\x80\x80",
    b"\xFF",
];

/// What a receiver may take for malformed (1.5.4), and Wakala does: 5.4.9 has the reasons.
const UNWANTED: [&str; 11] = [
    "\u{1}",
    "a\u{A}",
    "\u{1F}",
    "\u{7F}",
    "\u{80}",
    "a\u{9F}b",
    "\u{FDD0}",
    "\u{FDEF}",
    "\u{FFFE}",
    "\u{1FFFF}",
    "\u{10FFFF}",
];

/// What must be taken as it is.
const WANTED: [&str; 12] = [
    "a",
    " ",
    "/",
    "\u{FEFF}",
    "a\u{FEFF}b",
    "\u{A0}",
    "\u{D7FF}",
    "\u{E000}",
    "\u{FDCF}\u{FDF0}",
    "\u{FFFD}",
    "A\u{2A6D4}",
    "\u{10FFFD}",
];

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (by, fields) in [(Version::V3, OF_3), (Version::V5, OF_5)] {
        for (name, first, before, after, reads) in fields {
            let frame = |text: &[u8]| framed(*first, &[bytes(before), counted(text), bytes(after)].concat());
            cases.extend(of_field(by, name, reads, frame));
        }
    }
    for (name, first, before, after, reads) in PROPERTIES {
        let (start, end) = around(*first);
        let frame = |text: &[u8]| {
            let property = [bytes(before), counted(text), bytes(after)].concat();
            let properties = [super::super::notation::variable(property.len()), property].concat();
            framed(*first, &[bytes(start), properties, bytes(end)].concat())
        };
        cases.extend(of_field(Version::V5, name, reads, frame));
    }
    cases.extend(binary());
    cases
}

fn around(first: u8) -> (&'static str, &'static str) {
    match first {
        0x10 => (r#""MQTT" 05 02 003C"#, r#""x""#),
        0x30 => (r#""t""#, ""),
        0x82 => ("0001", r#""t" 00"#),
        0xA2 => ("0001", r#""t""#),
        0xE0 => ("00", ""),
        _ => ("0001 00", ""),
    }
}

fn of_field(by: Version, name: &str, reads: &str, frame: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Case> {
    let mut cases = Vec::new();
    for bad in MALFORMED {
        let name = format!("{name}, {}", hex::encode(bad));
        let rule = "[MQTT-1.5.4-1], [MQTT-1.5.4-2], 3.1.1: [MQTT-1.5.3-1], [MQTT-1.5.3-2]";
        cases.push(case("texts", name, by, frame(bad), refused(by, &[0x81]), rule));
    }
    for bad in UNWANTED {
        let name = format!("{name}, {bad:?}");
        cases.push(case("texts", name, by, frame(bad.as_bytes()), refused(by, &[0x81]), "(1.5.4): may be refused"));
    }
    let long = "ä".repeat(32_767) + "x";
    for good in WANTED.into_iter().chain([&*long]) {
        let shown = text(&good.to_owned().into());
        let wanted = Wanted::Packet(reads.replace("{}", &shown));
        cases.push(case("texts", format!("{name}, {shown}"), by, frame(good.as_bytes()), wanted, "[MQTT-1.5.4-3]"));
    }
    cases
}

/// Passwords, will messages, payloads and correlation data are bytes.
fn binary() -> Vec<Case> {
    let mut cases = Vec::new();
    for data in MALFORMED {
        let shown = hex::encode(data);
        let of = |by, name: &str, bytes, reads: String| {
            case("texts", format!("{name}, {shown}"), by, bytes, Wanted::Packet(reads), "(1.5.6), (3.3.3)")
        };
        let connect = |level: &str, flags: &str, before: &str| {
            let start = bytes(&format!(r#""MQTT" {level} {flags} 003C {before}"#));
            framed(0x10, &[start, counted(data)].concat())
        };
        let of_3 = "RequestProblemInformation=0";
        cases.extend([
            of(
                Version::V3,
                "password",
                connect("04", "C2", r#""x" "u""#),
                format!(r#"CONNECT clean keep=60 id="x" user="u" password={shown} {of_3}"#),
            ),
            of(
                Version::V5,
                "password",
                connect("05", "42", r#"00 "x""#),
                format!(r#"CONNECT clean keep=60 id="x" password={shown}"#),
            ),
            of(
                Version::V3,
                "will message",
                connect("04", "06", r#""x" "w""#),
                format!(r#"CONNECT clean keep=60 id="x" will{{q0 "w" {shown}}} {of_3}"#),
            ),
            of(
                Version::V5,
                "will message",
                connect("05", "06", r#"00 "x" 00 "w""#),
                format!(r#"CONNECT clean keep=60 id="x" will{{q0 "w" {shown}}}"#),
            ),
            of(
                Version::V3,
                "payload",
                framed(0x30, &[bytes(r#""t""#), data.to_vec()].concat()),
                format!(r#"PUBLISH q0 "t" {shown}"#),
            ),
            of(
                Version::V5,
                "payload",
                framed(0x30, &[bytes(r#""t" 00"#), data.to_vec()].concat()),
                format!(r#"PUBLISH q0 "t" {shown}"#),
            ),
        ]);
    }
    cases
}
