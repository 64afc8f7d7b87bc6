//! The hook: another program is asked over HTTP whether a client may connect. What is asked when, and what is remembered,
//! its twin decides (`src/hook`); this asks.
//!
//! One thread of its own asks for all workers, so that they share what is remembered, and so that whatever a foreign
//! program does to a connection is not done to a worker.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use awc::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use awc::http::{StatusCode, Uri};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::sync::{mpsc, watch};
use wakala::hook::{Answer, Decision, Desk, Key, Lifetimes, Limits, Outcome, Reply, Report};
use zeroize::Zeroizing;

use crate::ports::Clock;
use crate::watched::Watched;

/// A program that is asked about clients that this node does not know itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where it is asked. Passwords go there: https, or http to loopback.
    pub url: String,
    /// Whom to trust about its certificate, PEM; for https.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities: Option<PathBuf>,
    /// The value of the header Authorization, such as "Bearer …": this file's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization: Option<PathBuf>,
    /// It may vouch for enrolled terminals too. For one that has a password it is not asked.
    pub terminals: bool,
    /// The longest that a client waits for it, for its turn too; then the server says that it is busy. And the longest
    /// that an answer may take.
    #[serde(with = "humantime_serde")]
    pub within: Duration,
    /// Questions at the same time.
    pub at_once: usize,
    /// Clients that may wait for an answer at the same time; the next one is told at once that the server is busy.
    /// Fewer than listener.strangers_max, so that others still get in.
    pub waiting_max: usize,
    /// The largest answer, in bytes.
    pub answer_bytes_max: usize,
    /// How long a yes holds, unless the answer says so (`ttl`, in seconds).
    #[serde(with = "humantime_serde")]
    pub allowed_for: Duration,
    /// How long a no holds, unless the answer says so.
    #[serde(with = "humantime_serde")]
    pub denied_for: Duration,
    /// How long either holds at most, whatever the answer says.
    #[serde(with = "humantime_serde")]
    pub ttl_max: Duration,
    /// How long beyond its time a yes still holds while there is no answer. Without it: not at all.
    #[serde(skip_serializing_if = "Option::is_none", with = "humantime_serde")]
    pub stale_for: Option<Duration>,
    /// Decisions that are remembered; those that end first are forgotten first.
    pub known_max: usize,
    /// Questions in a row without a right answer, after which it is not asked for a while.
    pub breaker_after: u32,
    /// For how long. Clients that come then are told at once that the server is not available.
    #[serde(with = "humantime_serde")]
    pub breaker: Duration,
    /// How often it is looked whether the files have changed.
    #[serde(with = "humantime_serde")]
    pub look_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8840/mqtt".to_owned(),
            authorities: None,
            authorization: None,
            terminals: false,
            within: Duration::from_secs(3),
            at_once: 32,
            waiting_max: 256,
            answer_bytes_max: 16 * 1024,
            allowed_for: Duration::from_secs(300),
            denied_for: Duration::from_secs(10),
            ttl_max: Duration::from_secs(3600),
            stale_for: None,
            known_max: 20_000,
            breaker_after: 5,
            breaker: Duration::from_secs(5),
            look_every: Duration::from_secs(1),
        }
    }
}

impl Options {
    pub(super) fn resolve(&mut self, found: impl Fn(&Path) -> PathBuf) {
        for path in self.authorities.iter_mut().chain(&mut self.authorization) {
            *path = found(path);
        }
    }

    /// What is wrong with the address.
    pub(super) fn address_fault(&self) -> Option<&'static str> {
        let Ok(url) = self.url.parse::<Uri>() else { return Some("no address; right would be https://host:port/path") };
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Some("a password in an address is shown to everybody; `authorization` is for it");
        }
        match url.scheme_str() {
            _ if host.is_empty() => Some("no address; right would be https://host:port/path"),
            Some("https") if self.authorities.is_none() => {
                Some("https needs `authorities`: whom to trust about its certificate")
            }
            Some("https") => None,
            Some("http") if here => None,
            _ => Some("passwords go there: it must be https, or http to loopback"),
        }
    }

    /// Reads the files.
    pub(super) fn read(&self) -> Result<Files, String> {
        let said = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let tls =
            self.authorities.as_deref().map(|path| client_of(path).map_err(|why| said(path, &why))).transpose()?;
        let authorization = self.authorization.as_deref().map(|path| {
            let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| said(path, &error))?;
            let mut value = HeaderValue::from_str(text.trim()).map_err(|_| said(path, &"not the text of a header"))?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Files { tls, authorization: authorization.transpose()? })
    }
}

