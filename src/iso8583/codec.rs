//! Messages to bytes and back, as a [`Layout`] says.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroizing;

use super::format::{Body, Class, Format, Length, Prefix};
use super::message::{Bytes, Message, Mti, Value};

/// Bytes that are being gathered.
type Gathered = Zeroizing<Vec<u8>>;

/// How the messages of a dialect are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// ASCII or BCD.
    pub mti: Body,
    /// Binary or hexadecimal, for both bit maps.
    pub bitmap: Body,
    /// The data elements there are, 2 to 128.
    pub fields: BTreeMap<u8, Format>,
}

/// Where in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Mti,
    Bitmap,
    Field(u8),
    /// After the last data element.
    End,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mti => f.write_str("the message type"),
            Self::Bitmap => f.write_str("the bit map"),
            Self::Field(field) => write!(f, "DE{field}"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Why bytes are no message. Nothing of the bytes is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}, byte {at}: {fault}")]
pub struct Malformed {
    pub place: Place,
    /// Counted from the first byte of the message type, from 0.
    pub at: usize,
    pub fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("needs {needed} bytes and {left} are left")]
    Short { needed: usize, left: usize },
    #[error("is not digits")]
    NotDigits,
    #[error("is not hexadecimal")]
    NotHex,
    #[error("has a character that its format does not allow")]
    Character,
    #[error("the length is not a number")]
    LengthNotANumber,
    #[error("is {found} long and {max} is the most")]
    TooLong { found: usize, max: usize },
    #[error("is not in this dialect")]
    Unknown,
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Why a value cannot be written. Nothing of the value is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DE{field} {why}")]
pub struct Unfit {
    pub field: u8,
    pub why: Unfitness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfitness {
    #[error("is not in this dialect")]
    Unknown,
    #[error("has a character that its format does not allow")]
    Character,
    #[error("is {found} long and {max} is the most")]
    TooLong { found: usize, max: usize },
    #[error("is {found} bytes long and must have {wanted}")]
    WrongLength { found: usize, wanted: usize },
    #[error("has nothing that it could be taken from")]
    Missing,
}

impl Layout {
    /// Writes a message. Fixed digits are filled up with zeros at the left, fixed text with spaces at the right.
    ///
    /// # Errors
    /// The first data element that does not fit its format.
    pub fn encode(&self, message: &Message) -> Result<Bytes, Unfit> {
        // Room for the longest there can be at this content, so that no copy is left behind by growing.
        let most: usize = message.fields().map(|(field, value)| 8 + self.widest(field, value)).sum();
        let mut out = Zeroizing::new(Vec::with_capacity(40 + most));
        let mti = message.mti.to_string();
        write_body(&mut out, self.mti, mti.as_bytes());
        let last = message.fields().map(|(field, _)| field).max().unwrap_or(0);
        let mut bits: u128 = if last > 64 { 1 << 127 } else { 0 };
        for (field, _) in message.fields() {
            if !(2..=128).contains(&field) || !self.fields.contains_key(&field) {
                return Err(Unfit { field, why: Unfitness::Unknown });
            }
            bits |= 1 << (128 - u32::from(field));
        }
        let bitmap = bits.to_be_bytes();
        write_body(&mut out, self.bitmap, if last > 64 { &bitmap } else { &bitmap[..8] });
        for (field, value) in message.fields() {
            let format = self.fields.get(&field).ok_or(Unfit { field, why: Unfitness::Unknown })?;
            format.write(&mut out, value.as_bytes()).map_err(|why| Unfit { field, why })?;
        }
        Ok(out.into())
    }

    fn widest(&self, field: u8, value: &Value) -> usize {
        let fixed = match self.fields.get(&field).map(|format| format.length) {
            Some(Length::Fixed(count)) => count,
            Some(Length::Variable { .. }) | None => 0,
        };
        fixed.max(value.as_bytes().len()) * 2
    }

