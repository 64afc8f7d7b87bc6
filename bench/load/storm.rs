//! A reconnect storm: terminals with stored sessions lose their connections in one moment and come back in the next, all of them,
//! while one that was not cut goes on with its business.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;

use super::join::{Client, accepted, join};
use super::requests::{histogram, milliseconds};
use super::{Setting, finish, go_on};
use crate::links::{Links, Play};
use crate::packets::{self, Arrived, CONNACK, PUBACK, PUBLISH, Publish};
use crate::process::{Memory, Meter};
use crate::report::{Report, rounded};

/// Connections that are begun between two looks at what has happened.
const OPENED_AT_ONCE: usize = 100;
/// How often the terminal that was not cut sends itself a message.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// Messages under way to terminals that are back: fewer than any broker has a reason to drop.
const CALLED_AT_ONCE: usize = 64;
/// Before a terminal whose connection failed tries again.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run(setting: &Setting, terminals: usize, calm: Duration) -> Result<Report> {
    let pid = super::memory::broker(setting)?;
    let mut clients: Vec<Client> = (0..terminals)
        .map(|n| Client::known(setting, &format!("bench-w{n}"), false).subscribing(&format!("w/{n}"), 1))
        .collect();
    // The last one is not cut.
    clients.push(Client::known(setting, "bench-probe", true).subscribing("w/probe", 1));
    let mut links = setting.links(clients.len())?;
    join(&mut links, &clients, setting)?;
    let mut storm = Storm::new(clients, setting.size)?;
    go_on(&mut links, &mut storm, calm)?;
    let calm = std::mem::replace(&mut storm.probe.times, histogram()?);
    let (before, meter, waited) = (Memory::of(pid)?, Meter::start(&setting.pids), left_waiting()?);
    let (cut, cut_at) = (Instant::now(), SystemTime::now());
    (0..terminals).for_each(|at| links.cut(at));
    storm.to_open = (0..terminals).map(|at| (at, cut)).collect();
    let all = finish(&mut links, &mut storm, setting.patience, |storm| storm.back == terminals)?;
    let seconds = storm.last_back.map_or(0.0, |last| (last - cut).as_secs_f64());
    let (_, shares) = meter.finish(storm.back as u64);
    let (after, waited) = (Memory::of(pid)?, left_waiting()? - waited);
    let in_storm = std::mem::replace(&mut storm.probe.times, histogram()?);
    let unheard = if all { storm.call_all(&mut links, setting)? } else { 0 };
    let probe = |times: &Histogram<u64>| {
        serde_json::json!({"count": times.len(), "p50_ms": milliseconds(times, 0.5), "p99_ms": milliseconds(times, 0.99),
            "max_ms": milliseconds(times, 1.0)})
    };
    Ok(Report::new(rounded(seconds), "s")
        .with("terminals", terminals)
        .with("failures", storm.failures)
        .with("accepts_left_waiting", waited)
        .with("cut_at_s", cut_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
        .with("p50_ms", milliseconds(&storm.times, 0.5))
        .with("p99_ms", milliseconds(&storm.times, 0.99))
        .with("other_before", probe(&calm))
        .with("other_meanwhile", probe(&in_storm))
        .with("resident_before", before.resident)
        .with("resident_after", after.resident)
        .unless_zero((terminals - storm.back) as u64, "terminals did not come back")
        .unless_zero(storm.forgotten, "sessions were not there any more")
        .unless_zero(unheard, "terminals that came back do not hear what they subscribed to")
        .and(shares))
}

/// Connections for which a listener's queue had no room, so far, of the whole machine (`ListenOverflows` of proc(5),
/// /proc/net/netstat). Their clients try again after a second, and later.
fn left_waiting() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/netstat").context("/proc/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ListenOverflows");
    found.and_then(|(_, count)| count.parse().ok()).context("ListenOverflows in /proc/net/netstat")
}

struct Storm {
    clients: Vec<Client>,
    /// Terminals that are to connect, and when.
    to_open: VecDeque<(usize, Instant)>,
    opened: Vec<Instant>,
    back: usize,
    last_back: Option<Instant>,
    failures: u64,
    forgotten: u64,
    /// From the beginning of a connection to its CONNACK.
    times: Histogram<u64>,
    probe: Probe,
    size: usize,
    /// Publishes of the probe that no PUBACK has come for, and calls that nobody has heard.
    unacknowledged: u64,
    heard: Vec<bool>,
}

/// The terminal that was not cut.
struct Probe {
    link: usize,
    message: Publish,
    id: u16,
    /// When the message under way was due.
    under_way: Option<Instant>,
    next: Instant,
    stamp: u64,
    times: Histogram<u64>,
    resting: bool,
}

