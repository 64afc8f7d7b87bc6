//! Where terminals connect: plain, TLS and WebSocket, MQTT 3.1.1 and MQTT 5 on one port.
//!
//! ntex accepts, and carries TLS and the bytes, on worker threads of its own. Each worker is a runtime of one thread that
//! owns the sockets it was given and the session actors of those connections. What a stranger may cost before it has
//! proved who it is, is bounded in bytes, in time and in number (`welcome`).

pub mod bounds;
pub mod identity;
mod stream;
pub mod tls;
mod websocket;
mod welcome;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use ntex::SharedCfg;
use ntex::io::{Filter, Io, IoConfig};
use ntex::server::rustls::TlsServerFilter;
use ntex::service::fn_service;
use ntex::time::Millis;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use wakala::session::Elsewhere;

use crate::metrics::wire;
use crate::sessions::Sessions;
use crate::turns::turn;
use identity::Identity;
pub use tls::Tls;
use tls::{Credentials, Handshake};
use websocket::Upgrade;
pub use websocket::WebSocket;
use welcome::{Door, Stranger};

/// Where terminals connect, and what they may cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Without TLS. For loopback and for a network that is closed otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain: Option<SocketAddr>,
    /// With TLS 1.3 and 1.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// In WebSocket, for portals in a browser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<WebSocket>,
    /// Threads for sockets and sessions.
    pub workers: usize,
    /// Connections that may wait to be accepted.
    pub backlog: i32,
    /// Terminals connected at the same time; the next one is told that the server is busy.
    pub connections_max: usize,
    /// Other nodes that MQTT 5 clients are sent to when this one stops or is full, as they find them from where they are.
    /// Empty: they are sent to none.
    pub elsewhere: Vec<String>,
    /// Connections at the same time that have not proved yet who they are, per worker; the next one is closed.
    pub strangers_max: usize,
    /// From the end of the TLS handshake, or of the WebSocket's, to the last byte of CONNECT.
    #[serde(with = "humantime_serde")]
    pub connect_within: Duration,
    /// The longest TLS handshake, and the longest wait for the request that opens a WebSocket.
    #[serde(with = "humantime_serde")]
    pub handshake_within: Duration,
    /// The largest CONNECT, header included, in bytes.
    pub connect_bytes_max: u32,
    /// Passwords that are verified at the same time. Each takes a thread and, with the usual parameters of argon2id,
    /// 19 MiB.
    pub passwords_at_once: usize,
    /// The longest that a CONNECT waits for its password to be verified; then the server says that it is busy. The addresses
    /// that connections come from take turns.
    #[serde(with = "humantime_serde")]
    pub password_within: Duration,
    /// Tokens as passwords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<identity::JwtOptions>,
    /// A program that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<identity::HookOptions>,
    /// What one address and one client may cost.
    pub bounds: bounds::Options,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain: Some(SocketAddr::from(([127, 0, 0, 1], 1883))),
            tls: None,
            websocket: None,
            workers: 1,
            backlog: 4096,
            connections_max: 25_000,
            elsewhere: Vec::new(),
            strangers_max: 4096,
            connect_within: Duration::from_secs(10),
            handshake_within: Duration::from_secs(10),
            connect_bytes_max: 64 * 1024,
            passwords_at_once: 2,
            password_within: Duration::from_secs(30),
            jwt: None,
            hook: None,
            bounds: bounds::Options::default(),
        }
    }
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("neither `plain` nor `tls` nor `websocket` has an address")]
    Nowhere,
    #[error("listener: {address}: {why}")]
    Address { address: SocketAddr, why: std::io::Error },
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("listener: {0}")]
    Identity(String),
    #[error("the listener's thread ended before it listened: {0}")]
    Thread(String),
}

/// A listener that runs.
#[derive(Debug)]
pub struct Listening {
    /// Where it listens without TLS; the port is the real one, where 0 was asked for.
    pub plain: Option<SocketAddr>,
    /// Where it listens with TLS.
    pub tls: Option<SocketAddr>,
    /// Where it listens for WebSockets, and at which path.
    pub websocket: WebSocket,
    credentials: Option<Credentials>,
    identity: Identity,
    elsewhere: Elsewhere,
    sessions: Sessions,
    server: ntex::server::Server,
    /// Closed when the listener's thread has ended, however.
    ended: oneshot::Receiver<()>,
}

