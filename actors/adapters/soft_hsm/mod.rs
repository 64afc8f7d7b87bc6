//! An HSM in software: keys sealed in the database under a master key from outside, in clear only in this process' memory.
//!
//! For development and for a bank that has no HSM yet. It cannot meet PCI PIN, which asks for hardware; the README says so.
//! What it does keep: no verb gives out a PIN; keys are wiped when they are dropped; a sealed key is bound to its name,
//! usage and to whether it is a sandbox key, and opens in no other row.

mod master;
mod sealing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed, Token};
use wakala::pin::dukpt::{self, Transaction, Usage};
use wakala::pin::key::{AesKey, TdesKey};
use wakala::pin::pvv::{self, Pvv};
use wakala::pin::{block, card_data, tr31};
use zeroize::{ZeroizeOnDrop, Zeroizing};

pub use self::master::{Master, MasterError, Source};
use crate::ports::{Custody, Hsm, HsmError, KeyBlock, KeyBytes, KeyError, KeyName, PinReference, PinVerdict};
use crate::store::{self, Store};

/// The keys' keeper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where the master key comes from: `{ credential = "NAME" }`, `{ file = "PATH" }` or `{ environment = "NAME" }`.
    pub master: Source,
}

/// The soft HSM.
pub struct SoftHsm {
    master: Master,
    /// Sandbox keys are loaded on a node in sandbox mode, and no others.
    sandbox: bool,
    keys: RwLock<Arc<Keys>>,
}

impl fmt::Debug for SoftHsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftHsm").field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

/// Why it did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Master(#[from] MasterError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What was loaded.
#[derive(Default)]
struct Keys {
    base: BTreeMap<[u8; 4], AesKey>,
    verification: BTreeMap<u8, TdesKey>,
    zones: BTreeMap<Box<str>, AesKey>,
    protection: BTreeMap<Box<str>, AesKey>,
    token: Option<Secret>,
    seal: Option<Secret>,
    check_values: BTreeMap<String, String>,
}

/// A 32-byte key of our own.
#[derive(ZeroizeOnDrop)]
struct Secret([u8; 32]);

/// What a sealed PAN is bound to.
const SEALED_PAN: &str = "wakala pan 1";

impl SoftHsm {
    /// Reads the master key. No other key is here until [`Custody::load`].
    ///
    /// # Errors
    /// When there is no master key.
    pub fn unlock(options: &Options, sandbox: bool) -> Result<Self, MasterError> {
        Ok(Self { master: Master::read(&options.master)?, sandbox, keys: RwLock::default() })
    }

    /// Reads the master key and loads the keys of the database.
    ///
    /// # Errors
    /// When there is no master key, no database, or a key that does not open.
    pub async fn open(store: &Store, options: &Options, sandbox: bool) -> Result<Self, OpenError> {
        let hsm = Self::unlock(options, sandbox)?;
        hsm.load(&store.key_blocks().await?)?;
        Ok(hsm)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn seal(&self, name: &KeyName, key: &[u8], check_value: String, sandbox: bool) -> Result<KeyBlock, KeyError> {
        let sealed = sealing::sealed(self.master.bytes(), &place(name, sandbox), key)?;
        Ok(KeyBlock { name: name.clone(), check_value, sealed, sandbox })
    }
}

/// What a sealed key is bound to: the version of the sealing, its name, its usage, its mode.
fn place(name: &KeyName, sandbox: bool) -> String {
    format!("wakala key 1|{name}|{}|{}", name.usage(), if sandbox { "sandbox" } else { "real" })
}

/// How long a key of this name is, in bytes.
fn length(name: &KeyName) -> usize {
    match name {
        KeyName::BaseDerivation(_) | KeyName::PinVerification(_) | KeyName::Zone(_) | KeyName::Protection(_) => 16,
        KeyName::CardToken | KeyName::CardSeal => 32,
    }
}

impl Keys {
    /// Takes in one more and gives its check value.
    fn add(&mut self, name: &KeyName, clear: &[u8]) -> Result<String, KeyError> {
        let short = || clear.try_into().map_err(|_| KeyError::NotAKey("it must have 16 bytes"));
        let long = || clear.try_into().map(Secret).map_err(|_| KeyError::NotAKey("it must have 32 bytes"));
        let check_value = match name {
            KeyName::BaseDerivation(id) => {
                let key = AesKey::new(short()?);
                let check_value = key.check_value().to_string();
                self.base.insert(*id, key);
                check_value
            }
            KeyName::PinVerification(index) => {
                let key = TdesKey::new(short()?);
                if !key.is_double() {
                    return Err(KeyError::NotAKey("its halves are equal, which is single DES"));
                }
                let check_value = key.check_value().to_string();
                self.verification.insert(*index, key);
                check_value
            }
            KeyName::Zone(core) => {
                let key = AesKey::new(short()?);
                let check_value = key.check_value().to_string();
                self.zones.insert(core.clone(), key);
                check_value
            }
            KeyName::Protection(other) => {
                let key = AesKey::new(short()?);
                let check_value = key.check_value().to_string();
                self.protection.insert(other.clone(), key);
                check_value
            }
            KeyName::CardToken => of_secret(self.token.insert(long()?)),
            KeyName::CardSeal => of_secret(self.seal.insert(long()?)),
        };
        self.check_values.insert(name.to_string(), check_value.clone());
        Ok(check_value)
    }

