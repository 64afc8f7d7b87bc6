//! What is over is forgotten, and what a client has the half of is not.

use std::time::Duration;

use wakala_system_tests::{Database, now};

use super::wire::{Wire, packet, text};
use super::{Broker, anywhere, until};

/// MQTT 5, with a Message Expiry Interval of one second.
async fn publish_for_a_second(wire: &mut Wire, first: u8, topic: &str, id: Option<u8>) {
    let id = id.map_or(vec![], |id| vec![0, id]);
    let body = [text(topic), id, vec![5, 0x02, 0, 0, 0, 1], b"brief".to_vec()].concat();
    wire.send(&packet(first, &body)).await;
}

async fn first_byte(wire: &mut Wire) -> u8 {
    wire.receive().await.expect("a packet").0
}

/// The identifier of a PUBREL.
async fn release(wire: &mut Wire) -> u8 {
    let (first, body) = wire.receive().await.expect("a PUBREL");
    assert_eq!((first, body[0]), (0x62, 0), "a PUBREL");
    body[1]
}

/// [MQTT-4.3.3-7]: at QoS 2 expiry is for what was not sent. Its receiver keeps the identifier until the PUBREL.
#[tokio::test]
async fn what_was_sent_at_qos_2_is_brought_to_its_end_though_its_time_is_over() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", false).await;
    assert_eq!(subscriber.subscribe("a", 2).await, 2);
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    for id in [1, 2] {
        publish_for_a_second(&mut publisher, 0x34, "a", Some(id)).await;
        assert_eq!(first_byte(&mut publisher).await, 0x50);
        publisher.send(&[0x62, 2, 0, id]).await;
        assert_eq!(first_byte(&mut publisher).await, 0x70);
        assert_eq!(first_byte(&mut subscriber).await, 0x34);
    }
    // It has the first whole, the second not yet.
    subscriber.send(&[0x50, 2, 0, 1]).await;
    assert_eq!(release(&mut subscriber).await, 1);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(broker.store.expire_messages(now(), 100).await, Ok(0));
    subscriber.send(&[0x50, 2, 0, 2]).await;
    assert_eq!(release(&mut subscriber).await, 2);
    subscriber.cut();
    broker.connected(1).await;
    until(&database, "select sent_seq from wakala.session where client_id = 'subscriber'", "2").await;
    assert_eq!(broker.store.expire_messages(now(), 100).await, Ok(0));
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", false).await;
    for id in [1, 2] {
        assert_eq!(release(&mut subscriber).await, id, "again");
        subscriber.send(&[0x70, 2, 0, id]).await;
    }
    until(&database, "select count(*) from wakala.message", "0").await;
    // What was not sent is over.
    subscriber.leave().await;
    broker.connected(1).await;
    publish_for_a_second(&mut publisher, 0x34, "a", Some(3)).await;
    assert_eq!(first_byte(&mut publisher).await, 0x50);
    until(&database, "select count(*) from wakala.message", "1").await;
    assert_eq!(broker.store.expire_messages(now() + Duration::from_secs(2), 100).await, Ok(1));
}

/// Their topics would be taken for ever.
#[tokio::test]
async fn retained_messages_that_are_over_make_room_for_others() {
    let database = Database::new();
    let broker = Broker::made(database.store().await, anywhere(), |deps| {
        (deps.open.anonymous, deps.open.retained_max) = (true, 1);
        deps.options.expire_every = Duration::from_millis(100);
    })
    .await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    let retained = "select string_agg(topic, ' ') from wakala.retained";
    publish_for_a_second(&mut publisher, 0x33, "a", Some(1)).await;
    assert_eq!(first_byte(&mut publisher).await, 0x40);
    publish_for_a_second(&mut publisher, 0x33, "b", Some(2)).await;
    assert_eq!(first_byte(&mut publisher).await, 0x40);
    assert_eq!(database.rows(retained), "a", "there is room for one");
    until(&database, retained, "").await;
    publish_for_a_second(&mut publisher, 0x33, "b", Some(3)).await;
    assert_eq!(first_byte(&mut publisher).await, 0x40);
    assert_eq!(database.rows(retained), "b");
}

