//! What one client may cost while it is connected, and what was counted of those who wanted more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wakala::bounds::Rate;
use wakala::session::pace::{Pace, TooFast};

use super::agents::Shares;
use crate::metrics::counts::Count;

/// Bounds of every session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Publishes of one client in a second, over time; who sends more is left unread until they are paid for, and nothing
    /// is lost. 0 is no limit.
    pub publishes_per_second: u32,
    /// How many publishes may come at once, on each connection anew.
    pub publishes_burst: u32,
    /// Bytes of topics, properties and payloads that one client publishes in a second, over time, and of the filters that it
    /// subscribes to and leaves. 0 is no limit.
    pub bytes_per_second: u32,
    /// How many bytes may come at once, on each connection anew.
    pub bytes_burst: u32,
    /// Publishes of all terminals of one agent together that are connected to this node, in a second, over time. Whose
    /// publish is beyond that is left unread until it is paid for. 0 is no limit.
    pub agent_publishes_per_second: u32,
    /// How many of theirs may come at once.
    pub agent_publishes_burst: u32,
    /// Bytes of topics, properties and payloads that they publish together in a second, over time. 0 is no limit.
    pub agent_bytes_per_second: u32,
    /// How many bytes of theirs may come at once.
    pub agent_bytes_burst: u32,
    /// From the first byte of a packet to its last; then the connection ends. On a link of 1 kB/s the largest packet takes
    /// a minute.
    #[serde(with = "humantime_serde")]
    pub frame_within: Duration,
    /// Bans in force at the same time, all of which each node has in memory; more are refused.
    pub bans_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            publishes_per_second: 100,
            publishes_burst: 500,
            bytes_per_second: 256 * 1024,
            bytes_burst: 1024 * 1024,
            // Four of his terminals may be as fast as they may.
            agent_publishes_per_second: 400,
            agent_publishes_burst: 2000,
            agent_bytes_per_second: 1024 * 1024,
            agent_bytes_burst: 4 * 1024 * 1024,
            frame_within: Duration::from_secs(120),
            bans_max: 10_000,
        }
    }
}

impl Options {
    pub(super) fn pace(&self) -> Pace {
        Pace {
            publishes: Rate::per_second(self.publishes_per_second, self.publishes_burst),
            bytes: Rate::per_second(self.bytes_per_second, self.bytes_burst),
            frame_within: Some(self.frame_within),
        }
    }

    pub(super) fn shares(&self) -> Shares {
        Shares {
            publishes: Rate::per_second(self.agent_publishes_per_second, self.agent_publishes_burst),
            bytes: Rate::per_second(self.agent_bytes_per_second, self.agent_bytes_burst),
        }
    }
}

/// What was counted since the node started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections from addresses that are banned, closed at once.
    pub banned_addresses: Count,
    /// CONNECTs of whom a ban names.
    pub banned: Count,
    /// Sessions that a ban ended.
    pub ended: Count,
    /// Connections closed because their address had its share of strangers.
    pub crowded: Count,
    /// CONNECTs of clients that connect too often.
    pub flapping: Count,
    /// CONNECTs from addresses from where too many lead to nobody.
    pub flapping_addresses: Count,
    /// CONNECTs from networks from where too many come.
    pub flapping_ranges: Count,
    /// Passwords that were wrong.
    pub wrong_passwords: Count,
    /// CONNECTs whose password was not looked at, after too many wrong ones.
    pub unverified: Count,
    /// Times that a client was left unread because it published too fast.
    pub held: Count,
    /// Times that a terminal was left unread because the terminals of its agent published too fast together.
    pub held_agents: Count,
    /// Connections ended because a packet was not whole in time.
    pub late: Count,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub bans: usize,
    pub banned_addresses: u64,
    pub banned: u64,
    pub ended: u64,
    pub crowded: u64,
    pub flapping: u64,
    pub flapping_addresses: u64,
    pub flapping_ranges: u64,
    pub wrong_passwords: u64,
    pub unverified: u64,
    pub held: u64,
    pub held_agents: u64,
    pub late: u64,
}

impl Counts {
    /// Somebody is left unread.
    pub(crate) fn holds(&self, too_fast: TooFast) {
        match too_fast {
            TooFast::Client => self.held.one(),
            TooFast::Agent => self.held_agents.one(),
        }
    }

    pub(super) fn report(&self, bans: usize) -> Report {
        Report {
            bans,
            banned_addresses: self.banned_addresses.get(),
            banned: self.banned.get(),
            ended: self.ended.get(),
            crowded: self.crowded.get(),
            flapping: self.flapping.get(),
            flapping_addresses: self.flapping_addresses.get(),
            flapping_ranges: self.flapping_ranges.get(),
            wrong_passwords: self.wrong_passwords.get(),
            unverified: self.unverified.get(),
            held: self.held.get(),
            held_agents: self.held_agents.get(),
            late: self.late.get(),
        }
    }
}
