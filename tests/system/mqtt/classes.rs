//! What waits for who is away: how much of each class, what goes when it is too much, and what it costs a node: nothing.

use std::time::Duration;

use wakala::conservation::Fate;
use wakala_node::router;
use wakala_node::store::messages::{Class, Limits, Message, Queueing};
use wakala_node::store::publications::Overflow;
use wakala_system_tests::{Database, now};

use super::idle::resident;
use super::killed::start;
use super::wire::Wire;
use super::{Broker, anywhere, enrol, queue_receipt, tell, told, until, waiting};

const LIMITS: Limits = Limits {
    messages_max: 2,
    messages_ttl_max: None,
    news_max: 3,
    news_ttl_max: Duration::from_secs(600),
    per_hour: [0; 3],
};

async fn queue(broker: &Broker, class: Class, text: &str) -> Queueing {
    let message = Message { class, ..told("T1", 1, text) };
    broker.store.queue_message(message, LIMITS).await.expect("the database is there")
}

/// How many copies ended so, in this order: full, replaced, expired; and that none is unaccounted for.
async fn dropped(broker: &Broker) -> [u64; 3] {
    let tally = broker.store.tally().await.expect("the database is there");
    assert_eq!(tally.balance(), 0, "{tally:?}");
    [Fate::Full, Fate::Replaced, Fate::Expired].map(|fate| tally.ends.of(fate))
}

/// T1, who has a session and is away.
async fn away(broker: &Broker) {
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    wire.leave().await;
    broker.connected(0).await;
}

#[tokio::test]
async fn each_class_has_its_own_limit_and_a_receipt_has_none() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    away(&broker).await;
    for n in 1..=5 {
        queue_receipt(&database, "T1", &format!("receipt {n}"));
        for (class, name) in
            [(Class::Message, "message"), (Class::Configuration, "configuration"), (Class::News, "news")]
        {
            let queueing = queue(&broker, class, &format!("{name} {n}")).await;
            let gone = match class {
                Class::Message if n > 2 => {
                    assert_eq!(queueing, Queueing::Full(2));
                    continue;
                }
                Class::Message => 0,
                Class::Configuration => u64::from(n > 1),
                Class::News => u64::from(n > 3),
            };
            assert!(matches!(queueing, Queueing::Queued(place) if place.dropped == gone), "{name} {n}: {queueing:?}");
        }
    }
    assert_eq!(dropped(&broker).await, [2, 4, 0]);
    let (mut wire, connack) = Wire::connect(broker.plain(), false, "T1", false).await;
    assert_eq!(connack, [1, 0]);
    let wanted = [
        "receipt 1",
        "message 1",
        "receipt 2",
        "message 2",
        "receipt 3",
        "news 3",
        "receipt 4",
        "news 4",
        "receipt 5",
        "configuration 5",
        "news 5",
    ];
    for text in wanted {
        let (dup, id, heard) = wire.delivery().await;
        assert_eq!((dup, heard.as_str()), (false, text));
        wire.acknowledge(id).await;
    }
    wire.silence().await;
    until(&database, "select count(*) from wakala.message", "0").await;
    assert_eq!(waiting(&database, "T1"), "0");
}

#[tokio::test]
async fn a_configuration_that_was_sent_is_replaced_all_the_same_and_the_last_one_arrives() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    let Queueing::Queued(_) = queue(&broker, Class::Configuration, "old").await else { panic!("room") };
    assert!(broker.sessions.wake("T1"));
    assert_eq!(wire.message("T1").await.4, "old");
    let Queueing::Queued(_) = queue(&broker, Class::Configuration, "new").await else { panic!("room") };
    assert!(broker.sessions.wake("T1"));
    assert_eq!(wire.message("T1").await.4, "new");
    // Its row is gone: that hurts nobody.
    wire.acknowledge(1).await;
    wire.cut();
    broker.connected(0).await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.message("T1").await, (1, true, 2, None, "new".to_owned()), "only the last");
    wire.acknowledge(2).await;
    until(&database, "select count(*) from wakala.message", "0").await;
}