    fn transaction(&self, ksn: &Ksn) -> Result<Transaction, HsmError> {
        let [a, b, c, d, ..] = ksn.initial_key_id;
        let id = [a, b, c, d];
        let unknown = || HsmError::UnknownKey(KeyName::BaseDerivation(id).to_string());
        let base = self.base.get(&id).ok_or_else(unknown)?;
        Transaction::under_base_key(base, *ksn).map_err(|_| HsmError::BadCounter)
    }

    fn protection(&self, name: &KeyName) -> Result<&AesKey, HsmError> {
        let unknown = || HsmError::UnknownKey(name.to_string());
        let KeyName::Protection(of) = name else { return Err(unknown()) };
        self.protection.get(of).ok_or_else(unknown)
    }

    fn initial_key(&self, id: &[u8; 8]) -> Result<AesKey, HsmError> {
        let [a, b, c, d, ..] = *id;
        let name = KeyName::BaseDerivation([a, b, c, d]);
        let base = self.base.get(&[a, b, c, d]).ok_or_else(|| HsmError::UnknownKey(name.to_string()))?;
        Ok(dukpt::initial_key(base, id))
    }

    fn token(&self, pan: &Pan) -> Result<Token, HsmError> {
        let key = self.token.as_ref().ok_or_else(|| HsmError::Fault(missing(&KeyName::CardToken)))?;
        let mut hash = hmac(key);
        for digit in pan.digits() {
            hash.update(&[b'0' + digit]);
        }
        let mut token = [0; 16];
        token.copy_from_slice(&hash.finalize().into_bytes()[..16]);
        Ok(Token(token))
    }

    fn seal_key(&self) -> Result<&[u8; 32], HsmError> {
        self.seal.as_ref().map(|key| &key.0).ok_or_else(|| HsmError::Fault(missing(&KeyName::CardSeal)))
    }

    fn open_pan(&self, sealed: &Sealed) -> Result<Pan, HsmError> {
        let digits = sealing::opened(self.seal_key()?, SEALED_PAN, &sealed.0)
            .map_err(|_| HsmError::Fault("a sealed PAN that is not one of ours".to_owned()))?;
        let text = std::str::from_utf8(&digits).map_err(|_| HsmError::BadCard)?;
        Pan::new(text).map_err(|_| HsmError::BadCard)
    }
}

fn missing(name: &KeyName) -> String {
    format!("the key {name} is missing: wakala keys generate {name}")
}

fn hmac(key: &Secret) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length (RFC 2104 §2)")]
    Hmac::new_from_slice(&key.0).expect("HMAC takes any key")
}

/// The check value of a key of our own: the first three bytes of the HMAC of nothing, as ANSI X9.24-1:2017 has it for
/// HMAC keys. Nobody else holds such a key; it tells one's own apart.
fn of_secret(key: &Secret) -> String {
    hex::encode_upper(&hmac(key).finalize().into_bytes()[..3])
}

impl Hsm for SoftHsm {
    fn read_card(&self, ksn: &Ksn, data: &[u8; 16]) -> Result<CardRef, HsmError> {
        let keys = self.keys();
        let data_key = keys.transaction(ksn)?.working_key(Usage::DataEncryption);
        let (pan, expiry) = card_data::decrypted(&data_key, data).map_err(|_| HsmError::BadCard)?;
        let digits: Zeroizing<Vec<u8>> = Zeroizing::new(pan.digits().iter().map(|digit| b'0' + digit).collect());
        let sealed = sealing::sealed(keys.seal_key()?, SEALED_PAN, &digits)?;
        Ok(CardRef { token: keys.token(&pan)?, masked: pan.masked(), sealed: Sealed(sealed.into()), expiry })
    }

    fn verify_pin(
        &self,
        ksn: &Ksn,
        block: &PinBlock,
        card: &CardRef,
        reference: &PinReference,
    ) -> Result<PinVerdict, HsmError> {
        let keys = self.keys();
        let PinReference::Pvv { index, value } = reference;
        let unknown = || HsmError::UnknownKey(KeyName::PinVerification(*index).to_string());
        let verification_key = keys.verification.get(index).ok_or_else(unknown)?;
        let pan = keys.open_pan(&card.sealed)?;
        let pin_key = keys.transaction(ksn)?.working_key(Usage::PinEncryption);
        let Ok(pin) = block::decoded(&pin_key, block, &pan) else { return Ok(PinVerdict::Malformed) };
        match pvv::verified(verification_key, *index, &pan, &pin, Pvv(*value)) {
            true => Ok(PinVerdict::Correct),
            false => Ok(PinVerdict::Wrong),
        }
    }

