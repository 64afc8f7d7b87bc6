//! Receipts on their way: kept while the terminal is away, sent in order, sent again with DUP and the same identifier.

use std::time::Duration;

use super::wire::Wire;
use super::{Broker, queue_receipt, until, waiting};
use wakala_node::store::openings::Opening;
use wakala_system_tests::{Database, now};

#[tokio::test]
async fn receipts_wait_for_their_terminal_and_keep_identifier_and_order() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    for v5 in [false, true] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
        assert_eq!(wire.subscribe("r/T1", 1).await, 1);
        wire.send(&[0xE0, 0]).await;
        assert_eq!(wire.receive().await, None);
    }
    for text in ["a", "b", "c"] {
        queue_receipt(&database, "T1", text);
    }
    let (mut wire, connack) = Wire::connect(broker.plain(), false, "T1", false).await;
    assert_eq!(connack, [1, 0], "the session is present, subscriptions and all");
    for (id, text) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(wire.delivery().await, (false, id, text.to_owned()), "never sent before: no DUP");
    }
    wire.acknowledge(2).await;
    until(&database, "select seq from wakala.receipt where delivered_at is not null", "2").await;
    wire.silence().await;
    wire.cut();
    broker.connected(0).await;
    until(&database, "select sent_seq from wakala.session", "3").await;
    queue_receipt(&database, "T1", "d");
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    for (dup, id, text) in [(true, 1, "a"), (true, 3, "c"), (false, 4, "d")] {
        assert_eq!(wire.delivery().await, (dup, id, text.to_owned()));
        wire.acknowledge(id).await;
    }
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
    wire.silence().await;
}

#[tokio::test]
async fn a_clean_start_forgets_subscriptions_but_no_receipt() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    queue_receipt(&database, "T1", "a");
    broker.sessions.wake("T1");
    assert_eq!(wire.delivery().await, (false, 1, "a".to_owned()));
    let (mut clean, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    clean.silence().await;
    assert_eq!(waiting(&database, "T1"), "1");
    assert_eq!(clean.subscribe("r/T1", 0).await, 0x83, "receipts need QoS 1");
    assert_eq!(clean.subscribe("r/T2", 1).await, 0x87, "another terminal's");
    assert_eq!(clean.subscribe("r/T1", 2).await, 1, "granted what there is");
    assert_eq!(clean.delivery().await, (false, 1, "a".to_owned()), "new to this session: no DUP");
    clean.cut();
    broker.connected(0).await;
    until(&database, "select count(*) from wakala.subscription", "0").await;
}

#[tokio::test]
async fn the_window_bounds_what_is_in_flight_and_the_rest_stays_stored() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), false, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    let _ = database.rows(
        "update wakala.session set next_seq = 101; insert into wakala.receipt (answers, stage, terminal, seq, envelope, at) \
         select gen_random_uuid(), 1, 'T1', n, convert_to('p' || n, 'utf8'), now() from generate_series(1, 100) n",
    );
    broker.sessions.wake("T1");
    for id in 1..=4 {
        assert_eq!(wire.delivery().await, (false, id, format!("p{id}")));
    }
    wire.silence().await;
    for id in 1..=100 {
        if id > 4 {
            assert_eq!(wire.delivery().await, (false, id, format!("p{id}")));
            wire.acknowledge(id).await;
        } else {
            wire.acknowledge(id).await;
        }
    }
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
    wire.silence().await;
}

#[tokio::test]
async fn a_session_whose_time_is_over_is_gone_and_its_receipts_are_not() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    wire.send(&[0xE0, 0]).await;
    broker.connected(0).await;
    until(&database, "select connected from wakala.session", "f").await;
    queue_receipt(&database, "T1", "a");
    let later = wakala_system_tests::now() + std::time::Duration::from_secs(7200);
    assert_eq!(broker.store.expire_sessions(later, 10).await, Ok(vec![client("T1")]));
    assert_eq!(broker.store.expire_sessions(later, 10).await, Ok(vec![]));
    assert_eq!(database.rows("select count(*) from wakala.subscription"), "0");
    let (mut wire, connack) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(connack, [0, 0]);
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    assert_eq!(wire.delivery().await, (false, 1, "a".to_owned()));
}

/// A CONNECT that the terminal had given up reaches another node after all, opens the session there, and is gone.
#[tokio::test]
async fn pain_03_a_session_that_was_overtaken_at_another_node_ends_and_its_receipt_arrives() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    let late = Opening {
        client: client("T1"),
        guest: false,
        node: "n2".to_owned(),
        above: wakala::id::Epoch(0),
        will: None,
        clean_start: false,
        expiry_s: 3600,
        connection: Default::default(),
        at: now(),
    };
    broker.store.open_session(late).await.expect("opened");
    broker.store.forget_connections("n2", now()).await.expect("and gone");
    queue_receipt(&database, "T1", "a");
    let (first, body) = wire.receive().await.expect("a DISCONNECT");
    assert_eq!((first, body[0]), (0xE0, 0x8E), "session taken over");
    assert_eq!(wire.receive().await, None);
    broker.connected(0).await;
    let (mut wire, connack) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(connack, [1, 0]);
    assert_eq!(wire.delivery().await, (true, 1, "a".to_owned()), "how far the other node sent, nobody can say: DUP");
}

