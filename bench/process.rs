//! What Linux says of a broker's processes: their time on a processor, their memory.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

/// Processor time of the broker, of those that work for it and of this process, over a span.
#[derive(Debug)]
pub(crate) struct Meter {
    broker: Vec<u32>,
    helpers: Vec<u32>,
    started: Instant,
    /// At the beginning: of the broker, its helpers, this process.
    ticks: [u64; 3],
}

impl Meter {
    /// The first process is the broker's, the others work for it.
    pub(crate) fn start(pids: &[u32]) -> Self {
        let (broker, helpers) = pids.split_at(pids.len().min(1));
        let mut meter =
            Self { broker: broker.to_vec(), helpers: helpers.to_vec(), started: Instant::now(), ticks: [0; 3] };
        meter.ticks = meter.now();
        meter
    }

    fn now(&self) -> [u64; 3] {
        [ticks_of(&self.broker), ticks_of(&self.helpers), ticks_of(&[std::process::id()])]
    }

    /// How often per second it was done, and how much of a processor each had: with the generator at 1, it was the limit, and the
    /// figure is its own. And what broker and helpers would have done with a whole processor: on a machine with other work the better
    /// figure of the two.
    #[expect(clippy::cast_precision_loss, reason = "rates and shares")]
    pub(crate) fn finish(&self, done: u64) -> (f64, Map<String, Value>) {
        let seconds = self.started.elapsed().as_secs_f64();
        let now = self.now();
        let ticks = |which: usize| now[which].saturating_sub(self.ticks[which]);
        let share = |ticks: u64| {
            let busy = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            json!((busy / seconds * 100.0).round() / 100.0)
        };
        let mut shares = Map::new();
        shares.insert("generator_cpu".to_owned(), share(ticks(2)));
        if !self.broker.is_empty() {
            shares.insert("broker_cpu".to_owned(), share(ticks(0)));
            let both = (ticks(0) + ticks(1)).max(1);
            shares.insert("per_core".to_owned(), json!(done * rustix::param::clock_ticks_per_second() / both));
        }
        if !self.helpers.is_empty() {
            shares.insert("helpers_cpu".to_owned(), share(ticks(1)));
        }
        (done as f64 / seconds, shares)
    }
}

/// Processor time of these processes and their descendants, in ticks. One that has ended counts nothing.
fn ticks_of(pids: &[u32]) -> u64 {
    family(pids).into_iter().filter_map(stat).map(|stat| stat.ticks).sum()
}

struct Stat {
    parent: u32,
    ticks: u64,
}

/// proc(5), /proc/PID/stat: what follows the name, which ends with the last bracket.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: ticks(11)? + ticks(12)? })
}

/// These processes and their descendants.
fn family(pids: &[u32]) -> BTreeSet<u32> {
    let mut known: BTreeSet<u32> = pids.iter().copied().collect();
    if known.is_empty() || pids == [std::process::id()] {
        return known;
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let all: Vec<(u32, u32)> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    loop {
        let before = known.len();
        let children: Vec<u32> = all.iter().filter(|(_, parent)| known.contains(parent)).map(|(pid, _)| *pid).collect();
        known.extend(children);
        if known.len() == before {
            return known;
        }
    }
}

/// Memory of one process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident: `VmRSS`.
    pub(crate) resident: u64,
    /// Its share of what is mapped: `Pss`.
    pub(crate) share: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let line = |file: &str, name: &str| {
            let path = format!("/proc/{pid}/{file}");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            let kib = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
                .with_context(|| format!("{path} does not say {name}"))?;
            Ok::<_, anyhow::Error>(kib * 1024)
        };
        Ok(Self { resident: line("status", "VmRSS:")?, share: line("smaps_rollup", "Pss:")? })
    }
}

/// Ends a process as a power cut would, as far as it is concerned.
pub(crate) fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process")?;
    kill_process(pid, Signal::KILL).with_context(|| format!("SIGKILL to {pid:?}"))
}
