//! The queue of a subscriber that is away: filled at QoS 1 until the broker is killed in the middle of it, and emptied when the
//! broker is back. What was acknowledged must be there.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::join::{Client, accepted, join};
use super::publish::Publishers;
use super::{Setting, finish, go_on};
use crate::links::{Links, Play};
use crate::packets::{self, Arrived, CONNACK, DISCONNECT, PUBLISH};
use crate::process::{Meter, kill};
use crate::report::{Report, rounded};

const SUBSCRIBER: &str = "bench-queue";
/// The session is stored, and its messages go there, for so long before the clock runs.
const SETTLE: Duration = Duration::from_secs(1);

/// Fills the queue and kills the first of the broker's processes. What was acknowledged is written to `state`.
pub(crate) fn fill(setting: &Setting, clients: usize, in_flight: u16, state: &Path) -> Result<Report> {
    let victim = super::memory::broker(setting)?;
    leave_a_subscriber(setting)?;
    let mut links = setting.links(clients)?;
    let joining: Vec<Client> = (0..clients).map(|n| Client::clean(&format!("bench-q{n}"))).collect();
    join(&mut links, &joining, setting)?;
    let mut filling = Filling {
        publishers: Publishers::new(clients, in_flight, |n| format!("q/{n}"), setting.size),
        killed: false,
        closed: 0,
    };
    filling.publishers.witnessed = Some(vec![Vec::new(); clients]);
    filling.publishers.start(&mut links);
    go_on(&mut links, &mut filling, setting.warm_up)?;
    let (before, meter) = (filling.publishers.acknowledged, Meter::start(&setting.pids));
    go_on(&mut links, &mut filling, setting.measured)?;
    let (rate, shares) = meter.finish(filling.publishers.acknowledged - before);
    // With publishes under way: what was acknowledged until the last byte counts.
    kill(victim)?;
    filling.killed = true;
    filling.publishers.stopping = true;
    let gone = finish(&mut links, &mut filling, setting.patience, |filling| filling.closed == clients)?;
    ensure!(gone, "the broker was killed, and {} connections live", clients - filling.closed);
    let stamps = filling.publishers.witnessed.unwrap_or_default();
    fs::write(state, write_stamps(&stamps).to_string()).with_context(|| state.display().to_string())?;
    Ok(Report::new(rate, "queued/s")
        .with("clients", clients)
        .with("in_flight", in_flight)
        .with("acknowledged", filling.publishers.acknowledged)
        .and(shares))
}

/// A client that subscribed to everything that will be queued, and left.
fn leave_a_subscriber(setting: &Setting) -> Result<()> {
    let mut links = setting.links(1)?;
    join(&mut links, &[Client::persistent(SUBSCRIBER).subscribing("q/#", 1)], setting)?;
    links.out(0).extend_from_slice(&DISCONNECT);
    let mut leaving = Leaving { gone: false };
    finish(&mut links, &mut leaving, setting.patience, |leaving| leaving.gone)?;
    std::thread::sleep(SETTLE);
    Ok(())
}

struct Leaving {
    gone: bool,
}

impl Play for Leaving {
    fn packet(&mut self, _: &mut Links, _: usize, first: u8, _: &[u8]) -> Result<()> {
        anyhow::bail!("a packet {first:#x} after DISCONNECT")
    }

    fn closed(&mut self, _: &mut Links, _: usize, _: &str) -> Result<()> {
        self.gone = true;
        Ok(())
    }
}

struct Filling {
    publishers: Publishers,
    killed: bool,
    closed: usize,
}

impl Play for Filling {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        self.publishers.packet(links, at, first, body)
    }

    fn closed(&mut self, _: &mut Links, at: usize, why: &str) -> Result<()> {
        ensure!(self.killed, "publisher {at} was closed: {why}");
        self.closed += 1;
        Ok(())
    }
}

/// Empties the queue and compares it with what was acknowledged. Messages that are lost are the figure, not a fault of it.
pub(crate) fn drain(setting: &Setting, state: &Path, quiet: Duration) -> Result<Report> {
    let text = fs::read_to_string(state).with_context(|| state.display().to_string())?;
    let acknowledged = read_stamps(&serde_json::from_str(&text)?)?;
    let mut links = setting.links(1)?;
    let seen = acknowledged.iter().map(|stamps| vec![0; stamps.len()]).collect();
    let mut draining = Draining {
        present: None,
        seen,
        last: vec![None; acknowledged.len()],
        delivered: 0,
        out_of_order: 0,
        first_and_last: None,
    };
    links.open(0, &Client::persistent(SUBSCRIBER).connect)?;
    let begin = Instant::now();
    // The queue is empty when nothing has come for a while.
    while begin.elapsed() < setting.patience {
        links.turn(&mut draining)?;
        let last = draining.first_and_last.map_or(begin, |(_, last)| last);
        if draining.present.is_some() && last.elapsed() > quiet {
            break;
        }
    }
    let present = draining.present.context("no CONNACK")?;
    let Losses { total, lost, duplicates } = losses(&acknowledged, &draining.seen);
    #[expect(clippy::cast_precision_loss, reason = "messages of a measurement")]
    let (value, delivered) = (lost as f64, draining.delivered as f64);
    let seconds = draining.first_and_last.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    Ok(Report::new(value, "messages")
        .with("acknowledged", total)
        .with("delivered", draining.delivered)
        .with("duplicates", duplicates)
        .with("out_of_order", draining.out_of_order)
        .with("session_present", present)
        .with("delivered_per_s", if seconds > 0.0 { rounded(delivered / seconds) } else { 0.0 }))
}

