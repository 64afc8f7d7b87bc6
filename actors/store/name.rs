//! A node's name, held in the database for as long as the node lives.
//!
//! Leases and sessions belong to names. Two nodes of one name would renew each other's leases, take each other's partitions
//! back and forth, and reverse each other's transactions; the fence keeps the money right, nothing keeps the customers
//! patient. So a name is an advisory lock, on a connection of its own: Postgres lets go of it when the process dies, and
//! the next life need not wait for a time to run out.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::{self, Connection as _, PgConnection};

use super::{Error, Store, in_time};

/// The first half of the lock's key, so that no other program's advisory locks are met by chance: `WAKA` in ASCII.
const CLASS: i32 = 0x5741_4B41;

/// How long a start waits for the name: Postgres needs a moment to see that the life before has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the name is still held.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The connection that holds the name, and the number of Postgres' process at its other end.
struct Held {
    connection: PgConnection,
    backend: i32,
}

/// Somebody else holds the name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    #[error(
        "another node runs as {name} on this database{holder}: end that one, or give this one a node.name of its own"
    )]
    Taken { name: String, holder: String },
    #[error(transparent)]
    Store(#[from] Error),
}

impl Store {
    /// Takes the name and keeps it until the store is closed. Calls `lost`, once, when another node has it after the
    /// database was away.
    ///
    /// # Errors
    /// [`NotHeld::Taken`] when another node has had it for five seconds from now.
    pub async fn hold_name(&self, name: &str, lost: impl FnOnce(&str) + Send + 'static) -> Result<(), NotHeld> {
        let (store, name) = (self.clone(), name.to_owned());
        let taken = self.handle().spawn(async move {
            let held = take(&store, &name, None).await?;
            let keeping = keep(held, store.clone(), name, lost);
            store.handle().spawn(keeping);
            Ok(())
        });
        taken.await.unwrap_or_else(|error| Err(Error::Away(error.to_string()).into()))
    }
}

async fn keep(mut held: Held, store: Store, name: String, lost: impl FnOnce(&str) + Send) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if store.inner.room.is_closed() {
            return;
        }
        if tokio::time::timeout(LOOK_EVERY, held.connection.ping()).await.is_ok_and(|said| said.is_ok()) {
            continue;
        }
        // The connection that is not answered is kept meanwhile: where Postgres only stood still, it holds the name yet.
        match take(&store, &name, Some(held.backend)).await {
            Ok(again) => {
                tracing::info!(name, "the node's name is held again");
                held = again;
            }
            Err(NotHeld::Store(error)) => tracing::warn!(name, %error, "the node's name is not held for now"),
            Err(taken @ NotHeld::Taken { .. }) => return lost(&taken.to_string()),
        }
    }
}

/// Whether nobody holds the name; then nobody can until this transaction ends.
pub(super) async fn is_free(transaction: &mut PgConnection, name: &str) -> Result<bool, Error> {
    let (free,): (bool,) = sqlx::query_as("select pg_try_advisory_xact_lock($1, hashtext($2))")
        .bind(CLASS)
        .bind(name)
        .fetch_one(transaction)
        .await?;
    Ok(free)
}

/// Takes the name on a new connection. `mine` is what held it for this node before, and may not have let go.
async fn take(store: &Store, name: &str, mine: Option<i32>) -> Result<Held, NotHeld> {
    let mut connection = connect(store).await?;
    let taking = in_time(store.inner.call_timeout, async {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (held, backend): (bool, i32) =
                sqlx::query_as("select pg_try_advisory_lock($1, hashtext($2)), pg_backend_pid()")
                    .bind(CLASS)
                    .bind(name)
                    .fetch_one(&mut connection)
                    .await?;
            if held {
                return Ok(Ok(backend));
            }
            if tokio::time::Instant::now() >= until {
                return Ok(Err(holder(&mut connection, name).await?));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    match taking.await? {
        Ok(backend) => Ok(Held { connection, backend }),
        Err(Some((backend, _))) if Some(backend) == mine => {
            Err(Error::Away("the connection that holds the node's name does not answer".to_owned()).into())
        }
        // Let go of while it was asked who has it.
        Err(None) => Err(Error::Away("the node's name was held until now".to_owned()).into()),
        Err(Some((_, holder))) => Err(NotHeld::Taken { name: name.to_owned(), holder }),
    }
}

/// A connection that Postgres gives up within half a minute when the machine at this end is gone without a word: the
/// name must not wait for the two hours of TCP's own keep-alive.
async fn connect(store: &Store) -> Result<PgConnection, Error> {
    let options = lasting(store);
    let connecting = PgConnection::connect_with(&options);
    match tokio::time::timeout(store.inner.acquire_timeout, connecting).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Error::Away("no connection in time".to_owned())),
    }
}

/// For such a connection.
pub(super) fn lasting(store: &Store) -> PgConnectOptions {
    let options = store.inner.db.get_postgres_connection_pool().connect_options();
    (*options).clone().options([
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "25000"),
    ])
}

/// Who has it: Postgres' process, and what it tells this role of the other end.
async fn holder(connection: &mut PgConnection, name: &str) -> Result<Option<(i32, String)>, Error> {
    let held: Option<(i32, Option<String>, Option<String>)> = sqlx::query_as(
        "select l.pid, to_char(a.backend_start at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
         coalesce(host(a.client_addr), 'this machine') \
         from pg_locks l left join pg_stat_activity a using (pid) \
         where l.locktype = 'advisory' and l.granted and l.classid::bigint = $1 \
         and l.objid::bigint = hashtext($2)::bigint & 4294967295 and l.objsubid = 2 \
         and l.database = (select oid from pg_database where datname = current_database())",
    )
    .bind(i64::from(CLASS))
    .bind(name)
    .fetch_optional(connection)
    .await?;
    let said = |since, from| format!(" (since {since}, from {from})");
    Ok(held.map(|(backend, since, from)| (backend, since.zip(from).map_or_else(String::new, |(s, f)| said(s, f)))))
}
