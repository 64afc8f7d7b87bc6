//! All SQL. Postgres is memory, not a port: there is no trait here and no stand-in.
//!
//! The pool lives on a tokio runtime of its own, "runtime D": a pooled connection belongs to the runtime that opened it,
//! and an arbiter that is busy would hold up another arbiter's query. Every call is spawned there and awaited through
//! its `JoinHandle`; a semaphore in front of the pool bounds how many are under way.

mod accounts;
pub(crate) mod again;
pub mod bans;
pub mod batch;
pub mod cards;
mod commit;
mod copies;
mod decision;
mod durability;
pub mod figures;
pub mod keys;
pub mod ledger;
pub mod marks;
pub mod messages;
mod name;
pub mod openings;
pub mod partitions;
pub mod presence;
pub mod publications;
pub mod queues;
pub mod receipts;
pub mod retained;
pub mod sessions;
pub mod standing;
pub mod subscriptions;
pub mod tally;
pub mod terminals;
pub mod told;
pub mod traces;
mod transactions;
pub mod wills;
pub mod words;

pub use name::NotHeld;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sea_orm::sqlx;
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr, RuntimeErr};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// How the node reaches its database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where, as the role `wakala_service`: `postgres://wakala_service@localhost/wakala?host=/run/postgresql`.
    pub url: String,
    /// The same as the role `wakala_owner`, for `wakala migrate` and `wakala ledger floor`; empty where nobody does
    /// that.
    pub owner_url: String,
    /// Connections, and database transactions at the same time. Postgres' `max_connections` must cover all nodes'.
    pub pool_size: u32,
    /// Calls that may wait for a connection; the next one is refused at once.
    pub waiting_max: usize,
    /// The longest wait for a connection.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// The longest a statement may run. Postgres ends it.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// The longest wait for a row that another transaction has locked.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
    /// The longest that a database transaction may do nothing; then Postgres ends it. A node that sleeps (SIGSTOP, a paused
    /// virtual machine) must not keep a partition's row from the node that takes over.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// The longest that the node waits for a call, whatever becomes of its statements. Postgres' own limits end nothing when
    /// Postgres stands still or the network between is gone.
    #[serde(with = "humantime_serde")]
    pub call_timeout: Duration,
    /// Threads of runtime D.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "postgres://wakala_service@localhost/wakala?host=/run/postgresql".to_owned(),
            owner_url: String::new(),
            pool_size: 16,
            waiting_max: 4096,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            threads: 2,
        }
    }
}

impl Options {
    /// The same, with passwords that may be read by others.
    #[must_use]
    pub fn without_passwords(&self) -> Self {
        Self { url: without_password(&self.url), owner_url: without_password(&self.owner_url), ..self.clone() }
    }
}

fn without_password(url: &str) -> String {
    let (place, settings) = url.split_once('?').unwrap_or((url, ""));
    let place = match place.rsplit_once('@') {
        Some((who, at)) => match who.split_once("://").map(|(scheme, who)| (scheme, who.split_once(':'))) {
            Some((scheme, Some((user, _)))) => format!("{scheme}://{user}:***@{at}"),
            _ => place.to_owned(),
        },
        None => place.to_owned(),
    };
    let shown = |setting: &str| if setting.starts_with("password=") { "password=***" } else { setting }.to_owned();
    let settings: Vec<String> = settings.split('&').filter(|setting| !setting.is_empty()).map(shown).collect();
    if settings.is_empty() { place } else { format!("{place}?{}", settings.join("&")) }
}

/// Whether this is the address of a Postgres. What is said against it does not quote it: it may hold a password.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_address(url: &str) -> Result<(), String> {
    const RIGHT: &str = "right would be, for example, postgres://wakala_service@localhost/wakala?host=/run/postgresql";
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(format!("not the address of a Postgres; {RIGHT}"));
    }
    let parsed = url.parse::<sqlx::postgres::PgConnectOptions>();
    parsed.map(|_| ()).map_err(|error| format!("not the address of a Postgres ({error}); {RIGHT}"))
}

