//! What the database remembers, read for the auditor; and the ledger watched while a run goes on.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, FromQueryResult, QueryResult};
use uuid::Uuid;

use crate::enrol::statement;

/// A transaction's row.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Row {
    pub id: Uuid,
    pub terminal: String,
    pub kind: String,
    /// Minor units.
    pub amount: i64,
    pub state: String,
    pub code: Option<String>,
    pub rrn: Option<String>,
    pub reversals: i32,
}

impl Row {
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "APPROVED" | "DECLINED" | "REVERSED")
    }
}

/// All of it that the auditor compares.
#[derive(Debug, Default)]
pub struct Records {
    pub transactions: BTreeMap<Uuid, Row>,
    /// The stored bytes of each final receipt.
    pub receipts: BTreeMap<Uuid, Vec<u8>>,
    /// What the ledger posted to settlement accounts, in minor units without its sign, by transaction.
    pub posted: BTreeMap<Uuid, i64>,
    /// Sums that are not zero.
    pub ledger_faults: Vec<String>,
    /// Rights that the service's role must not have, and has.
    pub privileges: Vec<String>,
    /// Records that no partition would follow.
    pub parked: Vec<String>,
}

impl Records {
    /// Reads them as the owner of the schema.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn read(owner: &DatabaseConnection) -> anyhow::Result<Self> {
        let mut records = Self::default();
        let sql = "select id, terminal, kind, amount, state, code, rrn, reversals from wakala.transaction";
        for row in rows(owner, sql).await? {
            let row = Row::from_query_result(&row, "")?;
            records.transactions.insert(row.id, row);
        }
        for row in rows(owner, "select answers, envelope from wakala.receipt where stage = 1").await? {
            records.receipts.insert(row.try_get("", "answers")?, row.try_get("", "envelope")?);
        }
        let sql = "select e.transaction, abs(sum(p.minor))::bigint as minor from ledger.entry e \
                   join ledger.posting p on p.entry_id = e.id \
                   join ledger.account a on a.id = p.account_id and a.kind = 'settlement' \
                   where e.phase = 'posted' group by e.transaction";
        for row in rows(owner, sql).await? {
            records.posted.insert(row.try_get("", "transaction")?, row.try_get("", "minor")?);
        }
        records.ledger_faults = unbalanced(owner).await?;
        records.privileges = forbidden_rights(owner).await?;
        let sql = "select format('partition %s offset %s: %s', partition, \"offset\", why) as it from wakala.parked";
        records.parked = texts(owner, sql).await?;
        Ok(records)
    }
}

/// I4: sums that are not zero, in one snapshot.
async fn unbalanced(database: &DatabaseConnection) -> anyhow::Result<Vec<String>> {
    let sql = "with line as (select p.entry_id, a.currency, p.minor from ledger.posting p \
                             join ledger.account a on a.id = p.account_id) \
               select format('entry %s in %s sums to %s', entry_id, currency, sum(minor)) as it \
               from line group by entry_id, currency having sum(minor) <> 0 \
               union all \
               select format('all postings in %s sum to %s', currency, sum(minor)) from line \
               group by currency having sum(minor) <> 0";
    texts(database, sql).await
}

/// I7: what the service may do to the ledger and must not.
async fn forbidden_rights(database: &DatabaseConnection) -> anyhow::Result<Vec<String>> {
    let sql = "select format('wakala_service may %s %s', r, t) as it \
               from unnest(array['ledger.entry', 'ledger.posting', 'ledger.account']) as t, \
                    unnest(array['UPDATE', 'DELETE', 'TRUNCATE']) as r \
               where has_table_privilege('wakala_service', t, r)";
    texts(database, sql).await
}

/// How many transactions are not final.
///
/// # Errors
/// When the database does not answer.
pub async fn open(database: &DatabaseConnection) -> anyhow::Result<i64> {
    let sql = "select count(*) as n from wakala.transaction where state in ('ACCEPTED', 'SENT', 'IN_DOUBT')";
    let row = database.query_one_raw(statement(sql, [])).await?;
    Ok(row.map_or(Ok(0), |row| row.try_get("", "n"))?)
}

/// The ledger as it was seen: every entry with a hash of it and its lines.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<i64, String>,
    /// How often it was looked at.
    pub looks: u32,
    /// What changed that must not, or did not sum to zero.
    pub faults: Vec<String>,
}

impl Watch {
    /// Looks again, at one snapshot.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look(&mut self, database: &DatabaseConnection) -> anyhow::Result<()> {
        let sql = "select e.id, md5(concat(e::text, string_agg(p::text, ',' order by p.line))) as hash \
                   from ledger.entry e left join ledger.posting p on p.entry_id = e.id group by e.id";
        let mut now = BTreeMap::new();
        for row in rows(database, sql).await? {
            now.insert(row.try_get::<i64>("", "id")?, row.try_get::<String>("", "hash")?);
        }
        for (id, hash) in &self.seen {
            match now.get(id) {
                None => self.faults.push(format!("entry {id} is gone")),
                Some(found) if found != hash => self.faults.push(format!("entry {id} was changed")),
                Some(_) => {}
            }
        }
        self.faults.extend(unbalanced(database).await?);
        self.seen = now;
        self.looks += 1;
        Ok(())
    }
}

async fn rows(database: &DatabaseConnection, sql: &str) -> anyhow::Result<Vec<QueryResult>> {
    Ok(database.query_all_raw(statement(sql, [])).await?)
}

async fn texts(database: &DatabaseConnection, sql: &str) -> anyhow::Result<Vec<String>> {
    rows(database, sql).await?.iter().map(|row| Ok(row.try_get("", "it")?)).collect()
}
