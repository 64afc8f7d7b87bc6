//! Wills: who may leave which, who sends it, and how often.

use std::time::Duration;

use super::ended::Node;
use super::identity::{Hello, NOT_AUTHORISED};
use super::wire::Wire;
use super::{Broker, anywhere, until};
use crate::locks::Holding;
use wakala_system_tests::Database;

/// A node of a general broker that has closed a topic.
async fn open(database: &Database, name: &'static str) -> Broker {
    let broker = Broker::made(database.store().await, anywhere(), move |deps| {
        deps.node = name.to_owned();
        deps.open.anonymous = true;
        deps.open.closed = vec!["closed".into()];
        deps.open.wills_every = Duration::from_millis(100);
        deps.options.overtaken_every = Duration::from_millis(200);
        deps.options.dead_after = Duration::from_secs(1);
    });
    let broker = broker.await;
    // Else another node would take it for dead.
    broker.store.hold_name(name, |why| panic!("{why}")).await.expect("the name is free");
    broker
}

/// Whoever leaves a will.
fn leaving<'a>(v5: bool, client: &'a str, topic: &'a str) -> Hello<'a> {
    Hello { v5, client, user: None, password: None, will: Some(topic), kept: true }
}

/// A will of a session whose connection has ended. Nobody sends it yet.
fn leave(database: &Database, client: &str, topic: &str) {
    let _ = database.rows(&format!(
        "insert into wakala.session (client_id, epoch, node, expiry_s, created_at) \
         values ('{client}', 1, 'n1', 3600, now()); \
         insert into wakala.will (client_id, epoch, topic, qos, retain, payload, delay_s) \
         values ('{client}', 1, '{topic}', 0, false, 'gone', 0)"
    ));
}

const DUE: &str = "update wakala.will set due_at = now()";
const LEFT: &str = "select count(*) from wakala.will";

fn sent(broker: &Broker) -> u64 {
    broker.store.metrics().wills.get()
}

/// The topic and the payload of what a 3.1.1 client hears next, at QoS 0.
async fn heard(wire: &mut Wire) -> (String, String) {
    let (first, body) = wire.receive().await.expect("a PUBLISH");
    assert_eq!(first, 0x30, "{body:?}");
    let (topic, payload) = body[2..].split_at(usize::from(u16::from_be_bytes([body[0], body[1]])));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(topic), text(payload))
}

fn gone(topic: &str) -> (String, String) {
    (topic.to_owned(), "gone".to_owned())
}

#[tokio::test]
async fn a_will_to_where_nobody_may_publish_is_refused_at_connect() {
    let database = Database::new();
    let broker = open(&database, "n1").await;
    for v5 in [false, true] {
        let refused = if v5 { NOT_AUTHORISED } else { 5 };
        for (topic, code) in [("closed", refused), ("$SYS/uptime", refused), ("ours", 0)] {
            assert_eq!(leaving(v5, "c", topic).at(&broker).await.1, code, "{topic}");
        }
    }
    until(&database, "select count(*) from wakala.session", "1").await;
}

#[tokio::test]
async fn a_will_that_goes_nowhere_is_not_counted_as_sent() {
    let database = Database::new();
    let broker = open(&database, "n1").await;
    let mut heir = Hello { will: None, ..leaving(false, "heir", "") }.at(&broker).await.0;
    assert_eq!(heir.subscribe("#", 0).await, 0);
    // As its topic may have been closed since its client connected.
    leave(&database, "late", "closed");
    let _ = database.rows(DUE);
    until(&database, LEFT, "0").await;
    leave(&database, "dies", "ours");
    let _ = database.rows(DUE);
    assert_eq!(heard(&mut heir).await, gone("ours"));
    until(&database, LEFT, "0").await;
    leave(&database, "dies too", "ours");
    let _ = database.rows(DUE);
    assert_eq!(heard(&mut heir).await, gone("ours"));
    // What is stored is counted a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sent(&broker), 2);
}

/// Somebody at each of these nodes to whom nothing is stored.
async fn heirs(nodes: &[Broker]) -> Vec<Wire> {
    let mut heirs = Vec::new();
    for (node, client) in nodes.iter().zip(["heir 1", "heir 2"]) {
        let (mut heir, _) = Wire::connect(node.plain(), false, client, true).await;
        assert_eq!(heir.subscribe("#", 0).await, 0);
        heirs.push(heir);
    }
    heirs
}

/// What a 3.1.1 client has heard until it is answered.
async fn all_heard(wire: &mut Wire) -> usize {
    wire.send(&[0xC0, 0]).await;
    let mut heard = 0;
    while wire.receive().await.expect("an answer").0 != 0xD0 {
        heard += 1;
    }
    heard
}

