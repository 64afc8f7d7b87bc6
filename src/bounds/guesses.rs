//! Wrong passwords, counted for each name at each place, for each place, and for each name.
//!
//! A name that somebody guesses at stays open to whoever comes from elsewhere: a stranger who knows a terminal's name
//! must not be able to keep the terminal out. So a name alone is never refused. After many wrong passwords for it, from
//! wherever, one is enough to make each further place wait.
//!
//! What is counted is forgiven bit by bit: all that is free comes back within [`Patience::wait_max`].

use std::time::Duration;

use super::Place;
use super::kept::Kept;
use super::sign::Sign;
use crate::time::Time;

/// How many wrong passwords are borne before the next one has to wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one name from one place.
    pub per_client: u32,
    /// From one place, whatever the names, but for clients that are known there.
    pub per_place: u32,
    /// For one name from all places; then one from each is borne.
    pub per_name: u32,
    /// The first wait; doubled with each further wrong one.
    pub wait_min: Duration,
    /// The longest.
    pub wait_max: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Strikes {
    count: u32,
    /// Up to when it is forgiven what can be.
    since: Option<Time>,
    barred_until: Option<Time>,
}

impl Strikes {
    fn barred(&self, now: Time) -> bool {
        self.barred_until.is_some_and(|until| until > now)
    }

    fn forgiven(mut self, free: u32, wait_max: Duration, now: Time) -> Self {
        let (each, since) = (wait_max / free.max(1), self.since.unwrap_or(now));
        let times = now.since(since).as_millis() / each.as_millis().max(1);
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(times);
        self.since = Some(if self.count == 0 { now } else { since + each.saturating_mul(times) });
        self
    }

    fn struck(mut self, free: u32, patience: &Patience, now: Time) -> Self {
        self = self.forgiven(free, patience.wait_max, now);
        self.count = self.count.saturating_add(1);
        if let Some(beyond) = self.count.checked_sub(free.max(1)) {
            let wait = patience.wait_min.saturating_mul(1 << beyond.min(20)).min(patience.wait_max);
            self.barred_until = Some(now + wait);
        }
        self
    }

    /// One wrong password is forgotten after `wait_max`, and who is barred for longer is remembered for longer.
    fn until(&self, wait_max: Duration, now: Time) -> Time {
        self.barred_until.unwrap_or(now).max(now) + wait_max
    }
}

#[derive(Debug)]
pub(super) struct Guesses {
    patience: Patience,
    clients: Kept<Sign, Strikes>,
    places: Kept<Place, Strikes>,
    names: Kept<Sign, Strikes>,
}

impl Guesses {
    pub(super) fn new(patience: Patience, max: usize) -> Self {
        Self { patience, clients: Kept::new(max), places: Kept::new(max), names: Kept::new(max) }
    }

    /// Whether a password is to be verified. Then it counts as wrong for this name from this place until it is known to be
    /// right: nobody has more of them verified by sending them at once.
    pub(super) fn may(&mut self, name: &str, place: Place, known: bool, now: Time) -> bool {
        let key = Sign::at(name, place);
        let client = self.clients.get(&key, now).copied().unwrap_or_default();
        let place_is_barred = || self.places.get(&place, now).is_some_and(|place| place.barred(now));
        if client.barred(now) || (!known && place_is_barred()) {
            return false;
        }
        let client = client.struck(self.free(name, known, now), &self.patience, now);
        self.clients.set(key, client.until(self.patience.wait_max, now), client, now);
        true
    }

    pub(super) fn right(&mut self, name: &str, place: Place) {
        self.clients.remove(&Sign::at(name, place));
    }

    pub(super) fn unverified(&mut self, name: &str, place: Place, now: Time) {
        let key = Sign::at(name, place);
        if let Some(mut client) = self.clients.remove(&key) {
            client.count = client.count.saturating_sub(1);
            client.barred_until = None;
            self.clients.set(key, client.until(self.patience.wait_max, now), client, now);
        }
    }

    pub(super) fn wrong(&mut self, name: &str, place: Place, known: bool, now: Time) -> Option<Duration> {
        let patience = self.patience;
        if !known {
            let here = self.places.get(&place, now).copied().unwrap_or_default();
            let here = here.struck(patience.per_place, &patience, now);
            self.places.set(place, here.until(patience.wait_max, now), here, now);
        }
        let sign = Sign::of(name);
        let mut all = self.names.get(&sign, now).copied().unwrap_or_default();
        all = all.forgiven(patience.per_name, patience.wait_max, now);
        all.count = all.count.saturating_add(1);
        self.names.set(sign, now + patience.wait_max, all, now);
        let client = self.clients.get(&Sign::at(name, place), now)?;
        client.barred_until.map(|until| until.since(now)).filter(|wait| !wait.is_zero())
    }

    pub(super) fn forget(&mut self, now: Time) {
        self.clients.forget(now);
        self.places.forget(now);
        self.names.forget(now);
    }

    fn free(&self, name: &str, known: bool, now: Time) -> u32 {
        let guessed_at = self.names.get(&Sign::of(name), now).is_some_and(|all| all.count >= self.patience.per_name);
        if guessed_at && !known { 1 } else { self.patience.per_client }
    }
}
