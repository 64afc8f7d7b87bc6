//! Guests of several nodes: what is stored for them is theirs, wherever it was published.

use std::sync::Arc;
use std::time::Duration;

use wakala::time::Time;
use wakala_node::ports::Clock;
use wakala_node::sessions::Deps;
use wakala_system_tests::{Database, now};

use super::ended::Node;
use super::wire::{Wire, packet, text};
use super::{Broker, anywhere, enrol, queue_receipt, until};
use crate::locks::Holding;

/// A node that is open to anybody.
async fn node(database: &Database, name: &str) -> Broker {
    changed_node(database, name, |_| ()).await
}

/// The same with other settings.
async fn changed_node(database: &Database, name: &str, change: impl FnOnce(&mut Deps)) -> Broker {
    let name = name.to_owned();
    Broker::made(database.store().await, anywhere(), move |deps| {
        (deps.node, deps.open.guests, deps.open.anonymous) = (name, true, true);
        change(deps);
    })
    .await
}

/// Two nodes, the second begun when the first has been there for a while.
async fn two(database: &Database) -> (Broker, Broker) {
    let first = node(database, "n1").await;
    let second = node(database, "n2").await;
    // They have heard of each other.
    tokio::time::sleep(Duration::from_millis(500)).await;
    (first, second)
}

/// What a new subscriber is given there.
async fn found(broker: &Broker, topic: &str) -> Option<String> {
    let (mut wire, _) = Wire::connect(broker.plain(), true, "looks", true).await;
    assert_eq!(wire.subscribe(topic, 0).await, 0);
    wire.send(&[0xC0, 0]).await;
    let mut found = None;
    while let Some((first, body)) = wire.receive().await {
        match first & 0xF0 {
            0x30 => {
                found = body.get(2 + topic.len() + 1..).map(|payload| String::from_utf8_lossy(payload).into_owned())
            }
            _ => break,
        }
    }
    wire.leave().await;
    found
}

fn retained(topic: &str, id: u8, payload: &str) -> Vec<u8> {
    packet(0x33, &[&text(topic)[..], &[0, id, 0], payload.as_bytes()].concat())
}

const NO_EARS: &str = "select pg_terminate_backend(pid) from pg_stat_activity where query ilike 'listen%' and datname = current_database()";

