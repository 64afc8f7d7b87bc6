//! What terminals were told: who asked for it, under which key, and what became of it. A row is entered in the commit that
//! queues the message; that a copy of it has ended is written by the statement that deletes the copy's row (`tests/house.rs`
//! looks that each does). So what is read here is true whatever died.

use std::collections::BTreeMap;

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{self, types::Json};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::conservation::Fate;
use wakala::id::{ClientId, TerminalId};
use wakala::message::Message;
use wakala::time::Time;

use super::messages::Class;
use super::{Error, Store, time_of, timestamp};

/// Who wants something told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What the message is known by from now on.
    pub id: Uuid,
    pub by: String,
    /// Of one who may ask again, because it does not know whether it was heard: under the same key it is the same message.
    pub key: Option<String>,
}

/// What is told.
pub(super) struct Entry<'a> {
    pub asked: &'a Asked,
    /// To this terminal, or to whoever is subscribed.
    pub terminal: Option<&'a TerminalId>,
    pub topic: &'a str,
    pub class: Class,
    pub qos: i16,
    pub retain: bool,
    pub payload: &'a [u8],
    /// Copies that are handed to whoever is there, and of which no more is heard.
    pub direct: usize,
    pub at: Time,
    pub expires_at: Option<Time>,
}

impl<'a> Entry<'a> {
    /// Of a message that is published to whoever is subscribed.
    pub(super) fn of(asked: &'a Asked, message: &'a Message, direct: usize, at: Time) -> Self {
        Self {
            asked,
            terminal: None,
            topic: &message.topic,
            class: Class::Message,
            qos: message.qos as i16,
            retain: message.retain,
            payload: &message.payload,
            direct,
            at,
            expires_at: message.expires_at,
        }
    }