impl Options {
    /// Where terminals connect, as a person would write it: `mqtt://127.0.0.1:1883`, `mqtts://[::]:8883`,
    /// `wss://[::]:8884/mqtt`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        urls(self.plain, self.tls.as_ref().map(|tls| tls.address), self.websocket.as_ref())
    }
}

fn urls(plain: Option<SocketAddr>, tls: Option<SocketAddr>, websocket: Option<&WebSocket>) -> Vec<String> {
    let path = websocket.map_or("", |websocket| &websocket.path);
    let (ws, wss) = websocket.map_or((None, None), |websocket| (websocket.plain, websocket.tls));
    let schemes = [("mqtt", plain, ""), ("mqtts", tls, ""), ("ws", ws, path), ("wss", wss, path)];
    let urls = schemes.into_iter().filter_map(|(scheme, address, path)| Some(format!("{scheme}://{}{path}", address?)));
    urls.collect()
}

impl Listening {
    /// Where it listens, with the real ports.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        urls(self.plain, self.tls, Some(&self.websocket))
    }

    /// Where TLS is offered, what it is offered with.
    #[must_use]
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// What there is to show of tokens and the hook.
    pub fn identity(&self) -> impl Fn() -> Option<identity::Report> + Send + Sync + use<> {
        let identity = self.identity.clone();
        move || identity.report()
    }

    /// Reads the files of TLS, of tokens and of the hook again at once, and ends the sessions whose certificate is not good by them. What is wrong
    /// with them is logged and counted, and what was in force stays so.
    pub async fn reload(&self) {
        let identity = self.identity.clone();
        // A panic is its task's own, and the next look comes.
        let _ = tokio::task::spawn_blocking(move || identity.reload()).await;
        let Some(credentials) = self.credentials.clone() else { return };
        let reading = credentials.clone();
        let read = tokio::task::spawn_blocking(move || reading.reload()).await;
        if matches!(read, Ok(Ok(()))) {
            self.sessions.end_without_papers(&credentials.trust());
        }
    }

    /// Comes when the listener's thread has ended. Without having been told to, that is a fault: nobody can connect.
    pub async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Stops accepting, ends all connections and waits for the listener's thread.
    pub async fn stop(mut self) {
        self.server.pause().await;
        self.sessions.send_elsewhere(&self.elsewhere);
        self.server.stop(true).await;
        // Not by joining it: a thread that waits for a thread that hangs would keep the process from its end.
        self.ended().await;
    }
}

/// Whoever forgets it wants nobody served any more: else its threads would go on, and all that looks at the database for them.
impl Drop for Listening {
    fn drop(&mut self) {
        // It is told so at once; nobody waits for it.
        drop(self.server.stop(false));
    }
}

