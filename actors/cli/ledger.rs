//! `wakala ledger`: the books.

use anyhow::bail;
use serde_json::json;
use wakala::id::AgentId;
use wakala::ledger::Account;
use wakala::money::Currency;

use super::{Output, table};
use crate::config::Config;
use crate::store::ledger::Report;

/// A thousand times the largest amount. What lies much beyond is a slip, and the sums of the audit views could not hold it.
const FLOOR_MAX: i64 = 999_999_999_999_999;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Recompute everything and compare; exit 0, or 1 with the first break
    ///
    /// Reads one consistent snapshot while the node goes on: every entry sums to zero, phases follow each other, posted
    /// equals pending, balances equal postings, every transaction has the entries and the receipt that its state asks for.
    Verify,
    /// Set how low an agent's float may go
    ///
    /// In minor units of the currency; negative lets the agent take in cash on credit. The node's own role may not do
    /// this: it takes database.owner_url.
    Floor {
        /// Whose float
        agent: AgentId,
        /// The float's currency, ISO 4217 letters
        #[arg(long, default_value = "TZS", value_parser = super::terminals::currency)]
        currency: Currency,
        /// The floor, in minor units: -5000000 is a credit line of TZS 50,000.00
        #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-FLOOR_MAX..=FLOOR_MAX))]
        minor: i64,
    },
}

/// # Errors
/// When the database is away.
pub async fn run(command: Command, config: &Config, output: Output) -> anyhow::Result<i32> {
    match command {
        Command::Verify => {
            let store = super::store(&config.database).await?;
            let began = std::time::Instant::now();
            let report = store.verify_ledger().await?;
            let seconds = began.elapsed().as_secs_f64();
            let mut value = serde_json::to_value(&report)?;
            value["ledger"] = json!(if report.first_break.is_none() { "balanced" } else { "broken" });
            value["seconds"] = json!(seconds);
            output.print(|| summary(&report, seconds), &value)?;
            Ok(i32::from(report.first_break.is_some()))
        }
        Command::Floor { agent, currency, minor } => {
            let store = super::owners_store(&config.database).await?;
            let float = Account::float(agent, currency);
            if !store.set_floor(&float, minor).await? {
                bail!("there is no account {float}; it comes with the agent's first terminal (wakala terminals enrol)");
            }
            output.print(
                || format!("{float}: floor {minor}"),
                &json!({ "account": float.to_string(), "floor": minor }),
            )?;
            Ok(0)
        }
    }
}

fn summary(report: &Report, seconds: f64) -> String {
    let rows = [
        ("accounts", report.accounts),
        ("entries", report.entries),
        ("postings", report.postings),
        ("transactions", report.transactions),
        ("  open", report.open),
        ("  approved", report.approved),
        ("  declined", report.declined),
        ("  reversed", report.reversed),
        ("receipts", report.receipts),
    ];
    let counts = table(["", "count"], rows.map(|(what, count)| [what.to_owned(), count.to_string()]));
    let verdict = match &report.first_break {
        None => "the ledger is balanced".to_owned(),
        Some(broken) => format!("BROKEN: {}\n{}", broken.rule, broken.what),
    };
    format!("{counts}\n{verdict} ({seconds:.1} s)")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Ledger {
        #[command(subcommand)]
        command: super::Command,
    }

    #[test]
    fn a_floor_that_no_sum_could_hold_is_refused() {
        for (minor, fits) in [("-5000000", true), ("0", true), ("-9223372036854775808", false), ("x", false)] {
            let parsed = Ledger::try_parse_from(["ledger", "floor", "A1", minor]);
            assert_eq!(parsed.is_ok(), fits, "{minor}: {parsed:?}");
        }
    }
}
