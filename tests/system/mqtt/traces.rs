//! `wakala tap --keep`: what is stored of a client's packets, by whichever node has them, and what is not.

use std::time::Duration;

use prost::Message as _;
use wakala::id::{RequestKey, TransactionId};
use wakala::transaction::CoreAnswer;
use wakala::wire as proto;
use wakala_node::listener;
use wakala_node::store::Store;
use wakala_node::store::traces::{Beginning, NewTrace, Said, Told};
use wakala_node::tap;
use wakala_system_tests::{Database, Desk, now, terminal, withdrawal};

use super::ended::Node;
use super::wire::{Wire, packet};
use super::{Broker, PASSWORD, anywhere, enrol, killed, queue_receipt, until};
use crate::locks::Holding;

const PAN: &str = "4111111111111111";
const PIN_BLOCK: [u8; 16] = *b"\x04\x12\x34\xEE\xDD\xCC\xBB\xAA\x99\x88\x77\x66\x55\x44\x33\x22";
const SHOWN: &str = "select string_agg(concat_ws(' ', way, what ->> 'packet', 'lost ' || lost), ', ' order by nth) \
                     from wakala.trace_row";

fn new(client: &str, rows_max: u32) -> NewTrace {
    NewTrace {
        client: wakala::id::ClientId::new(client).expect("short"),
        who: "asha".to_owned(),
        why: "a test".to_owned(),
        begun_at: now(),
        until: now() + Duration::from_secs(600),
        rows_max,
    }
}

async fn begin(store: &Store, new: NewTrace) -> i64 {
    match store.begin_trace(new, 8).await {
        Ok(Beginning::Begun(trace)) => trace,
        other => panic!("{other:?}"),
    }
}

async fn broker(database: &Database, node: &str, tap: tap::Options) -> Broker {
    let options = listener::Options { connect_within: Duration::from_secs(5), ..anywhere() };
    Broker::made(database.store().await, options, |deps| (deps.node, deps.tap) = (node.to_owned(), tap)).await
}

/// A withdrawal, as far as a session looks at it.
fn asked(key: u8) -> Vec<u8> {
    let request = proto::Request {
        key: vec![key; 16],
        kind: proto::Kind::Withdrawal.into(),
        amount: 5_000,
        currency: 834,
        card: Some(proto::Card { data: PAN.as_bytes().to_vec(), pin_block: PIN_BLOCK.to_vec() }),
        made_at: 0,
    };
    proto::Envelope { body: request.encode_to_vec(), ksn: vec![3; 12], mac: vec![4; 8] }.encode_to_vec()
}

/// Publishes these bytes at QoS 1 and waits for the PUBACK.
async fn publish(wire: &mut Wire, topic: &str, id: u8, payload: &[u8]) {
    let length = u16::try_from(topic.len()).expect("short").to_be_bytes();
    let body = [&length, topic.as_bytes(), &[0, id, 0], payload].concat();
    wire.send(&packet(0x32, &body)).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
}

async fn rows(store: &Store, trace: i64) -> Vec<Told> {
    store.trace_rows_after(trace, 0, 1000).await.expect("read")
}

fn name(row: &Told) -> String {
    match &row.said {
        Said::Packet { way, what, .. } => format!("{way} {}", what.name()),
        Said::Lost(lost) => format!("lost {lost}"),
    }
}

