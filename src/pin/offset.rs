//! IBM 3624 PIN offset: the digits to add to a PIN that follows from the account, so that the customer could choose hers.
//!
//! The validation data are encrypted under the PIN verification key (TDES), a table makes decimal digits of hexadecimal
//! ones, the leftmost are the natural PIN, and PIN less natural PIN, digit by digit modulo 10, is the offset.

use std::fmt;

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::key::TdesKey;
use super::{NotAPin, Pin, nibble, packed};

/// Which decimal digit stands for each hexadecimal one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table([u8; 16]);

/// Why digits are no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("a decimalisation table has 16 digits")]
    Length,
    /// A table of few digits makes PINs that can be guessed (ISO 9564-1; Bond and Zieliński 2003).
    #[error("a decimalisation table has at least 8 different digits, none more than 4 times")]
    Weak,
}

impl Table {
    /// # Errors
    /// When the text is not 16 digits, or they are too few different ones.
    pub fn new(text: &str) -> Result<Self, TableError> {
        let digits: [u8; 16] = text.as_bytes().try_into().map_err(|_| TableError::Length)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(TableError::Length);
        }
        let table = digits.map(|byte| byte - b'0');
        let counts: [usize; 10] =
            std::array::from_fn(|digit| table.iter().filter(|&&found| usize::from(found) == digit).count());
        let different = counts.iter().filter(|&&count| count > 0).count();
        if different < 8 || counts.iter().any(|&count| count > 4) { Err(TableError::Weak) } else { Ok(Self(table)) }
    }
}

/// What the bank's dialect makes of the account: 16 hexadecimal digits, usually of the PAN.
pub struct ValidationData(Zeroizing<[u8; 8]>);

impl ValidationData {
    /// From digits, each 0 to 9, padded on the right.
    #[must_use]
    pub fn new(digits: &[u8], pad: u8) -> Self {
        let mut nibbles = Zeroizing::new([pad & 0x0F; 16]);
        let length = digits.len().min(16);
        nibbles[..length].copy_from_slice(&digits[..length]);
        Self(Zeroizing::new(packed(&*nibbles)))
    }
}

impl fmt::Debug for ValidationData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ValidationData")
    }
}

/// A PIN offset: as many digits as the bank compares, 4 to 12.
pub struct Offset(Pin);

impl Offset {
    /// # Errors
    /// When the text is not 4 to 12 digits.
    pub fn new(text: &str) -> Result<Self, NotAPin> {
        Pin::new(text).map(Self)
    }

    /// The digits, each 0 to 9.
    #[must_use]
    pub fn digits(&self) -> &[u8] {
        self.0.digits()
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offset")
    }
}

/// The PIN that follows from the account, 12 digits of it.
fn natural(key: &TdesKey, data: &ValidationData, table: &Table) -> Zeroizing<[u8; Pin::MAX]> {
    let mut block = Zeroizing::new(*data.0);
    key.encrypt(&mut block);
    Zeroizing::new(std::array::from_fn(|at| table.0[usize::from(nibble(&*block, at))]))
}

/// The offset for a PIN that the customer chose.
#[must_use]
pub fn offset(key: &TdesKey, data: &ValidationData, table: &Table, pin: &Pin) -> Offset {
    let natural = natural(key, data, table);
    let mut difference = Pin { digits: [0; Pin::MAX], length: pin.length };
    for ((digit, chosen), natural) in difference.digits.iter_mut().zip(pin.digits()).zip(&*natural) {
        *digit = (chosen + 10 - natural) % 10;
    }
    Offset(difference)
}

/// Whether the PIN is the card's. A PIN of another length than the offset's is not.
#[must_use]
pub fn verified(key: &TdesKey, data: &ValidationData, table: &Table, pin: &Pin, reference: &Offset) -> bool {
    offset(key, data, table, pin).digits().ct_eq(reference.digits()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pvk() -> TdesKey {
        TdesKey::new(*b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\xFE\xDC\xBA\x98\x76\x54\x32\x10")
    }

    fn data() -> ValidationData {
        ValidationData::new(&[1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8], 0xF)
    }

    /// psec 1.3.0, tests/test_pin.py.
    #[test]
    fn offsets_are_those_of_others() {
        let table = Table::new("1234567890123456").expect("a table");
        assert_eq!(natural(&pvk(), &data(), &table)[..4], [4, 5, 2, 4]);
        for (pin, table, expected) in [
            ("1234", "1234567890123456", [7, 7, 1, 0]),
            ("0000", "1234567890123456", [6, 5, 8, 6]),
            ("1111", "1234567890123456", [7, 6, 9, 7]),
            ("1234", "0123456789012345", [8, 8, 2, 1]),
        ] {
            let (pin, table) = (Pin::new(pin).expect("a PIN"), Table::new(table).expect("a table"));
            let found = offset(&pvk(), &data(), &table, &pin);
            assert_eq!(found.digits(), expected);
            assert!(verified(&pvk(), &data(), &table, &pin, &found));
            assert!(!verified(&pvk(), &data(), &table, &Pin::new("4321").expect("a PIN"), &found));
        }
    }

    #[test]
    fn a_longer_pin_needs_a_longer_offset() {
        let table = Table::new("0123456789012345").expect("a table");
        let (short, long) = (Pin::new("1234").expect("a PIN"), Pin::new("123456").expect("a PIN"));
        let found = offset(&pvk(), &data(), &table, &short);
        assert!(!verified(&pvk(), &data(), &table, &long, &found));
    }

    #[test]
    fn weak_tables_are_refused() {
        assert_eq!(Table::new("012345678901234"), Err(TableError::Length));
        assert_eq!(Table::new("012345678901234x"), Err(TableError::Length));
        assert_eq!(Table::new("0000000000000000"), Err(TableError::Weak));
        assert_eq!(Table::new("0000012345678900"), Err(TableError::Weak));
        assert_eq!(Table::new("0123456701234567").map(|_| ()), Ok(()));
    }
}
