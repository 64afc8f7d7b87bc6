//! How fast a client may publish, and how long it may take over one packet.
//!
//! Who is too fast is left unread for as long as it takes: TCP tells the client to wait, and nothing is lost. The terminals
//! of one agent may be too fast together: what they share is not of this session, which is told until when they owe. A
//! packet once begun is to be whole in time, or the connection ends: a byte now and then would hold it, and its buffers,
//! for ever.

use std::time::Duration;

use crate::bounds::{Bucket, Rate};
use crate::time::Time;

/// Why a connection ends whose packet came too slowly.
pub const LATE: &str = "a packet that was begun was not whole in time";

/// The limits of one client; each may be none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    pub publishes: Option<Rate>,
    /// Of topics, properties and payloads that it publishes, and of the filters that it subscribes to.
    pub bytes: Option<Rate>,
    pub frame_within: Option<Duration>,
}

/// Who was too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooFast {
    /// The client by itself.
    Client,
    /// All terminals of its agent together.
    Agent,
}

#[derive(Debug, Default)]
pub(super) struct Pacer {
    publishes: Bucket,
    bytes: Bucket,
    reads: Reads,
}

#[derive(Debug, Default)]
enum Reads {
    /// Nothing is there in part.
    #[default]
    Whole,
    /// A packet is there in part, since then.
    Begun(Time),
    /// Nothing is read before.
    Held(Time, TooFast),
}

impl Pacer {
    /// One more publish.
    pub(super) fn published(&mut self, bytes: usize, pace: &Pace, now: Time) {
        self.take(1, bytes, pace, now);
    }

    /// A SUBSCRIBE or an UNSUBSCRIBE: what it has in bytes it has to pay for too.
    pub(super) fn changed(&mut self, bytes: usize, pace: &Pace, now: Time) {
        self.take(0, bytes, pace, now);
    }

    fn take(&mut self, publishes: u32, bytes: usize, pace: &Pace, now: Time) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let each = [(pace.publishes, &mut self.publishes, publishes), (pace.bytes, &mut self.bytes, bytes)];
        let until = each.into_iter().filter_map(|(rate, bucket, tokens)| {
            bucket.take(rate?, tokens, now);
            Some(bucket.empty_until(rate?))
        });
        if let Some(until) = until.max() {
            self.hold(until, TooFast::Client, now);
        }
    }

    /// Nothing is read before.
    pub(super) fn hold(&mut self, until: Time, too_fast: TooFast, now: Time) {
        let longer = matches!(self.reads, Reads::Held(held, _) if held >= until);
        if until > now && !longer {
            self.reads = Reads::Held(until, too_fast);
        }
    }

    pub(super) fn held_by(&self) -> Option<TooFast> {
        if let Reads::Held(_, too_fast) = self.reads { Some(too_fast) } else { None }
    }

    /// True when the client is read again from now on.
    pub(super) fn release(&mut self, now: Time) -> bool {
        let over = matches!(self.reads, Reads::Held(until, _) if now >= until);
        if over {
            self.reads = Reads::Whole;
        }
        over
    }

    /// All that came was read, and a packet is there in part, or is not.
    pub(super) fn partial(&mut self, partial: bool, now: Time) {
        self.reads = match self.reads {
            // What it sent in part is no fault of its own, while it is left unread.
            Reads::Held(until, too_fast) => Reads::Held(until, too_fast),
            Reads::Begun(since) if partial => Reads::Begun(since),
            _ if partial => Reads::Begun(now),
            _ => Reads::Whole,
        };
    }

    /// By when the packet that was begun is to be whole.
    pub(super) fn whole_by(&self, pace: &Pace) -> Option<Time> {
        let Reads::Begun(since) = self.reads else { return None };
        Some(since + pace.frame_within?)
    }

    /// When something is to be done, if the client is left unread or if it is read.
    pub(super) fn poll_timeout(&self, unread: bool, pace: &Pace) -> Option<Time> {
        match self.reads {
            Reads::Held(until, _) => Some(until).filter(|_| unread),
            _ => self.whole_by(pace).filter(|_| !unread),
        }
    }
}
