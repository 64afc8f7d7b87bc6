//! A run in one line.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use wakala::wire::Outcome;

use crate::faults::Tally;
use crate::records::Records;
use crate::terminal::Terminal;

/// What a run says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Requests that terminals made. They are approved, declined, refused, in doubt or lost.
    pub transactions: usize,
    pub approved: usize,
    pub declined: usize,
    /// Were no requests that can be carried out: malformed, forged, or a key used twice.
    pub refused: usize,
    /// Whose answer did not come; each was taken back, or is open still.
    pub in_doubt: usize,
    /// Requests that have their receipt.
    pub receipts: usize,
    /// Copies of receipts that came besides the first.
    pub duplicates: usize,
    /// Requests without a receipt.
    pub lost: usize,
    /// "balanced", or "broken".
    pub ledger: &'static str,
    pub seconds: f64,
    /// Receipts in a second.
    pub tps: f64,
    /// From the first byte of a request to its receipt.
    pub p50_ms: f64,
    pub p99_ms: f64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What else was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Extra {
    pub seed: u64,
    /// From the terminals and to them, above TCP, where they connect by links.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub link_cuts: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_memory_bytes: Option<u64>,
    /// How often the ledger was found balanced and unchanged while the run went on.
    pub ledger_looks: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<Tally>,
}

impl Summary {
    #[must_use]
    pub fn of(terminals: &[&Terminal], records: &Records, took: Duration, balanced: bool, stopped: bool) -> Self {
        let mut summary = Self { ledger: if balanced { "balanced" } else { "broken" }, ..Self::default() };
        let mut times = Vec::new();
        for terminal in terminals {
            let flash = terminal.flash.lock();
            // What was planned and not even begun is lost to its customer, too, unless a person sent her home.
            let planned = if stopped { 0 } else { terminal.steps.len() };
            summary.transactions += planned.max(flash.requests.len());
            for sent in &flash.requests {
                times.extend(sent.took());
                summary.duplicates += sent.receipts.len().saturating_sub(1);
                summary.receipts += usize::from(!sent.receipts.is_empty());
                match sent.receipts.first().map(|receipt| receipt.read().outcome()) {
                    Some(Outcome::Approved) => summary.approved += 1,
                    Some(Outcome::Declined) => summary.declined += 1,
                    Some(Outcome::Refused) => summary.refused += 1,
                    Some(Outcome::Reversed | Outcome::Pending | Outcome::Unspecified) | None => {}
                }
            }
        }
        summary.lost = summary.transactions - summary.receipts;
        let in_doubt = |row: &&crate::records::Row| matches!(row.state.as_str(), "REVERSED" | "IN_DOUBT");
        summary.in_doubt = records.transactions.values().filter(in_doubt).count();
        summary.seconds = rounded(took.as_secs_f64());
        summary.tps = rounded(as_f64(summary.receipts) / took.as_secs_f64().max(0.001));
        times.sort_unstable();
        (summary.p50_ms, summary.p99_ms) = (percentile(&times, 50), percentile(&times, 99));
        summary
    }

    #[must_use]
    pub fn with(self, extra: Extra) -> Self {
        Self { extra, ..self }
    }
}

/// When each request was first sent, in milliseconds since 1970, and how many its receipt took: one line each, for whoever
/// asks how it was at some moment of the run.
#[must_use]
pub fn times(terminals: &[&Terminal]) -> String {
    let (now, today) = (Instant::now(), SystemTime::now());
    let mut lines = String::from("sent_ms,took_ms\n");
    for terminal in terminals {
        for sent in &terminal.flash.lock().requests {
            let (Some(first), Some(took)) = (sent.first_sent, sent.took()) else { continue };
            let at = today.checked_sub(now.duration_since(first)).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let at = at.unwrap_or_default().as_millis();
            // Into a text it does not fail.
            let _ = writeln!(lines, "{at},{}", rounded(took.as_secs_f64() * 1000.0));
        }
    }
    lines
}

/// In milliseconds; 0 of nothing.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map_or(0.0, |time| rounded(time.as_secs_f64() * 1000.0))
}

fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn as_f64(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 99)), (100.0, 198.0));
        assert_eq!(percentile(&times[..1], 99), 1.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
