//! The command line. Each command says in its help what it is for; `--json` where a program may read the answer.

pub mod cards;
pub mod keys;
pub mod ledger;
pub mod status;
pub mod tell;
pub mod terminals;
pub mod txn;

use std::io::Write as _;

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
