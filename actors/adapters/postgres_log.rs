//! The log in Postgres: the default, for a node that has nothing else beside it.
//!
//! An append locks the head row of its partition until the commit, so offsets have no gaps and whoever sees one sees all
//! before it; all that gathers while one commit is under way goes into the next, whatever its partition. A reader sleeps
//! until its partition's head moves: this node's appends move it at once, those of others are found by one look at the
//! heads per [`Options::poll`]. There is no NOTIFY: it would take a global lock at every commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::{self, PgPool};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wakala::id::{Offset, PartitionNo, TerminalId};
use wakala::time::Time;

use crate::ports::{Clock, Log, LogError, Logged, Reader, Wait};
use crate::store::batch::Batcher;
use crate::store::{self, Store, timestamp};

/// The log in Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Partitions of the log. Fixed once there is a record: a terminal must stay in its partition.
    pub partitions: u16,
    /// The largest record, in bytes.
    pub record_max_bytes: usize,
    /// Records in one commit, at most.
    pub batch_max: usize,
    /// Records that may wait for the next commit; who comes then waits to be let in.
    pub waiting_max: usize,
    /// How often the appends of other nodes are looked for.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            partitions: 12,
            record_max_bytes: 64 * 1024,
            batch_max: 256,
            waiting_max: 4096,
            poll: Duration::from_millis(250),
        }
    }
}

/// One record on its way in.
struct Appended {
    partition: i16,
    terminal: String,
    bytes: Vec<u8>,
    at: Time,
}

/// The next offset of each partition, as far as this node knows.
type Heads = Vec<watch::Sender<i64>>;

/// See the module's text.
pub struct PostgresLog {
    store: Store,
    options: Options,
    clock: Arc<dyn Clock>,
    batches: Batcher<Appended, i64>,
    heads: Arc<Heads>,
}

impl std::fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresLog").field("options", &self.options).finish_non_exhaustive()
    }
}

impl PostgresLog {
    /// Opens the log; makes its partitions when there are none.
    ///
    /// # Errors
    /// [`LogError::Broken`] when the log in this database has another number of partitions.
    pub async fn open(store: Store, options: &Options, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let partitions = i16::try_from(options.partitions.max(1)).unwrap_or(i16::MAX);
        let found = store.run(move |db| async move { make_heads(db.get_postgres_connection_pool(), partitions).await });
        let found = found.await.map_err(away)?;
        if found.len() != usize::from(partitions.unsigned_abs()) {
            let why = format!("the log has {} partitions, and {partitions} are configured", found.len());
            return Err(LogError::Broken { position: Offset(0), why });
        }
        let heads: Arc<Heads> = Arc::new(found.into_iter().map(watch::Sender::new).collect());
        let batches = {
            let (store, heads) = (store.clone(), Arc::clone(&heads));
            let counts = Arc::clone(&store.metrics().batches.requests);
            Batcher::counted(&store.handle().clone(), options.waiting_max, options.batch_max, counts, move |batch| {
                append(store.clone(), Arc::clone(&heads), batch)
            })
        };
        // It ends with the log, whose heads it does not keep alive.
        store.handle().spawn(look_for_others(store.clone(), Arc::downgrade(&heads), options.poll));
        Ok(Self { store, options: options.clone(), clock, batches, heads })
    }
}

impl Log for PostgresLog {
    fn partitions(&self) -> u16 {
        u16::try_from(self.heads.len()).unwrap_or(u16::MAX)
    }

