//! `wakala txn`: all that is known of one transaction.

use anyhow::{Context as _, bail};
use prost::Message as _;
use serde_json::{Value, json};
use wakala::id::{Rrn, TransactionId};
use wakala::receipt::Stage;
use wakala::wire;

use super::traces::{row_text, row_value};
use super::{Output, rfc3339 as at};
use crate::config::Config;
use crate::store::ledger::Shown;
use crate::store::traces::Told;

/// Traced packets of one transaction that are shown.
const TRACED_MAX: u32 = 100;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show a transaction with its ledger entries, receipts and late answers, and the packets about it that traces have kept
    ///
    /// Packets are kept only while somebody wants that: wakala tap TERMINAL --keep.
    Show {
        /// The transaction's identifier (a UUID), or the RRN that is on the receipt
        #[arg(value_parser = which)]
        which: Which,
    },
}

/// How a transaction is named by who asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Id(TransactionId),
    Rrn(Rrn),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Rrn(rrn) => write!(f, "with the RRN {rrn}"),
        }
    }
}

fn which(text: &str) -> Result<Which, String> {
    let text = text.trim();
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Which::Rrn(Rrn::stored(text)));
    }
    let id = uuid::Uuid::parse_str(text).map(|id| Which::Id(TransactionId(id)));
    id.map_err(|_| "a transaction is named by its identifier (a UUID) or its RRN (12 digits)".to_owned())
}

/// # Errors
/// When there is no such transaction, or the database is away.
pub async fn run(command: Command, config: &Config, output: Output) -> anyhow::Result<()> {
    let Command::Show { which } = command;
    let store = super::store(&config.database).await?;
    let ids = match &which {
        Which::Id(id) => vec![*id],
        Which::Rrn(rrn) => store.transactions_by_rrn(rrn.as_str()).await?,
    };
    let mut shown = Vec::new();
    for id in ids {
        if let Some(found) = store.transaction(id).await? {
            shown.push((found, store.traced(id, TRACED_MAX).await?));
        }
    }
    if shown.is_empty() {
        bail!("there is no transaction {which}");
    }
    let values: Vec<Value> = shown.iter().map(|(shown, traced)| value(shown, traced)).collect::<anyhow::Result<_>>()?;
    output.print(|| shown.iter().map(|(shown, traced)| text(shown, traced)).collect::<Vec<_>>().join("\n\n"), &values)
}

fn value(shown: &Shown, traced: &[Told]) -> anyhow::Result<Value> {
    let t = &shown.transaction;
    let entries = shown.entries.iter().map(|entry| {
        let postings = entry.postings.iter().map(|(account, minor)| json!({ "account": account, "minor": minor }));
        json!({ "phase": entry.phase, "at": at(entry.at), "postings": postings.collect::<Vec<_>>() })
    });
    let receipts = shown.receipts.iter().map(|receipt| {
        let envelope = wire::ReceiptEnvelope::decode(&receipt.envelope[..]).context("a stored receipt")?;
        let told = wire::Receipt::decode(&envelope.body[..]).context("a stored receipt")?;
        Ok(json!({
            "stage": if receipt.stage == Stage::Final { "receipt" } else { "notice" },
            "outcome": told.outcome().as_str_name(), "code": told.code, "text": told.text, "at": at(receipt.at),
            "delivered_at": receipt.delivered_at.map(at), "copies": receipt.copies,
            "envelope": hex::encode(&receipt.envelope),
        }))
    });
    let late = shown.late.iter().map(|(answer, code, time)| json!({ "answer": answer, "code": code, "at": at(*time) }));
    Ok(json!({
        "transaction": t.id.to_string(), "terminal": t.terminal, "agent": t.agent, "core": t.core,
        "kind": format!("{:?}", t.kind), "amount": t.amount.minor(), "currency": t.amount.currency().code(),
        "card": t.card.masked.as_str(), "state": t.state.as_str(), "asked_at": at(t.asked_at),
        "stan": t.trace.as_ref().map(|trace| trace.stan.to_string()),
        "rrn": t.trace.as_ref().map(|trace| trace.rrn.to_string()),
        "sent_at": t.trace.as_ref().map(|trace| at(trace.sent_at)),
        "code": t.code.as_ref().map(|code| code.as_str()), "authorisation": t.authorisation,
        "reversals": t.reversals, "due": t.due.map(at), "updated_at": at(shown.updated_at),
        "entries": entries.collect::<Vec<_>>(), "receipts": receipts.collect::<anyhow::Result<Vec<_>>>()?,
        "late_answers": late.collect::<Vec<_>>(), "traced": traced.iter().map(row_value).collect::<Vec<_>>(),
    }))
}

fn text(shown: &Shown, traced: &[Told]) -> String {
    let t = &shown.transaction;
    let mut lines = vec![
        format!("{} {} {:?} of {} · {}", t.id, t.state.as_str(), t.kind, t.amount, t.card.masked),
        format!("  terminal {} · agent {} · core {} · asked {}", t.terminal, t.agent, t.core, at(t.asked_at)),
    ];
    if let Some(trace) = &t.trace {
        lines.push(format!("  STAN {} · RRN {} · sent {}", trace.stan, trace.rrn, at(trace.sent_at)));
    }
    if let Some(code) = &t.code {
        lines.push(format!("  code {}", code.as_str()));
    }
    if let Some(authorisation) = &t.authorisation {
        lines.push(format!("  authorisation {authorisation}"));
    }
    if t.reversals > 0 {
        lines.push(format!("  {} reversal messages", t.reversals));
    }
    for entry in &shown.entries {
        lines.push(format!("  {} at {}", entry.phase, at(entry.at)));
        lines.extend(entry.postings.iter().map(|(account, minor)| format!("    {account} {minor:+}")));
    }
    for receipt in &shown.receipts {
        let stage = if receipt.stage == Stage::Final { "receipt" } else { "notice" };
        let delivered = receipt
            .delivered_at
            .map_or_else(|| "waits for its terminal".to_owned(), |t| format!("delivered {}", at(t)));
        lines.push(format!("  {stage} of {} · {delivered} · copies {}", at(receipt.at), receipt.copies));
    }
    for (answer, code, time) in &shown.late {
        let code = code.as_deref().map_or_else(String::new, |code| format!(" {code}"));
        lines.push(format!("  the core said too late: {answer}{code} at {}", at(*time)));
    }
    for row in traced {
        lines.push(format!("  trace {} · {} · {}", row.trace, row.node, row_text(row)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_named_by_its_identifier_or_its_rrn() {
        let id = "0f0e0d0c-0b0a-8908-8706-050403020100";
        let named = |text: &str| which(text).map(|which| which.to_string());
        assert_eq!(named(id).as_deref(), Ok(id));
        assert_eq!(named(" 632501000042\n").as_deref(), Ok("with the RRN 632501000042"));
        for bad in ["", "63250100004", "63250100004x", "nope", &"1".repeat(10_000)] {
            let said = named(bad).expect_err("no name");
            assert!(said.contains("UUID") && said.contains("12 digits") && said.len() < 100, "{said}");
        }
    }
}
