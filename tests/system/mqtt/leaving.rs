//! Ends of connections that the database cannot take at once: none is lost.

use std::process::Command;
use std::time::Duration;

use wakala_node::store::{Options, Store};
use wakala_system_tests::{Database, script};

use super::wire::{Wire, packet, text};
use super::{Broker, anywhere, until};
use crate::locks::Holding;

/// With guests, and little patience with the database.
async fn hasty_broker(database: &Database) -> Broker {
    let (acquire_timeout, lock_timeout) = (Duration::from_millis(200), Duration::from_millis(300));
    let options = Options { acquire_timeout, lock_timeout, ..database.options() };
    let store = Store::connect(&options).await.expect("the database is there");
    Broker::made(store, anywhere(), |deps| deps.open.anonymous = true).await
}

async fn postgres(word: &'static str, database: &Database) {
    let mut command = Command::new(script("postgres"));
    command.args([word, "--dir"]).arg(database.dir());
    let run = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    assert!(run.expect("the script runs").status.success(), "{word}");
}

/// A guest that leaves a will.
async fn willed(broker: &Broker) -> Wire {
    let mut wire = Wire::open(broker.plain(), false).await;
    let body = [text("MQTT"), vec![4, 0x06, 0, 60], text("guest"), text("gone"), text("cut")].concat();
    wire.send(&packet(0x10, &body)).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x20));
    wire
}

#[tokio::test]
async fn an_end_while_the_database_is_away_is_stored_when_it_is_back() {
    let database = Database::alone();
    let broker = hasty_broker(&database).await;
    let guest = willed(&broker).await;
    let (kept, _) = Wire::connect(broker.plain(), true, "kept", false).await;
    assert_eq!(
        database.rows("select (select count(*) from wakala.session where connected), count(*) from wakala.will"),
        "2|1"
    );
    postgres("stop", &database).await;
    drop((guest, kept));
    broker.connected(0).await;
    // All that was tried at first has failed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    postgres("start", &database).await;
    until(&database, "select string_agg(client_id, ' ') from wakala.session where connected", "").await;
    until(&database, "select count(*) from wakala.will", "0").await;
    let told =
        "select string_agg(client_id || ' ' || why, ', ' order by client_id) from wakala.presence where not online";
    assert_eq!(database.rows(told), "guest the connection ended, kept the connection ended");
}

#[tokio::test]
async fn a_session_that_somebody_has_locked_keeps_no_other_end_from_being_stored() {
    let database = Database::new();
    let broker = hasty_broker(&database).await;
    let mut wires = Vec::new();
    for name in ["a", "locked", "z"] {
        wires.push(Wire::connect(broker.plain(), true, name, false).await.0);
    }
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'locked' for update");
    drop(wires);
    until(&database, "select string_agg(client_id, ' ') from wakala.session where connected", "locked").await;
    drop(holding);
    until(&database, "select count(*) from wakala.session where connected", "0").await;
    assert_eq!(database.rows("select count(*) from wakala.presence where not online"), "3", "each is told once");
}
