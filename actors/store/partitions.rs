//! Partitions: leases, epochs, and the one database transaction in which a decision is committed.
//!
//! A lease says who works; the epoch says whose writes count. [`Store::begin`] locks the owner's row as long as the epoch
//! and the position are the ones that the caller knows, so a late owner writes nothing and two owners cannot interleave,
//! whatever their clocks say of the lease (law 6). No clock but the database's has a say in leases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use sea_orm::sqlx::{self, PgConnection, Postgres, Transaction as Opened};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;
use wakala::id::{CoreId, Epoch, Offset, PartitionNo, Stan, TransactionId};
use wakala::ledger::Account;
use wakala::partition::{Decision, Known, Needs};
use wakala::receipt::Answer;
use wakala::time::Time;
use wakala::transaction::{State, Transaction};

pub use super::receipts::Hint;
use super::{Error, Store, accounts, decision, in_time, timestamp, transactions};

/// A partition's number as its column has it.
pub(super) fn smallint(partition: PartitionNo) -> Result<i16, Error> {
    i16::try_from(partition.0).map_err(|_| Error::Broken(format!("partition {partition} is beyond {}", i16::MAX)))
}

fn partition_no(number: i16) -> Result<PartitionNo, Error> {
    u16::try_from(number).map(PartitionNo).map_err(|_| Error::Broken(format!("a partition numbered {number}")))
}