/// Why the database did not do it. None of them quotes a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be reached, is overloaded or gave up on this one; what was asked may or may not be committed.
    #[error("the database is away: {0}")]
    Away(String),
    /// Somebody else owns the partition or session now; nothing was written, and the caller stops.
    #[error("fenced off: {0}")]
    Fenced(String),
    /// It refused: a rule of the schema, a statement it does not know. Trying again would not help.
    #[error("the database refused: {0}")]
    Broken(String),
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Self::Away(error.to_string()),
            DbErr::Exec(RuntimeErr::SqlxError(inner)) | DbErr::Query(RuntimeErr::SqlxError(inner)) => of_sqlx(inner),
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        of_sqlx(&error)
    }
}

fn of_sqlx(error: &sqlx::Error) -> Error {
    // The driver would add the line of Postgres' own source.
    let text = error.as_database_error().map_or_else(|| error.to_string(), |said| said.message().to_owned());
    match error {
        // undefined_table, invalid_schema_name: what a command finds that comes before `wakala migrate`.
        sqlx::Error::Database(said) if said.code().is_some_and(|code| code == "42P01" || code == "3F000") => {
            Error::Broken(format!("{text}; is the schema up to date? wakala migrate --pending"))
        }
        // insufficient_privilege
        sqlx::Error::Database(said) if said.code().is_some_and(|code| code == "42501") => {
            Error::Broken(format!("{text}; is the address that of the right role? docs/operators.md names the three"))
        }
        sqlx::Error::Database(said) if !said.code().is_some_and(|code| is_passing(&code)) => Error::Broken(text),
        sqlx::Error::Database(_)
        | sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        // What a connection says that broke in the middle of a message.
        | sqlx::Error::Protocol(_) => Error::Away(text),
        _ => Error::Broken(text),
    }
}

/// The classes and codes of SQLSTATE (PostgreSQL, Appendix A) after which the same may succeed later.
fn is_passing(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "40" | "53" | "57" | "58")) || code == "55P03" || code == "25P03"
}

/// The database, for the whole node. Clones are the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    db: DatabaseConnection,
    room: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    acquire_timeout: Duration,
    call_timeout: Duration,
    statement_timeout: Duration,
    accounts: accounts::Numbers,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("free", &self.inner.room.available_permits()).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever drops the last clone may be on a thread that must not block.
        if let Some(runtime) = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.shutdown_background();
        }
    }
}

impl Store {
    /// Starts runtime D and connects as the service's role.
    ///
    /// # Errors
    /// [`Error::Away`] when the database cannot be reached, [`Error::Broken`] when the address is none.
    pub async fn connect(options: &Options) -> Result<Self, Error> {
        Self::open(options, &options.url).await
    }

    /// The same as the owner of the schema, to migrate and to set what the service may not.
    ///
    /// # Errors
    /// As [`Store::connect`]; [`Error::Broken`] when no address of the owner is configured.
    pub async fn connect_as_owner(options: &Options) -> Result<Self, Error> {
        if options.owner_url.is_empty() {
            return Err(Error::Broken("owner_url is not configured".to_owned()));
        }
        // A step of the schema takes as long as there are rows, and the transaction that keeps its turn does nothing meanwhile.
        let options = Options { statement_timeout: Duration::ZERO, idle_timeout: Duration::ZERO, ..options.clone() };
        Self::open(&options, &options.owner_url).await
    }

