//! Who came and went. It is written by the statements that say of a session that it is connected or not, in the same commit
//! (`openings.rs`, `sessions.rs`; `tests/house.rs` looks that no other does). The session's row is locked until then, so the
//! order of a client's rows is that of its connections. Here it is read, and forgotten when it is old.

use sea_orm::sqlx::{self, types::Json};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wakala::id::{ClientId, Epoch};
use wakala::presence::{Standing, concerns};
use wakala::time::Time;

use super::{Error, Store, time_of, timestamp};

/// How a client is connected, as its session remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connection {
    /// Host and port of the client's end.
    pub address: String,
    /// `MQTT 3.1.1` or `MQTT 5`.
    pub protocol: String,
    /// What carries it: `TCP`, `TLS`, and what is known of the client by its certificate.
    pub carrier: String,
    /// The keep-alive in force, in seconds.
    pub keep_alive_s: u64,
}

/// The beginning or the end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    /// Order of the client's events.
    pub seq: i64,
    pub epoch: Epoch,
    pub online: bool,
    pub at: Time,
    pub node: Option<String>,
    /// Why it ended.
    pub why: Option<String>,
    /// How it began.
    pub connection: Option<Connection>,
}

/// How a client stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stands {
    pub client: ClientId,
    pub standing: Standing,
    /// The node that it is connected to, or that says so.
    pub node: Option<String>,
    /// Something stays of it when it is away: its session.
    pub kept: bool,
}

type Row = (i64, i64, bool, OffsetDateTime, Option<String>, Option<String>, Option<Json<Connection>>);

impl Store {
    /// The latest `limit` events of a client before `before`, latest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn presence(&self, client: &ClientId, before: Option<i64>, limit: u32) -> Result<Vec<Came>, Error> {
        let client = client.clone();
        self.run(move |db| async move {
            let rows: Vec<Row> = sqlx::query_as(
                "select seq, epoch, online, at, node, why, connection from wakala.presence \
                 where client_id = $1 and seq < $2 order by seq desc limit $3",
            )
            .bind(client.as_str())
            .bind(before.unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |(seq, epoch, online, at, node, why, connection): Row| {
                let connection = connection.map(|Json(connection)| connection);
                Came { seq, epoch: Epoch(epoch), online, at: time_of(at), node, why, connection }
            };
            Ok(rows.into_iter().map(read).collect())
        })
        .await
    }

    /// How clients stand, as far as that is stored: guests that are connected or whose session is kept and, where theirs is told
    /// too, terminals that are connected.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn presence_of_all(&self, with_terminals: bool, now: Time) -> Result<Vec<Stands>, Error> {
        self.run(move |db| async move {
            let rows: Vec<(String, i64, bool, OffsetDateTime, Option<String>)> = sqlx::query_as(
                "select client_id, epoch, connected, \
                 coalesce(case when connected then connected_at else disconnected_at end, $1), node \
                 from wakala.session s where (connected or expiry_s > 0 and expires_at > $1) \
                 and (connected and $2 or not exists (select from wakala.terminal t where t.id = s.client_id))",
            )
            .bind(timestamp(now))
            .bind(with_terminals)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |(client, epoch, online, since, node): (String, i64, bool, OffsetDateTime, Option<String>)| {
                let client: ClientId = ClientId::new(&client).map_err(|error| Error::Broken(error.to_string()))?;
                let standing = Standing { epoch: Epoch(epoch), online, since: time_of(since) };
                Ok(Stands { client, standing, node, kept: true })
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Whether any session is subscribed to presence.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn presence_is_watched(&self) -> Result<bool, Error> {
        self.run(|db| async move {
            let filters: Vec<(String,)> =
                sqlx::query_as("select distinct filter from wakala.subscription where filter like '%$SYS/%'")
                    .fetch_all(db.get_postgres_connection_pool())
                    .await?;
            Ok(filters.iter().any(|(filter,)| concerns(filter)))
        })
        .await
    }

    /// The sessions that other nodes have opened since the event `after`, at most `limit`, and the latest event. One whose commit
    /// took longer than a later one's may be missing.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn opened_elsewhere(
        &self,
        but: &str,
        after: i64,
        limit: u32,
    ) -> Result<(Vec<(ClientId, Epoch)>, i64), Error> {
        let but = but.to_owned();
        self.run(move |db| async move {
            let rows: Vec<(i64, Option<String>, Option<i64>)> = sqlx::query_as(
                "select last.id, client_id, epoch from (select coalesce(max(id), 0) as id from wakala.presence) last \
                 left join wakala.presence p on p.id > $2 and p.online and p.node is distinct from $1 limit $3",
            )
            .bind(but)
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let last = rows.first().map_or(after, |(last, ..)| *last);
            let opened =
                rows.into_iter().filter_map(|(_, client, epoch)| Some((ClientId::new(&client?).ok()?, Epoch(epoch?))));
            Ok((opened.collect(), last))
        })
        .await
    }

    /// Forgets at most `limit` events: those before `until`, and the oldest beyond `rows_max` of all clients together.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn forget_presence(&self, until: Time, rows_max: u64, limit: u32) -> Result<u64, Error> {
        self.run(move |db| async move {
            // Numbers have gaps, so there may be fewer rows than numbers: then some are forgotten sooner, none later. The
            // first row decides whether the others are read at all.
            let forgotten = sqlx::query(
                "with first as (select id, at from wakala.presence order by id limit 1), \
                 full_from as (select coalesce(max(id), 0) - $2 as id from wakala.presence), \
                 old as (select id from (select id, at from wakala.presence order by id limit $3) o \
                   where (at < $1 or id <= (select id from full_from)) \
                   and exists (select from first where at < $1 or id <= (select id from full_from))) \
                 delete from wakala.presence p using old where p.id = old.id",
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
