//! What every log must do, shown once for each: in Postgres, in Kafka with one broker and with three.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use wakala::id::{Offset, PartitionNo};
use wakala_node::adapters::kafka::{self, KafkaLog};
use wakala_node::adapters::postgres_log::{self, PostgresLog};
use wakala_node::clock::MonotonicClock;
use wakala_node::ports::{Log, LogError, Reader};
use wakala_system_tests::{Database, Kafka, script, terminal};

const PARTITIONS: u16 = 3;
const RECORD_MAX: usize = 4096;
/// Longer than any log takes for anything here.
const LONG: Duration = Duration::from_secs(20);

/// A log that has no records yet, to be opened as often as there are nodes.
enum Ground {
    Postgres(Database),
    Kafka { cluster: Kafka, topic: String },
}

impl Ground {
    fn postgres() -> Self {
        Self::Postgres(Database::new())
    }

    fn kafka(nodes: u8) -> Self {
        Self::on(wakala_system_tests::kafka(nodes))
    }

    fn on(cluster: Kafka) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        Self::Kafka { cluster, topic: format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed)) }
    }

    async fn open_with(&self, partitions: u16) -> Result<Arc<dyn Log>, LogError> {
        self.open_in_sync(partitions, 2).await
    }

    /// Where there are three brokers, so many copies must be written before a record counts.
    async fn open_in_sync(&self, partitions: u16, min: u8) -> Result<Arc<dyn Log>, LogError> {
        match self {
            Self::Postgres(database) => {
                let options = postgres_log::Options {
                    partitions,
                    record_max_bytes: RECORD_MAX,
                    ..postgres_log::Options::default()
                };
                let clock = Arc::new(MonotonicClock::start());
                Ok(Arc::new(PostgresLog::open(database.store().await, &options, clock).await?))
            }
            Self::Kafka { cluster, topic } => {
                let brokers = cluster.address.split(',').count();
                let options = kafka::Options {
                    brokers: cluster.address.clone(),
                    topic: topic.clone(),
                    partitions,
                    record_max_bytes: RECORD_MAX,
                    replication_factor: if brokers == 3 { 3 } else { 1 },
                    min_insync_replicas: if brokers == 3 { min } else { 1 },
                    ..kafka::Options::default()
                };
                Ok(Arc::new(KafkaLog::open(&options).await?))
            }
        }
    }

    async fn open(&self) -> Arc<dyn Log> {
        self.open_with(PARTITIONS).await.expect("the log opens")
    }
}

async fn append(log: &Arc<dyn Log>, partition: u16, bytes: impl Into<Vec<u8>>) -> Result<Offset, LogError> {
    log.append(PartitionNo(partition), &terminal("T1"), bytes.into()).await
}

/// The next `count` records, in reads of at most `max`.
async fn next(reader: &mut Box<dyn Reader>, count: usize, max: usize) -> Vec<(i64, Vec<u8>)> {
    let mut read = Vec::new();
    while read.len() < count {
        let some = tokio::time::timeout(LONG, reader.next(max)).await.expect("there is more").expect("readable");
        assert!((1..=max).contains(&some.len()), "{} records", some.len());
        read.extend(some.into_iter().map(|logged| (logged.offset.0, logged.bytes)));
    }
    read
}

async fn appends_are_read_in_order_and_without_gaps(ground: Ground) {
    let log = ground.open().await;
    assert_eq!(log.partitions(), PARTITIONS);
    for n in 0..50_i64 {
        assert_eq!(append(&log, 1, n.to_be_bytes()).await.expect("appended"), Offset(n));
    }
    let wanted: Vec<(i64, Vec<u8>)> = (0..50).map(|n: i64| (n, n.to_be_bytes().into())).collect();
    let mut reader = log.read(PartitionNo(1), Offset(0)).expect("a reader");
    assert_eq!(next(&mut reader, 50, 7).await, wanted);
    // From any position on, for whoever opens the log later.
    for position in [1, 20, 49] {
        let mut reader = ground.open().await.read(PartitionNo(1), Offset(position)).expect("a reader");
        let from = usize::try_from(position).expect("small");
        assert_eq!(next(&mut reader, 50 - from, 100).await, wanted[from..]);
    }
}

