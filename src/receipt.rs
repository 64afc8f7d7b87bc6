//! What the terminal is told in the end, and what it is told while the end is not known.
//!
//! A receipt is made once, stored as the bytes that go out, and given again as the same bytes. A notice is not a receipt:
//! it says that the bank's answer is outstanding.

use prost::Message as _;

use crate::card::{Ksn, Masked};
use crate::id::{AgentId, RequestKey, Rrn, TerminalId, TransactionId};
use crate::money::Money;
use crate::request::{Kind, Refusal};
use crate::time::Time;
use crate::wire;

/// Whether more will follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The PENDING notice: a receipt will follow.
    Notice,
    /// The receipt.
    Final,
}

/// A receipt or notice, its authentication code not made yet (that takes a key).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The transaction, or what stands for one where bytes were refused.
    pub answers: TransactionId,
    pub terminal: TerminalId,
    pub stage: Stage,
    /// A serialised [`wire::Receipt`].
    pub body: Vec<u8>,
    /// What the code is made under; `None` leaves it out.
    pub ksn: Option<Ksn>,
    pub at: Time,
}

impl Answer {
    /// The bytes that go out, once and for all.
    #[must_use]
    pub fn envelope(&self, mac: Option<[u8; 8]>) -> Vec<u8> {
        let mac = mac.map_or_else(Vec::new, |mac| mac.to_vec());
        wire::ReceiptEnvelope { body: self.body.clone(), mac }.encode_to_vec()
    }
}

/// How a transaction stands, for whoever is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Approved { authorisation: Box<str> },
    Declined(Reason),
    Reversed,
    Pending,
}

/// ISO 8583:1987 data element 39, two characters: the core's own word, or ours where no core was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(Box<str>);

impl Reason {
    pub const INVALID_CARD: &'static str = "14";
    pub const EXPIRED_CARD: &'static str = "54";
    pub const INSUFFICIENT: &'static str = "51";
    pub const WRONG_PIN: &'static str = "55";
    pub const PIN_TRIES_EXCEEDED: &'static str = "75";
    pub const PIN_MALFORMED: &'static str = "63";
    pub const CORE_UNAVAILABLE: &'static str = "91";
    pub const MALFUNCTION: &'static str = "96";

    #[must_use]
    pub fn new(code: &str) -> Self {
        Self(code.into())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The shopkeeper's line for a code; docs/terminals.md has the same table.
#[must_use]
pub fn text_of(code: &str) -> &'static str {
    match code {
        "00" => "Approved",
        "05" => "Declined by the bank",
        "12" => "Not offered",
        "13" => "Amount not allowed",
        "14" => "Card not known",
        "30" => "Request not understood",
        "51" => "Not enough money",
        "54" => "Card expired",
        "55" => "Wrong PIN",
        "58" => "Terminal not allowed",
        "61" => "Over the limit",
        "63" => "Security check failed",
        "75" => "PIN blocked: see the bank",
        "91" => "Bank not reachable: try later",
        "94" => "Request number used before",
        "96" => "System fault: try later",
        _ => "Declined",
    }
}

/// What a receipt says of its transaction.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub transaction: TransactionId,
    pub terminal: &'a TerminalId,
    pub agent: &'a AgentId,
    pub key: RequestKey,
    pub kind: Kind,
    pub amount: Money,
    pub card: &'a Masked,
    pub rrn: Option<&'a Rrn>,
    pub ksn: Option<Ksn>,
}

impl Told<'_> {
    #[must_use]
    pub fn answer(&self, verdict: &Verdict, at: Time) -> Answer {
        let (stage, outcome, code, text, authorisation) = match verdict {
            Verdict::Approved { authorisation } => {
                (Stage::Final, wire::Outcome::Approved, "00", text_of("00"), authorisation.to_string())
            }
            Verdict::Declined(reason) => {
                let code = reason.as_str();
                (Stage::Final, wire::Outcome::Declined, code, text_of(code), String::new())
            }
            Verdict::Reversed => {
                (Stage::Final, wire::Outcome::Reversed, "91", "Taken back: no money moved", String::new())
            }
            Verdict::Pending => {
                (Stage::Notice, wire::Outcome::Pending, "09", "PENDING: wait, do not repeat", String::new())
            }
        };
        let receipt = wire::Receipt {
            key: self.key.0.to_vec(),
            outcome: outcome.into(),
            code: code.to_owned(),
            text: text.to_owned(),
            kind: self.kind.wire().into(),
            amount: u64::try_from(self.amount.minor()).unwrap_or(0),
            currency: self.amount.currency().numeric().into(),
            rrn: self.rrn.map_or_else(String::new, Rrn::to_string),
            authorisation,
            card: self.card.to_string(),
            at: at.seconds(),
            terminal: self.terminal.to_string(),
            agent: self.agent.to_string(),
        };
        Answer {
            answers: self.transaction,
            terminal: self.terminal.clone(),
            stage,
            body: receipt.encode_to_vec(),
            ksn: self.ksn,
            at,
        }
    }
}

