//! Compares what everybody remembers: the terminals, the core, the database. Each invariant is in the words of the design's
//! list of faults, and a violation comes with the evidence.
//!
//! - **I1** every acknowledged request has one final end;
//! - **I2** the final receipts of a request have one body, and the terminal has it;
//! - **I3** a key with another body is refused and moves no money;
//! - **I4** every entry and every snapshot of the ledger sums to zero;
//! - **I5** what the core booked is what the ledger posted; APPROVED if and only if it is the amount;
//! - **I6** nothing was acknowledged that is not in the database (I1, looked at after every kill);
//! - **I7** ledger rows never change, and the service may not change them;
//! - **I8** a terminal hears of nobody else.

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;
use wakala::id::TransactionId;
use wakala::wire::{self, Outcome};

use crate::core::journal::{Entry, Net, nets};
use crate::flash::Sent;
use crate::plan::{Expected, Manner, Step};
use crate::records::{Records, Row};
use crate::terminal::Terminal;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub evidence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.evidence)
    }
}

/// All that is known at the end of a run.
#[derive(Debug)]
pub struct Evidence<'a> {
    pub terminals: &'a [&'a Terminal],
    pub core: &'a [Entry],
    pub records: &'a Records,
    /// Whether the core and its link were broken on purpose: then a transaction may be taken back or find no core.
    pub broken: bool,
}

/// Every violation, the gravest invariant first.
#[must_use]
pub fn audit(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for terminal in evidence.terminals {
        let flash = terminal.flash.lock();
        for strange in &flash.strange {
            let (why, topic, bytes) = (strange.why, &strange.topic, hex::encode(&strange.bytes));
            found.push(violation("I8", format!("{} received on {topic}, {why}: {bytes}", terminal.id)));
        }
        for sent in &flash.requests {
            let testimony = Testimony { terminal, sent, step: &terminal.steps[sent.step], evidence };
            testimony.check(&mut found);
        }
    }
    transactions_without_a_terminal(evidence, &mut found);
    money(evidence, &mut found);
    found.extend(evidence.records.ledger_faults.iter().map(|fault| violation("I4", fault.clone())));
    found.extend(evidence.records.privileges.iter().map(|right| violation("I7", right.clone())));
    found
        .extend(evidence.records.parked.iter().map(|parked| violation("I1", format!("a record was parked: {parked}"))));
    found.sort_by_key(|violation| violation.invariant);
    found
}

fn violation(invariant: &'static str, evidence: String) -> Violation {
    Violation { invariant, evidence }
}

/// What one terminal says of one request, held against everything else.
struct Testimony<'a> {
    terminal: &'a Terminal,
    sent: &'a Sent,
    step: &'a Step,
    evidence: &'a Evidence<'a>,
}

