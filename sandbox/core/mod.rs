//! A bank's core banking system, simulated: it speaks ISO 8583 in any dialect, keeps accounts, and misbehaves when told.
//!
//! Whatever it does to money goes into its journal before it answers, so the journal is the witness of a run: what the
//! switch believes is compared with what the core did. Like a sound core, it books a request once however often it comes,
//! takes back a booking once, and declines a request whose reversal came first.

/// What it does wrong, by seed or by script.
pub mod behaviour;
/// The accounts: a message in, an answer and journal lines out.
pub mod book;
/// The witness.
pub mod journal;
mod links;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use wakala::iso8583::Dialect;

use behaviour::{Behaviour, Temper};
use book::Book;
use journal::{Entry, Journal};
use links::Links;

/// How a core is set up.
#[derive(Debug)]
pub struct Options {
    pub dialect: Arc<Dialect>,
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the journal is written; it must not hold anything yet. It is kept in memory too.
    pub journal: Option<PathBuf>,
    /// What the accounts hold at first, in minor units, by PAN.
    pub accounts: BTreeMap<String, i64>,
    /// What any other PAN's account holds at first; `None`: there is no such card.
    pub others_minor: Option<i64>,
    pub behaviour: Behaviour,
    pub seed: u64,
}

impl Options {
    /// A core that behaves, on a free port, and knows every card.
    #[must_use]
    pub fn well_behaved(dialect: Arc<Dialect>) -> Self {
        Self {
            dialect,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            journal: None,
            accounts: BTreeMap::new(),
            others_minor: Some(1_000_000_000),
            behaviour: Behaviour::default(),
            seed: 1,
        }
    }
}

/// A core that runs. It ends when dropped.
#[derive(Debug)]
pub struct Core {
    address: SocketAddr,
    inside: Arc<Inside>,
    listening: JoinHandle<()>,
}

/// What its links share.
#[derive(Debug)]
struct Inside {
    dialect: Arc<Dialect>,
    state: Mutex<State>,
    links: Links,
}

#[derive(Debug)]
struct State {
    book: Book,
    journal: Journal,
    temper: Temper,
    /// Messages about the link: sign-ons, echoes, sign-offs.
    network: BTreeMap<String, usize>,
}

impl Inside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// # Errors
    /// When it cannot listen there, or its journal cannot be begun.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let journal = Journal::begin(options.journal.as_deref())?;
        let listener = TcpListener::bind(options.listen).await.with_context(|| options.listen.to_string())?;
        let address = listener.local_addr()?;
        let inside = Arc::new(Inside {
            dialect: options.dialect,
            state: Mutex::new(State {
                book: Book::new(options.accounts, options.others_minor),
                journal,
                temper: Temper::new(options.behaviour, options.seed),
                network: BTreeMap::new(),
            }),
            links: Links::default(),
        });
        let listening = tokio::spawn(links::listen(listener, Arc::clone(&inside)));
        Ok(Self { address, inside, listening })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All that it did, in order.
    #[must_use]
    pub fn journal(&self) -> Vec<Entry> {
        self.inside.state().journal.entries().to_vec()
    }

    /// How many messages about the link came, by DE70.
    #[must_use]
    pub fn network(&self) -> BTreeMap<String, usize> {
        self.inside.state().network.clone()
    }

    /// Behaves like this from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.inside.state().temper.become_like(behaviour);
    }

    /// How many links are up.
    #[must_use]
    pub fn links(&self) -> usize {
        self.inside.links.len()
    }

    /// Closes every link; new ones are taken.
    pub fn cut(&self) {
        self.inside.links.cut();
    }

    /// Closes every link and takes no more. The journal is whole.
    pub fn stop(self) -> Vec<Entry> {
        self.journal()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.listening.abort();
        self.inside.links.cut();
    }
}

/// `wakala-sandbox core`
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The dialect it speaks, such as config/banks/sandbox.toml
    #[arg(long, default_value = "config/banks/sandbox.toml")]
    pub dialect: PathBuf,
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:8583")]
    pub listen: SocketAddr,
    /// Where it writes what it does, a JSON object a line; the file must not hold anything yet
    #[arg(long)]
    pub journal: Option<PathBuf>,
    /// What each card's account holds at first, in minor units
    #[arg(long, default_value_t = 5_000_000_000)]
    pub balance: i64,
    /// How it behaves: none, slow, rough
    #[arg(long, default_value = "none")]
    pub behaviour: String,
    /// Its lots are drawn by this
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs a core until it is stopped from outside.
///
/// # Errors
/// When the dialect is none, or it cannot listen.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let core = Core::start(arguments.options()?).await?;
    tracing::info!(address = %core.address(), "the core listens");
    std::future::pending::<()>().await;
    drop(core);
    Ok(())
}

impl Arguments {
    /// # Errors
    /// When the dialect is none, or no behaviour has this name.
    pub fn options(&self) -> anyhow::Result<Options> {
        let name = || self.dialect.display().to_string();
        let dialect = Dialect::parse(&std::fs::read_to_string(&self.dialect).with_context(name)?).with_context(name)?;
        let behaviour = Behaviour::named(&self.behaviour).with_context(|| {
            format!("no behaviour is called {:?}; right would be none, slow or rough", self.behaviour)
        })?;
        Ok(Options {
            listen: self.listen,
            journal: self.journal.clone(),
            others_minor: Some(self.balance),
            behaviour,
            seed: self.seed,
            ..Options::well_behaved(Arc::new(dialect))
        })
    }
}
