//! Every property in every packet: allowed, forbidden, twice, cut short, at the ends of its range.

use wakala::session::Version;

use super::super::case::{Case, Wanted, refused};
use super::super::notation::{bytes, variable};
use super::super::standard::{OPEN, PLACES, PROPERTIES, Place, Property, Rule, Twice, is_default};
use super::case;

pub(super) fn all() -> Vec<Case> {
    let mut cases = undefined();
    for place in PLACES {
        for property in &PROPERTIES {
            cases.extend(values(place, property));
            cases.push(twice(place, property));
            cases.extend(cut_short(place, property));
        }
    }
    cases
}

/// The packet with these properties, their length before them.
fn frame(place: Place, properties: &[u8]) -> Vec<u8> {
    place.around(&[variable(properties.len()).as_slice(), properties].concat())
}

fn written(property: &Property, value: &str) -> Vec<u8> {
    [vec![property.id], bytes(value)].concat()
}

fn made(place: Place, what: &str, bytes: Vec<u8>, wanted: Wanted, rule: &str) -> Case {
    // AUTH without a method in the CONNECT is an error whatever it carries; which is open once it has a second one.
    let wanted = match (place, wanted) {
        (Place::Auth, _) => refused(Version::V5, OPEN),
        (_, wanted) => wanted,
    };
    case("properties", format!("{place:?}, {what}"), Version::V5, bytes, wanted, rule)
}

fn taken(place: Place, properties: &str) -> Wanted {
    place.reads(properties).map_or_else(|| refused(Version::V5, OPEN), Wanted::Packet)
}

/// What this property alone is in this packet, whatever its value; none where the value decides.
fn by_itself(place: Place, property: &Property) -> Option<(Wanted, &'static str)> {
    let refused = |codes: &[u8]| refused(Version::V5, codes);
    match (place, property.id) {
        (Place::Publish, 0x0B) => Some((refused(&[0x82]), "[MQTT-3.3.4-6], (3.3.4)")),
        (Place::Disconnect, 0x1C) => Some((refused(OPEN), "(3.14.2.2.5): the server sends it")),
        (Place::Connect, 0x16) => Some((refused(&[0x82]), "(3.1.2.11.10): no data without a method")),
        _ if property.places.contains(&place) => None,
        _ => Some((refused(&[0x81]), "(2.2.2.2): not valid for its packet type")),
    }
}

fn values(place: Place, property: &Property) -> Vec<Case> {
    let one = |(value, rule): &(&str, Rule)| {
        let (wanted, why) = match (by_itself(place, property), rule) {
            // Two errors in one: either may be found first.
            (Some((_, why)), Rule::Refused(..)) => (refused(Version::V5, &[0x81, 0x82]), why),
            (Some(verdict), Rule::Reads(_)) => verdict,
            (None, Rule::Refused(codes, why)) => (refused(Version::V5, codes), *why),
            (None, Rule::Reads(reads)) => {
                // The codec has no will that lives for no second; it is given one.
                let reads = if (place, property.id, *reads) == (Place::Will, 0x02, "=0") { "=1" } else { reads };
                let shown = if is_default(property.id, place, reads) {
                    String::new()
                } else {
                    format!(" {}{reads}", property.name)
                };
                (taken(place, &shown), "(2.2.2.2)")
            }
        };
        let bytes = frame(place, &written(property, value));
        made(place, &format!("{} {value}", property.name), bytes, wanted, why)
    };
    property.values.iter().map(one).collect()
}

fn twice(place: Place, property: &Property) -> Case {
    let (value, rule) = &property.values[0];
    let Rule::Reads(reads) = rule else { panic!("{}: the first value is allowed", property.name) };
    let reads = format!(" {}{reads}", property.name);
    let (wanted, why) = match (by_itself(place, property), property.twice) {
        (Some((_, why)), _) => (refused(Version::V5, OPEN), why),
        (None, Twice::Allowed) => (taken(place, &reads.repeat(2)), "(2.2.2.2)"),
        (None, Twice::OpenInPublish) if place == Place::Publish => {
            (refused(Version::V5, OPEN), "(2.2.2.2): User Property alone may come twice")
        }
        (None, _) => (refused(Version::V5, &[0x82]), "its own section: a Protocol Error to include it more than once"),
    };
    let bytes = frame(place, &written(property, value).repeat(2));
    made(place, &format!("{} twice", property.name), bytes, wanted, why)
}

/// The property ends, by its length, in the middle of its value. Then the packet goes on as ever.
fn cut_short(place: Place, property: &Property) -> Vec<Case> {
    let whole = written(property, property.values[0].0);
    let cut = |end: usize| {
        let wanted = refused(Version::V5, if by_itself(place, property).is_some() { OPEN } else { &[0x81] });
        let what = format!("{} cut to {end} bytes", property.name);
        made(place, &what, frame(place, &whole[..end]), wanted, "(2.2.2.2): not of its type")
    };
    (1..whole.len()).map(cut).collect()
}

/// Identifiers that table 2-4 does not have. An identifier is a Variable Byte Integer.
fn undefined() -> Vec<Case> {
    let defined = |id: u8| PROPERTIES.iter().any(|property| property.id == id);
    let mut cases = Vec::new();
    for place in PLACES {
        for id in (0..=0x7F_u8).filter(|id| !defined(*id)) {
            let bytes = frame(place, &[id, 0, 0]);
            let wanted = refused(Version::V5, &[0x81]);
            cases.push(made(place, &format!("property {id:02x}"), bytes, wanted, "(2.2.2.2), table 2-4"));
        }
        for (what, id) in [
            ("128", &[0x80, 0x01][..]),
            ("65536", &[0x80, 0x80, 0x04]),
            ("User Property in two bytes", &[0xA6, 0x00]),
            ("five bytes", &[0xFF, 0xFF, 0xFF, 0xFF, 0x01]),
        ] {
            let bytes = frame(place, &[id, &bytes(r#""k" "v""#)].concat());
            let wanted = refused(Version::V5, &[0x81]);
            cases.push(made(place, &format!("property {what}"), bytes, wanted, "(2.2.2.2), [MQTT-1.5.5-1]"));
        }
    }
    cases
}
