//! One run: the village is enrolled, everything is started, the customers come, things are broken, and in the end all that
//! anybody remembers is compared.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sea_orm::{Database, DatabaseConnection};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use wakala::iso8583::Dialect;
use wakala::pin::dukpt::initial_key;
use wakala::pin::terminal::Injected;
use wakala_node::store::{self, Store};

use crate::auditor::{self, Evidence, Violation};
use crate::cards::{ACCOUNT_MINOR, Village};
use crate::core::behaviour::Behaviour;
use crate::core::{self, Core};
use crate::enrol::enrol;
use crate::faults::{self, Fault, Tally};
use crate::flash::Flash;
use crate::link::{Link, Weather};
use crate::mqtt::Version;
use crate::node::{self, Node};
use crate::plan::{Mix, plan};
use crate::records::{self, Records, Watch};
use crate::screen::Screen;
use crate::secrets::Secrets;
use crate::settings::{Choice, Settings, connector};
use crate::summary::{self, Extra, Summary};
use crate::terminal::{Patience, Server, Terminal, Told};

/// What a run is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary `wakala`.
    pub node: PathBuf,
    /// Configuration to begin with; the sandbox sets what only it knows.
    pub node_config: Option<PathBuf>,
    pub dialect: PathBuf,
    /// Where configuration, keys, logs and the core's journal go.
    pub folder: PathBuf,
    /// Where the run's secrets go, for those who search the rest for them.
    pub secrets: PathBuf,
    pub database: String,
    pub owner_database: String,
    pub log: Option<String>,
    pub terminals: usize,
    /// How many customers come in all.
    pub transactions: usize,
    /// They come until somebody stops it.
    pub endless: bool,
    /// How long the terminals have to connect before the first customer comes, and the clock runs.
    pub opening: Duration,
    /// How long everything stays as it is at the end, for whoever measures it.
    pub hold: Duration,
    pub mix: Mix,
    pub seed: u64,
    /// Terminals connect by links of this weather.
    pub linked: bool,
    pub weather: Weather,
    pub tls: bool,
    /// Everything dies.
    pub death: bool,
    pub behaviour: Behaviour,
    /// Between two customers at one terminal, at most.
    pub pause: Duration,
    /// The run is given up when nothing happens for so long.
    pub patience: Duration,
}

/// Steps of each terminal where there is no end.
const STEPS_WITHOUT_END: usize = 2_000;
/// How long a node may take to be ready, and to stop.
const NODE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the ledger of a running node.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// After the last receipt: copies and acknowledgements that are under way arrive.
const QUIET: Duration = Duration::from_millis(1500);

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub summary: Summary,
    /// What should not be: violations with their evidence, a ledger that does not verify, a node that did not end.
    pub complaints: Vec<String>,
    /// A person stopped it.
    pub interrupted: bool,
}

/// Everything that runs.
struct World {
    village: Village,
    settings: Settings,
    owner: DatabaseConnection,
    core: Core,
    core_link: Link,
    node: Node,
    terminals: Vec<Arc<Terminal>>,
    links: Vec<Link>,
    shared: Shared,
    /// When the first customer may come.
    opens: Instant,
    lives: Vec<JoinHandle<()>>,
    told: mpsc::Sender<Told>,
    hears: mpsc::Receiver<Told>,
    stop: watch::Sender<bool>,
    random: ChaCha8Rng,
    tally: Tally,
    watch: Watch,
}

/// What all terminals share.
#[derive(Debug, Default)]
struct Shared {
    /// Steps that are done.
    progress: Arc<AtomicUsize>,
    /// No further customer is let in.
    closed: Arc<AtomicBool>,
}

/// Runs a village once.
///
/// # Errors
/// When something of the sandbox itself fails; what the node does wrong is in the outcome.
pub async fn run(options: &Options, screen: &mut Screen) -> anyhow::Result<Outcome> {
    let mut world = World::open(options, screen).await?;
    let began = world.opens;
    let interrupted = world.work(options, screen).await?;
    let took = began.elapsed();
    screen.end();
    if interrupted {
        screen.line("closing: those who are served get their receipts; Ctrl-C again to leave at once");
        world.shared.closed.store(true, Ordering::Relaxed);
    }
    tokio::select! {
        settled = world.settle(options, screen) => settled?,
        _ = told_to_end() => return Ok(world.leave().await),
    }
    world.close(options, took, interrupted).await
}

