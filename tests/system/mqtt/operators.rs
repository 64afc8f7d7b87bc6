//! What operators ask of sessions over the admin port of a real node: who is here, that one goes, what one says.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use wakala_node::store::openings::Opening;
use wakala_node::store::presence::Connection;
use wakala_node::store::standing::{Action, Wanted};

use super::ended::Node;
use super::wire::Wire;
use super::{PASSWORD, enrol, queue_receipt, tell, until};
use crate::locks::Holding;
use wakala_system_tests::{Database, now};

fn client(name: &str) -> wakala::id::ClientId {
    wakala::id::ClientId::new(name).expect("short")
}

fn json(answer: &str) -> serde_json::Value {
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    // In one chunk or none.
    let body = body.lines().find(|line| line.starts_with('{')).expect("JSON");
    serde_json::from_str(body).expect("JSON")
}

#[tokio::test]
async fn sessions_are_listed_with_what_is_stored_and_what_the_node_knows() {
    let database = Database::new();
    let store = database.store().await;
    for name in ["T1", "T2", "U1"] {
        enrol(&store, name, None).await;
    }
    let node = Node::start(&database).await;
    let (mut wire, _) = Wire::connect(node.mqtt, true, "T1", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    let (_other, _) = Wire::connect(node.mqtt, false, "U1", true).await;
    for n in 0..3 {
        queue_receipt(&database, "T1", &format!("r{n}"));
    }
    assert!(node.ask("POST /terminals/T1/wake").await.starts_with("HTTP/1.1 204"));
    for _ in 0..3 {
        wire.delivery().await;
    }
    wire.ping().await;
    let here = json(&node.ask("GET /sessions?prefix=T&limit=10").await);
    assert_eq!(here["sessions"].as_array().map(Vec::len), Some(1), "{here}");
    let one = &here["sessions"][0];
    assert_eq!((one["client"].as_str(), one["in_flight"].as_u64()), (Some("T1"), Some(3)), "{here}");
    assert_eq!(
        (one["connection"]["protocol"].as_str(), one["connection"]["carrier"].as_str()),
        (Some("MQTT 5"), Some("TCP"))
    );
    let after = json(&node.ask("GET /sessions?after=T1&limit=10").await);
    assert_eq!(after["sessions"][0]["client"], "U1");
    assert_eq!(json(&node.ask("GET /sessions?client=T2").await)["sessions"], serde_json::json!([]));

    let wanted = |change: &dyn Fn(&mut Wanted)| {
        let mut wanted = Wanted { limit: 10, ..Wanted::default() };
        change(&mut wanted);
        wanted
    };
    let names = async |wanted: Wanted| -> Vec<String> {
        let found = store.standings(wanted).await.expect("read");
        found.iter().map(|standing| standing.client.to_string()).collect()
    };
    assert_eq!(names(wanted(&|_| ())).await, ["T1", "T2", "U1"]);
    assert_eq!(names(wanted(&|w| w.prefix = "T".to_owned())).await, ["T1", "T2"]);
    assert_eq!(names(wanted(&|w| w.after = "T1".to_owned())).await, ["T2", "U1"]);
    assert_eq!(names(wanted(&|w| w.connected = Some(true))).await, ["T1", "U1"]);
    assert_eq!(names(wanted(&|w| w.connected = Some(false))).await, ["T2"]);
    assert_eq!(names(wanted(&|w| w.kept = true)).await, ["T1"]);
    assert_eq!(names(wanted(&|w| w.node = Some("elsewhere".to_owned()))).await, Vec::<String>::new());
    assert_eq!(names(wanted(&|w| w.limit = 2)).await, ["T1", "T2"]);

    tell(&store, "T1", 1, "a message").await;
    let standing = store.standing(&client("T1")).await.expect("read").expect("there");
    assert_eq!((standing.waiting, standing.enrolled, standing.connected), (4, true, true));
    let (subscriptions, classes, wills) = store.belongings(&client("T1")).await.expect("read");
    assert_eq!(subscriptions.iter().map(|s| &*s.filter).collect::<Vec<_>>(), ["r/T1"]);
    let classes: Vec<_> = classes.iter().map(|class| (class.name.as_str(), class.rows, class.bytes)).collect();
    assert_eq!(classes, [("messages at QoS 1", 1, 9), ("receipts", 3, 6)]);
    assert_eq!(wills, []);
}

#[tokio::test]
async fn a_kick_ends_one_connection_and_is_recorded_wherever_it_was_asked_for() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let node = Node::start(&database).await;
    assert!(node.ask("POST /sessions/kick?client=T1&who=asha&why=x").await.starts_with("HTTP/1.1 404"));
    let (mut wire, _) = Wire::connect(node.mqtt, true, "T1", false).await;
    assert!(node.ask("POST /sessions/kick?client=T1&who=asha&why=a%20test").await.starts_with("HTTP/1.1 204"));
    let (first, body) = wire.receive().await.expect("a DISCONNECT");
    assert_eq!((first, body[0]), (0xE0, 0x98), "administrative action");
    until(&database, "select connected from wakala.session", "f").await;
    let why = "select why from wakala.presence where not online order by seq desc limit 1";
    assert_eq!(database.rows(why), "an operator ended the connection");
    let recorded = "select who || ': ' || why || ', ' || outcome from audit.admin_actions order by at_utc desc limit 1";
    until(&database, recorded, "asha: a test, ended").await;

    // From somewhere else: this node finds it, and spares the connection after the one that was meant.
    let (mut wire, connack) = Wire::connect(node.mqtt, true, "T1", false).await;
    assert_eq!(connack, [1, 0], "the session stayed");
    let standing = store.standing(&client("T1")).await.expect("read").expect("there");
    let at_node = standing.node.clone().expect("connected");
    let ask = |epoch| Action {
        at: now(),
        what: "kick",
        client: client("T1"),
        epoch: Some(epoch),
        node: at_node.clone(),
        who: "juma".to_owned(),
        why: "from afar".to_owned(),
        done_at: None,
        outcome: None,
    };
    store.record_action(ask(wakala::id::Epoch(standing.epoch.0 - 1))).await.expect("recorded");
    until(&database, recorded, "juma: from afar, the connection had ended").await;
    wire.ping().await;
    store.record_action(ask(standing.epoch)).await.expect("recorded");
    let (first, body) = wire.receive().await.expect("a DISCONNECT");
    assert_eq!((first, body[0]), (0xE0, 0x98));
    until(&database, recorded, "juma: from afar, ended").await;
    let actions = store.actions(&client("T1"), 10).await.expect("read");
    assert_eq!(actions.len(), 3);
    // Nobody is asked to end a connection of a node that this one is not.
    let opening = Opening {
        client: client("T1"),
        guest: false,
        node: "elsewhere".to_owned(),
        above: wakala::id::Epoch(0),
        will: None,
        clean_start: false,
        expiry_s: 60,
        connection: Connection::default(),
        at: now(),
    };
    let (epoch, _) = store.open_session(opening).await.expect("opened");
    store.record_action(Action { node: "elsewhere".to_owned(), ..ask(epoch) }).await.expect("recorded");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let owed = "select count(*) from wakala.admin_action where done_at is null";
    assert_eq!(database.rows(owed), "1");
}

