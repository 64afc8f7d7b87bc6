//! What became of copies of messages and of receipts, counted in the very commits in which it became of them.
//!
//! Each commit adds rows of its own to `wakala.tally`: a row that all changed would be one that all wait for. So the counts
//! are exact whatever dies, for all nodes of a database together, and for what an operator's command queues. From time to
//! time the rows are summed up ([`Store::sum_up`]).

use std::collections::BTreeMap;

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use serde::{Deserialize, Serialize};
use wakala::conservation::{Ends, Fate, balance};

use super::{Error, Store};

/// A copy was addressed to a client whose session is kept.
pub(super) const ADDRESSED: &str = "addressed";

/// What became of all copies that are rows, or were, of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub addressed: u64,
    pub ends: Ends,
    /// Rows of `wakala.message`.
    pub waiting: u64,
    pub receipts: Receipts,
}

/// The same of receipts and notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipts {
    /// Made, or queued again because a terminal asked again.
    pub created: u64,
    pub delivered: u64,
    /// Notices that a receipt overtook.
    pub withdrawn: u64,
    pub waiting: u64,
}

impl Tally {
    /// Not 0 when copies were lost without a word, or counted twice.
    #[must_use]
    pub fn balance(&self) -> i64 {
        balance(self.addressed, self.waiting, self.ends.all())
    }
}

impl Receipts {
    #[must_use]
    pub fn balance(&self) -> i64 {
        balance(self.created, self.waiting, self.delivered + self.withdrawn)
    }
}

impl Store {
    /// What became of everything so far: in one snapshot, so that it is right also while much goes on.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn tally(&self) -> Result<Tally, Error> {
        self.run(|db| async move {
            let rows: Vec<(String, i64)> = sqlx::query_as(
                "select what, sum(copies)::bigint from wakala.tally group by what \
                 union all select 'waiting', count(*) from wakala.message \
                 union all select 'receipt_waiting', count(*) from wakala.receipt \
                   where delivered_at is null and withdrawn_at is null",
            )
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let counts: BTreeMap<String, u64> =
                rows.into_iter().map(|(what, copies)| (what, u64::try_from(copies).unwrap_or(0))).collect();
            let count = |what: &str| counts.get(what).copied().unwrap_or(0);
            let mut ends = Ends::default();
            for fate in Fate::ALL {
                ends.add(fate, count(fate.word()));
            }
            let receipts = Receipts {
                created: count("receipt_created"),
                delivered: count("receipt_delivered"),
                withdrawn: count("receipt_withdrawn"),
                waiting: count("receipt_waiting"),
            };
            Ok(Tally { addressed: count(ADDRESSED), ends, waiting: count("waiting"), receipts })
        })
        .await
    }

    /// Puts one row in the place of many. Two nodes may do it at once: each takes other rows.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn sum_up(&self) -> Result<(), Error> {
        self.run(|db| async move {
            sqlx::query(
                "with gone as (delete from wakala.tally returning what, copies) \
                 insert into wakala.tally select what, sum(copies) from gone group by what",
            )
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(())
        })
        .await
    }
}

/// Adds to the counts, as part of a commit.
pub(super) async fn add(db: &mut PgConnection, counts: &[(&str, usize)]) -> Result<(), Error> {
    let (what, copies) = columns(counts);
    if what.is_empty() {
        return Ok(());
    }
    sqlx::query("insert into wakala.tally select * from unnest($1::text[], $2::bigint[])")
        .bind(what)
        .bind(copies)
        .execute(db)
        .await?;
    Ok(())
}

/// The columns of the rows that are to be added.
pub(super) fn columns(counts: &[(&str, usize)]) -> (Vec<String>, Vec<i64>) {
    let counted = counts.iter().filter(|(_, copies)| *copies > 0);
    counted.map(|(what, copies)| ((*what).to_owned(), i64::try_from(*copies).unwrap_or(i64::MAX))).unzip()
}
