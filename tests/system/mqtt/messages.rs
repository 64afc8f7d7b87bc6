//! `wakala terminals tell`: messages to terminals, which share a queue with the receipts.

use std::time::Duration;

use super::wire::Wire;
use super::{Broker, queue_receipt, room, tell, told, until};
use wakala_node::store::messages::{Message, Place, Queueing};
use wakala_system_tests::{Database, now, terminal};

const COUNT: &str = "select count(*) from wakala.message";

#[tokio::test]
async fn messages_arrive_at_either_qos_and_at_no_more_than_was_granted() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let mut seq = 0;
    for v5 in [false, true] {
        for granted in [0, 1] {
            let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
            assert_eq!(wire.subscribe("c/T1", granted).await, granted);
            for qos in [0, 1] {
                seq += 1;
                let place = tell(&broker.store, "T1", qos, "hello").await;
                assert_eq!(place, Place { seq, waiting: 1, connected: true, persistent: true, dropped: 0 });
                assert!(broker.sessions.wake("T1"));
                let lesser = qos.min(granted);
                let id = if lesser == 0 { 0 } else { u16::try_from(seq).expect("few") };
                assert_eq!(wire.message("T1").await, (lesser, false, id, None, "hello".to_owned()));
                if lesser > 0 {
                    until(&database, COUNT, "1").await;
                    wire.acknowledge(id).await;
                }
                until(&database, COUNT, "0").await;
            }
            wire.silence().await;
            wire.leave().await;
            broker.connected(0).await;
        }
    }
    assert!(!broker.sessions.wake("T1"), "gone");
}

#[tokio::test]
async fn messages_wait_for_their_terminal_in_order_among_the_receipts_and_come_again_with_dup() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    for v5 in [false, true] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
        assert_eq!((wire.subscribe("r/T1", 1).await, wire.subscribe("c/T1", 1).await), (1, 1));
        wire.leave().await;
        until(&database, "select connected from wakala.session", "f").await;
        queue_receipt(&database, "T1", "first");
        let place = tell(&broker.store, "T1", 1, "second").await;
        assert_eq!((place.waiting, place.connected, place.persistent), (2, false, true));
        queue_receipt(&database, "T1", "third");
        let second = u16::try_from(place.seq).expect("few");
        let (mut wire, connack) = Wire::connect(broker.plain(), v5, "T1", false).await;
        assert_eq!(connack, [1, 0]);
        assert_eq!(wire.delivery().await, (false, second - 1, "first".to_owned()));
        assert_eq!(wire.message("T1").await, (1, false, second, None, "second".to_owned()));
        assert_eq!(wire.delivery().await, (false, second + 1, "third".to_owned()));
        wire.acknowledge(second - 1).await;
        wire.acknowledge(second + 1).await;
        until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
        wire.cut();
        broker.connected(0).await;
        until(&database, "select connected from wakala.session", "f").await;
        let (mut wire, _) = Wire::connect(broker.plain(), !v5, "T1", false).await;
        assert_eq!(wire.message("T1").await, (1, true, second, None, "second".to_owned()), "DUP, and its identifier");
        wire.acknowledge(second).await;
        until(&database, COUNT, "0").await;
        wire.silence().await;
        wire.leave().await;
        broker.connected(0).await;
    }
}

#[tokio::test]
async fn messages_that_nobody_subscribes_to_keep_no_receipt_back() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    // Several pages of them.
    for _ in 0..100 {
        tell(&broker.store, "T1", 1, "unheard").await;
    }
    queue_receipt(&database, "T1", "heard");
    broker.sessions.wake("T1");
    assert_eq!(wire.delivery().await, (false, 101, "heard".to_owned()));
    wire.acknowledge(101).await;
    wire.silence().await;
    assert_eq!(database.rows(COUNT), "100");
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    for id in 1..=100 {
        assert_eq!(wire.message("T1").await, (1, false, id, None, "unheard".to_owned()));
        wire.acknowledge(id).await;
    }
    until(&database, COUNT, "0").await;
}

#[tokio::test]
async fn an_expired_message_is_not_sent_and_the_others_say_how_long_they_hold() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    wire.leave().await;
    until(&database, "select connected from wakala.session", "f").await;
    for (text, seconds) in [("long over", 0), ("holds", 3600)] {
        let expires_at = Some(now() + Duration::from_secs(seconds));
        let queueing = broker.store.queue_message(Message { expires_at, ..told("T1", 1, text) }, room(100)).await;
        assert!(matches!(queueing, Ok(Queueing::Queued(_))), "{queueing:?}");
    }
    for v5 in [true, false] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
        let (qos, _, id, expiry, text) = wire.message("T1").await;
        assert_eq!((qos, id, text.as_str()), (1, 2, "holds"));
        assert_eq!(expiry.is_some(), v5);
        assert!(expiry.is_none_or(|seconds| (3000..=3600).contains(&seconds)), "{expiry:?}");
        wire.silence().await;
        wire.leave().await;
        broker.connected(0).await;
    }
    assert_eq!(database.rows(COUNT), "2");
    assert_eq!(broker.store.expire_messages(now(), 10).await, Ok(1));
    assert_eq!(database.rows("select seq from wakala.message"), "2");
    assert_eq!(broker.store.expire_messages(now() + Duration::from_secs(7200), 10).await, Ok(1));
}

