//! How messages are told apart in a stream of bytes: a length before each, and sometimes a header.

use zeroize::Zeroizing;

use super::message::Bytes;

/// How the length before a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum LengthPrefix {
    /// Two bytes, most significant first.
    #[serde(rename = "binary-2")]
    Binary2,
    /// Four bytes, most significant first.
    #[serde(rename = "binary-4")]
    Binary4,
    /// Four ASCII digits.
    #[serde(rename = "ascii-4")]
    Ascii4,
}

/// The framing of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framing {
    pub prefix: LengthPrefix,
    /// Whether the length counts its own bytes.
    pub counts_itself: bool,
    /// Goes before each message and is counted by the length; one of the same size is passed over on reading.
    pub header: Box<[u8]>,
    /// The longest message that is read or written, without prefix and header, in bytes.
    pub message_max_bytes: usize,
}

/// A length that no message has. The stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("the length before a message is not four digits")]
    NotDigits,
    #[error("a length of {found} bytes cannot hold the length and the header, {least} bytes")]
    TooShort { found: usize, least: usize },
    #[error("a message of {found} bytes, and {max} are the most")]
    TooLong { found: usize, max: usize },
}

impl Framing {
    /// How many bytes the length has.
    #[must_use]
    pub fn prefix_bytes(&self) -> usize {
        match self.prefix {
            LengthPrefix::Binary2 => 2,
            LengthPrefix::Binary4 | LengthPrefix::Ascii4 => 4,
        }
    }

    /// How many bytes follow the length (header and message), from the length itself. None follow a length of zero,
    /// which some cores send to keep a line alive.
    ///
    /// # Errors
    /// When no message is so long, or `prefix` is not a length.
    pub fn rest(&self, prefix: &[u8]) -> Result<usize, BadFrame> {
        let found = match self.prefix {
            LengthPrefix::Binary2 | LengthPrefix::Binary4 => {
                prefix.iter().fold(0_usize, |sum, &byte| sum.saturating_mul(256).saturating_add(usize::from(byte)))
            }
            LengthPrefix::Ascii4 => {
                if prefix.len() != 4 || !prefix.iter().all(u8::is_ascii_digit) {
                    return Err(BadFrame::NotDigits);
                }
                prefix.iter().fold(0, |sum, &digit| sum * 10 + usize::from(digit - b'0'))
            }
        };
        if found == 0 {
            return Ok(0);
        }
        let own = if self.counts_itself { self.prefix_bytes() } else { 0 };
        let least = own + self.header.len();
        if found < least {
            return Err(BadFrame::TooShort { found, least });
        }
        let (message, max) = (found - least, self.longest());
        if message > max {
            return Err(BadFrame::TooLong { found: message, max });
        }
        Ok(found - own)
    }

    /// A message with its length and header, as it is written.
    ///
    /// # Errors
    /// When it is longer than the link carries.
    pub fn frame(&self, message: &[u8]) -> Result<Bytes, BadFrame> {
        let (found, max) = (message.len(), self.longest());
        if found > max {
            return Err(BadFrame::TooLong { found, max });
        }
        let own = if self.counts_itself { self.prefix_bytes() } else { 0 };
        let length = own + self.header.len() + message.len();
        let mut framed = Zeroizing::new(Vec::with_capacity(self.prefix_bytes() + self.header.len() + message.len()));
        match self.prefix {
            LengthPrefix::Binary2 | LengthPrefix::Binary4 => {
                let bytes = (length as u64).to_be_bytes();
                framed.extend_from_slice(&bytes[8 - self.prefix_bytes()..]);
            }
            LengthPrefix::Ascii4 => framed.extend_from_slice(format!("{length:04}").as_bytes()),
        }
        framed.extend_from_slice(&self.header);
        framed.extend_from_slice(message);
        Ok(framed.into())
    }

    /// What the configuration allows, and the length can say.
    fn longest(&self) -> usize {
        let said = match self.prefix {
            LengthPrefix::Binary2 => 65_535,
            LengthPrefix::Binary4 => usize::MAX,
            LengthPrefix::Ascii4 => 9_999,
        };
        let own = if self.counts_itself { self.prefix_bytes() } else { 0 };
        self.message_max_bytes.min(said - own - self.header.len().min(said - own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(prefix: LengthPrefix, counts_itself: bool, header: &[u8]) -> Framing {
        Framing { prefix, counts_itself, header: header.into(), message_max_bytes: 300 }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        for prefix in [LengthPrefix::Binary2, LengthPrefix::Binary4, LengthPrefix::Ascii4] {
            for counts_itself in [false, true] {
                for header in [&b""[..], &[0x60, 0, 3, 0, 0]] {
                    let framing = framing(prefix, counts_itself, header);
                    for length in [1, 255, 256, 300] {
                        let framed = framing.frame(&vec![7; length]).expect("fits");
                        let (prefix, rest) = framed.split_at(framing.prefix_bytes());
                        assert_eq!(framing.rest(prefix), Ok(rest.len()), "{framing:?}");
                        assert_eq!(rest.len(), header.len() + length);
                    }
                    assert_eq!(framing.frame(&[7; 301]), Err(BadFrame::TooLong { found: 301, max: 300 }));
                }
            }
        }
    }

    #[test]
    fn known_frames() {
        let bytes = |f: Framing| f.frame(b"0800").expect("fits").to_vec();
        assert_eq!(bytes(framing(LengthPrefix::Binary2, false, b"")), b"\x00\x040800");
        assert_eq!(bytes(framing(LengthPrefix::Binary2, true, b"")), b"\x00\x060800");
        assert_eq!(bytes(framing(LengthPrefix::Ascii4, false, b"ISO")), b"0007ISO0800");
        assert_eq!(bytes(framing(LengthPrefix::Ascii4, true, b"")), b"00080800");
    }

    #[test]
    fn a_length_that_no_message_has_is_refused() {
        let plain = framing(LengthPrefix::Binary2, false, b"");
        assert_eq!(plain.rest(&[0, 0]), Ok(0));
        assert_eq!(plain.rest(&[0xFF, 0xFF]), Err(BadFrame::TooLong { found: 65_535, max: 300 }));
        let itself = framing(LengthPrefix::Ascii4, true, b"HDR");
        assert_eq!(itself.rest(b"0006"), Err(BadFrame::TooShort { found: 6, least: 7 }));
        assert_eq!(itself.rest(b"00x6"), Err(BadFrame::NotDigits));
        assert_eq!(itself.rest(b"HTTP"), Err(BadFrame::NotDigits));
        let four = framing(LengthPrefix::Binary4, false, b"");
        assert_eq!(four.rest(&[0xFF; 4]), Err(BadFrame::TooLong { found: 0xFFFF_FFFF, max: 300 }));
    }
}
