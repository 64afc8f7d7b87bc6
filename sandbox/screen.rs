//! What a person sees: progress and receipts on standard error; standard output belongs to the result.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use wakala::money::Money;
use wakala::wire::{Kind, Outcome, Receipt};

use crate::terminal::Told;

/// Standard error, with a bar where it is a terminal and lines where it is not.
#[derive(Debug)]
pub struct Screen {
    bar: Option<ProgressBar>,
    shows_receipts: bool,
    began: Instant,
    last_line: Instant,
}

/// Between two lines of progress where there is no bar.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

impl Screen {
    /// `total` is how many transactions there will be; 0 for no end.
    #[must_use]
    pub fn new(total: usize, shows_receipts: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, shape) = match total {
                0 => (ProgressBar::no_length(), "{spinner} {pos} transactions  {per_sec}  {elapsed}  {msg}"),
                _ => (
                    ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX)),
                    "{bar:40.green} {pos}/{len}  {per_sec}  {elapsed}  {msg}",
                ),
            };
            bar.with_style(ProgressStyle::with_template(shape).unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self { bar, shows_receipts, began: now, last_line: now }
    }

    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // A reader that went away is no reason to stop.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    pub fn progress(&mut self, done: usize, total: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        } else if self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            self.line(&format!("{done} of {total} after {} s", self.began.elapsed().as_secs()));
        }
    }

    pub fn receipt(&self, told: &Told) {
        if self.shows_receipts {
            self.line(&receipt_line(told));
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line of a receipt: `T00007  APPROVED 00  withdrawal  TZS 25000.00  999991******0010  632502000042  31 ms`
fn receipt_line(told: &Told) -> String {
    let receipt: &Receipt = &told.receipt;
    let kind = match receipt.kind() {
        Kind::Withdrawal => "withdrawal",
        Kind::Deposit => "deposit",
        Kind::Unspecified => "",
    };
    let outcome = match receipt.outcome() {
        Outcome::Approved => "APPROVED",
        Outcome::Declined => "DECLINED",
        Outcome::Reversed => "REVERSED",
        Outcome::Pending => "PENDING",
        Outcome::Refused => "REFUSED",
        Outcome::Unspecified => "?",
    };
    let amount =
        Money::from_numeric(receipt.amount, receipt.currency).map_or_else(|_| String::new(), |m| m.to_string());
    let took = told.took.map_or_else(String::new, |took| format!("{} ms", took.as_millis()));
    format!(
        "{:<8} {outcome:<8} {:<2} {:<26} {kind:<10} {amount:>18}  {:<16}  {:<12}  {took:>7}",
        told.terminal.as_str(),
        receipt.code,
        receipt.text,
        receipt.card,
        receipt.rrn
    )
}