    fn append(
        &self,
        partition: PartitionNo,
        terminal: &TerminalId,
        record: Vec<u8>,
    ) -> Wait<'static, Result<Offset, LogError>> {
        let max = self.options.record_max_bytes;
        if record.len() > max {
            let found = record.len();
            return Box::pin(async move { Err(LogError::TooLarge { found, max }) });
        }
        if usize::from(partition.0) >= self.heads.len() {
            let why = format!("there is no partition {partition}");
            return Box::pin(async { Err(LogError::Broken { position: Offset(0), why }) });
        }
        let appended = Appended {
            partition: i16::try_from(partition.0).unwrap_or(i16::MAX),
            terminal: terminal.to_string(),
            bytes: record,
            at: self.clock.now(),
        };
        let batches = self.batches.clone();
        Box::pin(async move { batches.submit(appended).await.map(Offset).map_err(away) })
    }

    fn read(&self, partition: PartitionNo, from: Offset) -> Result<Box<dyn Reader>, LogError> {
        let Some(head) = self.heads.get(usize::from(partition.0)) else {
            let why = format!("there is no partition {partition}");
            return Err(LogError::Broken { position: from, why });
        };
        Ok(Box::new(PostgresReader {
            store: self.store.clone(),
            partition: i16::try_from(partition.0).unwrap_or(i16::MAX),
            position: from.0,
            head: head.subscribe(),
            checked: false,
        }))
    }
}

struct PostgresReader {
    store: Store,
    partition: i16,
    /// The next record to be read.
    position: i64,
    head: watch::Receiver<i64>,
    /// The position was found to be one of this log.
    checked: bool,
}

impl Reader for PostgresReader {
    fn next(&mut self, max: usize) -> Wait<'_, Result<Vec<Logged>, LogError>> {
        Box::pin(async move {
            self.check().await?;
            let position = self.position;
            self.head
                .wait_for(|&next| next > position)
                .await
                .map_err(|_| LogError::Away("the log is closed".into()))?;
            let (partition, max) = (self.partition, i64::try_from(max.max(1)).unwrap_or(i64::MAX));
            let read = self.store.run(move |db| async move {
                let records: Vec<(i64, Vec<u8>)> = sqlx::query_as(
                    r#"select "offset", bytes from wakala.log_record where partition = $1 and "offset" >= $2
                       order by "offset" limit $3"#,
                )
                .bind(partition)
                .bind(position)
                .bind(max)
                .fetch_all(db.get_postgres_connection_pool())
                .await?;
                Ok(records)
            });
            let records = read.await.map_err(away)?;
            let mut read = Vec::with_capacity(records.len());
            for ((offset, bytes), expected) in records.into_iter().zip(position..) {
                if offset != expected {
                    return Err(self.broken(format!("record {expected} is gone; the next one is {offset}")));
                }
                read.push(Logged { offset: Offset(offset), bytes });
            }
            match read.last() {
                Some(last) => self.position = last.offset.0 + 1,
                None => return Err(self.broken("the records from here on are gone".to_owned())),
            }
            Ok(read)
        })
    }
}

impl PostgresReader {
    async fn check(&mut self) -> Result<(), LogError> {
        if self.checked {
            return Ok(());
        }
        let partition = self.partition;
        let asked = self.store.run(move |db| async move {
            let (next,): (i64,) = sqlx::query_as("select next_offset from wakala.log_head where partition = $1")
                .bind(partition)
                .fetch_one(db.get_postgres_connection_pool())
                .await?;
            Ok(next)
        });
        let next = asked.await.map_err(away)?;
        if !(0..=next).contains(&self.position) {
            return Err(self.broken(format!("the log ends at {next}")));
        }
        self.checked = true;
        Ok(())
    }

    fn broken(&self, why: String) -> LogError {
        LogError::Broken { position: Offset(self.position), why }
    }
}

fn away(error: store::Error) -> LogError {
    LogError::Away(error.to_string())
}

/// The next offset of every partition there is, in their order.
async fn make_heads(pool: &PgPool, partitions: i16) -> Result<Vec<i64>, store::Error> {
    let mut opened = pool.begin().await?;
    // Two nodes that open a new log with different numbers must not each make its own.
    sqlx::query("select pg_advisory_xact_lock(7738223)").execute(&mut *opened).await?;
    sqlx::query(
        "insert into wakala.log_head (partition) select generate_series(0, $1::int - 1)::smallint \
         where not exists (select from wakala.log_head)",
    )
    .bind(partitions)
    .execute(&mut *opened)
    .await?;
    let heads: Vec<(i64,)> =
        sqlx::query_as("select next_offset from wakala.log_head order by partition").fetch_all(&mut *opened).await?;
    opened.commit().await?;
    Ok(heads.into_iter().map(|(next,)| next).collect())
}

