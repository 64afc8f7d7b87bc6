//! Key blocks of ANSI X9.143 (TR-31), version D: how banks send each other keys, and how a terminal's initial key travels to
//! where it is injected (PCI PIN requirement 18-3).
//!
//! `header | optional blocks | encrypted length, key and padding | code`, all in ASCII. Two keys derived from the key block
//! protection key (KBPK) encrypt and authenticate (NIST SP 800-108 over AES-CMAC); the code, over header and clear payload,
//! is the initialisation vector too, so that neither can be altered. KBPKs here are AES-128.

use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::key::AesKey;

/// Why a block is not taken. It does not quote the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not a key block of version D: {0}")]
    Form(&'static str),
    #[error("made under another key block protection key, or altered")]
    Code,
}

/// What a block says of its key: bound to it by the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Table 6: `B0` base derivation key, `B1` initial DUKPT key, `V2` PIN verification by PVV, `P0` PIN encryption.
    pub usage: [u8; 2],
    /// `A` AES, `T` triple DES.
    pub algorithm: u8,
}

const HEADER: usize = 16;
const CODE: usize = 16;
/// Length, key of at most 32 bytes, padding: always as long, so that nothing is told of the key's length.
const PAYLOAD: usize = 48;
/// The longest block taken, in characters.
const BLOCK_MAX: usize = 1024;

struct Derived {
    encryption: AesKey,
    authentication: AesKey,
}

impl Derived {
    fn of(kbpk: &AesKey) -> Self {
        // Counter 1, purpose (0 encryption, 1 authentication), separator, AES-128, 128 bits.
        let derive = |purpose| AesKey::new(kbpk.cmac(&[0x01, 0x00, purpose, 0x00, 0x00, 0x02, 0x00, 0x80]));
        Self { encryption: derive(0), authentication: derive(1) }
    }
}

/// The key in a block.
///
/// # Errors
/// When the text is no block of version D, or its code is not of this protection key.
pub fn unwrapped(kbpk: &AesKey, block: &str) -> Result<(Attributes, Zeroizing<Vec<u8>>), Error> {
    let bytes = block.as_bytes();
    if !block.is_ascii() || bytes.len() > BLOCK_MAX || bytes.len() < HEADER + 2 * (16 + CODE) {
        return Err(Error::Form("its length"));
    }
    if bytes[0] != b'D' {
        return Err(Error::Form("another version"));
    }
    if block[1..5].parse() != Ok(bytes.len()) {
        return Err(Error::Form("it says another length"));
    }
    let body = after_optional(block)?;
    let hidden = hex::decode(&block[body..]).map_err(|_| Error::Form("not hexadecimal"))?;
    let (payload, code) = hidden.split_last_chunk::<CODE>().ok_or(Error::Form("its length"))?;
    let (chunks @ [_, ..], []) = payload.as_chunks::<16>() else { return Err(Error::Form("its length")) };

    let keys = Derived::of(kbpk);
    let mut clear = Zeroizing::new(Vec::with_capacity(payload.len()));
    let mut before = code;
    for chunk in chunks {
        let mut plain = Zeroizing::new(*chunk);
        keys.encryption.decrypt(&mut plain);
        clear.extend(plain.iter().zip(before).map(|(a, b)| a ^ b));
        before = chunk;
    }
    let signed = Zeroizing::new([&bytes[..body], &clear].concat());
    if !bool::from(keys.authentication.cmac(&signed).ct_eq(code)) {
        return Err(Error::Code);
    }
    let bits = usize::from(clear[0]) << 8 | usize::from(clear[1]);
    let key = clear.get(2..2 + bits / 8).filter(|key| bits % 8 == 0 && !key.is_empty());
    let key = key.ok_or(Error::Form("the key's length"))?;
    Ok((Attributes { usage: [bytes[5], bytes[6]], algorithm: bytes[7] }, Zeroizing::new(key.to_vec())))
}

/// Where the encrypted part begins.
fn after_optional(block: &str) -> Result<usize, Error> {
    let count: usize = block[12..14].parse().map_err(|_| Error::Form("optional blocks"))?;
    let mut at = HEADER;
    for _ in 0..count {
        let length = block.get(at + 2..at + 4).and_then(|digits| usize::from_str_radix(digits, 16).ok());
        // A length of 0 announces an extended one, which no key of ours has.
        at += length.filter(|&length| length >= 4).ok_or(Error::Form("optional blocks"))?;
    }
    if at < block.len() { Ok(at) } else { Err(Error::Form("optional blocks")) }
}

