//! A node's name is one node's, for as long as it lives.

use tokio::sync::mpsc;
use wakala_node::store::{NotHeld, Store};
use wakala_system_tests::Database;

const NAME: &str = "node-1";

async fn hold(store: &Store) -> Result<mpsc::UnboundedReceiver<String>, NotHeld> {
    let (told, lost) = mpsc::unbounded_channel();
    store.hold_name(NAME, move |why| drop(told.send(why.to_owned()))).await?;
    Ok(lost)
}

/// Ends the connection that holds the name, as a database that restarts does.
fn cut(database: &Database) {
    let _ = database.rows(
        "select pg_terminate_backend(pid, 5000) from pg_locks where locktype = 'advisory' and objsubid = 2 \
         and database = (select oid from pg_database where datname = current_database())",
    );
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused_and_told_who_has_it() {
    let database = Database::new();
    let (first, second) = (database.store().await, database.store().await);
    let _held = hold(&first).await.expect("the name is free");
    second.hold_name("node-2", |_| ()).await.expect("another name is free");
    let refused = hold(&second).await.expect_err("the name is taken").to_string();
    assert!(refused.starts_with("another node runs as node-1 on this database (since 20"), "{refused}");
    assert!(refused.contains("from this machine): end that one, or give this one a node.name of its own"), "{refused}");
}

#[tokio::test]
async fn the_next_life_has_the_name_as_soon_as_the_last_one_ended() {
    let database = Database::new();
    let (first, second) = (database.store().await, database.store().await);
    let _held = hold(&first).await.expect("the name is free");
    let waiting = tokio::spawn(async move { hold(&second).await });
    // What Postgres sees of a process that was killed.
    cut(&database);
    waiting.await.expect("no panic").expect("the name was free again");
}

#[tokio::test]
async fn a_node_that_lost_its_name_to_another_while_the_database_was_away_hears_of_it() {
    let database = Database::new();
    let (first, second) = (database.store().await, database.store().await);
    let mut lost = hold(&first).await.expect("the name is free");
    cut(&database);
    let mut held = hold(&second).await.expect("the name is free");
    let why = lost.recv().await.expect("the first node is told");
    assert!(why.contains("another node runs as node-1"), "{why}");
    assert!(held.try_recv().is_err(), "the second keeps it");
}

#[tokio::test]
async fn a_name_is_held_again_after_the_database_was_away() {
    let database = Database::new();
    let (first, second) = (database.store().await, database.store().await);
    let mut lost = hold(&first).await.expect("the name is free");
    cut(&database);
    let held_by = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 \
                   and database = (select oid from pg_database where datname = current_database())";
    let mut again = false;
    for _ in 0..100 {
        again = database.rows(held_by).trim() == "1";
        if again {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert!(again, "the first node took its name again");
    hold(&second).await.expect_err("the name is taken");
    assert!(lost.try_recv().is_err(), "it was never lost");
}

#[tokio::test]
async fn a_node_does_not_take_itself_for_another_while_the_database_stands_still() {
    let database = Database::new();
    let (first, second) = (database.store().await, database.store().await);
    let mut lost = hold(&first).await.expect("the name is free");
    let still = database.stand_still();
    // Its look is not answered for 5 s, and for 5 s more the connection that stands still keeps the name from a new one.
    tokio::time::sleep(std::time::Duration::from_secs(17)).await;
    drop(still);
    assert!(lost.try_recv().is_err(), "nobody else has it");
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    hold(&second).await.expect_err("the name is taken");
    assert!(lost.try_recv().is_err(), "it was never lost");
}