fn client_of(path: &Path) -> Result<Arc<rustls::ClientConfig>, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() {
        return Err("no certificate in PEM (BEGIN CERTIFICATE) in it".to_owned());
    }
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What the files hold.
pub(super) struct Files {
    tls: Option<Arc<rustls::ClientConfig>>,
    authorization: Option<HeaderValue>,
}

/// What is asked about a client.
#[derive(Serialize)]
pub(super) struct Question<'a> {
    pub(super) client: &'a str,
    pub(super) username: Option<&'a str>,
    /// As it was given, if that is text; else none.
    #[serde(serialize_with = "text")]
    pub(super) password: Option<&'a [u8]>,
    pub(super) address: Option<IpAddr>,
    /// SHA-256 of its certificate in DER, in hexadecimal digits.
    #[serde(serialize_with = "digits")]
    pub(super) certificate: Option<[u8; 32]>,
    /// "3.1.1" or "5".
    pub(super) protocol: &'static str,
}

fn text<S: serde::Serializer>(password: &Option<&[u8]>, to: S) -> Result<S::Ok, S::Error> {
    password.and_then(|bytes| std::str::from_utf8(bytes).ok()).serialize(to)
}

fn digits<S: serde::Serializer>(digest: &Option<[u8; 32]>, to: S) -> Result<S::Ok, S::Error> {
    digest.map(hex::encode).serialize(to)
}

impl Question<'_> {
    /// Over all of it, and under a secret of this process: from what is remembered nobody learns a password by trying.
    fn key(&self, secret: &[u8; 32]) -> Option<Key> {
        let address = self.address.map(|address| address.to_string());
        let fields = [
            Some(self.client.as_bytes()),
            self.username.map(str::as_bytes),
            self.password,
            address.as_deref().map(str::as_bytes),
            self.certificate.as_ref().map(<[u8; 32]>::as_slice),
            Some(self.protocol.as_bytes()),
        ];
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
        for field in fields {
            // With its length, or where one ends and the next begins would be the client's to choose.
            let length = field.map_or(u64::MAX, |field| u64::try_from(field.len()).unwrap_or(u64::MAX));
            mac.update(&length.to_be_bytes());
            mac.update(field.unwrap_or_default());
        }
        Some(mac.finalize().into_bytes().into())
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        // A byte becomes six at most. It must not grow, for what it grew out of would not be erased.
        let texts = [Some(self.client.as_bytes()), self.username.map(str::as_bytes), self.password];
        let room = 512 + 6 * texts.iter().flatten().map(|text| text.len()).sum::<usize>();
        let mut body = Zeroizing::new(Vec::with_capacity(room));
        // Into memory, of texts: nothing can go wrong, and what did would be no answer.
        let _ = serde_json::to_writer(&mut *body, self);
        body
    }
}

/// Why nothing was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undecided {
    /// Too many wait, or it took too long.
    Busy,
    /// There was no right answer, or it is not asked for a while.
    Away,
}

/// Asks. Clones are the same.
#[derive(Clone)]
pub(super) struct Hook(Arc<Inner>);

struct Inner {
    options: Options,
    templates_max: usize,
    files: Watched<Files>,
    secret: Zeroizing<[u8; 32]>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    orders: mpsc::Sender<Order>,
}

struct State {
    desk: Desk,
    /// Asked, or to be asked.
    open: BTreeMap<Key, Open>,
    /// What the log says.
    was_open: bool,
}

struct Open {
    tell: watch::Sender<Option<Outcome>>,
    /// Until it is asked.
    body: Option<Zeroizing<Vec<u8>>>,
}

