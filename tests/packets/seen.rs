//! What Wakala makes of bytes: a packet, or a refusal in the words that the client hears.

use ntex_bytes::BytesMut;
use ntex_codec::Decoder;
use wakala::session::{Version, strict};

use super::case::{Case, Wanted};
use super::frames::Frames;
use super::render;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A packet, rendered.
    Packet(String),
    /// The reason code for a DISCONNECT or, to a CONNECT, a CONNACK.
    Refused(u8, &'static str),
    /// A CONNACK that the standard asks for although the frame cannot be read.
    Connack(u8),
    /// The end of the connection without a word.
    Closed,
    /// Too little to tell.
    More,
}

/// What is made of the bytes in a connection's buffer, and how many of them are left.
pub(crate) fn seen(version: Version, bytes: &[u8], bytes_max: u32) -> (Seen, usize) {
    if bytes.first() == Some(&0x10) {
        return first(bytes, bytes_max);
    }
    let mut buffer = BytesMut::from(bytes);
    let seen = frame(&Frames::new(version, bytes_max), &mut buffer);
    (seen, buffer.len())
}

/// The same of the bytes that begin a connection.
pub(crate) fn first(bytes: &[u8], bytes_max: u32) -> (Seen, usize) {
    let mut buffer = BytesMut::from(bytes);
    let seen = connect(&mut buffer, bytes_max);
    (seen, buffer.len())
}

fn frame(frames: &Frames, buffer: &mut BytesMut) -> Seen {
    match frames.decode(buffer) {
        Ok(Some(inbound)) => Seen::Packet(render::packet(&inbound)),
        Ok(None) => Seen::More,
        Err(flaw) if frames.version() == Version::V5 => Seen::Refused(u8::from(flaw.reason), flaw.why),
        Err(_) => Seen::Closed,
    }
}

/// As `actors/listener/welcome.rs` takes a CONNECT: its own bytes say which version reads it.
fn connect(buffer: &mut BytesMut, bytes_max: u32) -> Seen {
    // What does not begin like a CONNECT is not waited for.
    if buffer.first().is_some_and(|&byte| byte != 0x10) {
        return Seen::Closed;
    }
    let whole = match strict::frame_bytes(buffer, bytes_max) {
        Ok(Some(bytes)) if buffer.len() >= bytes => bytes,
        Ok(_) => return Seen::More,
        Err(_) => return Seen::Closed,
    };
    match strict::version(&buffer[..whole]) {
        Ok(Ok(Version::V3)) if strict::nameless(&buffer[..whole]) => Seen::Connack(2),
        Ok(Ok(version)) => frame(&Frames::new(version, bytes_max), buffer),
        Ok(Err(level)) => Seen::Connack(if level > 5 { 0x84 } else { 1 }),
        Err(_) => Seen::Closed,
    }
}

impl Wanted {
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

impl Case {
    /// What is wrong with what Wakala makes of it, if anything is.
    pub(crate) fn fault(&self) -> Option<String> {
        let look = |bytes: &[u8]| {
            if self.first { first(bytes, self.bytes_max) } else { seen(self.by, bytes, self.bytes_max) }
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
