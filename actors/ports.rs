//! What the actors need from the world, as traits; `adapters/` has one driver per file.
//!
//! Postgres is not among them: it is memory (`store/`), and there is no trait and no stand-in for it.

use std::future::Future;
use std::pin::Pin;

use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed, Token};
use wakala::id::{Offset, PartitionNo, TerminalId};
use wakala::time::Time;

/// A future that any thread may wait for.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An append-only log in partitions, each in order and without gaps that a reader could notice.
pub trait Log: Send + Sync {
    /// How many partitions there are; fixed for the life of a log.
    fn partitions(&self) -> u16;

    /// Appends a record; done when it is durable (law 2). After an error the record may or may not be there.
    fn append(
        &self,
        partition: PartitionNo,
        terminal: &TerminalId,
        record: Vec<u8>,
    ) -> Wait<'static, Result<Offset, LogError>>;

    /// Reads a partition from a position onward.
    ///
    /// # Errors
    /// When the position is not one that this log can continue from.
    fn read(&self, partition: PartitionNo, from: Offset) -> Result<Box<dyn Reader>, LogError>;
}

/// One reader of one partition.
pub trait Reader: Send {
    /// The next records, at least one and at most `max`; waits while there are none.
    fn next(&mut self, max: usize) -> Wait<'_, Result<Vec<Logged>, LogError>>;
}

/// A record as the log gives it back.
#[derive(Debug)]
pub struct Logged {
    pub offset: Offset,
    pub bytes: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log cannot be reached; the caller tries again.
    #[error("the log is away: {0}")]
    Away(String),
    /// Records that this node has read are gone, or the log is another one. An operator must look.
    #[error("the log does not continue at {position:?}: {why}")]
    Broken { position: Offset, why: String },
    #[error("the record has {found} bytes, and the log takes {max}")]
    TooLarge { found: usize, max: usize },
}

/// Hardware security module, or what stands for one. The verbs never give out a PIN, and a PAN only to the core's
/// adapter. They may block: callers run them on threads that may.
pub trait Hsm: Send + Sync {
    /// Reads encrypted card data and gives the card as it may travel.
    ///
    /// # Errors
    /// [`HsmError::UnknownKey`] for a KSN whose base derivation key is not here, [`HsmError::BadCard`] for data that
    /// decrypt to no card.
    fn read_card(&self, ksn: &Ksn, data: &[u8; 16]) -> Result<CardRef, HsmError>;

    /// Compares the PIN in an ISO 9564 format 4 block with its reference.
    ///
    /// # Errors
    /// When no comparison took place.
    fn verify_pin(
        &self,
        ksn: &Ksn,
        block: &PinBlock,
        card: &CardRef,
        reference: &PinReference,
    ) -> Result<PinVerdict, HsmError>;

    /// Encrypts the PIN again, under a zone key of the core (format 4 to format 4; PCI PIN 3-3).
    ///
    /// # Errors
    /// When it cannot.
    fn translate_pin(&self, ksn: &Ksn, block: &PinBlock, card: &CardRef, to: &str) -> Result<PinBlock, HsmError>;

    /// Whether the terminal made this code over these bytes.
    ///
    /// # Errors
    /// When no comparison took place.
    fn verify_mac(&self, ksn: &Ksn, message: &[u8], mac: &Mac) -> Result<bool, HsmError>;

    /// Makes the code that the terminal will check.
    ///
    /// # Errors
    /// When it cannot.
    fn generate_mac(&self, ksn: &Ksn, message: &[u8]) -> Result<Mac, HsmError>;

    /// Gives the PAN to the core's adapter.
    ///
    /// # Errors
    /// When the sealed value is not one of ours.
    fn open_pan(&self, sealed: &Sealed) -> Result<Pan, HsmError>;

    /// The check value of a key, to compare with what its owner wrote down.
    ///
    /// # Errors
    /// When there is no such key.
    fn check_value(&self, name: &str) -> Result<String, HsmError>;
}

/// What a card's PIN is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinReference {
    /// Visa PIN verification value, four digits of 0 to 9 each, and the index of its key.
    Pvv { index: u8, value: [u8; 4] },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinVerdict {
    Correct,
    Wrong,
    /// Not a format 4 block for this PAN under this key: no try of the card's.
    Malformed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    #[error("no key {0}")]
    UnknownKey(String),
    #[error("the data decrypt to no card")]
    BadCard,
    /// X9.24-3: a counter with more than 16 bits set is none.
    #[error("the key counter is not one that a terminal may use")]
    BadCounter,
    #[error("the HSM failed: {0}")]
    Fault(String),
}

/// What the owner of an HSM does with its keys, never at a terminal's request. A key comes out of it sealed.
pub trait Custody: Send + Sync {
    /// Replaces all keys by those of these blocks; on an error the keys stay as they were.
    ///
    /// # Errors
    /// [`KeyError::Unreadable`] for a block that does not open or is not what it says.
    fn load(&self, blocks: &[KeyBlock]) -> Result<(), KeyError>;

    /// Draws a new key at random. It is not loaded yet.
    ///
    /// # Errors
    /// When it cannot.
    fn generate(&self, name: &KeyName, sandbox: bool) -> Result<KeyBlock, KeyError>;

    /// Takes in a key. It is not loaded yet.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`] when the bytes cannot be a key of this usage.
    fn import(&self, name: &KeyName, key: &KeyBytes, sandbox: bool) -> Result<KeyBlock, KeyError>;