/// A tap, as an operator's program reads it.
struct Tap(Lines<BufReader<TcpStream>>);

impl Tap {
    async fn begin(node: &Node, query: &str) -> Self {
        let mut stream = TcpStream::connect(node.admin).await.expect("it listens");
        let request = format!("GET /tap?{query} HTTP/1.1\r\nhost: localhost\r\nx-wakala: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        Self(BufReader::new(stream).lines())
    }

    /// The next line that says something; none at the end.
    async fn next(&mut self) -> Option<serde_json::Value> {
        loop {
            let line = tokio::time::timeout(Duration::from_secs(20), self.0.next_line()).await.expect("in time");
            let line = line.ok()??;
            if line.starts_with('{') {
                return serde_json::from_str(&line).ok();
            }
            // The last chunk.
            if line == "0" {
                return None;
            }
        }
    }

    /// Which way it went, and what it was.
    async fn packet(&mut self) -> String {
        let line = self.next().await.expect("a line");
        let part = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        format!("{} {}", part("way"), part("packet"))
    }
}

/// A web page may have a name that leads to the reader's own machine, and then sends what it likes.
#[tokio::test]
async fn the_admin_port_answers_under_no_name_but_its_own() {
    let database = Database::new();
    let node = Node::start(&database).await;
    for what in ["GET /status", "GET /tap?client=T1", "POST /sessions/kick?client=T1"] {
        let answer = node.ask_under("bank.example:8830", what).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{what}: {answer}");
    }
    assert!(node.ask_under("127.0.0.1:8830", "GET /status").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_tap_shows_what_a_client_says_and_hears_over_its_reconnects_and_no_secret() {
    let database = Database::new();
    enrol(&database.store().await, "T1", None).await;
    let node = Node::start(&database).await;
    let mut tap = Tap::begin(&node, "client=T1&who=asha&why=a+test&seconds=60").await;
    let note = tap.next().await.expect("a note")["note"].to_string();
    assert!(note.contains("not connected") && note.contains("waiting for it"), "{note}");

    let mut seen = String::new();
    for round in 0..2 {
        let (mut wire, _) = Wire::connect(node.mqtt, true, "T1", round == 0).await;
        assert_eq!(wire.subscribe("r/T1", 1).await, 1);
        queue_receipt(&database, "T1", "4111111111111111");
        assert!(node.ask("POST /terminals/T1/wake").await.starts_with("HTTP/1.1 204"));
        let (_, id, _) = wire.delivery().await;
        wire.acknowledge(id).await;
        // Not a topic of its own: nobody takes it, and what it is called is not shown.
        wire.publish("q/T2", 1, 5, &format!("a request with 5500005555555559 and {PASSWORD}")).await;
        assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x40), "a PUBACK");
        wire.ping().await;
        drop(wire);
        let mut said = Vec::new();
        while said.last().is_none_or(|last: &String| last != "out ENDED") {
            let line = tap.next().await.expect("a line");
            seen.push_str(&line.to_string());
            seen.push_str(&serde_json::from_value::<wakala_node::tap::Line>(line.clone()).expect("a line").to_string());
            said.push(format!("{} {}", line["way"].as_str().unwrap_or(""), line["packet"].as_str().unwrap_or("")));
        }
        let count = |what: &str| said.iter().filter(|line| *line == what).count();
        for what in [
            "in CONNECT",
            "out CONNACK",
            "in SUBSCRIBE",
            "out SUBACK",
            "out PUBLISH",
            "in PUBACK",
            "in PUBLISH",
            "out PUBACK",
            "in PINGREQ",
            "out PINGRESP",
        ] {
            assert_eq!(count(what), 1, "{what}: {said:?}");
        }
        assert_eq!(said[..2], ["in CONNECT", "out CONNACK"]);
    }
    for secret in ["4111111111111111", "5500005555555559", PASSWORD, "a request", "q/T2"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    assert!(seen.contains("r/T1 QoS 1") && seen.contains("16 bytes #") && seen.contains("a password"), "{seen}");

    // A wrong password is seen as one that was refused.
    let mut wire = Wire::open(node.mqtt, true).await;
    wire.send(&super::wire::connect(true, "T1", "T1", "not the password", true, 60)).await;
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x20));
    assert_eq!(tap.packet().await, "in CONNECT");
    let refused = tap.next().await.expect("a line");
    assert_eq!(
        (refused["packet"].as_str(), refused["reason"]["name"].as_str()),
        (Some("CONNACK"), Some("BadUserNameOrPassword"))
    );
    drop(tap);
    let recorded =
        "select what || ' by ' || who || ': ' || why || ', ' || split_part(outcome, '; ', 2) from audit.admin_actions";
    until(&database, recorded, "tap by asha: a test, its reader went away").await;
}