/// A session that had been kept, and goes on for one connection more: with that it is over, however that ends.
#[tokio::test]
async fn what_ends_with_its_connection_ends_with_its_node_too() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "last", false).await;
    assert_eq!(wire.subscribe("a", 1).await, 1);
    wire.leave().await;
    broker.connected(0).await;
    let mut wire = Wire::open(broker.plain(), true).await;
    // Neither a clean start nor an expiry.
    let body = [text("MQTT"), vec![5, 0, 0, 60, 0], text("last")].concat();
    wire.send(&packet(0x10, &body)).await;
    assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), Some((0x20, 1)), "the session is present");
    let cut = broker.store.forget_connections("n1", now()).await.expect("the database is there");
    assert!(cut.len() == 1 && cut[0].over, "{cut:?}");
    let left = "select (select count(*) from wakala.subscription), (select count(*) from wakala.session)";
    assert_eq!(database.rows(left), "0|0");
}

/// `open.message_ttl_max` is for who is there as for who is away: what waits for the window, or was sent and is not acknowledged, has a
/// row that goes when its time is over.
#[tokio::test]
async fn what_waits_no_longer_than_it_may_says_so_to_who_is_there() {
    let database = Database::new();
    let broker = Broker::made(database.store().await, anywhere(), |deps| {
        (deps.open.anonymous, deps.open.message_ttl_max) = (true, Some(Duration::from_secs(60)));
    })
    .await;
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", false).await;
    assert_eq!(subscriber.subscribe("a", 1).await, 1);
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    publisher.publish("a", 1, 1, "for ever").await;
    publish_for_a_second(&mut publisher, 0x32, "a", Some(2)).await;
    for longest in [60, 1] {
        let (_, body) = subscriber.receive().await.expect("a PUBLISH");
        assert!(body[5..10] == [5, 0x02, 0, 0, 0] && body[10] <= longest, "a Message Expiry Interval: {body:?}");
    }
}

/// Until the sweep comes, a session that is over is still there; what it drew of a shared subscription ended with it.
#[tokio::test]
async fn whose_session_is_over_has_no_turn_in_a_shared_subscription() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    for (name, expiry_s) in [("brief", 1_u8), ("lasting", 200)] {
        let mut wire = Wire::open(broker.plain(), true).await;
        let session_expiry = vec![5, 0x11, 0, 0, 0, expiry_s];
        wire.send(&packet(0x10, &[text("MQTT"), vec![5, 0, 0, 60], session_expiry, text(name)].concat())).await;
        assert_eq!(first_byte(&mut wire).await, 0x20);
        assert_eq!(wire.subscribe("$share/g/t", 1).await, 1);
        wire.leave().await;
    }
    broker.connected(0).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    let drawn = |name| format!("select count(*) from wakala.message where client_id = '{name}'");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    for id in 1..=4 {
        publisher.publish("t", 1, id, "m").await;
        assert_eq!(first_byte(&mut publisher).await, 0x40);
    }
    assert_eq!(database.rows("select count(*) from wakala.session where client_id = 'brief'"), "1", "no sweep yet");
    assert_eq!((database.rows(&drawn("brief")), database.rows(&drawn("lasting"))), ("0".to_owned(), "4".to_owned()));
    drop((publisher, broker));
    // A node that is started reads it.
    let _ = database.rows(
        "update wakala.session set expires_at = now() - interval '1 second' where client_id = 'lasting' returning 1",
    );
    let _ = database
        .rows("update wakala.session set expires_at = now() + interval '1 hour' where client_id = 'brief' returning 1");
    let broker = Broker::open(&database).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    for id in 1..=4 {
        publisher.publish("t", 1, id, "m").await;
        assert_eq!(first_byte(&mut publisher).await, 0x40);
    }
    assert_eq!(database.rows(&drawn("brief")), "4");
}
