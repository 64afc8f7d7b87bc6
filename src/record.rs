//! A record of the log: one request as it left the edge, its PIN already judged.
//!
//! There is no PIN block in it and no clear PAN, and no type that could hold one (law 3).
//! The encoding is Protocol Buffers, so that a node of the next version reads the records of this one.

use prost::Message as _;

use crate::card::{CardRef, Expiry, Ksn, Masked, Sealed, Token};
use crate::id::{AgentId, CoreId, RequestKey, TerminalId, TransactionId};
use crate::money::Money;
use crate::request::{Kind, Refusal};
use crate::time::Time;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub terminal: TerminalId,
    pub agent: AgentId,
    /// The bank core that serves this terminal's agent.
    pub core: CoreId,
    pub key: RequestKey,
    /// When the edge took it in.
    pub at: Time,
    /// What the receipt's code is made under; `None` when the request's own could not be verified.
    pub ksn: Option<Ksn>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Asked(Asked),
    /// Refused at the edge; it is in the log so that its receipt is as durable as any other.
    Refused(Refusal),
}

/// A request that the edge could read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub kind: Kind,
    pub amount: Money,
    pub card: CardRef,
    pub pin: Pin,
}

/// What became of the PIN at the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// The kind asks for none.
    NotAsked,
    Correct,
    Wrong,
    /// Three wrong before; this one was not looked at.
    TriesExceeded,
    /// Decrypts to no PIN: another key, another PAN, or a broken PIN pad.
    Malformed,
    /// The bank has issued no such card, or withdrew it.
    UnknownCard,
    /// The HSM could not say.
    HsmFault,
}

impl Record {
    /// A request that could be read is the transaction of its key; bytes that could not are known by their hash, which
    /// the edge puts in the key's place.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        TransactionId::of(&self.terminal, self.key)
    }
}

impl Asked {
    /// What makes two requests with one key the same request: all that the customer agreed to. The PIN block and the
    /// key counter are not in it, for a terminal that lost its power asks for the PIN again.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        use sha2::Digest as _;
        sha2::Sha256::new()
            .chain_update(i32::from(self.kind.wire()).to_be_bytes())
            .chain_update(self.amount.minor().to_be_bytes())
            .chain_update(self.amount.currency().numeric().to_be_bytes())
            .chain_update(self.card.token.0)
            .finalize()
            .into()
    }
}

/// A record's bytes that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record cannot be read: {0}")]
pub struct Unreadable(pub String);

impl Record {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::Record::from(self).encode_to_vec()
    }

    /// # Errors
    /// When the bytes are no record, or one of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let stored = stored::Record::decode(bytes).map_err(|error| Unreadable(error.to_string()))?;
        stored.try_into()
    }
}

/// The shape in the log. Numbers once used stay used.
mod stored {
    use super::Unreadable;
    use super::{
        Asked, Body, CardRef, Expiry, Kind, Ksn, Masked, Money, Pin, Refusal, RequestKey, Sealed, Time, Token,
    };

