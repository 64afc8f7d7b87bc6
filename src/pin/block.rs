//! PIN blocks of ISO 9564-1:2017 format 4 (§9.4.2): the PIN with random bits, encrypted, mixed with the PAN, encrypted again.
//!
//! Format 4 is the one format for AES keys, and the only one here: it cannot be made into a format that is not bound to
//! the PAN, or bound to another PAN (PCI PIN requirement 3-3), because no other can be named.

use zeroize::{Zeroize as _, Zeroizing};

use super::key::AesKey;
use super::{Pin, nibble, packed};
use crate::card::{Pan, PinBlock};

/// The control nibble.
const FORMAT: u8 = 4;
/// What follows the PIN up to the random half.
const FILL: u8 = 0xA;

/// The block decrypts to no PIN: another key, another PAN, or a broken PIN pad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a format 4 PIN block for this PAN under this key")]
pub struct Malformed;

/// What the PIN pad does. The eight random bytes are new for every block.
#[must_use]
pub fn encoded(key: &AesKey, pin: &Pin, pan: &Pan, random: [u8; 8]) -> PinBlock {
    let mut block = pin_field(pin, random);
    key.encrypt(&mut block);
    mix(&mut block, pan);
    key.encrypt(&mut block);
    let encoded = PinBlock(*block);
    block.zeroize();
    encoded
}

/// The PIN in a block, for a comparison.
///
/// # Errors
/// When it is not a block for this PAN under this key. An altered block or another PAN decrypts to random bits, which pass
/// for a PIN about once in 17 million, nearly always for one of 12 digits.
pub fn decoded(key: &AesKey, block: &PinBlock, pan: &Pan) -> Result<Pin, Malformed> {
    let mut field = Zeroizing::new(block.0);
    key.decrypt(&mut field);
    mix(&mut field, pan);
    key.decrypt(&mut field);

    let length = usize::from(nibble(&*field, 1));
    if nibble(&*field, 0) != FORMAT || !(Pin::MIN..=Pin::MAX).contains(&length) {
        return Err(Malformed);
    }
    let mut digits = Zeroizing::new([0; Pin::MAX]);
    for (at, digit) in digits.iter_mut().enumerate().take(length) {
        *digit = nibble(&*field, 2 + at);
    }
    let filled = (2 + length..16).all(|at| nibble(&*field, at) == FILL);
    let pin = Pin::from_digits(&digits[..length]).map_err(|_| Malformed)?;
    if filled { Ok(pin) } else { Err(Malformed) }
}

/// The same PIN for the same PAN under another key.
///
/// # Errors
/// When it is not a block for this PAN under the first key.
pub fn translated(
    from: &AesKey,
    block: &PinBlock,
    pan: &Pan,
    to: &AesKey,
    random: [u8; 8],
) -> Result<PinBlock, Malformed> {
    Ok(encoded(to, &decoded(from, block, pan)?, pan, random))
}

/// Control, length, PIN, fill; eight random bytes.
fn pin_field(pin: &Pin, random: [u8; 8]) -> Zeroizing<[u8; 16]> {
    let mut nibbles = Zeroizing::new([FILL; 16]);
    nibbles[0] = FORMAT;
    nibbles[1] = u8::try_from(pin.digits().len()).unwrap_or(0);
    nibbles[2..2 + pin.digits().len()].copy_from_slice(pin.digits());
    let mut field = Zeroizing::new([0; 16]);
    field[..8].copy_from_slice(&*Zeroizing::new(packed::<8>(&*nibbles)));
    field[8..].copy_from_slice(&random);
    field
}

