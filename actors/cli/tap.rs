//! `wakala tap`: what one client sends and is sent, as it happens, or kept to be read later.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use wakala::id::ClientId;

use super::Output;
use super::sessions::whoami;
use super::traces::Asked;
use crate::config::Config;
use crate::ports::Clock;
use crate::tap::Line;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Its client identifier; a terminal's name
    client: String,
    /// Store what it shows, and return at once: read it later with `wakala traces show`, also what this ssh link did not live to see
    #[arg(long)]
    keep: bool,
    /// How long, such as 90s or 10m; no longer than tap.for_max, and with --keep than tap.trace_for_max
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// At most so many packets; no more than tap.packets_max, and with --keep than tap.trace_rows_max
    #[arg(long)]
    packets: Option<u64>,
    /// Recorded, for whoever asks later
    #[arg(long, default_value = "not said", value_parser = super::terminals::reason)]
    why: String,
}

/// A line that is longer is no line of ours.
const LINE_MAX: usize = 1024 * 1024;

/// # Errors
/// When no node answers, or it refuses, or goes away; with --keep, when the database is away or there are too many traces.
pub async fn run(arguments: Arguments, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let client = ClientId::new(&arguments.client)?;
    let Arguments { keep, lasts, packets, why, .. } = arguments;
    let asked = Asked { client, why, lasts, packets };
    if keep {
        super::traces::begin(asked, config, clock, output).await
    } else {
        live(asked, config.admin.address, output).await
    }
}

async fn live(asked: Asked, admin: SocketAddr, output: Output) -> anyhow::Result<()> {
    let Asked { client, why, lasts, packets } = asked;
    // What it lasts is the node's to end.
    let http = awc::Client::builder().disable_timeout().finish();
    let (seconds, packets) = (lasts.as_secs().max(1).to_string(), packets.map(|n| n.to_string()));
    let who = whoami();
    let mut query = vec![("client", client.as_str()), ("who", &who), ("why", &why), ("seconds", &seconds)];
    query.extend(packets.as_deref().map(|packets| ("packets", packets)));
    let asked = http.get(format!("http://{admin}/tap")).query(&query).context("the query")?;
    let sent = asked.insert_header((crate::admin::ASKED_BY, "tap")).send().await;
    let mut answer = sent.map_err(|error| {
        anyhow::anyhow!("no node answers at {admin} ({error}); is it running, and is admin.address the same?")
    })?;
    if !answer.status().is_success() {
        let why = answer.body().await.unwrap_or_default();
        bail!("the node does not show it: {}", String::from_utf8_lossy(&why).trim());
    }
    let mut unread = Vec::new();
    while let Some(chunk) = answer.next().await {
        unread.extend_from_slice(&chunk.map_err(|error| anyhow::anyhow!("the node went away: {error}"))?);
        while let Some(end) = unread.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if !tell(line.trim_ascii(), output)? {
                return Ok(());
            }
        }
        anyhow::ensure!(unread.len() <= LINE_MAX, "what answers at {admin} is no node of Wakala");
    }
    Ok(())
}

/// False when nobody reads any more.
fn tell(line: &[u8], output: Output) -> anyhow::Result<bool> {
    // So that the node sees that somebody is there.
    if line.is_empty() {
        return Ok(true);
    }
    let line: Line = serde_json::from_slice(line).context("a line of the tap")?;
    let text = if output.json { serde_json::to_string(&line)? } else { line.to_string() };
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        done => Ok(done.map(|()| true)?),
    }
}