    /// Reads a message.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn parse(&self, bytes: &[u8]) -> Result<Message, Malformed> {
        let mut reader = Reader { bytes, at: 0, place: Place::Mti };
        let mti = reader.body(self.mti, 4, Class::N)?;
        let text = std::str::from_utf8(&mti).ok().and_then(Mti::parse);
        let mut message = Message::new(text.ok_or_else(|| reader.fault(Fault::NotDigits))?);
        reader.place = Place::Bitmap;
        let primary = reader.bitmap(self.bitmap)?;
        let secondary = if primary >> 63 == 1 { reader.bitmap(self.bitmap)? } else { 0 };
        let bits = u128::from(primary) << 64 | u128::from(secondary);
        for field in (2..=128_u8).filter(|&field| bits >> (128 - u32::from(field)) & 1 == 1) {
            reader.place = Place::Field(field);
            let format = self.fields.get(&field).ok_or_else(|| reader.fault(Fault::Unknown))?;
            message.set(field, reader.value(*format)?);
        }
        reader.place = Place::End;
        match reader.left() {
            0 => Ok(message),
            left => Err(reader.fault(Fault::Trailing(left))),
        }
    }
}

impl Format {
    /// Whether a value could be written, as a dialect's literals are asked when it is loaded.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, value: &[u8]) -> Result<(), Unfitness> {
        if !value.iter().all(|&byte| self.class.allows(byte)) {
            return Err(Unfitness::Character);
        }
        let found = value.len();
        match self.length {
            Length::Fixed(wanted) if self.class == Class::B && found != wanted => {
                Err(Unfitness::WrongLength { found, wanted })
            }
            Length::Fixed(max) | Length::Variable { max, .. } if found > max => Err(Unfitness::TooLong { found, max }),
            Length::Fixed(_) | Length::Variable { .. } => Ok(()),
        }
    }

    fn write(&self, out: &mut Gathered, value: &[u8]) -> Result<(), Unfitness> {
        self.check(value)?;
        match self.length {
            Length::Fixed(length) if value.len() < length => {
                let mut padded = Zeroizing::new(Vec::with_capacity(length));
                let padding = length - value.len();
                if self.class == Class::N {
                    padded.resize(padding, b'0');
                    padded.extend_from_slice(value);
                } else {
                    padded.extend_from_slice(value);
                    padded.resize(length, b' ');
                }
                write_body(out, self.body, &padded);
            }
            Length::Fixed(_) => write_body(out, self.body, value),
            Length::Variable { digits, .. } => {
                write_length(out, self.prefix, digits, value.len());
                write_body(out, self.body, value);
            }
        }
        Ok(())
    }
}

fn write_length(out: &mut Gathered, prefix: Prefix, digits: usize, length: usize) {
    match prefix {
        Prefix::Ascii => out.extend_from_slice(format!("{length:0digits$}").as_bytes()),
        Prefix::Bcd => write_body(out, Body::Bcd, format!("{length:0digits$}").as_bytes()),
        Prefix::Binary => {
            let bytes = (length as u64).to_be_bytes();
            out.extend_from_slice(&bytes[8 - digits.div_ceil(2)..]);
        }
    }
}