#[tokio::test]
async fn a_trace_needs_no_reader_and_is_stored_over_reconnects_wherever_they_are_and_without_a_secret() {
    let database = Database::new();
    let store = database.store().await;
    for name in ["T1", "T2"] {
        enrol(&store, name, None).await;
    }
    let nodes = [broker(&database, "n1", Default::default()).await, broker(&database, "n2", Default::default()).await];
    let trace = begin(&store, new("T1", 1000)).await;
    for node in &nodes {
        assert_eq!(node.sessions.look_for_traces().await, Ok(1));
        assert_eq!(node.sessions.look_for_traces().await, Ok(1), "once");
    }
    let (mut other, _) = Wire::connect(nodes[0].plain(), true, "T2", true).await;
    for (round, node) in nodes.iter().enumerate() {
        let (mut wire, _) = Wire::connect(node.plain(), true, "T1", round == 0).await;
        assert_eq!(wire.subscribe("r/T1", 1).await, 1);
        queue_receipt(&database, "T1", PAN);
        assert!(node.sessions.wake("T1"));
        let (_, id, _) = wire.delivery().await;
        wire.acknowledge(id).await;
        publish(&mut wire, "q/T1", 5, &asked(7)).await;
        publish(&mut wire, "q/T1", 6, format!("{PAN} {PASSWORD}").as_bytes()).await;
        publish(&mut wire, &format!("q/{PAN}"), 7, b"x").await;
        wire.ping().await;
        other.ping().await;
        wire.cut();
        node.connected(1 - round).await;
    }
    // Somebody tries a password.
    let mut wire = Wire::open(nodes[1].plain(), true).await;
    assert_eq!(wire.try_password("T1", "not the password").await[1], 0x86);
    until(&database, "select rows from wakala.trace", "32").await;

    let (found, connection) = (
        rows(&store, trace).await,
        "in CONNECT, out CONNACK, in SUBSCRIBE, out SUBACK, \
        out PUBLISH, in PUBACK, in PUBLISH, out PUBACK, in PUBLISH, out PUBACK, in PUBLISH, out PUBACK, in PINGREQ, \
        out PINGRESP, out ended",
    );
    let names = |rows: &[Told]| rows.iter().map(name).collect::<Vec<_>>().join(", ");
    assert_eq!(names(&found[..15]), connection);
    assert_eq!(names(&found[15..30]), connection);
    assert_eq!(names(&found[30..]), "in CONNECT, out CONNACK");
    let seen: Vec<_> = found.iter().map(|row| (row.nth, row.node.as_str())).collect();
    assert_eq!((seen[0], seen[14], seen[15], seen[31]), ((1, "n1"), (15, "n1"), (16, "n2"), (32, "n2")));
    // Whatever was stored, as a dump would have it; and the same in hexadecimal digits and in base 64.
    let everything = "select string_agg(concat(to_jsonb(t), to_jsonb(r)), ' ') from wakala.trace t, wakala.trace_row r";
    let stored = database.rows(everything);
    assert!(stored.contains("r/T1") && stored.contains("\"bytes\": 16"), "{stored}");
    let bytes = [&PIN_BLOCK[..], PAN.as_bytes(), PASSWORD.as_bytes(), &asked(7)];
    let written = bytes.map(|secret| [hex::encode(secret), String::from_utf8_lossy(secret).into_owned()]).concat();
    for secret in written.iter().map(String::as_str).chain(["not the password", "4, 18, 52, 238"]) {
        assert!(!stored.to_lowercase().contains(&secret.to_lowercase()), "{secret} in {stored}");
    }
    let recorded = "select what || ' by ' || who || ': ' || why || ', ' || outcome from audit.admin_actions";
    assert_eq!(database.rows(recorded), format!("tap by asha: a test, kept as trace {trace}"));

    // Stopped, wherever that was typed: nothing more is stored.
    assert_eq!(store.stop_trace(trace, "juma", now()).await, Ok(true));
    assert_eq!(store.stop_trace(trace, "asha", now()).await, Ok(false), "it has ended");
    assert_eq!(nodes[0].sessions.look_for_traces().await, Ok(0));
    let (mut wire, _) = Wire::connect(nodes[0].plain(), true, "T1", true).await;
    wire.ping().await;
    nodes[0].sessions.all_traced().await;
    assert_eq!(database.rows("select rows, lost, ended_why from audit.traces"), "32|0|stopped by juma");
}

#[tokio::test]
async fn a_traced_packet_names_the_transaction_that_it_is_about() {
    let database = Database::new();
    let broker = broker(&database, "n1", Default::default()).await;
    broker.enrol("T1").await;
    let trace = begin(&broker.store, new("T1", 1000)).await;
    assert_eq!(broker.sessions.look_for_traces().await, Ok(1));
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    publish(&mut wire, "q/T1", 5, &asked(7)).await;
    publish(&mut wire, "q/T1", 6, b"no request").await;
    let mut desk = Desk::open(&broker.store, "n1", 0).await;
    desk.records(vec![withdrawal(1, 7, 5_000)]).await.expect("committed");
    desk.answer(CoreAnswer::Approved { authorisation: "A12345".into() }).await.expect("committed");
    assert!(broker.sessions.wake("T1"));
    let (_, id, _) = wire.any_delivery().await;
    wire.acknowledge(id).await;
    // Another connection: what it acknowledges is its own.
    wire.ping().await;
    wire.cut();
    until(&database, "select count(*) from wakala.trace_row where what ->> 'packet' = 'ENDED'", "1").await;

    let transaction = TransactionId::of(&terminal("T1"), RequestKey([7; 16]));
    let joined = "select string_agg(concat_ws(' ', way, packet, state), ', ' order by nth) from audit.traced_packets \
                  where transaction = (select transaction from audit.transactions)";
    assert_eq!(
        database.rows(joined),
        "in PUBLISH APPROVED, out PUBACK APPROVED, out PUBLISH APPROVED, in PUBACK APPROVED"
    );
    let about = broker.store.traced(transaction, 100).await.expect("read");
    assert_eq!(about.iter().map(name).collect::<Vec<_>>(), ["in PUBLISH", "out PUBACK", "out PUBLISH", "in PUBACK"]);
    assert!(about.iter().all(|row| row.trace == trace));
    assert_eq!(broker.store.traced(transaction, 2).await.expect("read").len(), 2);
    let none = "select count(*) from audit.traced_packets where packet = 'PUBLISH' and transaction is null";
    assert_eq!(database.rows(none), "1", "what is no request is about nothing");
}

