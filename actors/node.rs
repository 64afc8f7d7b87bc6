//! The root: starts the rooms inside-out, tells systemd, waits for its end, drains outside-in.
//!
//! Inside-out: cores, partitions, receipts, sessions, and the listener last, so that a terminal never finds half a node.
//! Outside-in: the listener first. What is under way needs no waiting for: it is in the log or in Postgres, and a node
//! that starts goes on from there. Draining only spares the terminals a surprise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use actix::prelude::*;
use anyhow::Context as _;
use futures_util::FutureExt as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use wakala::id::{CoreId, PartitionNo};
use wakala::session::Elsewhere;

use crate::banks::{self, Banks};
use crate::config::Config;
use crate::edge::Edge;
use crate::intake::Admission;
use crate::listener::identity::Report as Identified;
use crate::listener::tls::Credentials;
use crate::listener::{self, Listening};
use crate::metrics::figures::{self, Looks};
use crate::metrics::sys;
use crate::partitions::{self, Owner, Partitions, Ping};
use crate::ports::{Clock, Hsm, Log, Wait};
use crate::receipts::{self, Receipts};
use crate::sessions::{self, Sessions};
use crate::store::Store;
use crate::supervision::{self, EXIT_ESCALATED, Registry, Start, Stop, Supervisor, Tree};
use crate::{admin, partition, telling};

/// What `main.rs` has chosen for the ports.
pub struct Parts {
    pub store: Store,
    pub log: Arc<dyn Log>,
    pub hsm: Arc<dyn Hsm>,
    pub clock: Arc<dyn Clock>,
    /// Makes the way to a core.
    pub driver: banks::Driver,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("store", &self.store).finish_non_exhaustive()
    }
}

/// The rooms of a running node.
struct Node {
    config: Config,
    tree: Tree,
    started: Instant,
    /// From the listener's start to the drain. A core that is away does not change it: requests wait for it, in the log.
    ready: AtomicBool,
    banks: Banks,
    partitions: Partitions,
    sessions: Sessions,
    /// Where TLS is offered.
    credentials: Option<Credentials>,
    identity: Box<dyn Fn() -> Option<Identified> + Send + Sync>,
}

/// Where a supervisor that gives up says so.
#[derive(Clone)]
struct GiveUp(mpsc::Sender<String>);

impl GiveUp {
    fn call(&self) -> impl Fn(&str) + Send + Sync + Clone + 'static {
        let to = self.0.clone();
        move |why: &str| {
            tracing::error!(why, "gave up");
            // Full means that another one gave up first; once is enough.
            let _ = to.try_send(why.to_owned());
        }
    }
}

/// Runs a node until it is told to stop, and gives the process's exit code.
///
/// # Errors
/// When a room cannot be started.
pub async fn run(config: Config, parts: Parts) -> anyhow::Result<i32> {
    supervision::catch_panic_messages();
    // Before anybody is told that the node runs: unheard, it would end the process.
    let mut hangup = signal(SignalKind::hangup())?;
    let (gave_up, mut why) = mpsc::channel(1);
    let give_up = GiveUp(gave_up);
    let tree = Tree::default();
    let store = parts.store.clone();
    insist_on_durability(&store, config.node.sandbox).await?;
    store.hold_name(&config.node.name, give_up.call()).await?;

    let partitions = Partitions::default();
    let banks = start_banks(&config, &parts, &partitions, &tree, &give_up)?;
    let sessions = start_sessions(&config, &parts, &tree, &give_up);
    let owner = start_partitions(&config, &parts, &partitions, &banks, &sessions, &tree, &give_up);
    start_receipts(&config, &parts, &sessions, &tree, &give_up)?;
    let mut listening = listener::start(&config.listener, sessions.clone()).await?;
    for address in listening.addresses() {
        tracing::info!(address, "listening");
    }
    let node = Arc::new(Node {
        config,
        tree,
        started: Instant::now(),
        ready: AtomicBool::new(true),
        banks,
        partitions,
        sessions,
        credentials: listening.credentials().cloned(),
        identity: Box::new(listening.identity()),
    });
    let telling = start_telling(&node)?;
    let looks = Arc::new(Looks::new(store.clone()));
    figures::sum_up_every(&looks, node.config.metrics.sum_up_every);
    if node.config.open.is_open() {
        let sessions = node.sessions.clone();
        sys::announce_every(node.config.open.sys_every, sessions.router().clone(), &looks, move || sessions.len());
    }
    let admin = admin::serve(&node.config.admin, Arc::clone(&node) as Arc<dyn admin::Node>, looks)
        .with_context(|| format!("admin.address: {}", node.config.admin.address))?;
    let stop_admin = admin.handle();
    actix_rt::spawn(admin);

    notify(&[NotifyState::Ready]);
    tracing::info!(node = node.config.node.name, sandbox = node.config.node.sandbox, "running");
    let watchdog = actix_rt::spawn(feed_watchdog(owner.clone()));
    let code = until_told(&mut why, &mut listening, &mut hangup).await?;
    watchdog.abort();
    notify(&[NotifyState::Stopping]);
    let stopping = async {
        if let Some(telling) = telling {
            telling.stop(true).await;
        }
        drain(&node, listening, &owner).await;
        stop_admin.stop(true).await;
        // It waits for every statement under way, and a database that stands still answers none.
        store.close().await;
    };
    let patience = node.config.node.drain;
    if tokio::time::timeout(patience, stopping).await.is_err() {
        tracing::warn!(after = ?patience, "stopped before all was drained; nothing is lost by it");
    }
    Ok(code)
}

