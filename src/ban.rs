//! Who is kept out: clients, certificates, user names, addresses and networks, each for a time or for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

// An address is a number here, and no socket.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::id::CLIENT_ID_MAX;
use crate::time::Time;

/// Addresses that begin alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

/// Why a text names nobody who can be kept out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no address and no network; right would be 10.1.2.3, 10.1.0.0/16 or 2001:db8::/32")]
    NoNetwork(String),
    #[error("{found} has bits beyond its first {bits}; right would be {right}")]
    TooManyBits { found: IpAddr, bits: u8, right: Network },
    #[error("{0} is every address there is")]
    Everybody(String),
    #[error("a name has 1 to {CLIENT_ID_MAX} bytes and no control characters")]
    Name,
    #[error("{0:?} is no kind of subject; there are: client, certificate, network, user")]
    Kind(String),
    #[error("a fingerprint is SHA-256: 64 hexadecimal digits")]
    Fingerprint,
}

/// The first bits of an address, the rest 0.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(four) & mask))
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(six) & mask))
        }
    }
}

const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Network {
    /// Whether this address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.bits) == self.base
    }

    /// How many bits they begin with alike.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.bits
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let none = || Error::NoNetwork(text.chars().take(64).collect());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| none())?)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| none())?;
        let bits = bits.unwrap_or_else(|| width(written));
        if bits > width(written) {
            return Err(none());
        }
        // As the socket's other end is written, so is this: an IPv4 address in IPv6 has 96 bits before it.
        let (found, bits) =
            match (written.to_canonical(), bits.checked_sub(width(written) - width(written.to_canonical()))) {
                (found, Some(bits)) => (found, bits),
                (_, None) => (written, bits),
            };
        if bits == 0 {
            return Err(Error::Everybody(text.to_owned()));
        }
        let network = Self { base: masked(found, bits), bits };
        if network.base != found {
            return Err(Error::TooManyBits { found, bits, right: network });
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == width(self.base) {
            write!(f, "{}", self.base)
        } else {
            write!(f, "{}/{}", self.base, self.bits)
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Network {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Who is kept out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A terminal, or whoever gives this client identifier.
    Client(Box<str>),
    /// SHA-256 over a client certificate in DER.
    Certificate([u8; 32]),
    Network(Network),
    /// Whoever gives this user name.
    User(Box<str>),
}

impl Subject {
    /// From the two columns of a row, or of a command.
    ///
    /// # Errors
    /// What would be right.
    pub fn new(kind: &str, text: &str) -> Result<Self, Error> {
        let name = || {
            let fits = (1..=CLIENT_ID_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
            if fits { Ok(text.into()) } else { Err(Error::Name) }
        };
        match kind {
            "client" => Ok(Self::Client(name()?)),
            "user" => Ok(Self::User(name()?)),
            "network" => Ok(Self::Network(text.parse()?)),
            "certificate" => {
                let mut sha256 = [0; 32];
                hex::decode_to_slice(text, &mut sha256).map_err(|_| Error::Fingerprint)?;
                Ok(Self::Certificate(sha256))
            }
            other => Err(Error::Kind(other.to_owned())),
        }
    }

    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Certificate(_) => "certificate",
            Self::Network(_) => "network",
            Self::User(_) => "user",
        }
    }

    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Client(name) | Self::User(name) => name.to_string(),
            Self::Certificate(sha256) => hex::encode(sha256),
            Self::Network(network) => network.to_string(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.text())
    }
}

/// A ban that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Of its row.
    pub id: i64,
    pub subject: Subject,
    /// None is for ever.
    pub until: Option<Time>,
}

/// What a connection shows of itself, besides the client identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    pub address: Option<IpAddr>,
    pub user: Option<Box<str>>,
    /// SHA-256 over its certificate. Few have one, and all that are connected have traits.
    pub certificate: Option<Box<[u8; 32]>>,
}

/// All bans in force, by what they are looked for.
#[derive(Clone, Debug, Default)]
pub struct Bans {
    named: BTreeMap<Subject, (i64, Option<Time>)>,
    /// Lengths of the networks among them, of IPv4 and IPv6.
    bits: BTreeSet<(bool, u8)>,
}

