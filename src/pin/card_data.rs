//! The block of card data in a request, as `proto/wakala.proto` lays it out: one AES block, PAN and expiry.

use zeroize::Zeroizing;

use super::key::AesKey;
use super::{nibble, packed};
use crate::card::{Expiry, Pan};

/// The PAN is padded to this many digits.
const PAN_DIGITS: usize = 20;
const PAD: u8 = 0xF;

/// The block decrypts to no card: another key, or no card was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block of card data under this key")]
pub struct NoCard;

/// What the terminal does.
#[must_use]
pub fn encrypted(key: &AesKey, pan: &Pan, expiry: Expiry) -> [u8; 16] {
    let mut nibbles = Zeroizing::new([0; 32]);
    nibbles[..PAN_DIGITS].fill(PAD);
    nibbles[..pan.digits().len()].copy_from_slice(pan.digits());
    let Expiry { year, month } = expiry;
    nibbles[PAN_DIGITS..PAN_DIGITS + 4].copy_from_slice(&[year / 10, year % 10, month / 10, month % 10]);
    let mut block = packed(&*nibbles);
    key.encrypt(&mut block);
    block
}

/// What the host does.
///
/// # Errors
/// When the block does not decrypt to a PAN with a right check digit, a month, and zeros.
pub fn decrypted(key: &AesKey, block: &[u8; 16]) -> Result<(Pan, Expiry), NoCard> {
    let mut clear = Zeroizing::new(*block);
    key.decrypt(&mut clear);
    if clear[12..] != [0; 4] {
        return Err(NoCard);
    }
    let length = (0..PAN_DIGITS).position(|at| nibble(&*clear, at) == PAD).ok_or(NoCard)?;
    if (length..PAN_DIGITS).any(|at| nibble(&*clear, at) != PAD) {
        return Err(NoCard);
    }
    let mut digits = Zeroizing::new([0_u8; PAN_DIGITS]);
    for (at, digit) in digits.iter_mut().enumerate().take(length) {
        *digit = b'0' + nibble(&*clear, at);
    }
    let text = std::str::from_utf8(&digits[..length]).map_err(|_| NoCard)?;
    let pan = Pan::new(text).map_err(|_| NoCard)?;

    let date: [u8; 4] = std::array::from_fn(|at| nibble(&*clear, PAN_DIGITS + at));
    if date.iter().any(|&digit| digit > 9) {
        return Err(NoCard);
    }
    let yymm = date.iter().fold(0, |number, &digit| number * 10 + u16::from(digit));
    Ok((pan, Expiry::from_yymm(yymm).ok_or(NoCard)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECEMBER_2030: Expiry = Expiry { year: 30, month: 12 };

    #[test]
    fn cards_of_every_length_come_back() {
        let key = AesKey::new([7; 16]);
        for digits in ["123456789015", "4111111111111111", "1234567890123456785"] {
            let block = encrypted(&key, &Pan::new(digits).expect(digits), DECEMBER_2030);
            let (pan, expiry) = decrypted(&key, &block).expect(digits);
            let found: String = pan.digits().iter().map(|&digit| char::from(b'0' + digit)).collect();
            assert_eq!((found.as_str(), expiry), (digits, DECEMBER_2030));
        }
    }

    #[test]
    fn the_layout_is_that_of_the_schema() {
        let key = AesKey::new([7; 16]);
        let mut block = encrypted(&key, &Pan::new("4111111111111111").expect("a PAN"), DECEMBER_2030);
        key.decrypt(&mut block);
        assert_eq!(hex::encode_upper(block), "4111111111111111FFFF301200000000");
    }

    #[test]
    fn what_is_no_card_is_refused() {
        let key = AesKey::new([7; 16]);
        for (clear, why) in [
            ("4111111111111112FFFF301200000000", "check digit"),
            ("4111111111111111FFFF301300000000", "month 13"),
            ("4111111111111111FFFF30A200000000", "a month's digit above nine"),
            ("4111111111111111FFFF301200000001", "not zeros"),
            ("4111111111111111F1FF301200000000", "a digit after the padding"),
            ("41111111111A1111FFFF301200000000", "a PAN's digit above nine"),
            ("41111111111111111111301200000000", "20 digits"),
            ("41111111117FFFFFFFFF301200000000", "11 digits"),
            ("00000000000000000000000000000000", "nothing"),
        ] {
            let mut block = hex::decode(clear).expect("hex").try_into().expect("16 bytes");
            key.encrypt(&mut block);
            assert_eq!(decrypted(&key, &block).map(|_| ()), Err(NoCard), "{why}");
        }
        let block = encrypted(&key, &Pan::new("4111111111111111").expect("a PAN"), DECEMBER_2030);
        assert_eq!(decrypted(&AesKey::new([8; 16]), &block).map(|_| ()), Err(NoCard), "another key");
    }
}