/// Ctrl-C, or SIGTERM as a time limit sends it: either way the node is ended too, and not left behind on a database that
/// the next run takes.
async fn told_to_end() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminated) => _ = terminated.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

impl World {
    async fn open(options: &Options, screen: &Screen) -> anyhow::Result<Self> {
        let village = Village::new(options.seed, options.terminals);
        std::fs::create_dir_all(&options.folder).with_context(|| options.folder.display().to_string())?;
        let core = start_core(options, &village).await?;
        let core_link = Link::open(core.address(), Weather::default(), options.seed).await?;
        let settings = Settings::write(&Choice {
            folder: &options.folder,
            secrets: &options.secrets,
            base: options.node_config.as_deref(),
            database: &options.database,
            owner_database: &options.owner_database,
            log: options.log.as_deref(),
            dialect: &options.dialect,
            core: core_link.address(),
            tls: options.tls,
            hasty: options.death,
        })?;
        let (config, log) = (settings.config.clone(), settings.log.clone());
        let mut node = Node::new(options.node.clone(), config, settings.admin, log);
        screen.line("laying out the schema");
        node.command(&["migrate"]).await?;
        let owner = Database::connect(&options.owner_database).await.context("the database, as its owner")?;
        screen.line(&format!("enrolling {} terminals and {} cards", options.terminals, village.cards().count()));
        let database = store::Options { url: options.database.clone(), ..store::Options::default() };
        enrol(&village, &Store::connect(&database).await?, &owner, &settings.master).await?;
        screen.line(&format!("starting the node on {}; its log is {}", settings.listener, settings.log.display()));
        node.start()?;
        node.ready(NODE_PATIENCE).await?;
        let shared = Shared::default();
        let opens = Instant::now() + options.opening;
        let (terminals, links) = terminals(options, &village, &settings, &shared, opens).await?;
        let (told, hears) = mpsc::channel(4096);
        Ok(Self {
            village,
            settings,
            owner,
            core,
            core_link,
            node,
            terminals,
            links,
            shared,
            opens,
            lives: Vec::new(),
            told,
            hears,
            stop: watch::channel(false).0,
            random: ChaCha8Rng::seed_from_u64(options.seed),
            tally: Tally::default(),
            watch: Watch::default(),
        })
    }

    fn live(&self, terminal: &Arc<Terminal>) -> JoinHandle<()> {
        tokio::spawn(Arc::clone(terminal).live(self.told.clone(), self.stop.subscribe()))
    }

    fn done(&self) -> usize {
        self.shared.progress.load(Ordering::Relaxed)
    }

