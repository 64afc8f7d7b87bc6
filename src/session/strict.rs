//! Checks of a whole frame before it is decoded: what the standards forbid and the codecs let through.
//!
//! Sections are those of MQTT 5 unless 3.1.1 is named. MQTT 5 tells two faults apart: a Malformed Packet cannot be
//! parsed, a Protocol Error can be parsed and may not be (4.13). A 3.1.1 client is not told; its connection is closed.

use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;

use super::Version;

/// Why a frame is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Flaw {
    pub reason: Reason,
    pub why: &'static str,
}

type Checked<T = ()> = Result<T, Flaw>;

const fn malformed(why: &'static str) -> Flaw {
    Flaw { reason: Reason::MalformedPacket, why }
}

const fn protocol(why: &'static str) -> Flaw {
    Flaw { reason: Reason::ProtocolError, why }
}

fn ensure(holds: bool, flaw: Flaw) -> Checked {
    if holds { Ok(()) } else { Err(flaw) }
}

/// How long the frame at the start of `bytes` is, header and all; none while too little of it is there to tell.
///
/// # Errors
/// When the Remaining Length has more than four bytes (1.5.5) or the frame is longer than `bytes_max`.
pub fn frame_bytes(bytes: &[u8], bytes_max: u32) -> Checked<Option<usize>> {
    let mut length = 0;
    for place in 0..4 {
        let Some(&byte) = bytes.get(1 + place) else { return Ok(None) };
        length |= usize::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            let whole = 2 + place + length;
            let fits = u32::try_from(whole).is_ok_and(|whole| whole <= bytes_max);
            let flaw = Flaw { reason: Reason::PacketTooLarge, why: "larger than the maximum packet size" };
            return ensure(fits, flaw).map(|()| Some(whole));
        }
    }
    Err(malformed("a remaining length of more than four bytes"))
}

/// The version that a CONNECT speaks; none for one that is not offered.
///
/// # Errors
/// When it is no CONNECT [MQTT-3.1.0-1] or names another protocol.
pub fn version(frame: &[u8]) -> Checked<Result<Version, u8>> {
    let (header, mut fields) = Header::of(frame)?;
    ensure(header.first_byte == CONNECT, protocol("the first packet is not CONNECT [MQTT-3.1.0-1]"))?;
    let name = fields.binary()?;
    let level = fields.byte()?;
    match (name, level) {
        (b"MQTT", 4) => Ok(Ok(Version::V3)),
        (b"MQTT", 5) => Ok(Ok(Version::V5)),
        // MQTT 3.1 called itself otherwise.
        (b"MQTT", _) | (b"MQIsdp", 3) => Ok(Err(level)),
        _ => Err(protocol("not MQTT [MQTT-3.1.2-1]")),
    }
}

const CONNECT: u8 = 0x10;

/// Whether a CONNECT of MQTT 3.1.1 asks for a session to be kept and gives no name to keep it by. It is well-formed, and is
/// answered with return code 2 [3.1.1: MQTT-3.1.3-8]; the codec does not take it.
#[must_use]
pub fn nameless(connect: &[u8]) -> bool {
    let asks = || -> Checked<bool> {
        let (_, mut fields) = Header::of(connect)?;
        let _protocol_name = fields.binary()?;
        let _level = fields.byte()?;
        let flags = fields.byte()?;
        let _keep_alive = fields.word()?;
        Ok(fields.binary()?.is_empty() && flags & 0x02 == 0)
    };
    matches!(version(connect), Ok(Ok(Version::V3))) && frame(Version::V3, connect).is_ok() && asks() == Ok(true)
}

