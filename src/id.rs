//! One type per identity, so that no two can be mistaken for each other.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::time::Time;

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max} characters of A-Z a-z 0-9 - . _ and is {found:?}", max = NAME_MAX)]
pub struct Error {
    what: &'static str,
    found: String,
}

/// The longest name, in bytes. Longer ones would cost terminals on 2G in every topic.
pub const NAME_MAX: usize = 32;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// # Errors
            /// When the text is empty, too long, or has a character that a topic, a file name or a shell would mind.
            pub fn new(text: &str) -> Result<Self, Error> {
                let fits = (1..=NAME_MAX).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
                if fits { Ok(Self(text.into())) } else {
                    Err(Error { what: $what, found: text.chars().take(NAME_MAX + 1).collect() })
                }
            }

            #[must_use]
            pub fn as_str(&self) -> &str { &self.0 }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }

        impl std::str::FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> { Self::new(text) }
        }
    };
}

name!(
    /// A POS terminal; also its MQTT client identifier and the second level of its topics.
    TerminalId, "a terminal's name"
);
name!(
    /// Who runs a terminal and owns a float.
    AgentId, "an agent's name"
);
name!(
    /// A bank's core banking system, as the configuration calls it.
    CoreId, "a core's name"
);

/// An MQTT client, by the identifier in its CONNECT or the one it was given (3.1.3.1). A terminal's is its name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(Arc<str>);

/// A client identifier that is empty, longer than [`CLIENT_ID_MAX`], or has the character U+0000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client identifier has 1 to {CLIENT_ID_MAX} bytes, and none of them is 0")]
pub struct NoClientId;

/// The longest client identifier, in bytes. The standard would have 65,535 of them kept in memory and in every row.
pub const CLIENT_ID_MAX: usize = 256;

impl ClientId {
    /// # Errors
    /// When the text is empty, too long, or has U+0000: that is in no string of MQTT (MQTT-1.5.4-2) and in no text of the
    /// database, which would refuse whatever else is asked together with it.
    pub fn new(text: &str) -> Result<Self, NoClientId> {
        let fits = (1..=CLIENT_ID_MAX).contains(&text.len()) && !text.contains('\0');
        if fits { Ok(Self(text.into())) } else { Err(NoClientId) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&TerminalId> for ClientId {
    fn from(terminal: &TerminalId) -> Self {
        Self(terminal.as_str().into())
    }
}

/// As a log may hold it: it comes from outside.
impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_debug(), f)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the terminal drew for one request and repeats with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey(pub [u8; 16]);

impl RequestKey {
    /// The stand-in for bytes in which no key can be read: the same bytes have the same stand-in.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(first_16(&Sha256::digest(bytes)))
    }
}

impl fmt::Debug for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// One transaction. It follows from the terminal and the request's key, so a repetition names the same transaction
/// without a look-up, and nobody draws lots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub uuid::Uuid);

impl TransactionId {
    #[must_use]
    pub fn of(terminal: &TerminalId, key: RequestKey) -> Self {
        let digest = Sha256::new().chain_update(terminal.as_str()).chain_update([0]).chain_update(key.0).finalize();
        // RFC 9562 version 8: the bits are ours.
        Self(uuid::Builder::from_custom_bytes(first_16(&digest)).into_uuid())
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// System trace audit number, ISO 8583 data element 11: 1 to 999,999, from a sequence in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stan(pub u32);

impl fmt::Display for Stan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

/// Retrieval reference number, ISO 8583 data element 37: `YDDDHH` and the STAN, 12 digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rrn(Box<str>);

impl Rrn {
    #[must_use]
    pub fn new(at: Time, stan: Stan) -> Self {
        let utc = at.utc();
        Self(format!("{}{:03}{:02}{stan}", utc.year().rem_euclid(10), utc.ordinal(), utc.hour()).into())
    }

    /// From what was stored.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Rrn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Rrn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A partition of the log, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionNo(pub u16);

impl PartitionNo {
    /// Where a terminal's requests go: always the same partition, so that they stay in order.
    #[must_use]
    pub fn of(terminal: &TerminalId, partitions: u16) -> Self {
        let digest = Sha256::digest(terminal.as_str());
        let number = u64::from_be_bytes([
            digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
        ]);
        let partitions = u64::from(partitions.max(1));
        Self(u16::try_from(number % partitions).unwrap_or(0))
    }
}

impl fmt::Display for PartitionNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A record's place in its partition. Where a position is meant, it is the offset of the next record to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub i64);

/// A fence: raised whenever an owner loads; a write under an older one changes no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

fn first_16(digest: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_topics_files_and_shells() {
        for good in ["T1", "DSM-00017", "a.b_c", &"x".repeat(NAME_MAX)] {
            assert!(TerminalId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a+b", "#", "$SYS", "a b", "é", "a\0", &"x".repeat(NAME_MAX + 1)] {
            assert!(TerminalId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_client_identifier_is_a_text_that_mqtt_and_the_database_can_hold() {
        for good in ["T1", "a/b", "é", "a b", &"x".repeat(CLIENT_ID_MAX)] {
            assert!(ClientId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "\0", "a\0b", &"x".repeat(CLIENT_ID_MAX + 1)] {
            assert_eq!(ClientId::new(bad), Err(NoClientId), "{bad:?}");
        }
    }

    #[test]
    fn a_repetition_names_the_same_transaction_and_nothing_else_does() {
        let (t1, t2) = (TerminalId("T1".into()), TerminalId("T2".into()));
        let (k1, k2) = (RequestKey([1; 16]), RequestKey([2; 16]));
        assert_eq!(TransactionId::of(&t1, k1), TransactionId::of(&t1, k1));
        assert_ne!(TransactionId::of(&t1, k1), TransactionId::of(&t1, k2));
        assert_ne!(TransactionId::of(&t1, k1), TransactionId::of(&t2, k1));
    }

    #[test]
    fn an_rrn_is_the_year_day_hour_and_stan() {
        // 2026-11-21T01:23:45Z is day 325.
        assert_eq!(Rrn::new(Time::from_millis(1_795_224_225_000), Stan(42)).as_str(), "632501000042");
    }

    #[test]
    fn terminals_spread_over_the_partitions() {
        let mut counts = [0_u32; 12];
        for n in 0..1200 {
            let terminal = TerminalId(format!("T{n}").into());
            counts[usize::from(PartitionNo::of(&terminal, 12).0)] += 1;
        }
        assert!(counts.iter().all(|&n| (60..=140).contains(&n)), "{counts:?}");
    }
}