/// What a stored receipt says otherwise than it should: the first field, with both values. The line for the shopkeeper's
/// screen may be worded as it pleases.
#[must_use]
pub fn contradiction(stored: &[u8], should: &Answer) -> Option<String> {
    let Some(said) = read(stored) else { return Some("its bytes are no receipt".to_owned()) };
    let Ok(should) = wire::Receipt::decode(should.body.as_slice()) else { return None };
    let fields = [
        ("outcome", said.outcome().as_str_name().to_owned(), should.outcome().as_str_name().to_owned()),
        ("amount", said.amount.to_string(), should.amount.to_string()),
        ("currency", said.currency.to_string(), should.currency.to_string()),
        ("kind", said.kind().as_str_name().to_owned(), should.kind().as_str_name().to_owned()),
        ("code", said.code.clone(), should.code),
        ("authorisation", said.authorisation.clone(), should.authorisation),
        ("retrieval reference number", said.rrn.clone(), should.rrn),
        ("card", said.card.clone(), should.card),
        ("terminal", said.terminal.clone(), should.terminal),
        ("agent", said.agent.clone(), should.agent),
        ("time", said.at.to_string(), should.at.to_string()),
        ("key", hex::encode(&said.key), hex::encode(&should.key)),
    ];
    let differing = fields.into_iter().find(|(_, said, should)| said != should);
    differing.map(|(field, said, should)| format!("the {field} is {said} on it and should be {should}"))
}

/// What a stored receipt says, if it is one and nothing more: a code has eight bytes or is not there.
fn read(stored: &[u8]) -> Option<wire::Receipt> {
    let envelope = wire::ReceiptEnvelope::decode(stored).ok()?;
    let said = wire::Receipt::decode(envelope.body.as_slice()).ok()?;
    let whole = envelope.encode_to_vec() == stored && said.encode_to_vec() == envelope.body;
    (whole && [0, 8].contains(&envelope.mac.len())).then_some(said)
}

/// The transaction that a stored receipt or notice of this terminal tells of. A refusal tells of none: what it answers has no
/// transaction, and its key may be a hash of whatever was sent.
#[must_use]
pub fn told_of(stored: &[u8], terminal: &TerminalId) -> Option<TransactionId> {
    let said = read(stored)?;
    let of_a_transaction = said.terminal == terminal.as_str() && said.outcome() != wire::Outcome::Refused;
    let key = said.key.as_slice().try_into().ok().filter(|_| of_a_transaction)?;
    Some(TransactionId::of(terminal, RequestKey(key)))
}

/// The answer to bytes that are not carried out. `answers` names the bytes, `key` what could be read of them.
#[must_use]
pub fn refusal(
    answers: TransactionId,
    terminal: &TerminalId,
    agent: &AgentId,
    key: RequestKey,
    refusal: Refusal,
    ksn: Option<Ksn>,
    at: Time,
) -> Answer {
    let receipt = wire::Receipt {
        key: key.0.to_vec(),
        outcome: wire::Outcome::Refused.into(),
        code: refusal.code().to_owned(),
        text: refusal.to_string(),
        at: at.seconds(),
        terminal: terminal.to_string(),
        agent: agent.to_string(),
        ..wire::Receipt::default()
    };
    Answer { answers, terminal: terminal.clone(), stage: Stage::Final, body: receipt.encode_to_vec(), ksn, at }
}

/// Where a terminal publishes its requests.
#[must_use]
pub fn request_topic(terminal: &TerminalId) -> String {
    format!("q/{terminal}")
}

/// Where a terminal hears its receipts.
#[must_use]
pub fn receipt_topic(terminal: &TerminalId) -> String {
    format!("r/{terminal}")
}
