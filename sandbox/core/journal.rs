//! The core's own record: every message that it judged and what that did to money, a JSON object a line.
//!
//! Written before the answer goes out. The card is masked. Foreign cores of the tests write the same lines.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix time in milliseconds, by the core's clock.
    pub at: u64,
    pub what: What,
    pub mti: String,
    /// DE3's first two digits: "01" withdrawal, "21" deposit.
    pub processing: String,
    pub rrn: String,
    pub stan: String,
    pub terminal: String,
    pub agent: String,
    /// Minor units that were asked for.
    pub amount: i64,
    pub currency: String,
    /// First six and last four digits.
    pub card: String,
    /// DE39 of the answer.
    pub code: String,
    /// What this line booked, in minor units: `amount`, its negative when taken back, or 0.
    pub booked: i64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Booked,
    Declined,
    /// A request that came before: the same answer, nothing booked.
    Repeated,
    /// A booking taken back.
    Reversed,
    /// A reversal that came before: the same answer, nothing booked.
    ReversalRepeated,
    /// A reversal of what is not known here. Should it still come, it is declined.
    NothingToReverse,
    /// A reversal that is not followed, nor remembered.
    ReversalRefused,
}

/// What a core did about one transaction, all in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    pub terminal: String,
    pub processing: String,
    /// Minor units that were asked for.
    pub amount: i64,
    /// Minor units that stand booked: `amount` or 0, in a sound core.
    pub booked: i64,
}

/// What stands booked, by RRN.
#[must_use]
pub fn nets(entries: &[Entry]) -> BTreeMap<String, Net> {
    let mut nets = BTreeMap::new();
    for entry in entries {
        let net = nets.entry(entry.rrn.clone()).or_insert_with(|| Net {
            terminal: entry.terminal.clone(),
            processing: entry.processing.clone(),
            amount: entry.amount,
            booked: 0,
        });
        net.booked += entry.booked;
    }
    nets
}

/// Reads a journal that a core wrote, this one or a foreign one.
///
/// # Errors
/// When the file cannot be read or a line is no entry.
pub fn read(file: &Path) -> anyhow::Result<Vec<Entry>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().enumerate();
    let entry = |(at, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", file.display(), at + 1))
    };
    lines.map(entry).collect()
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    file: Option<File>,
    entries: Vec<Entry>,
}

impl Journal {
    /// # Errors
    /// When the file cannot be made, or holds something: a core that forgot what it did is no witness.
    pub fn begin(file: Option<&Path>) -> anyhow::Result<Self> {
        let opened = file.map(|path| {
            let opened =
                File::options().append(true).create(true).open(path).with_context(|| path.display().to_string())?;
            anyhow::ensure!(opened.metadata()?.len() == 0, "{} holds another journal", path.display());
            Ok(opened)
        });
        Ok(Self { file: opened.transpose()?, entries: Vec::new() })
    }

    /// # Errors
    /// When the line is not in the file: the message must not be answered then.
    pub fn append(&mut self, entry: Entry) -> std::io::Result<()> {
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
