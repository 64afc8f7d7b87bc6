//! Who came and went: each beginning and each end of a connection once, in order, whatever died in between.

use std::net::SocketAddr;

use super::wire::Wire;
use super::{Broker, enrol, killed, until};
use wakala_node::listener;
use wakala_system_tests::{Database, now};

/// What is known of a client, in its order.
fn history(database: &Database, client: &str) -> Vec<String> {
    let text = format!(
        "select case when online then 'online' else 'offline: ' || why end || ' @' || node from wakala.presence \
         where client_id = '{client}' order by seq"
    );
    database.rows(&text).lines().map(str::to_owned).collect()
}

/// What would be out of order: a later row of a client with an earlier place, a beginning without its end, an end without its
/// beginning. The last beginning of a client that is connected has no end yet.
fn out_of_order(database: &Database) -> String {
    database.rows(
        "with e as (select *, lag(seq) over w as before, lead(seq) over w as behind from wakala.presence \
           window w as (partition by client_id order by id)) \
         select string_agg(e.client_id || ' ' || seq, ', ') from e left join wakala.session s using (client_id) \
         where seq <= before or (online and behind is distinct from seq + 1 and not (behind is null and s.connected)) \
         or (not online and before is distinct from seq - 1)",
    )
}

fn plain() -> listener::Options {
    listener::Options { plain: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..listener::Options::default() }
}

async fn two_nodes(database: &Database) -> [Broker; 2] {
    let first = Broker::start(database, None).await;
    let second = Broker::made(database.store().await, plain(), |deps| deps.node = "n2".to_owned()).await;
    // Else each would take the other for dead.
    for (broker, name) in [(&first, "n1"), (&second, "n2")] {
        broker.store.hold_name(name, |why| panic!("{why}")).await.expect("the name is free");
    }
    [first, second]
}

#[tokio::test]
async fn each_way_to_end_is_told_with_its_reason() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    for v5 in [false, true] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
        wire.send(&[0xE0, 0]).await;
        // Told once it is stored; who comes back before that has taken over.
        until(&database, "select connected from wakala.session", "f").await;
        let (wire, _) = Wire::connect(broker.plain(), v5, "T1", true).await;
        drop(wire);
        until(&database, "select connected from wakala.session", "f").await;
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", true).await;
        wire.send(&[0xF0, 1, 2]).await;
        until(&database, "select connected from wakala.session", "f").await;
    }
    let found = history(&database, "T1");
    assert_eq!(found.len(), 12);
    for round in found.chunks(6) {
        let well =
            ["online @n1", "offline: the client disconnected @n1", "online @n1", "offline: the connection ended @n1"];
        assert_eq!(round[..4], well);
        assert!(round[5].starts_with("offline: ") && round[5] != round[3], "the flaw is named: {}", round[5]);
    }
    assert_eq!(out_of_order(&database), "");
    let how = "select connection->>'protocol' || ', ' || (connection->>'carrier') || ', ' || (connection->>'keep_alive_s') \
               from wakala.presence where online order by seq limit 1";
    assert_eq!(database.rows(how), "MQTT 3.1.1, TCP, 60");
    let from = "select count(*) from wakala.presence where online and connection->>'address' like '127.0.0.1:%'";
    assert_eq!(database.rows(from), "6");
}

#[tokio::test]
async fn a_takeover_ends_the_one_before_it_first() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let mut wires = Vec::new();
    for round in 0..5 {
        wires.push(Wire::connect(broker.plain(), round % 2 == 0, "T1", false).await.0);
    }
    wires.last_mut().expect("five").ping().await;
    drop(wires);
    broker.connected(0).await;
    until(&database, "select connected from wakala.session", "f").await;
    let wanted = ["online @n1", "offline: taken over @n1"].repeat(4);
    let found = history(&database, "T1");
    assert_eq!(found[..8], wanted[..]);
    assert_eq!(found[8..], ["online @n1", "offline: the connection ended @n1"]);
    assert_eq!(out_of_order(&database), "");
}