/// Adds the PAN field: the PAN's length less 12, the PAN, zeros.
fn mix(block: &mut [u8; 16], pan: &Pan) {
    let mut nibbles = Zeroizing::new([0; 32]);
    nibbles[0] = u8::try_from(pan.digits().len().saturating_sub(12)).unwrap_or(0);
    nibbles[1..=pan.digits().len()].copy_from_slice(pan.digits());
    let field = Zeroizing::new(packed::<16>(&*nibbles));
    for (byte, with) in block.iter_mut().zip(*field) {
        *byte ^= with;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pin::dukpt::Usage;
    use crate::pin::dukpt::tests::transaction;

    const RANDOM: [u8; 8] = [0x2F, 0x69, 0xAD, 0xDE, 0x2E, 0x9E, 0x7A, 0xCE];

    fn pan() -> Pan {
        Pan::new("4111111111111111").expect("a PAN")
    }

    fn pin() -> Pin {
        Pin::new("1234").expect("a PIN")
    }

    /// ANSI X9.24-3:2017 supplement, PIN 1234, PAN 4111111111111111.
    #[test]
    fn blocks_are_those_of_the_supplement() {
        for (counter, expected) in [
            (1, "A912150391AB65A67E52883D81CE2D15"),
            (2, "52A00503BD34BA1383F6A7EE9FE2547F"),
            (3, "A5A27E82B43A9A866A93D7ABE89CEF93"),
        ] {
            let key = transaction(counter).working_key(Usage::PinEncryption);
            let block = encoded(&key, &pin(), &pan(), RANDOM);
            assert_eq!(hex::encode_upper(block.0), expected, "counter {counter}");
            assert_eq!(decoded(&key, &block, &pan()).expect("a PIN").digits(), [1, 2, 3, 4]);
        }
    }

    /// psec 1.3.0, a PAN of 19 digits (its check digit is none, so only the mathematics can be compared).
    #[test]
    fn a_19_digit_pan_is_mixed_in_whole() {
        let key = AesKey::new(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xAA\xBB\xCC\xDD\xEE\xFF");
        let pan = Pan::unchecked("1234567890123456789");
        let block = encoded(&key, &pin(), &pan, [0xFF; 8]);
        assert_eq!(hex::encode_upper(block.0), "28B41FDDD29B743E93124BD8E32D921E");
    }

    #[test]
    fn pins_of_every_length_come_back() {
        let key = AesKey::new([7; 16]);
        for length in Pin::MIN..=Pin::MAX {
            let pin = Pin::from_digits(&[9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0][..length]).expect("a PIN");
            let found = decoded(&key, &encoded(&key, &pin, &pan(), [3; 8]), &pan()).expect("a PIN");
            assert_eq!(found.digits(), pin.digits());
        }
    }

    #[test]
    fn another_key_pan_or_bit_is_malformed() {
        let key = AesKey::new([7; 16]);
        let block = encoded(&key, &pin(), &pan(), [3; 8]);
        let other_pan = Pan::new("4111111111111129").expect("a PAN");
        assert_eq!(decoded(&AesKey::new([8; 16]), &block, &pan()).map(|_| ()), Err(Malformed));
        assert_eq!(decoded(&key, &block, &other_pan).map(|_| ()), Err(Malformed));
        for bit in 0..128 {
            let mut altered = PinBlock(block.0);
            altered.0[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decoded(&key, &altered, &pan()).map(|_| ()), Err(Malformed), "bit {bit}");
        }
    }

    #[test]
    fn fields_that_no_pin_pad_makes_are_malformed() {
        let key = AesKey::new([7; 16]);
        let good = *pin_field(&pin(), [3; 8]);
        let with = |at: usize, byte: u8| {
            let mut field = good;
            field[at] = byte;
            key.encrypt(&mut field);
            mix(&mut field, &pan());
            key.encrypt(&mut field);
            decoded(&key, &PinBlock(field), &pan()).map(|_| ())
        };
        assert_eq!(with(15, 0), Ok(()), "the random half says nothing");
        for (at, byte, why) in [
            (0, 0x34, "format 3"),
            (0, 0x43, "three digits"),
            (0, 0x4D, "thirteen digits"),
            (0, 0x45, "a digit of the fill"),
            (2, 0x3A, "a digit above nine"),
            (7, 0xAB, "another fill"),
        ] {
            assert_eq!(with(at, byte), Err(Malformed), "{why}");
        }
    }

    #[test]
    fn a_translated_block_holds_the_same_pin_for_the_same_pan() {
        let (terminal, zone) = (AesKey::new([7; 16]), AesKey::new([9; 16]));
        let block = encoded(&terminal, &pin(), &pan(), [3; 8]);
        let zoned = translated(&terminal, &block, &pan(), &zone, [4; 8]).expect("a block");
        assert_eq!(decoded(&zone, &zoned, &pan()).expect("a PIN").digits(), [1, 2, 3, 4]);
        assert!(translated(&zone, &block, &pan(), &terminal, [4; 8]).is_err());
    }
}
