//! Traces: what clients sent and were sent while an operator wanted it kept, redacted. A trace is a row; whichever node its
//! client is connected to adds to it, until its time is over, it is full, or somebody stops it.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::id::{ClientId, TransactionId};
use wakala::session::redacted::Summary;
use wakala::time::Time;

use super::batch::Batcher;
use super::{Error, Store, time_of, timestamp};

/// A trace to be.
#[derive(Clone, Debug)]
pub struct NewTrace {
    pub client: ClientId,
    pub who: String,
    pub why: String,
    pub begun_at: Time,
    pub until: Time,
    pub rows_max: u32,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    Begun(i64),
    /// There are as many as may be.
    Full,
}

/// A trace that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub trace: i64,
    pub client: ClientId,
    pub until: Time,
}

/// A trace as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: i64,
    pub client: String,
    pub who: String,
    pub why: String,
    pub begun_at: Time,
    pub until: Time,
    /// When and why.
    pub ended: Option<(Time, String)>,
    /// How often a node has taken it up.
    pub looks: i32,
    pub rows: i32,
    pub rows_max: i32,
    /// Packets that are missing.
    pub lost: i64,
}

/// A row that is to be added to a trace.
#[derive(Clone, Debug)]
pub struct Row {
    pub trace: i64,
    pub look: i32,
    /// Of this look. Whoever is not sure whether a row is stored stores it again.
    pub made: i64,
    pub at: Time,
    pub said: Said,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// What is stored of a packet is what an operator may see of it, and there is no other way to make that.
    Packet { way: String, what: Summary, transaction: Option<TransactionId> },
    /// So many packets are missing here.
    Lost(u64),
}

/// A row of a trace, as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub trace: i64,
    pub nth: i32,
    pub look: i32,
    pub node: String,
    pub at: Time,
    pub said: Said,
}

/// Adds rows to traces, many in one commit.
pub type Rows = Batcher<Row, ()>;

/// How long a row may wait for others. Nobody waits for it.
const PATIENCE: Duration = Duration::from_millis(100);
/// Rows of one commit.
const BATCH_MAX: usize = 256;
/// How long it is tried while the database is away; then the rows are lost, and counted.
const TRIED_FOR: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(500);

/// Why a trace has ended by itself.
const OVER: &str = "its time was over";
const FULL: &str = "as many packets as were wanted, or as may be (tap.trace_rows_max)";

const COLUMNS: &str = "id, client_id, who, why, begun_at, until, ended_at, ended_why, looks, rows, rows_max, lost";

fn of_row(row: &PgRow) -> Result<Trace, Error> {
    let ended_at: Option<OffsetDateTime> = row.try_get("ended_at")?;
    Ok(Trace {
        id: row.try_get("id")?,
        client: row.try_get("client_id")?,
        who: row.try_get("who")?,
        why: row.try_get("why")?,
        begun_at: time_of(row.try_get("begun_at")?),
        until: time_of(row.try_get("until")?),
        ended: ended_at.map(time_of).zip(row.try_get("ended_why")?),
        looks: row.try_get("looks")?,
        rows: row.try_get("rows")?,
        rows_max: row.try_get("rows_max")?,
        lost: row.try_get("lost")?,
    })
}

fn told(row: &PgRow) -> Result<Told, Error> {
    let what: Option<String> = row.try_get("what")?;
    let said = match (row.try_get("way")?, what) {
        (Some(way), Some(what)) => {
            let what = serde_json::from_str(&what);
            let what = what.map_err(|error| Error::Broken(format!("a traced packet cannot be read: {error}")))?;
            Said::Packet { way, what, transaction: row.try_get::<Option<Uuid>, _>("transaction")?.map(TransactionId) }
        }
        _ => Said::Lost(row.try_get::<Option<i64>, _>("lost")?.and_then(|lost| lost.try_into().ok()).unwrap_or(0)),
    };
    Ok(Told {
        trace: row.try_get("trace")?,
        nth: row.try_get("nth")?,
        look: row.try_get("look")?,
        node: row.try_get("node")?,
        at: time_of(row.try_get("at")?),
        said,
    })
}

const LINE: &str = "trace, nth, look, node, at, way, what::text as what, transaction, lost";

