//! How much an operator may look at, and how much of it is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Taps at the same time; one more is refused. Traces are not among them.
    pub at_once_max: usize,
    /// The longest that one may last.
    #[serde(with = "humantime_serde")]
    pub for_max: Duration,
    /// Packets that one may show; then it ends.
    pub packets_max: u64,
    /// Packets that may wait for whoever reads, or of one trace for the database; more are lost, and counted.
    pub waiting_max: usize,
    /// Traces (`--keep`) at the same time, of all nodes together; one more is refused.
    pub traces_max: u32,
    /// The longest that a trace may last.
    #[serde(with = "humantime_serde")]
    pub trace_for_max: Duration,
    /// What may be stored of one trace, in rows, one for each packet; then it ends.
    pub trace_rows_max: u32,
    /// How often a node looks which traces there are, wherever they were begun or stopped.
    #[serde(with = "humantime_serde")]
    pub traces_every: Duration,
    /// How long a trace is kept when it has ended.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// What is kept of all traces that have ended, in rows; the oldest traces are forgotten.
    pub rows_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            at_once_max: 4,
            for_max: Duration::from_secs(3600),
            packets_max: 1_000_000,
            waiting_max: 1024,
            traces_max: 8,
            trace_for_max: Duration::from_secs(7 * 24 * 3600),
            trace_rows_max: 100_000,
            traces_every: Duration::from_secs(1),
            keep: Duration::from_secs(30 * 24 * 3600),
            rows_max: 1_000_000,
        }
    }
}
