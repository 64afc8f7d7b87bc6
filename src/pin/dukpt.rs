//! Derived unique key per transaction with AES-128: ANSI X9.24-3:2017.
//!
//! A terminal holds an initial key, derived from the bank's base derivation key (BDK) and the terminal's initial key
//! identifier (IKID). Every transaction has a counter, and the key of a counter is derived from the initial key by one step
//! for each bit that is set in it, the highest first. From that key come the working keys, one for each usage. Nobody can
//! go back from a working key to any other.
//!
//! Usages are named from the terminal's side, as in the standard: it generates codes for its requests, and verifies those of
//! its receipts.

use zeroize::Zeroize as _;

use super::key::AesKey;
use crate::card::Ksn;

/// What a working key is for, by the number in the derivation data (X9.24-3:2017 table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Usage {
    PinEncryption = 0x1000,
    /// For the terminal's codes.
    MacGeneration = 0x2000,
    /// For the codes that the terminal verifies.
    MacVerification = 0x2001,
    /// For what the terminal encrypts.
    DataEncryption = 0x3000,
}

/// The steps of the derivation itself.
const KEY_DERIVATION: u16 = 0x8000;
const INITIAL_KEY: u16 = 0x8001;

/// A counter is used only if a terminal could have derived its key in at most this many steps.
const BITS_MAX: u32 = 16;

/// The counter is zero or has more than 16 bits set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a counter is above zero and has at most 16 bits set")]
pub struct BadCounter;

/// The keys of one transaction.
#[derive(Debug)]
pub struct Transaction {
    key: AesKey,
    ksn: Ksn,
}

impl Transaction {
    /// The host's way: it has the base derivation key.
    ///
    /// # Errors
    /// When no terminal may use this counter.
    pub fn under_base_key(bdk: &AesKey, ksn: Ksn) -> Result<Self, BadCounter> {
        Self::under_initial_key(&initial_key(bdk, &ksn.initial_key_id), ksn)
    }

    /// The terminal's way: it has its initial key.
    ///
    /// # Errors
    /// When no terminal may use this counter.
    pub fn under_initial_key(initial: &AesKey, ksn: Ksn) -> Result<Self, BadCounter> {
        if !is_counter(ksn.counter) {
            return Err(BadCounter);
        }
        let mut key = AesKey::new(*initial.expose());
        let mut walked = 0_u32;
        for bit in (0..u32::BITS).rev().map(|place| 1_u32 << place).filter(|bit| ksn.counter & bit != 0) {
            walked |= bit;
            key = derived(&key, KEY_DERIVATION, tail(&ksn.initial_key_id, walked));
        }
        Ok(Self { key, ksn })
    }

    #[must_use]
    pub fn ksn(&self) -> Ksn {
        self.ksn
    }

    #[must_use]
    pub fn working_key(&self, usage: Usage) -> AesKey {
        derived(&self.key, usage as u16, tail(&self.ksn.initial_key_id, self.ksn.counter))
    }
}

/// The key that is injected into one terminal.
#[must_use]
pub fn initial_key(bdk: &AesKey, id: &[u8; 8]) -> AesKey {
    derived(bdk, INITIAL_KEY, *id)
}

/// Whether a terminal may use this counter.
#[must_use]
pub fn is_counter(counter: u32) -> bool {
    counter != 0 && counter.count_ones() <= BITS_MAX
}

/// The counter after this one; `None` when the initial key is used up.
#[must_use]
pub fn next_counter(counter: u32) -> Option<u32> {
    let mut next = counter.checked_add(1)?;
    while !is_counter(next) {
        // The next number with fewer bits set is one carry further.
        next = next.checked_add(1 << next.trailing_zeros())?;
    }
    Some(next)
}

