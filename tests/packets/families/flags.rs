//! Every value of a byte whose bits mean something each: first bytes, connect flags, subscription options, reason codes.

use wakala::session::Version;

use super::super::case::{Case, Wanted, refused};
use super::super::notation::{bytes, framed};
use super::super::standard::{KINDS, OPEN, Place, reason_codes};
use super::{VERSIONS, case};

pub(super) fn all() -> Vec<Case> {
    [first_bytes(), connect_flags(), subscription_options(), reasons(), packet_identifiers()].concat()
}

fn first_bytes() -> Vec<Case> {
    let mut cases = Vec::new();
    for by in VERSIONS {
        for first in 0..=255 {
            cases.push(if first >> 4 == 3 { publish(by, first) } else { other(by, first) });
        }
    }
    cases
}

fn other(by: Version, first: u8) -> Case {
    let kind = &KINDS[usize::from(first >> 4)];
    let of_version = usize::from(by == Version::V5);
    let right_flags = first & 0x0F == kind.flags;
    let (wanted, rule) = match (kind.reads, right_flags, first >> 4) {
        (Some(reads), true, _) => (Wanted::Packet(reads[of_version].to_owned()), "(2.1.2)"),
        // MQTT 5 gives the code; 3.1.1: [MQTT-2.2.2-2].
        (Some(_), false, _) => (refused(by, &[0x81]), "(2.1.3), [MQTT-2.1.3-1]"),
        (None, _, 0) => (refused(by, OPEN), "(2.1.2): type 0 is forbidden"),
        (None, true, _) => (refused(by, &[0x82]), "(1.2): an unexpected packet"),
        (None, false, _) => (refused(by, OPEN), "(2.1.3), and an unexpected packet"),
    };
    let name = format!("first byte {first:02x}");
    case("first bytes", name, by, framed(first, &bytes(kind.body[of_version])), wanted, rule)
}