/// Two nodes find the same will due, which is anybody's, and one of them sends it.
#[tokio::test]
async fn a_will_that_another_node_has_sent_already_is_neither_counted_nor_handed_on() {
    let database = Database::new();
    let nodes = [open(&database, "n1").await, open(&database, "n2").await];
    let mut heirs = heirs(&nodes).await;
    leave(&database, "dies", "ours");
    let holding = Holding::new(&database, "select from wakala.session for update");
    let _ = database.rows(DUE);
    let waiting = "select count(*) from pg_stat_activity where application_name = 'wakala' \
                   and wait_event_type = 'Lock' and datname = current_database()";
    until(&database, waiting, "2").await;
    drop(holding);
    until(&database, LEFT, "0").await;
    // What is stored is counted a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(nodes.iter().map(sent).sum::<u64>(), 1);
    assert_eq!(all_heard(&mut heirs[0]).await + all_heard(&mut heirs[1]).await, 1);
}

/// What is not stored reaches the subscribers of the node alone that sends it: that is where its publisher was.
#[tokio::test]
async fn a_will_is_sent_by_the_node_that_its_client_was_connected_to() {
    let database = Database::new();
    let nodes = [open(&database, "n1").await, open(&database, "n2").await];
    let mut heirs = heirs(&nodes).await;
    for n in 0..16 {
        let (wire, code) = leaving(n % 2 == 0, &format!("leaves {n}"), "ours").at(&nodes[0]).await;
        assert_eq!(code, 0);
        wire.cut();
    }
    // As one that has waited for the end of its delay.
    leave(&database, "later", "ours");
    let _ = database.rows("update wakala.will set node = 'n1' where client_id = 'later'");
    let _ = database.rows(DUE);
    until(&database, LEFT, "0").await;
    for _ in 0..17 {
        assert_eq!(heard(&mut heirs[0]).await, gone("ours"));
    }
    // What is stored is counted a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(nodes.iter().map(sent).collect::<Vec<_>>(), [17, 0]);
    assert_eq!((all_heard(&mut heirs[0]).await, all_heard(&mut heirs[1]).await), (0, 0));
}

/// Its connection had ended before, so that nothing else is left of the node.
#[tokio::test]
async fn a_will_that_falls_due_after_its_node_has_died_is_sent_by_another() {
    let database = Database::new();
    let nodes = [open(&database, "n2").await];
    let mut heirs = heirs(&nodes).await;
    leave(&database, "later", "ours");
    let _ = database.rows("update wakala.will set node = 'n1'");
    let _ = database.rows(DUE);
    assert_eq!(heard(&mut heirs[0]).await, gone("ours"));
    until(&database, LEFT, "0").await;
}

/// Nobody starts the node again that its client was connected to.
#[tokio::test]
async fn pain_15_a_will_whose_node_died_is_sent_once_by_one_that_lives() {
    let database = Database::new();
    let survivor = open(&database, "n2").await;
    let mut heir = Hello { will: None, ..leaving(false, "heir", "") }.at(&survivor).await.0;
    assert_eq!(heir.subscribe("left/+", 0).await, 0);
    let node = Node::start_open(&database).await;
    let mut wires = Vec::new();
    for (v5, topic) in [(false, "left/3"), (true, "left/5")] {
        let (wire, code) = leaving(v5, topic, topic).to(node.mqtt).await;
        assert_eq!(code, 0);
        wires.push(wire);
    }
    heir.silence().await;
    node.signal("-KILL");
    let mut all = [heard(&mut heir).await, heard(&mut heir).await];
    all.sort();
    assert_eq!(all, [gone("left/3"), gone("left/5")]);
    until(&database, LEFT, "0").await;
    heir.silence().await;
    until(&database, "select string_agg(client_id, ' ') from wakala.session where connected", "heir").await;
}

/// [MQTT-3.14.4-3], also of a client that has left unread what came before.
#[tokio::test]
async fn who_takes_its_leave_behind_what_it_has_not_read_has_no_will_sent() {
    let database = Database::new();
    let broker = Broker::made(database.store().await, anywhere(), |deps| {
        deps.open.anonymous = true;
        deps.options.bounds.bytes_per_second = 0;
    });
    let broker = broker.await;
    let (mut slow, code) = leaving(false, "slow", "ours").at(&broker).await;
    assert_eq!((code, slow.subscribe("flood", 0).await), (0, 0));
    let (mut speaks, _) = Wire::connect(broker.plain(), false, "speaks", true).await;
    let much = "x".repeat(60_000);
    // More than its socket and the node's buffers take.
    for _ in 0..200 {
        speaks.publish("flood", 0, 0, &much).await;
    }
    speaks.ping().await;
    slow.send(&[0xE0, 0]).await;
    slow.cut();
    broker.connected(1).await;
    until(&database, LEFT, "0").await;
    assert_eq!(sent(&broker), 0);
}