#[tokio::test]
async fn a_tap_ends_at_its_limits_and_needs_to_be_meant() {
    let database = Database::new();
    enrol(&database.store().await, "T1", None).await;
    let node = Node::start(&database).await;
    let mut tap = Tap::begin(&node, "client=T1&packets=3").await;
    assert!(tap.next().await.is_some());
    let (mut wire, _) = Wire::connect(node.mqtt, true, "T1", false).await;
    wire.ping().await;
    assert_eq!(
        [tap.packet().await, tap.packet().await, tap.packet().await],
        ["in CONNECT", "out CONNACK", "in PINGREQ"]
    );
    let note = tap.next().await.expect("a note")["note"].to_string();
    assert!(note.contains("tap.packets_max"), "{note}");
    assert_eq!(tap.next().await, None);

    let mut tap = Tap::begin(&node, "client=T2&seconds=1").await;
    assert!(tap.next().await.is_some());
    let note = tap.next().await.expect("a note")["note"].to_string();
    assert!(note.contains("tap.for_max"), "{note}");
    assert_eq!(tap.next().await, None);
    until(&database, "select count(*) from wakala.admin_action where outcome is not null", "2").await;

    // As a browser would ask for a page that somebody else wrote.
    let mut stream = TcpStream::connect(node.admin).await.expect("it listens");
    stream.write_all(b"GET /tap?client=T1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut lines = BufReader::new(stream).lines();
    assert_eq!(lines.next_line().await.expect("an answer").as_deref(), Some("HTTP/1.1 403 Forbidden"));
    wire.ping().await;
}

/// Counting what waits may take longer than monitoring has patience for: that is no database that is away, which wakes somebody.
#[tokio::test]
async fn a_database_that_counts_for_long_is_not_away() {
    let database = Database::new();
    let node = Node::start(&database).await;
    let lines = |page: &str, name: &str| {
        page.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    let waiting = "wakala_stored_copies_waiting";
    let page = node.ask("GET /metrics").await;
    assert_eq!(
        (lines(&page, "wakala_database_up "), lines(&page, waiting).len()),
        (vec!["wakala_database_up 1.0".to_owned()], 1),
        "{page}"
    );
    let counting = Holding::new(&database, "lock table wakala.message in access exclusive mode");
    let page = node.ask("GET /metrics").await;
    assert_eq!(
        (lines(&page, "wakala_database_up "), lines(&page, waiting).len()),
        (vec!["wakala_database_up 1.0".to_owned()], 0)
    );
    drop(counting);
    let still = database.stand_still();
    let page = node.ask("GET /metrics").await;
    assert_eq!(lines(&page, "wakala_database_up "), ["wakala_database_up 0.0"]);
    drop(still);
}