/// The same terminal again and again at two nodes at once: every end is told before the beginning that follows it.
#[tokio::test]
async fn an_end_never_overtakes_a_later_beginning_at_two_nodes() {
    let database = Database::new();
    let nodes = two_nodes(&database).await;
    for name in ["T1", "T2", "T3"] {
        nodes[0].enrol(name).await;
    }
    let ports: Vec<SocketAddr> = nodes.iter().map(Broker::plain).collect();
    let mut clients = Vec::new();
    for (name, worker) in (0..6_u8).map(|worker| (["T1", "T2", "T3"][usize::from(worker % 3)], worker)) {
        let ports = ports.clone();
        clients.push(tokio::spawn(async move {
            for round in 0..12_u8 {
                let mut wire = Wire::open(ports[usize::from((worker + round) % 2)], worker % 2 == 0).await;
                wire.say_hello(name, round % 3 == 0).await;
                // The others take it over, in the middle of this too.
                let _ = wire.receive().await;
                if round % 4 == 1 {
                    wire.send(&[0xE0, 0]).await;
                }
            }
        }));
    }
    for client in clients {
        client.await.expect("no panic");
    }
    until(&database, "select count(*) from wakala.session where connected", "0").await;
    assert_eq!(out_of_order(&database), "");
    let counts = "select count(*) filter (where online) - count(*) filter (where not online) from wakala.presence";
    assert_eq!(database.rows(counts), "0", "as many ends as beginnings");
    assert_eq!(database.rows("select count(*) from wakala.presence where online"), "72");
    assert_eq!(database.rows("select count(distinct node) from wakala.presence"), "2");
}

#[tokio::test]
async fn a_connection_whose_node_was_killed_ends_with_it() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let (mut node, address) = killed::start(&database);
    let (_wire, _) = Wire::connect(address, true, "T1", false).await;
    node.kill_9();
    assert_eq!(history(&database, "T1"), ["online @n1"]);
    // Its next life.
    let (mut node, address) = killed::start(&database);
    assert_eq!(history(&database, "T1"), ["online @n1", "offline: its node died @n1"]);
    let (_wire, _) = Wire::connect(address, true, "T1", false).await;
    node.kill_9();
    // Another node that finds its name free.
    let survivor = Broker::made(store, plain(), |deps| {
        deps.node = "n2".to_owned();
        deps.options.overtaken_every = std::time::Duration::from_millis(200);
        deps.options.dead_after = std::time::Duration::from_secs(1);
    });
    let survivor = survivor.await;
    until(&database, "select connected from wakala.session", "f").await;
    let (mut wire, _) = Wire::connect(survivor.plain(), true, "T1", false).await;
    wire.ping().await;
    let twice = ["online @n1", "offline: its node died @n1"].repeat(2);
    assert_eq!(history(&database, "T1"), [twice.as_slice(), &["online @n2"]].concat());
    assert_eq!(out_of_order(&database), "");
}

#[tokio::test]
async fn presence_is_forgotten_by_age_and_by_number() {
    let database = Database::new();
    let store = database.store().await;
    let _ = database.rows(
        "insert into wakala.presence (client_id, epoch, online, at) \
         select 'T1', i, true, now() - interval '1 day' * (100 - i) from generate_series(1, 100) i",
    );
    let ago =
        |days: u64| wakala::time::Time::from_millis(now().millis() - i64::try_from(days * 86_400_000).expect("few"));
    assert_eq!(store.forget_presence(ago(200), 1000, 50).await, Ok(0));
    assert_eq!(store.forget_presence(ago(30), 1000, 50).await, Ok(50), "in parts");
    assert_eq!(
        store.forget_presence(ago(30), 1000, 50).await,
        Ok(20),
        "numbers 1 to 69, and what is as old as it may be"
    );
    assert_eq!(store.forget_presence(ago(30), 10, 50).await, Ok(20), "the oldest beyond ten");
    assert_eq!(database.rows("select count(*) from wakala.presence"), "10");
}

/// A general broker.
async fn open(database: &Database) -> Broker {
    Broker::made(database.store().await, plain(), |deps| deps.open.anonymous = true).await
}

/// What a 3.1.1 client hears next of somebody's presence: whether it is retained, the topic's last level, and what is said.
pub(super) async fn heard(wire: &mut Wire) -> (bool, String, serde_json::Value) {
    let (first, body) = wire.receive().await.expect("a PUBLISH");
    assert_eq!(first & 0xF6, 0x32, "a PUBLISH at QoS 1");
    let topic_ends = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = std::str::from_utf8(&body[2..topic_ends]).expect("UTF-8");
    let payload = serde_json::from_slice(&body[topic_ends + 2..]).expect("JSON");
    wire.acknowledge(u16::from_be_bytes([body[topic_ends], body[topic_ends + 1]])).await;
    let client = topic.strip_prefix("$SYS/presence/").expect("of presence");
    (first & 1 == 1, client.to_owned(), payload)
}

