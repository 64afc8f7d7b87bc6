//! `wakala bans`: who is kept out.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};
use wakala::ban::Subject;
use wakala::time::Time;

use super::terminals::{fingerprint, reason};
use super::{Output, rfc3339, table};
use crate::config::Config;
use crate::ports::Clock;
use crate::store::bans::{Banned, Banning, NewBan, Whom};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Keep somebody out, for a time or for ever, and end his connections
    ///
    /// Connections are ended at once on the node that runs here, and within sessions.blocked_every on the others. Who is
    /// banned hears so in CONNACK (MQTT 5: 0x8A, 3.1.1: 5); connections from a network that is banned are closed before
    /// anything is read from them.
    Add {
        #[command(flatten)]
        who: Who,
        /// Stored with the ban, for whoever asks later
        #[arg(long, value_parser = reason)]
        why: String,
        /// For how long, such as 90m, 2h or 30days; without it for ever
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        lasts: Option<Duration>,
        #[command(flatten)]
        by: By,
    },
    /// Let somebody in again: lift one ban by its number, or all that name somebody. The rows stay
    Lift {
        /// The ban's number
        #[arg(value_name = "BAN")]
        ban: Option<i64>,
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        by: By,
    },
    /// Show the bans that are in force, the newest first
    List {
        /// Those that were lifted or are over as well
        #[arg(long)]
        all: bool,
        /// Only those before this number
        #[arg(long)]
        before: Option<i64>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Show one ban
    Show {
        /// Its number
        ban: i64,
    },
}

/// One of these.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Who {
    /// A terminal's name, or any client identifier
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// A user name, whatever the client identifier
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A client certificate: a file in PEM, or its SHA-256 in hexadecimal digits
    #[arg(long, value_name = "FILE|SHA-256")]
    certificate: Option<String>,
    /// An address or a network: 10.1.2.3, 10.1.0.0/16, 2001:db8::/32
    #[arg(long, value_name = "ADDRESS")]
    network: Option<String>,
}

/// Who does it.
#[derive(Debug, clap::Args)]
pub struct By {
    /// Who does it, for auditors; without it the user of this shell
    #[arg(long, value_name = "NAME", value_parser = reason)]
    by: Option<String>,
}

impl By {
    fn name(self) -> String {
        self.by.unwrap_or_else(operator)
    }
}

/// The user who typed the command.
pub(super) fn operator() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    named.and_then(|name| reason(&name).ok()).unwrap_or_else(|| "unknown".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(lasts) if lasts >= Duration::from_secs(1) => Ok(lasts),
        Ok(_) => Err("it must last at least a second".to_owned()),
        Err(error) => Err(format!("{error}; right would be 90m, 2h or 30days")),
    }
}

impl Who {
    fn subject(self) -> anyhow::Result<Option<Subject>> {
        let named = [("client", self.client), ("user", self.user), ("network", self.network)];
        if let Some((kind, text)) = named.into_iter().find_map(|(kind, text)| Some((kind, text?))) {
            return Ok(Some(Subject::new(kind, &text)?));
        }
        let Some(certificate) = self.certificate else { return Ok(None) };
        let named = Subject::new("certificate", &certificate);
        Ok(Some(match named {
            Ok(subject) => subject,
            Err(_) => Subject::Certificate(fingerprint(Path::new(&certificate))?),
        }))
    }
}

const WHOM: &str = "--client NAME, --user NAME, --certificate FILE or --network ADDRESS";

/// # Errors
/// When the database is away, nobody is named, or there is no such ban.
pub async fn run(command: Command, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let (store, now) = (super::store(&config.database).await?, clock.now());
    match command {
        Command::Add { who, why, lasts, by } => {
            let Some(subject) = who.subject()? else { bail!("whom? {WHOM}") };
            let until = lasts.map(|lasts| now + lasts);
            let ban = NewBan { subject: subject.clone(), why, by: by.name(), since: now, until };
            let max = config.sessions.bounds.bans_max;
            let Banning::Done(id) = store.ban(ban, max).await? else {
                bail!(
                    "{max} bans are in force already (sessions.bounds.bans_max): lift some, or ban a network for many"
                );
            };
            let ended = super::status::look_for_bans(config.admin.address).await;
            let lasts = until.map_or_else(|| "for ever".to_owned(), |until| format!("until {}", rfc3339(until)));
            output.print(
                || format!("ban {id}: {subject}, {lasts}; {}", said(ended, config)),
                &json!({ "ban": id, "kind": subject.kind(), "subject": subject.text(), "until": until.map(rfc3339), "ended": ended }),
            )
        }
        Command::Lift { ban, who, by } => {
            let whom = match (ban, who.subject()?) {
                (Some(ban), None) => Whom::Ban(ban),
                (None, Some(subject)) => Whom::Subject(subject),
                _ => bail!("which? The number of a ban, or one of {WHOM}"),
            };
            let lifted = store.lift_bans(whom.clone(), &by.name(), now).await?;
            match whom {
                Whom::Ban(ban) => ensure!(!lifted.is_empty(), "there is no ban {ban} in force"),
                Whom::Subject(subject) => ensure!(!lifted.is_empty(), "there is no ban on {subject} in force"),
            }
            let _ = super::status::look_for_bans(config.admin.address).await;
            let values: Vec<Value> = lifted.iter().map(|ban| value(ban, now)).collect();
            let line = |ban: &Banned| format!("ban {}: {}, lifted", ban.id, ban.subject);
            output.print(|| lifted.iter().map(line).collect::<Vec<_>>().join("\n"), &values)
        }
        Command::List { all, before, limit } => {
            let bans = store.bans((!all).then_some(now), before, limit).await?;
            list(&bans, now, output)
        }
        Command::Show { ban } => {
            let found = store.bans(None, ban.checked_add(1), 1).await?;
            match found.first().filter(|found| found.id == ban) {
                Some(found) => output.print(|| drawing(found, now), &value(found, now)),
                None => bail!("there is no ban {ban}"),
            }
        }
    }
}