/// A PUBACK says that something is durable (law 2). Where Postgres may lose what it has committed, it would be a lie.
async fn insist_on_durability(store: &Store, sandbox: bool) -> anyhow::Result<()> {
    let off = store.undurable().await.context("database.url")?.join(", ");
    if off.is_empty() {
        return Ok(());
    }
    anyhow::ensure!(
        sandbox,
        "Postgres may lose what is acknowledged when the power fails: turn on {off} (postgresql.conf, alter system, alter \
         database, alter role), and have Postgres read its configuration again"
    );
    tracing::warn!(off, "Postgres may lose what is acknowledged when the power fails; only a sandbox starts so");
    Ok(())
}

fn start_banks(
    config: &Config,
    parts: &Parts,
    partitions: &Partitions,
    tree: &Tree,
    give_up: &GiveUp,
) -> anyhow::Result<Banks> {
    let told = partitions.clone();
    let (store, clock) = (parts.store.clone(), Arc::clone(&parts.clock));
    let deps = banks::Deps {
        clock: Arc::clone(&parts.clock),
        hsm: Arc::clone(&parts.hsm),
        driver: Arc::clone(&parts.driver),
        outcome: Arc::new(move |partition, event| told.tell(partition, event)),
        unmatched: Box::new(move |core, unmatched| {
            let (store, core, at) = (store.clone(), core.clone(), clock.now());
            store.handle().clone().spawn(async move {
                let summary = serde_json::json!({ "why": unmatched.why, "elements": unmatched.summary });
                if let Err(error) = store.unmatched_answer(&core, at, summary).await {
                    tracing::error!(%core, %error, why = unmatched.why, "an answer that nobody waits for was not stored");
                }
            });
        }),
    };
    banks::start(&config.cores, deps, config.supervision, tree.clone(), give_up.call())
}

fn start_sessions(config: &Config, parts: &Parts, tree: &Tree, give_up: &GiveUp) -> Sessions {
    let sandbox = config.node.sandbox;
    let (hsm, clock) = (Arc::clone(&parts.hsm), Arc::clone(&parts.clock));
    let edge = Arc::new(Edge::new(hsm, &parts.store, clock, config.edge.clone(), sandbox));
    edge.forget_old_tries(&parts.store);
    Sessions::new(sessions::Deps {
        options: config.sessions.clone(),
        open: config.open.clone(),
        presence: config.presence.clone(),
        telling: config.telling.clone(),
        tap: config.tap.clone(),
        node: config.node.name.clone(),
        store: parts.store.clone(),
        intake: Arc::new(Admission { edge, log: Arc::clone(&parts.log), metrics: Arc::clone(parts.store.metrics()) }),
        clock: Arc::clone(&parts.clock),
        sandbox,
        tree: tree.clone(),
        give_up: Box::new(give_up.call()),
    })
}

fn start_partitions(
    config: &Config,
    parts: &Parts,
    partitions: &Partitions,
    banks: &Banks,
    sessions: &Sessions,
    tree: &Tree,
    give_up: &GiveUp,
) -> Addr<Owner> {
    let sessions = sessions.clone();
    let deps = partition::Deps {
        options: config.partitions.clone(),
        node: config.node.name.clone(),
        store: parts.store.clone(),
        log: Arc::clone(&parts.log),
        hsm: Arc::clone(&parts.hsm),
        banks: banks.clone(),
        clock: Arc::clone(&parts.clock),
        hint: Box::new(move |hint| sessions.hint(&hint.terminal, hint.seq, Some(hint.envelope))),
    };
    partitions::start(&Arc::new(deps), partitions, config.supervision, tree.clone(), give_up.call())
}

fn start_receipts(
    config: &Config,
    parts: &Parts,
    sessions: &Sessions,
    tree: &Tree,
    give_up: &GiveUp,
) -> anyhow::Result<()> {
    let sessions = sessions.clone();
    let deps = Arc::new(receipts::Deps {
        options: config.receipts.clone(),
        node: config.node.name.clone(),
        store: parts.store.clone(),
        clock: Arc::clone(&parts.clock),
        wake: Box::new(move |terminal| {
            sessions.wake(terminal);
        }),
    });
    let factory = move |_: &'static str, link| {
        let deps = Arc::clone(&deps);
        async move { Ok(Receipts::start(deps, link)) }.boxed_local()
    };
    let registry: Registry<&'static str, Receipts> = Registry::default();
    let policy = config.supervision;
    let supervisor =
        Supervisor::new("receipts", policy, tree.clone(), registry, Box::new(factory), give_up.call()).start();
    Ok(supervisor.try_send(Start("sweeper"))?)
}

