//! How a listener and a node end: told to, or because something in it gave up.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wakala_node::adapters::iso8583_tcp::Iso8583Tcp;
use wakala_node::adapters::postgres_log::PostgresLog;
use wakala_node::adapters::soft_hsm::{SoftHsm, Source};
use wakala_node::clock::MonotonicClock;
use wakala_node::config::Config;
use wakala_node::listener::tls::Files;
use wakala_node::listener::{self, Tls};
use wakala_node::node::{self, Parts};
use wakala_node::store::Store;
use wakala_node::supervision::EXIT_ESCALATED;
use wakala_sandbox::ports::free_port;

use super::wire::Wire;
use super::{Broker, enrol, until};
use crate::locks::Holding;
use wakala_system_tests::Database;

#[tokio::test]
async fn a_listener_that_stops_says_so_stores_it_and_lets_nobody_in() {
    let database = Database::new();
    let mut broker = Broker::start(&database, None).await;
    let at = broker.plain();
    let ended = tokio::time::timeout(Duration::from_millis(300), broker.listening.ended()).await;
    assert!(ended.is_err(), "it ended by itself");
    for name in ["T1", "T2"] {
        broker.enrol(name).await;
    }
    let (mut five, _) = Wire::connect(at, true, "T1", true).await;
    let (mut three, _) = Wire::connect(at, false, "T2", true).await;
    let _stranger = Wire::open(at, true).await;
    // A request that waits for the log does not hold the stop up.
    broker.taken.away.store(true, Ordering::SeqCst);
    three.publish("q/T2", 1, 7, "waits").await;
    broker.connected(2).await;

    let Broker { listening, sessions, .. } = broker;
    tokio::time::timeout(Duration::from_secs(8), listening.stop()).await.expect("it stops in time");
    let (first, body) = five.receive().await.expect("a DISCONNECT");
    assert_eq!((first, body[0]), (0xE0, 0x8B), "server shutting down");
    assert_eq!((five.receive().await, three.receive().await), (None, None), "closed, and no PUBACK");
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens");
    assert!(sessions.is_empty());
    until(&database, "select count(*) from wakala.session where connected", "0").await;
}

/// In a storm of reconnects many wait for their session when the node stops.
#[tokio::test]
async fn who_waits_to_be_let_in_while_the_node_stops_is_told_where_else_to_go() {
    let database = Database::new();
    let options = listener::Options { elsewhere: vec!["mqtt-2:8883".to_owned()], ..super::anywhere() };
    let broker = Broker::with(database.store().await, options).await;
    broker.enrol("T1").await;
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'T1' for update");
    let mut wire = Wire::open(broker.plain(), true).await;
    wire.say_hello("T1", true).await;
    // Passed over a few times, it waits by itself and is counted no more.
    let waits = async {
        while broker.sessions.admitted().waiting == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), waits).await.expect("it waits");
    let Broker { listening, sessions: _sessions, .. } = broker;
    let stopping = tokio::spawn(listening.stop());
    let (first, body) = wire.receive().await.expect("a CONNACK");
    let said = String::from_utf8_lossy(&body);
    assert!((first, body[1]) == (0x20, 0x9C) && said.contains("mqtt-2:8883"), "{body:x?}");
    drop(holding);
    stopping.await.expect("no panic");
}

/// Nor was he seen who waits for the end of his own earlier connection to be stored, or of whom nothing is stored.
#[tokio::test]
async fn who_is_on_his_way_in_while_the_node_stops_is_told_where_else_to_go() {
    let database = Database::new();
    let options = listener::Options { elsewhere: vec!["mqtt-2:8883".to_owned()], ..super::anywhere() };
    let broker = Broker::made(database.store().await, options, |deps| deps.open.anonymous = true).await;
    let (kept, _) = Wire::connect(broker.plain(), true, "kept", false).await;
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'kept' for update");
    let mut passing = Wire::open(broker.plain(), true).await;
    kept.cut();
    broker.connected(0).await;
    let mut kept = Wire::open(broker.plain(), true).await;
    kept.say_hello("kept", false).await;
    until_accepted(&broker, 3).await;
    let Broker { listening, sessions: _sessions, .. } = broker;
    let stopping = tokio::spawn(listening.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    passing.say_hello("passing", true).await;
    for wire in [&mut kept, &mut passing] {
        let (first, body) = wire.receive().await.expect("a CONNACK");
        let said = String::from_utf8_lossy(&body);
        assert!((first, body[1]) == (0x20, 0x9C) && said.contains("mqtt-2:8883"), "{body:x?}");
    }
    drop(holding);
    stopping.await.expect("no panic");
}

async fn until_accepted(broker: &Broker, count: u64) {
    let accepted = async {
        while broker.store.metrics().connections.plain.get() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), accepted).await.expect("they are accepted");
}