/// A question to be asked now.
struct Order {
    key: Key,
    body: Zeroizing<Vec<u8>>,
}

/// A client that waits, until it is dropped.
struct Waits<'a>(&'a Inner);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().desk.leaves();
    }
}

impl Hook {
    pub(super) fn open(
        options: &Options,
        templates_max: usize,
        clock: Arc<dyn Clock>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, String> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(|error| error.to_string())?;
        let paths = options.authorities.iter().chain(&options.authorization).cloned().collect();
        let reading = options.clone();
        let files = Watched::open("the files of the hook", paths, move || reading.read())?;
        files.look_every(options.look_every, runtime);
        let desk = Desk::new(Limits {
            at_once: options.at_once,
            waiting_max: options.waiting_max,
            known_max: options.known_max,
            breaker_after: options.breaker_after,
            breaker: options.breaker,
            stale_for: options.stale_for,
        });
        // No more are under way than that.
        let (orders, ordered) = mpsc::channel(options.at_once.max(1));
        let state = Mutex::new(State { desk, open: BTreeMap::new(), was_open: false });
        let options = options.clone();
        let inner = Arc::new(Inner { options, templates_max, files, secret, clock, state, orders });
        let asks = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("hook".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, serve(ordered, asks)),
                    // Its channel is closed, and whoever comes hears that nobody is there.
                    Err(error) => tracing::error!(%error, "the thread of the hook did not start"),
                }
            })
            .map_err(|error| error.to_string())?;
        Ok(Self(inner))
    }

    /// Whether a client may connect: what is known, or what is heard in time.
    pub(super) async fn decide(&self, question: &Question<'_>) -> Result<Decision, Undecided> {
        let inner = &*self.0;
        let key = question.key(&inner.secret).ok_or(Undecided::Away)?;
        let (mut hears, order) = {
            let mut state = inner.lock();
            let reply = state.desk.comes(&key, inner.clock.now());
            let (tell, hears) = watch::channel(None);
            match reply {
                Reply::Known(decision) => return Ok(decision),
                Reply::Full => return Err(Undecided::Busy),
                Reply::Shut => return Err(Undecided::Away),
                Reply::Join => (state.open.get(&key).map(|open| open.tell.subscribe()).unwrap_or(hears), None),
                Reply::Ask => {
                    state.open.insert(key, Open { tell, body: None });
                    (hears, Some(Order { key, body: question.body() }))
                }
                Reply::Queue => {
                    state.open.insert(key, Open { tell, body: Some(question.body()) });
                    (hears, None)
                }
            }
        };
        let _waits = Waits(inner);
        inner.send(order.into_iter().collect());
        let heard = tokio::time::timeout(inner.options.within, hears.wait_for(Option::is_some)).await;
        match heard.map(|heard| heard.map(|outcome| outcome.clone())) {
            Ok(Ok(Some(Outcome::Decided(decision)))) => Ok(decision),
            Ok(_) => Err(Undecided::Away),
            // The question goes on, and its answer is there when the client comes again.
            Err(_) => Err(Undecided::Busy),
        }
    }

    pub(super) fn terminals(&self) -> bool {
        self.0.options.terminals
    }

    pub(super) fn reload(&self) {
        self.0.files.reload();
    }

    pub(super) fn report(&self) -> (Report, crate::watched::Report) {
        (self.0.lock().desk.report(), self.0.files.report())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands questions to the thread that asks.
    fn send(&self, mut orders: Vec<Order>) {
        while let Some(order) = orders.pop() {
            if let Err(error) = self.orders.try_send(order) {
                let (mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order)) = error;
                orders.extend(self.settled(&order.key, Err("its thread is gone".to_owned())));
            }
        }
    }

    /// Tells whoever waits what came of a question. Gives those whose turn it is.
    fn settled(&self, key: &Key, answer: Result<Answer, String>) -> Vec<Order> {
        let now = self.clock.now();
        let mut state = self.lock();
        let State { desk, open, was_open } = &mut *state;
        if let Err(why) = &answer {
            tracing::info!(why, "the hook did not answer a question");
        }
        let outcome = desk.settle(key, answer.ok().map(|answer| (answer.decision, answer.holds)), now);
        if let Some(open) = open.remove(key) {
            open.tell.send_replace(Some(outcome));
        }
        let mut orders = Vec::new();
        while let Some(key) = desk.next(now) {
            let waited_for = open.get_mut(&key).filter(|open| open.tell.receiver_count() > 0);
            if let Some(body) = waited_for.and_then(|open| open.body.take()) {
                orders.push(Order { key, body });
            } else {
                open.remove(&key);
                desk.drop_question(&key);
            }
        }
        for (key, outcome) in desk.given_up(now) {
            if let Some(open) = open.remove(&key) {
                open.tell.send_replace(Some(outcome));
            }
        }
        let is_open = desk.report().open;
        if is_open != std::mem::replace(was_open, is_open) {
            let url = self.options.url.as_str();
            if is_open {
                tracing::warn!(url, "the hook does not answer, and is not asked for a while");
            } else {
                tracing::info!(url, "the hook answers again");
            }
        }
        orders
    }
}

