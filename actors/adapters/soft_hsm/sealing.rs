//! AES-256-GCM with a random nonce: how keys lie in the database and how PANs travel to the core.
//!
//! `version (1 byte) | nonce (12) | ciphertext | tag (16)`. The associated data say what was sealed, so that nothing sealed
//! can take another's place. With random nonces one key seals at most 2³² times (NIST SP 800-38D §8.3); a bank with a
//! million sealed PANs a day is there after eleven years.

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use zeroize::Zeroizing;

use crate::ports::HsmError;

const VERSION: u8 = 1;
const NONCE: usize = 12;

/// The value was sealed under another key, for another place, or altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOurs;

pub(super) fn sealed(key: &[u8; 32], what: &str, clear: &[u8]) -> Result<Vec<u8>, HsmError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|error| HsmError::Fault(format!("no random bytes: {error}")))?;
    let payload = Payload { msg: clear, aad: what.as_bytes() };
    let hidden = Aes256Gcm::new(key.into())
        .encrypt(&nonce.into(), payload)
        .map_err(|_| HsmError::Fault("cannot seal".to_owned()))?;
    Ok([&[VERSION], &nonce[..], &hidden].concat())
}

pub(super) fn opened(key: &[u8; 32], what: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOurs> {
    let (&VERSION, rest) = sealed.split_first().ok_or(NotOurs)? else { return Err(NotOurs) };
    let (nonce, hidden) = rest.split_first_chunk::<NONCE>().ok_or(NotOurs)?;
    let payload = Payload { msg: hidden, aad: what.as_bytes() };
    Aes256Gcm::new(key.into()).decrypt(nonce.into(), payload).map(Zeroizing::new).map_err(|_| NotOurs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_in_its_place_alone() {
        let value = sealed(&[7; 32], "here", b"4111111111111111").expect("sealed");
        assert_eq!(opened(&[7; 32], "here", &value).expect("opened").as_slice(), b"4111111111111111");
        assert!(opened(&[8; 32], "here", &value).is_err(), "another key");
        assert!(opened(&[7; 32], "there", &value).is_err(), "another place");
        for at in 0..value.len() {
            let mut altered = value.clone();
            altered[at] ^= 1;
            assert!(opened(&[7; 32], "here", &altered).is_err(), "byte {at}");
            assert!(opened(&[7; 32], "here", &value[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn the_same_is_never_sealed_the_same() {
        assert_ne!(sealed(&[7; 32], "here", b"x"), sealed(&[7; 32], "here", b"x"));
    }
}
