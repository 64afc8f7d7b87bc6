//! One case: bytes, and the verdict that a standard demands.

use wakala::session::Version;

use crate::seen::{self, Seen};

/// More than any case is long.
pub(crate) const BYTES_MAX: u32 = 300_000_000;

#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// File and line, or the family.
    pub(crate) place: String,
    pub(crate) name: String,
    pub(crate) by: Version,
    /// The first packet of a connection; a CONNECT always is.
    pub(crate) first: bool,
    pub(crate) bytes_max: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) wanted: Wanted,
    /// Where the standard says so.
    pub(crate) rule: String,
}

/// What is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// This packet.
    Packet(String),
    /// A refusal with one of these reason codes; under MQTT 3.1.1, the end of the connection.
    Refused(Vec<u8>),
    Connack(u8),
    Closed,
    More,
}

impl Wanted {
    pub(crate) fn parse(text: &str) -> Self {
        match text.split_once(' ') {
            Some(("ok", packet)) => Self::Packet(packet.to_owned()),
            Some(("connack", code)) => Self::Connack(byte(code)),
            None if text == "close" => Self::Closed,
            None if text == "more" => Self::More,
            None => Self::Refused(text.split('|').map(byte).collect()),
            Some(_) => panic!("no verdict: {text}"),
        }
    }

    pub(crate) fn is(&self, seen: &Seen) -> bool {
        match (self, seen) {
            (Self::Packet(wanted), Seen::Packet(packet)) => wanted == packet,
            (Self::Refused(codes), Seen::Refused(code, _)) => codes.contains(code),
            (Self::Connack(wanted), Seen::Connack(code)) => wanted == code,
            (Self::Closed, Seen::Closed) | (Self::More, Seen::More) => true,
            _ => false,
        }
    }
}

/// A refusal in the words of a version.
pub(crate) fn refused(by: Version, codes: &[u8]) -> Wanted {
    match by {
        Version::V3 => Wanted::Closed,
        Version::V5 => Wanted::Refused(codes.to_vec()),
    }
}

fn byte(hex: &str) -> u8 {
    u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("no reason code: {hex}"))
}

impl Case {
    pub(crate) fn version(&self) -> u8 {
        match self.by {
            Version::V3 => 3,
            Version::V5 => 5,
        }
    }

    /// What is wrong with what Wakala makes of it, if anything is.
    pub(crate) fn fault(&self) -> Option<String> {
        let look = |bytes: &[u8]| {
            if self.first { seen::first(bytes, self.bytes_max) } else { seen::seen(self.by, bytes, self.bytes_max) }
        };
        let (alone, rest) = look(&self.bytes);
        let told = |what: &str| {
            let shown = hex::encode(&self.bytes[..self.bytes.len().min(60)]);
            Some(format!(
                "{}: {} (MQTT {}): {what}\n    bytes  {shown}\n    wanted {:?} by {}\n    came   {alone:?}",
                self.place,
                self.name,
                self.version(),
                self.wanted,
                self.rule
            ))
        };
        if !self.wanted.is(&alone) {
            return told("another verdict");
        }
        let taken = matches!(alone, Seen::Packet(_));
        if taken && rest != 0 {
            return told("bytes of the packet are left over");
        }
        if self.wanted != Wanted::More {
            // What follows in the buffer is another packet, and changes nothing.
            let followed = look(&[self.bytes.as_slice(), &[0xC0, 0]].concat());
            if followed.0 != alone || (taken && followed.1 != 2) {
                return told("another verdict when a PINGREQ follows");
            }
        }
        None
    }
}