/// Whether a client may send this frame, as far as the frame alone can tell. Gives the place of a will's Message Expiry
/// Interval of 0, for [`mend`].
///
/// # Errors
/// What is wrong with it.
pub fn frame(version: Version, frame: &[u8]) -> Checked<Option<usize>> {
    let (header, mut fields) = Header::of(frame)?;
    let (kind, flags) = (header.first_byte >> 4, header.first_byte & 0x0F);
    let flags_wanted = match kind {
        3 => flags,
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    ensure(flags == flags_wanted, malformed("reserved bits of the fixed header [MQTT-2.1.3-1]"))?;
    // MQTT 3.1.1 does not ask for the shortest form (2.2.3).
    ensure(version == Version::V3 || header.shortest, LONGER_THAN_NEEDED)?;
    let expiry_of_zero = match kind {
        1 => connect(version, &mut fields)?,
        3 => publish(version, flags, &mut fields).map(|()| None)?,
        _ => without_message(version, kind, &mut fields).map(|()| None)?,
    };
    Ok(expiry_of_zero.map(|value| value.as_ptr().addr() - frame.as_ptr().addr()))
}

fn without_message(version: Version, kind: u8, fields: &mut Fields<'_>) -> Checked {
    match kind {
        4..=7 => acknowledgement(version, kind, fields),
        8 => subscribe(version, fields),
        10 => unsubscribe(version, fields),
        12 => fields.end(),
        14 => disconnect(version, fields),
        15 if version == Version::V5 => Err(protocol("AUTH without an authentication method [MQTT-4.12.0-7]")),
        2 | 9 | 11 | 13 => Err(protocol("a packet that only a server sends")),
        _ => Err(malformed("a reserved packet type (2.1.2)")),
    }
}

/// Gives the value of its will's Message Expiry Interval, if that is 0.
fn connect<'a>(version: Version, fields: &mut Fields<'a>) -> Checked<Option<&'a [u8]>> {
    let _protocol_name = fields.binary()?;
    let _level = fields.byte()?;
    let flags = fields.byte()?;
    let _keep_alive = fields.word()?;
    let (user_name, password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    let (will_retain, will_qos, will) = (flags & 0x20 != 0, (flags >> 3) & 3, flags & 0x04 != 0);
    ensure(flags & 1 == 0, malformed("the reserved connect flag [MQTT-3.1.2-3]"))?;
    ensure(will || (will_qos == 0 && !will_retain), malformed("will QoS or retain without a will [MQTT-3.1.2-11]"))?;
    ensure(will_qos < 3, malformed("will QoS 3 [MQTT-3.1.2-12]"))?;
    if version == Version::V5 {
        let (mut method, mut data) = (false, false);
        fields.properties(|id, _| {
            method |= id == property::AUTHENTICATION_METHOD;
            data |= id == property::AUTHENTICATION_DATA;
            Ok(())
        })?;
        ensure(method || !data, protocol("authentication data without a method (3.1.2.11.10)"))?;
    } else {
        ensure(user_name || !password, malformed("a password without a user name [3.1.1: MQTT-3.1.2-22]"))?;
    }
    text(fields.binary()?)?;
    let mut expiry_of_zero = None;
    if will {
        if version == Version::V5 {
            fields.properties(|id, value| {
                let is_expiry_of_zero = id == property::MESSAGE_EXPIRY_INTERVAL && value == [0; 4];
                expiry_of_zero = expiry_of_zero.or_else(|| is_expiry_of_zero.then_some(value));
                will_property(id, value)
            })?;
        }
        topic_name(fields.binary()?)?;
        fields.binary()?;
    }
    if user_name {
        text(fields.binary()?)?;
    }
    if password {
        fields.binary()?;
    }
    fields.end().map(|()| expiry_of_zero)
}

fn publish(version: Version, flags: u8, fields: &mut Fields<'_>) -> Checked {
    let (dup, qos) = (flags & 0x08 != 0, (flags >> 1) & 3);
    ensure(qos < 3, malformed("QoS 3 [MQTT-3.3.1-4]"))?;
    ensure(qos > 0 || !dup, malformed("DUP at QoS 0 [MQTT-3.3.1-2]"))?;
    let topic = fields.binary()?;
    if qos > 0 {
        packet_identifier(fields)?;
    }
    let mut alias = false;
    if version == Version::V5 {
        fields.properties(|id, value| {
            alias |= id == property::TOPIC_ALIAS;
            publish_property(id, value)
        })?;
    }
    ensure(!topic.is_empty() || alias, protocol("an empty topic without an alias (3.3.2.1)"))?;
    if topic.is_empty() { Ok(()) } else { topic_name(topic) }
}