    /// The customers come; true when a person stopped it.
    async fn work(&mut self, options: &Options, screen: &mut Screen) -> anyhow::Result<bool> {
        self.lives = self.terminals.iter().map(|terminal| self.live(terminal)).collect();
        let total: usize = self.terminals.iter().map(|terminal| terminal.steps.len()).sum();
        let faults = if options.death { faults::schedule(faults::DEATH, total, options.seed) } else { Vec::new() };
        let mut faults = faults.into_iter().peekable();
        let mut looks = interval(BETWEEN_LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = (0, Instant::now());
        while self.done() < total {
            tokio::select! {
                told = self.hears.recv() => if let Some(told) = told {
                    screen.receipt(&told);
                },
                _ = looks.tick() => self.look(options, screen).await?,
                _ = told_to_end() => return Ok(true),
            }
            let done = self.done();
            screen.progress(done, options.transactions);
            if done > last.0 {
                last = (done, Instant::now());
            } else if last.1.elapsed() > options.patience {
                screen.line(&format!("nothing has happened for {:?}; giving up", options.patience));
                return Ok(false);
            }
            while let Some((_, fault)) = faults.next_if(|&(at, _)| at <= done) {
                self.inflict(fault, screen).await?;
            }
        }
        while let Ok(told) = self.hears.try_recv() {
            screen.receipt(&told);
        }
        Ok(false)
    }

    /// What is done now and then: the ledger is watched, and a node that ended by itself is started again, as systemd
    /// would.
    async fn look(&mut self, options: &Options, screen: &Screen) -> anyhow::Result<()> {
        if let Some(status) = self.node.ended()? {
            if !options.death {
                bail!("the node ended with {status}; its log is {}", self.settings.log.display());
            }
            screen.line(&format!("the node ended by itself with {status}; starting it again"));
            self.tally.escalations += 1;
            self.node.start()?;
            self.node.ready(NODE_PATIENCE).await?;
        }
        if options.transactions > 0 && options.death {
            self.watch.look(&self.owner).await?;
        }
        Ok(())
    }

    async fn inflict(&mut self, fault: Fault, screen: &Screen) -> anyhow::Result<()> {
        match fault {
            Fault::KillNode(pause) => {
                self.node.kill().await?;
                self.tally.kills += 1;
                screen.line(&format!("✝ node killed ({})", self.tally.kills));
                sleep(pause).await;
                self.node.start()?;
                self.node.ready(NODE_PATIENCE).await?;
            }
            Fault::Panic(actor) => {
                if self.panic(actor).await {
                    self.tally.panics += 1;
                    screen.line(&format!("✝ a {actor} actor panicked ({})", self.tally.panics));
                }
            }
            Fault::CutCore => {
                self.core_link.cut();
                self.tally.core_cuts += 1;
            }
            Fault::CutTerminals => {
                self.links.iter().for_each(Link::cut);
                self.tally.terminal_cuts += 1;
            }
            Fault::PowerLoss(percent) => {
                for at in 0..self.terminals.len() {
                    if self.random.random_ratio(percent.min(100), 100) {
                        self.lives[at].abort();
                        self.lives[at] = self.live(&self.terminals[at]);
                    }
                }
                self.tally.power_losses += 1;
            }
        }
        Ok(())
    }

    /// Makes one actor of this kind panic. Some of those that are asked for are not there at the moment.
    async fn panic(&mut self, actor: &str) -> bool {
        for _ in 0..20 {
            let key = match actor {
                "session" => {
                    let at = self.random.random_range(0..self.terminals.len());
                    self.terminals[at].id.to_string()
                }
                "bank" => self.village.core.to_string(),
                _ => String::new(),
            };
            if node::panic(self.settings.admin, actor, &key).await.unwrap_or(false) {
                return true;
            }
            sleep(Duration::from_millis(100)).await;
        }
        false
    }

    /// Waits until nothing is under way any more: no request, no open transaction, no copy, no acknowledgement.
    async fn settle(&mut self, options: &Options, screen: &Screen) -> anyhow::Result<()> {
        let until = Instant::now() + options.patience;
        while self.terminals.iter().any(|terminal| terminal.is_busy()) || records::open(&self.owner).await? > 0 {
            if Instant::now() > until {
                screen.line("there are transactions that do not come to their end");
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        sleep(if options.hold > QUIET { options.hold } else { QUIET }).await;
        Ok(())
    }

    /// Ends at once; nothing is compared.
    async fn leave(&mut self) -> Outcome {
        self.lives.iter().for_each(JoinHandle::abort);
        let complaints = self.node.stop(NODE_PATIENCE).await.err().map(|error| format!("{error:#}"));
        Outcome { summary: Summary::default(), complaints: complaints.into_iter().collect(), interrupted: true }
    }

    async fn close(mut self, options: &Options, took: Duration, interrupted: bool) -> anyhow::Result<Outcome> {
        let node_memory_bytes = self.node.memory_bytes();
        self.stop.send_replace(true);
        for life in std::mem::take(&mut self.lives) {
            drop(timeout(Duration::from_secs(5), life).await);
        }
        let ledger = self.node.command(&["ledger", "verify"]).await;
        let stopped = self.node.stop(NODE_PATIENCE).await;
        let terminals: Vec<&Terminal> = self.terminals.iter().map(|terminal| &**terminal).collect();
        Secrets::of(&self.village, &terminals, &self.settings.master)?
            .write(&options.secrets, &options.secrets_file())?;
        let records = Records::read(&self.owner).await?;
        let core = self.core.journal();
        let evidence = Evidence { terminals: &terminals, core: &core, records: &records, broken: options.death };
        let mut violations = auditor::audit(&evidence);
        violations.extend(self.watch.faults.iter().map(|fault| Violation { invariant: "I7", evidence: fault.clone() }));
        let times = options.folder.join("times.csv");
        std::fs::write(&times, summary::times(&terminals)).with_context(|| times.display().to_string())?;
        let summary = Summary::of(&terminals, &records, took, ledger.is_ok(), interrupted).with(Extra {
            seed: options.seed,
            bytes_up: self.links.iter().map(|link| link.counts().up_bytes.load(Ordering::Relaxed)).sum(),
            bytes_down: self.links.iter().map(|link| link.counts().down_bytes.load(Ordering::Relaxed)).sum(),
            link_cuts: self.links.iter().map(|link| link.counts().cuts.load(Ordering::Relaxed)).sum(),
            node_memory_bytes,
            ledger_looks: self.watch.looks,
            faults: options.death.then_some(self.tally),
        });
        let mut complaints = violations.iter().map(ToString::to_string).collect::<Vec<_>>();
        complaints.extend(ledger.err().map(|error| format!("{error:#}")));
        complaints.extend(stopped.err().map(|error| format!("{error:#}")));
        Ok(Outcome { summary, complaints, interrupted })
    }
}

async fn start_core(options: &Options, village: &Village) -> anyhow::Result<Core> {
    let text = std::fs::read_to_string(&options.dialect).with_context(|| options.dialect.display().to_string())?;
    let dialect = Dialect::parse(&text).with_context(|| options.dialect.display().to_string())?;
    let journal = options.folder.join("core.jsonl");
    if journal.exists() {
        std::fs::remove_file(&journal)?;
    }
    Core::start(core::Options {
        journal: Some(journal),
        accounts: village.cards().map(|card| (card.account().to_owned(), ACCOUNT_MINOR)).collect(),
        others_minor: None,
        behaviour: options.behaviour.clone(),
        seed: options.seed,
        ..core::Options::well_behaved(Arc::new(dialect))
    })
    .await
}

/// The terminals, and the links that they connect by where there is weather.
async fn terminals(
    options: &Options,
    village: &Village,
    settings: &Settings,
    shared: &Shared,
    opens: Instant,
) -> anyhow::Result<(Vec<Arc<Terminal>>, Vec<Link>)> {
    let transactions = if options.endless { options.terminals * STEPS_WITHOUT_END } else { options.transactions };
    let tls = settings.authority.clone().map(connector).transpose()?;
    let (mut terminals, mut links) = (Vec::new(), Vec::new());
    for (number, (enrolled, steps)) in
        village.terminals.iter().zip(plan(options.seed, options.terminals, transactions, options.mix)).enumerate()
    {
        let number = u64::try_from(number)?;
        let address = if options.linked || options.death {
            let link = Link::open(settings.listener, options.weather.clone(), options.seed ^ (number << 20)).await?;
            let address = link.address();
            links.push(link);
            address
        } else {
            settings.listener
        };
        terminals.push(Arc::new(Terminal {
            id: enrolled.id.clone(),
            password: enrolled.password.clone(),
            version: if number % 2 == 0 { Version::V311 } else { Version::V5 },
            pin_pad: Injected::new(initial_key(&village.bdk(), &enrolled.key_id), enrolled.key_id),
            cards: enrolled.cards.clone(),
            steps,
            server: Server { address, tls: tls.clone() },
            patience: options.terminal_patience(),
            opens,
            flash: Flash::default(),
            progress: Arc::clone(&shared.progress),
            closed: Arc::clone(&shared.closed),
        }));
    }
    Ok((terminals, links))
}

impl Options {
    /// One for each seed: what an earlier run left in the write-ahead log is looked for as well.
    fn secrets_file(&self) -> String {
        format!("village-{}.txt", self.seed)
    }

    fn terminal_patience(&self) -> Patience {
        let usual = Patience { customer: self.pause, ..Patience::default() };
        if !self.death {
            return usual;
        }
        // Where everything dies all the time, waiting is most of the run.
        Patience { stall: Duration::from_secs(5), repeat: Duration::from_secs(6), ..usual }
    }
}