async fn publish(broker: &Broker, topic: &str, payload: &str) {
    let (mut wire, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    wire.publish(topic, 1, 1, payload).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
    wire.leave().await;
}

/// How many rows wait for this client.
fn queued(client: &str) -> String {
    format!("select count(*) from wakala.message where client_id = '{client}'")
}

/// What is told next of presence.
async fn stands(wire: &mut Wire) -> String {
    let (retained, client, said) = super::presence::heard(wire).await;
    let how = if said["online"] == true { "online" } else { "offline" };
    format!("{}{client} {how} {}", if retained { "(" } else { "" }, said["node"].as_str().expect("a node"))
}

/// What who asks there hears of these clients.
async fn shown(broker: &Broker, of: &str) -> Option<String> {
    let (mut wire, _) = Wire::connect(broker.plain(), false, "looks", true).await;
    assert_eq!(wire.subscribe(&format!("$SYS/presence/{of}"), 1).await, 1);
    let heard = tokio::time::timeout(Duration::from_millis(300), stands(&mut wire)).await.ok();
    wire.cut();
    heard
}

#[tokio::test]
async fn who_comes_and_goes_at_another_node_is_told_and_shown() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    // Nobody has asked at the second.
    let (mut watcher, _) = Wire::connect(first.plain(), false, "watcher", false).await;
    assert_eq!(watcher.subscribe("$SYS/presence/c", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_there, _) = Wire::connect(second.plain(), true, "c", false).await;
    assert_eq!(stands(&mut watcher).await, "c online n2");
    assert_eq!(shown(&first, "c").await.as_deref(), Some("(c online n2"));
    // From one to the other, it ends before it begins.
    let (here, _) = Wire::connect(first.plain(), true, "c", false).await;
    assert_eq!([stands(&mut watcher).await, stands(&mut watcher).await], ["c offline n2", "c online n1"]);
    assert_eq!(shown(&second, "c").await.as_deref(), Some("(c online n1"));
    here.leave().await;
    assert_eq!(stands(&mut watcher).await, "c offline n1");
    assert_eq!(shown(&second, "c").await.as_deref(), Some("(c offline n1"));
    // Its session ends, and nothing of it is left at either.
    let (clean, _) = Wire::connect(second.plain(), false, "c", true).await;
    clean.leave().await;
    assert_eq!([stands(&mut watcher).await, stands(&mut watcher).await], ["c online n2", "c offline n2"]);
    for node in [&first, &second] {
        assert_eq!(shown(node, "c").await, None);
    }
    watcher.silence().await;
}

/// Of words that were lost too.
#[tokio::test]
async fn a_node_that_begins_shows_who_is_at_others() {
    let database = Database::new();
    let first = node(&database, "n1").await;
    let (_c, _) = Wire::connect(first.plain(), true, "c", false).await;
    let second = node(&database, "n2").await;
    assert_eq!(shown(&second, "c").await.as_deref(), Some("(c online n1"));
}

/// rmqtt #477 in a cluster: a session that another node has was not routed to, and what was acknowledged was dropped.
#[tokio::test]
async fn pain_02_a_session_of_one_node_is_routed_to_by_another() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "kept", false).await;
    assert_eq!(wire.subscribe("a/+", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Connected at the first, it hears at once.
    publish(&second, "a/1", "there").await;
    assert_eq!(wire.delivery().await.2, "there");
    wire.acknowledge(1).await;
    wire.cut();
    first.connected(0).await;
    // Away, it finds it at either.
    publish(&second, "a/2", "away").await;
    let (mut wire, connack) = Wire::connect(second.plain(), true, "kept", false).await;
    assert_eq!((connack, wire.delivery().await.2), ([1, 0], "away".to_owned()));
    wire.acknowledge(2).await;
    // What it changes at the second the first knows.
    wire.send(&[0xA2, 8, 0, 7, 0, 0, 3, b'a', b'/', b'+']).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xB0));
    assert_eq!(wire.subscribe("b", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.cut();
    second.connected(0).await;
    publish(&first, "a/3", "not asked for").await;
    publish(&first, "b", "asked for").await;
    assert_eq!(database.rows(&queued("kept")), "1");
    // A clean start is the end of it.
    let (wire, connack) = Wire::connect(first.plain(), true, "kept", true).await;
    assert_eq!(connack, [0, 0]);
    wire.leave().await;
    publish(&second, "b", "nobody's").await;
    assert_eq!(database.rows(&queued("kept")), "0");
}

/// CONNECT without a clean start, with this Session Expiry Interval.
async fn come_back(broker: &Broker, name: &str, expiry_s: u8) -> Wire {
    let mut wire = Wire::open(broker.plain(), true).await;
    wire.send(&packet(0x10, &[text("MQTT"), vec![5, 0, 0, 60, 5, 0x11, 0, 0, 0, expiry_s], text(name)].concat())).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x20));
    wire
}

/// Where it was before it goes by when its session would have been over, had it not gone on elsewhere.
#[tokio::test]
async fn who_goes_on_at_another_node_keeps_its_turn_in_a_shared_subscription() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    for (name, expiry_s) in [("roams", 1), ("stays away", 200)] {
        let mut wire = come_back(&first, name, expiry_s).await;
        assert_eq!(wire.subscribe("$share/g/t", 1).await, 1);
        wire.leave().await;
    }
    first.connected(0).await;
    let mut roams = come_back(&second, "roams", 1).await;
    tokio::time::sleep(Duration::from_millis(1300)).await;
    for _ in 0..4 {
        publish(&first, "t", "m").await;
    }
    for _ in 0..2 {
        let (_, id, _) = roams.delivery().await;
        roams.acknowledge(id).await;
    }
    roams.silence().await;
    assert_eq!(database.rows(&queued("stays away")), "2");
}

