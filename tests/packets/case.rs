//! One case: bytes, and the verdict that a standard demands.

use wakala::session::Version;

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
}
