//! What is retained comes a page at a time, whoever subscribes to how much of it and however slowly he takes it.

use std::collections::BTreeSet;

use super::wire::{Wire, packet};
use super::{Broker, Tuned, anywhere, until};
use wakala_system_tests::Database;

/// More than a session takes in three turns.
const TOPICS: usize = 900;

async fn open_broker(database: &Database, tune: impl FnOnce(&mut Tuned)) -> Broker {
    let plain = anywhere().plain.expect("an address");
    Broker::tuned(database.store().await, plain, None, |tuned| {
        tuned.open.anonymous = true;
        tuned.sessions.direct_max = 16.try_into().expect("not zero");
        tune(tuned);
    })
    .await
}

/// Topics `r/100`, `r/101` and so on, at this QoS.
fn retain(database: &Database, qos: u8) {
    let _ = database.rows(&format!(
        "insert into wakala.retained (topic, qos, payload, at) select 'r/' || 99 + n, {qos}, 'old', now() \
         from generate_series(1, {TOPICS}) n returning 1"
    ));
}

/// The next PUBLISH, which is acknowledged: whether it is retained, its topic, its payload.
async fn next(wire: &mut Wire) -> (bool, String, String) {
    loop {
        let (first, body) = wire.receive().await.expect("a packet");
        if first & 0xF0 != 0x30 {
            continue;
        }
        let topic = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let mut at = topic;
        if first & 0x06 != 0 {
            at += 2;
            wire.send(&packet(0x40, &body[topic..at])).await;
        }
        at += 1 + usize::from(body[at]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return (first & 1 != 0, text(&body[2..topic]), text(&body[at..]));
    }
}

/// A publish on a topic, stored and sent on its way when this returns.
async fn publish(broker: &Broker, topic: &str, retained: bool, payload: &str) {
    publish_as("publisher", broker, topic, retained, payload).await;
}

async fn publish_as(name: &str, broker: &Broker, topic: &str, retained: bool, payload: &str) {
    let (mut publisher, _) = Wire::connect(broker.plain(), false, name, true).await;
    let mut body = u16::try_from(topic.len()).expect("short").to_be_bytes().to_vec();
    body.extend([topic.as_bytes(), &[0, 1], payload.as_bytes()].concat());
    publisher.send(&packet(0x32 | u8::from(retained), &body)).await;
    assert_eq!(publisher.receive().await, Some((0x40, vec![0, 1])), "a PUBACK");
    publisher.leave().await;
}

/// A client that asks for everything again and again, and acknowledges nothing, once had all of it in memory each time.
#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_owed_what_is_retained_and_has_a_page_of_it() {
    let database = Database::new();
    retain(&database, 1);
    let broker = open_broker(&database, |_| ()).await;
    let (mut slow, _) = Wire::connect(broker.plain(), true, "slow", true).await;
    for _ in 0..10 {
        slow.ask_for("r/#", 1).await;
    }
    slow.send(&[0xC0, 0]).await;
    while slow.receive().await.expect("a packet").0 != 0xD0 {}
    let direct = &broker.store.metrics().direct;
    assert!(direct.addressed.get() <= 16 + 2 * 256, "{}", direct.addressed.get());
    slow.cut();
}

#[tokio::test]
async fn a_slow_subscriber_hears_all_that_is_retained_and_of_each_topic_the_old_before_the_new() {
    let database = Database::new();
    retain(&database, 1);
    let broker = open_broker(&database, |_| ()).await;
    let (mut slow, _) = Wire::connect(broker.plain(), true, "slow", true).await;
    assert_eq!(slow.subscribe("r/#", 1).await, 1);
    publish(&broker, "r/998", false, "new").await;
    publish(&broker, "r/999", true, "newer").await;
    publish(&broker, "r/999", false, "newest").await;
    let mut heard = Vec::new();
    for _ in 0..TOPICS + 2 {
        heard.push(next(&mut slow).await);
    }
    slow.silence().await;
    let retained: BTreeSet<&str> =
        heard.iter().filter(|(retained, ..)| *retained).map(|(_, topic, _)| &**topic).collect();
    assert_eq!((retained.len(), retained.contains("r/999")), (TOPICS - 1, false));
    let of = |topic: &str| {
        let all = heard.iter().filter(|(_, its, _)| its == topic).map(|(retained, _, payload)| (*retained, &**payload));
        all.collect::<Vec<_>>()
    };
    assert_eq!(of("r/998"), [(true, "old"), (false, "new")]);
    assert_eq!(of("r/999"), [(false, "newer"), (false, "newest")]);
}

#[tokio::test]
async fn who_leaves_a_filter_is_owed_nothing_for_it_any_more() {
    let database = Database::new();
    retain(&database, 1);
    let broker = open_broker(&database, |_| ()).await;
    let (mut fickle, _) = Wire::connect(broker.plain(), true, "fickle", true).await;
    assert_eq!(fickle.subscribe("r/#", 1).await, 1);
    fickle.send(&packet(0xA2, b"\0\x08\0\0\x03r/#")).await;
    let mut heard = 0;
    while tokio::time::timeout(std::time::Duration::from_millis(500), next(&mut fickle)).await.is_ok() {
        heard += 1;
    }
    assert!((1..=16 + 256).contains(&heard), "{heard}");
}