#[derive(Debug, PartialEq, Eq)]
struct Losses {
    total: u64,
    lost: u64,
    duplicates: u64,
}

/// What of `acknowledged` was not seen, and what was seen more than once.
fn losses(acknowledged: &[Vec<bool>], seen: &[Vec<u8>]) -> Losses {
    let mut losses = Losses { total: 0, lost: 0, duplicates: 0 };
    for (acknowledged, seen) in acknowledged.iter().zip(seen) {
        for (stamp, _) in acknowledged.iter().enumerate().filter(|(_, acknowledged)| **acknowledged) {
            losses.total += 1;
            losses.lost += u64::from(seen[stamp] == 0);
        }
        losses.duplicates += seen.iter().map(|seen| u64::from(seen.saturating_sub(1))).sum::<u64>();
    }
    losses
}

struct Draining {
    /// What CONNACK said of the session.
    present: Option<bool>,
    /// By publisher and stamp: how often.
    seen: Vec<Vec<u8>>,
    last: Vec<Option<u64>>,
    delivered: u64,
    out_of_order: u64,
    first_and_last: Option<(Instant, Instant)>,
}

impl Play for Draining {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            CONNACK => self.present = Some(accepted(body)?),
            PUBLISH => {
                let arrived = Arrived::read(first, body)?;
                packets::push_puback(links.out(at), arrived.id);
                let publisher = arrived.topic.strip_prefix(b"q/").and_then(|n| str::from_utf8(n).ok()?.parse().ok());
                let publisher: usize = publisher.context("a topic that nobody published to")?;
                let stamps = self.seen.get_mut(publisher).context("a publisher that is none")?;
                // Published, and the broker was killed before it was acknowledged: it may be there.
                let stamp = usize::try_from(arrived.stamp)?;
                if stamp >= stamps.len() {
                    stamps.resize(stamp + 1, 0);
                }
                stamps[stamp] = stamps[stamp].saturating_add(1);
                self.out_of_order += u64::from(self.last[publisher].is_some_and(|last| last > arrived.stamp));
                self.last[publisher] = Some(arrived.stamp);
                self.delivered += 1;
                let now = Instant::now();
                self.first_and_last = Some((self.first_and_last.map_or(now, |(first, _)| first), now));
            }
            _ => anyhow::bail!("the subscriber was sent a packet {first:#x}"),
        }
        Ok(())
    }
}

/// By publisher: the stamps that were acknowledged, as [from, to) pairs.
fn write_stamps(acknowledged: &[Vec<bool>]) -> Value {
    let ranges = |stamps: &Vec<bool>| {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for (stamp, _) in stamps.iter().enumerate().filter(|(_, acknowledged)| **acknowledged) {
            match ranges.last_mut() {
                Some((_, end)) if *end == stamp => *end += 1,
                _ => ranges.push((stamp, stamp + 1)),
            }
        }
        ranges
    };
    json!(acknowledged.iter().map(ranges).collect::<Vec<_>>())
}

fn read_stamps(value: &Value) -> Result<Vec<Vec<bool>>> {
    let number = |value: &Value| usize::try_from(value.as_u64().context("a stamp")?).context("a stamp");
    let publishers = value.as_array().context("publishers")?.iter().map(|ranges| {
        let mut stamps = Vec::new();
        for range in ranges.as_array().context("ranges")? {
            let (from, to) = (number(&range[0])?, number(&range[1])?);
            ensure!(stamps.len() <= from && from < to, "ranges in order");
            stamps.resize(from, false);
            stamps.resize(to, true);
        }
        Ok(stamps)
    });
    publishers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_can_be_lost() {
        let acknowledged = [vec![true, false, true, true], vec![true]];
        let seen = [vec![1, 0, 0, 3, 1], vec![0]];
        assert_eq!(losses(&acknowledged, &seen), Losses { total: 4, lost: 2, duplicates: 2 });
    }

    #[test]
    fn stamps_are_read_as_they_were_written() {
        let stamps = vec![vec![true, true, false, true], vec![], vec![false, true]];
        let written = write_stamps(&stamps);
        assert_eq!(written.to_string(), "[[[0,2],[3,4]],[],[[1,2]]]");
        assert_eq!(read_stamps(&written).unwrap(), stamps);
    }
}
