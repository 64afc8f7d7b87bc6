//! Rows of `wakala.transaction`: there and back.

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::card::{CardRef, Expiry, Ksn, Masked, Sealed, Token};
use wakala::id::{PartitionNo, RequestKey, Rrn, Stan, TransactionId};
use wakala::money::{Currency, Money};
use wakala::receipt::Reason;
use wakala::request::Kind;
use wakala::time::Time;
use wakala::transaction::{State, Trace, Transaction};

use super::partitions::smallint;
use super::{Error, time_of, timestamp};

/// The columns that [`of_row`] reads, in no order that matters.
pub(super) const COLUMNS: &str = "id, partition, terminal, agent, core, key, fingerprint, kind, amount, currency, \
    card_token, card_masked, card_sealed, card_expiry, ksn, state, asked_at, stan, rrn, sent_at, due, reversals, code, \
    authorisation, updated_at";

/// A transaction as it is stored, and when its row last changed.
pub(super) fn of_row(row: &PgRow) -> Result<(Transaction, Time), Error> {
    let bad = |what: &'static str| move || Error::Broken(format!("a transaction's {what} cannot be read"));
    let id = TransactionId(row.try_get("id")?);
    let currency = Currency::from_code(row.try_get("currency")?).ok_or_else(bad("currency"))?;
    let minor = u64::try_from(row.try_get::<i64, _>("amount")?).map_err(|_| bad("amount")())?;
    let expiry = u16::try_from(row.try_get::<i16, _>("card_expiry")?).ok().and_then(Expiry::from_yymm);
    let stan: Option<i32> = row.try_get("stan")?;
    let trace = match (stan, row.try_get::<Option<&str>, _>("rrn")?, row.try_get("sent_at")?) {
        (Some(stan), Some(rrn), Some(sent_at)) => Some(Trace {
            stan: Stan(u32::try_from(stan).map_err(|_| bad("STAN")())?),
            rrn: Rrn::stored(rrn),
            sent_at: time_of(sent_at),
        }),
        _ => None,
    };
    let transaction = Transaction {
        id,
        partition: PartitionNo(u16::try_from(row.try_get::<i16, _>("partition")?).map_err(|_| bad("partition")())?),
        terminal: row.try_get::<&str, _>("terminal")?.parse().map_err(|_| bad("terminal")())?,
        agent: row.try_get::<&str, _>("agent")?.parse().map_err(|_| bad("agent")())?,
        core: row.try_get::<&str, _>("core")?.parse().map_err(|_| bad("core")())?,
        key: RequestKey(row.try_get::<&[u8], _>("key")?.try_into().map_err(|_| bad("key")())?),
        fingerprint: row.try_get::<&[u8], _>("fingerprint")?.try_into().map_err(|_| bad("fingerprint")())?,
        kind: kind_of(row.try_get("kind")?).ok_or_else(bad("kind"))?,
        amount: Money::new(minor, currency).map_err(|_| bad("amount")())?,
        card: CardRef {
            token: Token(row.try_get::<&[u8], _>("card_token")?.try_into().map_err(|_| bad("card token")())?),
            masked: Masked::stored(row.try_get("card_masked")?),
            sealed: Sealed(row.try_get::<&[u8], _>("card_sealed")?.into()),
            expiry: expiry.ok_or_else(bad("card expiry"))?,
        },
        ksn: row
            .try_get::<Option<&[u8]>, _>("ksn")?
            .map(|ksn| Ksn::from_bytes(ksn).ok_or_else(bad("KSN")))
            .transpose()?,
        state: State::parse(row.try_get("state")?).ok_or_else(bad("state"))?,
        asked_at: time_of(row.try_get("asked_at")?),
        trace,
        due: row.try_get::<Option<OffsetDateTime>, _>("due")?.map(time_of),
        reversals: u32::try_from(row.try_get::<i32, _>("reversals")?).map_err(|_| bad("reversals")())?,
        code: row.try_get::<Option<&str>, _>("code")?.map(Reason::new),
        authorisation: row.try_get::<Option<&str>, _>("authorisation")?.map(Into::into),
    };
    Ok((transaction, time_of(row.try_get("updated_at")?)))
}

fn kind_of(text: &str) -> Option<Kind> {
    [Kind::Withdrawal, Kind::Deposit].into_iter().find(|kind| kind.wire().as_str_name() == text)
}