async fn many_write_at_once_and_nothing_is_lost_or_moved(ground: Ground) {
    const WRITERS: u16 = 24;
    const EACH: u16 = 25;
    let (one, other) = (ground.open().await, ground.open().await);
    let writing: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = Arc::clone(if writer % 2 == 0 { &one } else { &other });
            tokio::spawn(async move {
                let mut written = Vec::new();
                for n in 0..EACH {
                    let bytes = [writer.to_be_bytes(), n.to_be_bytes()].concat();
                    let offset = append(&log, writer % PARTITIONS, bytes.clone()).await.expect("appended");
                    written.push((writer % PARTITIONS, offset.0, bytes));
                }
                written
            })
        })
        .collect();
    let mut told: BTreeMap<u16, BTreeMap<i64, Vec<u8>>> = BTreeMap::new();
    for writer in writing {
        let mut last = -1;
        for (partition, offset, bytes) in writer.await.expect("no panic") {
            assert!(offset > last, "a writer's records are in the order in which they were acknowledged");
            last = offset;
            assert_eq!(told.entry(partition).or_default().insert(offset, bytes), None, "one offset for two records");
        }
    }
    for partition in 0..PARTITIONS {
        let count = usize::from(WRITERS * EACH / PARTITIONS);
        let mut reader = one.read(PartitionNo(partition), Offset(0)).expect("a reader");
        let read = next(&mut reader, count, 64).await;
        assert!(read.iter().map(|(offset, _)| *offset).eq(0..i64::try_from(count).expect("small")), "gap-free");
        assert_eq!(read.into_iter().collect::<BTreeMap<_, _>>(), told[&partition]);
    }
}

async fn a_reader_waits_and_is_woken(ground: Ground) {
    let (here, there) = (ground.open().await, ground.open().await);
    let mut reader = here.read(PartitionNo(0), Offset(0)).expect("a reader");
    let nothing = tokio::time::timeout(Duration::from_millis(1500), reader.next(10)).await;
    assert!(nothing.is_err(), "there is nothing to read");
    append(&here, 1, "of another partition").await.expect("appended");
    // Whoever stopped waiting lost nothing; and a record of another node wakes like one of ours.
    for (n, log) in [&there, &here, &there].into_iter().enumerate() {
        let text = format!("record {n}");
        let waiting = tokio::spawn(async move { (next(&mut reader, 1, 10).await, reader) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        append(log, 0, text.clone()).await.expect("appended");
        let read;
        (read, reader) = waiting.await.expect("no panic");
        assert_eq!(read, [(i64::try_from(n).expect("small"), text.into_bytes())]);
    }
}

async fn what_is_too_large_is_refused_and_the_largest_is_not(ground: Ground) {
    let log = ground.open().await;
    let refused = append(&log, 0, vec![1; RECORD_MAX + 1]).await;
    assert!(matches!(refused, Err(LogError::TooLarge { found: 4097, max: RECORD_MAX })), "{refused:?}");
    let largest = vec![2; RECORD_MAX];
    assert_eq!(append(&log, 0, largest.clone()).await.expect("appended"), Offset(0));
    let mut reader = log.read(PartitionNo(0), Offset(0)).expect("a reader");
    assert_eq!(next(&mut reader, 1, 10).await, [(0, largest)]);
}

async fn a_position_that_the_log_never_had_is_broken(ground: Ground) {
    let log = ground.open().await;
    for n in 0..3_u8 {
        append(&log, 0, [n]).await.expect("appended");
    }
    for position in [-1, 4, 1000] {
        let read = match log.read(PartitionNo(0), Offset(position)) {
            Ok(mut reader) => tokio::time::timeout(LONG, reader.next(10)).await.expect("it says so").map(|r| r.len()),
            Err(error) => Err(error),
        };
        assert!(matches!(read, Err(LogError::Broken { position: at, .. }) if at.0 == position), "{position}: {read:?}");
    }
    // The end is a position: the next record.
    let mut reader = log.read(PartitionNo(0), Offset(3)).expect("a reader");
    append(&log, 0, [3]).await.expect("appended");
    assert_eq!(next(&mut reader, 1, 10).await, [(3, vec![3])]);
    assert!(log.read(PartitionNo(PARTITIONS), Offset(0)).is_err(), "there is no such partition");
    assert!(append(&log, PARTITIONS, "x").await.is_err(), "there is no such partition");
}

async fn another_number_of_partitions_is_refused(ground: Ground) {
    ground.open().await;
    for wrong in [PARTITIONS - 1, PARTITIONS + 1] {
        assert!(matches!(ground.open_with(wrong).await.map(drop), Err(LogError::Broken { .. })), "{wrong}");
    }
    ground.open().await;
}

macro_rules! contract {
    ($name:ident, $ground:expr) => {
        mod $name {
            use super::Ground;

            contract!(@ $ground,
                appends_are_read_in_order_and_without_gaps
                many_write_at_once_and_nothing_is_lost_or_moved
                a_reader_waits_and_is_woken
                what_is_too_large_is_refused_and_the_largest_is_not
                a_position_that_the_log_never_had_is_broken
                another_number_of_partitions_is_refused
            );
        }
    };
    (@ $ground:expr, $($rule:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                super::$rule($ground).await;
            }
        )*
    };
}

contract!(postgres, Ground::postgres());
contract!(kafka_1, Ground::kafka(1));
contract!(kafka_3, Ground::kafka(3));

/// Appends from eight writers until told to stop; what was acknowledged. An error ends nothing: the writer goes on, as
/// terminals do.
async fn write_until(
    log: &Arc<dyn Log>,
    stop: &Arc<tokio::sync::Notify>,
    during: impl Future<Output = ()>,
) -> BTreeSet<u64> {
    let writing: Vec<_> = (0..8_u64)
        .map(|writer| {
            let (log, stop) = (Arc::clone(log), Arc::clone(stop));
            tokio::spawn(async move {
                let mut acknowledged = BTreeSet::new();
                let mut n = writer << 32;
                let stopped = stop.notified();
                tokio::pin!(stopped);
                loop {
                    n += 1;
                    tokio::select! {
                        biased;
                        () = &mut stopped => return acknowledged,
                        appended = append(&log, 0, n.to_be_bytes()) => match appended {
                            Ok(_) => { acknowledged.insert(n); }
                            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                        },
                    }
                }
            })
        })
        .collect();
    during.await;
    stop.notify_waiters();
    let mut all = BTreeSet::new();
    for writer in writing {
        all.extend(writer.await.expect("no panic"));
    }
    all
}

async fn all_there(log: &Arc<dyn Log>, acknowledged: &BTreeSet<u64>) {
    append(log, 0, u64::MAX.to_be_bytes()).await.expect("it works again");
    let mut reader = log.read(PartitionNo(0), Offset(0)).expect("a reader");
    let mut found = BTreeSet::new();
    while !found.contains(&u64::MAX) {
        for (_, bytes) in next(&mut reader, 1, 1000).await {
            found.insert(u64::from_be_bytes(bytes.try_into().expect("eight bytes")));
        }
    }
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(acknowledged.len() > 20, "only {} were acknowledged", acknowledged.len());
    assert!(lost.is_empty(), "{} of {} acknowledged records are lost", lost.len(), acknowledged.len());
}

fn kill(pid_file: &Path) {
    let pid = std::fs::read_to_string(pid_file).expect("a pid file");
    // Of Postgres' pid file the first line.
    let pid = pid.lines().next().expect("a pid");
    let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::KILL).expect("it runs");
}