impl Store {
    /// Renews this node's leases, takes partitions that nobody has up to its share, lets go of what it has beyond its
    /// share, and says which are this node's now. The share is what all partitions divided by all nodes that were here
    /// within a lease come to.
    ///
    /// # Errors
    /// When the database does not do it; leases that are not renewed run out.
    pub async fn claim_partitions(
        &self,
        node: &str,
        partitions: u16,
        lease: Duration,
    ) -> Result<Vec<PartitionNo>, Error> {
        let node = node.to_owned();
        let last = smallint(PartitionNo(partitions))?;
        let lease = lease.as_secs_f64();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let owned = claim(&mut opened, &node, last, lease).await?;
            opened.commit().await?;
            owned.into_iter().map(partition_no).collect()
        })
        .await
    }

    /// Gives all leases of this node back, so that others need not wait for them to run out.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn release_partitions(&self, node: &str) -> Result<(), Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            take_turns(&mut opened).await?;
            sqlx::query("update wakala.partition_owner set node = null, lease_until = null where node = $1")
                .bind(&node)
                .execute(&mut *opened)
                .await?;
            sqlx::query("delete from wakala.node where name = $1").bind(&node).execute(&mut *opened).await?;
            opened.commit().await?;
            Ok(())
        })
        .await
    }

    /// Raises the epoch and reads what the partition's owner needs: how far the log is worked off, and the open
    /// transactions. Waits for a commit of the owner before that is under way, and counts it.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease is not this node's.
    pub async fn load_partition(
        &self,
        partition: PartitionNo,
        node: &str,
    ) -> Result<(Epoch, Offset, Vec<Transaction>), Error> {
        let (number, node) = (smallint(partition)?, node.to_owned());
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let raised: Option<(i64, i64)> = sqlx::query_as(
                "update wakala.partition_owner set epoch = epoch + 1 \
                 where partition = $1 and node = $2 and lease_until > clock_timestamp() returning epoch, position",
            )
            .bind(number)
            .bind(&node)
            .fetch_optional(&mut *opened)
            .await?;
            let Some((epoch, position)) = raised else {
                return Err(Error::Fenced(format!("partition {partition} is not {node}'s")));
            };
            // What was suspected and is behind us was innocent, or is parked.
            sqlx::query(r#"delete from wakala.suspect where partition = $1 and "offset" < $2"#)
                .bind(number)
                .bind(position)
                .execute(&mut *opened)
                .await?;
            let open = open_transactions(&mut opened, number).await?;
            opened.commit().await?;
            Ok((Epoch(epoch), Offset(position), open))
        })
        .await
    }

    /// Counts that a record is about to be tried again, in a commit of its own, and says how often it was. A late owner's
    /// tries do not count: they would park a record that killed nobody.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the epoch is no longer the caller's.
    pub async fn suspect(&self, partition: PartitionNo, epoch: Epoch, offset: Offset) -> Result<i32, Error> {
        let number = smallint(partition)?;
        self.run(move |db| async move {
            let counted: Option<(i32,)> = sqlx::query_as(
                r#"insert into wakala.suspect as s (partition, "offset", attempts)
                   select partition, $2, 1 from wakala.partition_owner where partition = $1 and epoch = $3
                   for no key update
                   on conflict (partition, "offset") do update set attempts = s.attempts + 1 returning attempts"#,
            )
            .bind(number)
            .bind(offset.0)
            .bind(epoch.0)
            .fetch_optional(db.get_postgres_connection_pool())
            .await?;
            let past = || Error::Fenced(format!("partition {partition} is past epoch {}", epoch.0));
            counted.map(|(attempts,)| attempts).ok_or_else(past)
        })
        .await
    }

    /// Opens the database transaction that will commit a decision: fences, and reads what the twin needs. The floats
    /// stay locked until [`Work::commit`], or until the work is dropped, which undoes it.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the epoch or the position is no longer the caller's.
    pub async fn begin(
        &self,
        partition: PartitionNo,
        epoch: Epoch,
        position: Offset,
        needs: &Needs,
    ) -> Result<Work, Error> {
        let fence = Fence { partition, number: smallint(partition)?, epoch, position };
        let (store, needs) = (self.clone(), needs.clone());
        let patience = self.inner.call_timeout;
        self.run_holding(move |db, permit| {
            in_time(patience, async move {
                let pool = db.get_postgres_connection_pool();
                // In a commit of their own: two partitions that meet a new agent must not wait for each other's decision.
                let accounts = accounts::ensure(pool, &store.inner.accounts, &needs.floats).await?;
                let mut opened = pool.begin().await?;
                fence.check(&mut opened).await?;
                let known = known(&mut opened, &needs.ids).await?;
                let locked: BTreeSet<i64> = accounts.values().copied().collect();
                let free = accounts::lock(&mut opened, &locked).await?;
                let stans = draw_stans(&mut opened, needs.stans).await?;
                let floats = accounts
                    .into_iter()
                    .filter_map(|(account, id)| free.get(&id).map(|&free| (account, free)))
                    .collect();
                Ok(Work { known, floats, stans, fence, locked, opened: Some(opened), permit: Some(permit), store })
            })
        })
        .await
    }

    /// Keeps an answer that matches nothing in flight, for whoever reconciles.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn unmatched_answer(&self, core: &CoreId, at: Time, summary: serde_json::Value) -> Result<(), Error> {
        let core = core.to_string();
        self.run(move |db| async move {
            sqlx::query("insert into wakala.unmatched_answer (core, at, summary) values ($1, $2, $3)")
                .bind(core)
                .bind(timestamp(at))
                .bind(summary)
                .execute(db.get_postgres_connection_pool())
                .await?;
            Ok(())
        })
        .await
    }
}

/// The database transaction of one decision, open. Dropped without a commit, it never was.
pub struct Work {
    /// Which of the identities asked for are known.
    pub known: BTreeMap<TransactionId, Known>,
    /// What is free in the floats asked for, minor units. Locked.
    pub floats: BTreeMap<Account, i64>,
    /// Drawn for this decision; those not used are lost, which a STAN may be.
    pub stans: VecDeque<Stan>,
    fence: Fence,
    /// The accounts whose balance rows are locked.
    locked: BTreeSet<i64>,
    opened: Option<Opened<'static, Postgres>>,
    permit: Option<OwnedSemaphorePermit>,
    store: Store,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("partition", &self.fence.partition).finish_non_exhaustive()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // The connection goes back to its pool by a task, which must be runtime D's wherever we are dropped.
        let _inside = self.store.inner.handle.enter();
        self.opened = None;
        self.permit = None;
    }
}

