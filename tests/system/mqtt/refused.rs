//! What cannot be stored is refused, and stands in nobody's way.

use std::sync::Arc;

use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::QoS;
use wakala::message::Message;
use wakala::topics::{BYTES_MAX, LEVELS_MAX};
use wakala_node::store::publications::{Overflow, Publication, Room};
use wakala_node::store::retained::{RetainedMessage, Retaining};
use wakala_system_tests::{Database, now};

use super::wire::{Wire, packet, text};
use super::{Broker, until};

/// Of letters that do not repeat: Postgres compresses what it can.
fn long(bytes: usize) -> String {
    let mut state = 1_u32;
    let mut letter = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + u8::try_from(state >> 24).expect("a byte") % 26)
    };
    (0..bytes).map(|_| letter()).collect()
}

#[tokio::test]
async fn a_topic_that_no_index_takes_is_refused_and_the_longest_that_is_taken_is_stored() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (longest, too_long, too_deep) = (long(BYTES_MAX), long(BYTES_MAX + 1), "/".repeat(LEVELS_MAX));
    for (v5, end) in [(true, Some((0xE0, 0x90))), (false, None)] {
        for topic in [&too_long, &too_deep] {
            let (mut wire, _) = Wire::connect(broker.plain(), v5, "publisher", true).await;
            wire.publish(topic, 1, 1, "refused").await;
            assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), end, "a topic name");
        }
    }
    let name = "n".repeat(256);
    let (mut wire, _) = Wire::connect(broker.plain(), true, &name, false).await;
    for topic in [&too_long, &too_deep] {
        assert_eq!(wire.subscribe(topic, 1).await, 0x8F, "a topic filter");
    }
    let deepest = "/".repeat(LEVELS_MAX - 1);
    for topic in [&longest, &deepest] {
        assert_eq!(wire.subscribe(topic, 1).await, 1);
        let body = [text(topic), vec![0, 1, 0], b"retained".to_vec()].concat();
        wire.send(&packet(0x33, &body)).await;
        let mut heard = [wire.receive().await, wire.receive().await].map(|heard| heard.expect("a packet").0);
        heard.sort_unstable();
        assert_eq!(heard, [0x32, 0x40]);
    }
    let mut wire = Wire::open(broker.plain(), true).await;
    let will = [text(&too_long), text("will")].concat();
    let body = [text("MQTT"), vec![5, 0x06, 0, 60, 0], text("x"), vec![0], will].concat();
    wire.send(&packet(0x10, &body)).await;
    assert_eq!(wire.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0x90)), "a will's topic");
}

#[tokio::test]
async fn a_publish_that_the_database_does_not_take_keeps_no_other_from_it() {
    let database = Database::new();
    let store = database.store().await;
    let room = Room { max: 10, overflow: Overflow::Newest, ttl_max: None };
    let publications = store.publications(16, 16, room, |_, _| ());
    let waits = ["a", "b", "no\0text", "c"].map(|topic| {
        let message = Message {
            topic: topic.into(),
            payload: Bytes::from_static(b"x"),
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at: None,
            properties: wakala::mqtt::Properties::default(),
        };
        let retain = Some(Retaining::new(RetainedMessage { message: Arc::new(message), publisher: None }, None));
        let publication = Publication { retain, ..Publication::at(now()) };
        let (told, hears) = tokio::sync::oneshot::channel();
        publications.hand_over(publication, |stored| told.send(stored).expect("it hears"));
        hears
    });
    let mut taken = Vec::new();
    for hears in waits {
        taken.push(hears.await.expect("told").and_then(|stored| stored).is_ok());
    }
    assert_eq!(taken, [true, true, false, true]);
    assert_eq!(database.rows("select string_agg(topic, ' ' order by topic) from wakala.retained"), "a b c");
}

/// It was the first of those that are due, each time anew.
#[tokio::test]
async fn a_will_that_the_database_does_not_take_keeps_no_other_from_being_sent() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut hears, _) = Wire::connect(broker.plain(), true, "hears", true).await;
    assert_eq!(hears.subscribe("wills/#", 1).await, 1);
    let (kept, _) = Wire::connect(broker.plain(), true, "dies", false).await;
    kept.cut();
    broker.connected(1).await;
    let _ = database.rows(&format!(
        "insert into wakala.will (client_id, epoch, topic, qos, retain, payload, delay_s, due_at) values \
         ('dies', 1, '{}', 1, true, 'x', 0, now() - interval '1 minute'), ('dies', 2, 'wills/dies', 1, false, 'y', 0, now())",
        long(5_000)
    ));
    assert_eq!(hears.delivery().await.2, "y");
    until(&database, "select count(*) from wakala.will", "0").await;
}

/// It was done, and nobody was told: tried again, at QoS 2, it would be found to have come before.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_to_be_done() {
    let database = Database::alone();
    let broker = Broker::open(&database).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", false).await;
    let mut subscribers = Vec::new();
    for clean in [true, false] {
        let (mut wire, _) = Wire::connect(broker.plain(), true, if clean { "clean" } else { "kept" }, clean).await;
        assert_eq!(wire.subscribe("t", 1).await, 1);
        subscribers.push(wire);
    }
    // A commit waits for a standby that is not there; whoever cuts its connection then has it done without an answer.
    let standby = |names: &str| {
        database.rows(&format!("alter system set synchronous_standby_names = '{names}'"))
            + &database.rows("select pg_reload_conf()")
    };
    assert_eq!(standby("nobody"), "t");
    publisher.publish("t", 2, 7, "once").await;
    let waits = "from pg_stat_activity where wait_event = 'SyncRep' and query ilike 'commit'";
    until(&database, &format!("select count(*) > 0 {waits}"), "t").await;
    assert_ne!(database.rows(&format!("select count(pg_terminate_backend(pid)) {waits}")), "0");
    assert_eq!(standby(""), "t");
    assert_eq!(publisher.receive().await.map(|(first, body)| (first, body[..2].to_vec())), Some((0x50, vec![0, 7])));
    for wire in &mut subscribers {
        assert_eq!(wire.delivery().await.2, "once");
        wire.silence().await;
    }
}
