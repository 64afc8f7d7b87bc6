//! kill -9 of the process in the middle of deliveries.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::certificates::Papers;
use super::wire::Wire;
use super::{Broker, enrol, queue_receipt, tell, until};
use wakala_node::store::{Options, Store};
use wakala_system_tests::Database;

const URL: &str = "WAKALA_TEST_URL";
const TLS: &str = "WAKALA_TEST_TLS";

/// A process that is gone with the test, whatever became of it.
pub(crate) struct Node(pub(crate) Child);

impl Node {
    pub(super) fn process(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill_9(&mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("gone");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process of its own with a listener on that database: this test program, started again.
pub(super) fn start(database: &Database) -> (Node, SocketAddr) {
    start_with(database, None)
}

/// The same with TLS, if there are papers; then that is its address.
pub(super) fn start_with(database: &Database, papers: Option<&Papers>) -> (Node, SocketAddr) {
    let program = std::env::current_exe().expect("this program");
    let tls = papers.map(|papers| (TLS, serde_json::to_string(&papers.tls(true)).expect("JSON")));
    let mut child = Command::new(program)
        .envs(tls)
        .args(["--exact", "mqtt::killed::serves_until_it_is_killed", "--nocapture"])
        .env(URL, database.url("service"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| line.split("listening on ").nth(1).map(str::to_owned))
        .expect("it says where it listens");
    // What it says later must find somebody who reads it: of a test that takes a minute its harness says so, or dies of it.
    std::thread::spawn(move || lines.for_each(drop));
    (Node(child), address.trim().parse().expect("an address"))
}

#[tokio::test]
async fn serves_until_it_is_killed() {
    // Run by itself it has nothing to do: it is the other process of the test below.
    let Ok(url) = std::env::var(URL) else { return };
    let store = Store::connect(&Options { url, ..Options::default() }).await.expect("the database is there");
    let tls = std::env::var(TLS).ok().map(|tls| serde_json::from_str(&tls).expect("a TLS listener"));
    let broker = Broker::on(store, SocketAddr::from(([127, 0, 0, 1], 0)), tls).await;
    println!("listening on {}", broker.listening.tls.unwrap_or_else(|| broker.plain()));
    tokio::time::sleep(Duration::from_secs(120)).await;
}

#[tokio::test]
async fn pain_05_after_kill_9_the_same_deliveries_follow_with_the_same_identifiers() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let mut heard: Vec<String> = Vec::new();
    let mut acknowledged = 0;
    for round in 0..5_u16 {
        for n in 0..4 {
            queue_receipt(&database, "T1", &format!("p{}", round * 4 + n + 1));
        }
        let (mut node, address) = start(&database);
        let (mut wire, connack) = Wire::connect(address, round % 2 == 0, "T1", false).await;
        assert_eq!(connack, [u8::from(round > 0), 0], "the session survived");
        if round == 0 {
            assert_eq!(wire.subscribe("r/T1", 1).await, 1);
        }
        // One more is acknowledged in each life, and the acknowledgement is stored; the rest is cut off.
        let (dup, id, text) = wire.delivery().await;
        assert_eq!((id, text.as_str()), (acknowledged + 1, format!("p{}", acknowledged + 1).as_str()));
        assert_eq!(dup, round > 0, "round {round}");
        heard.push(text);
        wire.acknowledge(id).await;
        acknowledged += 1;
        until(
            &database,
            "select count(*) from wakala.receipt where delivered_at is not null",
            &acknowledged.to_string(),
        )
        .await;
        node.kill_9();
    }
    let (mut node, address) = start(&database);
    let (mut wire, _) = Wire::connect(address, true, "T1", false).await;
    for id in 6..=20 {
        let (_, found, text) = wire.delivery().await;
        assert_eq!((found, text), (id, format!("p{id}")), "none lost, in order");
        wire.acknowledge(id).await;
    }
    wire.silence().await;
    node.kill_9();
    assert_eq!(heard, ["p1", "p2", "p3", "p4", "p5"]);
}

#[tokio::test]
async fn after_kill_9_a_message_goes_out_again_unless_it_was_at_qos_0() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    for (round, v5) in [false, true].into_iter().enumerate() {
        let (mut node, address) = start(&database);
        let (mut wire, _) = Wire::connect(address, v5, "T1", false).await;
        assert_eq!(wire.subscribe("c/T1", 1).await, 1);
        queue_receipt(&database, "T1", "for another subscription");
        let kept = tell(&store, "T1", 1, "kept").await;
        tell(&store, "T1", 0, "not kept").await;
        // Nobody wakes a session in another process here: the next subscription has the queue read.
        assert_eq!(wire.subscribe("r/T1", 1).await, 1);
        let id = u16::try_from(kept.seq).expect("few");
        assert_eq!(wire.delivery().await.2, "for another subscription");
        assert_eq!(wire.message("T1").await, (1, false, id, None, "kept".to_owned()), "round {round}");
        assert_eq!(wire.message("T1").await, (0, false, 0, None, "not kept".to_owned()));
        wire.acknowledge(id - 1).await;
        until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
        tell(&store, "T1", 0, "for the connection that dies").await;
        node.kill_9();
        let (mut node, address) = start(&database);
        let (mut wire, connack) = Wire::connect(address, v5, "T1", false).await;
        assert_eq!(connack, [1, 0]);
        assert_eq!(wire.message("T1").await, (1, true, id, None, "kept".to_owned()), "DUP, and its identifier");
        wire.silence().await;
        wire.acknowledge(id).await;
        until(&database, "select count(*) from wakala.message", "0").await;
        let unsubscribe: &[u8] = if v5 { b"\xA2\x09\0\x07\0\0\x04r/T1" } else { b"\xA2\x08\0\x07\0\x04r/T1" };
        wire.send(unsubscribe).await;
        assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0xB0));
        node.kill_9();
    }
}

/// [MQTT-3.3.1-1]: what was queued when its node was dead was never sent before. Whoever did not know that may have gone on with it for
/// a moment.
#[tokio::test]
async fn what_comes_after_the_death_of_a_node_is_no_resend() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, "T1", None).await;
    let (mut node, address) = start(&database);
    let (mut wire, _) = Wire::connect(address, true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    let before = tell(&store, "T1", 1, "before").await;
    // Nobody wakes a session in another process here.
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    assert_eq!(wire.message("T1").await.4, "before");
    node.kill_9();
    let (_node, address) = start(&database);
    let soon = tell(&store, "T1", 1, "soon after").await;
    let _ =
        database.rows("update wakala.session set disconnected_at = disconnected_at - interval '1 hour' returning 1");
    let _ = database.rows("update wakala.message set at = at - interval '1 hour' returning 1");
    let after = tell(&store, "T1", 1, "after").await;
    let (mut wire, connack) = Wire::connect(address, true, "T1", false).await;
    assert_eq!(connack, [1, 0]);
    for (dup, place, text) in [(true, before, "before"), (true, soon, "soon after"), (false, after, "after")] {
        let id = u16::try_from(place.seq).expect("few");
        assert_eq!(wire.message("T1").await, (1, dup, id, None, text.to_owned()));
    }
}
