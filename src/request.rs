//! What a terminal may ask: from the bytes of a PUBLISH to a request that means something, or the reason why not.

use std::fmt;

use prost::Message as _;
use zeroize::Zeroizing;

use crate::card::{Ksn, Mac, PinBlock};
use crate::id::RequestKey;
use crate::money::{self, Money};
use crate::wire;

/// What is asked of the bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Cash out of the customer's account into her hand; the agent's float rises.
    Withdrawal,
    /// Cash from her hand into her account; the agent's float falls.
    Deposit,
}

impl Kind {
    #[must_use]
    pub fn wire(self) -> wire::Kind {
        match self {
            Self::Withdrawal => wire::Kind::Withdrawal,
            Self::Deposit => wire::Kind::Deposit,
        }
    }

    #[must_use]
    pub fn from_wire(number: i32) -> Option<Self> {
        match wire::Kind::try_from(number).ok()? {
            wire::Kind::Unspecified => None,
            wire::Kind::Withdrawal => Some(Self::Withdrawal),
            wire::Kind::Deposit => Some(Self::Deposit),
        }
    }
}

/// A request as the terminal meant it, nothing of it verified yet.
///
/// Its body has the PIN block in it, so it is neither printed nor cloned, and wiped when dropped.
pub struct Request {
    pub key: RequestKey,
    pub kind: Kind,
    pub amount: Money,
    pub ksn: Ksn,
    /// The block of encrypted card data.
    pub card_data: [u8; 16],
    /// Present exactly when the kind asks for a PIN.
    pub pin_block: Option<PinBlock>,
    /// The bytes that `mac` is over.
    pub body: Zeroizing<Vec<u8>>,
    pub mac: Mac,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, kind, amount, ksn, .. } = self;
        f.debug_struct("Request")
            .field("key", key)
            .field("kind", kind)
            .field("amount", amount)
            .field("ksn", ksn)
            .finish()
    }
}

/// Why bytes are not a request, and the key if that much could be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    pub key: Option<RequestKey>,
    pub refusal: Refusal,
}

/// Why a request is refused before anybody looks at the card. No money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not a request")]
    Unreadable,
    #[error("unknown kind")]
    UnknownKind,
    #[error("bad amount")]
    BadAmount,
    #[error("unknown currency")]
    UnknownCurrency,
    #[error("card data missing")]
    NoCard,
    #[error("PIN missing")]
    NoPin,
    #[error("wrong code")]
    BadMac,
    #[error("unknown terminal key")]
    UnknownTerminalKey,
    #[error("key counter used")]
    KsnReplayed,
    #[error("card unreadable")]
    BadCard,
    #[error("too large")]
    TooLarge,
    #[error("key used before")]
    KeyReused,
    #[error("terminal is blocked")]
    TerminalBlocked,
}

impl Refusal {
    pub const ALL: [Self; 13] = [
        Self::Unreadable,
        Self::UnknownKind,
        Self::BadAmount,
        Self::UnknownCurrency,
        Self::NoCard,
        Self::NoPin,
        Self::BadMac,
        Self::UnknownTerminalKey,
        Self::KsnReplayed,
        Self::BadCard,
        Self::TooLarge,
        Self::KeyReused,
        Self::TerminalBlocked,
    ];

    /// ISO 8583:1987 data element 39.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreadable | Self::NoCard | Self::NoPin | Self::TooLarge => "30",
            Self::UnknownKind => "12",
            Self::BadAmount | Self::UnknownCurrency => "13",
            Self::BadCard => "14",
            Self::BadMac | Self::UnknownTerminalKey | Self::KsnReplayed => "63",
            Self::KeyReused => "94",
            Self::TerminalBlocked => "58",
        }
    }
}

/// The largest request, in bytes. A withdrawal has about 110.
pub const REQUEST_MAX: usize = 1024;

impl Request {
    /// The key alone, for whoever wants to know which transaction bytes are about: also of a request that will be refused,
    /// but not of bytes in which none can be read.
    #[must_use]
    pub fn key_in(bytes: &[u8]) -> Option<RequestKey> {
        Self::read(bytes).map_or_else(|malformed| malformed.key, |request| Some(request.key))
    }

    /// Reads the bytes of an [`wire::Envelope`].
    ///
    /// # Errors
    /// The first thing that is wrong, with the request's key if it could be read.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let unknown = |refusal| Malformed { key: None, refusal };
        if bytes.len() > REQUEST_MAX {
            return Err(unknown(Refusal::TooLarge));
        }
        let envelope = wire::Envelope::decode(bytes).map_err(|_| unknown(Refusal::Unreadable))?;
        let body = Zeroizing::new(envelope.body);
        let mut request = wire::Request::decode(&body[..]).map_err(|_| unknown(Refusal::Unreadable))?;
        // Whatever is wrong with the rest, the block is wiped.
        let sent_block = Zeroizing::new(request.card.as_mut().map(|card| std::mem::take(&mut card.pin_block)));
        let key = request.key.as_slice().try_into().map(RequestKey).map_err(|_| unknown(Refusal::Unreadable))?;

