//! `wakala`: the command line, and the only file that chooses adapters.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use wakala::iso8583::Dialect;
use wakala_node::adapters::iso8583_tcp::Iso8583Tcp;
use wakala_node::adapters::kafka::KafkaLog;
use wakala_node::adapters::postgres_log::PostgresLog;
use wakala_node::adapters::soft_hsm::SoftHsm;
use wakala_node::banks;
use wakala_node::cli::{self, Output};
use wakala_node::clock::MonotonicClock;
use wakala_node::config::{Config, EXIT_CONFIG, LogFormat, LogKind, Logging};
use wakala_node::node::{self, Parts};
use wakala_node::ports::{BankLink, Custody, Log};
use wakala_node::store::Store;

/// A storm of reconnections takes and leaves thousands of small pieces: jemalloc gives them back (.cargo/config.toml).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Wakala, agency-banking switch: MQTT terminals on one side, a bank's core on the other, a ledger in between
///
/// One program on one server: the MQTT broker of the terminals, the PIN check, the way to the core banking system, the
/// ledger in Postgres and the receipts. Begin with `wakala check-config`, then `wakala migrate`, then `wakala run`.
#[derive(Debug, Parser)]
#[command(name = "wakala", version, propagate_version = true, max_term_width = 100)]
struct Wakala {
    /// The configuration; config/wakala.toml in the source shows every key. WAKALA_… variables go over it
    /// (WAKALA_NODE__NAME is node.name)
    #[arg(long, global = true, env = "WAKALA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// A key over the file and the variables, such as --set node.name=wakala-2
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node until it is told to stop (SIGTERM, SIGINT)
    ///
    /// SIGHUP has it read the files of TLS, the keys of tokens and the files of the hook again. The configuration itself is
    /// read at the start only.
    ///
    /// Exits 0 after a stop that was asked for, 78 when the configuration is wrong (starting again would not help), 70 when
    /// actors failed too often (starting again may).
    Run,
    /// Read the configuration and say everything that is wrong with it; exit 78 if anything is
    ///
    /// The files of TLS are read as well, the private key too: run it as the user that the node runs as.
    CheckConfig,
    /// Bring the database's schema up to date, as the role that owns it
    ///
    /// Running nodes of the previous version go on meanwhile. Needs database.owner_url.
    Migrate {
        /// Only say which steps are open; exit 1 if any is
        #[arg(long)]
        pending: bool,
    },
    /// Show a running node: the living tree of actors with restarts and the last panic
    Status,
    /// Who is connected, who was, and how each session stands
    #[command(subcommand)]
    Sessions(cli::sessions::Command),
    /// Send the node's clients to other nodes, a few in each second
    ///
    /// Before it is stopped, or with --down-to because it has more than its share. MQTT 5 clients hear 0x9C and the servers of
    /// listener.elsewhere; older ones find their connection closed and need a list of their own. Their sessions go on at any node.
    /// Whoever has nothing waiting here goes first, terminals with a transaction in flight last. It is the node at admin.address
    /// that is emptied; Ctrl-C does not end that, --call-off does.
    Evacuate(cli::evacuate::Arguments),
    /// Show what one client sends and is sent, as it happens
    ///
    /// Packets in both directions, with their names, identifiers, QoS, topics and reason codes. What may be card data, a PIN or
    /// a password is never shown: a payload is a number of bytes and a digest that tells payloads of this tap apart and is of
    /// no other use. A terminal's requests and receipts, and their PUBACKs, name the transaction that they are about. It waits
    /// for a client that is away, and goes on when it connects again; it sees the node at admin.address alone. A reader that is
    /// slow loses packets and is told how many; the client is never slowed. Who looked, at whom, when and why is recorded
    /// (audit.admin_actions). With --json one document a line: wakala tap T1 --for 10m --why "asks twice"
    ///
    /// With --keep nobody need read: the same is stored, at whatever node the client is and over all restarts, and the command
    /// returns at once with the trace's number: wakala tap T1 --keep --for 2h --why "asks twice, nobody knows when". To read it:
    /// wakala traces show; to end it: wakala traces stop.
    Tap(cli::tap::Arguments),
    /// What was kept of clients' packets, by trace (wakala tap --keep)
    ///
    /// A trace is begun with wakala tap CLIENT --keep. It goes on without whoever began it: over the client's reconnects, at
    /// whatever node, and over restarts of nodes, until its time is over, it is full, or it is stopped. What is stored is what
    /// wakala tap shows, so no payload, PIN, card or password, and with it the transaction that a packet is about. A trace is
    /// forgotten when it ended longer than tap.keep ago, or is among the oldest of more than tap.rows_max rows.
    #[command(subcommand)]
    Traces(cli::traces::Command),
    /// Who may connect
    #[command(subcommand)]
    Terminals(cli::terminals::Command),
    /// What terminals were told, by whom, and what became of it
    #[command(subcommand)]
    Told(cli::told::Command),
    /// Who is kept out: terminals, certificates, user names and networks
    #[command(subcommand)]
    Bans(cli::bans::Command),
    /// Look at one transaction
    #[command(subcommand)]
    Txn(cli::txn::Command),
    /// The books
    #[command(subcommand)]
    Ledger(cli::ledger::Command),
    /// Keys of the soft key store
    #[command(subcommand)]
    Keys(cli::keys::Command),
    /// The bank's cards
    #[command(subcommand)]
    Cards(cli::cards::Command),
}

