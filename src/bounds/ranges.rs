//! Networks whose connects are counted together: the addresses that a mobile operator's APN gives its SIMs.
//!
//! When such a network drops everybody every few seconds, all come back every few seconds, each within its own limits and
//! each by right. So all connects from there count here, whoever they are and whatever comes of them, and those beyond the
//! rate are turned away before anything is asked about them.
//!
//! But nobody is to be kept out for long by its neighbours, least of all with a transaction in flight. A terminal that
//! has proved who it is in this network, at whatever address of it, and has not done so again for a while, passes. So the
//! network costs its rate, and besides that no more than each of its terminals once in that time. Who only gives such a
//! terminal's name uses nothing of that up; what he may try is bounded by his own address.

use std::time::Duration;

use core::net::IpAddr;

use super::kept::Kept;
use super::rate::{Bucket, Rate};
use super::sign::Sign;
use crate::ban::Network;
use crate::time::Time;

/// One network, and what its connects may cost together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub network: Network,
    /// None is no limit: a part of a wider network that does not count with it.
    pub connects: Option<Rate>,
    /// How long after it proved who it is a terminal passes again, whatever the others do.
    pub known_every: Duration,
}

#[derive(Debug)]
pub(super) struct Ranges {
    /// The narrowest first.
    ranges: Vec<(Range, Bucket)>,
    /// When a client last proved who it is in this network.
    known: Kept<Sign, Time>,
    known_for: Duration,
}

impl Ranges {
    pub(super) fn new(mut ranges: Vec<Range>, known_for: Duration, max: usize) -> Self {
        ranges.sort_by_key(|range| std::cmp::Reverse(range.network.bits()));
        let ranges = ranges.into_iter().map(|range| (range, Bucket::default())).collect();
        Self { ranges, known: Kept::new(max), known_for }
    }

    pub(super) fn forget(&mut self, now: Time) {
        self.known.forget(now);
    }

    fn around(&mut self, address: IpAddr) -> Option<(&Range, Rate, &mut Bucket)> {
        let (range, bucket) = self.ranges.iter_mut().find(|(range, _)| range.network.contains(address))?;
        Some((range, range.connects?, bucket))
    }

    /// Counts a CONNECT against the network that it comes from, if that is one of these.
    pub(super) fn knock(&mut self, client: &str, address: IpAddr, now: Time) -> Result<(), Network> {
        let Some((range, rate, bucket)) = self.around(address) else { return Ok(()) };
        if bucket.empty_until(rate) <= now {
            bucket.take(rate, 1, now);
            return Ok(());
        }
        let (network, every) = (range.network, range.known_every);
        let proved = self.known.get(&Sign::within(client, network), now);
        if proved.is_some_and(|&proved| now >= proved + every) { Ok(()) } else { Err(network) }
    }

    /// This client has proved who it is.
    pub(super) fn proved(&mut self, client: &str, address: IpAddr, now: Time) {
        let Some((&Range { network, .. }, ..)) = self.around(address) else { return };
        self.known.set(Sign::within(client, network), now + self.known_for, now, now);
    }
}
