//! A log that hangs: it refuses nothing, and answers nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ntex_bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use wakala::id::{Offset, PartitionNo};
use wakala_node::adapters::kafka::{self, KafkaLog};
use wakala_node::ports::{Log as _, Wait};
use wakala_node::sessions::{Away, Intake};
use wakala_node::terminal::Enrolled;
use wakala_system_tests::{Database, Kafka};

use super::wire::Wire;
use super::{Broker, anywhere};

/// What terminals publish, as records of one partition.
struct Records(Arc<KafkaLog>);

impl Intake for Records {
    fn take(&self, terminal: &Enrolled, payload: Bytes) -> Wait<'static, Result<(), Away>> {
        let appending = self.0.append(PartitionNo(0), &terminal.terminal, payload.to_vec());
        Box::pin(async move { appending.await.map(drop).map_err(|error| Away(error.to_string())) })
    }
}

/// A process that stands still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid_file: &Path) -> Self {
        let pid = std::fs::read_to_string(pid_file).expect("a pid file");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::STOP).expect("it runs");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may be gone.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// emqx #17916, #18951: what was published was acknowledged, and then was nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_04_while_kafka_hangs_nothing_is_acknowledged_and_then_each_is_there_once() {
    // Longer than Kafka may take for one request: each is sent again, under the number that it had.
    const HANGS: Duration = Duration::from_secs(8);
    let (database, cluster) = (Database::new(), Kafka::alone(1));
    let options = kafka::Options {
        brokers: cluster.address.clone(),
        partitions: 1,
        replication_factor: 1,
        min_insync_replicas: 1,
        request_timeout: Duration::from_secs(3),
        ..kafka::Options::default()
    };
    let log = Arc::new(KafkaLog::open(&options).await.expect("the log opens"));
    let intake = Arc::new(Records(Arc::clone(&log)));
    let broker = Broker::made(database.store().await, anywhere(), move |deps| deps.intake = intake).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), false, "T1", false).await;
    wire.publish("q/T1", 1, 1, "before").await;
    assert_eq!(wire.receive().await, Some((0x40, vec![0, 1])));

    let stopped = Stopped::new(&cluster.dir.join("node-1/pid"));
    let began = Instant::now();
    for (id, text) in [(2, "a"), (3, "b"), (4, "c")] {
        wire.publish("q/T1", 1, id, text).await;
    }
    while began.elapsed() < HANGS {
        // And no PUBACK before it.
        wire.ping().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    drop(stopped);
    for id in 2..=4 {
        assert_eq!(wire.receive().await, Some((0x40, vec![0, id])));
    }
    let mut reader = log.read(PartitionNo(0), Offset(0)).expect("a reader");
    let mut found = Vec::new();
    // All that there is: four, and then nothing for a while.
    while let Ok(read) = tokio::time::timeout(Duration::from_secs(3), reader.next(10)).await {
        found.extend(
            read.expect("readable").into_iter().map(|logged| String::from_utf8_lossy(&logged.bytes).into_owned()),
        );
    }
    assert_eq!(found, ["before", "a", "b", "c"]);
}
