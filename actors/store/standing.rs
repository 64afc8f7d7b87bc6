//! How sessions stand, for operators, and what operators did to them.

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::types::Json;
use sea_orm::sqlx::{self, Row as _};
use time::OffsetDateTime;
use wakala::id::{ClientId, Epoch};
use wakala::session::Subscription;
use wakala::time::Time;

use super::presence::Connection;
use super::{Error, Store, sessions, time_of, timestamp};

/// Which sessions are wanted, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those after this name.
    pub after: String,
    /// Those whose name begins like this.
    pub prefix: String,
    /// Connected, or not; either if none.
    pub connected: Option<bool>,
    /// Those that outlive their connection.
    pub kept: bool,
    /// Those whose connection is at this node.
    pub node: Option<String>,
    pub limit: u32,
}

/// A session as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub client: ClientId,
    pub epoch: Epoch,
    /// A terminal, not a guest.
    pub enrolled: bool,
    pub connected: bool,
    pub node: Option<String>,
    /// When its latest connection began.
    pub connected_at: Option<Time>,
    /// When its latest connection that ended did.
    pub disconnected_at: Option<Time>,
    pub ended_why: Option<String>,
    /// Of the latest.
    pub connection: Option<Connection>,
    /// How long it outlives the connection, in seconds.
    pub expiry_s: i64,
    /// When it will end, if it is not connected by then.
    pub expires_at: Option<Time>,
    /// Receipts and messages that wait, counted no further than [`COUNTED`].
    pub waiting: i64,
}

/// Rows of a queue are counted up to this many: a list of a hundred sessions must not read a million rows.
pub const COUNTED: i64 = 1000;

/// What waits for a client, of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// `receipts`, or `messages at QoS n`.
    pub name: String,
    pub rows: i64,
    pub bytes: i64,
    pub oldest: Time,
}

/// A will that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub topic: String,
    pub qos: i16,
    pub retain: bool,
    pub bytes: i64,
    pub delay_s: i64,
    /// Its connection has ended, and it is sent then.
    pub due_at: Option<Time>,
}

/// Something that an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub at: Time,
    /// `kick` or `tap`.
    pub what: &'static str,
    pub client: ClientId,
    /// Of a kick: the connection that is meant.
    pub epoch: Option<Epoch>,
    pub node: String,
    pub who: String,
    pub why: String,
    /// When it was done, if it is.
    pub done_at: Option<Time>,
    pub outcome: Option<String>,
}

const COLUMNS: &str = "s.client_id, s.epoch, s.connected, s.node, s.connected_at, s.disconnected_at, s.ended_why, s.connection, \
     s.expiry_s, s.expires_at, exists (select from wakala.terminal t where t.id = s.client_id) as enrolled, \
     (select count(*) from (select from wakala.message m where m.client_id = s.client_id limit $1) m) \
     + (select count(*) from (select from wakala.receipt r where r.terminal = s.client_id and r.delivered_at is null \
        and r.withdrawn_at is null limit $1) r) as waiting";

fn read(row: &PgRow) -> Result<Standing, Error> {
    let time = |column: &str| row.try_get::<Option<OffsetDateTime>, _>(column).map(|at| at.map(time_of));
    let connection: Option<Json<Connection>> = row.try_get("connection")?;
    Ok(Standing {
        client: ClientId::new(row.try_get("client_id")?).map_err(|error| Error::Broken(error.to_string()))?,
        epoch: Epoch(row.try_get("epoch")?),
        enrolled: row.try_get("enrolled")?,
        connected: row.try_get("connected")?,
        node: row.try_get("node")?,
        connected_at: time("connected_at")?,
        disconnected_at: time("disconnected_at")?,
        ended_why: row.try_get("ended_why")?,
        connection: connection.map(|Json(connection)| connection),
        expiry_s: row.try_get("expiry_s")?,
        expires_at: time("expires_at")?,
        waiting: row.try_get("waiting")?,
    })
}