fn publish_property(id: u8, value: &[u8]) -> Checked {
    match id {
        property::TOPIC_ALIAS if value == [0, 0] => {
            Err(Flaw { reason: Reason::TopicAliasInvalid, why: "topic alias 0 [MQTT-3.3.2-8]" })
        }
        property::SUBSCRIPTION_IDENTIFIER => Err(protocol("a subscription identifier from a client [MQTT-3.3.4-6]")),
        property::PAYLOAD_FORMAT if value != [0] && value != [1] => {
            Err(malformed("a payload format that is not known (3.3.2.3.2)"))
        }
        property::PAYLOAD_FORMAT
        | property::MESSAGE_EXPIRY_INTERVAL
        | property::CONTENT_TYPE
        | property::RESPONSE_TOPIC
        | property::CORRELATION_DATA
        | property::TOPIC_ALIAS
        | property::USER_PROPERTY => will_property(id, value),
        _ => Err(malformed("a property that a PUBLISH does not have (table 2-4)")),
    }
}

/// What holds for the properties of a will as for those of a PUBLISH.
fn will_property(id: u8, value: &[u8]) -> Checked {
    match id {
        property::RESPONSE_TOPIC => topic_name(value.get(2..).unwrap_or_default())
            .map_err(|_| protocol("a response topic that is no topic name [MQTT-3.3.2-14]")),
        property::CONTENT_TYPE => text(value.get(2..).unwrap_or_default()).map(drop),
        _ => Ok(()),
    }
}

fn acknowledgement(version: Version, kind: u8, fields: &mut Fields<'_>) -> Checked {
    packet_identifier(fields)?;
    // In MQTT 5 a reason and properties may follow; each may be left off (3.4.2.1, 3.4.2.2.1).
    if version == Version::V3 || fields.rest.is_empty() {
        return fields.end();
    }
    let reason = fields.byte()?;
    let from_client = match kind {
        // Tables 3-4 and 3-5; 0x10, no matching subscribers, is sent only by the server.
        4 | 5 => matches!(reason, 0x00 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99),
        // Tables 3-6 and 3-7.
        _ => matches!(reason, 0x00 | 0x92),
    };
    ensure(from_client, protocol("a reason that a client does not give here [MQTT-3.4.2-1]"))?;
    if fields.rest.is_empty() {
        return Ok(());
    }
    fields.properties(|_, _| Ok(()))?;
    fields.end()
}

fn subscribe(version: Version, fields: &mut Fields<'_>) -> Checked {
    packet_identifier(fields)?;
    if version == Version::V5 {
        fields.properties(|_, _| Ok(()))?;
    }
    ensure(!fields.rest.is_empty(), protocol("SUBSCRIBE without a filter [MQTT-3.8.3-2]"))?;
    let mut filters = 0;
    while !fields.rest.is_empty() {
        count(&mut filters)?;
        let filter = fields.binary()?;
        let options = fields.byte()?;
        let shared = topic_filter(version, filter)?;
        match version {
            Version::V3 => ensure(options <= 2, malformed("reserved bits or QoS 3 [3.1.1: MQTT-3.8.3-4]"))?,
            Version::V5 => {
                ensure(options & 0xC0 == 0, malformed("reserved subscription options [MQTT-3.8.3-5]"))?;
                ensure(options & 0x03 != 3, protocol("maximum QoS 3 (3.8.3.1)"))?;
                ensure(options & 0x30 != 0x30, protocol("retain handling 3 (3.8.3.1)"))?;
                let no_local = options & 0x04 != 0;
                ensure(!(shared && no_local), protocol("no local on a shared subscription [MQTT-3.8.3-4]"))?;
            }
        }
    }
    Ok(())
}

fn unsubscribe(version: Version, fields: &mut Fields<'_>) -> Checked {
    packet_identifier(fields)?;
    if version == Version::V5 {
        fields.properties(|_, _| Ok(()))?;
    }
    ensure(!fields.rest.is_empty(), protocol("UNSUBSCRIBE without a filter [MQTT-3.10.3-2]"))?;
    let mut filters = 0;
    while !fields.rest.is_empty() {
        count(&mut filters)?;
        topic_filter(version, fields.binary()?)?;
    }
    Ok(())
}

