//! A subscription takes effect when it is read, and is acknowledged when it is stored.

use super::wire::Wire;
use super::{Broker, until};
use crate::locks::Holding;
use wakala_system_tests::Database;

/// Lets nobody store what is subscribed to, until it is dropped; it can be read.
fn slow(database: &Database) -> Holding {
    Holding::new(database, "lock table wakala.subscription in exclusive mode")
}

async fn publish(broker: &Broker, topic: &str, payload: &str) {
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    publisher.publish(topic, 1, 1, payload).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
    publisher.cut();
}

/// Seen with Paho's suite: a client subscribes and takes its leave without waiting for the SUBACK, another publishes at once.
#[tokio::test]
async fn who_subscribes_and_leaves_at_once_is_kept_what_is_published_from_then_on() {
    for leaves in [true, false] {
        let database = Database::new();
        let broker = Broker::open(&database).await;
        let (mut sleeper, _) = Wire::connect(broker.plain(), true, "sleeper", false).await;
        let slow = slow(&database);
        sleeper.ask_for("a", 1).await;
        if leaves {
            sleeper.send(&[0xE0, 0]).await;
            assert_eq!(sleeper.receive().await, None);
        } else {
            sleeper.silence().await;
        }
        sleeper.cut();
        broker.connected(0).await;
        publish(&broker, "a", "while it is not stored").await;
        drop(slow);
        until(&database, "select filter from wakala.subscription", "a").await;
        publish(&broker, "a", "when it is").await;
        let (mut sleeper, connack) = Wire::connect(broker.plain(), true, "sleeper", false).await;
        assert_eq!(connack, [1, 0]);
        assert_eq!(sleeper.delivery().await.2, "while it is not stored");
        assert_eq!(sleeper.delivery().await.2, "when it is");
    }
}

#[tokio::test]
async fn what_a_subscription_brings_follows_its_suback() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "retains", true).await;
    for (qos, topic) in [(0, "a/0"), (1, "a/1")] {
        let retained = [&[0x31 | qos << 1, if qos > 0 { 9 } else { 7 }, 0, 3][..], topic.as_bytes()].concat();
        let rest = if qos > 0 { &[0, 1, 0, b'r'][..] } else { &[0, b'r'] };
        publisher.send(&[&retained, rest].concat()).await;
    }
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", false).await;
    let slow = slow(&database);
    subscriber.ask_for("a/#", 1).await;
    subscriber.silence().await;
    publisher.publish("a/0", 0, 0, "0").await;
    publish(&broker, "a/1", "1").await;
    subscriber.ping().await;
    drop(slow);
    let mut heard = Vec::new();
    for _ in 0..5 {
        let (first, body) = subscriber.receive().await.expect("a packet");
        heard.push((first & 0xF7, body.last().copied()));
    }
    assert_eq!(heard[0], (0x90, Some(1)), "the SUBACK");
    let at = |first: u8, last: u8| heard.iter().position(|&it| it == (first, Some(last)));
    assert!(at(0x31, b'r') < at(0x30, b'0') && at(0x31, b'r').is_some(), "{heard:x?}");
    assert!(at(0x33, b'r') < at(0x32, b'1') && at(0x33, b'r').is_some(), "{heard:x?}");
}

/// The database may be slower than a client that comes back.
#[tokio::test]
async fn who_comes_back_at_once_has_what_it_subscribed_to() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut first, _) = Wire::connect(broker.plain(), true, "hasty", false).await;
    let slow = slow(&database);
    first.ask_for("a", 1).await;
    first.send(&[0xE0, 0]).await;
    assert_eq!(first.receive().await, None);
    let mut second = Wire::open(broker.plain(), true).await;
    second.say_hello("hasty", false).await;
    second.silence().await;
    drop(slow);
    let connack = second.receive().await.expect("a CONNACK");
    assert_eq!((connack.0, connack.1[0]), (0x20, 1), "the session is present");
    publish(&broker, "a", "text").await;
    assert_eq!(second.delivery().await.2, "text");
}

#[tokio::test]
async fn what_is_unsubscribed_from_is_heard_no_more_and_stays_so() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "leaver", false).await;
    for filter in ["a", "b"] {
        assert_eq!(wire.subscribe(filter, 1).await, 1);
    }
    let slow = slow(&database);
    wire.send(&[0xA2, 6, 0, 7, 0, 0, 1, b'a', 0xE0, 0]).await;
    assert_eq!(wire.receive().await, None);
    publish(&broker, "a", "unheard").await;
    publish(&broker, "b", "heard").await;
    drop(slow);
    until(&database, "select filter from wakala.subscription", "b").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "leaver", false).await;
    assert_eq!(wire.delivery().await.2, "heard");
    wire.silence().await;
}
