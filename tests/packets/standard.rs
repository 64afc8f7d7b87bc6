//! The tables of the standards, written down once. MQTT 5: table 2-1 and 2-2 (packet types and flags), table 2-4
//! (properties), tables 3-4 to 3-7 and 3-10 (reason codes, by who may send them).

use super::notation::{bytes, framed};

/// A place for properties that a client can write to. A will's are in the CONNECT, behind its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Connect,
    Will,
    Publish,
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
    Subscribe,
    Unsubscribe,
    Disconnect,
    Auth,
}

use Place::{Auth, Connect, Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe, Unsubscribe, Will};

pub(crate) const PLACES: [Place; 11] =
    [Connect, Will, Publish, Puback, Pubrec, Pubrel, Pubcomp, Subscribe, Unsubscribe, Disconnect, Auth];

impl Place {
    /// A valid MQTT 5 packet around this, which may be a property length and properties or anything else.
    pub(crate) fn around(self, properties: &[u8]) -> Vec<u8> {
        let (first, before, after) = match self {
            Connect => (0x10, r#""MQTT" 05 02 003C"#, r#""x""#),
            Will => (0x10, r#""MQTT" 05 06 003C 00 "x""#, r#""w" "m""#),
            Publish => (0x30, r#""t""#, ""),
            Puback => (0x40, "0001 00", ""),
            Pubrec => (0x50, "0001 00", ""),
            Pubrel => (0x62, "0001 00", ""),
            Pubcomp => (0x70, "0001 00", ""),
            Subscribe => (0x82, "0001", r#""t" 00"#),
            Unsubscribe => (0xA2, "0001", r#""t""#),
            Disconnect => (0xE0, "00", ""),
            Auth => (0xF0, "18", ""),
        };
        framed(first, &[bytes(before).as_slice(), properties, &bytes(after)].concat())
    }

    /// How that packet reads with these properties, each with a space before it. None for AUTH: only a client that named
    /// an authentication method in its CONNECT may send one [MQTT-4.12.0-7], and Wakala lets none in that does.
    pub(crate) fn reads(self, properties: &str) -> Option<String> {
        let (before, after) = match self {
            Connect => (r#"CONNECT clean keep=60 id="x""#, ""),
            Will => (r#"CONNECT clean keep=60 id="x" will{q0 "w" 6d"#, "}"),
            Publish => (r#"PUBLISH q0 "t" empty"#, ""),
            Puback => ("PUBACK 1", ""),
            Pubrec => ("PUBREC 1", ""),
            Pubrel => ("PUBREL 1", ""),
            Pubcomp => ("PUBCOMP 1", ""),
            Subscribe => (r#"SUBSCRIBE 1 "t":q0"#, ""),
            Unsubscribe => (r#"UNSUBSCRIBE 1 "t""#, ""),
            Disconnect => ("DISCONNECT", ""),
            Auth => return None,
        };
        Some(format!("{before}{properties}{after}"))
    }
}

/// What is right for a value, or for a property that comes twice.
pub(crate) enum Rule {
    /// It reads so.
    Reads(&'static str),
    Refused(&'static [u8], &'static str),
}

use Rule::{Reads, Refused};

pub(crate) struct Property {
    pub(crate) id: u8,
    pub(crate) name: &'static str,
    pub(crate) places: &'static [Place],
    /// In the notation of the tables; the first is one that is allowed.
    pub(crate) values: &'static [(&'static str, Rule)],
    /// Where the standard says that it is a Protocol Error to send it twice.
    pub(crate) twice: Twice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twice {
    Allowed,
    ProtocolError,
    /// Nothing is said of a PUBLISH; of the will, that it is a Protocol Error.
    OpenInPublish,
}

const MALFORMED: &[u8] = &[0x81];
const PROTOCOL_ERROR: &[u8] = &[0x82];
pub(crate) const OPEN: &[u8] = &[0x81, 0x82];

/// A byte that is 0 or 1. What 2 is, is said of some only.
const FLAG: &[(&str, Rule)] = &[
    ("00", Reads("=0")),
    ("01", Reads("=1")),
    ("02", Refused(PROTOCOL_ERROR, "(3.1.2.11.6, 3.1.2.11.7)")),
    ("FF", Refused(PROTOCOL_ERROR, "(3.1.2.11.6, 3.1.2.11.7)")),
];
const PAYLOAD_FORMAT: &[(&str, Rule)] = &[
    ("01", Reads("=1")),
    ("00", Reads("=0")),
    ("02", Refused(OPEN, "(3.3.2.3.2): 0 or 1")),
    ("FF", Refused(OPEN, "(3.3.2.3.2): 0 or 1")),
];
const SECONDS: &[(&str, Rule)] =
    &[("0000000A", Reads("=10")), ("00000000", Reads("=0")), ("FFFFFFFF", Reads("=4294967295"))];
const MESSAGE_SECONDS: &[(&str, Rule)] = &[
    ("0000000A", Reads("=10")),
    // Of no use, but nothing forbids it (3.3.2.3.3).
    ("00000000", Reads("=0")),
    ("00000001", Reads("=1")),
    ("FFFFFFFF", Reads("=4294967295")),
];
const TEXT: &[(&str, Rule)] = &[(r#""abc""#, Reads(r#"="abc""#)), ("0000", Reads(r#"="""#))];
const DATA: &[(&str, Rule)] = &[("(00FF80)", Reads("=00ff80")), ("(000000*1)", Reads("=000000"))];
const TOPIC: &[(&str, Rule)] = &[
    (r#""a/b""#, Reads(r#"="a/b""#)),
    (r#""a/+""#, Refused(&[0x81, 0x82, 0x90], "[MQTT-3.3.2-14]")),
    (r##""#""##, Refused(&[0x81, 0x82, 0x90], "[MQTT-3.3.2-14]")),
    ("0000", Refused(&[0x81, 0x82, 0x90], "[MQTT-4.7.3-1]")),
];
const AT_LEAST_ONE: &[(&str, Rule)] =
    &[("0001", Reads("=1")), ("FFFF", Reads("=65535")), ("0000", Refused(PROTOCOL_ERROR, "(3.1.2.11.3)"))];
const PACKET_SIZE: &[(&str, Rule)] = &[
    ("00000001", Reads("=1")),
    ("FFFFFFFF", Reads("=4294967295")),
    ("00000000", Refused(PROTOCOL_ERROR, "(3.1.2.11.4)")),
];
const ALIAS: &[(&str, Rule)] =
    &[("0001", Reads("=1")), ("FFFF", Reads("=65535")), ("0000", Refused(&[0x94], "[MQTT-3.3.2-8], (3.3.4)"))];
const IDENTIFIER: &[(&str, Rule)] = &[
    ("01", Reads("=1")),
    ("7F", Reads("=127")),
    ("8001", Reads("=128")),
    ("FFFFFF7F", Reads("=268435455")),
    ("00", Refused(PROTOCOL_ERROR, "(3.8.2.1.2)")),
    ("8100", Refused(MALFORMED, "[MQTT-1.5.5-1]")),
    ("818000", Refused(MALFORMED, "[MQTT-1.5.5-1]")),
    ("81808000", Refused(MALFORMED, "[MQTT-1.5.5-1]")),
    ("FFFFFFFF01", Refused(MALFORMED, "(1.5.5)")),
];
const PAIR: &[(&str, Rule)] =
    &[(r#""k" "v""#, Reads(r#"="k":"v""#)), ("00000000", Reads(r#"="":"""#)), (r#""k" 0000"#, Reads(r#"="k":"""#))];

/// Only a server sends these; the value is of the right type.
const fn of_a_server(id: u8, name: &'static str, values: &'static [(&'static str, Rule)]) -> Property {
    Property { id, name, places: &[], values, twice: Twice::ProtocolError }
}

const fn of_a_client(
    id: u8,
    name: &'static str,
    places: &'static [Place],
    values: &'static [(&'static str, Rule)],
) -> Property {
    Property { id, name, places, values, twice: Twice::ProtocolError }
}

const MESSAGE: &[Place] = &[Publish, Will];

/// Table 2-4.
pub(crate) const PROPERTIES: [Property; 27] = [
    Property { twice: Twice::OpenInPublish, ..of_a_client(0x01, "PayloadFormatIndicator", MESSAGE, PAYLOAD_FORMAT) },
    Property { twice: Twice::OpenInPublish, ..of_a_client(0x02, "MessageExpiryInterval", MESSAGE, MESSAGE_SECONDS) },
    of_a_client(0x03, "ContentType", MESSAGE, TEXT),
    of_a_client(0x08, "ResponseTopic", MESSAGE, TOPIC),
    of_a_client(0x09, "CorrelationData", MESSAGE, DATA),
    // In a PUBLISH from the server only [MQTT-3.3.4-6]; the families know.
    of_a_client(0x0B, "SubscriptionIdentifier", &[Subscribe], IDENTIFIER),
    of_a_client(0x11, "SessionExpiryInterval", &[Connect, Disconnect], SECONDS),
    of_a_server(0x12, "AssignedClientIdentifier", TEXT),
    of_a_server(0x13, "ServerKeepAlive", AT_LEAST_ONE),
    of_a_client(0x15, "AuthenticationMethod", &[Connect, Auth], TEXT),
    // Not without a method (3.1.2.11.10); the families know.
    of_a_client(0x16, "AuthenticationData", &[Connect, Auth], DATA),
    of_a_client(0x17, "RequestProblemInformation", &[Connect], FLAG),
    of_a_client(0x18, "WillDelayInterval", &[Will], SECONDS),
    of_a_client(0x19, "RequestResponseInformation", &[Connect], FLAG),
    of_a_server(0x1A, "ResponseInformation", TEXT),
    // In a DISCONNECT from the server only (3.14.2.2.5); the families know.
    of_a_server(0x1C, "ServerReference", TEXT),
    of_a_client(0x1F, "ReasonString", &[Puback, Pubrec, Pubrel, Pubcomp, Disconnect, Auth], TEXT),
    of_a_client(0x21, "ReceiveMaximum", &[Connect], AT_LEAST_ONE),
    of_a_client(
        0x22,
        "TopicAliasMaximum",
        &[Connect],
        &[("0001", Reads("=1")), ("FFFF", Reads("=65535")), ("0000", Reads("=0"))],
    ),
    of_a_client(0x23, "TopicAlias", &[Publish], ALIAS),
    of_a_server(0x24, "MaximumQoS", FLAG),
    of_a_server(0x25, "RetainAvailable", FLAG),
    Property { twice: Twice::Allowed, ..of_a_client(0x26, "UserProperty", &PLACES, PAIR) },
    of_a_client(0x27, "MaximumPacketSize", &[Connect], PACKET_SIZE),
    of_a_server(0x28, "WildcardSubscriptionAvailable", FLAG),
    of_a_server(0x29, "SubscriptionIdentifierAvailable", FLAG),
    of_a_server(0x2A, "SharedSubscriptionAvailable", FLAG),
];

/// A default is not rendered: absent and default mean the same.
pub(crate) fn is_default(id: u8, place: Place, reads: &str) -> bool {
    match (id, reads) {
        (0x17, "=1") | (0x19 | 0x22, "=0") => true,
        (0x11, "=0") => place == Connect,
        _ => false,
    }
}

/// The reason codes that a client may send in these packets (3.4.2.1, 3.5.2.1, 3.6.2.1, 3.7.2.1, 3.14.2.1, 3.15.2.1).
pub(crate) fn reason_codes(place: Place) -> &'static [u8] {
    match place {
        // 0x10, no matching subscribers, is a server's.
        Puback | Pubrec => &[0x00, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
        Pubrel | Pubcomp => &[0x00, 0x92],
        Disconnect => &[0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99],
        _ => &[],
    }
}

/// One type of packet (tables 2-1 and 2-2), with a valid body for each version.
pub(crate) struct Kind {
    pub(crate) flags: u8,
    pub(crate) body: [&'static str; 2],
    /// None where only a server sends it, or nobody.
    pub(crate) reads: Option<[&'static str; 2]>,
}

const fn kind(flags: u8, body: [&'static str; 2], reads: Option<[&'static str; 2]>) -> Kind {
    Kind { flags, body, reads }
}

/// By type; PUBLISH (3) has flags that mean something and is made where they are.
pub(crate) const KINDS: [Kind; 16] = [
    kind(0, ["", ""], None),
    kind(
        0,
        [r#""MQTT" 04 02 003C "x""#, r#""MQTT" 05 02 003C 00 "x""#],
        Some([r#"CONNECT clean keep=60 id="x" RequestProblemInformation=0"#, r#"CONNECT clean keep=60 id="x""#]),
    ),
    kind(0, ["0000", "0000 00"], None),
    kind(0, ["", ""], None),
    kind(0, ["0001", "0001"], Some(["PUBACK 1", "PUBACK 1"])),
    kind(0, ["0001", "0001"], Some(["PUBREC 1", "PUBREC 1"])),
    kind(2, ["0001", "0001"], Some(["PUBREL 1", "PUBREL 1"])),
    kind(0, ["0001", "0001"], Some(["PUBCOMP 1", "PUBCOMP 1"])),
    kind(2, [r#"0001 "t" 01"#, r#"0001 00 "t" 01"#], Some([r#"SUBSCRIBE 1 "t":q1"#, r#"SUBSCRIBE 1 "t":q1"#])),
    kind(0, ["0001 00", "0001 00 00"], None),
    kind(2, [r#"0001 "t""#, r#"0001 00 "t""#], Some([r#"UNSUBSCRIBE 1 "t""#, r#"UNSUBSCRIBE 1 "t""#])),
    kind(0, ["0001", "0001 00 00"], None),
    kind(0, ["", ""], Some(["PINGREQ", "PINGREQ"])),
    kind(0, ["", ""], None),
    kind(0, ["", ""], Some(["DISCONNECT", "DISCONNECT"])),
    kind(0, ["", "18 00"], None),
];
