//! Frames of a client, one piece at a time, and the head of a server's own (RFC 6455 §5).

use std::ops::Range;

/// Reads one connection's frames.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes of the frame under way that are still to come.
    left: u64,
    /// The key of its next four bytes.
    mask: [u8; 4],
    /// A message was begun, and its last frame has not come.
    fragmented: bool,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes that are done with.
    pub bytes: usize,
    pub what: What,
}

/// What a piece is. The ranges are of the bytes that were given, which are unmasked there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Bytes of MQTT, more of which may follow in the same frame.
    Bytes(Range<usize>),
    /// To be answered with a pong of the same bytes; or with the latest alone, when several wait (§5.5.3).
    Ping(Range<usize>),
    /// Nothing that matters: a pong, an empty frame.
    Nothing,
    /// The client takes leave, or breaks a rule: to be answered with a close frame of this code, and nothing is read after it.
    End(Code),
}

/// Why a WebSocket ends (§7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u16);

impl Code {
    pub const NORMAL: Self = Self(1000);
    pub const PROTOCOL: Self = Self(1002);
    /// Text: MQTT is binary [MQTT-6.0.0-1].
    pub const UNSUPPORTED: Self = Self(1003);
    pub const NOT_UTF8: Self = Self(1007);

    /// A close frame that says so.
    #[must_use]
    pub fn frame(self) -> [u8; 4] {
        let [high, low] = self.0.to_be_bytes();
        [FIN | CLOSE, 2, high, low]
    }

    /// §7.4.1 and §7.4.2: those that may be in a frame.
    fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// §5.5.
const CONTROL_BYTES_MAX: u64 = 125;

struct Head {
    bytes: usize,
    fin: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
}

impl Frames {
    /// The next piece of what has come, if there is enough of it.
    pub fn read(&mut self, bytes: &mut [u8]) -> Option<Piece> {
        if self.left > 0 {
            return self.payload(bytes, 0);
        }
        match head(bytes) {
            Ok(Some(head)) => self.begin(&head, bytes),
            Ok(None) => None,
            Err(code) => Some(Piece { bytes: 0, what: What::End(code) }),
        }
    }

    fn begin(&mut self, head: &Head, bytes: &mut [u8]) -> Option<Piece> {
        let nothing = |bytes| Some(Piece { bytes, what: What::Nothing });
        let end = |code| Some(Piece { bytes: 0, what: What::End(code) });
        if head.opcode >= CLOSE {
            return control(head, bytes);
        }
        // §5.4: a message begins with what it is, and goes on with continuations.
        match head.opcode {
            TEXT => return end(Code::UNSUPPORTED),
            BINARY | CONTINUATION if (head.opcode == CONTINUATION) == self.fragmented => {}
            _ => return end(Code::PROTOCOL),
        }
        self.fragmented = !head.fin;
        if head.length == 0 {
            return nothing(head.bytes);
        }
        (self.left, self.mask) = (head.length, head.mask);
        self.payload(bytes, head.bytes).or_else(|| nothing(head.bytes))
    }

    /// What there is of the payload under way, which begins at `from`.
    fn payload(&mut self, bytes: &mut [u8], from: usize) -> Option<Piece> {
        let there = bytes.get_mut(from..).filter(|there| !there.is_empty())?;
        let taken = usize::try_from(self.left).map_or(there.len(), |left| left.min(there.len()));
        unmask(&mut there[..taken], self.mask);
        self.mask.rotate_left(taken % 4);
        self.left -= taken as u64;
        Some(Piece { bytes: from + taken, what: What::Bytes(from..from + taken) })
    }
}

/// A close, a ping or a pong, which are read whole.
fn control(head: &Head, bytes: &mut [u8]) -> Option<Piece> {
    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
    let range = head.bytes..head.bytes.saturating_add(length);
    let payload = bytes.get_mut(range.clone())?;
    unmask(payload, head.mask);
    let what = match head.opcode {
        PING => What::Ping(range.clone()),
        PONG => What::Nothing,
        _ => What::End(answer_to_close(payload)),
    };
    Some(Piece { bytes: range.end, what })
}

/// §5.5.1: the answer has the code that came, if one might have come.
fn answer_to_close(payload: &[u8]) -> Code {
    match payload {
        [] => Code::NORMAL,
        [high, low, reason @ ..] => {
            let code = Code(u16::from_be_bytes([*high, *low]));
            if !code.may_be_sent() {
                Code::PROTOCOL
            } else if std::str::from_utf8(reason).is_err() {
                Code::NOT_UTF8
            } else {
                code
            }
        }
        [_] => Code::PROTOCOL,
    }
}

/// §5.2. What is wrong is said as soon as it is there: what follows it is not waited for.
fn head(bytes: &[u8]) -> Result<Option<Head>, Code> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (fin, opcode) = (first & FIN != 0, first & 0x0F);
    let known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
    // No extension was agreed on that would use the reserved bits, and a control frame is never cut.
    if first & 0x70 != 0 || !known || (opcode >= CLOSE && !fin) {
        return Err(Code::PROTOCOL);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    let short = u64::from(second & !MASKED);
    // §5.1: a client masks all that it sends.
    if second & MASKED == 0 || (opcode >= CLOSE && short > CONTROL_BYTES_MAX) {
        return Err(Code::PROTOCOL);
    }
    let (length, at) = match short {
        126 => {
            let Some(long) = bytes.get(2..4) else { return Ok(None) };
            (number(long), 4)
        }
        127 => {
            let Some(longer) = bytes.get(2..10) else { return Ok(None) };
            (number(longer), 10)
        }
        _ => (short, 2),
    };
    // In as few bytes as it takes, the highest bit 0.
    if (short == 126 && length < 126) || (short == 127 && (length <= 0xFFFF || length >> 63 == 1)) {
        return Err(Code::PROTOCOL);
    }
    let Some(&[a, b, c, d]) = bytes.get(at..at + 4) else { return Ok(None) };
    Ok(Some(Head { bytes: at + 4, fin, opcode, length, mask: [a, b, c, d] }))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    for four in bytes.chunks_mut(4) {
        for (byte, key) in four.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

/// The head of a binary frame of so many bytes, as a server sends it: whole and without a mask.
#[must_use]
pub fn binary(length: usize) -> impl AsRef<[u8]> {
    own_head(BINARY, length)
}

/// The head of a pong of so many bytes.
#[must_use]
pub fn pong(length: usize) -> impl AsRef<[u8]> {
    own_head(PONG, length)
}

struct OwnHead {
    bytes: [u8; 10],
    len: usize,
}

impl AsRef<[u8]> for OwnHead {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn own_head(opcode: u8, length: usize) -> OwnHead {
    let mut bytes = [0; 10];
    bytes[0] = FIN | opcode;
    let long = (length as u64).to_be_bytes();
    let len = match length {
        ..=125 => {
            bytes[1] = long[7];
            2
        }
        126..=0xFFFF => {
            bytes[1] = 126;
            bytes[2..4].copy_from_slice(&long[6..]);
            4
        }
        _ => {
            bytes[1] = 127;
            bytes[2..].copy_from_slice(&long);
            10
        }
    };
    OwnHead { bytes, len }
}

#[cfg(test)]
mod hear;
#[cfg(test)]
mod tests;
