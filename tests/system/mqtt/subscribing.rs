//! A subscription takes effect when it is read, and is acknowledged when it is stored.

use super::wire::{Wire, packet, text};
use super::{Broker, anywhere, until};
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

/// MQTT 3.1.1 has no No Local, and RETAIN is 0 towards a subscription that is there [MQTT-3.3.1-9].
#[tokio::test]
async fn a_session_of_mqtt_5_goes_on_in_3_without_what_3_does_not_know() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut newer, _) = Wire::connect(broker.plain(), true, "c", false).await;
    // QoS 1, No Local, Retain As Published.
    newer.send(&packet(0x82, &[&[0, 1, 0][..], &text("t"), &[0x0D]].concat())).await;
    assert_eq!(newer.receive().await.map(|(first, body)| (first, body[3])), Some((0x90, 1)));
    newer.leave().await;
    let (mut older, connack) = Wire::connect(broker.plain(), false, "c", false).await;
    assert_eq!(connack, [1, 0]);
    older.send(&packet(0x33, &[&text("t")[..], &[0, 7], b"own"].concat())).await;
    let mut heard = [older.receive().await, older.receive().await].map(|packet| packet.map(|(first, _)| first));
    heard.sort_unstable();
    assert_eq!(heard, [Some(0x32), Some(0x40)], "what it published itself, without RETAIN, and a PUBACK");
    until(&database, "select options from wakala.subscription", "0").await;
}

#[tokio::test]
async fn nobody_publishes_on_what_is_the_servers() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "c", true).await;
    for (topic, answer) in [("$SYS", 0x87), ("$SYS/x", 0x87), ("$SYSx", 0)] {
        wire.publish(topic, 1, 7, "mine").await;
        assert_eq!(wire.receive().await.map(|(first, body)| (first, body[2])), Some((0x40, answer)), "{topic}");
    }
}

/// [MQTT-3.1.2-24]: a CONNACK that refuses has five bytes.
#[tokio::test]
async fn a_client_that_takes_less_than_a_connack_hears_nothing() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    for (max, heard) in [(4, None), (5, Some((0x20, vec![0, 0x95, 0])))] {
        let mut wire = Wire::open(broker.plain(), true).await;
        let fields = [&text("MQTT")[..], &[5, 2, 0, 60, 5, 0x27, 0, 0, 0, max], &text("c")].concat();
        wire.send(&packet(0x10, &fields)).await;
        assert_eq!(wire.receive().await, heard, "{max}");
    }
}

/// Of the members of a shared subscription one that acknowledges nothing had its turn all the same, and what it had no room for was
/// dropped.
#[tokio::test]
async fn a_member_without_room_leaves_its_turn_to_one_that_has_some() {
    let database = Database::new();
    let broker = Broker::tuned(database.store().await, anywhere().plain.expect("an address"), None, |tuned| {
        tuned.open.anonymous = true;
        tuned.sessions.direct_max = 4.try_into().expect("not zero");
    })
    .await;
    let (mut away, _) = Wire::connect(broker.plain(), true, "away", false).await;
    assert_eq!(away.subscribe("$share/g/t", 1).await, 1);
    away.leave().await;
    broker.connected(0).await;
    let (mut slow, _) = Wire::connect(broker.plain(), true, "slow", true).await;
    let (mut quick, _) = Wire::connect(broker.plain(), true, "quick", true).await;
    for wire in [&mut slow, &mut quick] {
        assert_eq!(wire.subscribe("$share/g/t", 1).await, 1);
    }
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    let mut drawn = 0;
    for id in 1..=40 {
        publisher.publish("t", 1, id, "m").await;
        assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
        // Whoever it was for has been written to before.
        while let Ok(Some((_, body))) =
            tokio::time::timeout(std::time::Duration::from_millis(20), quick.receive()).await
        {
            quick.acknowledge(u16::from_be_bytes([body[3], body[4]])).await;
            drawn += 1;
        }
    }
    quick.leave().await;
    broker.connected(2).await;
    for id in 41..=44 {
        publisher.publish("t", 1, id, "m").await;
        assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
    }
    assert_eq!(database.rows("select count(*) from wakala.message where client_id = 'away'"), "4");
    let direct = broker.store.metrics().direct.copies(0);
    assert!(drawn >= 40 - 2 * 4 - 16, "{drawn}");
    assert_eq!(direct.refused["full"], 0, "{direct:?}");
    slow.cut();
}
