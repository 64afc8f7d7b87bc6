//! `wakala-load`: the load under which MQTT brokers are measured. One process, one thread, one line of JSON.

mod links;
mod load;
mod packets;
mod process;
mod report;
mod table;
mod tls;
mod token;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::load::Setting;
use crate::report::Report;
use crate::tls::Tls;

/// The load under which MQTT brokers are measured, any of them, over MQTT 3.1.1
///
/// Connects to a broker that runs, on one thread (pin it: taskset -c 1 wakala-load …), and prints one line of JSON: the figure,
/// its unit, whether it is valid, and how much of a processor generator and broker had. With the generator at 1.0 the figure is the
/// generator's own. A figure is valid only if nothing was lost, dropped or refused that must not be; the exit code says so too.
///
///   wakala-load --port 1883 publish --clients 10 --in-flight 64
///   wakala-load --port 1883 --pid $(pidof mosquitto) requests
///   wakala-load --port 1883 latency --rate 900
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Where the broker listens, on 127.0.0.1
    #[arg(long, value_name = "N", default_value_t = 1883, global = true)]
    port: u16,
    /// What the broker is called in the line of JSON
    #[arg(long, value_name = "NAME", default_value = "", global = true)]
    broker: String,
    /// What the figure is called, where it is not just the load's name
    #[arg(long, value_name = "NAME", global = true)]
    figure: Option<String>,
    /// The broker's process; again, others that work for it. Their children count too
    #[arg(long, value_name = "PID", global = true)]
    pid: Vec<u32>,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 5.0, global = true)]
    seconds: f64,
    /// How long to go on before that
    #[arg(long, value_name = "S", default_value_t = 1.0, global = true)]
    warm_up: f64,
    /// How long the broker may leave anything without an answer
    #[arg(long, value_name = "S", default_value_t = 30.0, global = true)]
    patience: f64,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 256, global = true)]
    size: usize,
    /// Connect by TLS: the folder that `certificates` made
    #[arg(long, value_name = "FOLDER", global = true)]
    tls: Option<PathBuf>,
    /// Bear tokens (HS256) that this secret signs, in `storm`
    #[arg(long, value_name = "FILE", global = true)]
    token_secret: Option<PathBuf>,
    /// Show a client certificate
    #[arg(long, requires = "tls", global = true)]
    mutual: bool,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// QoS 1 publishes that nobody subscribes to: publishes per second
    Publish {
        #[arg(long, default_value_t = 10)]
        clients: usize,
        /// Publishes of each client that wait for their PUBACK
        #[arg(long, default_value_t = 64)]
        in_flight: u16,
    },
    /// Request on t/ID/req, response on t/ID/res, each terminal one at a time: round trips per second
    Requests {
        #[arg(long, default_value_t = 200)]
        terminals: usize,
    },
    /// The same at a fixed rate, each request when it is due, from when it was due: p99 in ms
    Latency {
        #[arg(long, default_value_t = 200)]
        terminals: usize,
        /// Round trips per second, of all terminals together
        #[arg(long, default_value_t = 900.0)]
        rate: f64,
    },
    /// Publishers to many subscribers, none ahead of the slowest by more than --in-flight: deliveries per second
    FanOut {
        #[arg(long, default_value_t = 4)]
        publishers: usize,
        #[arg(long, default_value_t = 25)]
        subscribers: usize,
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
        qos: u8,
        #[arg(long, default_value_t = 64)]
        in_flight: u16,
    },
    /// Come, subscribe, go: clients per second
    Connects {
        /// Clients under way at any time
        #[arg(long, default_value_t = 64)]
        at_once: usize,
        /// Sessions stay, and each client is a new one
        #[arg(long)]
        persistent: bool,
    },
    /// Idle connections with one subscription each: resident bytes of each of them
    Memory {
        #[arg(long, default_value_t = 5000)]
        connections: usize,
    },
    /// Sessions that are stored and whose terminals are away: resident bytes of each of them
    Away {
        #[arg(long, default_value_t = 10_000)]
        sessions: usize,
    },
    /// Terminals with stored sessions, cut in one moment, back in the next: seconds until the last CONNACK
    Storm {
        #[arg(long, default_value_t = 10_000)]
        terminals: usize,
        /// How long the round trips of another terminal are measured before
        #[arg(long, value_name = "S", default_value_t = 3.0)]
        calm: f64,
    },
    /// Queue messages for a subscriber that is away, and kill the broker (--pid) in the middle of it: queued per second
    QueueFill {
        #[arg(long, default_value_t = 10)]
        clients: usize,
        #[arg(long, default_value_t = 64)]
        in_flight: u16,
        /// Where to write what was acknowledged
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
    },
    /// Then, with the broker back: how many of the acknowledged are lost
    QueueDrain {
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
        /// The queue is empty when nothing has come for so long
        #[arg(long, value_name = "S", default_value_t = 3.0)]
        quiet: f64,
    },
    /// Read lines of JSON of many runs and print one table: medians, and ratios to the first broker
    Table {
        /// Only rates, and each as what was done for a second of the broker's and its helpers' processor time
        #[arg(long)]
        per_core: bool,
    },
    /// Make an authority, a server for 127.0.0.1 and a client, for --tls
    Certificates { folder: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (options, load) = (&arguments.options, &arguments.load);
    let name = options.figure.as_deref().unwrap_or_else(|| load.name());
    match run(options, load) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(report)) => {
            drop(writeln!(std::io::stdout(), "{}", report.line(name, &options.broker)));
            if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "wakala-load: {error:#}"));
            let report = Report::failed(&error);
            drop(writeln!(std::io::stdout(), "{}", report.line(name, &options.broker)));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options, load: &Load) -> Result<Option<Report>> {
    match load {
        Load::Certificates { folder } => {
            tls::write_certificates(folder)?;
            return Ok(None);
        }
        &Load::Table { per_core } => {
            let lines = std::io::read_to_string(std::io::stdin()).context("standard input")?;
            std::io::stdout().write_all(table::table(&lines, per_core)?.as_bytes()).context("standard output")?;
            return Ok(None);
        }
        _ => {}
    }
    // A connection is a file.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).context("the limit of open files")?;
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).context("a time");
    let setting = Setting {
        target: SocketAddr::from(([127, 0, 0, 1], options.port)),
        tls: options.tls.as_deref().map(|folder| Tls::new(folder, options.mutual)).transpose()?,
        secret: options.token_secret.as_deref().map(token::read_secret).transpose()?,
        pids: options.pid.clone(),
        warm_up: seconds(options.warm_up)?,
        measured: seconds(options.seconds)?,
        patience: seconds(options.patience)?,
        size: options.size,
    };
    let report = match load {
        &Load::Publish { clients, in_flight } => load::publish::run(&setting, clients, in_flight)?,
        &Load::Requests { terminals } => load::requests::run(&setting, terminals, None)?,
        &Load::Latency { terminals, rate } => load::requests::run(&setting, terminals, Some(rate))?,
        &Load::FanOut { publishers, subscribers, qos, in_flight } => {
            load::fan_out::run(&setting, publishers, subscribers, qos, in_flight)?
        }
        &Load::Connects { at_once, persistent } => load::connects::run(&setting, at_once, persistent)?,
        &Load::Memory { connections } => load::memory::connected(&setting, connections)?,
        &Load::Away { sessions } => load::memory::away(&setting, sessions)?,
        &Load::Storm { terminals, calm } => load::storm::run(&setting, terminals, seconds(calm)?)?,
        Load::QueueFill { clients, in_flight, state } => load::queue::fill(&setting, *clients, *in_flight, state)?,
        Load::QueueDrain { state, quiet } => load::queue::drain(&setting, state, seconds(*quiet)?)?,
        Load::Table { .. } | Load::Certificates { .. } => return Ok(None),
    };
    Ok(Some(report))
}

impl Load {
    fn name(&self) -> &'static str {
        match self {
            Self::Publish { .. } => "publish",
            Self::Requests { .. } => "requests",
            Self::Latency { .. } => "latency",
            Self::FanOut { .. } => "fan-out",
            Self::Connects { .. } => "connects",
            Self::Memory { .. } => "memory",
            Self::Away { .. } => "away",
            Self::Storm { .. } => "storm",
            Self::QueueFill { .. } => "queue-fill",
            Self::QueueDrain { .. } => "queue-drain",
            Self::Table { .. } => "table",
            Self::Certificates { .. } => "certificates",
        }
    }
}