/// Opens the door for programs, if there is to be one.
fn start_telling(node: &Node) -> anyhow::Result<Option<actix_web::dev::ServerHandle>> {
    let Some(http) = &node.config.telling.http else { return Ok(None) };
    let server = telling::http::serve(http, &node.config.telling, node.sessions.clone(), node.credentials.clone())?;
    tracing::info!(plain = ?http.plain, tls = ?http.tls, "programs may tell terminals something");
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(Some(handle))
}

/// Ends with the exit code when a signal comes, a supervisor gives up, or nobody can connect any more. SIGHUP ends
/// nothing.
async fn until_told(
    gave_up: &mut mpsc::Receiver<String>,
    listening: &mut Listening,
    hangup: &mut Signal,
) -> anyhow::Result<i32> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop (SIGTERM)"),
            _ = interrupt.recv() => tracing::info!("told to stop (SIGINT)"),
            _ = hangup.recv() => {
                reload(listening).await;
                continue;
            }
            _ = gave_up.recv() => return Ok(EXIT_ESCALATED),
            () = listening.ended() => {
                tracing::error!(why = "the listener's thread ended", "gave up");
                return Ok(EXIT_ESCALATED);
            }
        }
        return Ok(0);
    }
}

/// Reads again what may change while the node runs. systemd hears when it begins and when it is done.
async fn reload(listening: &Listening) {
    tracing::info!("told to read its files again (SIGHUP); the configuration is read at the start only");
    let begun = NotifyState::monotonic_usec_now();
    match begun {
        Ok(begun) => notify(&[NotifyState::Reloading, begun]),
        Err(error) => tracing::warn!(%error, "systemd was not told"),
    }
    listening.reload().await;
    notify(&[NotifyState::Ready]);
}

async fn drain(node: &Node, listening: Listening, owner: &Addr<Owner>) {
    node.ready.store(false, Ordering::Relaxed);
    listening.stop().await;
    node.sessions.end_all();
    if owner.send(Stop).await.is_err() {
        tracing::warn!("the partitions were gone before they were told to stop");
    }
    node.banks.end();
    // Ends gather for a while before they are stored. What is not stored is found by the node's next life, as if it had died.
    node.sessions.all_left().await;
    node.sessions.all_traced().await;
}

/// Tells systemd that the node lives, as often as it wants to know, as long as the actors answer.
async fn feed_watchdog(owner: Addr<Owner>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    loop {
        let answered = tokio::time::timeout(period / 2, owner.send(Ping)).await;
        if matches!(answered, Ok(Ok(()))) {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the partitions' owner does not answer; systemd is not told that all is well");
        }
        actix_rt::time::sleep(period / 2).await;
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd was not told");
    }
}

impl admin::Node for Node {
    fn status(&self) -> admin::Status {
        admin::Status {
            node: self.config.node.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            sandbox: self.config.node.sandbox,
            ready: self.is_ready(),
            uptime_seconds: self.started.elapsed().as_secs(),
            sessions: self.sessions.len(),
            tls: self.credentials.as_ref().map(Credentials::report),
            identity: (self.identity)(),
            broker: self.config.open.is_open().then(|| self.sessions.router().holdings()),
            evacuation: self.sessions.evacuation(),
            bounds: self.sessions.bounds_report(),
            admitted: self.sessions.admitted(),
            cores: self.banks.load(),
            actors: self.tree.branches(),
        }
    }

    fn is_ready(&self) -> bool {
        let emptied = self.sessions.evacuation().is_some_and(|evacuation| evacuation.wanted.down_to == 0);
        self.ready.load(Ordering::Relaxed) && !emptied
    }

    fn elsewhere(&self) -> Elsewhere {
        Elsewhere::new(&self.config.listener.elsewhere)
    }

    fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn look_for_bans(&self) -> Wait<'static, Option<usize>> {
        let sessions = self.sessions.clone();
        Box::pin(async move {
            let looked = sessions.look_for_bans().await;
            looked.inspect_err(|error| tracing::warn!(%error, "could not look for bans")).ok()
        })
    }

    fn wake(&self, terminal: &str) -> bool {
        self.sessions.wake(terminal)
    }

    fn panic(&self, actor: &str, key: &str) -> bool {
        match actor {
            "session" => self.sessions.panic(key),
            "partition" => match key.parse() {
                Ok(number) => self.partitions.panic(Some(PartitionNo(number))),
                Err(_) => key.is_empty() && self.partitions.panic(None),
            },
            "bank" => match CoreId::new(key) {
                Ok(core) => self.banks.panic(Some(&core)),
                Err(_) => key.is_empty() && self.banks.panic(None),
            },
            _ => false,
        }
    }

    fn is_sandbox(&self) -> bool {
        self.config.node.sandbox
    }
}