/// The filters of one SUBSCRIBE or UNSUBSCRIBE. They are decided in one go, and by 268 million bytes there could be 67 million.
const FILTERS_MAX: u32 = 65_536;

fn count(filters: &mut u32) -> Checked {
    *filters += 1;
    let why = "more filters than one packet may have here";
    if *filters <= FILTERS_MAX { Ok(()) } else { Err(Flaw { reason: Reason::QuotaExceeded, why }) }
}

fn disconnect(version: Version, fields: &mut Fields<'_>) -> Checked {
    if version == Version::V3 || fields.rest.is_empty() {
        return fields.end();
    }
    let reason = fields.byte()?;
    // Table 3-10: the codes that a client may send.
    let from_client = matches!(reason, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99);
    ensure(from_client, protocol("a disconnect reason that only a server sends (3.14.2.1)"))?;
    if fields.rest.is_empty() {
        return Ok(());
    }
    fields.properties(|id, _| {
        ensure(id != property::SERVER_REFERENCE, protocol("a server reference from a client (3.14.2.2.5)"))
    })?;
    fields.end()
}

fn packet_identifier(fields: &mut Fields<'_>) -> Checked {
    ensure(fields.word()? != 0, protocol("packet identifier 0 [MQTT-2.2.1-3]"))
}

/// A UTF-8 string (1.5.4): U+0000 must not be in it; control characters and non-characters should not.
fn text(bytes: &[u8]) -> Checked<&str> {
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("not UTF-8 [MQTT-1.5.4-1]"))?;
    let printable = !text.chars().any(|c| c.is_control() || is_noncharacter(c));
    ensure(printable, malformed("a control character or a non-character (1.5.4)")).map(|()| text)
}

fn is_noncharacter(c: char) -> bool {
    let c = u32::from(c);
    c & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&c)
}

/// Whether something can be published on this topic (3.3.2.1, 4.7.3), here.
#[must_use]
pub fn is_topic_name(topic: &str) -> bool {
    crate::topics::fits(topic) && topic_name(topic.as_bytes()).is_ok()
}

fn topic_name(bytes: &[u8]) -> Checked {
    let topic = text(bytes)?;
    let fits = !topic.is_empty() && !topic.contains(['+', '#']);
    let flaw =
        Flaw { reason: Reason::TopicNameInvalid, why: "a topic name that is empty or has wildcards [MQTT-3.3.2-2]" };
    ensure(fits, flaw)
}

/// Tells whether it is a shared subscription. To MQTT 3.1.1 a filter that looks like one is a filter.
fn topic_filter(version: Version, bytes: &[u8]) -> Checked<bool> {
    let filter = text(bytes)?;
    let shared = if version == Version::V5 { filter.strip_prefix("$share/") } else { None };
    let filter = match shared {
        None => filter,
        Some(shared) => {
            let (name, filter) = shared.split_once('/').unwrap_or_default();
            let named = !name.is_empty() && !name.contains(['+', '#']);
            ensure(named, protocol("a share name that is empty or has wildcards [MQTT-4.8.2-1, -2]"))?;
            filter
        }
    };
    ensure(!filter.is_empty(), malformed("an empty topic filter [MQTT-4.7.3-1]"))?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        let fits = match level {
            "#" => last,
            "+" => true,
            level => !level.contains(['+', '#']),
        };
        ensure(fits, malformed("a wildcard that does not fill its level [MQTT-4.7.1-1, -2]"))?;
    }
    Ok(shared.is_some())
}

/// What holds for a value wherever the property is. That it may be 0 or 1 only, or not 0, is said of each at its place.
fn property_value(id: u8, value: &[u8]) -> Checked {
    let fits = match id {
        property::REQUEST_PROBLEM_INFORMATION | property::REQUEST_RESPONSE_INFORMATION => value[0] <= 1,
        property::RECEIVE_MAXIMUM | property::MAXIMUM_PACKET_SIZE | property::SUBSCRIPTION_IDENTIFIER => {
            value.iter().any(|&byte| byte != 0)
        }
        _ => true,
    };
    ensure(fits, protocol("a value that the property may not have (3.1.2.11, 3.8.2.1.2)"))
}

