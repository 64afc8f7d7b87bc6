//! An HSM that counts how often it is asked to look at a PIN, and may fail at it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed};
use wakala_node::adapters::soft_hsm::SoftHsm;
use wakala_node::ports::{Hsm, HsmError, PinReference, PinVerdict};

#[derive(Debug)]
pub(crate) struct Counting {
    inner: SoftHsm,
    asked: AtomicU32,
    broken: AtomicBool,
}

impl Counting {
    pub(crate) fn new(inner: SoftHsm) -> Self {
        Self { inner, asked: AtomicU32::new(0), broken: AtomicBool::new(false) }
    }

    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }
}

impl Hsm for Counting {
    fn read_card(&self, ksn: &Ksn, data: &[u8; 16]) -> Result<CardRef, HsmError> {
        self.inner.read_card(ksn, data)
    }

    fn verify_pin(
        &self,
        ksn: &Ksn,
        block: &PinBlock,
        card: &CardRef,
        reference: &PinReference,
    ) -> Result<PinVerdict, HsmError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(HsmError::Fault("on purpose".to_owned()));
        }
        self.inner.verify_pin(ksn, block, card, reference)
    }

    fn translate_pin(&self, ksn: &Ksn, block: &PinBlock, card: &CardRef, to: &str) -> Result<PinBlock, HsmError> {
        self.inner.translate_pin(ksn, block, card, to)
    }

    fn verify_mac(&self, ksn: &Ksn, message: &[u8], mac: &Mac) -> Result<bool, HsmError> {
        self.inner.verify_mac(ksn, message, mac)
    }

    fn generate_mac(&self, ksn: &Ksn, message: &[u8]) -> Result<Mac, HsmError> {
        self.inner.generate_mac(ksn, message)
    }

    fn open_pan(&self, sealed: &Sealed) -> Result<Pan, HsmError> {
        self.inner.open_pan(sealed)
    }

    fn check_value(&self, name: &str) -> Result<String, HsmError> {
        self.inner.check_value(name)
    }
}
