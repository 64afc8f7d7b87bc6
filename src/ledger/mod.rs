//! Double entry: which accounts there are, and the balanced entries that a transaction makes.
//!
//! A transaction makes a *pending* entry when it is accepted and, when the core has answered, either a *posted* entry
//! or a *voided* one. Entries are inserted and never changed. An amount is signed: debits are positive, credits negative,
//! and every entry sums to zero.

use std::fmt;

use crate::id::{AgentId, CoreId, TransactionId};
use crate::money::{Currency, Money};
use crate::request::Kind;
use crate::time::Time;

/// What an account is, apart from its currency.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountKind {
    /// What the bank owes the agent. Has a floor, so its balance is a row that is locked.
    Float(AgentId),
    /// What is settled with the core for its customers' accounts. No floor; its balance is the sum of its postings.
    Settlement(CoreId),
}

/// An account in the chart of accounts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    pub kind: AccountKind,
    /// ISO 4217 letters; [`Currency`] itself has no order.
    currency: &'static str,
}

impl Account {
    #[must_use]
    pub fn new(kind: AccountKind, currency: Currency) -> Self {
        Self { kind, currency: currency.code() }
    }

    #[must_use]
    pub fn float(agent: AgentId, currency: Currency) -> Self {
        Self::new(AccountKind::Float(agent), currency)
    }

    #[must_use]
    pub fn currency(&self) -> &'static str {
        self.currency
    }
}

impl fmt::Display for Account {
    /// `float:A1:TZS`, the name that auditors see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            AccountKind::Float(agent) => write!(f, "float:{agent}:{}", self.currency),
            AccountKind::Settlement(core) => write!(f, "settlement:{core}:{}", self.currency),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Pending,
    Posted,
    Voided,
}

impl Phase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Posted => "posted",
            Self::Voided => "voided",
        }
    }
}

/// One line of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    pub account: Account,
    /// Minor units; debit positive, credit negative.
    pub minor: i64,
}

/// A balanced entry. A voided one has no postings: it says that the pending one of the same transaction came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub transaction: TransactionId,
    pub phase: Phase,
    pub postings: Vec<Posting>,
    pub at: Time,
}

/// How an entry changes the locked balance row of a float.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatMove {
    pub account: Account,
    /// Added to what the agent has, in minor units.
    pub posted: i64,
    /// Added to what is held of it.
    pub reserved: i64,
}

/// What a kind of transaction books.
fn postings(kind: Kind, agent: &AgentId, core: &CoreId, amount: Money) -> Vec<Posting> {
    let float = Account::float(agent.clone(), amount.currency());
    let settlement = Account::new(AccountKind::Settlement(core.clone()), amount.currency());
    let (debit, credit) = match kind {
        // The agent hands out cash: the bank owes him that much more.
        Kind::Withdrawal => (settlement, float),
        Kind::Deposit => (float, settlement),
    };
    vec![Posting { account: debit, minor: amount.minor() }, Posting { account: credit, minor: -amount.minor() }]
}

/// What an entry needs to know of its transaction.
#[derive(Clone, Copy, Debug)]
pub struct Booked<'a> {
    pub transaction: TransactionId,
    pub kind: Kind,
    pub agent: &'a AgentId,
    pub core: &'a CoreId,
    pub amount: Money,
}

impl Booked<'_> {
    #[must_use]
    pub fn entry(&self, phase: Phase, at: Time) -> Entry {
        let postings = match phase {
            Phase::Pending | Phase::Posted => postings(self.kind, self.agent, self.core, self.amount),
            Phase::Voided => Vec::new(),
        };
        Entry { transaction: self.transaction, phase, postings, at }
    }

    #[must_use]
    pub fn float_move(&self, phase: Phase) -> Option<FloatMove> {
        let amount = self.amount.minor();
        let (posted, reserved) = match (self.kind, phase) {
            (Kind::Withdrawal, Phase::Posted) => (amount, 0),
            (Kind::Withdrawal, Phase::Pending | Phase::Voided) => return None,
            (Kind::Deposit, Phase::Pending) => (0, amount),
            (Kind::Deposit, Phase::Posted) => (-amount, -amount),
            (Kind::Deposit, Phase::Voided) => (0, -amount),
        };
        Some(FloatMove { account: Account::float(self.agent.clone(), self.amount.currency()), posted, reserved })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booked(kind: Kind, then: impl Fn(&Booked<'_>)) {
        let (agent, core) = (AgentId::new("A1").expect("name"), CoreId::new("C1").expect("name"));
        let amount = Money::new(500, Currency::TZS).expect("amount");
        let transaction = TransactionId(uuid::Uuid::nil());
        then(&Booked { transaction, kind, agent: &agent, core: &core, amount });
    }

    fn table(entry: &Entry) -> Vec<String> {
        entry.postings.iter().map(|p| format!("{} {:+}", p.account, p.minor)).collect()
    }

    #[test]
    fn cash_out_raises_the_float_and_cash_in_lowers_it() {
        let at = Time::from_millis(0);
        booked(Kind::Withdrawal, |b| {
            assert_eq!(table(&b.entry(Phase::Posted, at)), ["settlement:C1:TZS +500", "float:A1:TZS -500"]);
        });
        booked(Kind::Deposit, |b| {
            assert_eq!(table(&b.entry(Phase::Posted, at)), ["float:A1:TZS +500", "settlement:C1:TZS -500"]);
        });
    }

    #[test]
    fn every_entry_sums_to_zero() {
        for kind in [Kind::Withdrawal, Kind::Deposit] {
            for phase in [Phase::Pending, Phase::Posted, Phase::Voided] {
                booked(kind, |b| {
                    let entry = b.entry(phase, Time::from_millis(0));
                    assert_eq!(entry.postings.iter().map(|p| p.minor).sum::<i64>(), 0);
                });
            }
        }
    }

    #[test]
    fn the_balance_row_follows_the_postings() {
        // Over any way through the phases, what the row says is what the posted entries say.
        for kind in [Kind::Withdrawal, Kind::Deposit] {
            for way in [[Phase::Pending, Phase::Posted], [Phase::Pending, Phase::Voided]] {
                booked(kind, |b| {
                    let moves = way.iter().filter_map(|&phase| b.float_move(phase));
                    let (posted, reserved) = moves.fold((0, 0), |(p, r), m| (p + m.posted, r + m.reserved));
                    let owed: i64 = way
                        .iter()
                        .filter(|&&phase| phase == Phase::Posted)
                        .flat_map(|&phase| b.entry(phase, Time::from_millis(0)).postings)
                        .filter(|p| matches!(p.account.kind, AccountKind::Float(_)))
                        .map(|p| -p.minor)
                        .sum();
                    assert_eq!((posted, reserved), (owed, 0), "{kind:?} {way:?}");
                });
            }
        }
    }
}
