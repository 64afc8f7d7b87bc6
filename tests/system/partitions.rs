//! The actor of a partition on a real log and a real database: a record that kills it is parked, wherever it kills; and what waits
//! in the log is done once, however often its node is killed.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed};
use wakala::id::{Offset, PartitionNo};
use wakala::record::{Body, Record};
use wakala::request::{Kind, Refusal};
use wakala_node::adapters::kafka::{self, KafkaLog};
use wakala_node::adapters::postgres_log::{self, PostgresLog};
use wakala_node::banks;
use wakala_node::clock::MonotonicClock;
use wakala_node::partition::Deps;
use wakala_node::partitions::{self, Options, Partitions};
use wakala_node::ports::{Hsm, HsmError, Log, PinReference, PinVerdict};
use wakala_node::store;
use wakala_node::store::Store;
use wakala_node::supervision::{Policy, Tree};
use wakala_system_tests::{Database, kafka as broker, record, terminal};

use crate::mqtt::killed::Node;

/// An HSM whose driver panics at one terminal's key.
struct Brittle;

fn poisoned() -> Ksn {
    Ksn::from_bytes(&[0x66; 12]).expect("a KSN")
}

impl Hsm for Brittle {
    fn read_card(&self, _: &Ksn, _: &[u8; 16]) -> Result<CardRef, HsmError> {
        Err(HsmError::BadCard)
    }

    fn verify_pin(&self, _: &Ksn, _: &PinBlock, _: &CardRef, _: &PinReference) -> Result<PinVerdict, HsmError> {
        Err(HsmError::BadCard)
    }

    fn translate_pin(&self, _: &Ksn, _: &PinBlock, _: &CardRef, _: &str) -> Result<PinBlock, HsmError> {
        Err(HsmError::BadCard)
    }

    fn verify_mac(&self, _: &Ksn, _: &[u8], _: &Mac) -> Result<bool, HsmError> {
        Err(HsmError::BadCard)
    }

    fn generate_mac(&self, ksn: &Ksn, _: &[u8]) -> Result<Mac, HsmError> {
        assert!(*ksn != poisoned(), "a driver that panics");
        Err(HsmError::BadCounter)
    }

    fn open_pan(&self, _: &Sealed) -> Result<Pan, HsmError> {
        Err(HsmError::BadCard)
    }

    fn check_value(&self, _: &str) -> Result<String, HsmError> {
        Err(HsmError::BadCard)
    }
}

/// Refused at the edge: it wants a receipt and no core.
fn refused(key: u8, ksn: Ksn) -> Record {
    Record { ksn: Some(ksn), body: Body::Refused(Refusal::BadAmount), ..record(Kind::Deposit, 1, key, 100) }
}

/// Works on the partitions of a log, without a core, as long as what this gives lives.
fn work(store: Store, log: Arc<dyn Log>, options: Options) -> (impl Sized, Tree) {
    let (clock, hsm) = (Arc::new(MonotonicClock::start()), Arc::new(Brittle));
    let cores = banks::Deps {
        clock: clock.clone(),
        hsm: hsm.clone(),
        driver: Arc::new(|_, _| panic!("there is no core")),
        outcome: Arc::new(|_, _| ()),
        unmatched: Box::new(|_, _| ()),
    };
    let (policy, tree) = (Policy { backoff_max: Duration::from_millis(50), ..Policy::default() }, Tree::default());
    let banks = banks::start(&BTreeMap::new(), cores, policy, tree.clone(), |_| ()).expect("no core, no fault");
    let (node, hint) = ("n1".to_owned(), Box::new(|_| ()));
    let deps = Deps { options, node, store, log, hsm, banks, clock, hint };
    let partitions = Partitions::default();
    let owner = partitions::start(&Arc::new(deps), &partitions, policy, tree.clone(), |_: &str| ());
    ((owner, partitions), tree)
}

