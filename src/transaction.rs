//! The life cycle of one transaction.
//!
//! ```text
//!            ┌────────── declined here (PIN, card, float, core away too long) ──────────┐
//!            │                                                                          ▼
//! record ─▶ ACCEPTED ─▶ SENT ─┬─ the core approves ──▶ APPROVED                     DECLINED
//!                             ├─ the core declines ─────────────────────────────────────▲
//!                             └─ time-out, link lost, crash ─▶ IN_DOUBT ─ 0430 ─▶ REVERSED
//! ```
//!
//! SENT is committed before a byte leaves for the core, with the STAN and RRN in it, so that a reversal after a crash
//! can name its original (law 5). An answer that comes when the transaction is in doubt is recorded and changes nothing:
//! its reversal is under way.

use std::time::Duration;

use crate::card::{CardRef, Ksn};
use crate::id::{AgentId, CoreId, PartitionNo, RequestKey, Rrn, Stan, TerminalId, TransactionId};
use crate::ledger::Booked;
use crate::money::Money;
use crate::receipt::{Reason, Told, Verdict};
use crate::request::Kind;
use crate::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// To be sent when the core has room; nothing left this house.
    Accepted,
    /// May be at the core.
    Sent,
    /// Was sent, and the answer did not come; a reversal is owed until the core acknowledges it.
    InDoubt,
    Approved,
    Declined,
    Reversed,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Accepted, Self::Sent, Self::InDoubt, Self::Approved, Self::Declined, Self::Reversed];

    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Accepted | Self::Sent | Self::InDoubt => false,
            Self::Approved | Self::Declined | Self::Reversed => true,
        }
    }

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "ACCEPTED",
            Self::Sent => "SENT",
            Self::InDoubt => "IN_DOUBT",
            Self::Approved => "APPROVED",
            Self::Declined => "DECLINED",
            Self::Reversed => "REVERSED",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// One transaction, as it is stored. Everything here is in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub id: TransactionId,
    pub partition: PartitionNo,
    pub terminal: TerminalId,
    pub agent: AgentId,
    pub core: CoreId,
    pub key: RequestKey,
    pub fingerprint: [u8; 32],
    pub kind: Kind,
    pub amount: Money,
    pub card: CardRef,
    pub ksn: Option<Ksn>,
    pub state: State,
    /// When the edge took the request in.
    pub asked_at: Time,
    /// Set with SENT.
    pub trace: Option<Trace>,
    /// When something is to be done if nothing happens first: give up waiting for room (ACCEPTED), give up waiting for
    /// the answer (SENT), repeat the reversal (IN_DOUBT). `None` when final.
    pub due: Option<Time>,
    /// Reversal messages sent so far: the first is 0420, the others 0421.
    pub reversals: u32,
    /// The core's data element 39, or ours.
    pub code: Option<Reason>,
    /// The core's data element 38.
    pub authorisation: Option<Box<str>>,
}

/// How the core will know this transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub stan: Stan,
    pub rrn: Rrn,
    /// Data element 7 of the request, and part of the reversal's data element 90.
    pub sent_at: Time,
}

/// What the core says of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoreAnswer {
    /// To the request.
    Approved { authorisation: Box<str> },
    /// To the request; nothing was booked.
    Declined(Reason),
    /// To the reversal: it is booked back, or there was nothing to book back.
    Reversed,
    /// To the reversal: not now. It is repeated.
    ReversalRefused(Reason),
}

/// How long a transaction waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From the edge to the core. One that has not left by then is declined with code 91: whoever stood at the counter
    /// has gone, and would be debited for cash that nobody hands out.
    pub request: Duration,
    /// For room at the core, before it is declined with code 91.
    pub room: Duration,
    /// For the core's answer, before it is in doubt.
    pub answer: Duration,
    /// Before the first repeat of a reversal; doubled each time.
    pub reversal_first: Duration,
    /// The longest wait between two repeats.
    pub reversal_max: Duration,
}

impl Patience {
    /// Until when a request waits for room: from now, or as long as it is not too old.
    #[must_use]
    pub fn waits_until(&self, asked_at: Time, now: Time) -> Time {
        (now + self.room).min(asked_at + self.request)
    }

    /// When an open transaction is due at the latest.
    #[must_use]
    pub fn latest(&self, transaction: &Transaction, now: Time) -> Time {
        match transaction.state {
            State::Accepted => now + self.room,
            State::Sent => now + self.answer,
            State::InDoubt => now + self.reversal(transaction.reversals),
            State::Approved | State::Declined | State::Reversed => now,
        }
    }

    /// The wait after the `sent`-th reversal message.
    #[must_use]
    pub fn reversal(&self, sent: u32) -> Duration {
        let doubled = self.reversal_first.saturating_mul(1_u32.checked_shl(sent.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.reversal_max)
    }
}

impl Transaction {
    #[must_use]
    pub fn booked(&self) -> Booked<'_> {
        Booked { transaction: self.id, kind: self.kind, agent: &self.agent, core: &self.core, amount: self.amount }
    }

    /// How it stands, for its terminal.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.state {
            State::Approved => Verdict::Approved { authorisation: self.authorisation.clone().unwrap_or_default() },
            State::Reversed => Verdict::Reversed,
            State::Declined => Verdict::Declined(self.code.clone().unwrap_or_else(|| Reason::new(Reason::MALFUNCTION))),
            State::Accepted | State::Sent | State::InDoubt => Verdict::Pending,
        }
    }

    #[must_use]
    pub fn told(&self) -> Told<'_> {
        Told {
            transaction: self.id,
            terminal: &self.terminal,
            agent: &self.agent,
            key: self.key,
            kind: self.kind,
            amount: self.amount,
            card: &self.card.masked,
            rrn: self.trace.as_ref().map(|trace| &trace.rrn),
            ksn: self.ksn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_of_a_reversal_thin_out() {
        let patience = Patience {
            request: Duration::ZERO,
            room: Duration::ZERO,
            answer: Duration::ZERO,
            reversal_first: Duration::from_secs(1),
            reversal_max: Duration::from_secs(60),
        };
        let waits: Vec<u64> = [1, 2, 3, 6, 7, 8, 40, u32::MAX].map(|n| patience.reversal(n).as_secs()).into();
        assert_eq!(waits, [1, 2, 4, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn states_are_stored_by_name() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("approved"), None);
    }
}
