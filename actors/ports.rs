//! What the actors need from the world, as traits; `adapters/` has one driver per file.
//!
//! Postgres is not among them: it is memory (`store/`), and there is no trait and no stand-in for it.

use std::future::Future;
use std::pin::Pin;

use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed};
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
    /// Visa PIN verification value and the index of its key.
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