/// What became of connections.
pub(super) fn said(ended: Option<u64>, config: &Config) -> String {
    match ended {
        Some(1) => "1 connection was ended here".to_owned(),
        Some(ended) => format!("{ended} connections were ended here"),
        None => format!(
            "no node answers at {} (admin.address); nodes that run elsewhere see it within {}",
            config.admin.address,
            humantime::format_duration(config.sessions.blocked_every)
        ),
    }
}

fn standing(ban: &Banned, now: Time) -> String {
    match (&ban.lifted, ban.until) {
        (Some((at, by)), _) => format!("lifted {} by {by}", rfc3339(*at)),
        (None, Some(until)) if until <= now => format!("over since {}", rfc3339(until)),
        (None, Some(until)) => format!("until {}", rfc3339(until)),
        (None, None) => "for ever".to_owned(),
    }
}

fn value(ban: &Banned, now: Time) -> Value {
    json!({
        "ban": ban.id, "kind": ban.subject.kind(), "subject": ban.subject.text(), "why": ban.why, "by": ban.by,
        "since": rfc3339(ban.since), "until": ban.until.map(rfc3339), "in_force": ban.is_in_force(now),
        "lifted_at": ban.lifted.as_ref().map(|(at, _)| rfc3339(*at)), "lifted_by": ban.lifted.as_ref().map(|(_, by)| by),
    })
}

fn drawing(ban: &Banned, now: Time) -> String {
    let rows = [
        ["who".to_owned(), ban.subject.to_string()],
        ["why".to_owned(), ban.why.clone()],
        ["since".to_owned(), format!("{} by {}", rfc3339(ban.since), ban.by)],
        ["stands".to_owned(), standing(ban, now)],
    ];
    table([&format!("ban {}", ban.id), ""], rows)
}

fn list(bans: &[Banned], now: Time, output: Output) -> anyhow::Result<()> {
    let values: Vec<Value> = bans.iter().map(|ban| value(ban, now)).collect();
    let text = || {
        let rows = bans.iter().map(|ban| {
            let (kind, subject) = (ban.subject.kind().to_owned(), ban.subject.text());
            [ban.id.to_string(), kind, subject, rfc3339(ban.since), ban.by.clone(), standing(ban, now), ban.why.clone()]
        });
        format!("{}\n{} bans", table(["ban", "kind", "subject", "since", "by", "stands", "why"], rows), bans.len())
    };
    output.print(text, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_that_people_write() {
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "0s", "10ms", "soon", "-1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_subject_is_named_and_a_wrong_one_is_answered_with_what_would_be_right() {
        let none = || Who { client: None, user: None, certificate: None, network: None };
        assert_eq!(none().subject().expect("nobody"), None);
        let network = |text: &str| Who { network: Some(text.to_owned()), ..none() }.subject();
        assert!(network("10.0.0.0/8").is_ok_and(|found| found == Subject::new("network", "10.0.0.0/8").ok()));
        let said = network("10.1.0.0/8").expect_err("too many bits").to_string();
        assert!(said.contains("right would be 10.0.0.0/8"), "{said}");
        let certificate = Who { certificate: Some("AB".repeat(32)), ..none() }.subject().expect("hexadecimal");
        assert_eq!(certificate, Some(Subject::Certificate([0xAB; 32])));
        let said = Who { certificate: Some("/nowhere.pem".to_owned()), ..none() }.subject().expect_err("no file");
        assert!(said.to_string().contains("/nowhere.pem"), "{said}");
    }
}