/// Makes a frame that [`frame`] let pass one that the codec takes too: to the codec a will that expires after 0 seconds is
/// malformed. The standard allows it (3.1.3.2.4); here it is given one second. `at` is what [`frame`] gave.
pub fn mend(frame: &mut [u8], at: usize) {
    if let Some(last) = frame.get_mut(at + 3) {
        *last = 1;
    }
}

/// The properties of which something is said here (table 2-4).
mod property {
    pub(super) use crate::mqtt::id::*;

    pub(super) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(super) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(super) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(super) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(super) const SERVER_REFERENCE: u8 = 0x1C;
    pub(super) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
}

const LONGER_THAN_NEEDED: Flaw = malformed("a variable byte integer in more bytes than it needs [MQTT-1.5.5-1]");

/// The fixed header of a frame.
struct Header {
    first_byte: u8,
    /// Whether the remaining length has no more bytes than it needs.
    shortest: bool,
}

impl Header {
    /// The header, and the fields behind it.
    fn of(frame: &[u8]) -> Checked<(Self, Fields<'_>)> {
        let mut fields = Fields { rest: frame };
        let first_byte = fields.byte()?;
        let (length, shortest) = fields.digits()?;
        ensure(fields.rest.len() == length, malformed("not one whole frame"))?;
        Ok((Self { first_byte, shortest }, fields))
    }
}

/// The fields of a frame, in order.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Checked<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(malformed("it ends in the middle of a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Checked<u8> {
        Ok(self.take(1)?[0])
    }

    fn word(&mut self) -> Checked<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn binary(&mut self) -> Checked<&'a [u8]> {
        let length = self.word()?;
        self.take(usize::from(length))
    }

    /// A Variable Byte Integer of a remaining length, and whether it is in its shortest form (1.5.5).
    fn digits(&mut self) -> Checked<(usize, bool)> {
        let mut value = 0;
        for place in 0..4 {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok((value, place == 0 || byte != 0));
            }
        }
        Err(malformed("a variable byte integer of more than four bytes (1.5.5)"))
    }

    /// A Variable Byte Integer of MQTT 5.
    fn variable(&mut self) -> Checked<usize> {
        let (value, shortest) = self.digits()?;
        ensure(shortest, LONGER_THAN_NEEDED).map(|()| value)
    }

    /// Shows each property with its value's bytes, lengths included (2.2.2.2). The codec checks which may be where, but in a PUBLISH.
    fn properties(&mut self, mut check: impl FnMut(u8, &'a [u8]) -> Checked) -> Checked {
        let length = self.variable()?;
        let mut properties = Self { rest: self.take(length)? };
        let mut seen = 0_u64;
        while !properties.rest.is_empty() {
            let id = properties.byte()?;
            let start = properties.rest;
            match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => _ = properties.take(1)?,
                0x13 | 0x21 | 0x22 | 0x23 => _ = properties.take(2)?,
                0x02 | 0x11 | 0x18 | 0x27 => _ = properties.take(4)?,
                0x0B => _ = properties.variable()?,
                0x09 | 0x16 => _ = properties.binary()?,
                0x03 | 0x08 | 0x12 | 0x15 | 0x1A | 0x1C | 0x1F => _ = text(properties.binary()?)?,
                0x26 => {
                    text(properties.binary()?)?;
                    text(properties.binary()?)?;
                }
                _ => return Err(malformed("an unknown property (2.2.2.2)")),
            }
            let value = &start[..start.len() - properties.rest.len()];
            property_value(id, value)?;
            check(id, value)?;
            let once = seen & (1 << id) == 0 || id == property::USER_PROPERTY;
            ensure(once, protocol("a property twice (3.1.2.11 and wherever else one is described)"))?;
            seen |= 1 << id;
        }
        Ok(())
    }

    fn end(&self) -> Checked {
        ensure(self.rest.is_empty(), malformed("bytes after the end of the packet"))
    }
}
