//! Card data, by how much of it a type may show.
//!
//! [`Pan`] and [`PinBlock`] cannot be printed, cloned or serialised, and are wiped when dropped (law 3; PCI DSS 3.3, 3.5).
//! Beyond the edge a card travels as a [`CardRef`]: a token to find it by, a masked text to print, and a sealed value
//! that only the core's adapter has opened.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Primary account number: 12 to 19 digits with a right check digit (ISO/IEC 7812-1).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Pan {
    /// Values 0 to 9.
    digits: [u8; Pan::MAX],
    length: usize,
}

/// Why digits are not a PAN. It does not say which digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PanError {
    #[error("a PAN has 12 to 19 digits")]
    Length,
    #[error("a PAN has digits only")]
    NotADigit,
    #[error("the PAN's check digit is wrong")]
    CheckDigit,
}

impl Pan {
    const MAX: usize = 19;

    /// # Errors
    /// When the text is not 12 to 19 digits or fails the Luhn check.
    pub fn new(text: &str) -> Result<Self, PanError> {
        if !(12..=Self::MAX).contains(&text.len()) {
            return Err(PanError::Length);
        }
        let mut pan = Self { digits: [0; Self::MAX], length: text.len() };
        for (digit, byte) in pan.digits.iter_mut().zip(text.bytes()) {
            if !byte.is_ascii_digit() {
                return Err(PanError::NotADigit);
            }
            *digit = byte - b'0';
        }
        if luhn(pan.digits()) { Ok(pan) } else { Err(PanError::CheckDigit) }
    }

    /// For the standards' vectors, whose PANs have no right check digit.
    #[cfg(test)]
    pub(crate) fn unchecked(text: &str) -> Self {
        let mut pan = Self { digits: [0; Self::MAX], length: text.len() };
        for (digit, byte) in pan.digits.iter_mut().zip(text.bytes()) {
            *digit = byte - b'0';
        }
        pan
    }

    /// The digits, each 0 to 9. Whoever asks for them answers for where they go.
    #[must_use]
    pub fn digits(&self) -> &[u8] {
        &self.digits[..self.length]
    }

    /// First six and last four digits, as PCI DSS 3.4.1 allows to be shown.
    #[must_use]
    pub fn masked(&self) -> Masked {
        let text = self
            .digits()
            .iter()
            .enumerate()
            .map(|(at, digit)| if at < 6 || at + 4 >= self.length { char::from(b'0' + digit) } else { '*' });
        Masked(text.collect())
    }
}

impl fmt::Debug for Pan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.masked(), f)
    }
}

/// ISO/IEC 7812-1 Annex B.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(at, &digit)| match (at % 2, u32::from(digit) * 2) {
            (0, _) => u32::from(digit),
            (_, doubled) => doubled / 10 + doubled % 10,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// A PAN of which six and four digits are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked(Box<str>);

impl Masked {
    /// From what was stored.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A keyed hash of the PAN (PCI DSS 3.5.1.1): finds the card's row, tells nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// A PAN encrypted under a key of the HSM port; opened by the core's adapter alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Box<[u8]>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The last month in which a card is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// The year without its century, 0 to 99.
    pub year: u8,
    /// 1 to 12.
    pub month: u8,
}

impl Expiry {
    /// `YYMM` as a number; `None` when the month is none.
    #[must_use]
    pub fn from_yymm(yymm: u16) -> Option<Self> {
        let (year, month) = (u8::try_from(yymm / 100).ok()?, u8::try_from(yymm % 100).ok()?);
        (year <= 99 && (1..=12).contains(&month)).then_some(Self { year, month })
    }

    #[must_use]
    pub fn yymm(self) -> u16 {
        u16::from(self.year) * 100 + u16::from(self.month)
    }
}

/// A card as it travels beyond the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardRef {
    pub token: Token,
    pub masked: Masked,
    pub sealed: Sealed,
    pub expiry: Expiry,
}

/// An encrypted PIN block, ISO 9564-1 format 4. Even encrypted it is neither stored nor printed (PCI DSS 3.3.1.3).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PinBlock(pub [u8; 16]);

impl fmt::Debug for PinBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinBlock")
    }
}

/// Key serial number of AES DUKPT (ANSI X9.24-3 §6.2): which initial key, and the how-manieth transaction under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ksn {
    /// Initial key identifier: BDK identifier (4 bytes) and derivation identifier (4 bytes).
    pub initial_key_id: [u8; 8],
    pub counter: u32,
}

impl Ksn {
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 12] = bytes.try_into().ok()?;
        let (id, counter) = bytes.split_at(8);
        Some(Self { initial_key_id: id.try_into().ok()?, counter: u32::from_be_bytes(counter.try_into().ok()?) })
    }

    #[must_use]
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.initial_key_id);
        bytes[8..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }
}

impl fmt::Debug for Ksn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.to_bytes()))
    }
}

/// The first eight bytes of a message authentication code.
#[derive(Clone, Copy, Debug)]
pub struct Mac(pub [u8; 8]);

impl PartialEq for Mac {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pan_shows_ten_digits_at_most() {
        let pan = Pan::new("4111111111111111").expect("a good PAN");
        assert_eq!(format!("{pan:?}"), "411111******1111");
        assert_eq!(pan.masked().as_str(), "411111******1111");
        assert_eq!(pan.digits()[..6], [4, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_is_no_pan_is_refused_without_repeating_it() {
        for (text, error) in [
            ("41111111111", PanError::Length),
            ("41111111111111111111", PanError::Length),
            ("4111111111111112", PanError::CheckDigit),
            ("411111111111111x", PanError::NotADigit),
        ] {
            let found = Pan::new(text).expect_err(text);
            assert_eq!(found, error);
            assert!(!found.to_string().contains("4111"));
        }
    }

    #[test]
    fn a_pin_block_prints_its_name_only() {
        assert_eq!(format!("{:?}", PinBlock([0xA9; 16])), "PinBlock");
    }

    #[test]
    fn a_ksn_is_an_identifier_and_a_counter() {
        let ksn = Ksn::from_bytes(&hex::decode("123456789012345600000001").expect("hex")).expect("12 bytes");
        assert_eq!(ksn.counter, 1);
        assert_eq!(format!("{ksn:?}"), "123456789012345600000001");
        assert!(Ksn::from_bytes(&[0; 11]).is_none());
    }
}
