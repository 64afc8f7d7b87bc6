//! A database that stands still: no statement ends, and no connection breaks.

use std::time::Duration;

use wakala::id::{Offset, PartitionNo};
use wakala::partition::{Decision, Needs};
use wakala_node::store::{Error, Options, Store};
use wakala_system_tests::Database;

const P: PartitionNo = PartitionNo(0);

async fn hasty(database: &Database) -> Store {
    let options = Options { call_timeout: Duration::from_millis(500), pool_size: 1, ..database.options() };
    Store::connect(&options).await.expect("the database is there")
}

fn gave_up<T: std::fmt::Debug>(answer: Result<T, Error>) {
    match answer {
        Err(Error::Away(why)) => assert_eq!(why, "no answer for 500ms"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_is_given_up_in_time_and_the_next_one_is_answered_when_it_goes_on() {
    let database = Database::new();
    let store = hasty(&database).await;
    store.pending().await.expect("answered");
    let still = database.stand_still();
    gave_up(store.key_blocks().await);
    drop(still);
    let answered = tokio::time::timeout(Duration::from_secs(20), async { while store.key_blocks().await.is_err() {} });
    answered.await.expect("the pool is whole again");
}

#[tokio::test]
async fn a_commit_is_given_up_in_time() {
    let database = Database::new();
    let store = hasty(&database).await;
    store.claim_partitions("n", 1, Duration::from_secs(60)).await.expect("claimed");
    let (epoch, position, _) = store.load_partition(P, "n").await.expect("loaded");
    let work = store.begin(P, epoch, position, &Needs::default()).await.expect("begun");
    let still = database.stand_still();
    gave_up(work.commit(Decision { position: Some(Offset(1)), ..Decision::default() }, Vec::new()).await);
    drop(still);
}