impl Work {
    /// Writes the decision, its answers with the bytes that go out, and the position; all of it or nothing. Gives the
    /// receipts that terminals can be woken for.
    ///
    /// # Errors
    /// When it is not committed or, with [`Error::Away`], perhaps not: the caller loads again and sees.
    pub async fn commit(mut self, decision: Decision, sealed: Vec<(Answer, Vec<u8>)>) -> Result<Vec<Hint>, Error> {
        let (Some(opened), Some(permit)) = (self.opened.take(), self.permit.take()) else {
            return Err(Error::Broken("committed twice".to_owned()));
        };
        let (store, fence, locked) = (self.store.clone(), self.fence.clone(), std::mem::take(&mut self.locked));
        let committing = self.store.inner.handle.spawn(async move {
            let patience = store.inner.call_timeout;
            let done = in_time(patience, write(&store, opened, &fence, locked, &decision, &sealed)).await;
            drop(permit);
            done
        });
        committing.await.unwrap_or_else(|error| Err(Error::Away(error.to_string())))
    }
}

async fn write(
    store: &Store,
    mut opened: Opened<'static, Postgres>,
    fence: &Fence,
    locked: BTreeSet<i64>,
    decision: &Decision,
    sealed: &[(Answer, Vec<u8>)],
) -> Result<Vec<Hint>, Error> {
    let mut accounts = accounts::known(&mut opened, &store.inner.accounts, &decision::accounts(decision)).await?;
    let moved: BTreeSet<i64> = decision.floats.iter().filter_map(|m| accounts.get(&m.account)).copied().collect();
    if !accounts::lock_more(&mut opened, &locked, &moved).await? {
        // Somebody holds a float that we want and may be waiting for one that we hold. Start over and lock all of them
        // in the order that everybody keeps. The fence says that nobody decided for this partition in between; what
        // others took from the floats in between, the balance rows' own check will say.
        opened.rollback().await?;
        opened = store.inner.db.get_postgres_connection_pool().begin().await?;
        fence.check(&mut opened).await?;
        accounts::lock(&mut opened, &locked.union(&moved).copied().collect()).await?;
    }
    let made = accounts::make_missing(&mut opened, &mut accounts, &decision::accounts(decision)).await?;
    if let Some(position) = decision.position {
        fence.advance(&mut opened, position).await?;
    }
    transactions::write(&mut opened, decision.transactions.values()).await?;
    decision::write_ledger(&mut opened, decision, &accounts).await?;
    decision::write_asides(&mut opened, fence.number, decision).await?;
    let hints = decision::write_receipts(&mut opened, sealed, &decision.again).await?;
    opened.commit().await?;
    accounts::remember(&store.inner.accounts, made);
    Ok(hints)
}

/// Whose writes count.
#[derive(Clone, Debug)]
struct Fence {
    partition: PartitionNo,
    number: i16,
    epoch: Epoch,
    /// Before the decision.
    position: Offset,
}

impl Fence {
    /// Locks the owner's row: until the end of this database transaction nobody can raise the epoch.
    async fn check(&self, db: &mut PgConnection) -> Result<(), Error> {
        let mine: Option<(i16,)> = sqlx::query_as(
            "select partition from wakala.partition_owner where partition = $1 and epoch = $2 and position = $3 \
             for no key update",
        )
        .bind(self.number)
        .bind(self.epoch.0)
        .bind(self.position.0)
        .fetch_optional(db)
        .await?;
        mine.map(drop).ok_or_else(|| self.broken_through())
    }

    async fn advance(&self, db: &mut PgConnection, to: Offset) -> Result<(), Error> {
        let moved = sqlx::query(
            "update wakala.partition_owner set position = $4 where partition = $1 and epoch = $2 and position = $3",
        )
        .bind(self.number)
        .bind(self.epoch.0)
        .bind(self.position.0)
        .bind(to.0)
        .execute(db)
        .await?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(self.broken_through()) }
    }

    fn broken_through(&self) -> Error {
        let Self { partition, epoch, position, .. } = self;
        Error::Fenced(format!("partition {partition} is past epoch {} or position {}", epoch.0, position.0))
    }
}

/// Nodes that claim and release do so one after the other, or their shares would not add up.
async fn take_turns(db: &mut PgConnection) -> Result<(), Error> {
    // The number means nothing; whoever claims uses the same.
    sqlx::query("select pg_advisory_xact_lock(7738222)").execute(db).await?;
    Ok(())
}