impl Store {
    /// Begins a trace, unless there are `max`, and records that among what operators do.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn begin_trace(&self, new: NewTrace, max: u32) -> Result<Beginning, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let open = sqlx::query_as("select count(*) from wakala.trace where ended_at is null and until > $1");
            let (open,): (i64,) = open.bind(timestamp(new.begun_at)).fetch_one(&mut *opened).await?;
            if open >= i64::from(max) {
                return Ok(Beginning::Full);
            }
            let (trace,): (i64,) = sqlx::query_as(
                "with t as (insert into wakala.trace (client_id, who, why, begun_at, until, rows_max) \
                   values ($1, $2, $3, $4, $5, $6) returning *), \
                 a as (insert into wakala.admin_action (at, what, client_id, node, who, why, done_at, outcome) \
                   select begun_at, 'tap', client_id, '', who, why, begun_at, 'kept as trace ' || id from t) \
                 select id from t",
            )
            .bind(new.client.as_str())
            .bind(new.who)
            .bind(new.why)
            .bind(timestamp(new.begun_at))
            .bind(timestamp(new.until))
            .bind(i32::try_from(new.rows_max).unwrap_or(i32::MAX))
            .fetch_one(&mut *opened)
            .await?;
            opened.commit().await?;
            Ok(Beginning::Begun(trace))
        })
        .await
    }

    /// Stops a trace. False when there is none that has not ended.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn stop_trace(&self, trace: i64, by: &str, at: Time) -> Result<bool, Error> {
        let why = format!("stopped by {by}");
        self.run(move |db| async move {
            let stopped =
                sqlx::query("update wakala.trace set ended_at = $2, ended_why = $3 where id = $1 and ended_at is null")
                    .bind(trace)
                    .bind(timestamp(at))
                    .bind(why)
                    .execute(db.get_postgres_connection_pool())
                    .await?;
            Ok(stopped.rows_affected() > 0)
        })
        .await
    }

    /// The traces that have not ended. Those whose time is over end with this.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn open_traces(&self, now: Time) -> Result<Vec<Open>, Error> {
        self.run(move |db| async move {
            let pool = db.get_postgres_connection_pool();
            let open: Vec<(i64, String, OffsetDateTime)> =
                sqlx::query_as("select id, client_id, until from wakala.trace where ended_at is null order by id")
                    .fetch_all(pool)
                    .await?;
            let (open, over): (Vec<_>, Vec<_>) = open.into_iter().partition(|(.., until)| *until > timestamp(now));
            if !over.is_empty() {
                sqlx::query(
                    "update wakala.trace set ended_at = until, ended_why = $2 where ended_at is null and until <= $1",
                )
                .bind(timestamp(now))
                .bind(OVER)
                .execute(pool)
                .await?;
            }
            let named = |(trace, client, until): (i64, String, _)| {
                Some(Open { trace, client: ClientId::new(&client).ok()?, until: time_of(until) })
            };
            Ok(open.into_iter().filter_map(named).collect())
        })
        .await
    }

    /// A node takes traces up: which look at each it is, of those that have not ended meanwhile.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn look_at_traces(&self, traces: Vec<i64>) -> Result<Vec<(i64, i32)>, Error> {
        self.run(move |db| async move {
            let looks = sqlx::query_as(
                "update wakala.trace set looks = looks + 1 where id = any($1) and ended_at is null returning id, looks",
            );
            Ok(looks.bind(traces).fetch_all(db.get_postgres_connection_pool()).await?)
        })
        .await
    }

    /// A batcher that adds rows to traces. They are handed over.
    #[must_use]
    pub fn trace_rows(&self, node: &str) -> Rows {
        let (store, node) = (self.clone(), node.to_owned());
        let counts = std::sync::Arc::clone(&self.metrics().batches.traces);
        Batcher::patient(self.handle(), PATIENCE, 1, BATCH_MAX, counts, move |rows| {
            let (store, node) = (store.clone(), node.clone());
            async move {
                let began = tokio::time::Instant::now();
                loop {
                    match store.add_to_traces(&node, rows.clone()).await {
                        Ok(()) => return Ok(vec![(); rows.len()]),
                        Err(Error::Away(_)) if began.elapsed() < TRIED_FOR => tokio::time::sleep(RETRY).await,
                        Err(error) => {
                            tracing::warn!(%error, rows = rows.len(), "packets of a trace are lost; they are counted");
                            return Err(error);
                        }
                    }
                }
            }
        })
    }

    /// Adds rows to their traces. A row of before a trace's end is stored after it, too; what is stored already is not stored
    /// again.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn add_to_traces(&self, node: &str, rows: Vec<Row>) -> Result<(), Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let packets: Vec<_> = rows.iter().map(|row| packet(&row.said)).collect();
            // The trace's row is locked: whoever adds to it as well comes before or after, and numbers go on without gaps.
            sqlx::query(
                "with l as (select * from unnest($1::bigint[], $2::integer[], $3::bigint[], $4::timestamptz[], \
                     $5::text[], $6::text[], $7::uuid[], $8::bigint[]) \
                   with ordinality l (trace, look, made, at, way, what, transaction, lost, place)), \
                 t as materialized (select id, rows, rows_max, ended_at from wakala.trace where id = any($1) \
                   order by id for no key update), \
                 new as (select l.*, rows_max, \
                     t.rows + row_number() over (partition by l.trace order by l.place) as nth \
                   from l join t on t.id = l.trace where (t.ended_at is null or l.at < t.ended_at) \
                   and not exists (select from wakala.trace_row k \
                     where k.trace = l.trace and k.look = l.look and k.made = l.made)), \
                 kept as (insert into wakala.trace_row \
                     (trace, nth, look, made, node, at, way, what, transaction, lost) \
                   select trace, nth, look, made, $9, at, way, what::jsonb, transaction, lost from new \
                   where nth <= rows_max on conflict do nothing returning trace, lost), \
                 n as (select trace, count(*) as rows, coalesce(sum(lost), 0) as lost from kept group by trace), \
                 last as (select trace, max(at) as at from l group by trace) \
                 update wakala.trace t set rows = t.rows + n.rows, lost = t.lost + n.lost, \
                   ended_at = case when t.rows + n.rows < t.rows_max then t.ended_at else coalesce(t.ended_at, last.at) end, \
                   ended_why = case when t.rows + n.rows < t.rows_max then t.ended_why else coalesce(t.ended_why, $10) end \
                 from n join last using (trace) where t.id = n.trace",
            )
            .bind(rows.iter().map(|row| row.trace).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.look).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.made).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| timestamp(row.at)).collect::<Vec<_>>())
            .bind(packets.iter().map(|packet| packet.0.clone()).collect::<Vec<_>>())
            .bind(packets.iter().map(|packet| packet.1.clone()).collect::<Vec<_>>())
            .bind(packets.iter().map(|packet| packet.2).collect::<Vec<_>>())
            .bind(packets.iter().map(|packet| packet.3).collect::<Vec<_>>())
            .bind(node)
            .bind(FULL)
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(())
        })
        .await
    }

    /// Traces, the newest first, before this number; those that have not ended, or all; of one client, or of all.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn traces(
        &self,
        client: Option<ClientId>,
        all: bool,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Trace>, Error> {
        self.run(move |db| async move {
            let text = format!(
                "select {COLUMNS} from wakala.trace where id < $1 and ($2 or ended_at is null) \
                 and ($3::text is null or client_id = $3) order by id desc limit $4"
            );
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(before.unwrap_or(i64::MAX)).bind(all);
            let query = query.bind(client.as_ref().map(ClientId::as_str)).bind(i64::from(limit));
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(of_row).collect()
        })
        .await
    }

    /// Rows of one trace after this one, in their order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn trace_rows_after(&self, trace: i64, after: i32, limit: u32) -> Result<Vec<Told>, Error> {
        self.run(move |db| async move {
            let text =
                format!("select {LINE} from wakala.trace_row where trace = $1 and nth > $2 order by nth limit $3");
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(trace).bind(after).bind(i64::from(limit));
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(told).collect()
        })
        .await
    }

    /// What traces have of one transaction, in the order of time.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn traced(&self, transaction: TransactionId, limit: u32) -> Result<Vec<Told>, Error> {
        self.run(move |db| async move {
            let text =
                format!("select {LINE} from wakala.trace_row where transaction = $1 order by at, trace, nth limit $2");
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(transaction.0).bind(i64::from(limit));
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(told).collect()
        })
        .await
    }

    /// Forgets at most `limit` rows of one trace that is to be forgotten: it ended before `until`, or is among the oldest beyond
    /// `rows_max` rows of all that have ended. A trace counts as a row itself, and goes when it has none. False when there
    /// is none to be forgotten.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn forget_traces(&self, until: Time, rows_max: u64, limit: u32) -> Result<bool, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let old: Option<(i64,)> = sqlx::query_as(
                "select id from (select id, ended_at, sum(rows + 1) over (order by ended_at desc, id desc) as so_far \
                   from wakala.trace where ended_at is not null) t \
                 where ended_at < $1 or so_far > $2 order by ended_at, id limit 1",
            )
            .bind(timestamp(until))
            .bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
            .fetch_optional(&mut *opened)
            .await?;
            let Some((trace,)) = old else { return Ok(false) };
            let forgotten = sqlx::query(
                "delete from wakala.trace_row where trace = $1 \
                 and nth in (select nth from wakala.trace_row where trace = $1 order by nth limit $2)",
            )
            .bind(trace)
            .bind(i64::from(limit))
            .execute(&mut *opened)
            .await?;
            if forgotten.rows_affected() < u64::from(limit) {
                sqlx::query("delete from wakala.trace where id = $1").bind(trace).execute(&mut *opened).await?;
            }
            opened.commit().await?;
            Ok(true)
        })
        .await
    }
}

/// Its columns: way, what, transaction, lost.
fn packet(said: &Said) -> (Option<String>, Option<String>, Option<Uuid>, Option<i64>) {
    match said {
        Said::Packet { way, what, transaction } => {
            let what = serde_json::to_string(what).unwrap_or_else(|_| "{}".to_owned());
            (Some(way.clone()), Some(what), transaction.map(|transaction| transaction.0), None)
        }
        Said::Lost(lost) => (None, None, None, Some(i64::try_from(*lost).unwrap_or(i64::MAX))),
    }
}
