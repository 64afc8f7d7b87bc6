//! The log: append-only partitions. An append may be lost, may be durable without anybody being told, and may become
//! durable long after it failed.

use std::collections::BTreeMap;
use std::time::Duration;

use wakala::id::{Offset, PartitionNo};

use super::node;
use super::stage::{Home, Stage, What};

/// The log cannot be reached, or says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Away;

pub(crate) type Records = Vec<(Offset, Vec<u8>)>;
type Told<T> = Box<dyn FnOnce(Result<T, Away>) -> node::Event>;

pub(crate) enum Call {
    Append {
        home: Home,
        partition: PartitionNo,
        bytes: Vec<u8>,
        then: Told<()>,
    },
    /// An append that nobody waits for any more becomes durable.
    Lands {
        partition: PartitionNo,
        bytes: Vec<u8>,
    },
    Read {
        home: Home,
        partition: PartitionNo,
        from: Offset,
        max: usize,
        then: Told<Records>,
    },
    /// The log is away for so long.
    Leaves(Duration),
}

struct Waiting {
    home: Home,
    from: Offset,
    max: usize,
    then: Told<Records>,
}

#[derive(Default)]
struct Partition {
    records: BTreeMap<Offset, Vec<u8>>,
    next: i64,
    waiting: Vec<Waiting>,
}

#[derive(Default)]
pub(crate) struct Log {
    partitions: BTreeMap<PartitionNo, Partition>,
    away_until: Option<wakala::time::Time>,
}

impl Log {
    /// All records, as the auditor reads them.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.partitions.values().flat_map(|partition| partition.records.values())
    }

    pub(crate) fn heal(&mut self) {
        self.away_until = None;
    }

    pub(crate) fn call(&mut self, call: Call, stage: &mut Stage) {
        let away = self.away_until.is_some_and(|until| stage.now < until);
        match call {
            Call::Leaves(wait) => {
                stage.tell_world(|| format!("the log is away for {wait:?}"));
                self.away_until = Some(stage.now + wait);
                for partition in self.partitions.values_mut() {
                    for Waiting { home, then, .. } in std::mem::take(&mut partition.waiting) {
                        stage.node(Duration::from_millis(1), home, then(Err(Away)));
                    }
                }
            }
            Call::Lands { partition, bytes } => self.append(partition, bytes, stage),
            Call::Append { home, partition, bytes, then } => {
                let wait = stage.latency();
                let result = if away || stage.chance.happens(stage.weather.append_lost) {
                    Err(Away)
                } else if stage.chance.happens(stage.weather.append_late) {
                    let late = stage.chance.wait(10_000);
                    stage.after(late, What::Log(Call::Lands { partition, bytes }));
                    Err(Away)
                } else {
                    self.append(partition, bytes, stage);
                    if stage.chance.happens(stage.weather.append_unheard) { Err(Away) } else { Ok(()) }
                };
                stage.node(wait, home, then(result));
            }
            Call::Read { home, then, .. } if away => {
                let wait = stage.latency();
                stage.node(wait, home, then(Err(Away)));
            }
            Call::Read { home, partition, from, max, then } => {
                let found = self.partitions.entry(partition).or_default();
                found.waiting.push(Waiting { home, from, max, then });
                found.serve(stage);
            }
        }
    }

    fn append(&mut self, partition: PartitionNo, bytes: Vec<u8>, stage: &mut Stage) {
        let found = self.partitions.entry(partition).or_default();
        if stage.chance.happens(stage.weather.log_garbage) {
            found.records.insert(Offset(found.next), b"no record".to_vec());
            found.next += 1;
        }
        if stage.chance.happens(stage.weather.log_gap) {
            found.next += i64::try_from(stage.chance.within(1, 3)).unwrap_or(1);
        }
        found.records.insert(Offset(found.next), bytes);
        found.next += 1;
        found.serve(stage);
    }
}

impl Partition {
    fn serve(&mut self, stage: &mut Stage) {
        for waiting in std::mem::take(&mut self.waiting) {
            let found = self.records.range(waiting.from..).take(waiting.max);
            let records: Records = found.map(|(&offset, bytes)| (offset, bytes.clone())).collect();
            if records.is_empty() {
                self.waiting.push(waiting);
            } else {
                let wait = stage.latency();
                stage.node(wait, waiting.home, (waiting.then)(Ok(records)));
            }
        }
    }
}
