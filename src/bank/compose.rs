//! A transaction as a message of a dialect.

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::card::Pan;
use crate::iso8583::{Bytes, Class, Dialect, Format, Length, Message, Mti, Shape, Source, Unfit, Unfitness, Value};
use crate::time::Time;
use crate::transaction::{Trace, Transaction};

/// What a message is to achieve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// 0200.
    Ask,
    /// 0420, or 0421 when the core was told before.
    Reverse,
}

/// A message to be written once the card's number is at hand. The twin makes it, the actor opens the number.
#[derive(Debug)]
pub struct Draft {
    /// What the twin knows it by.
    pub ticket: u64,
    pub order: Order,
    pub transaction: Box<Transaction>,
    /// Data element 7 of a reversal.
    pub at: Time,
}

impl Draft {
    /// The message's bytes, without length and header.
    ///
    /// # Errors
    /// When the transaction does not fit the dialect.
    pub fn encode(&self, dialect: &Dialect, pan: &Pan) -> Result<Bytes, Unfit> {
        let message = compose(dialect, self.order, &self.transaction, self.at, Some(pan))?;
        dialect.layout.encode(&message)
    }
}

const MMDDHHMMSS: &[BorrowedFormatItem<'_>] = format_description!("[month][day][hour][minute][second]");
const HHMMSS: &[BorrowedFormatItem<'_>] = format_description!("[hour][minute][second]");
const MMDD: &[BorrowedFormatItem<'_>] = format_description!("[month][day]");

/// The message, or, without a card's number, all of it but DE2.
pub(super) fn compose(
    dialect: &Dialect,
    order: Order,
    transaction: &Transaction,
    at: Time,
    pan: Option<&Pan>,
) -> Result<Message, Unfit> {
    let request = dialect.request(transaction.kind);
    let (shape, mti) = match order {
        Order::Ask => (request, request.mti),
        Order::Reverse if transaction.reversals > 1 => (&dialect.reversal, dialect.reversal.mti.repeat()),
        Order::Reverse => (&dialect.reversal, dialect.reversal.mti),
    };
    let missing = |field| Unfit { field, why: Unfitness::Missing };
    let trace = transaction.trace.as_ref().ok_or_else(|| missing(11))?;
    let at = if order == Order::Ask { trace.sent_at } else { at };
    let from = From { dialect, request, transaction, trace, at, pan };
    let mut message = Message::new(mti);
    for (&field, source) in &shape.fields {
        let source =
            if *source == Source::Same { request.fields.get(&field).ok_or_else(|| missing(field))? } else { source };
        if *source == Source::Pan && pan.is_none() {
            continue;
        }
        let format = dialect.layout.fields.get(&field).ok_or(Unfit { field, why: Unfitness::Unknown })?;
        message.set(field, from.value(field, source, format)?);
    }
    Ok(message)
}

/// A message about the link itself.
pub(super) fn compose_link(dialect: &Dialect, shape: &Shape, stan: u32, at: Time) -> Message {
    let mut message = Message::new(shape.mti);
    for (&field, source) in &shape.fields {
        let value = match source {
            Source::Literal(literal) => Value::new(literal.to_vec()),
            Source::Stan => Value::from(format!("{stan:06}").as_str()),
            Source::LocalTime => formatted(local(dialect, at), HHMMSS),
            Source::LocalDate => formatted(local(dialect, at), MMDD),
            // A dialect gives these messages no other source.
            _ => formatted(at.utc(), MMDDHHMMSS),
        };
        message.set(field, value);
    }
    message
}

/// The answer to the core's own echo or sign-off: what it said, and that it is well.
pub(super) fn reply(mut request: Message, code: &str) -> Message {
    let mut answer = Message::new(request.mti.response());
    for field in [7, 11, 33, 70] {
        if let Some(value) = request.take(field) {
            answer.set(field, value);
        }
    }
    answer.with(39, code)
}

pub(super) const REPLY_MTI: Mti = Mti::NETWORK_REQUEST;

struct From<'a> {
    dialect: &'a Dialect,
    request: &'a Shape,
    transaction: &'a Transaction,
    trace: &'a Trace,
    at: Time,
    pan: Option<&'a Pan>,
}

impl From<'_> {
    fn value(&self, field: u8, source: &Source, format: &Format) -> Result<Value, Unfit> {
        let transaction = self.transaction;
        let text = |text: &str| Ok(Value::from(text));
        match source {
            Source::Literal(literal) => Ok(Value::new(literal.to_vec())),
            Source::Pan => {
                let pan = self.pan.ok_or(Unfit { field, why: Unfitness::Missing })?;
                Ok(Value::new(pan.digits().iter().map(|digit| b'0' + digit).collect()))
            }
            Source::Expiry => text(&format!("{:04}", transaction.card.expiry.yymm())),
            Source::Amount => text(&format!("{:012}", transaction.amount.minor())),
            Source::Currency => text(&format!("{:03}", transaction.amount.currency().numeric())),
            Source::Transmission => Ok(formatted(self.at.utc(), MMDDHHMMSS)),
            Source::LocalTime => Ok(formatted(local(self.dialect, self.trace.sent_at), HHMMSS)),
            Source::LocalDate => Ok(formatted(local(self.dialect, self.trace.sent_at), MMDD)),
            Source::Stan => text(&self.trace.stan.to_string()),
            Source::Rrn => text(self.trace.rrn.as_str()),
            Source::Terminal => text(transaction.terminal.as_str()),
            Source::TerminalTail => text(tail(transaction.terminal.as_str(), format)),
            Source::Agent => text(transaction.agent.as_str()),
            Source::AgentTail => text(tail(transaction.agent.as_str(), format)),
            Source::Original => Ok(self.original()),
            Source::Same => Err(Unfit { field, why: Unfitness::Missing }),
        }
    }

    /// DE90: MTI (4), STAN (6), transmission time (10), acquirer (11) and forwarder (11) of the request.
    fn original(&self) -> Value {
        let institution = |field| match self.request.fields.get(&field) {
            Some(Source::Literal(digits)) => String::from_utf8_lossy(digits).into_owned(),
            _ => String::new(),
        };
        let sent_at = self.trace.sent_at.utc().format(MMDDHHMMSS).unwrap_or_default();
        let (mti, stan) = (self.request.mti, self.trace.stan);
        Value::new(format!("{mti}{stan}{sent_at}{:0>11}{:0>11}", institution(32), institution(33)).into_bytes())
    }
}

/// Names are ASCII, so that any byte may be the first of a tail.
fn tail<'a>(name: &'a str, format: &Format) -> &'a str {
    let (Length::Fixed(max) | Length::Variable { max, .. }) = format.length;
    &name[name.len().saturating_sub(max)..]
}

fn local(dialect: &Dialect, at: Time) -> OffsetDateTime {
    let offset = UtcOffset::from_whole_seconds(i32::from(dialect.utc_offset_minutes) * 60);
    at.utc().to_offset(offset.unwrap_or(UtcOffset::UTC))
}

fn formatted(at: OffsetDateTime, format: &[BorrowedFormatItem<'_>]) -> Value {
    Value::new(at.format(format).unwrap_or_default().into_bytes())
}

/// A value as it is compared: digits without leading zeros, text without padding at the right. Cores differ in both.
pub(super) fn comparable<'a>(dialect: &Dialect, field: u8, text: &'a str) -> &'a str {
    match dialect.layout.fields.get(&field).map(|format| format.class) {
        Some(Class::N) => text.trim_start_matches('0'),
        _ => text.trim_end(),
    }
}