    async fn open(options: &Options, url: &str) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("database")
            .enable_all()
            .build()
            .map_err(|error| Error::Away(format!("no threads for runtime D: {error}")))?;
        let handle = runtime.handle().clone();
        // The driver's own error would quote the address.
        check_address(url).map_err(Error::Broken)?;
        let connecting = connect_options(options, url);
        let address = url.to_owned();
        let connected = handle.spawn(async move {
            match Database::connect(connecting).await {
                // The pool tries until its time is over, and then has forgotten why.
                Err(error) => Err(refusal(&address).await.unwrap_or_else(|| error.into())),
                connected => connected.map_err(Error::from),
            }
        });
        let connected = connected.await;
        let pool_size = usize::try_from(options.pool_size.max(1)).unwrap_or(1);
        match connected {
            Ok(Ok(db)) => Ok(Self {
                inner: Arc::new(Inner {
                    runtime: Mutex::new(Some(runtime)),
                    handle,
                    db,
                    room: Arc::new(Semaphore::new(pool_size)),
                    waiting: Arc::new(Semaphore::new(options.waiting_max.max(1))),
                    acquire_timeout: options.acquire_timeout,
                    call_timeout: options.call_timeout,
                    statement_timeout: options.statement_timeout,
                    accounts: Mutex::default(),
                    metrics: Arc::default(),
                }),
            }),
            failed => {
                runtime.shutdown_background();
                Err(match failed {
                    Ok(Err(error)) => error,
                    Err(error) => Error::Away(error.to_string()),
                    Ok(Ok(_)) => Error::Away("connected and gone".to_owned()),
                })
            }
        }
    }

    /// Runs `work` on runtime D with the pool, and gives back what it gave. Where the caller stops waiting, the work
    /// goes on to its end.
    ///
    /// # Errors
    /// What the work said; [`Error::Away`] when there was no connection or no answer in time, or the work panicked.
    pub async fn run<T, F, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(DatabaseConnection) -> F + Send + 'static,
    {
        let patience = self.inner.call_timeout;
        self.run_holding(move |db, permit| async move {
            let done = in_time(patience, work(db)).await;
            drop(permit);
            done
        })
        .await
    }

    /// The same for work that takes as long as there are rows.
    async fn run_long<T, F, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(DatabaseConnection) -> F + Send + 'static,
    {
        self.run_holding(|db, permit| async move {
            let done = work(db).await;
            drop(permit);
            done
        })
        .await
    }

    /// The same with the place in front of the pool, for work that keeps its connection over several calls.
    async fn run_holding<T, F, W>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(DatabaseConnection, OwnedSemaphorePermit) -> F + Send + 'static,
    {
        let Ok(waiting) = Arc::clone(&self.inner.waiting).try_acquire_owned() else {
            return Err(Error::Away("too many wait for a connection".to_owned()));
        };
        let (room, db, patience) = (Arc::clone(&self.inner.room), self.inner.db.clone(), self.inner.acquire_timeout);
        let running = self.inner.handle.spawn(async move {
            let permit = match tokio::time::timeout(patience, room.acquire_owned()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) => return Err(Error::Away("closed".to_owned())),
                Err(_) => return Err(Error::Away(format!("no connection for {patience:?}"))),
            };
            drop(waiting);
            work(db, permit).await
        });
        running.await.unwrap_or_else(|error| Err(Error::Away(error.to_string())))
    }

    /// What all who work on this store count.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// Runtime D, for tasks that belong to the database.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.inner.handle
    }

    /// Brings the schema to the newest step. For a store that is connected as the owner.
    ///
    /// # Errors
    /// What the first step that failed said.
    pub async fn migrate(&self) -> Result<(), Error> {
        self.run_long(|db| async move { Ok(wakala_migrations::migrate(&db).await?) }).await
    }

    /// The steps that the schema lacks, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked, or is newer than this program.
    pub async fn pending(&self) -> Result<Vec<String>, Error> {
        let pending = self.run(|db| async move { Ok(wakala_migrations::pending(&db).await?) }).await;
        match pending {
            // As sea-orm-migration words it.
            Err(Error::Broken(text)) if text.contains("Migration file of version") => {
                let step = text.split('\'').nth(1).unwrap_or("one that is unknown here").to_owned();
                Err(Error::Broken(format!("the schema is newer than this program: it has the step {step}")))
            }
            pending => pending,
        }
    }

    /// Ends the connections; what waits is refused.
    pub async fn close(&self) {
        self.inner.room.close();
        let db = self.inner.db.clone();
        // Nobody is left who could follow an error.
        let _ = self.inner.handle.spawn(async move { db.close().await }).await;
    }
}