async fn a_record_that_panics_the_hsm_is_parked() {
    let database = Database::new();
    let store = database.store().await;
    let clock = Arc::new(MonotonicClock::start());
    let options = postgres_log::Options { partitions: 1, ..postgres_log::Options::default() };
    let log = Arc::new(PostgresLog::open(store.clone(), &options, clock).await.expect("a log"));
    let good = Ksn::from_bytes(&[3; 12]).expect("a KSN");
    for (key, ksn) in [(1, good), (2, poisoned()), (3, good)] {
        let appended = log.append(PartitionNo(0), &terminal("T1"), refused(key, ksn).encode()).await;
        assert_eq!(appended.expect("appended"), Offset(i64::from(key) - 1));
    }
    let (_working, tree) = work(store, log, Options::default());
    let found = || database.rows("select position from wakala.partition_owner");
    for _ in 0..200 {
        if found() == "3" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found(), "3", "{:?}", tree.branches());
    let parked = database.rows(r#"select "offset", why from wakala.parked"#);
    assert_eq!(parked, "1|killed its partition 3 times");
    assert_eq!(database.rows("select count(*) from wakala.receipt"), "2", "the others were answered");
    assert_eq!(tree.branches()["partitions"].panics, 4, "each death counts for the escalation");
}

#[test]
fn a_record_that_kills_while_its_receipt_is_made_is_parked() {
    actix::System::new().block_on(a_record_that_panics_the_hsm_is_parked());
}

const URL: &str = "WAKALA_TEST_URL";
const BROKERS: &str = "WAKALA_TEST_BROKERS";

async fn backlog(brokers: String) -> Arc<KafkaLog> {
    let options = kafka::Options {
        brokers,
        topic: "backlog".to_owned(),
        partitions: 1,
        replication_factor: 1,
        min_insync_replicas: 1,
        ..kafka::Options::default()
    };
    Arc::new(KafkaLog::open(&options).await.expect("the log opens"))
}

#[test]
fn works_until_it_is_killed() {
    // Run by itself it has nothing to do: it is the other process of the test below.
    let (Ok(url), Ok(brokers)) = (std::env::var(URL), std::env::var(BROKERS)) else { return };
    actix::System::new().block_on(async move {
        let store = Store::connect(&store::Options { url, ..store::Options::default() }).await.expect("the database");
        let options = Options { batch_max: 4, ..Options::default() };
        let _working = work(store, backlog(brokers).await, options);
        tokio::time::sleep(Duration::from_secs(120)).await;
    });
}

/// A process that works on the backlog: this test program, started again.
fn worker(database: &Database, brokers: &str) -> Node {
    let program = std::env::current_exe().expect("this program");
    let child = Command::new(program)
        .args(["--exact", "partitions::works_until_it_is_killed", "--nocapture"])
        .env(URL, database.url("service"))
        .env(BROKERS, brokers)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Node(child.expect("it starts"))
}

/// emqx #19074, TBMQ #320: what was in Kafka and not yet delivered was skipped after a restart.
#[tokio::test]
async fn pain_05_what_waits_in_kafka_is_answered_once_though_its_node_is_killed_in_the_middle() {
    const RECORDS: u8 = 200;
    let (database, cluster) = (Database::new(), broker(1));
    let log = backlog(cluster.address.clone()).await;
    for key in 0..RECORDS {
        let record = refused(key, Ksn::from_bytes(&[3; 12]).expect("a KSN"));
        log.append(PartitionNo(0), &terminal("T1"), record.encode()).await.expect("appended");
    }
    let answered = || database.rows("select count(*) from wakala.receipt").parse::<u8>().expect("a count");
    let mut kills = 0;
    while answered() < RECORDS {
        let before = answered();
        let mut worker = worker(&database, &cluster.address);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while answered() < (before + 40).min(RECORDS) {
            assert!(std::time::Instant::now() < deadline, "{} of {RECORDS} are answered", answered());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        worker.kill_9();
        kills += 1;
    }
    assert!(kills > 2, "it was never killed in the middle");
    let found = "select count(*), count(distinct answers), count(distinct seq), max(seq) from wakala.receipt";
    assert_eq!(database.rows(found), "200|200|200|200");
    assert_eq!(database.rows("select position from wakala.partition_owner"), "200");
    assert_eq!(database.rows("select count(*) from wakala.parked"), "0");
}