#[tokio::test]
async fn a_message_ends_with_its_session() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    assert_eq!(
        broker.store.queue_message(told("T1", 1, "x"), room(9)).await,
        Ok(Queueing::NoSession),
        "never connected"
    );
    assert_eq!(broker.store.queue_message(told("T1", 0, "x"), room(9)).await, Ok(Queueing::NotConnected));
    assert_eq!(broker.store.queue_message(told("T9", 1, "x"), room(9)).await, Ok(Queueing::NotEnrolled));
    let (mut clean, _) = Wire::connect(broker.plain(), false, "T1", true).await;
    let place = tell(&broker.store, "T1", 1, "for this connection").await;
    assert_eq!((place.connected, place.persistent), (true, false));
    broker.sessions.wake("T1");
    clean.silence().await;
    clean.leave().await;
    until(&database, COUNT, "0").await;
    let (wire, _) = Wire::connect(broker.plain(), false, "T1", false).await;
    tell(&broker.store, "T1", 0, "for this connection").await;
    tell(&broker.store, "T1", 1, "for this session").await;
    wire.leave().await;
    until(&database, "select payload from wakala.message", "\\x666f7220746869732073657373696f6e").await;
    let (mut clean, _) = Wire::connect(broker.plain(), false, "T1", true).await;
    assert_eq!(clean.subscribe("c/T1", 1).await, 1);
    clean.silence().await;
    assert_eq!(database.rows(COUNT), "0");
}

#[tokio::test]
async fn so_many_messages_may_wait_and_no_more() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    queue_receipt(&database, "T1", "not counted");
    let expires_at = Some(now());
    let expired =
        broker.store.queue_message(Message { expires_at, ..told("T1", 1, "not counted either") }, room(3)).await;
    assert!(matches!(expired, Ok(Queueing::Queued(_))), "{expired:?}");
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let store = broker.store.clone();
        at_once.spawn(async move { store.queue_message(told("T1", 1, "x"), room(3)).await });
    }
    let all = at_once.join_all().await;
    let queued = all.iter().filter(|one| matches!(one, Ok(Queueing::Queued(_)))).count();
    let refused = all.iter().filter(|one| **one == Ok(Queueing::Full(3))).count();
    assert_eq!((queued, refused), (3, 2));
    assert_eq!(database.rows("select next_seq from wakala.session"), "6", "what is refused draws no place");
    assert_eq!(wire.subscribe("c/T1", 0).await, 0);
    for _ in 0..3 {
        assert_eq!(wire.message("T1").await.4, "x");
    }
    until(&database, "select count(*) from wakala.message where expires_at is null", "0").await;
    assert!(matches!(broker.store.queue_message(told("T1", 1, "x"), room(3)).await, Ok(Queueing::Queued(_))));
}

#[tokio::test]
async fn the_sweeper_finds_who_can_be_sent_something() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    let mut wires = Vec::new();
    for (name, filter, clean) in [("T1", "r/T1", false), ("T2", "c/T2", false), ("T3", "r/T3", true)] {
        broker.enrol(name).await;
        let (mut wire, _) = Wire::connect(broker.plain(), true, name, clean).await;
        assert_eq!(wire.subscribe(filter, 1).await, 1);
        tell(&broker.store, name, 1, "x").await;
        wires.push(wire);
    }
    // A guest's name may be any, and its session hears of its rows from the router.
    let _ = database.rows(
        "insert into wakala.session (client_id, epoch, node, connected, created_at) values ('a guest', 1, 'n1', true, now()); \
         insert into wakala.message (client_id, seq, topic, qos, payload, at) values ('a guest', 1, 'x', 1, 'x', now() - interval '1 day')",
    );
    let find_at = async |node, later| {
        let (at, waited) = (now() + Duration::from_secs(later), Duration::from_secs(60));
        broker.store.terminals_waiting(node, at, waited, 10).await.expect("the database is there")
    };
    let find = async |later| find_at("n1", later).await;
    assert_eq!(find(0).await, []);
    assert_eq!(find_at("n2", 90).await, [], "they are connected to n1");
    // T1 does not subscribe to messages. Of T3's clean session the database does not know what it subscribes to.
    assert_eq!(find(90).await, [terminal("T2"), terminal("T3")]);
    queue_receipt(&database, "T1", "r");
    queue_receipt(&database, "T2", "r");
    assert_eq!(find(90).await, [terminal("T2"), terminal("T3"), terminal("T1")]);
    wires.clear();
    broker.connected(0).await;
    until(&database, "select count(*) from wakala.session where connected", "1").await;
    assert_eq!(find(90).await, []);
}