impl Storm {
    fn new(clients: Vec<Client>, size: usize) -> Result<Self> {
        let now = Instant::now();
        let link = clients.len() - 1;
        let message = Publish::new("w/probe", 1, size);
        Ok(Self {
            to_open: VecDeque::with_capacity(clients.len()),
            opened: vec![now; clients.len()],
            heard: vec![false; clients.len() - 1],
            clients,
            back: 0,
            last_back: None,
            failures: 0,
            forgotten: 0,
            times: histogram()?,
            probe: Probe {
                link,
                message,
                id: 0,
                under_way: None,
                next: now,
                stamp: 0,
                times: histogram()?,
                resting: false,
            },
            size,
            unacknowledged: 0,
        })
    }

    /// Sends each terminal one message; how many did not get theirs.
    fn call_all(&mut self, links: &mut Links, setting: &Setting) -> Result<u64> {
        self.probe.resting = true;
        finish(links, self, setting.patience, |storm| storm.probe.under_way.is_none() && storm.unacknowledged == 0)?;
        for first in (0..self.heard.len()).step_by(CALLED_AT_ONCE) {
            let called = first..self.heard.len().min(first + CALLED_AT_ONCE);
            for at in called.clone() {
                let (id, stamp) = self.probe.next_message();
                Publish::new(&format!("w/{at}"), 1, self.size).push(links.out(self.probe.link), id, stamp);
                self.unacknowledged += 1;
            }
            let heard =
                |storm: &Self| storm.unacknowledged == 0 && storm.heard[called.clone()].iter().all(|heard| *heard);
            if !finish(links, self, setting.patience, heard)? {
                return Ok(self.heard.iter().filter(|heard| !**heard).count() as u64);
            }
        }
        Ok(0)
    }

    fn came_back(&mut self, at: usize, body: &[u8]) -> Result<()> {
        if !accepted(body)? {
            self.forgotten += 1;
        }
        let now = Instant::now();
        self.times.saturating_record(u64::try_from((now - self.opened[at]).as_micros()).unwrap_or(u64::MAX));
        self.back += 1;
        self.last_back = Some(now);
        Ok(())
    }
}

impl Probe {
    fn next_message(&mut self) -> (u16, u64) {
        self.id = self.id.checked_add(1).unwrap_or(1);
        self.stamp += 1;
        (self.id, self.stamp)
    }

    fn returned(&mut self, stamp: u64) -> Result<()> {
        ensure!(stamp == self.stamp, "the probe was sent {stamp}, and {} is under way", self.stamp);
        if let Some(due) = self.under_way.take() {
            self.times.saturating_record(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

impl Play for Storm {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            CONNACK if at == self.probe.link => anyhow::bail!("a second CONNACK"),
            CONNACK => {
                // Told that the server is busy is a failure like any other: it comes again.
                if let Err(error) = accepted(body) {
                    links.cut(at);
                    return self.closed(links, at, &error.to_string());
                }
                self.came_back(at, body)
            }
            PUBACK => {
                ensure!(self.unacknowledged > 0, "a PUBACK for nothing");
                self.unacknowledged -= 1;
                Ok(())
            }
            PUBLISH => {
                let arrived = Arrived::read(first, body)?;
                packets::push_puback(links.out(at), arrived.id);
                if at == self.probe.link {
                    return self.probe.returned(arrived.stamp);
                }
                self.heard[at] = true;
                Ok(())
            }
            _ => anyhow::bail!("client {at} was sent a packet {first:#x}"),
        }
    }

    fn closed(&mut self, _: &mut Links, at: usize, why: &str) -> Result<()> {
        ensure!(at != self.probe.link, "the terminal that was not cut was closed: {why}");
        self.failures += 1;
        self.to_open.push_back((at, Instant::now() + PAUSE));
        Ok(())
    }

    /// The probe is sent up to a millisecond late. Looking all the time would take the processor from whom the broker works with.
    fn wait(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn turned(&mut self, links: &mut Links) -> Result<()> {
        let now = Instant::now();
        for _ in 0..OPENED_AT_ONCE {
            let Some((at, _)) = self.to_open.pop_front_if(|(_, when)| *when <= now) else { break };
            self.opened[at] = Instant::now();
            links.open(at, &self.clients[at].connect)?;
        }
        if self.probe.under_way.is_none() && !self.probe.resting && self.probe.next <= now {
            // If the one before took longer than the pause between them, this one is late, and its time counts from when it
            // was due.
            self.probe.under_way = Some(self.probe.next);
            self.probe.next += PROBE_EVERY;
            self.unacknowledged += 1;
            let (id, stamp) = self.probe.next_message();
            self.probe.message.push(links.out(self.probe.link), id, stamp);
        }
        Ok(())
    }
}