    /// Takes in a key from a TR-31 key block of version D, under a protection key that is loaded. It is not loaded yet.
    ///
    /// # Errors
    /// [`KeyError::NotAKey`] when it is no such block, or one for another usage.
    fn import_block(&self, name: &KeyName, block: &str, under: &KeyName, sandbox: bool) -> Result<KeyBlock, KeyError>;

    /// Derives a terminal's initial key for injection, as a TR-31 key block of version D.
    ///
    /// # Errors
    /// [`HsmError::UnknownKey`] when one of the keys is not here.
    fn initial_key_block(&self, id: &[u8; 8], under: &KeyName) -> Result<String, KeyError>;

    /// Derives a terminal's initial key for injection, in clear: from a sandbox key alone.
    ///
    /// # Errors
    /// [`HsmError::UnknownKey`] when the base derivation key is not here, [`KeyError::Refused`] when it is a real one.
    fn initial_key(&self, id: &[u8; 8]) -> Result<KeyBytes, KeyError>;

    /// The token of a card that the bank brings in.
    ///
    /// # Errors
    /// When the key for it is not here.
    fn token(&self, pan: &Pan) -> Result<Token, HsmError>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Sealed under another master key, altered, or moved from another row.
    #[error("the key {name} cannot be opened: {why}")]
    Unreadable { name: KeyName, why: &'static str },
    #[error("not a key of this usage: {0}")]
    NotAKey(&'static str),
    #[error("refused: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Hsm(#[from] HsmError),
}

/// A key in clear, on its way from its custodians to the HSM or from it into a terminal.
pub struct KeyBytes(pub zeroize::Zeroizing<Vec<u8>>);

impl std::fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyBytes")
    }
}

/// Which key. Its usage follows from its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyName {
    /// `bdk-12345678`: a base derivation key, by the first four bytes of the initial key identifiers under it.
    BaseDerivation([u8; 4]),
    /// `pvk-1`: a PIN verification key, by its index.
    PinVerification(u8),
    /// `zpk-NAME`: the PIN encryption key shared with a core.
    Zone(Box<str>),
    /// `kbpk-NAME`: a key block protection key, shared with whoever sends us keys or injects them.
    Protection(Box<str>),
    /// `card-token`: what card numbers are hashed with.
    CardToken,
    /// `card-seal`: what card numbers are sealed with on their way to the core.
    CardSeal,
}

impl KeyName {
    /// The usage in the words of ANSI X9.143 (TR-31) table 6.
    #[must_use]
    pub fn usage(&self) -> &'static str {
        match self {
            Self::BaseDerivation(_) => "B0",
            Self::PinVerification(_) => "V2",
            Self::Zone(_) => "P0",
            Self::Protection(_) => "K1",
            Self::CardToken => "M7",
            Self::CardSeal => "D0",
        }
    }
}

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BaseDerivation(id) => write!(f, "bdk-{}", hex::encode_upper(id)),
            Self::PinVerification(index) => write!(f, "pvk-{index}"),
            Self::Zone(name) => write!(f, "zpk-{name}"),
            Self::Protection(name) => write!(f, "kbpk-{name}"),
            Self::CardToken => f.write_str("card-token"),
            Self::CardSeal => f.write_str("card-seal"),
        }
    }
}

/// A text that names no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no key; names are bdk-12345678, pvk-1, zpk-NAME, kbpk-NAME, card-token, card-seal")]
pub struct NoKeyName(pub String);

impl std::str::FromStr for KeyName {
    type Err = NoKeyName;

    fn from_str(text: &str) -> Result<Self, NoKeyName> {
        let no = || NoKeyName(text.to_owned());
        let id = |id| hex::decode(id).ok()?.try_into().ok();
        let named =
            |name: &str| wakala::id::CoreId::new(name).map(|name| Box::<str>::from(name.as_str())).map_err(|_| no());
        match text.split_once('-').ok_or_else(no)? {
            ("bdk", id_hex) => id(id_hex).map(Self::BaseDerivation).ok_or_else(no),
            ("pvk", index) if index.len() == 1 => index.parse().map(Self::PinVerification).map_err(|_| no()),
            ("zpk", name) => named(name).map(Self::Zone),
            ("kbpk", name) => named(name).map(Self::Protection),
            ("card", "token") => Ok(Self::CardToken),
            ("card", "seal") => Ok(Self::CardSeal),
            _ => Err(no()),
        }
    }
}

/// A key as it is stored: opened by the HSM alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyBlock {
    pub name: KeyName,
    /// `FF0BD7`, to compare with what the key's owner wrote down.
    pub check_value: String,
    pub sealed: Vec<u8>,
    /// A key that everybody may know, for trying Wakala out.
    pub sandbox: bool,
}

/// A way to a core: messages out, messages in, framed.
pub trait BankLink: Send + Sync {
    fn connect(&self) -> Wait<'_, std::io::Result<LinkEnds>>;
}

/// The two ends of a link that is up.
pub type LinkEnds = (Box<dyn LinkWriter>, Box<dyn LinkReader>);

pub trait LinkWriter: Send {
    /// Writes one message whole; an error says that it may have left in part.
    fn write<'a>(&'a mut self, message: &'a [u8]) -> Wait<'a, std::io::Result<()>>;
}

pub trait LinkReader: Send {
    /// The next message; `None` at the end of the link.
    fn read(&mut self) -> Wait<'_, std::io::Result<Option<Vec<u8>>>>;
}

/// The node's clock: monotonic, anchored once to the calendar, so that a calendar that jumps moves no deadline.
pub trait Clock: Send + Sync {
    fn now(&self) -> Time;
}
