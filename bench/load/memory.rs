//! What an idle connection with one subscription costs a broker in memory, and what a session costs whose terminal is away.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::connects::come_and_go;
use super::join::{Client, join};
use super::{Setting, go_on};
use crate::links::{Links, Play};
use crate::process::Memory;
use crate::report::Report;

/// After so long a broker has put away what a change left behind.
const SETTLE: Duration = Duration::from_secs(3);

/// Resident bytes of each of so many connections.
pub(crate) fn connected(setting: &Setting, connections: usize) -> Result<Report> {
    let pid = broker(setting)?;
    let mut links = setting.links(connections)?;
    let before = Memory::of(pid)?;
    let client = |n| Client::clean(&format!("bench-m{n}")).subscribing(&format!("t/{n}/res"), 1);
    join(&mut links, &(0..connections).map(client).collect::<Vec<_>>(), setting)?;
    go_on(&mut links, &mut Idle, SETTLE)?;
    let after = Memory::of(pid)?;
    Ok(Report::new(each(before.resident, after.resident, connections), "bytes")
        .with("connections", connections)
        .with("share_bytes", each(before.share, after.share, connections))
        .with("resident_before", before.resident)
        .with("resident_after", after.resident))
}

/// Resident bytes of each of so many sessions that are stored and whose terminals are away. They come and go a few at a time, and
/// as many clean ones before them, so that neither what connections cost nor what the allocator keeps of them is counted.
pub(crate) fn away(setting: &Setting, sessions: usize) -> Result<Report> {
    let pid = broker(setting)?;
    let come_and_go = |persistent| {
        come_and_go(setting, sessions as u64, persistent)?;
        std::thread::sleep(SETTLE);
        Memory::of(pid)
    };
    let before = come_and_go(false)?;
    let after = come_and_go(true)?;
    Ok(Report::new(each(before.resident, after.resident, sessions), "bytes")
        .with("sessions", sessions)
        .with("share_bytes", each(before.share, after.share, sessions))
        .with("resident_before", before.resident)
        .with("resident_after", after.resident))
}

pub(crate) fn broker(setting: &Setting) -> Result<u32> {
    setting.pids.first().copied().context("whose memory? --pid")
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a process")]
fn each(before: u64, after: u64, count: usize) -> f64 {
    ((after as f64 - before as f64) / count as f64).round()
}

/// Nothing is expected, and a connection that ends is an error.
struct Idle;

impl Play for Idle {
    fn packet(&mut self, _: &mut Links, at: usize, first: u8, _: &[u8]) -> Result<()> {
        anyhow::bail!("idle client {at} was sent a packet {first:#x}")
    }
}
