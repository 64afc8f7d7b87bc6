//! Where terminals connect: plain, TLS and WebSocket, MQTT 3.1.1 and MQTT 5 on one port.
//!
//! Each of the listener's threads (`workers`) is a runtime by itself that owns the sockets it has accepted and the session
//! actors of those connections; ntex carries TLS and the bytes. What a stranger may cost before it has proved who it is, is
//! bounded in bytes, in time and in number (`welcome`).

pub mod bounds;
mod gone;
pub mod identity;
mod porch;
mod stream;
pub mod tls;
mod websocket;
mod welcome;
mod workers;

use std::net::SocketAddr;
use std::time::Duration;

use ntex::time::Millis;
use serde::{Deserialize, Serialize};
use wakala::session::Elsewhere;

use crate::sessions::Sessions;
use identity::Identity;
use porch::Porch;
use tls::Credentials;
pub use tls::Tls;
use websocket::Upgrade;
pub use websocket::WebSocket;
use welcome::Door;
use workers::{Way, Workers};

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
    /// Connections at the same time that have not proved yet who they are, per worker; further ones wait to be accepted.
    pub strangers_max: usize,
    /// From when a connection is served to the last byte of CONNECT, with the TLS handshake and the WebSocket's.
    #[serde(with = "humantime_serde")]
    pub connect_within: Duration,
    /// Of it, the longest TLS handshake, and the longest wait for the request that opens a WebSocket.
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

/// How long sessions have to take their leave when the node stops, and how often it is looked whether they have.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a client has then to read why.
const LAST_WORDS: Duration = Duration::from_millis(250);

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
    #[error("the listener's threads do not listen: {0}")]
    Thread(std::io::Error),
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
    workers: Workers,
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

    /// Reads the files of TLS, of tokens and of the hook again at once, and ends the sessions whose certificate is not good by
    /// them. What is wrong with them is logged and counted, and what was in force stays so.
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

    /// Comes when the listener's threads have ended. Without having been told to, that is a fault: nobody can connect.
    pub async fn ended(&mut self) {
        self.workers.ended().await;
    }

    /// Stops accepting, ends all connections and waits for the listener's threads.
    pub async fn stop(mut self) {
        self.workers.close();
        self.sessions.admission().stop();
        let gone = async {
            loop {
                // Again for whoever was about to be let in, and for whom its mailbox had no room.
                self.sessions.send_elsewhere(&self.elsewhere);
                if self.sessions.is_empty() && self.sessions.admission().is_idle() {
                    break;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(LEAVE_WITHIN, gone).await.is_err() {
            tracing::warn!(left = self.sessions.len(), within = ?LEAVE_WITHIN, "not all sessions have ended: they are cut");
        }
        // What they were told is on its way, and whoever reads it closes its connection.
        tokio::time::sleep(LAST_WORDS).await;
        self.workers.end();
        self.ended().await;
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
    let mut sockets = Vec::new();
    let mut way = |name, address: Option<SocketAddr>, credentials, websocket| {
        let Some(address) = address else { return Ok(None) };
        let socket = workers::open(address, options.backlog).map_err(|why| Error::Address { address, why })?;
        let address = socket.local_addr().map_err(|why| Error::Address { address, why })?;
        sockets.push((name, socket, credentials, websocket));
        Ok::<_, Error>(Some(address))
    };
    let (tls, of_tls) = tls.unzip();
    let (wss, of_wss) = wss.unzip();
    let plain = way("plain", options.plain, None, None)?;
    let tls = way("tls", tls, of_tls, None)?;
    websocket.plain = way("websocket", websocket.plain, None, options.websocket.clone())?;
    websocket.tls = way("websocket with TLS", wss, of_wss, options.websocket.clone())?;
    if sockets.is_empty() {
        return Err(Error::Nowhere);
    }
    let identity = Identity::open(options, &sessions).map_err(Error::Identity)?;
    let door = Door::new(options, identity.clone(), sessions.clone());
    sessions.begin().await;
    if let Some((credentials, tls)) = credentials.as_ref().zip(options.tls.as_ref()) {
        credentials.look_every(tls.look_every, &sessions);
    }
    let within = options.handshake_within.min(options.connect_within);
    let millis = Millis(u32::try_from(within.as_millis()).unwrap_or(u32::MAX));
    let ways: Vec<Way> = sockets
        .into_iter()
        .map(|(name, socket, credentials, websocket)| {
            let upgrade = websocket.map(|options: WebSocket| Upgrade::new(&options, within));
            Way { name, socket, porch: Porch { door: door.clone(), credentials, upgrade, within: millis } }
        })
        .collect();
    let workers = Workers::start(options.workers, &ways).await.map_err(Error::Thread)?;
    let elsewhere = Elsewhere::new(&options.elsewhere);
    let listening = Listening { plain, tls, websocket, credentials, identity, elsewhere, sessions, workers };
    tracing::info!(at = ?listening.addresses(), "terminals may connect");
    Ok(listening)
}