    fn digest(&self) -> Vec<u8> {
        Sha256::digest(self.payload).to_vec()
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    New,
    /// It is told already, as this one.
    Again(Uuid),
    /// Under this key something else was told.
    Other(Uuid),
}

/// Enters a message; waits for whoever is just entering one under the same key.
pub(super) async fn enter(db: &mut PgConnection, entry: &Entry<'_>) -> Result<Entered, Error> {
    let asked = entry.asked;
    let entered = sqlx::query(
        "insert into wakala.told (id, asked_by, key, terminal, topic, class, qos, retain, bytes, digest, at, expires_at, \
           direct) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) on conflict (asked_by, key) do nothing",
    )
    .bind(asked.id)
    .bind(&asked.by)
    .bind(&asked.key)
    .bind(entry.terminal.map(TerminalId::as_str))
    .bind(entry.topic)
    .bind(entry.class as i16)
    .bind(entry.qos)
    .bind(entry.retain)
    .bind(i32::try_from(entry.payload.len()).unwrap_or(i32::MAX))
    .bind(entry.digest())
    .bind(timestamp(entry.at))
    .bind(entry.expires_at.map(timestamp))
    .bind(i32::try_from(entry.direct).unwrap_or(i32::MAX))
    .execute(&mut *db)
    .await?;
    if entered.rows_affected() > 0 {
        return Ok(Entered::New);
    }
    let before = before(db, entry).await?;
    before.ok_or_else(|| Error::Away(format!("{} was forgotten just now", asked.id)))
}

/// What was told under this key.
async fn before(db: &mut PgConnection, entry: &Entry<'_>) -> Result<Option<Entered>, Error> {
    // How long it holds counts from when it was asked for.
    let found: Option<(Uuid, bool)> = sqlx::query_as(
        "select id, (terminal, topic, class, qos, retain, digest, expires_at - at) \
           is not distinct from ($3::text, $4::text, $5::smallint, $6::smallint, $7::boolean, $8::bytea, $9 - $10::timestamptz) \
         from wakala.told where asked_by = $1 and key = $2",
    )
    .bind(&entry.asked.by)
    .bind(&entry.asked.key)
    .bind(entry.terminal.map(TerminalId::as_str))
    .bind(entry.topic)
    .bind(entry.class as i16)
    .bind(entry.qos)
    .bind(entry.retain)
    .bind(entry.digest())
    .bind(entry.expires_at.map(timestamp))
    .bind(timestamp(entry.at))
    .fetch_optional(db)
    .await?;
    Ok(found.map(|(id, same)| if same { Entered::Again(id) } else { Entered::Other(id) }))
}

/// Says of copies that they ended before they were queued. They have no place; their numbers tell apart those of one client.
pub(super) async fn end(db: &mut PgConnection, ends: &[(Uuid, ClientId, Fate)]) -> Result<(), Error> {
    if ends.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into wakala.told_end (told, client_id, seq, fate) select told, client_id, -nth, fate \
         from unnest($1::uuid[], $2::text[], $3::text[]) with ordinality e (told, client_id, fate, nth)",
    )
    .bind(ends.iter().map(|(told, ..)| *told).collect::<Vec<_>>())
    .bind(ends.iter().map(|(_, client, _)| client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(ends.iter().map(|(.., fate)| fate.word()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// A message that was told, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub id: Uuid,
    pub asked_by: String,
    pub key: Option<String>,
    pub terminal: Option<String>,
    pub topic: String,
    pub class: Class,
    pub qos: u8,
    pub retain: bool,
    pub bytes: u32,
    pub at: Time,
    pub expires_at: Option<Time>,
    /// Copies for clients whose session ends with their connection, or at QoS 0: handed to them, and no more is known.
    pub direct: u32,
    /// How many of its other copies wait, or ended so: `waiting`, or the word of a [`wakala::conservation::Fate`].
    pub became: BTreeMap<String, u64>,
    /// The first [`COPIES`] of them, by client.
    pub copies: Vec<Copy>,
}

/// One copy, for one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    pub client: String,
    pub became: String,
    /// When it ended, in milliseconds since 1970.
    pub at: Option<i64>,
}

/// Copies that are shown one by one, at most.
pub const COPIES: i64 = 100;

/// How a message is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    Id(Uuid),
    Key(String),
}

type Row = (
    Uuid,
    String,
    Option<String>,
    Option<String>,
    String,
    i16,
    i16,
    bool,
    i32,
    OffsetDateTime,
    Option<OffsetDateTime>,
    i32,
    Json<BTreeMap<String, u64>>,
    Json<Vec<Copy>>,
);

/// The columns of a [`Row`], from rows of `t`; `$1` is how many copies are shown.
const COLUMNS: &str = "select t.id, asked_by, key, terminal, topic, class, qos, retain, bytes, t.at, t.expires_at, direct, \
   coalesce((select jsonb_object_agg(fate, n) from ( \
     select fate, count(*) as n from wakala.told_end where told = t.id group by fate \
     union all select 'waiting', count(*) from wakala.message where told = t.id having count(*) > 0) c), '{}'), \
   coalesce((select jsonb_agg(jsonb_build_object('client', client_id, 'became', fate, 'at', ms) order by client_id) from ( \
     select client_id, fate, (extract(epoch from at) * 1000)::bigint as ms from wakala.told_end where told = t.id \
     union all select client_id, 'waiting', null from wakala.message where told = t.id order by 1 limit $1) c), '[]')";

impl Store {
    /// Whether it has been told under this key already, or something else.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn told_before(&self, asked: Asked, message: Message, at: Time) -> Result<Option<Entered>, Error> {
        if asked.key.is_none() {
            return Ok(None);
        }
        self.run(move |db| async move {
            let mut connection = db.get_postgres_connection_pool().acquire().await?;
            before(&mut connection, &Entry::of(&asked, &message, 0, at)).await
        })
        .await
    }

    /// What became of a message: of any that was told, or of one that this one wanted told.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn told(&self, which: Which, by: Option<String>) -> Result<Option<Told>, Error> {
        let (id, key) = match which {
            Which::Id(id) => (Some(id), None),
            Which::Key(key) => (None, Some(key)),
        };
        self.run(move |db| async move {
            let text = format!(
                "{COLUMNS} from wakala.told t where ($2::uuid is null or id = $2) and ($3::text is null or key = $3) \
                 and ($4::text is null or asked_by = $4) order by t.at desc limit 1"
            );
            let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(text))
                .bind(COPIES)
                .bind(id)
                .bind(key)
                .bind(by)
                .fetch_optional(db.get_postgres_connection_pool())
                .await?;
            row.map(read).transpose()
        })
        .await
    }

    /// The latest `limit` messages before `before`, latest first; of one terminal or of all.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn told_last(
        &self,
        terminal: Option<TerminalId>,
        before: Option<Time>,
        limit: u32,
    ) -> Result<Vec<Told>, Error> {
        self.run(move |db| async move {
            let text = format!(
                "{COLUMNS} from wakala.told t where ($2::text is null or terminal = $2) \
                 and ($3::timestamptz is null or at < $3) order by t.at desc, t.id desc limit $4"
            );
            let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(text))
                .bind(COPIES)
                .bind(terminal.map(|terminal| terminal.as_str().to_owned()))
                .bind(before.map(timestamp))
                .bind(i64::from(limit))
                .fetch_all(db.get_postgres_connection_pool())
                .await?;
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Forgets at most `limit` messages of which no copy waits: those before `until`, and the oldest beyond `rows_max`.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn forget_told(&self, until: Time, rows_max: u64, limit: u32) -> Result<u64, Error> {
        self.run(move |db| async move {
            let forgotten = sqlx::query(
                "with full_from as (select at from wakala.told order by at desc offset $2 limit 1) \
                 delete from wakala.told where id in (select id from wakala.told t \
                   where at < greatest($1, (select at + interval '1 microsecond' from full_from)) \
                   and not exists (select from wakala.message m where m.told = t.id) order by at limit $3)",
            )
            .bind(timestamp(until))
            .bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(forgotten.rows_affected())
        })
        .await
    }
}

fn read(row: Row) -> Result<Told, Error> {
    let (id, asked_by, key, terminal, topic, class, qos, retain, bytes, at, expires_at, direct, became, copies) = row;
    let class = Class::ALL.into_iter().find(|each| *each as i16 == class);
    Ok(Told {
        id,
        asked_by,
        key,
        terminal,
        topic,
        class: class.ok_or_else(|| Error::Broken(format!("{id} is of no class")))?,
        qos: u8::try_from(qos).unwrap_or_default(),
        retain,
        bytes: u32::try_from(bytes).unwrap_or_default(),
        at: time_of(at),
        expires_at: expires_at.map(time_of),
        direct: u32::try_from(direct).unwrap_or_default(),
        became: became.0,
        copies: copies.0,
    })
}