impl Testimony<'_> {
    fn id(&self) -> Uuid {
        TransactionId::of(&self.terminal.id, self.sent.key).0
    }

    fn row(&self) -> Option<&Row> {
        self.evidence.records.transactions.get(&self.id())
    }

    fn says(&self, invariant: &'static str, what: &str) -> Violation {
        let (sent, step) = (self.sent, self.step);
        let receipts: Vec<String> = sent.receipts.iter().map(|receipt| hex::encode(&receipt.bytes)).collect();
        let evidence = format!(
            "{what}\n  terminal {} key {} transaction {}\n  step {}: {step:?}\n  published {} times, PUBACKs {}, notices {}, \
             receipts {receipts:?}\n  sent {}\n  row {:?}",
            self.terminal.id,
            hex::encode(sent.key.0),
            self.id(),
            sent.step,
            sent.published,
            sent.pubacks.len(),
            sent.notices,
            hex::encode(&sent.bytes),
            self.row(),
        );
        violation(invariant, evidence)
    }

    fn check(&self, found: &mut Vec<Violation>) {
        let Some(first) = self.sent.receipts.first() else {
            let acknowledged = !self.sent.pubacks.is_empty();
            let what = if acknowledged { "acknowledged, and there is no receipt" } else { "there is no receipt" };
            found.push(self.says(if acknowledged { "I1" } else { "I2" }, what));
            return;
        };
        if self.sent.receipts.iter().any(|receipt| receipt.bytes != first.bytes) {
            found.push(self.says("I2", "two receipts differ"));
        }
        if let Some(false) = self.sent.receipts.iter().map(|receipt| receipt.authentic).min() {
            found.push(self.says("I2", "a receipt's code is wrong"));
        }
        if !self.stored(&first.bytes) {
            found.push(self.says("I6", "the receipt is not in the database"));
        }
        let receipt = first.read();
        if !self.expected(&receipt) {
            found.push(self.says("I2", &format!("the receipt says {} where the step wants otherwise", word(&receipt))));
        }
        self.check_row(&receipt, found);
    }

    /// Whether the database holds these very bytes for the request.
    fn stored(&self, bytes: &[u8]) -> bool {
        let receipts = &self.evidence.records.receipts;
        match self.sent.manner {
            // The refusal of a reused key has an identity of its own, which follows from the card's token.
            Manner::ReusesKey => receipts.values().any(|stored| stored == bytes),
            _ => receipts.get(&self.id()).is_some_and(|stored| stored == bytes),
        }
    }

    fn expected(&self, receipt: &wire::Receipt) -> bool {
        let (outcome, code) = (receipt.outcome(), receipt.code.as_str());
        let hindered = self.evidence.broken
            && (outcome == Outcome::Reversed || (outcome == Outcome::Declined && matches!(code, "91" | "96")));
        match self.step.expected {
            Expected::Approved => outcome == Outcome::Approved || hindered,
            // The core says this one, unless it is the float that is short.
            Expected::Declined("51") => (outcome, code) == (Outcome::Declined, "51") || hindered,
            Expected::Declined(wanted) => (outcome, code) == (Outcome::Declined, wanted),
            Expected::Refused(wanted) => (outcome, code) == (Outcome::Refused, wanted),
        }
    }

    fn check_row(&self, receipt: &wire::Receipt, found: &mut Vec<Violation>) {
        let state = match (receipt.outcome(), self.row()) {
            (Outcome::Refused, Some(row)) if self.sent.manner == Manner::ReusesKey => {
                if row.amount == i64::try_from(self.step.amount).unwrap_or(0) {
                    found.push(self.says("I3", "a reused key's amount was transacted"));
                }
                return;
            }
            (Outcome::Refused, None) => return,
            (Outcome::Refused, Some(_)) => return found.push(self.says("I3", "refused, and there is a transaction")),
            (_, None) => return found.push(self.says("I1", "a receipt, and there is no transaction")),
            (Outcome::Approved, Some(row)) => (row, "APPROVED"),
            (Outcome::Declined, Some(row)) => (row, "DECLINED"),
            (Outcome::Reversed, Some(row)) => (row, "REVERSED"),
            (Outcome::Pending | Outcome::Unspecified, Some(row)) => (row, "a final state"),
        };
        let (row, wanted) = state;
        if row.state != wanted {
            found.push(self.says("I1", &format!("the receipt says {wanted} and the transaction {}", row.state)));
        }
        let asked = (i64::try_from(self.step.amount).ok(), receipt.amount);
        if asked != (Some(row.amount), self.step.amount) {
            found.push(self.says("I5", "the amount of the transaction or its receipt is not what was asked"));
        }
        if row.rrn.clone().unwrap_or_default() != receipt.rrn {
            found.push(self.says("I2", "the receipt has another RRN"));
        }
    }
}

/// A receipt in words.
#[must_use]
pub fn word(receipt: &wire::Receipt) -> String {
    format!("{} {} ({})", receipt.outcome().as_str_name(), receipt.code, receipt.text)
}

fn transactions_without_a_terminal(evidence: &Evidence<'_>, found: &mut Vec<Violation>) {
    let known = |row: &Row| {
        evidence.terminals.iter().any(|terminal| {
            terminal.id.as_str() == row.terminal
                && terminal
                    .flash
                    .lock()
                    .requests
                    .iter()
                    .any(|sent| TransactionId::of(&terminal.id, sent.key).0 == row.id)
        })
    };
    for row in evidence.records.transactions.values() {
        if !row.is_final() {
            found.push(violation("I1", format!("not final at the end: {row:?}")));
        }
        if !known(row) {
            found.push(violation("I1", format!("a transaction that no terminal asked for: {row:?}")));
        }
    }
}