#[tokio::test]
async fn a_trace_goes_on_in_the_next_life_of_a_node_that_was_killed() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let trace = begin(&store, new("T1", 1000)).await;
    for life in 1..=2 {
        let (mut node, address) = killed::start(&database);
        let (mut wire, _) = Wire::connect(address, true, "T1", false).await;
        wire.ping().await;
        until(&database, "select rows from wakala.trace", &(life * 4).to_string()).await;
        node.kill_9();
    }
    let found: Vec<_> = rows(&store, trace).await.iter().map(|row| (row.look, name(row))).collect();
    let life = |look| ["in CONNECT", "out CONNACK", "in PINGREQ", "out PINGRESP"].map(|name| (look, name.to_owned()));
    assert_eq!(found, [life(1), life(2)].concat());

    // Its time is over while no node runs.
    let _ = database.rows("update wakala.trace set begun_at = now() - interval '1 hour', until = now() returning 1");
    let (mut node, address) = killed::start(&database);
    let (mut wire, _) = Wire::connect(address, true, "T1", false).await;
    wire.ping().await;
    let ended = "select rows, ended_why, ended_at = until from wakala.trace";
    until(&database, ended, "8|its time was over|t").await;
    node.kill_9();
}

#[tokio::test]
async fn a_node_that_stops_stores_what_its_traces_were_shown() {
    let database = Database::new();
    enrol(&database.store().await, "T1", None).await;
    let _ = begin(&database.store().await, new("T1", 1000)).await;
    let mut node = Node::start(&database).await;
    assert!(node.ask("POST /traces/look").await.ends_with("{\"carried_out\":1}"));
    // Some is on its way into the database and some waits when the connection ends.
    let holding = Holding::new(&database, "select from wakala.trace for update");
    let (mut wire, _) = Wire::connect(node.mqtt, true, "T1", true).await;
    wire.ping().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.signal("-TERM");
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xE0), "a DISCONNECT");
    tokio::time::sleep(Duration::from_millis(500)).await;
    holding.commit();
    assert_eq!(node.ended().await.code(), Some(0));
    assert_eq!(database.rows(SHOWN), "in CONNECT, out CONNACK, in PINGREQ, out PINGRESP, out DISCONNECT, out ENDED");
}

#[tokio::test]
async fn a_trace_has_an_end_and_so_has_what_is_kept_of_all() {
    let database = Database::new();
    let broker = broker(&database, "n1", Default::default()).await;
    let store = &broker.store;
    broker.enrol("T1").await;
    let full = begin(store, new("T1", 5)).await;
    let (short, long) =
        (begin(store, NewTrace { until: now() + Duration::from_secs(2), ..new("T1", 1000) }).await, 1000);
    assert_eq!(store.begin_trace(new("T1", long), 2).await, Ok(Beginning::Full), "as many as may be");
    assert_eq!(broker.sessions.look_for_traces().await, Ok(2));
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", true).await;
    for _ in 0..4 {
        wire.ping().await;
    }
    until(&database, "select string_agg(rows::text, ' ' order by id) from wakala.trace", "5 10").await;
    let stands = |trace: i64| format!("select rows, ended_why from audit.traces where trace = {trace}");
    let said = "5|as many packets as were wanted, or as may be (tap.trace_rows_max)";
    assert_eq!(database.rows(&stands(full)), said);
    until(&database, &stands(short), "10|its time was over").await;
    wire.ping().await;
    broker.sessions.all_traced().await;
    assert_eq!(database.rows("select count(*) from wakala.trace_row"), "15");

    // The oldest go when there are too many rows, some at a time, and all in time; one that goes on stays.
    let open = begin(store, new("T1", 1000)).await;
    let long_ago = wakala::time::Time::from_millis(0);
    assert_eq!(store.forget_traces(long_ago, 17, 100).await, Ok(false), "a trace is a row as well");
    assert_eq!(store.forget_traces(long_ago, 16, 3).await, Ok(true));
    assert_eq!(database.rows("select count(*) from wakala.trace_row"), "12");
    while store.forget_traces(long_ago, 16, 3).await == Ok(true) {}
    assert_eq!(database.rows("select string_agg(id::text, ' ') from wakala.trace"), format!("{short} {open}"));
    while store.forget_traces(now(), 1_000_000, 100).await == Ok(true) {}
    assert_eq!(database.rows("select count(*), min(id) from wakala.trace"), format!("1|{open}"));
    assert_eq!(database.rows("select count(*) from wakala.trace_row"), "0");
}