/// What goes on for one connection more, and was kept until then, has rows by which other nodes go.
#[tokio::test]
async fn what_a_session_changes_on_its_last_connection_other_nodes_know() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "kept", false).await;
    for filter in ["a/+", "b/+"] {
        assert_eq!(wire.subscribe(filter, 1).await, 1);
    }
    wire.leave().await;
    first.connected(0).await;
    let mut wire = Wire::open(first.plain(), true).await;
    // Neither a clean start nor an expiry.
    wire.send(&packet(0x10, &[text("MQTT"), vec![5, 0, 0, 60, 0], text("kept")].concat())).await;
    assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), Some((0x20, 1)), "the session is present");
    wire.send(&[0xA2, 8, 0, 7, 0, 0, 3, b'a', b'/', b'+']).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xB0));
    assert_eq!(wire.subscribe("c", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(200)).await;
    for (topic, payload) in [("a/1", "not asked for any more"), ("b/1", "asked for"), ("c", "asked for now")] {
        publish(&second, topic, payload).await;
    }
    for payload in ["asked for", "asked for now"] {
        assert_eq!(wire.delivery().await.2, payload);
    }
    // Without subscriptions it is there all the same.
    wire.send(&[0xA2, 11, 0, 8, 0, 0, 3, b'b', b'/', b'+', 0, 1, b'c']).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xB0));
    let kept = second.store.kept_guests(None).await.expect("the database is there");
    assert_eq!(kept.iter().map(|kept| kept.client.as_str()).collect::<Vec<_>>(), ["kept"]);
    wire.leave().await;
    first.connected(0).await;
    until(&database, "select count(*) from wakala.subscription", "0").await;
}

/// PUBLISH at QoS 2, its first half.
async fn half_publish(wire: &mut Wire, topic: &str) {
    wire.publish(topic, 2, 1, "half").await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x50), "a PUBREC");
}

/// [MQTT-3.1.2-4]. Its subscriptions were all that a later life of its node, or another node, knew of a session.
#[tokio::test]
async fn a_clean_start_discards_a_session_without_subscriptions_too() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    for name in ["elsewhere", "later"] {
        let (mut wire, _) = Wire::connect(first.plain(), true, name, false).await;
        half_publish(&mut wire, "t").await;
        wire.cut();
    }
    first.connected(0).await;
    let begins_anew = async |broker: &Broker, name: &str| {
        let (wire, _) = Wire::connect(broker.plain(), true, name, true).await;
        wire.leave().await;
        broker.connected(0).await;
        let (mut wire, connack) = Wire::connect(broker.plain(), true, name, false).await;
        assert_eq!(connack, [0, 0], "{name}: nothing is left of it");
        let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", true).await;
        assert_eq!(subscriber.subscribe("t", 0).await, 0);
        half_publish(&mut wire, "t").await;
        assert_eq!(subscriber.receive().await.map(|(first, _)| first), Some(0x30), "{name}: not a repetition");
        wire.cut();
        subscriber.leave().await;
    };
    let third = node(&database, "n3").await;
    begins_anew(&third, "later").await;
    begins_anew(&second, "elsewhere").await;
}

/// Where they had been it was thought that their sessions were kept still, and what they shared with others went nowhere.
#[tokio::test]
async fn who_has_left_for_another_node_and_ended_there_has_no_share_any_more() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let shares = async |broker: &Broker, name: &str| {
        let (mut wire, _) = Wire::connect(broker.plain(), true, name, false).await;
        assert_eq!(wire.subscribe("$share/g/t", 1).await, 1);
        wire
    };
    shares(&second, "keeps").await.leave().await;
    for name in ["begins anew", "says so"] {
        shares(&first, name).await.leave().await;
    }
    let _taken_over = shares(&first, "moves").await;
    let (mut wire, connack) = Wire::connect(second.plain(), true, "says so", false).await;
    assert_eq!(connack, [1, 0]);
    // With a Session Expiry Interval of 0.
    wire.send(&[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 0]).await;
    assert_eq!(wire.receive().await, None);
    for name in ["begins anew", "moves"] {
        let (wire, connack) = Wire::connect(second.plain(), true, name, true).await;
        assert_eq!(connack, [0, 0]);
        wire.leave().await;
    }
    let (mut publisher, _) = Wire::connect(first.plain(), true, "publisher", true).await;
    let mut before = 0;
    for _ in 0..50 {
        for id in 1..=8 {
            publisher.publish("t", 1, id, "for one of them").await;
            assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
        }
        let all: usize = database.rows(&queued("keeps")).parse().expect("a number");
        if all - before == 8 {
            return;
        }
        before = all;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("others have a share still: {}", database.rows(&queued("keeps")));
}

