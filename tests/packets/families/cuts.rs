//! Valid packets, cut after every byte: once with a remaining length that says so, once without.

use wakala::session::Version::{self, V3, V5};

use super::super::case::{Case, Wanted};
use super::super::notation::{bytes, framed};
use super::case;

/// A whole packet, and the shorter bodies that are one as well, or are wrong in another way than being cut.
struct Whole {
    by: Version,
    first: u8,
    body: &'static str,
    /// Length of the body, and the verdict as in a table. Any other length: the packet is malformed.
    at: &'static [(usize, &'static str)],
    /// With one byte 00 more.
    longer: &'static str,
}

const fn whole(
    by: Version,
    first: u8,
    body: &'static str,
    at: &'static [(usize, &'static str)],
    longer: &'static str,
) -> Whole {
    Whole { by, first, body, at, longer }
}

/// Until the protocol level is read it is no version's packet, and is answered by nothing.
const fn level_is_read(first: u8, length: usize) -> bool {
    first != 0x10 || length >= 7
}

const ALL: [Whole; 24] = [
    whole(
        V3,
        0x10,
        r#""MQTT" 04 02 003C "x""#,
        &[(13, r#"ok CONNECT clean keep=60 id="x" RequestProblemInformation=0"#)],
        "81",
    ),
    whole(
        V3,
        0x10,
        r#""MQTT" 04 F6 003C "x" "w" "m" "u" "p""#,
        &[(
            25,
            r#"ok CONNECT clean keep=60 id="x" will{q2 retain "w" 6d} user="u" password=70 RequestProblemInformation=0"#,
        )],
        "81",
    ),
    whole(V5, 0x10, r#""MQTT" 05 02 003C [ ] "x""#, &[(14, r#"ok CONNECT clean keep=60 id="x""#)], "81"),
    whole(
        V5,
        0x10,
        r#""MQTT" 05 F6 003C [ 11 0000000A 21 0001 27 00010000 26 "k" "v" ] "x" [ 18 00000001 08 "r" 09 (01) ] "w" "m" "u" "p""#,
        &[(
            60,
            r#"ok CONNECT clean keep=60 id="x" will{q2 retain "w" 6d ResponseTopic="r" CorrelationData=01 WillDelayInterval=1} user="u" password=70 SessionExpiryInterval=10 ReceiveMaximum=1 UserProperty="k":"v" MaximumPacketSize=65536"#,
        )],
        "81",
    ),
    whole(
        V3,
        0x30,
        r#""t" 'hi'"#,
        &[(3, r#"ok PUBLISH q0 "t" empty"#), (4, r#"ok PUBLISH q0 "t" 68"#), (5, r#"ok PUBLISH q0 "t" 6869"#)],
        r#"ok PUBLISH q0 "t" 686900"#,
    ),
    whole(
        V3,
        0x35,
        r#""t" 0102 'h'"#,
        &[(5, r#"ok PUBLISH q2 retain id=258 "t" empty"#), (6, r#"ok PUBLISH q2 retain id=258 "t" 68"#)],
        r#"ok PUBLISH q2 retain id=258 "t" 6800"#,
    ),
    whole(
        V5,
        0x30,
        r#""t" [ ] 'hi'"#,
        &[(4, r#"ok PUBLISH q0 "t" empty"#), (5, r#"ok PUBLISH q0 "t" 68"#), (6, r#"ok PUBLISH q0 "t" 6869"#)],
        r#"ok PUBLISH q0 "t" 686900"#,
    ),
    whole(
        V5,
        0x3B,
        r#""a/b" 0102 [ 01 01 02 0000000A 03 "c" 08 "r" 09 (AA) 23 0003 26 "k" "v" ] 'h'"#,
        &[
            (
                37,
                r#"ok PUBLISH q1 dup retain id=258 "a/b" empty PayloadFormatIndicator=1 MessageExpiryInterval=10 ContentType="c" ResponseTopic="r" CorrelationData=aa TopicAlias=3 UserProperty="k":"v""#,
            ),
            (
                38,
                r#"ok PUBLISH q1 dup retain id=258 "a/b" 68 PayloadFormatIndicator=1 MessageExpiryInterval=10 ContentType="c" ResponseTopic="r" CorrelationData=aa TopicAlias=3 UserProperty="k":"v""#,
            ),
        ],
        r#"ok PUBLISH q1 dup retain id=258 "a/b" 6800 PayloadFormatIndicator=1 MessageExpiryInterval=10 ContentType="c" ResponseTopic="r" CorrelationData=aa TopicAlias=3 UserProperty="k":"v""#,
    ),
    whole(V3, 0x40, "0102", &[(2, "ok PUBACK 258")], "81"),
    whole(V3, 0x50, "0102", &[(2, "ok PUBREC 258")], "81"),
    whole(V3, 0x62, "0102", &[(2, "ok PUBREL 258")], "81"),
    whole(V3, 0x70, "0102", &[(2, "ok PUBCOMP 258")], "81"),
    // A reason code and a property length may be left off (3.4.2.1, 3.4.2.2.1).
    whole(
        V5,
        0x40,
        r#"0102 80 [ 1F "no" 26 "k" "v" ]"#,
        &[
            (2, "ok PUBACK 258"),
            (3, "ok PUBACK 258 reason=80"),
            (16, r#"ok PUBACK 258 reason=80 ReasonString="no" UserProperty="k":"v""#),
        ],
        "81",
    ),
    whole(
        V5,
        0x50,
        r#"0102 97 [ 1F "no" ]"#,
        &[(2, "ok PUBREC 258"), (3, "ok PUBREC 258 reason=97"), (9, r#"ok PUBREC 258 reason=97 ReasonString="no""#)],
        "81",
    ),
    whole(
        V5,
        0x62,
        r#"0102 92 [ 1F "no" ]"#,
        &[(2, "ok PUBREL 258"), (3, "ok PUBREL 258 reason=92"), (9, r#"ok PUBREL 258 reason=92 ReasonString="no""#)],
        "81",
    ),
    whole(
        V5,
        0x70,
        r#"0102 92 [ 1F "no" ]"#,
        &[(2, "ok PUBCOMP 258"), (3, "ok PUBCOMP 258 reason=92"), (9, r#"ok PUBCOMP 258 reason=92 ReasonString="no""#)],
        "81",
    ),
    // Nothing but the identifier, and then a filter at a time.
    whole(
        V3,
        0x82,
        r#"0102 "a" 01 "b/#" 02"#,
        &[(2, "82"), (6, r#"ok SUBSCRIBE 258 "a":q1"#), (12, r##"ok SUBSCRIBE 258 "a":q1 "b/#":q2"##)],
        "81",
    ),
    whole(
        V5,
        0x82,
        r#"0102 [ 0B 05 26 "k" "v" ] "a" 01 "b/#" 2E"#,
        &[
            (12, "82"),
            (16, r#"ok SUBSCRIBE 258 "a":q1 SubscriptionIdentifier=5 UserProperty="k":"v""#),
            (
                22,
                r##"ok SUBSCRIBE 258 "a":q1 "b/#":q2,no-local,as-published,no-retained SubscriptionIdentifier=5 UserProperty="k":"v""##,
            ),
        ],
        "81",
    ),
    whole(
        V3,
        0xA2,
        r#"0102 "a" "b/#""#,
        &[(2, "82"), (5, r#"ok UNSUBSCRIBE 258 "a""#), (10, r##"ok UNSUBSCRIBE 258 "a" "b/#""##)],
        "81",
    ),
    whole(
        V5,
        0xA2,
        r#"0102 [ 26 "k" "v" ] "a" "b/#""#,
        &[
            (10, "82"),
            (13, r#"ok UNSUBSCRIBE 258 "a" UserProperty="k":"v""#),
            (18, r##"ok UNSUBSCRIBE 258 "a" "b/#" UserProperty="k":"v""##),
        ],
        "81",
    ),
    whole(V3, 0xE0, "", &[(0, "ok DISCONNECT")], "81"),
    whole(
        V5,
        0xE0,
        r#"04 [ 11 0000000A 1F "no" 26 "k" "v" ]"#,
        &[
            (0, "ok DISCONNECT"),
            (1, "ok DISCONNECT reason=04"),
            (19, r#"ok DISCONNECT reason=04 SessionExpiryInterval=10 ReasonString="no" UserProperty="k":"v""#),
        ],
        "81",
    ),
    whole(V3, 0xC0, "", &[(0, "ok PINGREQ")], "81"),
    whole(V5, 0xC0, "", &[(0, "ok PINGREQ")], "81"),
];

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for whole in &ALL {
        let body = bytes(whole.body);
        let reaches = whole.at.iter().any(|(length, _)| *length == body.len());
        assert!(reaches, "{}: the whole body has {} bytes", whole.body, body.len());
        for length in 0..=body.len() {
            let unread = if level_is_read(whole.first, length) { "81" } else { "close" };
            let verdict = whole.at.iter().find(|(at, _)| *at == length).map_or(unread, |(_, verdict)| verdict);
            cases.push(made(whole, format!("cut to {length}"), framed(whole.first, &body[..length]), verdict));
        }
        let longer = framed(whole.first, &[body.as_slice(), &[0]].concat());
        cases.push(made(whole, "one byte more".to_owned(), longer, whole.longer));

        let frame = framed(whole.first, &body);
        for length in 0..frame.len() {
            cases.push(made(whole, format!("{length} bytes have come"), frame[..length].to_vec(), "more"));
        }
    }
    cases
}

fn made(whole: &Whole, what: String, bytes: Vec<u8>, verdict: &str) -> Case {
    let wanted = match (Wanted::parse(verdict), whole.by) {
        (Wanted::Refused(_), V3) => Wanted::Closed,
        (wanted, _) => wanted,
    };
    let rule = "(1.2): cannot be parsed; (3.8.3), (3.10.3): no filter is a Protocol Error";
    case("cuts", format!("{} {what}", whole.body), whole.by, bytes, wanted, rule)
}
