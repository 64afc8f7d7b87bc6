//! The terminal's half: what a PIN pad and its application compute, for simulated terminals and for tests.
//!
//! Of a real terminal's rules only the mathematics are here. A real one erases each key as it uses it (X9.24-3 §6.4), so
//! that whoever opens it finds no key of the past; this one keeps its initial key.

use super::dukpt::{BadCounter, Transaction, Usage};
use super::key::AesKey;
use super::{Pin, block, card_data};
use crate::card::{Expiry, Ksn, Mac, Pan, PinBlock};

/// What was injected into a terminal: an initial key and its name.
#[derive(Debug)]
pub struct Injected {
    key: AesKey,
    id: [u8; 8],
}

impl Injected {
    #[must_use]
    pub fn new(key: AesKey, id: [u8; 8]) -> Self {
        Self { key, id }
    }

    /// The keys of the transaction with this counter.
    ///
    /// # Errors
    /// When the counter is none (see [`super::dukpt::next_counter`]).
    pub fn transaction(&self, counter: u32) -> Result<Transaction, BadCounter> {
        Transaction::under_initial_key(&self.key, Ksn { initial_key_id: self.id, counter })
    }
}

impl Transaction {
    /// The PIN block of a request. The random bytes are new for every block.
    #[must_use]
    pub fn pin_block(&self, pin: &Pin, pan: &Pan, random: [u8; 8]) -> PinBlock {
        block::encoded(&self.working_key(Usage::PinEncryption), pin, pan, random)
    }

    /// The block of card data of a request.
    #[must_use]
    pub fn card_data(&self, pan: &Pan, expiry: Expiry) -> [u8; 16] {
        card_data::encrypted(&self.working_key(Usage::DataEncryption), pan, expiry)
    }

    /// The code over a request's body.
    #[must_use]
    pub fn request_mac(&self, body: &[u8]) -> Mac {
        self.working_key(Usage::MacGeneration).mac(body)
    }

    /// The code over a receipt's body. A terminal compares it with the one that came.
    #[must_use]
    pub fn receipt_mac(&self, body: &[u8]) -> Mac {
        self.working_key(Usage::MacVerification).mac(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pin::dukpt::initial_key;
    use crate::pin::dukpt::tests::{IKID, bdk, transaction};

    #[test]
    fn what_the_terminal_makes_the_host_reads() {
        let terminal = Injected::new(initial_key(&bdk(), &IKID), IKID).transaction(5).expect("a counter");
        let host = transaction(5);
        let (pan, pin) = (Pan::new("4111111111111111").expect("a PAN"), Pin::new("1234").expect("a PIN"));

        let expiry = Expiry { year: 30, month: 12 };
        let card = card_data::decrypted(&host.working_key(Usage::DataEncryption), &terminal.card_data(&pan, expiry));
        assert_eq!(card.expect("a card").0.digits(), pan.digits());

        let block = terminal.pin_block(&pin, &pan, [1; 8]);
        let found = block::decoded(&host.working_key(Usage::PinEncryption), &block, &pan);
        assert_eq!(found.expect("a PIN").digits(), pin.digits());

        assert_eq!(terminal.request_mac(b"body"), host.request_mac(b"body"));
        assert_ne!(terminal.request_mac(b"body"), host.request_mac(b"bodY"));
        assert_ne!(terminal.request_mac(b"body"), host.receipt_mac(b"body"), "a code cannot be sent back");
        assert!(Injected::new(initial_key(&bdk(), &IKID), IKID).transaction(0x1_FFFF).is_err());
    }

    /// The first eight bytes of the supplement's codes for counter 1.
    #[test]
    fn codes_are_cut_to_eight_bytes() {
        let terminal = transaction(1);
        assert_eq!(hex::encode_upper(terminal.request_mac(b"4012345678909D987").0), "A2EB5C1C35809E58");
        assert_eq!(hex::encode_upper(terminal.receipt_mac(b"4012345678909D987").0), "DD4E1895FD9BF53D");
    }
}