/// It is queued in pages too, and goes on when the client has left.
#[tokio::test]
async fn what_is_retained_is_queued_for_a_session_that_is_kept_though_its_client_leaves_at_once() {
    let database = Database::new();
    retain(&database, 1);
    let broker = open_broker(&database, |_| ()).await;
    let (mut sleeper, _) = Wire::connect(broker.plain(), true, "sleeper", false).await;
    sleeper.ask_for("r/#", 1).await;
    sleeper.send(&[0xE0, 0]).await;
    sleeper.cut();
    until(&database, "select count(distinct topic) from wakala.message", &TOPICS.to_string()).await;
    let (mut sleeper, connack) = Wire::connect(broker.plain(), true, "sleeper", false).await;
    assert_eq!(connack, [1, 0]);
    let mut heard = BTreeSet::new();
    for _ in 0..TOPICS {
        let (retained, topic, _) = next(&mut sleeper).await;
        assert!(retained && heard.insert(topic));
    }
    sleeper.silence().await;
}

/// At QoS 0 nothing is queued, and all of it comes: it goes out as fast as it is read.
#[tokio::test]
async fn what_is_retained_at_qos_0_comes_to_a_session_that_is_kept_without_being_stored() {
    let database = Database::new();
    retain(&database, 0);
    let broker = open_broker(&database, |_| ()).await;
    let (mut kept, _) = Wire::connect(broker.plain(), true, "kept", false).await;
    kept.ask_for("r/#", 1).await;
    let mut heard = BTreeSet::new();
    for _ in 0..TOPICS {
        heard.insert(next(&mut kept).await.1);
    }
    assert_eq!(heard.len(), TOPICS);
    assert_eq!(database.rows("select count(*) from wakala.message"), "0");
}

/// Large ones are few.
#[tokio::test]
async fn what_is_retained_has_room_by_bytes_too() {
    let database = Database::new();
    let broker = open_broker(&database, |tuned| tuned.open.retained_bytes_max = 1000).await;
    let refused = || broker.store.metrics().unretained.get();
    let held = || {
        let all = database.rows("select string_agg(topic || length(payload), ' ' order by topic) from wakala.retained");
        (all, refused())
    };
    let (large, small) = ("x".repeat(600), "y".repeat(300));
    publish(&broker, "a", true, &large).await;
    publish(&broker, "b", true, &large).await;
    assert_eq!(held(), ("a600".to_owned(), 1));
    publish(&broker, "a", true, &small).await;
    publish(&broker, "b", true, &large).await;
    assert_eq!(held(), ("a300 b600".to_owned(), 1));
    publish(&broker, "a", true, &large).await;
    assert_eq!(held(), ("b600".to_owned(), 2), "what it had is out of date");
    publish(&broker, "b", true, "").await;
    publish(&broker, "a", true, &large).await;
    assert_eq!(held(), ("a600".to_owned(), 2));
}

/// [MQTT-3.8.3-3], whether its node heard it from the client or has read it.
#[tokio::test]
async fn who_wants_no_local_messages_is_not_sent_what_it_retained_itself() {
    let database = Database::new();
    let broker = open_broker(&database, |_| ()).await;
    publish_as("ann", &broker, "n/1", true, "ann's").await;
    publish_as("ben", &broker, "n/2", true, "ben's").await;
    assert_eq!(retained_for("ann", &broker).await, ["ben's"]);
    let later = open_broker(&database, |_| ()).await;
    assert_eq!(retained_for("ann", &later).await, ["ben's"]);
    publish_as("ben", &later, "n/1", true, "ben's too").await;
    assert_eq!(retained_for("ann", &later).await, ["ben's too", "ben's"]);
    assert_eq!(retained_for("ben", &later).await, <[&str; 0]>::default());
}

/// What a client is sent that asks for others' messages alone.
async fn retained_for(name: &str, broker: &Broker) -> Vec<String> {
    const NO_LOCAL: u8 = 0x04;
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, name, true).await;
    assert_eq!(subscriber.subscribe("n/#", 1 | NO_LOCAL).await, 1);
    let mut heard = Vec::new();
    while let Ok((_, _, payload)) =
        tokio::time::timeout(std::time::Duration::from_millis(500), next(&mut subscriber)).await
    {
        heard.push(payload);
    }
    subscriber.leave().await;
    heard
}

/// A topic that is closed later was open before: what is retained there, and the presence of others, is asked for by wider filters too.
#[tokio::test]
async fn nobody_hears_of_closed_topics_by_a_wider_filter() {
    let database = Database::new();
    let broker = open_broker(&database, |_| ()).await;
    for topic in ["a/closed", "a/open"] {
        publish(&broker, topic, true, topic).await;
    }
    drop(broker);
    let broker = open_broker(&database, |tuned| {
        let closed = ["a/closed", "$SYS/presence/#"];
        tuned.open.closed = closed.map(str::to_owned).into();
    })
    .await;
    let (mut watcher, _) = Wire::connect(broker.plain(), true, "watcher", true).await;
    for filter in ["$SYS/#", "a/#"] {
        assert_eq!(watcher.subscribe(filter, 1).await, 1);
    }
    assert_eq!(next(&mut watcher).await.1, "a/open");
    let (_other, _) = Wire::connect(broker.plain(), true, "other", true).await;
    watcher.silence().await;
}