/// The same without what differs from run to run.
async fn next(wire: &mut Wire) -> String {
    let (retained, client, said) = heard(wire).await;
    assert_eq!((said["client"].as_str(), said["node"].as_str()), (Some(client.as_str()), Some("n1")));
    let state = if said["online"] == true { "online" } else { "offline" };
    let why = said["why"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{}{client} {state}{why}", if retained { "(" } else { "" })
}

#[tokio::test]
async fn subscribers_hear_who_comes_and_goes_in_order() {
    let database = Database::new();
    let broker = open(&database).await;
    let (mut before, _) = Wire::connect(broker.plain(), false, "before", false).await;
    before.send(&[0xE0, 0]).await;
    broker.connected(0).await;
    let (mut watcher, _) = Wire::connect(broker.plain(), false, "watcher", true).await;
    assert_eq!(watcher.subscribe("$SYS/presence/+", 1).await, 1);
    assert_eq!(next(&mut watcher).await, "(before offline");
    assert_eq!(next(&mut watcher).await, "(watcher online");
    // Clean and kept, in both versions, taken over and cut.
    let (_first, _) = Wire::connect(broker.plain(), false, "c", true).await;
    let (_second, _) = Wire::connect(broker.plain(), true, "c", false).await;
    let (mut third, _) = Wire::connect(broker.plain(), false, "c", true).await;
    third.ping().await;
    drop(third);
    let mut said = Vec::new();
    for _ in 0..6 {
        said.push(next(&mut watcher).await);
    }
    let wanted = ["c online", "c offline: taken over"].repeat(2);
    assert_eq!(said[..4], wanted);
    assert_eq!(said[4..], ["c online", "c offline: the connection ended"]);
    // A later connection has a higher epoch, whether anything of the earlier one is stored or not.
    let mut epochs = Vec::new();
    for round in 0..4 {
        let (wire, _) = Wire::connect(broker.plain(), false, "d/+", round % 2 == 0).await;
        drop(wire);
        for online in [true, false] {
            let (retained, client, told) = heard(&mut watcher).await;
            assert_eq!((retained, client.as_str()), (false, "d%2F%2B"));
            assert_eq!(told["online"].as_bool(), Some(online));
            epochs.push(told["epoch"].as_i64().expect("a number"));
        }
    }
    assert!(epochs.chunks(2).all(|pair| pair[0] == pair[1]) && epochs.is_sorted(), "{epochs:?}");
    epochs.dedup();
    assert_eq!(epochs.len(), 4);
    // Nobody else may say so, and a wildcard at the top does not see it.
    watcher.publish("$SYS/presence/c", 1, 7, "{}").await;
    assert_eq!(watcher.receive().await, None, "a 3.1.1 client that may not publish is cut off");
}

#[tokio::test]
async fn a_subscriber_that_is_away_finds_the_history_in_its_queue() {
    let database = Database::new();
    let broker = open(&database).await;
    let (mut watcher, _) = Wire::connect(broker.plain(), false, "watcher", false).await;
    assert_eq!(watcher.subscribe("$SYS/presence/c", 1).await, 1);
    drop(watcher);
    broker.connected(0).await;
    for _ in 0..3 {
        let (mut wire, _) = Wire::connect(broker.plain(), false, "c", false).await;
        wire.ping().await;
    }
    broker.connected(0).await;
    until(&database, "select count(*) from wakala.message", "6").await;
    // The node dies while it holds a connection, and the next life says so.
    broker.listening.stop().await;
    let opening = wakala_node::store::openings::Opening {
        client: wakala::id::ClientId::new("c").expect("short"),
        guest: true,
        node: "n1".to_owned(),
        above: wakala::id::Epoch(0),
        will: None,
        clean_start: false,
        expiry_s: 3600,
        connection: Default::default(),
        at: now(),
    };
    broker.store.open_session(opening).await.expect("opened");
    let broker = open(&database).await;
    until(&database, "select count(*) from wakala.message", "7").await;
    let (mut watcher, _) = Wire::connect(broker.plain(), false, "watcher", false).await;
    let mut said = Vec::new();
    for _ in 0..7 {
        said.push(next(&mut watcher).await);
    }
    for pair in said[..6].chunks(2) {
        assert_eq!(pair[0], "c online");
        assert!(pair[1].starts_with("c offline: "), "{said:?}");
    }
    assert_eq!(said[6], "c offline: its node died");
    assert_eq!(watcher.subscribe("$SYS/presence/+", 1).await, 1);
    let mut retained = [next(&mut watcher).await, next(&mut watcher).await];
    retained.sort();
    assert_eq!(retained, ["(c offline", "(watcher online"]);
    assert_eq!(out_of_order(&database), "");
}

#[tokio::test]
async fn clean_connections_are_stored_where_that_is_wanted() {
    let database = Database::new();
    for (wanted, rows) in [(false, "0"), (true, "2")] {
        let broker = Broker::made(database.store().await, plain(), |deps| {
            deps.open.anonymous = true;
            deps.presence.store_clean = wanted;
        });
        let broker = broker.await;
        let (mut wire, _) = Wire::connect(broker.plain(), true, "c", true).await;
        wire.ping().await;
        drop(wire);
        broker.connected(0).await;
        until(&database, "select count(*) from wakala.presence", rows).await;
        until(&database, "select count(*) from wakala.session", "0").await;
        broker.listening.stop().await;
    }
    assert_eq!(out_of_order(&database), "");
}
