//! The command line. Each command says in its help what it is for; `--json` where a program may read the answer.

pub mod bans;
pub mod cards;
pub mod evacuate;
pub mod keys;
pub mod ledger;
pub mod sessions;
pub mod status;
pub mod tap;
pub mod tell;
pub mod terminals;
pub mod told;
pub mod traces;
pub mod txn;

use std::io::Write as _;

use anyhow::{Context as _, ensure};

use crate::store::{Options, Store};

/// A person gets a table or a sentence, a program gets JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Output {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

impl Output {
    /// Prints either the text or the value. A reader that went away (`| head`) is no error.
    ///
    /// # Errors
    /// When standard output cannot be written for another reason.
    pub fn print(self, text: impl FnOnce() -> String, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(value)? } else { text() };
        match writeln!(std::io::stdout(), "{line}") {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            done => Ok(done?),
        }
    }
}

/// The database of the configuration, for a command.
async fn store(database: &Options) -> anyhow::Result<Store> {
    Store::connect(database).await.context("database.url")
}

/// The same as the owner of the schema.
///
/// # Errors
/// When no address of the owner is configured, or the database is away.
pub async fn owners_store(database: &Options) -> anyhow::Result<Store> {
    ensure!(
        !database.owner_url.is_empty(),
        "database.owner_url is empty; WAKALA_DATABASE__OWNER_URL=postgres://wakala_owner@… is for this one command"
    );
    Store::connect_as_owner(database).await.context("database.owner_url")
}

/// RFC 3339, in UTC, to the millisecond: `2026-11-21T03:18:43.584Z`.
#[must_use]
pub fn rfc3339(time: wakala::time::Time) -> String {
    time.utc().format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// A table as people read it: no frame, aligned columns.
#[must_use]
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn a_database_that_is_away_is_named_by_its_key() {
        let database = Options {
            url: "postgres://w:hunter2@127.0.0.1:1/x".to_owned(),
            acquire_timeout: std::time::Duration::from_millis(10),
            ..Options::default()
        };
        let said = format!("{:#}", store(&database).await.expect_err("nobody is there"));
        assert!(said.starts_with("database.url: ") && said.contains("refused") && !said.contains("hunter2"), "{said}");
        let said = format!("{:#}", owners_store(&database).await.expect_err("no address"));
        assert!(
            said.starts_with("database.owner_url is empty") && said.contains("WAKALA_DATABASE__OWNER_URL"),
            "{said}"
        );
    }
}
