//! How fast a client may publish, and how long it may take over one packet.
//!
//! Who is too fast is left unread for as long as it takes: TCP tells the client to wait, and nothing is lost. A packet once
//! begun is to be whole in time, or the connection ends: a byte now and then would hold it, and its buffers, for ever.

use std::time::Duration;

use crate::bounds::{Bucket, Rate};
use crate::time::Time;

/// Why a connection ends whose packet came too slowly.
pub const LATE: &str = "a packet that was begun was not whole in time";

/// The limits of one client; each may be none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    pub publishes: Option<Rate>,
    /// Of their topics and payloads.
    pub bytes: Option<Rate>,
    pub frame_within: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Pacer {
    publishes: Bucket,
    bytes: Bucket,
    /// Nothing is read before.
    held_until: Option<Time>,
    /// Since when a packet is there in part.
    begun: Option<Time>,
}

impl Pacer {
    pub(super) fn published(&mut self, bytes: usize, pace: &Pace, now: Time) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let each = [(pace.publishes, &mut self.publishes, 1), (pace.bytes, &mut self.bytes, bytes)];
        for (rate, bucket, tokens) in each {
            let Some(rate) = rate else { continue };
            bucket.take(rate, tokens, now);
            let until = bucket.empty_until(rate);
            if until > now {
                self.held_until = self.held_until.max(Some(until));
            }
        }
    }

    pub(super) fn holds(&self) -> bool {
        self.held_until.is_some()
    }

    /// True when the client is read again from now on.
    pub(super) fn release(&mut self, now: Time) -> bool {
        let over = self.held_until.is_some_and(|until| now >= until);
        if over {
            self.held_until = None;
            self.begun = None;
        }
        over
    }

    /// All that came was read, and a packet is there in part, or is not.
    pub(super) fn partial(&mut self, partial: bool, now: Time) {
        self.begun = if partial { self.begun.or(Some(now)) } else { None };
    }

    /// By when the packet that was begun is to be whole.
    pub(super) fn whole_by(&self, pace: &Pace) -> Option<Time> {
        Some(self.begun? + pace.frame_within?)
    }

    /// When something is to be done, if the client is left unread or if it is read.
    pub(super) fn poll_timeout(&self, unread: bool, pace: &Pace) -> Option<Time> {
        if unread { self.held_until } else { self.whole_by(pace) }
    }
}