/// I5: the core is the witness.
fn money(evidence: &Evidence<'_>, found: &mut Vec<Violation>) {
    let mut nets: BTreeMap<String, Net> = nets(evidence.core);
    for row in evidence.records.transactions.values() {
        let net = row.rrn.as_ref().and_then(|rrn| nets.remove(rrn));
        let booked = net.as_ref().map_or(0, |net| net.booked);
        let posted = evidence.records.posted.get(&row.id).copied().unwrap_or(0);
        let wanted = if row.state == "APPROVED" { row.amount } else { 0 };
        if (booked, posted) != (wanted, wanted) {
            let what = format!("{wanted} is right, the core has {booked}, the ledger {posted}: {row:?}; core {net:?}");
            found.push(violation("I5", what));
        }
        if let Some(net) = net.filter(|net| net.terminal.trim() != row.terminal) {
            found.push(violation("I5", format!("the core knows it of another terminal: {row:?}; core {net:?}")));
        }
    }
    for (rrn, net) in nets {
        found.push(violation("I5", format!("the core has an RRN {rrn} that no transaction has: {net:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use prost::Message as _;
    use wakala::pin::dukpt::initial_key;
    use wakala::pin::terminal::Injected;
    use wakala::request::Kind;

    use super::*;
    use crate::cards::Village;
    use crate::core::journal::What;
    use crate::flash::{Flash, Receipt, Strange};
    use crate::mqtt::Version;
    use crate::terminal::{Patience, Server};

    /// A village of one terminal, one withdrawal, and everybody agrees about it.
    struct Sound {
        terminal: Terminal,
        core: Vec<Entry>,
        records: Records,
    }

    const AMOUNT: i64 = 500_000;

    fn receipt(terminal: &Terminal, outcome: Outcome, code: &str) -> Vec<u8> {
        let sent = &terminal.flash.lock().requests[0];
        let receipt = wire::Receipt {
            key: sent.key.0.to_vec(),
            outcome: outcome.into(),
            code: code.into(),
            amount: 500_000,
            rrn: "632501000042".into(),
            terminal: terminal.id.to_string(),
            ..wire::Receipt::default()
        };
        wire::ReceiptEnvelope { body: receipt.encode_to_vec(), mac: vec![1; 8] }.encode_to_vec()
    }

    fn sound() -> Sound {
        let village = Village::new(1, 1);
        let enrolled = &village.terminals[0];
        let step = Step {
            kind: Kind::Withdrawal,
            amount: 500_000,
            card: 0,
            pin_is_right: true,
            manner: Manner::Plain,
            expected: Expected::Approved,
        };
        let terminal = Terminal {
            id: enrolled.id.clone(),
            password: String::new(),
            version: Version::V5,
            pin_pad: Injected::new(initial_key(&village.bdk(), &enrolled.key_id), enrolled.key_id),
            cards: enrolled.cards.clone(),
            steps: vec![step],
            server: Server { address: ([127, 0, 0, 1], 1).into(), tls: None },
            patience: Patience::default(),
            opens: Instant::now(),
            flash: Flash::default(),
            progress: Arc::default(),
            closed: Arc::default(),
        };
        let at = Instant::now();
        terminal.store_next().expect("a request");
        let bytes = receipt(&terminal, Outcome::Approved, "00");
        let id = {
            let mut flash = terminal.flash.lock();
            flash.requests[0].pubacks.push(at);
            flash.requests[0].receipts.push(Receipt { bytes: bytes.clone(), at, authentic: true });
            TransactionId::of(&terminal.id, flash.requests[0].key).0
        };
        let row = Row {
            id,
            terminal: terminal.id.to_string(),
            kind: "WITHDRAWAL".into(),
            amount: AMOUNT,
            state: "APPROVED".into(),
            code: Some("00".into()),
            rrn: Some("632501000042".into()),
            reversals: 0,
        };
        let records = Records {
            transactions: [(id, row)].into(),
            receipts: [(id, bytes)].into(),
            posted: [(id, AMOUNT)].into(),
            ..Records::default()
        };
        let booked = Entry {
            at: 0,
            what: What::Booked,
            mti: "0200".into(),
            processing: "01".into(),
            rrn: "632501000042".into(),
            stan: "000042".into(),
            terminal: terminal.id.to_string(),
            agent: "A0001".into(),
            amount: AMOUNT,
            currency: "834".into(),
            card: String::new(),
            code: "00".into(),
            booked: AMOUNT,
        };
        Sound { terminal, core: vec![booked], records }
    }

    fn violated(spoil: impl FnOnce(&mut Sound)) -> Vec<&'static str> {
        let mut all = sound();
        spoil(&mut all);
        let evidence = Evidence { terminals: &[&all.terminal], core: &all.core, records: &all.records, broken: false };
        audit(&evidence).into_iter().map(|violation| violation.invariant).collect()
    }

    fn row(all: &mut Sound) -> &mut Row {
        all.records.transactions.values_mut().next().expect("a row")
    }

    #[test]
    fn where_everybody_agrees_nothing_is_violated() {
        assert_eq!(violated(|_| {}), [""; 0]);
    }

    #[test]
    fn a_lost_receipt_is_found() {
        assert_eq!(violated(|all| all.terminal.flash.lock().requests[0].receipts.clear()), ["I1"]);
    }

    #[test]
    fn a_receipt_that_changes_is_found() {
        let found = violated(|all| {
            let other = receipt(&all.terminal, Outcome::Declined, "05");
            let copy = Receipt { bytes: other, at: Instant::now(), authentic: true };
            all.terminal.flash.lock().requests[0].receipts.push(copy);
        });
        assert_eq!(found, ["I2"]);
        assert_eq!(violated(|all| all.terminal.flash.lock().requests[0].receipts[0].authentic = false), ["I2"]);
    }

    #[test]
    fn a_receipt_that_is_only_the_terminals_is_found() {
        assert_eq!(violated(|all| all.records.receipts.clear()), ["I6"]);
    }

    #[test]
    fn money_that_only_one_side_has_is_found() {
        assert_eq!(violated(|all| all.core.clear()), ["I5"]);
        assert_eq!(violated(|all| all.core.push(all.core[0].clone())), ["I5"]);
        assert_eq!(violated(|all| all.core[0].terminal = "T9".into()), ["I5"]);
        assert_eq!(violated(|all| all.records.posted.clear()), ["I5"]);
        let stranger = |all: &mut Sound| {
            let other = Entry { rrn: "632501000043".into(), ..all.core[0].clone() };
            all.core.push(other);
        };
        assert_eq!(violated(stranger), ["I5"]);
    }

    #[test]
    fn a_transaction_that_stays_open_or_says_something_else_is_found() {
        assert_eq!(violated(|all| row(all).state = "IN_DOUBT".into()), ["I1", "I1", "I5"]);
        assert_eq!(violated(|all| row(all).state = "REVERSED".into()), ["I1", "I5"]);
        assert!(violated(|all| row(all).amount = 1).contains(&"I5"));
        assert_eq!(violated(|all| all.records.transactions.clear()), ["I1", "I5"]);
    }

    #[test]
    fn what_the_ledger_and_its_rights_say_is_passed_on() {
        assert_eq!(violated(|all| all.records.ledger_faults.push("entry 1 sums to 5".into())), ["I4"]);
        assert_eq!(violated(|all| all.records.privileges.push("may UPDATE".into())), ["I7"]);
        assert_eq!(violated(|all| all.records.parked.push("offset 3".into())), ["I1"]);
    }

    #[test]
    fn a_message_for_somebody_else_is_found() {
        let strange = Strange { topic: "r/T2".into(), bytes: vec![1], why: "another terminal's topic" };
        assert_eq!(violated(|all| all.terminal.flash.lock().strange.push(strange)), ["I8"]);
    }
}
