//! The listener and the sessions: raw bytes, foreign clients, a database that remembers, a process that is killed.

mod bans;
mod bounds;
mod buried;
mod certificates;
mod classes;
mod ended;
mod evacuation;
mod expiry;
mod files;
mod foreign;
mod hanging;
mod identity;
mod idle;
pub(crate) mod killed;
mod leaving;
mod messages;
mod neighbours;
mod openssl;
mod operators;
mod packets;
mod presence;
mod queue;
mod refused;
mod retained;
mod storm;
mod subscribing;
mod telling;
mod tls;
mod traces;
mod websocket;
mod wills;
mod wire;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use argon2::{Argon2, PasswordHasher as _};
use ntex_bytes::Bytes;
use wakala::id::TerminalId;
use wakala::money::Currency;
use wakala::time::Time;
use wakala_node::listener::{self, Listening, Tls, WebSocket};
use wakala_node::ports::{Clock, Wait};
use wakala_node::router;
use wakala_node::sessions::{self, Away, Intake, Sessions};
use wakala_node::store::Store;
use wakala_node::store::messages::{Class, Limits, Message, Place, Queueing};
use wakala_node::store::terminals::{Enrolment, Terminal};
use wakala_node::store::told::Asked;
use wakala_node::supervision::Tree;
use wakala_node::terminal::Enrolled;
use wakala_system_tests::{Database, agent, core, now, terminal};

const PASSWORD: &str = "kanga-kitenge";

struct Calendar;

impl Clock for Calendar {
    fn now(&self) -> Time {
        now()
    }
}

/// The edge and the log of these tests: keeps what it takes, and can be away.
#[derive(Default)]
struct Taken {
    away: AtomicBool,
    payloads: Mutex<Vec<Vec<u8>>>,
}

impl Taken {
    fn texts(&self) -> Vec<String> {
        let payloads = self.payloads.lock().expect("no panic");
        payloads.iter().map(|payload| String::from_utf8_lossy(payload).into_owned()).collect()
    }
}

struct Edge(Arc<Taken>);

impl Intake for Edge {
    fn take(&self, _: &Enrolled, payload: Bytes) -> Wait<'static, Result<(), Away>> {
        let taken = Arc::clone(&self.0);
        Box::pin(async move {
            if taken.away.load(Ordering::SeqCst) {
                return Err(Away("the test says so".to_owned()));
            }
            taken.payloads.lock().expect("no panic").push(payload.to_vec());
            Ok(())
        })
    }
}

/// The limits of a listener and its sessions.
#[derive(Default)]
struct Tuned {
    listener: listener::Options,
    sessions: sessions::Options,
    open: router::Options,
}

/// A listener with its sessions, on a database that may be shared with others.
struct Broker {
    store: Store,
    sessions: Sessions,
    taken: Arc<Taken>,
    listening: Listening,
}

impl Broker {
    async fn start(database: &Database, tls: Option<Tls>) -> Self {
        Self::on(database.store().await, SocketAddr::from(([127, 0, 0, 1], 0)), tls).await
    }

    /// A general broker, for anybody.
    async fn open(database: &Database) -> Self {
        Self::made(database.store().await, anywhere(), |deps| deps.open.anonymous = true).await
    }

    async fn on(store: Store, plain: SocketAddr, tls: Option<Tls>) -> Self {
        let options = listener::Options { plain: Some(plain), tls, ..listener::Options::default() };
        Self::with(store, options).await
    }

    async fn with(store: Store, options: listener::Options) -> Self {
        let options = listener::Options { connect_within: Duration::from_secs(1), ..options };
        Self::made(store, options, |_| ()).await
    }

    /// With other limits, which `tune` sets.
    async fn tuned(store: Store, plain: SocketAddr, tls: Option<Tls>, tune: impl FnOnce(&mut Tuned)) -> Self {
        let mut tuned = Tuned::default();
        tuned.listener.connect_within = Duration::from_secs(1);
        tune(&mut tuned);
        let options = listener::Options { plain: Some(plain), tls, ..tuned.listener };
        Self::made(store, options, |deps| (deps.options, deps.open) = (tuned.sessions, tuned.open)).await
    }