/// One step: the derivation data encrypted (X9.24-3:2017 §6.3.2; one block, for the key has one block's length).
fn derived(key: &AesKey, usage: u16, tail: [u8; 8]) -> AesKey {
    let [usage_high, usage_low] = usage.to_be_bytes();
    // Version 1, key block 1, usage, algorithm AES-128, length 128 bits.
    let mut data = [0x01, 0x01, usage_high, usage_low, 0x00, 0x02, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
    data[8..].copy_from_slice(&tail);
    key.encrypt(&mut data);
    let derived = AesKey::new(data);
    data.zeroize();
    derived
}

/// The last half of the derivation data below the initial key: the derivation identifier (the last four bytes of the
/// IKID) and the counter.
fn tail(id: &[u8; 8], counter: u32) -> [u8; 8] {
    let mut tail = [0; 8];
    tail[..4].copy_from_slice(&id[4..]);
    tail[4..].copy_from_slice(&counter.to_be_bytes());
    tail
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::pin) const IKID: [u8; 8] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];

    /// The base derivation key of the standard's supplement "Test vectors", table 4.
    pub(in crate::pin) fn bdk() -> AesKey {
        key("FEDCBA9876543210F1F1F1F1F1F1F1F1")
    }

    pub(in crate::pin) fn transaction(counter: u32) -> Transaction {
        let ksn = Ksn { initial_key_id: IKID, counter };
        Transaction::under_base_key(&bdk(), ksn).expect("a counter")
    }

    fn key(hex: &str) -> AesKey {
        AesKey::new(hex::decode(hex).expect("hex").try_into().expect("16 bytes"))
    }

    fn shown(key: &AesKey) -> String {
        hex::encode_upper(key.expose())
    }

    #[test]
    fn the_initial_key_is_that_of_the_supplement() {
        assert_eq!(shown(&initial_key(&bdk(), &IKID)), "1273671EA26AC29AFA4D1084127652A1");
    }

    #[test]
    fn transaction_keys_are_those_of_the_supplement() {
        for (counter, expected) in [
            (1, "4F21B565BAD9835E112B6465635EAE44"),
            (2, "2F34D68DE10F68D38091A73B9E7C437C"),
            (3, "031504E530365CF81264238540518318"),
            (4, "0EEFC7ADA628BA68878DA9165A8A1887"),
            (5, "C2A7AC328A5DA2D6002D62465BFC028B"),
            (6, "D30F7D9351DA58448A2F5E92B4EE3B7D"),
            (7, "A8253CEED9AC042C54F75D35C8352278"),
            (8, "718EE6CF0B27E53D5F7AF99C4D8146A2"),
            (0x1_FFFE, "E21E8C8D347F8561A2BE752DAA85A111"),
            (0x2_0000, "F7AE9025468A25D37B7249CFFED224C8"),
            (0x2_0001, "692C8EA4013645135B36497131DF9D2C"),
            (0xFFFE_2000, "48E585B694EB0B18D5C35443E163C0BA"),
            (0xFFFE_4000, "396C2C7CA1EA701C03B86B7D41F0C562"),
            (0xFFFE_8000, "0387625F189B58AE03EF0E8CCA41105E"),
            (0xFFFF_0000, "F6BA59389BD14A9855BE9727E7C52E3C"),
        ] {
            assert_eq!(shown(&transaction(counter).key), expected, "counter {counter:#X}");
        }
    }

    #[test]
    fn working_keys_are_those_of_the_supplement() {
        for (counter, usage, expected) in [
            (1, Usage::PinEncryption, "AF8CB133A78F8DC2D1359F18527593FB"),
            (1, Usage::MacGeneration, "A2DC23DE6FDE0824A2BC321E08E4B8B7"),
            (1, Usage::DataEncryption, "A35C412EFD41FDB98B69797C02DCD08F"),
            (2, Usage::PinEncryption, "D30BDC73EC9714B000BEC66BDB7B6D09"),
            (3, Usage::PinEncryption, "7D69F01F3B45449F62C7816ECE723268"),
        ] {
            assert_eq!(shown(&transaction(counter).working_key(usage)), expected, "counter {counter} {usage:?}");
        }
    }

    #[test]
    fn codes_are_those_of_the_supplement() {
        let message = b"4012345678909D987";
        for (counter, request, response) in [
            (1, "A2EB5C1C35809E58404E873C3C411E31", "DD4E1895FD9BF53D8DAF25568ABF551D"),
            (2, "4D104704C53491A60944193DCAF6B411", "008CEAAE2B913BEEE76209EE9406DAC1"),
            (3, "6A18904AA8E966A03505F5EEBDAEBD82", "40CB2F0C2E043D060063FAA916A849E1"),
            (4, "77BBD3FB827158B9B12880B0794D1C74", "51FDE192BC484F769AA0A86F8BC5CB30"),
            (5, "C0CE6DA1F4434AD16EEEBF486C9616CD", "4B508F51104D184A9190061ED854200E"),
            (6, "05222AE91471C590B3A9471523324C14", "ED90BD8AE4571C75CF08EA3EA195ABF8"),
            (7, "37FA54258AAF805A44AA1273C0DF928C", "52D6C1D3A95B1D21761E20870D9A7E8C"),
            (8, "85C7CA68F55F51E7DCAC969B8C111130", "B45399DB90C0BA75DB4B86605758695A"),
        ] {
            let code = |usage| hex::encode_upper(transaction(counter).working_key(usage).cmac(message));
            assert_eq!(code(Usage::MacGeneration), request, "counter {counter}");
            assert_eq!(code(Usage::MacVerification), response, "counter {counter}");
        }
    }

    #[test]
    fn both_sides_derive_the_same() {
        let ksn = Ksn { initial_key_id: IKID, counter: 0x00C0_FFEE };
        let terminal = Transaction::under_initial_key(&initial_key(&bdk(), &IKID), ksn).expect("a counter");
        assert_eq!(shown(&terminal.key), shown(&transaction(ksn.counter).key));
    }

    #[test]
    fn counters_with_more_than_16_bits_are_none() {
        for counter in [0, 0x1_FFFF, 0xFFFF_8000, 0xFFFF_FFFF] {
            let ksn = Ksn { initial_key_id: IKID, counter };
            assert_eq!(Transaction::under_base_key(&bdk(), ksn).map(|_| ()), Err(BadCounter), "{counter:#X}");
        }
    }

    #[test]
    fn the_next_counter_skips_what_is_none() {
        for (counter, next) in [
            (0, Some(1)),
            (1, Some(2)),
            (0xFFFF, Some(0x1_0000)),
            (0x1_FFFE, Some(0x2_0000)),
            (0x2_0000, Some(0x2_0001)),
            (0xFFFE_4000, Some(0xFFFE_8000)),
            (0xFFFE_8000, Some(0xFFFF_0000)),
            (0xFFFF_0000, None),
        ] {
            assert_eq!(next_counter(counter), next, "{counter:#X}");
        }
    }
}