/// Of whom nothing is stored, the database cannot tell.
#[tokio::test]
async fn a_guest_of_whom_nothing_is_stored_is_at_one_node_only() {
    /// Half a minute late.
    struct Late;
    impl Clock for Late {
        fn now(&self) -> Time {
            now() - Duration::from_secs(30)
        }
    }
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut earlier, _) = Wire::connect(first.plain(), true, "twice", true).await;
    let (mut later, _) = Wire::connect(second.plain(), true, "twice", true).await;
    assert_eq!(earlier.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)), "taken over");
    later.ping().await;
    // Whichever is the earlier one by their clocks: one stays, and that where a node has not heard of the others yet.
    let third = changed_node(&database, "n3", |deps| deps.clock = Arc::new(Late)).await;
    let (mut late, _) = Wire::connect(third.plain(), true, "twice", true).await;
    assert_eq!(late.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)));
    later.ping().await;
    assert_eq!((first.sessions.len(), second.sessions.len()), (0, 1));
}

/// Until its earlier connection is found out, what is queued there is told to that.
#[tokio::test]
async fn what_was_queued_where_a_client_has_been_comes_to_it_where_it_is() {
    let database = Database::new();
    let first = changed_node(&database, "n1", |deps| deps.options.blocked_every = Duration::from_secs(2)).await;
    let second = node(&database, "n2").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut before, _) = Wire::connect(first.plain(), true, "moves", false).await;
    assert_eq!(before.subscribe("t", 1).await, 1);
    let (mut wire, connack) = Wire::connect(second.plain(), true, "moves", false).await;
    assert_eq!(connack, [1, 0]);
    publish(&first, "t", "on the way").await;
    assert_eq!(wire.delivery().await.2, "on the way");
}

#[tokio::test]
async fn what_is_retained_at_one_node_is_retained_at_all() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut publisher, _) = Wire::connect(first.plain(), true, "retains", true).await;
    for (id, payload) in [(1, "on"), (2, "off"), (3, "")] {
        publisher.send(&retained("light", id, payload)).await;
        assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(found(&second, "light").await.as_deref(), Some(payload).filter(|payload| !payload.is_empty()));
    }
}

/// While the ear's connection was gone anything may have been said.
#[tokio::test]
async fn what_was_said_while_nobody_listened_is_read() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "kept", false).await;
    let _ = database.rows(NO_EARS);
    assert_eq!(wire.subscribe("a", 1).await, 1);
    wire.leave().await;
    for _ in 0..50 {
        publish(&second, "a", "again").await;
        if database.rows(&queued("kept")) != "0" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the second node never heard of it");
}

/// Waits until a new subscriber is given this there; a node is not missed before it has been silent for 20 s.
async fn until_found(broker: &Broker, topic: &str, payload: &str) {
    // Of more connects of one client some would be refused.
    for _ in 0..50 {
        if found(broker, topic).await.as_deref() == Some(payload) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{payload} is retained, and not found");
}

/// As after a failure of the network in which nobody says that the connection is gone: whoever listens writes nothing.
#[tokio::test]
async fn a_node_that_does_not_hear_even_itself_listens_anew_and_reads_what_was_said() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut publisher, _) = Wire::connect(first.plain(), true, "retains", true).await;
    let deaf = database.stands_still("query ilike 'listen%'");
    publisher.send(&retained("light", 1, "on")).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(found(&second, "light").await, None, "it does not hear");
    until_found(&second, "light", "on").await;
    // And it hears again.
    publisher.send(&retained("light", 2, "off")).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(found(&second, "light").await.as_deref(), Some("off"));
    drop(deaf);
}