fn main() -> ExitCode {
    let wakala = Wakala::parse();
    let config = match Config::load(wakala.config.as_deref(), &wakala.set) {
        Ok(config) => config.resolved(wakala.config.as_deref()),
        Err(error) => {
            tell(&error.to_string());
            return exit(EXIT_CONFIG);
        }
    };
    log_to(&config.logging);
    let system = actix_rt::System::new();
    match system.block_on(obey(wakala.command, config, wakala.output)) {
        Ok(code) => exit(code),
        Err(error) => {
            tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn obey(command: Command, config: Config, output: Output) -> anyhow::Result<i32> {
    match command {
        Command::Run => {
            let parts = parts(&config).await?;
            return node::run(config, parts).await;
        }
        Command::CheckConfig => {
            if let Err(error) = config.check_secret_files() {
                tell(&error.to_string());
                return Ok(EXIT_CONFIG);
            }
            output.print(|| "the configuration is right".to_owned(), &config.shown())?;
        }
        Command::Migrate { pending } => return migrate(pending, &config, output).await,
        Command::Status => cli::status::run(config.admin.address, output).await?,
        Command::Sessions(command) => cli::sessions::run(command, &config, &MonotonicClock::start(), output).await?,
        Command::Evacuate(arguments) => cli::evacuate::run(arguments, config.admin.address, output).await?,
        Command::Tap(arguments) => cli::tap::run(arguments, &config, &MonotonicClock::start(), output).await?,
        Command::Traces(command) => cli::traces::run(command, &config, &MonotonicClock::start(), output).await?,
        Command::Terminals(command) => cli::terminals::run(command, &config, &MonotonicClock::start(), output).await?,
        Command::Bans(command) => cli::bans::run(command, &config, &MonotonicClock::start(), output).await?,
        Command::Told(command) => cli::told::run(command, &config, output).await?,
        Command::Txn(command) => cli::txn::run(command, &config, output).await?,
        Command::Ledger(command) => return cli::ledger::run(command, &config, output).await,
        Command::Keys(command) => {
            let clock = MonotonicClock::start();
            cli::keys::run(command, &config.database, config.node.sandbox, &unlock(&config), &clock, output).await?;
        }
        Command::Cards(command) => {
            cli::cards::run(command, &config.database, config.node.sandbox, &unlock(&config), output).await?;
        }
    }
    Ok(0)
}

/// What stands behind the ports.
async fn parts(config: &Config) -> anyhow::Result<Parts> {
    let store = Store::connect(&config.database).await.context("database.url")?;
    let open = store.pending().await?;
    anyhow::ensure!(open.is_empty(), "the database's schema is not up to date: run `wakala migrate`");
    let clock = Arc::new(MonotonicClock::start());
    let log: Arc<dyn Log> = match config.log.kind {
        LogKind::Postgres => Arc::new(PostgresLog::open(store.clone(), &config.log.postgres, clock.clone()).await?),
        LogKind::Kafka => Arc::new(KafkaLog::open(&config.log.kafka).await?),
    };
    let hsm = Arc::new(SoftHsm::open(&store, &config.keys, config.node.sandbox).await?);
    let driver = Arc::new(|options: &banks::Options, dialect: &Dialect| {
        Arc::new(Iso8583Tcp::new(&options.address, dialect.framing.clone())) as Arc<dyn BankLink>
    });
    Ok(Parts { store, log, hsm, clock, driver })
}

/// Opens the key store, for the commands that work on it.
fn unlock(config: &Config) -> impl Fn() -> anyhow::Result<Box<dyn Custody>> {
    || Ok(Box::new(SoftHsm::unlock(&config.keys, config.node.sandbox)?))
}

async fn migrate(pending: bool, config: &Config, output: Output) -> anyhow::Result<i32> {
    let store = cli::owners_store(&config.database).await?;
    let open = store.pending().await?;
    if !pending {
        store.migrate().await?;
    }
    let done = if pending { "open" } else { "done" };
    let text = || match open.len() {
        0 => "the schema is up to date".to_owned(),
        n => format!("{}\n{n} steps {done}", open.join("\n")),
    };
    output.print(text, &serde_json::json!({ done: open }))?;
    Ok(i32::from(pending && !open.is_empty()))
}

fn log_to(logging: &Logging) {
    // What Postgres remarks while the schema is looked at is of no use to anybody.
    // ntex-mqtt logs whole packets at WARN, a CONNECT's password among them; sea-orm the database's address at DEBUG, its
    // password too.
    let filter = EnvFilter::new(format!("{},ntex_mqtt=error,sea_orm=warn,sqlx=warn", logging.filter));
    let colours = std::io::stderr().is_terminal();
    let to = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match logging.format {
        LogFormat::Text => to.init(),
        LogFormat::Json => to.json().init(),
    }
}

#[expect(clippy::print_stderr, reason = "the one place that speaks to whoever typed the command")]
fn tell(text: &str) {
    eprintln!("wakala: {text}");
}

fn exit(code: i32) -> ExitCode {
    u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
}