/// A block with a terminal's initial key and its identifier (optional block `IK`), for key derivation only and not to be
/// exported further. The random bytes are new for each.
#[must_use]
pub fn wrapped_initial_key(kbpk: &AesKey, id: &[u8; 8], key: &AesKey, random: &[u8; PAYLOAD - 18]) -> String {
    let optional = format!("IK14{}PB0C00000000", hex::encode_upper(id));
    let length = HEADER + optional.len() + 2 * (PAYLOAD + CODE);
    let header = format!("D{length:04}B1AX00N0200{optional}");
    let mut payload = Zeroizing::new([0; PAYLOAD]);
    payload[..2].copy_from_slice(&128_u16.to_be_bytes());
    payload[2..18].copy_from_slice(key.expose());
    payload[18..].copy_from_slice(random);

    let keys = Derived::of(kbpk);
    let mut signed = Zeroizing::new([header.as_bytes(), &*payload].concat());
    let code = keys.authentication.cmac(&signed);
    signed.zeroize();
    let (mut before, mut hidden) = (code, String::new());
    for chunk in payload.as_chunks::<16>().0 {
        for (byte, clear) in before.iter_mut().zip(chunk) {
            *byte ^= clear;
        }
        keys.encryption.encrypt(&mut before);
        hidden += &hex::encode_upper(before);
    }
    format!("{header}{hidden}{}", hex::encode_upper(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hex: &str) -> AesKey {
        AesKey::new(hex::decode(hex).expect("hex").try_into().expect("16 bytes"))
    }

    const KBPK: &str = "88E1AB2A2E3DD38C1FA8A2CD2F7B7D3C";
    const BDK: &str = "FEDCBA9876543210F1F1F1F1F1F1F1F1";

    /// Made by psec 1.3.0: a base derivation key.
    const BY_PSEC: &str = "D0144B0AX00E0000B3B57B1A4F78AB777E0DBAE46315F4EF4B094A528641B5BA1F0C623E356724728AA1788B19959F29\
                           76B1138ED826F1618E61E00D6DD8E5B38D73D0112355C3D8";

    #[test]
    fn a_block_made_by_others_is_unwrapped() {
        let (attributes, found) = unwrapped(&key(KBPK), BY_PSEC).expect("a block");
        assert_eq!((attributes.usage, attributes.algorithm), (*b"B0", b'A'));
        assert_eq!(hex::encode_upper(&*found), BDK);
    }

    #[test]
    fn an_altered_block_or_another_key_is_refused() {
        assert_eq!(unwrapped(&key(BDK), BY_PSEC).map(|_| ()), Err(Error::Code));
        for at in 0..BY_PSEC.len() {
            let mut altered = BY_PSEC.to_owned().into_bytes();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert!(unwrapped(&key(KBPK), &altered).is_err(), "character {at}");
        }
        for length in 0..BY_PSEC.len() {
            assert!(unwrapped(&key(KBPK), &BY_PSEC[..length]).is_err(), "{length} characters");
        }
        assert!(unwrapped(&key(KBPK), &"é".repeat(72)).is_err());
        // A code and nothing that it is over.
        let bare = format!("D0096B0AX00N0100KS30{}", "0".repeat(44 + 32));
        assert_eq!(unwrapped(&key(KBPK), &bare).map(|_| ()), Err(Error::Form("its length")));
        // Optional blocks that lead out of the block.
        assert!(unwrapped(&key(KBPK), &BY_PSEC.replacen("E0000", "E9900", 1)).is_err());
    }

    #[test]
    fn an_initial_key_comes_back_with_its_usage() {
        let id = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];
        let block = wrapped_initial_key(&key(KBPK), &id, &key(BDK), &[0x5A; 30]);
        // psec 1.3.0 makes the same of it, with the same padding.
        let by_psec = "D0176B1AX00N0200IK141234567890123456PB0C00000000A3578CF775E80F81B1B3313ED63CB2B2FAC5B496AA22CB36\
                       2535AC183FBB84E9955F27F77E1F0B2A078CC6B4C08C04BABEA493151AA73B9E230143E366FABC11";
        assert_eq!(block, by_psec);
        let (attributes, found) = unwrapped(&key(KBPK), &block).expect("a block");
        assert_eq!((attributes.usage, hex::encode_upper(&*found).as_str()), (*b"B1", BDK));
    }
}