fn publish(by: Version, first: u8) -> Case {
    let (dup, qos, retain) = (first & 8 != 0, (first >> 1) & 3, first & 1 != 0);
    let mut body = bytes(r#""t""#);
    if qos > 0 {
        body.extend([0, 1]);
    }
    if by == Version::V5 {
        body.push(0);
    }
    let (wanted, rule) = if qos == 3 {
        (refused(by, &[0x81]), "[MQTT-3.3.1-4]")
    } else if dup && qos == 0 {
        (refused(by, OPEN), "[MQTT-3.3.1-2]")
    } else {
        let words = [(dup, " dup"), (retain, " retain"), (qos > 0, " id=1")];
        let words: String = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
        (Wanted::Packet(format!(r#"PUBLISH q{qos}{words} "t" empty"#)), "(3.3.1)")
    };
    case("first bytes", format!("first byte {first:02x}"), by, framed(first, &body), wanted, rule)
}

/// Each with the fields that it announces.
fn connect_flags() -> Vec<Case> {
    let mut cases = Vec::new();
    for by in VERSIONS {
        for flags in 0..=255_u8 {
            let (user, password, retain) = (flags & 0x80 != 0, flags & 0x40 != 0, flags & 0x20 != 0);
            let (qos, will, clean) = ((flags >> 3) & 3, flags & 4 != 0, flags & 2 != 0);
            let five = by == Version::V5;
            let mut body = bytes(r#""MQTT""#);
            body.extend([if five { 5 } else { 4 }, flags, 0, 60]);
            body.extend(if five { bytes(r#"00 "x""#) } else { bytes(r#""x""#) });
            let announced = [(will && five, "00"), (will, r#""w" "m""#), (user, r#""u""#), (password, r#""p""#)];
            announced.iter().filter(|(is, _)| *is).for_each(|(_, field)| body.extend(bytes(field)));
            let (wanted, rule) = if flags & 1 != 0 {
                (refused(by, &[0x81]), "[MQTT-3.1.2-3]")
            } else if !will && (qos != 0 || retain) {
                (refused(by, OPEN), "[MQTT-3.1.2-11]")
            } else if qos == 3 {
                (refused(by, &[0x81]), "[MQTT-3.1.2-12], 3.1.1: [MQTT-3.1.2-14]")
            } else if password && !user && !five {
                (refused(by, &[]), "3.1.1: [MQTT-3.1.2-22]")
            } else {
                let retain = if retain { " retain" } else { "" };
                let will_reads = format!(r#" will{{q{qos}{retain} "w" 6d}}"#);
                let words = [
                    (clean, " clean"),
                    (true, r#" keep=60 id="x""#),
                    (will, &*will_reads),
                    (user, r#" user="u""#),
                    (password, " password=70"),
                    (!five, " RequestProblemInformation=0"),
                ];
                let words: String = words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect();
                (Wanted::Packet(format!("CONNECT{words}")), "(3.1.2.3)")
            };
            cases.push(case("connect flags", format!("flags {flags:02x}"), by, framed(0x10, &body), wanted, rule));
        }
    }
    cases
}

fn subscription_options() -> Vec<Case> {
    let mut cases = Vec::new();
    for options in 0..=255_u8 {
        let name = format!("options {options:02x}");
        let (qos, handling) = (options & 3, (options >> 4) & 3);
        let (wanted, rule) = if options > 2 {
            (Wanted::Closed, "3.1.1: [MQTT-3.8.3-4]")
        } else {
            (Wanted::Packet(format!(r#"SUBSCRIBE 1 "t":q{qos}"#)), "(3.8.3)")
        };
        let body = [bytes(r#"0001 "t""#), vec![options]].concat();
        cases.push(case("subscription options", name.clone(), Version::V3, framed(0x82, &body), wanted, rule));

        let by = Version::V5;
        let (wanted, rule) = if options & 0xC0 != 0 {
            (refused(by, if qos == 3 || handling == 3 { OPEN } else { &[0x81] }), "[MQTT-3.8.3-5]")
        } else if qos == 3 || handling == 3 {
            (refused(by, &[0x82]), "(3.8.3.1)")
        } else {
            let handling = ["", ",retained-if-new", ",no-retained"][usize::from(handling)];
            let no_local = if options & 4 != 0 { ",no-local" } else { "" };
            let as_published = if options & 8 != 0 { ",as-published" } else { "" };
            (Wanted::Packet(format!(r#"SUBSCRIBE 1 "t":q{qos}{no_local}{as_published}{handling}"#)), "(3.8.3.1)")
        };
        let body = [bytes(r#"0001 00 "t""#), vec![options]].concat();
        cases.push(case("subscription options", name, by, framed(0x82, &body), wanted, rule));
    }
    cases
}

/// With the code as the last byte, and with no properties said to follow it.
fn reasons() -> Vec<Case> {
    let mut cases = Vec::new();
    for (place, first, name) in [
        (Place::Puback, 0x40, "PUBACK"),
        (Place::Pubrec, 0x50, "PUBREC"),
        (Place::Pubrel, 0x62, "PUBREL"),
        (Place::Pubcomp, 0x70, "PUBCOMP"),
        (Place::Disconnect, 0xE0, "DISCONNECT"),
        (Place::Auth, 0xF0, "AUTH"),
    ] {
        for code in 0..=255_u8 {
            let (start, reads) = match place {
                Place::Disconnect | Place::Auth => (vec![code], name.to_owned()),
                _ => (vec![0, 1, code], format!("{name} 1")),
            };
            let reads = if code == 0 { reads } else { format!("{reads} reason={code:02x}") };
            let (wanted, rule) = if reason_codes(place).contains(&code) {
                (Wanted::Packet(reads), "(3.4.2.1), (3.5.2.1), (3.6.2.1), (3.7.2.1), (3.14.2.1)")
            } else {
                let rule =
                    "[MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.14.2-1], [MQTT-3.15.2-1]";
                (refused(Version::V5, OPEN), rule)
            };
            for body in [start.clone(), [start, vec![0]].concat()] {
                let name = format!("{name}, reason {code:02x}");
                cases.push(case("reason codes", name, Version::V5, framed(first, &body), wanted.clone(), rule));
            }
        }
    }
    cases
}

/// No packet identifier is 0. MQTT 5 does not say which error it is.
fn packet_identifiers() -> Vec<Case> {
    let mut cases = Vec::new();
    for (first, [rest3, rest5], before, reads) in [
        (0x40, ["", ""], "", "PUBACK {}"),
        (0x50, ["", ""], "", "PUBREC {}"),
        (0x62, ["", ""], "", "PUBREL {}"),
        (0x70, ["", ""], "", "PUBCOMP {}"),
        (0x82, [r#""t" 02"#, r#"00 "t" 02"#], "", r#"SUBSCRIBE {} "t":q2"#),
        (0xA2, [r#""t""#, r#"00 "t""#], "", r#"UNSUBSCRIBE {} "t""#),
        (0x32, ["", "00"], r#""t""#, r#"PUBLISH q1 id={} "t" empty"#),
        (0x34, ["", "00"], r#""t""#, r#"PUBLISH q2 id={} "t" empty"#),
        (0x3A, ["", "00"], r#""t""#, r#"PUBLISH q1 dup id={} "t" empty"#),
    ] {
        for by in VERSIONS {
            for id in [0_u16, 1, 255, 256, 32767, 32768, 65535] {
                let rest = if by == Version::V3 { rest3 } else { rest5 };
                let body = [bytes(before), id.to_be_bytes().to_vec(), bytes(rest)].concat();
                let wanted = match id {
                    0 => refused(by, OPEN),
                    id => Wanted::Packet(reads.replace("{}", &id.to_string())),
                };
                let name = format!("type {}, identifier {id}", first >> 4);
                let rule = "[MQTT-2.2.1-3], 3.1.1: [MQTT-2.3.1-1]";
                cases.push(case("packet identifiers", name, by, framed(first, &body), wanted, rule));
            }
        }
    }
    cases
}