/// The columns of many transactions, each an array for `unnest`.
#[derive(Default)]
struct Columns<'a> {
    id: Vec<Uuid>,
    partition: Vec<i16>,
    terminal: Vec<&'a str>,
    agent: Vec<&'a str>,
    core: Vec<&'a str>,
    key: Vec<&'a [u8]>,
    fingerprint: Vec<&'a [u8]>,
    kind: Vec<&'static str>,
    amount: Vec<i64>,
    currency: Vec<&'static str>,
    card_token: Vec<&'a [u8]>,
    card_masked: Vec<&'a str>,
    card_sealed: Vec<&'a [u8]>,
    card_expiry: Vec<i16>,
    ksn: Vec<Option<Vec<u8>>>,
    state: Vec<&'static str>,
    asked_at: Vec<OffsetDateTime>,
    stan: Vec<Option<i32>>,
    rrn: Vec<Option<&'a str>>,
    sent_at: Vec<Option<OffsetDateTime>>,
    due: Vec<Option<OffsetDateTime>>,
    reversals: Vec<i32>,
    code: Vec<Option<&'a str>>,
    authorisation: Vec<Option<&'a str>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, t: &'a Transaction) -> Result<(), Error> {
        let trace = t.trace.as_ref();
        self.id.push(t.id.0);
        self.partition.push(smallint(t.partition)?);
        self.terminal.push(t.terminal.as_str());
        self.agent.push(t.agent.as_str());
        self.core.push(t.core.as_str());
        self.key.push(&t.key.0);
        self.fingerprint.push(&t.fingerprint);
        self.kind.push(t.kind.wire().as_str_name());
        self.amount.push(t.amount.minor());
        self.currency.push(t.amount.currency().code());
        self.card_token.push(&t.card.token.0);
        self.card_masked.push(t.card.masked.as_str());
        self.card_sealed.push(&t.card.sealed.0);
        self.card_expiry.push(i16::try_from(t.card.expiry.yymm()).unwrap_or(i16::MAX));
        self.ksn.push(t.ksn.map(|ksn| ksn.to_bytes().to_vec()));
        self.state.push(t.state.as_str());
        self.asked_at.push(timestamp(t.asked_at));
        self.stan.push(trace.map(|trace| i32::try_from(trace.stan.0).unwrap_or(0)));
        self.rrn.push(trace.map(|trace| trace.rrn.as_str()));
        self.sent_at.push(trace.map(|trace| timestamp(trace.sent_at)));
        self.due.push(t.due.map(timestamp));
        self.reversals.push(i32::try_from(t.reversals).unwrap_or(i32::MAX));
        self.code.push(t.code.as_ref().map(Reason::as_str));
        self.authorisation.push(t.authorisation.as_deref());
        Ok(())
    }
}

/// Writes new transactions and what changed of known ones, in one statement.
pub(super) async fn write<'a>(
    db: &mut PgConnection,
    transactions: impl Iterator<Item = &'a Transaction>,
) -> Result<(), Error> {
    let mut columns = Columns::default();
    for transaction in transactions {
        columns.push(transaction)?;
    }
    if columns.id.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into wakala.transaction as t (id, partition, terminal, agent, core, key, fingerprint, kind, amount, \
         currency, card_token, card_masked, card_sealed, card_expiry, ksn, state, asked_at, stan, rrn, sent_at, due, \
         reversals, code, authorisation, updated_at) \
         select *, now() from unnest($1::uuid[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::bytea[], \
         $7::bytea[], $8::text[], $9::bigint[], $10::text[], $11::bytea[], $12::text[], $13::bytea[], $14::smallint[], \
         $15::bytea[], $16::text[], $17::timestamptz[], $18::integer[], $19::text[], $20::timestamptz[], \
         $21::timestamptz[], $22::integer[], $23::text[], $24::text[]) \
         on conflict (id) do update set state = excluded.state, stan = excluded.stan, rrn = excluded.rrn, \
         sent_at = excluded.sent_at, due = excluded.due, reversals = excluded.reversals, code = excluded.code, \
         authorisation = excluded.authorisation, updated_at = excluded.updated_at",
    )
    .bind(columns.id)
    .bind(columns.partition)
    .bind(columns.terminal)
    .bind(columns.agent)
    .bind(columns.core)
    .bind(columns.key)
    .bind(columns.fingerprint)
    .bind(columns.kind)
    .bind(columns.amount)
    .bind(columns.currency)
    .bind(columns.card_token)
    .bind(columns.card_masked)
    .bind(columns.card_sealed)
    .bind(columns.card_expiry)
    .bind(columns.ksn)
    .bind(columns.state)
    .bind(columns.asked_at)
    .bind(columns.stan)
    .bind(columns.rrn)
    .bind(columns.sent_at)
    .bind(columns.due)
    .bind(columns.reversals)
    .bind(columns.code)
    .bind(columns.authorisation)
    .execute(db)
    .await?;
    Ok(())
}
