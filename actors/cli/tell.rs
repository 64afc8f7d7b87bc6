//! `wakala terminals tell`: a message for a terminal, in the queue of its receipts.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use uuid::Uuid;
use wakala::id::TerminalId;
use wakala::session::{messages_topic, payload_bytes_max};

use super::sessions::whoami;
use super::{Output, rfc3339};
use crate::config::Config;
use crate::ports::Clock;
use crate::store::Store;
use crate::store::messages::{Class, Message, Place, Queueing};
use crate::store::told::Asked;
use crate::telling::{key, lifetime};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Who is told
    terminal: TerminalId,
    /// What, as it goes out
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// What, as the bytes of a file; - for standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// 1: kept until the terminal acknowledges it; 0: sent once, to a terminal that is connected
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    qos: u8,
    /// What is done when there is too much of it: message, one that would be too many is refused; configuration, it takes the
    /// place of the one before it; news, the oldest goes
    #[arg(long, default_value = "message", value_parser = |text: &str| text.parse::<Class>())]
    class: Class,
    /// Not sent any more after this time, such as 90s, 2h or 3days; without, it waits for as long as the session lives
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires: Option<Duration>,
    /// Of one who may type this again, because nobody knows whether it was done: under the same key it is the same message
    #[arg(long, value_parser = key)]
    key: Option<String>,
}

/// # Errors
/// When the database is away, or nothing was queued.
pub async fn run(
    arguments: Arguments,
    store: &Store,
    config: &Config,
    clock: &dyn Clock,
    output: Output,
) -> anyhow::Result<()> {
    let Arguments { terminal, text, file, qos, class, expires, key } = arguments;
    let topic = messages_topic(&(&terminal).into());
    let bytes_max = payload_bytes_max(topic.clone(), config.sessions.packet_bytes_max);
    let payload = match file {
        Some(file) => read(&file, bytes_max)?,
        None => text.unwrap_or_default().into_bytes(),
    };
    ensure!(
        payload.len() <= usize::try_from(bytes_max).unwrap_or(usize::MAX),
        "a message to {terminal} has at most {bytes_max} bytes (sessions.packet_bytes_max); nothing was queued"
    );
    let (bytes, at) = (payload.len(), clock.now());
    let expires_at = expires.map(|after| at + after);
    // No token has a name with a space in it.
    let asked = Asked { id: Uuid::now_v7(), by: format!("operator {}", whoami()), key };
    let id = asked.id;
    let message = Message { terminal: terminal.clone(), class, kept: qos > 0, payload, expires_at, at, asked };
    let limits = config.telling.limits(&config.sessions);
    let place = match store.queue_message(message, limits).await? {
        Queueing::Queued(place) => place,
        Queueing::NotEnrolled => bail!("there is no terminal {terminal}; wakala terminals list"),
        Queueing::NotConnected => {
            bail!("{terminal} is not connected, and at QoS 0 nothing is kept; --qos 1 waits for it")
        }
        Queueing::NoSession => bail!(
            "{terminal} is not connected and has left no session, which alone could keep a message; nothing was queued. \
             It has one once it has connected with a persistent session"
        ),
        Queueing::Full(waiting) => {
            bail!("{waiting} messages wait for {terminal} already (sessions.messages_max); nothing was queued")
        }
        Queueing::TooOften(per_hour, wait) => {
            let wait = humantime::format_duration(Duration::from_secs(wait.as_secs() + 1));
            bail!(
                "{terminal} was told {per_hour} of this class within the hour (telling.*_per_hour); one more in {wait}"
            )
        }
        Queueing::KeyTaken(id) => bail!("under this key something else was told, as {id}; nothing was queued"),
        Queueing::Again(id) => {
            let text = || format!("{terminal}: told before under this key, as {id}; nothing was queued");
            return output.print(text, &json!({ "terminal": terminal, "id": id, "repeated": true }));
        }
    };
    // Whoever holds its connection finds the row by itself; this spares the wait.
    let woken = place.connected && super::status::wake(config.admin.address, terminal.as_str()).await;
    let value = json!({
        "terminal": terminal, "id": id, "repeated": false, "topic": &*topic, "qos": qos, "bytes": bytes, "seq": place.seq,
        "waiting": place.waiting, "connected": place.connected, "connected_here": woken,
        "persistent": place.persistent, "dropped": place.dropped, "expires_at": expires_at.map(rfc3339),
    });
    output.print(|| sentence(&terminal, place, woken), &value)
}

fn sentence(terminal: &TerminalId, place: Place, woken: bool) -> String {
    let where_it_is = match (place.connected, woken) {
        (true, true) => "it is connected",
        (true, false) => "it is connected, to another node",
        (false, _) => "it is not connected",
    };
    let ends = if place.persistent { "" } else { "; the message ends with its connection: the session is a clean one" };
    let went = match place.dropped {
        0 => String::new(),
        1 => "; an older one went for it".to_owned(),
        more => format!("; {more} older ones went for it"),
    };
    format!("{terminal}: queued, {} in its queue with this one; {where_it_is}{went}{ends}", place.waiting)
}

/// No more than one byte above what may be.
fn read(file: &Path, bytes_max: u32) -> anyhow::Result<Vec<u8>> {
    let mut payload = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(u64::from(bytes_max) + 1).read_to_end(&mut payload)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(u64::from(bytes_max) + 1).read_to_end(&mut payload))
    };
    read.with_context(|| file.display().to_string())?;
    Ok(payload)
}