impl Bans {
    #[must_use]
    pub fn of(bans: impl IntoIterator<Item = Ban>) -> Self {
        let mut all = Self::default();
        for Ban { id, subject, until } in bans {
            if let Subject::Network(network) = &subject {
                all.bits.insert((network.base.is_ipv4(), network.bits));
            }
            let held = all.named.entry(subject).or_insert((id, until));
            // None is the longest.
            if held.1.is_some_and(|held| until.is_none_or(|until| until > held)) {
                *held = (id, until);
            }
        }
        all
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// The ban on an address, by its number.
    #[must_use]
    pub fn on_address(&self, address: IpAddr, now: Time) -> Option<i64> {
        let address = address.to_canonical();
        self.bits
            .iter()
            .filter(|(four, _)| *four == address.is_ipv4())
            .find_map(|&(_, bits)| self.held(&Subject::Network(Network { base: masked(address, bits), bits }), now))
    }

    /// The ban on whoever has this client identifier and these traits.
    #[must_use]
    pub fn on(&self, client: &str, traits: &Traits, now: Time) -> Option<i64> {
        if self.is_empty() {
            return None;
        }
        let user = traits.user.as_ref().map(|user| Subject::User(user.clone()));
        let certificate = traits.certificate.as_deref().copied().map(Subject::Certificate);
        let named = [Some(Subject::Client(client.into())), user, certificate];
        let named = named.into_iter().flatten().find_map(|subject| self.held(&subject, now));
        named.or_else(|| self.on_address(traits.address?, now))
    }

    fn held(&self, subject: &Subject, now: Time) -> Option<i64> {
        let (id, until) = self.named.get(subject)?;
        until.is_none_or(|until| until > now).then_some(*id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn ban(id: i64, kind: &str, text: &str, until: Option<Time>) -> Ban {
        Ban { id, subject: Subject::new(kind, text).expect("a subject"), until }
    }

    fn traits(address: &str, user: &str) -> Traits {
        Traits {
            address: Some(address.parse().expect("an address")),
            user: Some(user.into()),
            certificate: Some(Box::new([7; 32])),
        }
    }

    #[test]
    fn each_kind_keeps_its_own_out() {
        let of = |kind, text: &str| Bans::of([ban(1, kind, text, None)]);
        let who = traits("10.1.2.3", "u");
        for (kind, text) in [("client", "T1"), ("user", "u"), ("network", "10.1.2.3"), ("network", "10.1.0.0/16")] {
            assert_eq!(of(kind, text).on("T1", &who, at(0)), Some(1), "{kind} {text}");
        }
        assert_eq!(of("certificate", &"07".repeat(32)).on("T1", &who, at(0)), Some(1));
        for (kind, text) in [("client", "u"), ("user", "T1"), ("network", "10.2.0.0/16"), ("client", "t1")] {
            assert_eq!(of(kind, text).on("T1", &who, at(0)), None, "{kind} {text}");
        }
        assert_eq!(of("certificate", &"08".repeat(32)).on("T1", &who, at(0)), None);
        assert_eq!(of("network", "10.0.0.0/8").on_address("::ffff:10.9.9.9".parse().expect("one"), at(0)), Some(1));
        assert_eq!(of("network", "2001:db8::/32").on_address("2001:db8:5::1".parse().expect("one"), at(0)), Some(1));
        assert_eq!(of("network", "2001:db8::/32").on_address("32.1.13.184".parse().expect("one"), at(0)), None);
    }

    #[test]
    fn a_network_contains_the_addresses_that_begin_like_it() {
        let contains = |network: &str, address: &str| {
            let network: Network = network.parse().expect("a network");
            network.contains(address.parse().expect("an address"))
        };
        for (network, address) in [
            ("10.20.0.0/15", "10.21.255.255"),
            ("10.20.0.0/15", "::ffff:10.20.0.1"),
            ("::ffff:10.20.0.0/111", "10.21.0.1"),
            ("::ffff:10.1.2.3/128", "10.1.2.3"),
            ("10.1.2.3", "10.1.2.3"),
            ("2001:db8::/32", "2001:db8:ffff::1"),
        ] {
            assert!(contains(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.20.0.0/15", "10.22.0.0"),
            ("10.1.2.3", "10.1.2.2"),
            ("::ffff:10.20.0.0/111", "10.22.0.1"),
            ("2001:db8::/32", "2001:db9::1"),
            ("2001:db8::/32", "32.1.13.184"),
            ("32.0.0.0/8", "2001:db8::1"),
        ] {
            assert!(!contains(network, address), "{network} {address}");
        }
    }

    #[test]
    fn a_ban_ends_and_the_longest_of_several_holds() {
        let bans = Bans::of([
            ban(1, "client", "T1", Some(at(10))),
            ban(2, "client", "T1", Some(at(30))),
            ban(3, "client", "T1", Some(at(20))),
        ]);
        let who = Traits::default();
        assert_eq!((bans.on("T1", &who, at(29)), bans.on("T1", &who, at(30))), (Some(2), None));
        let for_ever = Bans::of([ban(1, "client", "T1", None), ban(2, "client", "T1", Some(at(30)))]);
        assert_eq!(for_ever.on("T1", &who, at(i64::MAX / 1000)), Some(1));
    }

    #[test]
    fn what_names_nobody_is_said() {
        for (text, says) in [
            ("10.1.2", "no address"),
            ("10.1.2.3/33", "no address"),
            ("10.1.2.3/x", "no address"),
            ("10.1.2.3/8", "right would be 10.0.0.0/8"),
            ("2001:db8::1/32", "right would be 2001:db8::/32"),
            ("0.0.0.0/0", "every address"),
            ("::/0", "every address"),
        ] {
            let said = Subject::new("network", text).expect_err(text).to_string();
            assert!(said.contains(says), "{text}: {said}");
        }
        for (kind, text) in
            [("client", ""), ("user", "a\nb"), ("certificate", "07"), ("terminal", "T1"), ("user", &"x".repeat(257))]
        {
            assert!(Subject::new(kind, text).is_err(), "{kind} {text}");
        }
        for (kind, text) in [("client", "T1"), ("network", "10.0.0.0/8"), ("network", "::1"), ("user", "ü")] {
            let subject = Subject::new(kind, text).expect("one");
            assert_eq!((subject.kind(), subject.text().as_str()), (kind, text));
        }
    }
}