/// A terminal that moves to another node is one connection again within a second.
#[tokio::test]
async fn pain_03_a_client_that_has_moved_to_another_node_is_gone_from_the_first_at_once() {
    let database = Database::new();
    let at = async |name: &str| {
        let name = name.to_owned();
        Broker::made(database.store().await, super::anywhere(), move |deps| {
            deps.node = name;
            // Not by the look at all that are here.
            deps.options.overtaken_every = Duration::from_secs(3600);
        })
        .await
    };
    let (first, second) = (at("n1").await, at("n2").await);
    first.enrol("T1").await;
    first.enrol("T2").await;
    let (mut stays, _) = Wire::connect(first.plain(), true, "T2", false).await;
    for _ in 0..3 {
        let (mut before, _) = Wire::connect(first.plain(), true, "T1", false).await;
        // A look must have been had since the node began.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let (_after, connack) = Wire::connect(second.plain(), true, "T1", false).await;
        assert_eq!(connack, [1, 0]);
        let ended = tokio::time::timeout(Duration::from_secs(2), before.receive()).await.expect("soon");
        assert_eq!(ended.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)), "session taken over");
        first.connected(1).await;
    }
    stays.ping().await;
}

/// Another node has opened the session, and nobody has told this one yet.
#[tokio::test]
async fn who_was_taken_over_is_not_told_that_qos_2_went_on() {
    let database = Database::new();
    let broker = Broker::made(database.store().await, super::anywhere(), |deps| {
        deps.open.anonymous = true;
        (deps.options.overtaken_every, deps.options.blocked_every) =
            (Duration::from_secs(3600), Duration::from_secs(3600));
    })
    .await;
    for released in [true, false] {
        let (mut wire, _) = Wire::connect(broker.plain(), false, "c", false).await;
        wire.publish("t", 2, 7, "taken").await;
        assert_eq!(wire.receive().await, Some((0x50, vec![0, 7])));
        let _ = database.rows("update wakala.session set epoch = epoch + 1 where client_id = 'c'");
        if released {
            wire.send(&[0x62, 2, 0, 7]).await;
        } else {
            wire.publish("t", 2, 8, "not taken").await;
        }
        assert_eq!(wire.receive().await, None, "neither PUBCOMP nor PUBREC");
        assert_eq!(database.rows("select string_agg(packet_id::text, ',') from wakala.received"), "7");
    }
}

/// [MQTT-4.6.0-4], over three connections: what is known of the order is in the database.
#[tokio::test]
async fn what_was_received_at_qos_2_is_released_in_that_order_on_every_later_connection() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut wire, _) = Wire::connect(broker.plain(), false, "c", false).await;
    assert_eq!(wire.subscribe("t", 2).await, 2);
    let (mut other, _) = Wire::connect(broker.plain(), false, "publisher", true).await;
    for id in 1..=4 {
        other.publish("t", 1, id, "x").await;
        assert_eq!(other.receive().await, Some((0x40, vec![0, id])));
        other.publish("t", 2, id, "x").await;
        assert_eq!(other.receive().await, Some((0x50, vec![0, id])));
        other.send(&[0x62, 2, 0, id]).await;
        assert_eq!(other.receive().await, Some((0x70, vec![0, id])));
        // One at QoS 1 and one at QoS 2.
        assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x32));
        wire.acknowledge(u16::from(id) * 2 - 1).await;
        assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x34));
    }
    let release = |id: u8| Some((0x62, vec![0, id]));
    for id in [6, 2, 4] {
        wire.send(&[0x50, 2, 0, id]).await;
        assert_eq!(wire.receive().await, release(id));
    }
    for late in [Some(8), None] {
        wire.cut();
        broker.connected(1).await;
        let (again, connack) = Wire::connect(broker.plain(), false, "c", false).await;
        assert_eq!(connack, [1, 0]);
        wire = again;
        for id in [6, 2, 4] {
            assert_eq!(wire.receive().await, release(id));
        }
        if let Some(late) = late {
            assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x3C), "sent again");
            wire.send(&[0x50, 2, 0, late]).await;
            assert_eq!(wire.receive().await, release(late));
        }
    }
    assert_eq!(wire.receive().await, release(8), "behind those of the connection before it");
}

/// What a client acknowledged and the node did not store before it died is sent again, and there may be pages of it.
#[tokio::test]
async fn what_is_owed_is_released_first_though_pages_of_other_messages_are_before_it() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut wire, _) = Wire::connect(broker.plain(), false, "c", false).await;
    assert_eq!(wire.subscribe("t", 2).await, 2);
    wire.leave().await;
    until(&database, "select connected from wakala.session", "f").await;
    let _ = database.rows(
        "update wakala.session set next_seq = 1001, sent_seq = 1000; \
         insert into wakala.message (client_id, seq, topic, qos, payload, at, released, received_nth) \
         select 'c', n, 't', case when n in (3, 900) then 2 else 1 end, 'x', now(), n in (3, 900), \
           case n when 3 then 7 when 900 then 6 end from generate_series(1, 1000) n",
    );
    let (mut wire, connack) = Wire::connect(broker.plain(), false, "c", false).await;
    assert_eq!(connack, [1, 0]);
    for id in [900_u16, 3] {
        let [high, low] = id.to_be_bytes();
        assert_eq!(wire.receive().await, Some((0x62, vec![high, low])));
        wire.send(&[0x70, 2, high, low]).await;
    }
    for id in (1..=1000).filter(|id| ![3, 900].contains(id)) {
        assert_eq!(wire.delivery().await, (true, id, "x".to_owned()));
        wire.acknowledge(id).await;
    }
    wire.silence().await;
    until(&database, "select count(*) from wakala.message", "0").await;
}

fn client(name: &str) -> wakala::id::ClientId {
    wakala::id::ClientId::new(name).expect("short")
}