#[tokio::test]
async fn a_database_that_is_slow_slows_no_client_and_what_is_lost_is_counted() {
    let database = Database::new();
    let tap = tap::Options { waiting_max: 4, ..tap::Options::default() };
    let broker = broker(&database, "n1", tap).await;
    broker.enrol("T1").await;
    let _ = begin(&broker.store, new("T1", 1000)).await;
    assert_eq!(broker.sessions.look_for_traces().await, Ok(1));
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", true).await;
    until(&database, "select rows from wakala.trace", "2").await;
    let holding = Holding::new(&database, "select from wakala.trace for update");
    for _ in 0..10 {
        wire.ping().await;
    }
    holding.commit();
    until(&database, "select rows, lost from wakala.trace", "7|16").await;
    wire.ping().await;
    broker.sessions.all_traced().await;
    assert_eq!(
        database.rows(SHOWN),
        "in CONNECT, out CONNACK, in PINGREQ, out PINGRESP, in PINGREQ, out PINGRESP, lost 16, in PINGREQ, out PINGRESP"
    );
}

#[tokio::test]
async fn what_is_stored_again_is_there_once_and_what_came_after_the_end_is_not() {
    let database = Database::new();
    let broker = broker(&database, "n1", Default::default()).await;
    broker.enrol("T1").await;
    let trace = begin(&broker.store, new("T1", 1000)).await;
    let began = now();
    let row = |made| {
        let said = Said::Lost(made);
        let at = began + Duration::from_secs(made);
        let made = i64::try_from(made).expect("small");
        wakala_node::store::traces::Row { trace, look: 1, made, at, said }
    };
    for rows in [vec![row(1), row(2)], vec![row(1), row(2)], vec![row(2), row(3)]] {
        broker.store.add_to_traces("n1", rows).await.expect("stored");
    }
    let there = "select string_agg(nth || ':' || made, ' ' order by nth) from wakala.trace_row";
    assert_eq!(database.rows(there), "1:1 2:2 3:3");
    assert_eq!(database.rows("select rows, lost from wakala.trace"), "3|6");
    // Seen before it was stopped, and after.
    assert_eq!(broker.store.stop_trace(trace, "juma", began + Duration::from_secs(5)).await, Ok(true));
    broker.store.add_to_traces("n1", vec![row(4), row(5), row(6)]).await.expect("done");
    assert_eq!(database.rows(there), "1:1 2:2 3:3 4:4");
    // Of a trace that has been forgotten.
    assert_eq!(broker.store.forget_traces(began + Duration::from_secs(6), 1000, 100).await, Ok(true));
    broker.store.add_to_traces("n1", vec![row(7)]).await.expect("done");
    assert_eq!(database.rows("select count(*) from wakala.trace_row"), "0");
}

#[tokio::test]
async fn a_node_forgets_traces_by_age_and_by_number() {
    let database = Database::new();
    let store = database.store().await;
    let rows_of = async |rows: u32| {
        let trace = begin(&store, new("T1", rows)).await;
        let row = |made| {
            let said = Said::Lost(1);
            wakala_node::store::traces::Row { trace, look: 1, made: i64::from(made), at: now(), said }
        };
        store.add_to_traces("n1", (1..=rows).map(row).collect()).await.expect("stored");
        trace
    };
    let old = rows_of(5).await;
    let _ = database.rows("update wakala.trace set ended_at = now() - interval '2 days' returning 1");
    let (first, second, third) = (rows_of(5).await, rows_of(5).await, rows_of(5).await);
    let open = begin(&store, new("T1", 5)).await;
    let started = Broker::made(database.store().await, anywhere(), |deps| {
        let day = Duration::from_secs(24 * 3600);
        (deps.options.expire_every, deps.options.expire_batch_max) = (Duration::from_millis(50), 2);
        (deps.tap.keep, deps.tap.rows_max) = (day, 12);
    });
    let _broker = started.await;
    let left = "select string_agg(id::text, ' ' order by id) from wakala.trace";
    until(&database, left, &format!("{second} {third} {open}")).await;
    assert!(old < first, "both are gone");
    assert_eq!(database.rows("select count(*) from wakala.trace_row"), "10");
}