async fn claim(db: &mut PgConnection, node: &str, partitions: i16, lease: f64) -> Result<Vec<i16>, Error> {
    take_turns(db).await?;
    sqlx::query(
        "insert into wakala.partition_owner (partition) select generate_series(0, $1::int - 1)::smallint \
         on conflict do nothing",
    )
    .bind(partitions)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "insert into wakala.node (name, seen_at) values ($1, clock_timestamp()) \
         on conflict (name) do update set seen_at = excluded.seen_at",
    )
    .bind(node)
    .execute(&mut *db)
    .await?;
    // Beyond the share: given up, highest first. Below: renewed, and filled up with what nobody has.
    let owned: Vec<(i16,)> = sqlx::query_as(
        "with nodes as (select greatest(count(*), 1) as n from wakala.node \
                        where seen_at > clock_timestamp() - make_interval(secs => $3)), \
              share as (select ceil($2::numeric / n) as most from nodes), \
              mine as (select partition, row_number() over (order by node is distinct from $1, partition) as place \
                       from wakala.partition_owner \
                       where partition < $2 and (node = $1 or node is null or lease_until <= clock_timestamp())) \
         update wakala.partition_owner o \
         set node = case when place <= most then $1 end, \
             lease_until = case when place <= most then clock_timestamp() + make_interval(secs => $3) end \
         from mine, share where mine.partition = o.partition and (place <= most or o.node = $1) \
         returning case when o.node is not null then o.partition end",
    )
    .bind(node)
    .bind(partitions)
    .bind(lease)
    .fetch_all(db)
    .await
    .map(|rows: Vec<(Option<i16>,)>| {
        rows.into_iter().filter_map(|(number,)| number.map(|number| (number,))).collect()
    })?;
    let mut owned: Vec<i16> = owned.into_iter().map(|(number,)| number).collect();
    owned.sort_unstable();
    Ok(owned)
}

async fn open_transactions(db: &mut PgConnection, number: i16) -> Result<Vec<Transaction>, Error> {
    let text = format!(
        "select {} from wakala.transaction where partition = $1 and state in ('ACCEPTED', 'SENT', 'IN_DOUBT') \
         order by asked_at, id",
        transactions::COLUMNS
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(text)).bind(number).fetch_all(db).await?;
    rows.iter().map(|row| transactions::of_row(row).map(|(transaction, _)| transaction)).collect()
}

async fn known(db: &mut PgConnection, ids: &BTreeSet<TransactionId>) -> Result<BTreeMap<TransactionId, Known>, Error> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let rows: Vec<(Uuid, Option<Vec<u8>>, Option<String>)> = sqlx::query_as(
        "select asked.id, t.fingerprint, t.state from unnest($1::uuid[]) asked (id) \
         left join wakala.transaction t on t.id = asked.id \
         where t.id is not null or exists (select from wakala.receipt r where r.answers = asked.id and r.stage = 1)",
    )
    .bind(ids)
    .fetch_all(db)
    .await?;
    let read = |(id, fingerprint, state): (Uuid, Option<Vec<u8>>, Option<String>)| {
        let known = match (fingerprint, state) {
            (Some(fingerprint), Some(state)) => {
                let bad = || Error::Broken(format!("transaction {id} cannot be read"));
                Known::Transaction {
                    fingerprint: fingerprint.try_into().map_err(|_| bad())?,
                    state: State::parse(&state).ok_or_else(bad)?,
                }
            }
            _ => Known::Refusal,
        };
        Ok((TransactionId(id), known))
    };
    rows.into_iter().map(read).collect()
}

async fn draw_stans(db: &mut PgConnection, count: usize) -> Result<VecDeque<Stan>, Error> {
    if count == 0 {
        return Ok(VecDeque::new());
    }
    let count = i32::try_from(count).map_err(|_| Error::Broken(format!("{count} STANs at once")))?;
    let drawn: Vec<(i64,)> =
        sqlx::query_as("select nextval('wakala.stan') from generate_series(1, $1)").bind(count).fetch_all(db).await?;
    Ok(drawn.into_iter().map(|(stan,)| Stan(u32::try_from(stan).unwrap_or(0))).collect())
}