    /// Raised when an older reader would misunderstand.
    const VERSION: u32 = 1;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Record {
        #[prost(uint32, tag = "1")]
        version: u32,
        #[prost(string, tag = "2")]
        terminal: String,
        #[prost(string, tag = "3")]
        agent: String,
        #[prost(string, tag = "4")]
        core: String,
        #[prost(bytes = "vec", tag = "5")]
        key: Vec<u8>,
        #[prost(int64, tag = "6")]
        at: i64,
        #[prost(bytes = "vec", optional, tag = "7")]
        ksn: Option<Vec<u8>>,
        #[prost(oneof = "BodyOneof", tags = "8, 9")]
        body: Option<BodyOneof>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    enum BodyOneof {
        #[prost(message, tag = "8")]
        Asked(AskedMessage),
        /// One more than the place in [`Refusal::ALL`].
        #[prost(uint32, tag = "9")]
        Refused(u32),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct AskedMessage {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(int64, tag = "2")]
        amount: i64,
        #[prost(uint32, tag = "3")]
        currency: u32,
        #[prost(bytes = "vec", tag = "4")]
        token: Vec<u8>,
        #[prost(string, tag = "5")]
        masked: String,
        #[prost(bytes = "vec", tag = "6")]
        sealed: Vec<u8>,
        #[prost(uint32, tag = "7")]
        expiry: u32,
        /// One more than the place in [`PINS`].
        #[prost(uint32, tag = "8")]
        pin: u32,
    }

    const PINS: [Pin; 7] =
        [Pin::NotAsked, Pin::Correct, Pin::Wrong, Pin::TriesExceeded, Pin::Malformed, Pin::UnknownCard, Pin::HsmFault];

    fn number_of<T: PartialEq>(all: &[T], one: &T) -> u32 {
        all.iter().position(|each| each == one).map_or(0, |at| u32::try_from(at + 1).unwrap_or(0))
    }

    fn numbered<T: Copy>(all: &[T], number: u32, what: &str) -> Result<T, Unreadable> {
        let at = usize::try_from(number).unwrap_or(0).wrapping_sub(1);
        all.get(at).copied().ok_or_else(|| Unreadable(format!("{what} {number}")))
    }

    impl From<&super::Record> for Record {
        fn from(record: &super::Record) -> Self {
            Self {
                version: VERSION,
                terminal: record.terminal.to_string(),
                agent: record.agent.to_string(),
                core: record.core.to_string(),
                key: record.key.0.to_vec(),
                at: record.at.millis(),
                ksn: record.ksn.map(|ksn| ksn.to_bytes().to_vec()),
                body: Some(match &record.body {
                    Body::Refused(refusal) => BodyOneof::Refused(number_of(&Refusal::ALL, refusal)),
                    Body::Asked(asked) => BodyOneof::Asked(AskedMessage {
                        kind: asked.kind.wire().into(),
                        amount: asked.amount.minor(),
                        currency: asked.amount.currency().numeric().into(),
                        token: asked.card.token.0.to_vec(),
                        masked: asked.card.masked.as_str().to_owned(),
                        sealed: asked.card.sealed.0.to_vec(),
                        expiry: asked.card.expiry.yymm().into(),
                        pin: number_of(&PINS, &asked.pin),
                    }),
                }),
            }
        }
    }

    impl TryFrom<Record> for super::Record {
        type Error = Unreadable;

        fn try_from(stored: Record) -> Result<Self, Unreadable> {
            if stored.version != VERSION {
                return Err(Unreadable(format!("version {}, and this node reads version {VERSION}", stored.version)));
            }
            let what = |field: &'static str| move || Unreadable(field.to_owned());
            let body = match stored.body.ok_or_else(what("no body"))? {
                BodyOneof::Refused(number) => Body::Refused(numbered(&Refusal::ALL, number, "refusal")?),
                BodyOneof::Asked(asked) => Body::Asked(asked.try_into()?),
            };
            Ok(Self {
                terminal: stored.terminal.parse().map_err(|e: crate::id::Error| Unreadable(e.to_string()))?,
                agent: stored.agent.parse().map_err(|e: crate::id::Error| Unreadable(e.to_string()))?,
                core: stored.core.parse().map_err(|e: crate::id::Error| Unreadable(e.to_string()))?,
                key: RequestKey(stored.key.as_slice().try_into().map_err(|_| what("key")())?),
                at: Time::from_millis(stored.at),
                ksn: stored.ksn.map(|ksn| Ksn::from_bytes(&ksn).ok_or_else(what("ksn"))).transpose()?,
                body,
            })
        }
    }

    impl TryFrom<AskedMessage> for Asked {
        type Error = Unreadable;

        fn try_from(asked: AskedMessage) -> Result<Self, Unreadable> {
            let what = |field: &'static str| move || Unreadable(field.to_owned());
            let minor = u64::try_from(asked.amount).map_err(|_| what("amount")())?;
            let expiry = u16::try_from(asked.expiry).ok().and_then(Expiry::from_yymm);
            Ok(Self {
                kind: Kind::from_wire(asked.kind).ok_or_else(what("kind"))?,
                amount: Money::from_numeric(minor, asked.currency).map_err(|e| Unreadable(e.to_string()))?,
                card: CardRef {
                    token: Token(asked.token.as_slice().try_into().map_err(|_| what("token")())?),
                    masked: Masked::stored(&asked.masked),
                    sealed: Sealed(asked.sealed.into()),
                    expiry: expiry.ok_or_else(what("expiry"))?,
                },
                pin: numbered(&PINS, asked.pin, "pin")?,
            })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::money::Currency;

    pub(crate) fn withdrawal() -> Record {
        Record {
            terminal: TerminalId::new("T1").expect("name"),
            agent: AgentId::new("A1").expect("name"),
            core: CoreId::new("sandbox").expect("name"),
            key: RequestKey([7; 16]),
            at: Time::from_millis(1_795_224_225_000),
            ksn: Ksn::from_bytes(&[3; 12]),
            body: Body::Asked(Asked {
                kind: Kind::Withdrawal,
                amount: Money::new(5_000_000, Currency::TZS).expect("amount"),
                card: CardRef {
                    token: Token([9; 16]),
                    masked: Masked::stored("411111******1111"),
                    sealed: Sealed([1, 2, 3].into()),
                    expiry: Expiry { year: 30, month: 12 },
                },
                pin: Pin::Correct,
            }),
        }
    }

    #[test]
    fn a_record_survives_the_log() {
        let record = withdrawal();
        assert_eq!(Record::decode(&record.encode()), Ok(record.clone()));
        for refusal in Refusal::ALL {
            let refused = Record { ksn: None, body: Body::Refused(refusal), ..record.clone() };
            assert_eq!(Record::decode(&refused.encode()), Ok(refused));
        }
    }

    #[test]
    fn what_cannot_be_read_says_so() {
        assert!(Record::decode(b"").is_err());
        assert!(Record::decode(b"\xff").is_err());
        let mut later = withdrawal().encode();
        later[1] = 2; // tag 1, the version
        assert_eq!(Record::decode(&later), Err(Unreadable("version 2, and this node reads version 1".into())));
    }

    #[test]
    fn another_amount_or_card_is_another_request() {
        let Body::Asked(asked) = withdrawal().body else { unreachable!("a withdrawal asks") };
        let mut other = asked.clone();
        other.pin = Pin::Wrong;
        assert_eq!(asked.fingerprint(), other.fingerprint());
        other.amount = Money::new(5_000_001, Currency::TZS).expect("amount");
        assert_ne!(asked.fingerprint(), other.fingerprint());
        other = asked.clone();
        other.card.token = Token([8; 16]);
        assert_ne!(asked.fingerprint(), other.fingerprint());
    }
}