impl Store {
    /// Sessions by name.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn standings(&self, wanted: Wanted) -> Result<Vec<Standing>, Error> {
        self.run(move |db| async move {
            // By bytes, as a node sorts those that are connected to it. Queues are counted of the page alone.
            let text = format!(
                "select {COLUMNS} from (select * from wakala.session s where s.client_id > $2 collate \"C\" \
                   and starts_with(s.client_id, $3) and ($4::boolean is null or s.connected = $4) \
                   and (not $5 or s.expiry_s > 0) and ($6::text is null or (s.connected and s.node = $6)) \
                   order by s.client_id collate \"C\" limit $7) s order by s.client_id collate \"C\""
            );
            let rows = sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(COUNTED)
                .bind(wanted.after)
                .bind(wanted.prefix)
                .bind(wanted.connected)
                .bind(wanted.kept)
                .bind(wanted.node)
                .bind(i64::from(wanted.limit))
                .fetch_all(db.get_postgres_connection_pool())
                .await?;
            rows.iter().map(read).collect()
        })
        .await
    }

    /// One session.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn standing(&self, client: &ClientId) -> Result<Option<Standing>, Error> {
        let client = client.clone();
        self.run(move |db| async move {
            let text = format!("select {COLUMNS} from wakala.session s where s.client_id = $2");
            let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(COUNTED).bind(client.as_str());
            row.fetch_optional(db.get_postgres_connection_pool()).await?.as_ref().map(read).transpose()
        })
        .await
    }

    /// What a session is subscribed to, what waits for it by kind, and its wills.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn belongings(&self, client: &ClientId) -> Result<(Vec<Subscription>, Vec<Class>, Vec<Kept>), Error> {
        let client = client.clone();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let subscriptions = sessions::subscriptions(&mut opened, &client).await?;
            let classes: Vec<(String, i64, i64, OffsetDateTime)> = sqlx::query_as(
                "select 'receipts', count(*), sum(octet_length(envelope))::bigint, min(at) from wakala.receipt \
                 where terminal = $1 and delivered_at is null and withdrawn_at is null having count(*) > 0 \
                 union all select 'messages at QoS ' || qos, count(*), sum(octet_length(payload))::bigint, min(at) \
                 from wakala.message where client_id = $1 group by qos order by 1",
            )
            .bind(client.as_str())
            .fetch_all(&mut *opened)
            .await?;
            let wills: Vec<(String, i16, bool, i64, i64, Option<OffsetDateTime>)> = sqlx::query_as(
                "select topic, qos, retain, octet_length(payload)::bigint, delay_s, due_at from wakala.will \
                 where client_id = $1 order by epoch",
            )
            .bind(client.as_str())
            .fetch_all(&mut *opened)
            .await?;
            let class = |(name, rows, bytes, oldest)| Class { name, rows, bytes, oldest: time_of(oldest) };
            let kept = |(topic, qos, retain, bytes, delay_s, due_at): (_, _, _, _, _, Option<OffsetDateTime>)| Kept {
                topic,
                qos,
                retain,
                bytes,
                delay_s,
                due_at: due_at.map(time_of),
            };
            Ok((subscriptions, classes.into_iter().map(class).collect(), wills.into_iter().map(kept).collect()))
        })
        .await
    }

    /// Records what an operator does. A kick that is not done yet is its node's to carry out.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn record_action(&self, action: Action) -> Result<i64, Error> {
        self.run(move |db| async move {
            let (id,): (i64,) = sqlx::query_as(
                "insert into wakala.admin_action (at, what, client_id, epoch, node, who, why, done_at, outcome) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id",
            )
            .bind(timestamp(action.at))
            .bind(action.what)
            .bind(action.client.as_str())
            .bind(action.epoch.map(|epoch| epoch.0))
            .bind(action.node)
            .bind(action.who)
            .bind(action.why)
            .bind(action.done_at.map(timestamp))
            .bind(action.outcome)
            .fetch_one(db.get_postgres_connection_pool())
            .await?;
            Ok(id)
        })
        .await
    }

    /// Says of an action that it is done, and what came of it.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn action_done(&self, id: i64, at: Time, outcome: String) -> Result<(), Error> {
        self.run(move |db| async move {
            sqlx::query("update wakala.admin_action set done_at = $2, outcome = $3 where id = $1 and done_at is null")
                .bind(id)
                .bind(timestamp(at))
                .bind(outcome)
                .execute(db.get_postgres_connection_pool())
                .await?;
            Ok(())
        })
        .await
    }

    /// Connections of this node that an operator wants ended, wherever he said so. A connection that has ended meanwhile is
    /// among them: it is said to be done as well.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn kicks_owed(&self, node: &str) -> Result<Vec<(i64, ClientId, Epoch)>, Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let owed: Vec<(i64, String, i64)> = sqlx::query_as(
                "select id, client_id, coalesce(epoch, 0) from wakala.admin_action \
                 where what = 'kick' and done_at is null and node = $1 order by id limit 1000",
            )
            .bind(node)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let named =
                |(id, client, epoch): (i64, String, i64)| Some((id, ClientId::new(&client).ok()?, Epoch(epoch)));
            Ok(owed.into_iter().filter_map(named).collect())
        })
        .await
    }

    /// The latest things that operators did to a client, latest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn actions(&self, client: &ClientId, limit: u32) -> Result<Vec<Action>, Error> {
        let client = client.clone();
        self.run(move |db| async move {
            let rows = sqlx::query(
                "select at, what, epoch, node, who, why, done_at, outcome from wakala.admin_action \
                 where client_id = $1 order by id desc limit $2",
            )
            .bind(client.as_str())
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |row: &PgRow| {
                Ok(Action {
                    at: time_of(row.try_get("at")?),
                    what: if row.try_get::<&str, _>("what")? == "tap" { "tap" } else { "kick" },
                    client: client.clone(),
                    epoch: row.try_get::<Option<i64>, _>("epoch")?.map(Epoch),
                    node: row.try_get("node")?,
                    who: row.try_get("who")?,
                    why: row.try_get("why")?,
                    done_at: row.try_get::<Option<OffsetDateTime>, _>("done_at")?.map(time_of),
                    outcome: row.try_get("outcome")?,
                })
            };
            rows.iter().map(read).collect()
        })
        .await
    }
}
