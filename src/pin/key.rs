//! Key material, what is computed with it block by block, and the check values by which people compare keys.

use std::fmt;

use aes::Aes128;
use cmac::{Cmac, Mac as _};
use des::TdesEde2;
use des::cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::card::Mac;

/// An AES-128 key.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct AesKey([u8; 16]);

impl AesKey {
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key itself, for whoever seals it or injects it into a terminal.
    #[must_use]
    pub fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    pub(crate) fn encrypt(&self, block: &mut [u8; 16]) {
        Aes128::new(&self.0.into()).encrypt_block(block.into());
    }

    pub(crate) fn decrypt(&self, block: &mut [u8; 16]) {
        Aes128::new(&self.0.into()).decrypt_block(block.into());
    }

    /// AES-CMAC, NIST SP 800-38B.
    #[must_use]
    pub fn cmac(&self, message: &[u8]) -> [u8; 16] {
        <Cmac<Aes128> as cmac::KeyInit>::new(&self.0.into()).chain_update(message).finalize().into_bytes().into()
    }

    /// The first eight bytes of the AES-CMAC.
    #[must_use]
    pub fn mac(&self, message: &[u8]) -> Mac {
        let [a, b, c, d, e, f, g, h, ..] = self.cmac(message);
        Mac([a, b, c, d, e, f, g, h])
    }

    /// The check value of ANSI X9.24-1:2017 Annex A for AES keys: the CMAC of a zero block.
    #[must_use]
    pub fn check_value(&self) -> CheckValue {
        CheckValue::of(Convention::Cmac, &self.cmac(&[0; 16]))
    }

    /// The older check value: a zero block encrypted. Some key custodians still write it down.
    #[must_use]
    pub fn legacy_check_value(&self) -> CheckValue {
        let mut block = [0; 16];
        self.encrypt(&mut block);
        CheckValue::of(Convention::Ecb, &block)
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesKey")
    }
}

/// A double length TDES key (keying option 2), as PIN verification keys are.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TdesKey([u8; 16]);

impl TdesKey {
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key itself, for whoever seals it.
    #[must_use]
    pub fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    pub(crate) fn encrypt(&self, block: &mut [u8; 8]) {
        TdesEde2::new(&self.0.into()).encrypt_block(block.into());
    }

    /// A zero block encrypted, as for all TDES keys.
    #[must_use]
    pub fn check_value(&self) -> CheckValue {
        let mut block = [0; 8];
        self.encrypt(&mut block);
        CheckValue::of(Convention::Ecb, &block)
    }

    /// Whether the halves differ. With equal ones it would be single DES.
    #[must_use]
    pub fn is_double(&self) -> bool {
        // Parity bits are no key bits.
        let bits = |half: &[u8]| half.iter().fold(0_u64, |bits, byte| bits << 7 | u64::from(byte >> 1));
        bits(&self.0[..8]) != bits(&self.0[8..])
    }
}

impl fmt::Debug for TdesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TdesKey")
    }
}

/// How a check value is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// CMAC of a zero block.
    Cmac,
    /// A zero block encrypted.
    Ecb,
}

/// Three bytes that follow from a key and tell nothing of it; and how they follow, since there are two conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckValue {
    convention: Convention,
    bytes: [u8; 3],
}

impl CheckValue {
    fn of(convention: Convention, result: &[u8]) -> Self {
        let mut bytes = [0; 3];
        bytes.copy_from_slice(&result[..3]);
        Self { convention, bytes }
    }

    #[must_use]
    pub fn convention(self) -> Convention {
        self.convention
    }

    /// Whether this is what somebody wrote down: six hexadecimal digits, spaces between them or not.
    #[must_use]
    pub fn is(self, written: &str) -> bool {
        let digits: String = written.chars().filter(|c| !c.is_whitespace()).collect();
        hex::decode(digits).is_ok_and(|bytes| bytes.ct_eq(&self.bytes).into())
    }
}

impl fmt::Display for CheckValue {
    /// `FF0BD7`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.bytes))
    }
}

/// Puts a key together from the components that its custodians hold: each bit is the exclusive or of theirs.
#[must_use]
pub fn combined<'a>(components: impl IntoIterator<Item = &'a [u8; 16]>) -> zeroize::Zeroizing<[u8; 16]> {
    let mut key = zeroize::Zeroizing::new([0; 16]);
    for component in components {
        for (bits, theirs) in key.iter_mut().zip(component) {
            *bits ^= theirs;
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> [u8; 16] {
        hex::decode(hex).expect("hex").try_into().expect("16 bytes")
    }

    #[test]
    fn check_values_are_those_of_others() {
        let aes = AesKey::new(bytes("FEDCBA9876543210F1F1F1F1F1F1F1F1"));
        assert_eq!(aes.check_value().to_string(), "FF0BD7");
        assert_eq!(aes.legacy_check_value().to_string(), "ED6429");
        let tdes = TdesKey::new(bytes("0123456789ABCDEFFEDCBA9876543210"));
        assert_eq!(tdes.check_value().to_string(), "08D7B4");
        assert_eq!(tdes.check_value().convention(), Convention::Ecb);
        assert!(tdes.check_value().is("08 d7 b4"));
        for other in ["08D7B5", "08D7", "08D7B400", "", "zzzzzz"] {
            assert!(!tdes.check_value().is(other), "{other}");
        }
    }

    /// NIST SP 800-38B, the examples for AES-128 (also RFC 4493).
    #[test]
    fn cmac_is_that_of_nist() {
        let key = AesKey::new(bytes("2B7E151628AED2A6ABF7158809CF4F3C"));
        let message = hex::decode("6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E5130C81C46A35CE411");
        let message = message.expect("hex");
        for (length, code) in [
            (0, "BB1D6929E95937287FA37D129B756746"),
            (16, "070A16B46B4D4144F79BDD9DD04A287C"),
            (40, "DFA66747DE9AE63030CA32611497C827"),
        ] {
            assert_eq!(key.cmac(&message[..length]), bytes(code), "{length} bytes");
        }
    }

    #[test]
    fn a_key_prints_its_kind_only() {
        assert_eq!(format!("{:?} {:?}", AesKey::new([1; 16]), TdesKey::new([1; 16])), "AesKey TdesKey");
    }

    #[test]
    fn equal_halves_are_single_des() {
        assert!(TdesKey::new(bytes("0123456789ABCDEFFEDCBA9876543210")).is_double());
        assert!(!TdesKey::new(bytes("0123456789ABCDEF0022446688AACCEE")).is_double(), "parity does not count");
    }

    #[test]
    fn components_make_the_key_in_any_order() {
        let (a, b, c) = ([0x0F; 16], [0xF1; 16], bytes("000102030405060708090A0B0C0D0E0F"));
        let key = combined([&a, &b, &c]);
        assert_eq!(*key, *combined([&c, &a, &b]));
        assert_eq!(key[..2], [0xFE, 0xFF]);
    }
}
