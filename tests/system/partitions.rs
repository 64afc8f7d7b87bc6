//! The actor of a partition on a real log and a real database: a record that kills it is parked, wherever it kills.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use wakala::card::{CardRef, Ksn, Mac, Pan, PinBlock, Sealed};
use wakala::id::{Offset, PartitionNo};
use wakala::record::{Body, Record};
use wakala::request::{Kind, Refusal};
use wakala_node::adapters::postgres_log::{self, PostgresLog};
use wakala_node::banks;
use wakala_node::clock::MonotonicClock;
use wakala_node::partition::Deps;
use wakala_node::partitions::{self, Options, Partitions};
use wakala_node::ports::{Hsm, HsmError, Log as _, PinReference, PinVerdict};
use wakala_node::supervision::{Policy, Tree};
use wakala_system_tests::{Database, record, terminal};

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

async fn a_record_that_panics_the_hsm_is_parked() {
    let database = Database::new();
    let store = database.store().await;
    let clock = Arc::new(MonotonicClock::start());
    let options = postgres_log::Options { partitions: 1, ..postgres_log::Options::default() };
    let log = Arc::new(PostgresLog::open(store.clone(), &options, clock.clone()).await.expect("a log"));
    let good = Ksn::from_bytes(&[3; 12]).expect("a KSN");
    for (key, ksn) in [(1, good), (2, poisoned()), (3, good)] {
        let appended = log.append(PartitionNo(0), &terminal("T1"), refused(key, ksn).encode()).await;
        assert_eq!(appended.expect("appended"), Offset(i64::from(key) - 1));
    }
    let hsm = Arc::new(Brittle);
    let cores = banks::Deps {
        clock: clock.clone(),
        hsm: hsm.clone(),
        driver: Arc::new(|_, _| panic!("there is no core")),
        outcome: Arc::new(|_, _| ()),
        unmatched: Box::new(|_, _| ()),
    };
    let (policy, tree) = (Policy { backoff_max: Duration::from_millis(50), ..Policy::default() }, Tree::default());
    let banks = banks::start(&BTreeMap::new(), cores, policy, tree.clone(), |_| ()).expect("no core, no fault");
    let deps = Deps {
        options: Options::default(),
        node: "n1".to_owned(),
        store: store.clone(),
        log,
        hsm,
        banks,
        clock,
        hint: Box::new(|_| ()),
    };
    let partitions = Partitions::default();
    let _owner = partitions::start(&Arc::new(deps), &partitions, policy, tree.clone(), |_: &str| ());
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