fn write_body(out: &mut Gathered, body: Body, value: &[u8]) {
    match body {
        Body::Ascii | Body::Binary => out.extend_from_slice(value),
        Body::Hex => {
            for byte in value {
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 0xF)]);
            }
        }
        Body::Bcd => {
            let (first, pairs) = value.split_at(value.len() % 2);
            out.extend(first.iter().map(|&digit| nibble(digit)));
            out.extend(pairs.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])));
        }
    }
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Digits as they are, and the track separator, which is D in packed tracks.
fn nibble(character: u8) -> u8 {
    match character {
        b'0'..=b'9' => character - b'0',
        b':'..=b'?' => character - b'0',
        _ => 0xD,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    place: Place,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn fault(&self, fault: Fault) -> Malformed {
        Malformed { place: self.place, at: self.at, fault }
    }

    fn take(&mut self, needed: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..needed));
        let taken = taken.ok_or_else(|| self.fault(Fault::Short { needed, left: self.left() }))?;
        self.at += needed;
        Ok(taken)
    }

    fn bitmap(&mut self, body: Body) -> Result<u64, Malformed> {
        let bytes = self.body(body, 8, Class::B)?;
        Ok(bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    fn value(&mut self, format: Format) -> Result<Value, Malformed> {
        let length = match format.length {
            Length::Fixed(length) => length,
            Length::Variable { digits, max } => self.length(format.prefix, digits, max)?,
        };
        // Moved out of its wrapper, not copied; the value wipes itself as the wrapper would have.
        let mut read = self.body(format.body, length, format.class)?;
        Ok(Value::new(std::mem::take(&mut *read)))
    }

    fn length(&mut self, prefix: Prefix, digits: usize, max: usize) -> Result<usize, Malformed> {
        let (from, place) = (self.at, self.place);
        let at = |fault| Malformed { place, at: from, fault };
        let number = |text: &[u8]| {
            let all = text.iter().all(u8::is_ascii_digit);
            all.then(|| text.iter().fold(0, |sum, &digit| sum * 10 + usize::from(digit - b'0')))
        };
        let found = match prefix {
            Prefix::Ascii => number(self.take(digits)?),
            Prefix::Bcd => unpack(self.take(digits.div_ceil(2))?).and_then(|text| number(&text)),
            Prefix::Binary => {
                let bytes = self.take(digits.div_ceil(2))?;
                Some(bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
            }
        };
        let found = found.ok_or_else(|| at(Fault::LengthNotANumber))?;
        if found > max { Err(at(Fault::TooLong { found, max })) } else { Ok(found) }
    }

    /// `length` characters (bytes, for binary values) that are written like this.
    fn body(&mut self, body: Body, length: usize, class: Class) -> Result<Gathered, Malformed> {
        let from = self.at;
        let place = self.place;
        let at = move |offset: usize, fault| Malformed { place, at: from + offset, fault };
        let mut value = Zeroizing::new(Vec::with_capacity(length + 1));
        match body {
            Body::Ascii | Body::Binary => value.extend_from_slice(self.take(length)?),
            Body::Hex => {
                for (offset, pair) in self.take(length * 2)?.chunks_exact(2).enumerate() {
                    let byte = unhex(pair[0]).zip(unhex(pair[1])).map(|(high, low)| high << 4 | low);
                    value.push(byte.ok_or_else(|| at(offset * 2, Fault::NotHex))?);
                }
            }
            Body::Bcd => {
                for (offset, &byte) in self.take(length.div_ceil(2))?.iter().enumerate() {
                    for half in [byte >> 4, byte & 0xF] {
                        value.push(character(half, class).ok_or_else(|| at(offset, Fault::NotDigits))?);
                    }
                }
                if length % 2 == 1 {
                    let filler = value.remove(0);
                    if filler != b'0' {
                        return Err(at(0, Fault::NotDigits));
                    }
                }
            }
        }
        // Packed digits were judged as they were unpacked.
        if body != Body::Bcd
            && let Some(offset) = value.iter().position(|&byte| !class.allows(byte))
        {
            let fault = if class == Class::N { Fault::NotDigits } else { Fault::Character };
            return Err(at(offset, fault));
        }
        Ok(value)
    }
}

/// The character that half a byte stands for.
fn character(half: u8, class: Class) -> Option<u8> {
    match (half, class) {
        (0..=9, _) => Some(b'0' + half),
        (0xD, Class::Z) => Some(b'='),
        _ => None,
    }
}

fn unhex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn unpack(bytes: &[u8]) -> Option<Vec<u8>> {
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xF]);
    halves.map(|half| (half <= 9).then_some(b'0' + half)).collect()
}