        let refused = |refusal| Malformed { key: Some(key), refusal };
        let kind = Kind::from_wire(request.kind).ok_or_else(|| refused(Refusal::UnknownKind))?;
        let amount = Money::from_numeric(request.amount, request.currency).map_err(|error| {
            refused(match error {
                money::Error::UnknownCurrency(_) => Refusal::UnknownCurrency,
                money::Error::Zero | money::Error::TooLarge => Refusal::BadAmount,
            })
        })?;
        let card = request.card.ok_or_else(|| refused(Refusal::NoCard))?;
        let card_data = card.data.as_slice().try_into().map_err(|_| refused(Refusal::NoCard))?;
        let pin_block = match kind {
            Kind::Withdrawal => {
                let block =
                    sent_block.as_deref().unwrap_or_default().try_into().map_err(|_| refused(Refusal::NoPin))?;
                Some(PinBlock(block))
            }
            Kind::Deposit => None,
        };
        let ksn = Ksn::from_bytes(&envelope.ksn).ok_or_else(|| refused(Refusal::UnknownTerminalKey))?;
        let mac = envelope.mac.as_slice().try_into().map(Mac).map_err(|_| refused(Refusal::BadMac))?;
        Ok(Self { key, kind, amount, ksn, card_data, pin_block, body, mac })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> wire::Request {
        wire::Request {
            key: vec![7; 16],
            kind: wire::Kind::Withdrawal.into(),
            amount: 5_000_000,
            currency: 834,
            card: Some(wire::Card { data: vec![1; 16], pin_block: vec![2; 16] }),
            made_at: 1_795_224_225,
        }
    }

    fn sent(request: &wire::Request) -> Vec<u8> {
        wire::Envelope { body: request.encode_to_vec(), ksn: vec![3; 12], mac: vec![4; 8] }.encode_to_vec()
    }

    #[test]
    fn a_withdrawal_is_read_and_is_small() {
        let bytes = sent(&good());
        let request = Request::read(&bytes).expect("a good request");
        assert_eq!((request.kind, request.amount.minor()), (Kind::Withdrawal, 5_000_000));
        assert!(bytes.len() < 120, "{}", bytes.len());
    }

    #[test]
    fn every_fault_has_its_refusal_and_keeps_the_key() {
        let spoil = |change: fn(&mut wire::Request)| {
            let mut request = good();
            change(&mut request);
            Request::read(&sent(&request)).map(|_| ()).expect_err("spoilt")
        };
        for (refusal, change) in [
            (Refusal::UnknownKind, (|r| r.kind = 0) as fn(&mut wire::Request)),
            (Refusal::UnknownKind, |r| r.kind = 99),
            (Refusal::BadAmount, |r| r.amount = 0),
            (Refusal::BadAmount, |r| r.amount = u64::MAX),
            (Refusal::BadAmount, |r| r.amount = 1 << 63),
            (Refusal::UnknownCurrency, |r| r.currency = 0),
            (Refusal::NoCard, |r| r.card = None),
            (Refusal::NoCard, |r| r.card.as_mut().expect("card").data.truncate(15)),
            (Refusal::NoPin, |r| r.card.as_mut().expect("card").pin_block.clear()),
            (Refusal::NoPin, |r| r.card.as_mut().expect("card").pin_block.push(0)),
        ] {
            assert_eq!(spoil(change), Malformed { key: Some(RequestKey([7; 16])), refusal });
            let mut request = good();
            change(&mut request);
            assert_eq!(Request::key_in(&sent(&request)), Some(RequestKey([7; 16])));
        }
        assert_eq!(Request::key_in(&sent(&good())), Some(RequestKey([7; 16])));
        assert_eq!(Request::key_in(b"4111111111111111"), None);
        assert_eq!(spoil(|r| r.key.clear()), Malformed { key: None, refusal: Refusal::Unreadable });
    }

    #[test]
    fn bytes_that_are_no_envelope_are_unreadable() {
        for bytes in [&b""[..], b"{}", b"\xff\xff\xff\xff", &[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]] {
            let found = Request::read(bytes).map(|_| ()).expect_err("unreadable");
            assert_eq!(found, Malformed { key: None, refusal: Refusal::Unreadable }, "{bytes:?}");
        }
        let found = Request::read(&vec![0; REQUEST_MAX + 1]).map(|_| ()).expect_err("too large");
        assert_eq!(found.refusal, Refusal::TooLarge);
    }

    #[test]
    fn nothing_secret_is_in_the_debug_text() {
        let request = Request::read(&sent(&good())).expect("good");
        assert_eq!(format!("{:?}", request.pin_block), "Some(PinBlock)");
        let text = format!("{request:?}");
        assert!(text.starts_with("Request {"), "{text}");
        // The block is sixteen twos and the card data are sixteen ones, as a list of numbers or otherwise.
        for secret in ["2, 2, 2", "0202", "1, 1, 1", "0101"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