/// A question that is under way, until it is dropped: by a panic too.
struct UnderWay {
    inner: Weak<Inner>,
    key: Key,
    answer: Option<Result<Answer, String>>,
}

impl UnderWay {
    fn ends(mut self, answer: Result<Answer, String>) {
        self.answer = Some(answer);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let answer = self.answer.take().unwrap_or_else(|| Err("asking it failed".to_owned()));
        let orders = inner.settled(&self.key, answer);
        inner.send(orders);
    }
}

/// The life of the thread: until nobody can order any more.
async fn serve(mut ordered: mpsc::Receiver<Order>, asks: Weak<Inner>) {
    let mut made: Option<(Arc<Files>, awc::Client)> = None;
    while let Some(Order { key, body }) = ordered.recv().await {
        let under_way = UnderWay { inner: Weak::clone(&asks), key, answer: None };
        let Some(inner) = asks.upgrade() else { break };
        let files = inner.files.now();
        let client = match &made {
            Some((before, client)) if Arc::ptr_eq(before, &files) => client.clone(),
            _ => {
                let client = client(&inner.options, &files);
                made = Some((files, client.clone()));
                client
            }
        };
        let (options, templates_max) = (inner.options.clone(), inner.templates_max);
        drop(inner);
        tokio::task::spawn_local(async move {
            let asked = tokio::time::timeout(options.within, ask(&client, &options, templates_max, body)).await;
            under_way.ends(asked.unwrap_or_else(|_| Err("no answer in time".to_owned())));
        });
    }
}

fn client(options: &Options, files: &Files) -> awc::Client {
    let connector = awc::Connector::new().limit(options.at_once).timeout(options.within);
    let connector = match &files.tls {
        Some(config) => connector.rustls_0_23(Arc::clone(config)),
        None => connector,
    };
    // A password is for whom it was sent to, not for whom he names.
    let mut builder = awc::Client::builder().connector(connector).timeout(options.within).disable_redirects();
    if let Some(value) = &files.authorization {
        builder = builder.add_default_header((AUTHORIZATION, value.clone()));
    }
    builder.finish()
}

async fn ask(
    client: &awc::Client,
    options: &Options,
    templates_max: usize,
    body: Zeroizing<Vec<u8>>,
) -> Result<Answer, String> {
    let request = client.post(options.url.as_str()).insert_header((CONTENT_TYPE, "application/json"));
    // Erased when the last byte of it is written.
    let sent = request.send_body(Bytes::from_owner(body)).await;
    let mut response = sent.map_err(|error| error.to_string())?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}", response.status()));
    }
    let answer = response.body().limit(options.answer_bytes_max).await.map_err(|error| error.to_string())?;
    let lifetimes = Lifetimes { allowed: options.allowed_for, denied: options.denied_for, max: options.ttl_max };
    Answer::read(&answer, &lifetimes, templates_max).map_err(|error| format!("its answer: {error}"))
}
