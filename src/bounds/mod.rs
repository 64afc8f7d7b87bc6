//! What one client, one address, one network or one name may cost: connects, wrong passwords, places before CONNECT.
//!
//! An address is a poor name for anybody: behind one of a mobile operator stand hundreds of terminals. So what is counted
//! against an address is never what a known terminal does, and a terminal that has proved itself from an address is let
//! through there whatever its neighbours do. What is counted against a client is what it did after it had proved who it
//! is; nobody else can use that up. A network counts as one only where the operator of the node says so ([`Range`]).
//!
//! All of it is forgotten with time, and the tables are bounded ([`Kept`]).

mod guesses;
mod kept;
mod line;
mod ranges;
mod rate;
mod sign;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

// An address is a number here, and no socket.
use core::net::{IpAddr, Ipv6Addr};

use crate::ban::Network;
use crate::time::Time;
use guesses::Guesses;
pub use guesses::Patience;
use kept::Kept;
pub use line::Lines;
pub use ranges::Range;
use ranges::Ranges;
use rate::Buckets;
pub use rate::{Bucket, Rate};
use sign::Sign;

/// Where a connection comes from, as limits count it: an IPv4 address, or the 64 bits of an IPv6 address that one line has
/// to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(IpAddr);

impl Place {
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(six) => {
                let [a, b, c, d, ..] = six.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            four => four,
        })
    }

    fn octets(self) -> [u8; 16] {
        match self.0 {
            IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
            IpAddr::V6(six) => six.octets(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V6(six) => write!(f, "{six}/64"),
            IpAddr::V4(four) => write!(f, "{four}"),
        }
    }
}

/// The limits, each with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one place that have not said who they are.
    pub strangers_per_place_max: usize,
    /// Connects of one client; none is no limit.
    pub client_connects: Option<Rate>,
    /// Connects from one place by whom it does not know; none is no limit.
    pub place_connects: Option<Rate>,
    pub patience: Patience,
    /// How long a client is known at a place after it has proved itself there.
    pub known_for: Duration,
    /// Entries of each table.
    pub remembered_max: usize,
}

/// Why somebody is to come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// This client connects too often.
    Client,
    /// Too many connects from this place lead to nobody who is known there.
    Place,
    /// Too many connects from this network, whoever they are.
    Range(Network),
    /// Too many wrong passwords.
    Guesses,
}

/// All that is counted.
#[derive(Debug)]
pub struct Bounds {
    limits: Limits,
    strangers: BTreeMap<Place, usize>,
    clients: Buckets<Sign>,
    places: Buckets<Place>,
    ranges: Ranges,
    known: Kept<Sign, ()>,
    /// The same of guests, whom others vouch for: however many these are, no terminal is forgotten for them.
    known_guests: Kept<Sign, ()>,
    guesses: Guesses,
    told: Kept<Sign, ()>,
}

/// Of one who comes too often it is said once in this time.
const TOLD_FOR: Duration = Duration::from_secs(600);

impl Bounds {
    #[must_use]
    pub fn new(limits: Limits, ranges: Vec<Range>) -> Self {
        let max = limits.remembered_max;
        Self {
            strangers: BTreeMap::new(),
            clients: Buckets::new(limits.client_connects, max),
            places: Buckets::new(limits.place_connects, max),
            ranges: Ranges::new(ranges, limits.known_for, max),
            known: Kept::new(max),
            known_guests: Kept::new(max),
            guesses: Guesses::new(limits.patience, max),
            told: Kept::new(max),
            limits,
        }
    }

    /// A connection was accepted. False when its place has as many strangers as it may; else [`Self::leave`] is owed.
    #[must_use]
    pub fn enter(&mut self, place: Place) -> bool {
        let here = self.strangers.entry(place).or_default();
        let room = *here < self.limits.strangers_per_place_max;
        *here += usize::from(room);
        room
    }