    /// The same, as this node or with other settings.
    async fn made(store: Store, options: listener::Options, change: impl FnOnce(&mut sessions::Deps)) -> Self {
        let taken = Arc::<Taken>::default();
        let mut deps = sessions::Deps {
            options: sessions::Options::default(),
            open: Default::default(),
            presence: Default::default(),
            telling: Default::default(),
            tap: Default::default(),
            node: "n1".to_owned(),
            store: store.clone(),
            intake: Arc::new(Edge(Arc::clone(&taken))),
            clock: Arc::new(Calendar),
            sandbox: true,
            tree: Tree::default(),
            give_up: Box::new(|why| panic!("{why}")),
        };
        change(&mut deps);
        let sessions = Sessions::new(deps);
        let listening = listener::start(&options, sessions.clone()).await.expect("it listens");
        Self { store, sessions, taken, listening }
    }

    fn plain(&self) -> SocketAddr {
        self.listening.plain.expect("an address")
    }

    /// Enrols a terminal with the tests' password.
    async fn enrol(&self, name: &str) -> TerminalId {
        enrol(&self.store, name, None).await
    }

    /// Waits until so many sessions are connected.
    async fn connected(&self, count: usize) {
        for _ in 0..200 {
            if self.sessions.len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} connected, not {count}", self.sessions.len());
    }
}

/// Plain, on a port that is free.
fn anywhere() -> listener::Options {
    listener::Options { plain: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..listener::Options::default() }
}

async fn enrol(store: &Store, name: &str, certificate_sha256: Option<[u8; 32]>) -> TerminalId {
    enrol_with("A1", store, name, certificate_sha256).await
}

/// As a terminal of this agent.
async fn enrol_with(agent_name: &str, store: &Store, name: &str, certificate_sha256: Option<[u8; 32]>) -> TerminalId {
    // Cheaper than a real one: what it costs is not what these tests are about.
    let cheap = argon2::Params::new(64, 1, 1, None).expect("parameters");
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cheap);
    let hash = argon2.hash_password(PASSWORD.as_bytes()).expect("a hash").to_string();
    let enrolled = Terminal {
        id: terminal(name),
        agent: agent(agent_name),
        core: core(),
        password_hash: Some(hash),
        certificate_sha256,
        blocked: None,
        sandbox: true,
        enrolled_at: now(),
    };
    assert_eq!(store.enrol_terminal(enrolled, Currency::TZS).await, Ok(Enrolment::Done));
    terminal(name)
}

/// Queues a receipt as a partition does: draws the place and inserts the row in one commit.
fn queue_receipt(database: &Database, name: &str, text: &str) {
    let _ = database.rows(&format!(
        "with s as (update wakala.session set next_seq = next_seq + 1 where client_id = '{name}' returning next_seq - 1 as seq) \
         insert into wakala.receipt (answers, stage, terminal, seq, envelope, at) \
         select gen_random_uuid(), 1, '{name}', seq, '{text}'::bytea, now() from s"
    ));
}

/// What `wakala terminals tell` has queued for this terminal.
fn told(name: &str, qos: u8, text: &str) -> Message {
    Message {
        terminal: terminal(name),
        class: Class::Message,
        kept: qos > 0,
        payload: text.into(),
        expires_at: None,
        at: now(),
        asked: asked(None),
    }
}

/// Whoever asks for a message to be told.
fn asked(key: Option<&str>) -> Asked {
    Asked { id: uuid::Uuid::now_v7(), by: "operator asha".to_owned(), key: key.map(str::to_owned) }
}

/// Room for so many messages, and as many news, for a day.
fn room(max: u32) -> Limits {
    Limits {
        messages_max: max,
        messages_ttl_max: None,
        news_max: max,
        news_ttl_max: Duration::from_secs(24 * 3600),
        per_hour: [0; 3],
    }
}

/// Queues a message as `wakala terminals tell` does.
async fn tell(store: &Store, name: &str, qos: u8, text: &str) -> Place {
    match store.queue_message(told(name, qos, text), room(100)).await {
        Ok(Queueing::Queued(place)) => place,
        other => panic!("{text}: {other:?}"),
    }
}

/// How many receipts wait for a terminal.
fn waiting(database: &Database, name: &str) -> String {
    database.rows(&format!(
        "select count(*) from wakala.receipt where terminal = '{name}' and delivered_at is null and withdrawn_at is null"
    ))
}

/// Waits until a query gives this.
async fn until(database: &Database, query: &str, wanted: &str) {
    let mut found = String::new();
    for _ in 0..100 {
        found = database.rows(query);
        if found == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{query}: {found}, not {wanted}");
}