fn start_again(name: &str, dir: &Path) {
    let started = Command::new(script(name)).args(["start", "--dir"]).arg(dir).output().expect("the script runs");
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_acknowledged_survives_its_death() {
    let database = Database::alone();
    let dir = database.dir().to_owned();
    let ground = Ground::Postgres(database);
    let log = ground.open().await;
    let stop = Arc::default();
    let dying = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            kill(&dir.join("data/postmaster.pid"));
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || start_again("postgres", &dir)).await.expect("started");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let acknowledged = write_until(&log, &stop, dying).await;
    all_there(&log, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_04_what_kafka_acknowledged_survives_the_death_of_any_one_broker() {
    let cluster = Kafka::alone(3);
    let dir = cluster.dir.clone();
    let ground = Ground::on(cluster);
    let log = ground.open().await;
    let stop = Arc::default();
    let dying = async {
        for n in 1..=3 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            kill(&dir.join(format!("node-{n}/pid")));
            // Two of three go on acknowledging.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let dir = dir.clone();
            tokio::task::spawn_blocking(move || start_again("kafka", &dir)).await.expect("started");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let acknowledged = write_until(&log, &stop, dying).await;
    all_there(&log, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_which_one_broker_may_have_the_only_copy_is_refused() {
    let ground = Ground::kafka(3);
    // It is made so, and found so.
    for _ in 0..2 {
        let refused = ground.open_in_sync(PARTITIONS, 1).await.map(drop);
        let Err(LogError::Broken { why, .. }) = refused else { panic!("{refused:?}") };
        assert!(why.contains("has 3 copies") && why.ends_with("set its min.insync.replicas to 2"), "{why}");
    }
}
