//! Guests of several nodes: what is stored for them is theirs, wherever it was published.

use std::time::Duration;

use wakala_system_tests::Database;

use super::wire::{Wire, packet, text};
use super::{Broker, anywhere, enrol, queue_receipt, until};
use crate::locks::Holding;

/// Two nodes, the second begun when the first has been there for a while.
async fn two(database: &Database) -> (Broker, Broker) {
    let at = async |name: &str| {
        let name = name.to_owned();
        Broker::made(database.store().await, anywhere(), move |deps| {
            (deps.node, deps.open.guests, deps.open.anonymous) = (name, true, true);
        })
        .await
    };
    let first = at("n1").await;
    let second = at("n2").await;
    // They have heard of each other.
    tokio::time::sleep(Duration::from_millis(500)).await;
    (first, second)
}

async fn publish(broker: &Broker, topic: &str, payload: &str) {
    let (mut wire, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    wire.publish(topic, 1, 1, payload).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
    wire.leave().await;
}

/// How many rows wait for this client.
fn queued(client: &str) -> String {
    format!("select count(*) from wakala.message where client_id = '{client}'")
}

/// rmqtt #477 in a cluster: a session that another node has was not routed to, and what was acknowledged was dropped.
#[tokio::test]
async fn pain_02_a_session_of_one_node_is_routed_to_by_another() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "kept", false).await;
    assert_eq!(wire.subscribe("a/+", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Connected at the first, it hears at once.
    publish(&second, "a/1", "there").await;
    assert_eq!(wire.delivery().await.2, "there");
    wire.acknowledge(1).await;
    wire.cut();
    first.connected(0).await;
    // Away, it finds it at either.
    publish(&second, "a/2", "away").await;
    let (mut wire, connack) = Wire::connect(second.plain(), true, "kept", false).await;
    assert_eq!((connack, wire.delivery().await.2), ([1, 0], "away".to_owned()));
    wire.acknowledge(2).await;
    // What it changes at the second the first knows.
    wire.send(&[0xA2, 8, 0, 7, 0, 0, 3, b'a', b'/', b'+']).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xB0));
    assert_eq!(wire.subscribe("b", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.cut();
    second.connected(0).await;
    publish(&first, "a/3", "not asked for").await;
    publish(&first, "b", "asked for").await;
    assert_eq!(database.rows(&queued("kept")), "1");
    // A clean start is the end of it.
    let (wire, connack) = Wire::connect(first.plain(), true, "kept", true).await;
    assert_eq!(connack, [0, 0]);
    wire.leave().await;
    publish(&second, "b", "nobody's").await;
    assert_eq!(database.rows(&queued("kept")), "0");
}

#[tokio::test]
async fn what_is_retained_at_one_node_is_retained_at_all() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut publisher, _) = Wire::connect(first.plain(), true, "retains", true).await;
    for (id, payload) in [(1, &b"on"[..]), (2, b"off"), (3, b"")] {
        publisher.send(&packet(0x33, &[&text("light")[..], &[0, id, 0], payload].concat())).await;
        assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (mut wire, _) = Wire::connect(second.plain(), true, "looks", true).await;
        assert_eq!(wire.subscribe("light", 1).await, 1);
        if payload.is_empty() {
            wire.silence().await;
        } else {
            assert_eq!(wire.delivery().await.2.as_bytes(), payload);
        }
        wire.leave().await;
    }
}

/// While the ear's connection was gone anything may have been said.
#[tokio::test]
async fn what_was_said_while_nobody_listened_is_read() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "kept", false).await;
    let _ = database.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' and datname = current_database()",
    );
    assert_eq!(wire.subscribe("a", 1).await, 1);
    wire.leave().await;
    for _ in 0..50 {
        publish(&second, "a", "again").await;
        if database.rows(&queued("kept")) != "0" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the second node never heard of it");
}

/// Partitions and terminals are at different nodes as often as not: the sweeper comes by every two seconds.
#[tokio::test]
async fn a_receipt_that_another_node_has_queued_goes_out_at_once() {
    let database = Database::new();
    let at = async |name: &str| {
        let name = name.to_owned();
        Broker::made(database.store().await, anywhere(), move |deps| deps.node = name).await
    };
    let (first, second) = (at("n1").await, at("n2").await);
    let t1 = enrol(&first.store, "T1", None).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    queue_receipt(&database, "T1", "from afar");
    second.sessions.hint(&t1, 1, Some(b"from afar".to_vec()));
    assert_eq!(wire.delivery().await.2, "from afar");
    wire.acknowledge(1).await;
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
}

/// What is retained and waits for the database is not in the table yet: who listens anew, and is alone, must not go back to that.
#[tokio::test]
async fn a_node_that_is_alone_and_loses_its_ear_keeps_what_it_retains() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "retains", true).await;
    let retain = |id: u8, payload: &[u8]| packet(0x33, &[&text("light")[..], &[0, id, 0], payload].concat());
    publisher.send(&retain(1, b"old")).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    let slow = Holding::new(&database, "lock table wakala.retained in exclusive mode");
    publisher.send(&retain(2, b"new")).await;
    publisher.silence().await;
    let _ = database.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' and datname = current_database()",
    );
    // It listens again after 100 ms, and looks every second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "looks", true).await;
    assert_eq!(wire.subscribe("light", 1).await, 1);
    assert_eq!(wire.delivery().await.2, "new");
    drop(slow);
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
}