#[tokio::test]
async fn news_wait_for_no_longer_than_they_may_and_are_counted_when_they_are_over() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    away(&broker).await;
    let long =
        Message { class: Class::News, expires_at: Some(now() + Duration::from_secs(7200)), ..told("T1", 1, "a") };
    assert!(matches!(broker.store.queue_message(long, LIMITS).await, Ok(Queueing::Queued(_))));
    let Queueing::Queued(_) = queue(&broker, Class::News, "b").await else { panic!("room") };
    let Queueing::Queued(_) = queue(&broker, Class::Message, "stays").await else { panic!("room") };
    assert_eq!(broker.store.expire_messages(now() + Duration::from_secs(601), 10).await, Ok(2));
    assert_eq!(dropped(&broker).await, [0, 0, 2]);
    assert_eq!(database.rows("select convert_from(payload, 'utf8') from wakala.message"), "stays");
    // So do messages where that is wanted.
    let limits = Limits { messages_ttl_max: Some(Duration::from_secs(300)), ..LIMITS };
    let brief = Message { class: Class::Message, ..told("T1", 1, "brief") };
    assert!(matches!(broker.store.queue_message(brief, limits).await, Ok(Queueing::Queued(_))));
    assert_eq!(broker.store.expire_messages(now() + Duration::from_secs(301), 10).await, Ok(1));
    assert_eq!(database.rows("select convert_from(payload, 'utf8') from wakala.message"), "stays");
}

async fn open_broker(database: &Database, open: router::Options) -> Broker {
    let open = router::Options { anonymous: true, ..open };
    Broker::made(database.store().await, anywhere(), |deps| deps.open = open).await
}

/// Whether a publisher of 3.1.1 is understood to have an expiry, which of too many messages go, and that all are counted.
#[tokio::test]
async fn a_guests_queue_keeps_the_newest_or_the_oldest_for_a_while() {
    for (overflow, kept) in [(Overflow::Newest, ["1", "2", "3"]), (Overflow::Oldest, ["3", "4", "5"])] {
        let database = Database::new();
        let broker = open_broker(
            &database,
            router::Options {
                queue_max: 3,
                queue_overflow: overflow,
                message_ttl_max: Some(Duration::from_secs(60)),
                ..router::Options::default()
            },
        );
        let broker = broker.await;
        let (mut away, _) = Wire::connect(broker.plain(), false, "away", false).await;
        assert_eq!(away.subscribe("x", 2).await, 2);
        away.leave().await;
        broker.connected(0).await;
        let (mut publisher, _) = Wire::connect(broker.plain(), false, "publisher", true).await;
        for n in 1..=5 {
            publisher.publish("x", 1, n, &n.to_string()).await;
            assert_eq!(publisher.receive().await, Some((0x40, vec![0, n])));
        }
        let found =
            database.rows("select string_agg(convert_from(payload, 'utf8'), ' ' order by seq) from wakala.message");
        assert_eq!(found, kept.join(" "));
        assert_eq!(database.rows("select count(*) from wakala.message where expires_at <= at + interval '60 s'"), "3");
        assert_eq!(dropped(&broker).await, [2, 0, 0]);
        let (mut away, _) = Wire::connect(broker.plain(), false, "away", false).await;
        for text in kept {
            let (_, id, heard) = away.delivery().await;
            assert_eq!(heard, text);
            away.acknowledge(id).await;
        }
        away.silence().await;
    }
}

/// A node that died with another's queue in it, or whose clients had to come back to it, lost what they were owed.
#[tokio::test]
async fn pain_01_a_node_dies_and_another_serves_its_queues() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let (mut node, at) = start(&database);
    let (mut wire, _) = Wire::connect(at, true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    tell(&store, "T1", 1, "sent").await;
    // The sweeper is another actor's: what is subscribed is read at once.
    wire.ping().await;
    node.kill_9();
    queue_receipt(&database, "T1", "queued while nobody was there");
    let other = Broker::made(store, anywhere(), |deps| deps.node = "n2".to_owned()).await;
    let (mut wire, connack) = Wire::connect(other.plain(), true, "T1", false).await;
    assert_eq!(connack, [1, 0], "the session goes on, subscriptions and all");
    for text in ["sent", "queued while nobody was there"] {
        let (_, id, heard) = wire.any_delivery().await;
        assert_eq!(heard, text);
        wire.acknowledge(id).await;
    }
    until(&database, "select count(*) from wakala.message", "0").await;
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
}

