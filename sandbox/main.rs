//! `wakala-sandbox`: a village to try Wakala in.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};
use wakala::id::{PartitionNo, TerminalId};
use wakala_node::adapters::kafka::{self, KafkaLog};
use wakala_node::ports::Log as _;
use wakala_sandbox::core::{self, behaviour::Behaviour};
use wakala_sandbox::link::Weather;
use wakala_sandbox::plan::Mix;
use wakala_sandbox::screen::Screen;
use wakala_sandbox::secrets::{self, Search, Secrets};
use wakala_sandbox::world::{self, Options};

/// A village to try Wakala in: simulated terminals, a simulated bank core, links that delay, cut and lose
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node, a core and terminals, and compare in the end what all of them remember
    ///
    /// The database must be empty: key counters and sessions belong to one village. Receipts and progress go to standard
    /// error. With --once standard output is one line of JSON, and the exit code is 0 only if no request was lost, every
    /// receipt is there and says what it must, the ledger verifies, and core, ledger and receipts agree.
    Run(Box<Run>),
    /// Look for the secrets of all runs in what was written; exit 1 if one is found
    ///
    /// Account numbers, PINs, PIN blocks and keys, in clear, packed, as hexadecimal. A hit is told by file, offset and kind on
    /// standard error, never itself. Standard output is one line of JSON. scripts/secrets does the rest.
    Scan(Scan),
    /// Plant secrets that nobody has, for scan --planted: a search that cannot find says nothing
    Plant(Plant),
    /// Run a simulated core alone, for terminals and nodes of others
    Core(core::Arguments),
}

#[derive(Debug, clap::Args)]
struct Scan {
    /// Files, and folders with all that is in them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Where runs have written what is secret about them
    #[arg(long, value_name = "FOLDER", default_value = "var/secrets")]
    secrets: PathBuf,
    /// Not these
    #[arg(long, value_name = "PATH")]
    skip: Vec<PathBuf>,
    /// The secrets were planted: exit 0 only if each path has every form of every one
    #[arg(long)]
    planted: bool,
}