    /// It is known who a stranger is, or it is gone.
    pub fn leave(&mut self, place: Place) {
        if let Some(here) = self.strangers.get_mut(&place) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                self.strangers.remove(&place);
            }
        }
    }

    /// A CONNECT came that names this client, or none. Nothing is counted yet. With a certificate that somebody vouches for it
    /// is not asked how many others came from there: no neighbour may be in the way of it.
    ///
    /// # Errors
    /// When it is to be turned away at once.
    pub fn knock(&self, client: &str, place: Place, certificate: bool, now: Time) -> Result<(), Excess> {
        if !client.is_empty() && self.clients.wait(&Sign::of(client), now) > Duration::ZERO {
            return Err(Excess::Client);
        }
        let free = certificate || self.knows(client, place, now) || !self.is_spent(place, now);
        if free { Ok(()) } else { Err(Excess::Place) }
    }

    /// Whether too many came from this place who led to nobody.
    #[must_use]
    pub fn is_spent(&self, place: Place, now: Time) -> bool {
        !self.places.wait(&place, now).is_zero()
    }

    /// The same CONNECT would be let further in by all else: it is counted against the network that it comes from, if that
    /// is one that counts as one.
    ///
    /// # Errors
    /// When it is to be turned away at once.
    pub fn knock_from(&mut self, client: &str, address: IpAddr, now: Time) -> Result<(), Excess> {
        self.ranges.knock(client, address, now).map_err(Excess::Range)
    }

    /// A terminal that has proved who it is ([`Self::proved`]) has done so from this address.
    pub fn proved_from(&mut self, client: &str, address: IpAddr, now: Time) {
        self.ranges.proved(client, address, now);
    }

    /// A terminal has proved who it is.
    ///
    /// # Errors
    /// When it has connected too often.
    pub fn proved(&mut self, client: &str, place: Place, now: Time) -> Result<(), Excess> {
        self.known.set(Sign::at(client, place), now + self.limits.known_for, (), now);
        self.count_client(client, now)
    }

    /// A guest is to be let in, under a name that somebody has vouched for.
    ///
    /// # Errors
    /// When it has connected too often.
    pub fn vouched(&mut self, client: &str, place: Place, now: Time) -> Result<(), Excess> {
        self.known_guests.set(Sign::at(client, place), now + self.limits.known_for, (), now);
        self.count_client(client, now)
    }

    /// A guest is to be let in, under the name that it gave itself, or under none.
    ///
    /// # Errors
    /// When it has connected too often, or too many have from there; it may have knocked under another name.
    pub fn guest(&mut self, client: &str, place: Place, now: Time) -> Result<(), Excess> {
        if self.is_spent(place, now) {
            return Err(Excess::Place);
        }
        self.places.charge(place, now);
        if client.is_empty() { Ok(()) } else { self.count_client(client, now) }
    }

    /// A connection led to nobody: it is counted against its place.
    pub fn failed(&mut self, place: Place, now: Time) {
        self.places.charge(place, now);
    }

    /// A password is about to be verified.
    ///
    /// # Errors
    /// When it is not to be.
    pub fn guess(&mut self, name: &str, place: Place, now: Time) -> Result<(), Excess> {
        let known = self.knows(name, place, now);
        if self.guesses.may(name, place, known, now) { Ok(()) } else { Err(Excess::Guesses) }
    }

    /// It was right.
    pub fn guessed(&mut self, name: &str, place: Place) {
        self.guesses.right(name, place);
    }

    /// It was not verified after all.
    pub fn unguessed(&mut self, name: &str, place: Place, now: Time) {
        self.guesses.unverified(name, place, now);
    }

    /// It was wrong. Gives how long no further one is verified for this name from this place, when that is so.
    pub fn misguessed(&mut self, name: &str, place: Place, now: Time) -> Option<Duration> {
        let known = self.knows(name, place, now);
        self.guesses.wrong(name, place, known, now)
    }

    /// Whether this is to be logged: it was not for a while.
    pub fn is_news(&mut self, what: &str, now: Time) -> bool {
        let sign = Sign::of(what);
        let news = self.told.get(&sign, now).is_none();
        if news {
            self.told.set(sign, now + TOLD_FOR, (), now);
        }
        news
    }

    /// Forgets what is over, so that an idle node has nothing of it. As it is used the tables empty themselves.
    pub fn forget(&mut self, now: Time) {
        let Self { limits: _, strangers: _, clients, places, ranges, known, known_guests, guesses, told } = self;
        clients.forget(now);
        places.forget(now);
        ranges.forget(now);
        known.forget(now);
        known_guests.forget(now);
        guesses.forget(now);
        told.forget(now);
    }

    fn knows(&self, client: &str, place: Place, now: Time) -> bool {
        let sign = Sign::at(client, place);
        let is_in = |known: &Kept<Sign, ()>| known.get(&sign, now).is_some();
        !client.is_empty() && (is_in(&self.known) || is_in(&self.known_guests))
    }

    fn count_client(&mut self, client: &str, now: Time) -> Result<(), Excess> {
        let sign = Sign::of(client);
        if self.clients.wait(&sign, now) > Duration::ZERO {
            return Err(Excess::Client);
        }
        self.clients.charge(sign, now);
        Ok(())
    }
}