/// Brokers whose queues are in memory were killed for it, by clients that were not even there.
#[tokio::test]
async fn pain_07_ten_thousand_sessions_that_are_away_cost_a_node_no_memory() {
    let database = Database::new();
    enrol(&database.store().await, "T0", None).await;
    let terminals = "insert into wakala.terminal select 'T' || n, agent, core, password_hash, null, sandbox, enrolled_at \
         from wakala.terminal, generate_series(1, 10000) n; \
         insert into wakala.session (client_id, created_at, expiry_s, expires_at) \
         select 'T' || n, now(), 86400, now() + interval '1 day' from generate_series(1, 10000) n; \
         insert into wakala.subscription (client_id, filter, qos) \
         select 'T' || n, 'c/T' || n, 1 from generate_series(1, 10000) n; \
         insert into wakala.message (client_id, seq, topic, qos, payload, at) \
         select 'T' || n, i, 'c/T' || n, 1, repeat('x', 256)::bytea, now() \
         from generate_series(1, 10000) n, generate_series(1, 5) i; \
         update wakala.session set next_seq = 6 where client_id <> 'T0'";
    let used = async || {
        let (node, at) = start(&database);
        for name in ["T0", "T0"] {
            let (mut wire, connack) = Wire::connect(at, true, name, true).await;
            assert_eq!(connack, [0, 0]);
            wire.ping().await;
        }
        resident(node.process())
    };
    let before = used().await;
    let _ = database.rows(terminals);
    let after = used().await;
    // 12 MB wait in the database.
    let more = after.saturating_sub(before);
    assert!(more < 4 << 20, "{more} bytes more with 10,000 sessions that are away");
}

/// Of its connection and its session nothing stays, but that it is known at its address (`bounds.known_for`) and how often it came:
/// two entries of tables that are bounded.
#[tokio::test]
async fn pain_07_a_terminal_that_came_and_went_leaves_a_node_its_name_and_no_more() {
    let database = Database::new();
    enrol(&database.store().await, "T0", None).await;
    let _ = database.rows(
        "insert into wakala.terminal select 'T' || n, agent, core, password_hash, null, sandbox, enrolled_at \
         from wakala.terminal, generate_series(1, 4000) n; \
         insert into wakala.session (client_id, created_at) select 'T' || n, now() from generate_series(1, 4000) n",
    );
    let (node, at) = start(&database);
    let used_after = async |terminals: std::ops::Range<u32>| {
        for n in terminals {
            let name = format!("T{n}");
            let (mut wire, connack) = Wire::connect(at, true, &name, false).await;
            assert_eq!(connack, [0, 0]);
            assert_eq!(wire.subscribe(&format!("c/{name}"), 1).await, 1);
            wire.leave().await;
        }
        until(&database, "select count(*) from wakala.session where connected", "0").await;
        resident(node.process())
    };
    // What the allocator and the pools keep for the next ones is there after the first.
    let before = used_after(1..2001).await;
    let each = used_after(2001..4001).await.saturating_sub(before) / 2000;
    assert!(each < 384, "{each} bytes of each that is away");
    println!("{each} bytes of each of 2,000 terminals that came and went");
}

#[tokio::test]
async fn pain_07_who_is_not_enrolled_leaves_no_session_and_guests_leave_so_many() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    for n in 0..20 {
        let (mut wire, connack) = Wire::connect(broker.plain(), true, &format!("random-{n}"), false).await;
        assert_eq!(connack, [0, 0x86]);
        assert_eq!(wire.receive().await, None);
    }
    assert_eq!(database.rows("select count(*) from wakala.session"), "0");
    let database = Database::new();
    let broker = open_broker(&database, router::Options { kept_max: 5, ..router::Options::default() }).await;
    for n in 0..20 {
        let (mut wire, [_, code]) = Wire::connect(broker.plain(), true, &format!("random-{n}"), false).await;
        assert_eq!(code, if n < 5 { 0 } else { 0x97 }, "quota exceeded");
        if code == 0 {
            wire.ping().await;
        }
    }
    broker.connected(0).await;
    assert_eq!(database.rows("select count(*) from wakala.session"), "5");
}