/// One that had no session, so that there is nothing else to be said of its death.
#[tokio::test]
async fn what_a_node_committed_and_did_not_tell_before_it_died_is_found_by_the_others() {
    let database = Database::new();
    let survivor = Broker::open(&database).await;
    let (mut kept, _) = Wire::connect(survivor.plain(), true, "kept", false).await;
    assert_eq!(kept.subscribe("a", 1).await, 1);
    let node = Node::start_open(&database).await;
    // It is heard.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.signal("-KILL");
    let _ = database.rows(
        "insert into wakala.retained (topic, qos, payload, at) values ('light', 1, 'last', now());          with s as (update wakala.session set next_seq = next_seq + 1 where client_id = 'kept' returning next_seq - 1 as seq)          insert into wakala.message (client_id, seq, topic, qos, payload, at) select 'kept', seq, 'a', 1, 'last', now() from s",
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(found(&survivor, "light").await, None, "nobody has told");
    until_found(&survivor, "light", "last").await;
    assert_eq!(kept.delivery().await.2, "last");
}

/// Partitions and terminals are at different nodes as often as not: the sweeper comes by every two seconds.
#[tokio::test]
async fn a_receipt_that_another_node_has_queued_goes_out_at_once() {
    let database = Database::new();
    let at = async |name: &str| {
        let name = name.to_owned();
        Broker::made(database.store().await, anywhere(), move |deps| deps.node = name).await
    };
    let (first, second) = (at("n1").await, at("n2").await);
    let t1 = enrol(&first.store, "T1", None).await;
    let (mut wire, _) = Wire::connect(first.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    queue_receipt(&database, "T1", "from afar");
    second.sessions.hint(&t1, 1, Some(b"from afar".to_vec()));
    assert_eq!(wire.delivery().await.2, "from afar");
    wire.acknowledge(1).await;
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
}

/// What is retained and waits for the database is not in the table yet: who listens anew, and is alone, must not go back to that.
#[tokio::test]
async fn a_node_that_is_alone_and_loses_its_ear_keeps_what_it_retains() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "retains", true).await;
    publisher.send(&retained("light", 1, "old")).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    let slow = Holding::new(&database, "lock table wakala.retained in exclusive mode");
    publisher.send(&retained("light", 2, "new")).await;
    publisher.silence().await;
    let _ = database.rows(NO_EARS);
    // It listens again after 100 ms, and looks every second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(found(&broker, "light").await.as_deref(), Some("new"));
    drop(slow);
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
}

/// Who has others beside it and has missed what they said reads all there is; what waits for the database here is not in that.
#[tokio::test]
async fn what_is_retained_and_waits_outlives_a_look_at_the_table_and_what_is_gone_there_does_not() {
    let database = Database::new();
    let (first, second) = two(&database).await;
    let (mut publisher, _) = Wire::connect(first.plain(), true, "retains", true).await;
    for (id, topic) in [(1, "light"), (2, "gone")] {
        publisher.send(&retained(topic, id, "old")).await;
        assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let slow = Holding::new(&database, "select from wakala.retained where topic = 'light' for update");
    publisher.send(&retained("light", 3, "new")).await;
    publisher.silence().await;
    let _ = database.rows("delete from wakala.retained where topic = 'gone' returning topic");
    let _ = database.rows(NO_EARS);
    for broker in [&first, &second] {
        let mut tries = 0;
        while found(broker, "gone").await.is_some() {
            tries += 1;
            assert!(tries < 100, "it is gone from the table");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(found(&first, "light").await.as_deref(), Some("new"));
    drop(slow);
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    tokio::time::sleep(Duration::from_millis(500)).await;
    for broker in [&first, &second] {
        assert_eq!(found(broker, "light").await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn what_the_database_does_not_take_is_not_retained_in_memory_either() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    let _ = database.rows(
        "create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$; \
         create trigger no before insert or update on wakala.retained for each row \
         when (new.payload = 'no') execute function no()",
    );
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "retains", true).await;
    publisher.send(&retained("light", 1, "old")).await;
    assert_eq!(publisher.receive().await.map(|(first, _)| first), Some(0x40));
    publisher.send(&retained("light", 2, "no")).await;
    publisher.send(&retained("lamp", 3, "no")).await;
    let mut tries = 0;
    while (found(&broker, "light").await.as_deref(), found(&broker, "lamp").await) != (Some("old"), None) {
        tries += 1;
        assert!(tries < 100, "it is not in the table");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