    fn translate_pin(&self, ksn: &Ksn, block: &PinBlock, card: &CardRef, to: &str) -> Result<PinBlock, HsmError> {
        let keys = self.keys();
        let unknown = || HsmError::UnknownKey(KeyName::Zone(to.into()).to_string());
        let zone_key = keys.zones.get(to).ok_or_else(unknown)?;
        let pan = keys.open_pan(&card.sealed)?;
        let pin_key = keys.transaction(ksn)?.working_key(Usage::PinEncryption);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| HsmError::Fault(format!("no random bytes: {error}")))?;
        block::translated(&pin_key, block, &pan, zone_key, random)
            .map_err(|_| HsmError::Fault("the block is not one of this card under this key".to_owned()))
    }

    fn verify_mac(&self, ksn: &Ksn, message: &[u8], mac: &Mac) -> Result<bool, HsmError> {
        Ok(self.keys().transaction(ksn)?.request_mac(message) == *mac)
    }

    fn generate_mac(&self, ksn: &Ksn, message: &[u8]) -> Result<Mac, HsmError> {
        Ok(self.keys().transaction(ksn)?.receipt_mac(message))
    }

    fn open_pan(&self, sealed: &Sealed) -> Result<Pan, HsmError> {
        self.keys().open_pan(sealed)
    }

    fn check_value(&self, name: &str) -> Result<String, HsmError> {
        self.keys().check_values.get(name).cloned().ok_or_else(|| HsmError::UnknownKey(name.to_owned()))
    }
}

impl Custody for SoftHsm {
    fn load(&self, blocks: &[KeyBlock]) -> Result<(), KeyError> {
        let mut keys = Keys::default();
        for block in blocks.iter().filter(|block| block.sandbox == self.sandbox) {
            let unreadable = |why| KeyError::Unreadable { name: block.name.clone(), why };
            let clear = sealing::opened(self.master.bytes(), &place(&block.name, block.sandbox), &block.sealed)
                .map_err(|_| unreadable("sealed under another master key, or altered"))?;
            let check_value = keys.add(&block.name, &clear)?;
            if check_value != block.check_value {
                return Err(unreadable("its check value is not the one beside it"));
            }
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    fn generate(&self, name: &KeyName, sandbox: bool) -> Result<KeyBlock, KeyError> {
        let mut key = KeyBytes(Zeroizing::new(vec![0; length(name)]));
        getrandom::fill(&mut key.0).map_err(|error| HsmError::Fault(format!("no random bytes: {error}")))?;
        if matches!(name, KeyName::PinVerification(_)) {
            with_odd_parity(&mut key.0);
        }
        self.import(name, &key, sandbox)
    }

    fn import(&self, name: &KeyName, key: &KeyBytes, sandbox: bool) -> Result<KeyBlock, KeyError> {
        if key.0.iter().all(|byte| Some(byte) == key.0.first()) {
            return Err(KeyError::NotAKey("all its bytes are the same"));
        }
        let check_value = Keys::default().add(name, &key.0)?;
        self.seal(name, &key.0, check_value, sandbox)
    }

    fn import_block(&self, name: &KeyName, block: &str, under: &KeyName, sandbox: bool) -> Result<KeyBlock, KeyError> {
        let (attributes, key) =
            tr31::unwrapped(self.keys().protection(under)?, block).map_err(|error| match error {
                tr31::Error::Form(what) => KeyError::NotAKey(what),
                tr31::Error::Code => KeyError::NotAKey("its block was made under another protection key, or altered"),
            })?;
        let algorithm = if matches!(name, KeyName::PinVerification(_)) { b'T' } else { b'A' };
        if attributes.usage != name.usage().as_bytes() || attributes.algorithm != algorithm {
            return Err(KeyError::NotAKey("its block says that it is for something else"));
        }
        self.import(name, &KeyBytes(key), sandbox)
    }

    fn initial_key_block(&self, id: &[u8; 8], under: &KeyName) -> Result<String, KeyError> {
        let keys = self.keys();
        let mut random = [0; 30];
        getrandom::fill(&mut random).map_err(|error| HsmError::Fault(format!("no random bytes: {error}")))?;
        Ok(tr31::wrapped_initial_key(keys.protection(under)?, id, &keys.initial_key(id)?, &random))
    }

    fn initial_key(&self, id: &[u8; 8]) -> Result<KeyBytes, KeyError> {
        if !self.sandbox {
            return Err(KeyError::Refused("an initial key leaves in clear only where all keys are sandbox keys"));
        }
        Ok(KeyBytes(Zeroizing::new(self.keys().initial_key(id)?.expose().to_vec())))
    }

    fn token(&self, pan: &Pan) -> Result<Token, HsmError> {
        self.keys().token(pan)
    }
}

/// DES keys have an odd number of ones in every byte (FIPS 46-3); some HSMs refuse others.
fn with_odd_parity(key: &mut [u8]) {
    for byte in key {
        *byte = *byte & 0xFE | u8::from((*byte >> 1).count_ones().is_multiple_of(2));
    }
}

#[cfg(test)]
mod tests;