/// Appends a batch in one commit and moves the heads.
async fn append(store: Store, heads: Arc<Heads>, batch: Vec<Appended>) -> Result<Vec<i64>, store::Error> {
    let (offsets, moved) = store
        .run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let mut counts: BTreeMap<i16, i64> = BTreeMap::new();
            for appended in &batch {
                *counts.entry(appended.partition).or_default() += 1;
            }
            let moved: Vec<(i16, i64)> = sqlx::query_as(
                "with wanted as (select * from unnest($1::smallint[], $2::bigint[]) w (partition, n)), \
                      locked as (select h.partition from wakala.log_head h where h.partition = any($1) \
                                 order by h.partition for no key update) \
                 update wakala.log_head h set next_offset = h.next_offset + w.n \
                 from wanted w join locked l on l.partition = w.partition where h.partition = w.partition \
                 returning h.partition, h.next_offset",
            )
            .bind(counts.keys().copied().collect::<Vec<_>>())
            .bind(counts.values().copied().collect::<Vec<_>>())
            .fetch_all(&mut *opened)
            .await?;
            let moved: BTreeMap<i16, i64> = moved.into_iter().collect();
            let mut next: BTreeMap<i16, i64> =
                moved.iter().map(|(partition, end)| (*partition, end - counts.get(partition).unwrap_or(&0))).collect();
            let mut offsets = Vec::with_capacity(batch.len());
            for appended in &batch {
                let none = || store::Error::Broken(format!("partition {} has no head", appended.partition));
                let next = next.get_mut(&appended.partition).ok_or_else(none)?;
                offsets.push(*next);
                *next += 1;
            }
            sqlx::query(
                r#"insert into wakala.log_record (partition, "offset", terminal, bytes, at)
                   select * from unnest($1::smallint[], $2::bigint[], $3::text[], $4::bytea[], $5::timestamptz[])"#,
            )
            .bind(batch.iter().map(|appended| appended.partition).collect::<Vec<_>>())
            .bind(&offsets)
            .bind(batch.iter().map(|appended| appended.terminal.as_str()).collect::<Vec<_>>())
            .bind(batch.iter().map(|appended| appended.bytes.as_slice()).collect::<Vec<_>>())
            .bind(batch.iter().map(|appended| timestamp(appended.at)).collect::<Vec<_>>())
            .execute(&mut *opened)
            .await?;
            opened.commit().await?;
            Ok((offsets, moved))
        })
        .await?;
    for (partition, next) in moved {
        raise(&heads, partition, next);
    }
    Ok(offsets)
}

fn raise(heads: &Heads, partition: i16, next: i64) {
    if let Some(head) = usize::try_from(partition).ok().and_then(|at| heads.get(at)) {
        head.send_if_modified(|known| {
            let newer = next > *known;
            *known = next.max(*known);
            newer
        });
    }
}

async fn look_for_others(store: Store, heads: std::sync::Weak<Heads>, poll: Duration) {
    loop {
        tokio::time::sleep(poll).await;
        match heads.upgrade() {
            None => return,
            // A node that reads nothing need not look.
            Some(heads) if heads.iter().all(|head| head.receiver_count() == 0) => continue,
            Some(_) => {}
        }
        let looked = store.run(|db| async move {
            let heads: Vec<(i16, i64)> = sqlx::query_as("select partition, next_offset from wakala.log_head")
                .fetch_all(db.get_postgres_connection_pool())
                .await?;
            Ok(heads)
        });
        // A database that is away is reported by whoever wants something of it.
        if let (Ok(found), Some(heads)) = (looked.await, heads.upgrade()) {
            for (partition, next) in found {
                raise(&heads, partition, next);
            }
        }
    }
}