/// Opens the addresses and starts the worker threads.
///
/// # Errors
/// When an address is taken or a file of the TLS listener is not right.
pub async fn start(options: &Options, sessions: Sessions) -> Result<Listening, Error> {
    let credentials = options.tls.as_ref().map(Credentials::open).transpose()?;
    let mut websocket = options.websocket.clone().unwrap_or_default();
    let wss = websocket.tls.zip(credentials.clone());
    let tls = options.tls.as_ref().map(|tls| tls.address).zip(credentials.clone());
    let mut ways = Vec::new();
    let mut way = |name, address: Option<SocketAddr>, credentials, websocket| {
        let Some(address) = address else { return Ok(None) };
        let socket = open(address, options.backlog)?;
        let address = socket.local_addr().map_err(|why| Error::Address { address, why })?;
        ways.push(Way { name, socket, credentials, websocket });
        Ok::<_, Error>(Some(address))
    };
    let (tls, of_tls) = tls.unzip();
    let (wss, of_wss) = wss.unzip();
    let plain = way("plain", options.plain, None, None)?;
    let tls = way("tls", tls, of_tls, None)?;
    websocket.plain = way("websocket", websocket.plain, None, options.websocket.clone())?;
    websocket.tls = way("websocket with TLS", wss, of_wss, options.websocket.clone())?;
    if ways.is_empty() {
        return Err(Error::Nowhere);
    }
    let identity = Identity::open(options, &sessions).map_err(Error::Identity)?;
    let door = Door::new(options, identity.clone(), sessions.clone());
    sessions.begin().await;
    if let Some((credentials, tls)) = credentials.as_ref().zip(options.tls.as_ref()) {
        credentials.look_every(tls.look_every, &sessions);
    }
    let (told, hears) = oneshot::channel();
    let (ends, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("mqtt".to_owned())
        .spawn({
            let options = options.clone();
            move || {
                // Dropped last, by a panic too.
                let _ends: oneshot::Sender<()> = ends;
                serve(&options, ways, door, told);
            }
        })
        .map_err(|error| Error::Thread(error.to_string()))?;
    let server = hears.await.map_err(|_| Error::Thread("no word from it".to_owned()))?;
    let server = server.map_err(|error| Error::Thread(error.to_string()))?;
    let elsewhere = Elsewhere::new(&options.elsewhere);
    let listening = Listening { plain, tls, websocket, credentials, identity, elsewhere, sessions, server, ended };
    tracing::info!(at = ?listening.addresses(), "terminals may connect");
    Ok(listening)
}

fn open(address: SocketAddr, backlog: i32) -> Result<TcpListener, Error> {
    ntex::server::create_tcp_listener(address, backlog).map_err(|why| Error::Address { address, why })
}

type Told = oneshot::Sender<std::io::Result<ntex::server::Server>>;

/// One of the addresses, and what its connections pass before they are a stream of MQTT's bytes.
struct Way {
    name: &'static str,
    socket: TcpListener,
    credentials: Option<Credentials>,
    websocket: Option<WebSocket>,
}

/// The life of the listener's thread: ntex's own system, which ends with its server.
fn serve(options: &Options, ways: Vec<Way>, door: Door, told: Told) {
    let (workers, strangers_max) = (options.workers.max(1), options.strangers_max);
    let within = Millis(u32::try_from(options.handshake_within.as_millis()).unwrap_or(u32::MAX));
    let system = ntex::rt::System::new("mqtt", stream::Runtime);
    system.block_on(async move {
        let mut builder = ntex::server::build()
            .workers(workers)
            // Of strangers, on one worker: a session is no longer counted by ntex.
            .maxconn(strangers_max)
            .shutdown_timeout(Millis(2_000))
            .disable_signals();
        for Way { name, socket, credentials, websocket } in ways {
            let door = door.clone();
            let added = builder.listen(name, socket, async move |_| {
                let upgrade = websocket.as_ref().map(|options| Upgrade::new(options, within));
                let porch = Porch { door: door.clone(), credentials: credentials.clone(), upgrade, within };
                fn_service(move |io: Io| {
                    let porch = porch.clone();
                    async move {
                        porch.pass(io).await;
                        Ok::<_, std::io::Error>(())
                    }
                })
            });
            builder = match added {
                Ok(builder) => builder.config(name, SharedCfg::new("mqtt").add(io_config()).build()),
                Err(error) => return drop(told.send(Err(error))),
            };
        }
        let server = builder.run();
        if told.send(Ok(server.clone())).is_ok() {
            let _ = server.await;
        }
    });
}

/// What lies before the door: TLS, WebSocket, both or neither.
#[derive(Clone)]
struct Porch {
    door: Door,
    credentials: Option<Credentials>,
    upgrade: Option<Upgrade>,
    within: Millis,
}

impl Porch {
    async fn pass(&self, io: Io) {
        self.door.arrived(self.credentials.is_some(), self.upgrade.is_some());
        let Some(stranger) = self.door.stranger(&io.get_ref()) else { return self.door.crowded() };
        // Of thousands who come at once each would be ready for its handshake, and those who are connected wait for all.
        // Nor is anything of them read before, which would take a buffer for each.
        io.pause();
        turn().await;
        let Some(credentials) = &self.credentials else { return self.enter(io, stranger, None).await };
        let handshake = credentials.handshake();
        match TlsServerFilter::create(io, handshake.config(), self.within).await {
            Ok(io) => {
                wire::SHAKEN.one();
                self.enter(io, stranger, Some(handshake)).await;
            }
            Err(error) => {
                wire::UNSHAKEN.one();
                tls::tell_of_failure(&error);
                stranger.failed();
            }
        }
    }

    async fn enter<F: Filter>(&self, io: Io<F>, stranger: Stranger, handshake: Option<Handshake>) {
        let io = match &self.upgrade {
            Some(upgrade) => match upgrade.accept(io).await {
                Some(io) => io.boxed(),
                None => return stranger.failed(),
            },
            None => io.boxed(),
        };
        self.door.welcome(io, Some(stranger), handshake).await;
    }
}

/// Buffers belong to the worker: who is idle has none. A client that has this much unread is written no more to.
fn io_config() -> IoConfig {
    IoConfig::new().set_read_buf(16 * 1024, 512, 32).set_write_buf(64 * 1024, 512, 32)
}
