//! `wakala told`: what terminals were told, by whom, and what became of it; and who may tell them something over HTTP.

use anyhow::Context as _;
use serde_json::{Value, json};
use uuid::Uuid;
use wakala::id::{AgentId, TerminalId};

use super::{Output, rfc3339, table};
use crate::config::Config;
use crate::store::told::{Told, Which};
use crate::telling::{shown, tokens};

/// Each message of `wakala terminals tell` and of the bank's programs is recorded with who asked for it and what became of
/// it: waiting, delivered (the terminal acknowledged it; at QoS 0: it was sent), expired, replaced by a later configuration, full
/// (later news went before), session_over (the terminal came with a clean start, or its session's time was over), and so on as in
/// docs/operators.md. Kept for telling.keep; auditors read audit.messages_told.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the latest messages, latest first
    ///
    ///   wakala told list --terminal T1 --limit 5
    #[command(verbatim_doc_comment)]
    List {
        /// Only those for this terminal
        #[arg(long)]
        terminal: Option<TerminalId>,
        /// Only those before this time, as the column "at" and --json show it
        #[arg(long, value_name = "TIME", value_parser = before)]
        before: Option<wakala::time::Time>,
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one message, and what became of each copy
    Show {
        /// Its identifier, or the key under which it was asked for
        which: String,
    },
    /// Draw a token for a program that is to tell terminals something over HTTP
    ///
    /// The token is printed once, with the line for the file at telling.http.tokens, which has its SHA-256 alone. A program may
    /// have several, so that the next one is in force before the last one goes: take its line out, and half a second later it is
    /// refused. Nothing is stored by this command.
    Token {
        /// The program's name, as it stands beside what it asks for
        name: AgentId,
    },
}

fn before(text: &str) -> Result<wakala::time::Time, String> {
    let read = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let read = read.map_err(|_| "a time is written 2026-11-21T03:18:43.584Z".to_owned())?;
    let millis = i64::try_from(read.unix_timestamp_nanos() / 1_000_000).map_err(|error| error.to_string())?;
    Ok(wakala::time::Time::from_millis(millis))
}

/// # Errors
/// When the database is away, or there is no such message.
pub async fn run(command: Command, config: &Config, output: Output) -> anyhow::Result<()> {
    match command {
        Command::List { terminal, before, limit } => {
            let found = super::store(&config.database).await?.told_last(terminal, before, limit).await?;
            let values: Vec<Value> = found.iter().map(shown).collect();
            output.print(|| list(&found), &values)
        }
        Command::Show { which } => {
            let wanted = which.parse::<Uuid>().map_or_else(|_| Which::Key(which.clone()), Which::Id);
            let found = super::store(&config.database).await?.told(wanted, None).await?;
            let found = found.with_context(|| format!("nothing was told as {which}; wakala told list"))?;
            output.print(|| one(&found), &shown(&found))
        }
        Command::Token { name } => {
            let (token, line) = tokens::draw(&name).map_err(|why| anyhow::anyhow!(why))?;
            let text = || format!("token: {}\nline:  {line}", *token);
            output.print(text, &json!({ "token": *token, "line": line }))
        }
    }
}

fn list(found: &[Told]) -> String {
    if found.is_empty() {
        return "nothing was told".to_owned();
    }
    let rows = found.iter().map(|told| {
        let to = told.terminal.clone().unwrap_or_else(|| told.topic.clone());
        [rfc3339(told.at), told.id.to_string(), to, told.class.word().to_owned(), told.asked_by.clone(), became(told)]
    });
    table(["at", "id", "to", "class", "asked by", "became"], rows)
}

fn became(told: &Told) -> String {
    let stored = told.became.iter().map(|(fate, count)| match count {
        1 if told.terminal.is_some() => fate.clone(),
        count => format!("{count} {fate}"),
    });
    let direct = (told.direct > 0).then(|| format!("{} not stored", told.direct));
    let parts: Vec<String> = stored.chain(direct).collect();
    if parts.is_empty() { "for nobody".to_owned() } else { parts.join(", ") }
}

fn one(told: &Told) -> String {
    let key = told.key.as_ref().map_or_else(String::new, |key| format!(", key {key}"));
    let expires = told.expires_at.map_or_else(String::new, |at| format!(", until {}", rfc3339(at)));
    let head = format!(
        "{} on {} at QoS {}, {} bytes, {}{expires}\nasked for by {} at {}{key}\n{}",
        told.class.word(),
        told.topic,
        told.qos,
        told.bytes,
        if told.retain { "retained" } else { "not retained" },
        told.asked_by,
        rfc3339(told.at),
        became(told),
    );
    if told.copies.is_empty() {
        return head;
    }
    let rows = told.copies.iter().map(|copy| {
        let at = copy.at.map(|at| rfc3339(wakala::time::Time::from_millis(at)));
        [copy.client.clone(), copy.became.clone(), at.unwrap_or_default()]
    });
    format!("{head}\n\n{}", table(["client", "became", "at"], rows))
}

#[cfg(test)]
mod tests {
    use wakala::time::Time;

    use super::*;
    use crate::store::messages::Class;

    #[test]
    fn what_became_of_a_message_is_said_in_words() {
        let at = Time::from_millis(1_795_224_225_000);
        let mut told = Told {
            id: Uuid::nil(),
            asked_by: "portal".to_owned(),
            key: Some("k1".to_owned()),
            terminal: Some("T1".to_owned()),
            topic: "c/T1".to_owned(),
            class: Class::News,
            qos: 1,
            retain: false,
            bytes: 5,
            at,
            expires_at: None,
            direct: 0,
            became: [("delivered".to_owned(), 1)].into(),
            copies: Vec::new(),
        };
        assert_eq!(became(&told), "delivered");
        assert!(one(&told).starts_with(
            "news on c/T1 at QoS 1, 5 bytes, not retained\nasked for by portal at 2026-11-21T01:23:45Z, key k1"
        ));
        told = Told {
            terminal: None,
            direct: 3,
            became: [("delivered".to_owned(), 1), ("waiting".to_owned(), 2)].into(),
            ..told
        };
        assert_eq!(became(&told), "1 delivered, 2 waiting, 3 not stored");
        assert_eq!(became(&Told { direct: 0, became: [].into(), ..told }), "for nobody");
        assert_eq!(before(&rfc3339(at)), Ok(at));
    }
}
