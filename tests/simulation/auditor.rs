//! The auditor: compares what the cores' books, the terminals' journals, the log and the ledger say. Nothing here
//! follows from the states of the machines under test: what a request should have come to follows from the witness.

use std::time::Duration;

use wakala::id::TransactionId;
use wakala::ledger::{AccountKind, Phase};
use wakala::receipt::Stage as Step;
use wakala::record::Record;
use wakala::time::Time;
use wakala::transaction::{State, Transaction};
use wakala::wire;

use prost::Message as _;

use super::core::Core;
use super::log::Log;
use super::postgres::Postgres;
use super::stage::{About, Violation};
use super::terminal::{Asked, Sort, Terminal};

/// All that is left when the faults have ended.
pub(crate) struct Remains<'a> {
    pub(crate) terminals: &'a [Terminal],
    pub(crate) cores: &'a [Core],
    pub(crate) postgres: &'a Postgres,
    pub(crate) log: &'a Log,
}

fn violation(invariant: &'static str, about: About, text: String) -> Result<(), Violation> {
    Err(Violation { invariant, text, about })
}

impl Remains<'_> {
    /// Nothing waits for room at a core beyond its patience, once nobody sleeps any more.
    pub(crate) fn impatient(&self, awake: Time, now: Time) -> Option<Violation> {
        let accepted = self.postgres.transactions.values().filter(|row| row.state == State::Accepted);
        let grace = Duration::from_secs(10);
        let row = accepted.into_iter().find(|row| row.due.is_none_or(|due| due.max(awake) + grace < now))?;
        let text = format!("{} of {} waits for room since {:?}", row.id, row.terminal, row.asked_at);
        Some(Violation { invariant: "nothing waits for ever", text, about: About::Transaction(row.id) })
    }

    /// Whether all has come to its end.
    pub(crate) fn unsettled(&self) -> Option<Violation> {
        let open = self.postgres.transactions.values().find(|t| !t.state.is_final());
        let waits = self.terminals.iter().find(|terminal| !terminal.is_content() || !terminal.is_online());
        let left = |invariant, about, text| Some(Violation { invariant, text, about });
        if let Some(open) = open {
            let text = format!("{} of {} is {}", open.id, open.terminal, open.state.as_str());
            return left("I1: nothing is left open", About::Transaction(open.id), text);
        }
        if let Some(terminal) = waits {
            let about = About::Terminal(terminal.enrolled.id.clone());
            return left("I2: every terminal has its receipts", about, terminal.enrolled.id.to_string());
        }
        if self.postgres.waiting() > 0 {
            let text = format!("{} receipts wait", self.postgres.waiting());
            return left("I2: every receipt is delivered", About::World, text);
        }
        None
    }

    pub(crate) fn check(&self) -> Result<(), Violation> {
        for terminal in self.terminals {
            for asked in &terminal.journal {
                self.request(terminal, asked)?;
            }
        }
        self.every_row_has_its_request()?;
        self.floats()
    }

    fn request(&self, terminal: &Terminal, asked: &Asked) -> Result<(), Violation> {
        let id = terminal.id(asked);
        let fail =
            |invariant, text: String| violation(invariant, About::Transaction(id), format!("{id} {asked:?}: {text}"));
        if asked.durable && !self.is_in_the_log(id) {
            return fail("I6: no request is missing after its PUBACK", "not in the log".to_owned());
        }
        if asked.given_up && asked.receipts.is_empty() {
            let asked_for = self.cores[terminal.enrolled.core].was_asked(asked.amount);
            let invariant = "I3: what is refused moves no money";
            return if asked_for { fail(invariant, "the core was asked".to_owned()) } else { Ok(()) };
        }
        let [receipt] = &asked.receipts[..] else {
            return fail("I2: one receipt, the same bytes each time", format!("{} receipts", asked.receipts.len()));
        };
        if !asked.acknowledged {
            return fail("I2: a receipt is acknowledged", String::new());
        }
        let envelope = wire::ReceiptEnvelope::decode(&receipt[..]).expect("an envelope");
        let told = wire::Receipt::decode(&envelope.body[..]).expect("a receipt");
        let core = &self.cores[terminal.enrolled.core];
        let net = core.net(asked.amount);
        match (asked.sort, told.outcome()) {
            (Sort::Good, wire::Outcome::Approved) if net == asked.amount => {}
            (Sort::Good, wire::Outcome::Declined | wire::Outcome::Reversed) if net == 0 => {}
            (Sort::Good, outcome) => {
                return fail(
                    "I5: the core moved what the receipt says",
                    format!("{outcome:?} {}, core {net}", told.code),
                );
            }
            (Sort::WrongPin, wire::Outcome::Declined) if told.code == "55" || told.code == "75" => {}
            (Sort::MalformedPin, wire::Outcome::Declined) if told.code == "63" || told.code == "75" => {}
            (Sort::Junk | Sort::Reuse(_), wire::Outcome::Refused) => {}
            (_, outcome) => return fail("I3: what is refused is refused", format!("{outcome:?} {}", told.code)),
        }
        if asked.sort != Sort::Good && core.was_asked(asked.amount) {
            return fail("I3: what is refused moves no money", "the core was asked".to_owned());
        }
        match asked.sort {
            Sort::Junk | Sort::Reuse(_) => Ok(()),
            Sort::Good | Sort::WrongPin | Sort::MalformedPin => self.row(asked, id, told.outcome(), net),
        }
    }

    /// The row, its entries and its receipt say the same as the witness.
    fn row(&self, asked: &Asked, id: TransactionId, told: wire::Outcome, net: u64) -> Result<(), Violation> {
        let fail = |invariant, text: String| violation(invariant, About::Transaction(id), format!("{id}: {text}"));
        let Some(row) = self.postgres.transactions.get(&id) else {
            return fail("I1: one row for each request", "none".to_owned());
        };
        let right = match row.state {
            State::Approved => told == wire::Outcome::Approved,
            State::Declined => told == wire::Outcome::Declined,
            State::Reversed => told == wire::Outcome::Reversed,
            State::Accepted | State::Sent | State::InDoubt => false,
        };
        if !right || u64::try_from(row.amount.minor()) != Ok(asked.amount) {
            return fail("I1: the row says what the receipt says", format!("{} {}", row.state.as_str(), row.amount));
        }
        let booked = self.booked(row);
        let moved = i64::try_from(net).expect("twelve digits");
        let expected = if asked.deposit { -moved } else { moved };
        if booked != expected {
            return fail("I5: the ledger has what the core moved", format!("ledger {booked}, core {expected}"));
        }
        let receipt = self.postgres.receipts.get(&(id, Step::Final));
        if receipt.is_none_or(|receipt| !receipt.delivered || asked.receipts[0] != receipt.envelope[..]) {
            return fail("I2: the stored receipt is the one that was delivered", format!("{receipt:?}"));
        }
        Ok(())
    }

    /// What the posted entries of a transaction say of the settlement account; debits are positive.
    fn booked(&self, row: &Transaction) -> i64 {
        let posted = self.postgres.entries.iter().filter(|e| e.transaction == row.id && e.phase == Phase::Posted);
        let postings = posted.flat_map(|entry| &entry.postings);
        postings.filter(|p| matches!(p.account.kind, AccountKind::Settlement(_))).map(|p| p.minor).sum()
    }

    fn is_in_the_log(&self, id: TransactionId) -> bool {
        self.log.records().filter_map(|bytes| Record::decode(bytes).ok()).any(|record| record.transaction() == id)
    }

    /// No row stands for what no terminal asked, and no money moved at a core without a row.
    fn every_row_has_its_request(&self) -> Result<(), Violation> {
        for row in self.postgres.transactions.values() {
            let asked = self.terminals.iter().filter(|t| t.enrolled.id == row.terminal).flat_map(|t| &t.journal);
            if asked.into_iter().all(|asked| u64::try_from(row.amount.minor()) != Ok(asked.amount)) {
                return violation("I1: a row is a request", About::Transaction(row.id), format!("{row:?}"));
            }
        }
        for booking in self.cores.iter().flat_map(|core| core.books.values()) {
            let known = self.postgres.transactions.values();
            if known.into_iter().all(|row| u64::try_from(row.amount.minor()) != Ok(booking.amount)) {
                return violation(
                    "I5: the core was asked by a row",
                    About::Amount(booking.amount),
                    format!("{booking:?}"),
                );
            }
        }
        Ok(())
    }

    /// What the balance rows say is what the posted entries say.
    fn floats(&self) -> Result<(), Violation> {
        for (account, float) in &self.postgres.floats {
            let posted = self.postgres.entries.iter().filter(|entry| entry.phase == Phase::Posted);
            let moved: i64 = posted.flat_map(|e| &e.postings).filter(|p| p.account == *account).map(|p| -p.minor).sum();
            if float.reserved != 0 || float.posted != super::world::FLOAT + moved {
                let text = format!("{account} {float:?}, entries {moved}");
                return violation("I4: a balance row is the sum of its entries", About::World, text);
            }
        }
        Ok(())
    }
}