#[derive(Debug, clap::Args)]
struct Plant {
    /// Where to write what was planted
    #[arg(long, value_name = "FOLDER")]
    secrets: PathBuf,
    /// Into a file
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Into a table of its own
    #[arg(long, value_name = "URL")]
    database: String,
    /// Into a topic of its own: the brokers
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// The database as the role wakala_service
    #[arg(long, value_name = "URL")]
    database: String,
    /// The same database as the role wakala_owner: lays out the schema, and reads for the auditor
    #[arg(long, value_name = "URL")]
    owner_database: String,
    /// Configuration to begin with; addresses, keys and the core are set by the sandbox
    #[arg(long, value_name = "FILE")]
    node_config: Option<PathBuf>,
    /// The program `wakala`; by default the one beside this one
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
    /// How the core speaks ISO 8583
    #[arg(long, value_name = "FILE", default_value = "config/banks/sandbox.toml")]
    dialect: PathBuf,
    /// Where configuration, keys, the node's log, the core's journal and what each transaction took (times.csv) go
    #[arg(long, value_name = "FOLDER", default_value = "var/sandbox")]
    folder: PathBuf,
    /// Where what is secret goes: the master key, and a list for scan
    #[arg(long, value_name = "FOLDER", default_value = "var/secrets")]
    secrets: PathBuf,
    #[arg(long, value_name = "N", default_value_t = 10)]
    terminals: usize,
    /// How many customers come, with --once
    #[arg(long, value_name = "N", default_value_t = 100)]
    transactions: usize,
    /// Everybody, what they want and what breaks follow from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Which log the node keeps
    #[arg(long, value_enum)]
    log: Option<LogKind>,
    /// `death`: the node is killed, actors panic, links are cut, terminals lose their power
    #[arg(long, value_enum, default_value_t = Faults::None)]
    faults: Faults,
    /// Terminals connect by TLS
    #[arg(long)]
    tls: bool,
    /// What lies between terminals and node
    #[arg(long, value_enum)]
    link: Option<LinkKind>,
    /// The longest pause between two customers at one terminal; 3s where there is no end, 0s with --once
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pause: Option<Duration>,
    /// The terminals have so long to connect before the first customer comes and the clock runs
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    opening: Duration,
    /// Keep everything as it is for so long before the end
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    hold: Duration,
    /// Give up when nothing happens for so long
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Every customer withdraws and does it right, for whoever measures
    #[arg(long)]
    only_withdrawals: bool,
    /// Do not show each receipt
    #[arg(long)]
    quiet: bool,
    /// End after --transactions, with one line of JSON; otherwise go on until Ctrl-C
    #[arg(long)]
    once: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogKind {
    Postgres,
    Kafka,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Faults {
    None,
    Death,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LinkKind {
    /// Straight, and counted
    None,
    /// 600 to 1,500 ms there and back, 20 kbit/s, cut every 30 to 120 s, now and then one way only
    #[value(name = "2g")]
    TwoG,
    /// Cut all the time, at any byte
    Cut,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let done = match Arguments::parse().command {
        Command::Run(run) => village(&run).await,
        Command::Scan(scan) => search(&scan),
        Command::Plant(plant) => planted(&plant).await.map(|()| ExitCode::SUCCESS),
        Command::Core(arguments) => core::run(arguments).await.map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        drop(writeln!(std::io::stderr(), "wakala-sandbox: {error:#}"));
        ExitCode::FAILURE
    })
}

async fn village(run: &Run) -> anyhow::Result<ExitCode> {
    let options = run.options()?;
    let mut screen = Screen::new(if run.once { run.transactions } else { 0 }, !run.quiet);
    let outcome = world::run(&options, &mut screen).await?;
    for complaint in &outcome.complaints {
        screen.line(&format!("✗ {complaint}"));
    }
    let line = serde_json::to_string(&outcome.summary)?;
    if !run.once || outcome.interrupted {
        screen.line(&line);
        // 130: ended by SIGINT, where the end was not the plan.
        return Ok(if run.once { ExitCode::from(130) } else { ExitCode::SUCCESS });
    }
    writeln!(std::io::stdout(), "{line}").context("standard output")?;
    let sound = outcome.complaints.is_empty() && outcome.summary.lost == 0;
    if !sound {
        screen.line(&format!("not sound; the same again: --seed {}", run.seed));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Hits that are told one by one; the rest are counted.
const TOLD_MAX: usize = 100;

fn search(scan: &Scan) -> anyhow::Result<ExitCode> {
    let mut search = Search::new(&Secrets::read(&scan.secrets)?, &scan.skip)?;
    let mut lines = 0;
    for path in &scan.paths {
        search.path(path, &mut |line| {
            lines += 1;
            if !scan.planted && lines <= TOLD_MAX {
                drop(writeln!(std::io::stderr(), "SECRET {line}"));
            }
        })?;
    }
    let missed = if scan.planted { search.missed() } else { Vec::new() };
    for line in &missed {
        drop(writeln!(std::io::stderr(), "NOT FOUND {line}"));
    }
    let report = search.report();
    anyhow::ensure!(report.bytes > 0, "there was nothing to search");
    writeln!(std::io::stdout(), "{}", serde_json::to_string(report)?).context("standard output")?;
    let sound = if scan.planted { missed.is_empty() } else { report.hits == 0 };
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn planted(plant: &Plant) -> anyhow::Result<()> {
    let secrets = secrets::planted();
    secrets.write(&plant.secrets, "planted.txt")?;
    let forms = secrets.forms();
    std::fs::write(&plant.file, forms.join(&b"\n"[..])).with_context(|| plant.file.display().to_string())?;
    let database = Database::connect(&plant.database).await.context("the database")?;
    database.execute_unprepared("create table planted (bytes bytea primary key, text text)").await?;
    for form in &forms {
        let text = String::from_utf8(form.clone()).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let values = [form.clone().into(), text.into()];
        let sql = "insert into planted values ($1, $2)";
        database.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
    }
    database.execute_unprepared("checkpoint").await?;
    if let Some(brokers) = &plant.kafka {
        let topic = format!("wakala.planted.{}", std::process::id());
        let (replication_factor, min_insync_replicas) = (1, 1);
        let options = kafka::Options {
            brokers: brokers.clone(),
            topic,
            replication_factor,
            min_insync_replicas,
            ..Default::default()
        };
        let log = KafkaLog::open(&options).await?;
        for form in forms {
            log.append(PartitionNo(0), &TerminalId::new("T1")?, form).await?;
        }
    }
    Ok(())
}

impl Run {
    fn options(&self) -> anyhow::Result<Options> {
        let node = match &self.node {
            Some(node) => node.clone(),
            None => std::env::current_exe()?.with_file_name("wakala"),
        };
        anyhow::ensure!(node.is_file(), "there is no {}: cargo build -p wakala-node", node.display());
        let death = self.faults == Faults::Death;
        let weather = match self.link {
            None | Some(LinkKind::None) => "none",
            Some(LinkKind::TwoG) => "2g",
            Some(LinkKind::Cut) => "cut",
        };
        let behaviour = if death { "rough" } else { "none" };
        let pause = if self.once { Duration::ZERO } else { Duration::from_secs(3) };
        Ok(Options {
            node,
            node_config: self.node_config.clone(),
            dialect: self.dialect.clone(),
            folder: self.folder.clone(),
            secrets: self.secrets.clone(),
            database: self.database.clone(),
            owner_database: self.owner_database.clone(),
            log: self.log.and_then(|log| log.to_possible_value()).map(|log| log.get_name().to_owned()),
            terminals: if self.transactions == 0 { self.terminals } else { self.terminals.max(1) },
            transactions: self.transactions,
            endless: !self.once,
            opening: self.opening,
            hold: self.hold,
            mix: if self.only_withdrawals { Mix::Withdrawals } else { Mix::Everybody },
            seed: self.seed,
            linked: self.link.is_some(),
            weather: Weather::named(weather).context("a weather of this name")?,
            tls: self.tls,
            death,
            behaviour: Behaviour::named(behaviour).context("a behaviour of this name")?,
            pause: self.pause.unwrap_or(pause),
            patience: self.patience,
        })
    }
}
