//! Bans: rows that are added, lifted and kept.

use sea_orm::sqlx::postgres::{PgExecutor, PgRow};
use sea_orm::sqlx::{self, Row as _};
use time::OffsetDateTime;
use wakala::ban::{Ban, Subject};
use wakala::time::Time;

use super::{Error, Store, time_of, timestamp};

/// A ban to be.
#[derive(Clone, Debug)]
pub struct NewBan {
    pub subject: Subject,
    pub why: String,
    pub by: String,
    pub since: Time,
    /// None is for ever.
    pub until: Option<Time>,
}

/// A ban as it stands in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banned {
    pub id: i64,
    pub subject: Subject,
    pub why: String,
    pub by: String,
    pub since: Time,
    pub until: Option<Time>,
    pub lifted: Option<(Time, String)>,
}

impl Banned {
    #[must_use]
    pub fn is_in_force(&self, now: Time) -> bool {
        self.lifted.is_none() && self.until.is_none_or(|until| until > now)
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Banning {
    Done(i64),
    /// So many are in force already that no more are looked at.
    Full,
}

const COLUMNS: &str = "id, kind, subject, why, banned_by, since, until, lifted_at, lifted_by";

/// Of the bans that are in force at $1.
const IN_FORCE: &str = "lifted_at is null and coalesce(until, 'infinity') > $1";

fn subject_of(row: &PgRow) -> Result<Subject, Error> {
    Subject::new(row.try_get("kind")?, row.try_get("subject")?).map_err(|error| Error::Broken(error.to_string()))
}

fn of_row(row: &PgRow) -> Result<Banned, Error> {
    let time = |column| row.try_get::<Option<OffsetDateTime>, _>(column).map(|time| time.map(time_of));
    Ok(Banned {
        id: row.try_get("id")?,
        subject: subject_of(row)?,
        why: row.try_get("why")?,
        by: row.try_get("banned_by")?,
        since: time_of(row.try_get("since")?),
        until: time("until")?,
        lifted: time("lifted_at")?.zip(row.try_get("lifted_by")?),
    })
}

/// One that cannot be read keeps nobody out, and must not keep the others from being known: who bans may have done so in the
/// database itself.
fn in_force(row: &PgRow) -> Option<Ban> {
    let read = || -> Result<Ban, Error> {
        let until: Option<OffsetDateTime> = row.try_get("until")?;
        Ok(Ban { id: row.try_get("id")?, subject: subject_of(row)?, until: until.map(time_of) })
    };
    let id: Option<i64> = row.try_get("id").ok();
    read().inspect_err(|error| tracing::error!(ban = id, %error, "a ban cannot be read and keeps nobody out")).ok()
}

pub(super) async fn insert<'c>(executor: impl PgExecutor<'c>, ban: &NewBan) -> Result<i64, Error> {
    let (id,): (i64,) = sqlx::query_as(
        "insert into wakala.ban (kind, subject, why, banned_by, since, until) values ($1, $2, $3, $4, $5, $6) \
         returning id",
    )
    .bind(ban.subject.kind())
    .bind(ban.subject.text())
    .bind(&ban.why)
    .bind(&ban.by)
    .bind(timestamp(ban.since))
    .bind(ban.until.map(timestamp))
    .fetch_one(executor)
    .await?;
    Ok(id)
}

impl Store {
    /// Adds a ban, unless `max` are in force.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn ban(&self, ban: NewBan, max: u32) -> Result<Banning, Error> {
        self.run(move |db| async move {
            let pool = db.get_postgres_connection_pool();
            let text = format!("select count(*) from wakala.ban where {IN_FORCE}");
            let query = sqlx::query_as(sqlx::AssertSqlSafe(text)).bind(timestamp(ban.since));
            let (in_force,): (i64,) = query.fetch_one(pool).await?;
            if in_force >= i64::from(max) {
                return Ok(Banning::Full);
            }
            Ok(Banning::Done(insert(pool, &ban).await?))
        })
        .await
    }

    /// Lifts the bans on somebody that are in force, or the one of this number; gives those that were.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn lift_bans(&self, whom: Whom, by: &str, at: Time) -> Result<Vec<Banned>, Error> {
        let by = by.to_owned();
        self.run(move |db| async move {
            let (id, kind, subject) = match &whom {
                Whom::Ban(id) => (Some(*id), None, None),
                Whom::Subject(subject) => (None, Some(subject.kind()), Some(subject.text())),
            };
            let text = format!(
                "update wakala.ban set lifted_at = $1, lifted_by = $2 where {IN_FORCE} \
                 and (id = $3 or (kind = $4 and subject = $5)) returning {COLUMNS}"
            );
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(timestamp(at)).bind(by);
            let query = query.bind(id).bind(kind).bind(subject);
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(of_row).collect()
        })
        .await
    }

    /// Bans, the newest first, before this number; those in force at a time, or all that ever were.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn bans(&self, in_force_at: Option<Time>, before: Option<i64>, limit: u32) -> Result<Vec<Banned>, Error> {
        self.run(move |db| async move {
            let text = format!(
                "select {COLUMNS} from wakala.ban where ($1::timestamptz is null or {IN_FORCE}) and id < $2 \
                 order by id desc limit $3"
            );
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(in_force_at.map(timestamp));
            let query = query.bind(before.unwrap_or(i64::MAX)).bind(i64::from(limit));
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(of_row).collect()
        })
        .await
    }

    /// The bans in force, unless what they come to is known already. At most `max`, the newest.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn bans_in_force(&self, now: Time, known: String, max: u32) -> Result<Option<InForce>, Error> {
        self.run(move |db| async move {
            let pool = db.get_postgres_connection_pool();
            // Of numbers alone, so that it is asked of the index.
            let text = format!("select count(*), sum(hashint8extended(id, 0))::text from wakala.ban where {IN_FORCE}");
            let query = sqlx::query_as(sqlx::AssertSqlSafe(text)).bind(timestamp(now));
            let (count, sum): (i64, Option<String>) = query.fetch_one(pool).await?;
            let all = format!("{count} {}", sum.unwrap_or_default());
            if all == known {
                return Ok(None);
            }
            let text =
                format!("select id, kind, subject, until from wakala.ban where {IN_FORCE} order by id desc limit $2");
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(timestamp(now)).bind(i64::from(max));
            let rows = query.fetch_all(pool).await?;
            let left_out = usize::try_from(count).unwrap_or(0).saturating_sub(rows.len());
            Ok(Some(InForce { all, bans: rows.iter().filter_map(in_force).collect(), left_out }))
        })
        .await
    }
}

/// The bans in force at a moment.
#[derive(Debug)]
pub struct InForce {
    /// What they come to: the same for the same bans.
    pub all: String,
    pub bans: Vec<Ban>,
    /// How many there are beyond the `max` that were asked for.
    pub left_out: usize,
}

/// Which bans.
#[derive(Clone, Debug)]
pub enum Whom {
    Ban(i64),
    Subject(Subject),
}
