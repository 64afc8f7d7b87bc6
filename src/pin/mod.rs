//! PINs, and the keys that protect them on their way from the PIN pad: what an HSM computes, as mathematics.
//!
//! Nothing here knows where keys are kept; that is behind the HSM port (`actors/ports.rs`). Both sides are here, so that a
//! simulated terminal computes its half with the code that is held against the standards' vectors:
//!
//! | module | standard |
//! |---|---|
//! | [`dukpt`] | ANSI X9.24-3:2017, a key of its own for every transaction (AES-128) |
//! | [`block`] | ISO 9564-1:2017 format 4, the PIN on its way, bound to the PAN |
//! | [`card_data`] | `proto/wakala.proto`, the PAN and expiry on their way |
//! | [`pvv`] | Visa PIN verification value, what a bank compares a PIN with |
//! | [`offset`] | IBM 3624 PIN offset, what other banks compare it with |
//! | [`key`] | key material, AES-CMAC (NIST SP 800-38B), check values (ANSI X9.24-1:2017 Annex A) |
//! | [`tr31`] | ANSI X9.143 (TR-31) version D, keys on their way between banks |
//! | [`terminal`] | what the terminal computes |
//!
//! Keys, PINs and blocks are types that cannot be printed, cloned or serialised, and are wiped when dropped (law 3). Whatever
//! compares a secret takes the same time wherever the difference is.

pub mod block;
pub mod card_data;
pub mod dukpt;
pub mod key;
pub mod offset;
pub mod pvv;
pub mod terminal;
pub mod tr31;

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A personal identification number in clear: 4 to 12 digits (ISO 9564-1 §6). It exists between decryption and comparison.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Pin {
    /// Values 0 to 9; those beyond the length are 0.
    digits: [u8; Pin::MAX],
    length: usize,
}

/// Why digits are not a PIN. It does not say which digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PIN has 4 to 12 digits")]
pub struct NotAPin;

impl Pin {
    /// The fewest digits.
    pub const MIN: usize = 4;
    /// The most digits.
    pub const MAX: usize = 12;

    /// # Errors
    /// When the text is not 4 to 12 decimal digits.
    pub fn new(text: &str) -> Result<Self, NotAPin> {
        if !(Self::MIN..=Self::MAX).contains(&text.len()) {
            return Err(NotAPin);
        }
        let mut pin = Self { digits: [0; Self::MAX], length: text.len() };
        for (digit, byte) in pin.digits.iter_mut().zip(text.bytes()) {
            // Below '0' wraps to something above 9.
            *digit = byte.wrapping_sub(b'0');
        }
        pin.checked()
    }

    /// From digits, each 0 to 9.
    ///
    /// # Errors
    /// As [`Pin::new`].
    pub fn from_digits(digits: &[u8]) -> Result<Self, NotAPin> {
        if !(Self::MIN..=Self::MAX).contains(&digits.len()) {
            return Err(NotAPin);
        }
        let mut pin = Self { digits: [0; Self::MAX], length: digits.len() };
        pin.digits[..digits.len()].copy_from_slice(digits);
        pin.checked()
    }

    fn checked(self) -> Result<Self, NotAPin> {
        if self.digits().iter().all(|&digit| digit <= 9) { Ok(self) } else { Err(NotAPin) }
    }

    /// The digits, each 0 to 9. Whoever asks for them answers for where they go.
    #[must_use]
    pub fn digits(&self) -> &[u8] {
        &self.digits[..self.length]
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

/// Packs digits or nibbles two to a byte, the first one high. `nibbles` is twice as long as `N`.
fn packed<const N: usize>(nibbles: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(nibbles.chunks(2)) {
        *byte = pair.iter().fold(0, |byte, nibble| byte << 4 | nibble & 0x0F);
    }
    bytes
}

/// The nibble at a place, counted from 0, the high one first.
fn nibble(bytes: &[u8], at: usize) -> u8 {
    match at % 2 {
        0 => bytes[at / 2] >> 4,
        _ => bytes[at / 2] & 0x0F,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_has_4_to_12_digits_and_prints_none() {
        for good in ["1234", "000000", "123456789012"] {
            let pin = Pin::new(good).expect(good);
            assert_eq!(pin.digits().len(), good.len());
            assert_eq!(format!("{pin:?}"), "Pin");
        }
        for bad in ["", "123", "1234567890123", "12a4", "12 4", "12/4", "１２３４"] {
            assert_eq!(Pin::new(bad).map(|_| ()), Err(NotAPin), "{bad}");
        }
        assert_eq!(Pin::from_digits(&[1, 2, 3, 10]).map(|_| ()), Err(NotAPin));
    }
}