/// And with passwords many wait for theirs to be verified.
#[tokio::test]
async fn whose_password_waits_while_the_node_stops_is_told_where_else_to_go() {
    let database = Database::new();
    let options =
        listener::Options { elsewhere: vec!["mqtt-2:8883".to_owned()], passwords_at_once: 1, ..super::anywhere() };
    let broker = Broker::with(database.store().await, options).await;
    let names = ["T1", "T2"];
    for name in names {
        broker.enrol(name).await;
        super::bounds::make_dear(&database, name);
    }
    let mut wires = Vec::new();
    for name in names {
        let mut wire = Wire::open(broker.plain(), true).await;
        wire.say_hello(name, true).await;
        wires.push(wire);
    }
    until_accepted(&broker, 2).await;
    let Broker { listening, sessions: _sessions, .. } = broker;
    let stopping = tokio::spawn(listening.stop());
    for mut wire in wires {
        let (first, body) = wire.receive().await.expect("a CONNACK");
        let said = String::from_utf8_lossy(&body);
        assert!((first, body[1]) == (0x20, 0x9C) && said.contains("mqtt-2:8883"), "{body:x?}");
    }
    stopping.await.expect("no panic");
}

const URL: &str = "WAKALA_TEST_NODE_URL";
const PORTS: &str = "WAKALA_TEST_NODE_PORTS";
const MASTER: &str = "WAKALA_TEST_NODE_MASTER";
const TLS: &str = "WAKALA_TEST_NODE_TLS";
const OPEN: &str = "WAKALA_TEST_NODE_OPEN";
const BANK: &str = "WAKALA_TEST_NODE_BANK";

/// A node in a process of its own: this test program, started again.
pub(super) struct Node {
    process: Child,
    pub(super) mqtt: SocketAddr,
    pub(super) admin: SocketAddr,
}

impl Node {
    pub(super) async fn start(database: &Database) -> Self {
        Self::start_with(database, &[]).await
    }

    /// As a general broker.
    pub(super) async fn start_open(database: &Database) -> Self {
        Self::start_with(database, &[(OPEN, "yes")]).await
    }

    /// With TLS as well, on that port and with the files of that folder.
    pub(super) async fn start_with_tls(database: &Database, folder: &str, notified: &str) -> (Self, SocketAddr) {
        let at = free_port().expect("a free port");
        let node = Self::start_with(database, &[(TLS, &format!("{at} {folder}")), ("NOTIFY_SOCKET", notified)]).await;
        (node, at)
    }

    async fn start_with(database: &Database, variables: &[(&str, &str)]) -> Self {
        let [mqtt, admin] = [(), ()].map(|()| free_port().expect("a free port"));
        let mut command = program(database, [mqtt, admin]);
        let process = command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.expect("it starts");
        let node = Self { process, mqtt, admin };
        for _ in 0..200 {
            if node.ask("GET /readyz").await.starts_with("HTTP/1.1 200") {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it is not ready");
    }

    /// What the admin port answers; nothing when it does not.
    pub(super) async fn ask(&self, what: &str) -> String {
        self.ask_under("localhost", what).await
    }

    /// The same where it is called so.
    pub(super) async fn ask_under(&self, name: &str, what: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin).await else { return String::new() };
        let request = format!(
            "{what} HTTP/1.1\r\nhost: {name}\r\nx-wakala: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let mut answer = String::new();
        let asked = stream.write_all(request.as_bytes()).await.is_ok();
        let answered = asked && stream.read_to_string(&mut answer).await.is_ok();
        if answered { answer } else { String::new() }
    }

    async fn panic(&self, actor: &str) {
        let mut answer = String::new();
        // A node that is ready may still be taking its partitions.
        for _ in 0..200 {
            answer = self.ask(&format!("POST /sandbox/panic?actor={actor}")).await;
            if answer.starts_with("HTTP/1.1 204") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{answer}");
    }

    pub(super) fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.process.id().to_string()]).status().expect("kill");
        assert!(told.success());
    }