/// Gives up after so long. What was asked may be done or not.
async fn in_time<T>(patience: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(patience, work).await {
        Ok(done) => done,
        Err(_) => Err(Error::Away(format!("no answer for {patience:?}"))),
    }
}

/// What the database, or the way to it, says against a connection.
async fn refusal(url: &str) -> Option<Error> {
    let connecting = <sqlx::PgConnection as sqlx::Connection>::connect(url);
    let said = tokio::time::timeout(Duration::from_secs(1), connecting).await.ok()?.err()?;
    Some(of_sqlx(&said))
}

/// A connection that lay idle for longer is asked whether it is still there before it is used.
const IDLE_TRUSTED: Duration = Duration::from_secs(1);

fn connect_options(options: &Options, url: &str) -> ConnectOptions {
    let mut connecting = ConnectOptions::new(url);
    let millis = |wait: Duration| format!("{}ms", wait.as_millis());
    let (statement, lock) = (millis(options.statement_timeout), millis(options.lock_timeout));
    let idle = millis(options.idle_timeout);
    connecting
        .max_connections(options.pool_size.max(1))
        .acquire_timeout(options.acquire_timeout)
        .connect_timeout(options.acquire_timeout)
        // One that was in use just now is as likely to be there as one that is asked; asking each time is a way there and
        // back before every statement.
        .test_before_acquire_if_idle_for(IDLE_TRUSTED)
        // The driver's own log would say every statement.
        .sqlx_logging(false)
        .map_sqlx_postgres_opts(move |given| {
            given.application_name("wakala").options([
                ("statement_timeout", &statement),
                ("lock_timeout", &lock),
                ("idle_in_transaction_session_timeout", &idle),
                ("timezone", &"UTC".to_owned()),
            ])
        });
    connecting
}

/// A time as Postgres takes it.
#[must_use]
pub fn timestamp(time: wakala::time::Time) -> time::OffsetDateTime {
    time.utc()
}

/// A time as Postgres gave it.
#[must_use]
pub fn time_of(stamp: time::OffsetDateTime) -> wakala::time::Time {
    let millis = stamp.unix_timestamp_nanos().div_euclid(1_000_000);
    wakala::time::Time::from_millis(i64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_in_no_message() {
        for (url, shown) in [
            ("postgres://w:hunter2@db:5432/wakala", "postgres://w:***@db:5432/wakala"),
            ("postgres://w:hunt@er2@db/wakala?sslmode=require", "postgres://w:***@db/wakala?sslmode=require"),
            ("postgres://w@db/wakala?password=hunter2&host=/run", "postgres://w@db/wakala?password=***&host=/run"),
            ("postgres://w@db/wakala?host=/run", "postgres://w@db/wakala?host=/run"),
            ("", ""),
        ] {
            assert_eq!(without_password(url), shown);
        }
        assert_eq!(check_address("postgres://w:hunter2@db/wakala"), Ok(()));
        for url in [
            "",
            "hunter2",
            "mysql://w:hunter2@db/wakala",
            "postgres://w:hunter2@db:port/wakala",
            "postgres://w:hunter2@/x:y@:1:1",
        ] {
            let Err(said) = check_address(url) else { panic!("an address: {url}") };
            assert!(!said.contains("hunter2") && said.contains("right would be"), "{said}");
        }
    }

    #[test]
    fn what_passes_and_what_does_not() {
        for code in ["08006", "40P01", "40001", "53300", "57P01", "57014", "58030", "55P03"] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["23505", "23514", "42501", "42P01", "22003", "", "5"] {
            assert!(!is_passing(code), "{code}");
        }
    }
}