    pub(super) async fn ended(&mut self) -> ExitStatus {
        for _ in 0..200 {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it has not ended");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program(database: &Database, [mqtt, admin]: [SocketAddr; 2]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "mqtt::ended::runs_until_it_ends", "--nocapture"])
        .env(URL, database.url("service"))
        .env(PORTS, format!("{} {}", mqtt.port(), admin.port()))
        .env(MASTER, "0123456789abcdef".repeat(4));
    command
}

/// Run by itself it has nothing to do: it is the other process of the tests below.
#[test]
fn runs_until_it_ends() {
    let (Ok(url), Ok(ports)) = (std::env::var(URL), std::env::var(PORTS)) else { return };
    let (mqtt, admin) = ports.split_once(' ').expect("two ports");
    let at = |port: &str| SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
    let mut config = Config::default();
    config.database.url = url;
    config.node.sandbox = std::env::var(BANK).is_err();
    config.node.drain = Duration::from_secs(3);
    config.listener.plain = Some(at(mqtt));
    config.open.anonymous = std::env::var(OPEN).is_ok();
    if let Ok(tls) = std::env::var(TLS) {
        let (address, folder) = tls.split_once(' ').expect("an address and a folder");
        let file = |name: &str| std::path::Path::new(folder).join(name);
        let files = Files { certificate: file("server.pem"), key: file("server.key"), ..Files::default() };
        // Too late for any test: it is to be told.
        let look_every = Duration::from_secs(3600);
        config.listener.tls = Some(Tls { look_every, ..Tls::new(address.parse().expect("an address"), files) });
    }
    config.admin.address = at(admin);
    config.partitions.renew = Duration::from_millis(100);
    config.keys.master = Source::Environment(MASTER.to_owned());
    // The first panic is one too many.
    config.supervision.intensity = 0;
    config.sessions.policy.intensity = 0;
    let code = actix::System::new().block_on(async move {
        let store = Store::connect(&config.database).await.expect("the database is there");
        let clock = Arc::new(MonotonicClock::start());
        let log = PostgresLog::open(store.clone(), &config.log.postgres, clock.clone()).await.expect("a log");
        let hsm = SoftHsm::open(&store, &config.keys, true).await.expect("an HSM");
        let driver = Arc::new(|options: &wakala_node::banks::Options, dialect: &wakala::iso8583::Dialect| {
            Arc::new(Iso8583Tcp::new(&options.address, dialect.framing.clone())) as _
        });
        node::run(config, Parts { store, log: Arc::new(log), hsm: Arc::new(hsm), clock, driver }).await
    });
    std::process::exit(code.unwrap_or_else(|error| {
        // Not by a panic: where the node begins, a panic's message goes to its log.
        let _ = writeln!(std::io::stderr(), "{error:#}");
        1
    }));
}

#[tokio::test]
async fn sessions_that_panic_too_often_end_the_process() {
    let database = Database::new();
    enrol(&database.store().await, "T1", None).await;
    let mut node = Node::start(&database).await;
    let (mut wire, connack) = Wire::connect(node.mqtt, true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    node.panic("session").await;
    assert_eq!(node.ended().await.code(), Some(EXIT_ESCALATED));
    assert_eq!(wire.receive().await, None, "its connection was closed");
}

#[tokio::test]
async fn partitions_that_panic_too_often_end_the_process() {
    let database = Database::new();
    let mut node = Node::start(&database).await;
    node.panic("partition").await;
    assert_eq!(node.ended().await.code(), Some(EXIT_ESCALATED));
}

#[tokio::test]
async fn a_database_that_stands_still_does_not_keep_a_node_from_its_end() {
    let database = Database::alone();
    let mut node = Node::start(&database).await;
    let still = database.stand_still();
    // The leases are renewed all the time: a statement is under way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.signal("-TERM");
    assert_eq!(node.ended().await.code(), Some(0));
    drop(still);
}

/// What is acknowledged must be there after a power cut.
#[tokio::test]
async fn a_node_of_a_bank_does_not_start_on_a_database_that_may_forget() {
    let database = Database::alone();
    let store = database.store().await;
    assert_eq!(store.undurable().await, Ok(vec![]));
    let _ = database.rows("alter database wakala set synchronous_commit = off");
    // Of a connection that begins after that.
    let store = database.store().await;
    assert_eq!(store.undurable().await, Ok(vec!["synchronous_commit".to_owned()]));
    let [mqtt, admin] = [(), ()].map(|()| free_port().expect("a free port"));
    let mut command = program(&database, [mqtt, admin]);
    let process = command.env(BANK, "yes").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut node = Node { process, mqtt, admin };
    assert_eq!(node.ended().await.code(), Some(1));
    let said = std::io::read_to_string(node.process.stderr.take().expect("piped")).expect("text");
    assert!(said.contains("turn on synchronous_commit ("), "{said}");
    // In a sandbox it is borne.
    let _node = Node::start(&database).await;
    for setting in ["fsync", "full_page_writes"] {
        let _ = database.rows(&format!("alter system set {setting} = off"));
    }
    let _ = database.rows("select pg_reload_conf()");
    let all = ["fsync", "full_page_writes", "synchronous_commit"].map(str::to_owned);
    for _ in 0..100 {
        if store.undurable().await == Ok(all.to_vec()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", store.undurable().await);
}
