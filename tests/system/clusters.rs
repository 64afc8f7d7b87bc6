//! Private Postgres and Kafka clusters.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use wakala_node::store::{Options, Store};

/// One of `scripts/`.
///
/// # Panics
/// Never: the path is this package's own.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"))
        .join("../../scripts")
        .join(name)
}

/// A cluster that a script started, and its watcher.
#[derive(Debug)]
struct Cluster {
    dir: PathBuf,
    /// What `start` printed.
    address: String,
    /// Its standard input is open as long as this value lives, and no longer than this process.
    watcher: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        // It stops the cluster; whoever waits for nothing else need not wait for that either.
        let _ = self.watcher.try_wait();
    }
}

impl Cluster {
    fn start(name: &str, arguments: &[&str]) -> Self {
        // Short: a socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("wakala-").tempdir().expect("a temporary directory").keep();
        let started = Command::new(script(name))
            .arg("start")
            .arg("--dir")
            .arg(&dir)
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .expect("the script can be run");
        if !started.status.success() {
            // What of it runs must not go on running.
            let _ = Command::new(script(name)).arg("stop").arg("--dir").arg(&dir).output();
            panic!("scripts/{name} start: {}; its directory is {}", started.status, dir.display());
        }
        let watcher = Command::new("setsid")
            .args(["sh", "-c", r#"cat >/dev/null; "$1" stop --dir "$2" >/dev/null 2>&1; rm -rf "$2""#, "watcher"])
            .arg(script(name))
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        let address = String::from_utf8(started.stdout).expect("text").trim().to_owned();
        Self { dir, address, watcher }
    }
}

fn postgres() -> &'static Arc<Cluster> {
    static POSTGRES: OnceLock<Arc<Cluster>> = OnceLock::new();
    POSTGRES.get_or_init(new_postgres)
}

fn new_postgres() -> Arc<Cluster> {
    let cluster = Cluster::start("postgres", &[]);
    let cluster = Arc::new(cluster);
    let template = Database { name: "wakala".to_owned(), cluster: Arc::clone(&cluster), keep: true };
    // On a thread of its own: the caller may be inside a runtime.
    let migrated = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(async {
            let owner = Store::connect_as_owner(&template.options()).await.expect("the cluster runs");
            owner.migrate().await.expect("the schema is made");
            // A template must have no connections.
            owner.close().await;
        });
    });
    migrated.join().expect("migrated");
    cluster
}

/// A real KRaft cluster.
#[derive(Clone, Debug)]
pub struct Kafka {
    pub address: String,
    pub dir: PathBuf,
    /// Stopped with the last of them.
    _cluster: Arc<Cluster>,
}

impl Kafka {
    /// A cluster that no other test uses: its brokers may be killed.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn alone(nodes: u8) -> Self {
        Self::of(&Arc::new(Cluster::start("kafka", &["--nodes", &nodes.to_string()])))
    }

    fn of(cluster: &Arc<Cluster>) -> Self {
        Self { address: cluster.address.clone(), dir: cluster.dir.clone(), _cluster: Arc::clone(cluster) }
    }
}

/// Kafka with one broker or three, started at the first use.
///
/// # Panics
/// When it cannot be started: a test that needs it fails.
#[must_use]
pub fn kafka(nodes: u8) -> Kafka {
    static ONE: OnceLock<Kafka> = OnceLock::new();
    static THREE: OnceLock<Kafka> = OnceLock::new();
    let cluster = if nodes == 1 { &ONE } else { &THREE };
    cluster.get_or_init(|| Kafka::alone(nodes)).clone()
}

/// A database of its own, with the whole schema and no rows; gone when dropped.
#[derive(Debug)]
pub struct Database {
    name: String,
    cluster: Arc<Cluster>,
    keep: bool,
}

impl Database {
    /// # Panics
    /// When Postgres cannot be started: a test that needs it fails.
    #[must_use]
    pub fn new() -> Self {
        Self::from_template("wakala")
    }

    /// One without a schema.
    ///
    /// # Panics
    /// As [`Database::new`].
    #[must_use]
    pub fn empty() -> Self {
        Self::from_template("template1")
    }

    /// One in a cluster that no other test uses: it may be killed.
    ///
    /// # Panics
    /// As [`Database::new`].
    #[must_use]
    pub fn alone() -> Self {
        Self { name: "wakala".to_owned(), cluster: new_postgres(), keep: true }
    }

    /// A copy with all its rows. Nobody may be connected to the original.
    ///
    /// # Panics
    /// When Postgres does not copy it.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::made_from(&self.name, &self.cluster)
    }

    /// Where its cluster lives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.cluster.dir
    }

    fn from_template(template: &str) -> Self {
        Self::made_from(template, postgres())
    }

    fn made_from(template: &str, cluster: &Arc<Cluster>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let cluster = Arc::clone(cluster);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let database = Self { name, cluster, keep: false };
        let text = format!("create database {} template {template} owner wakala_owner", database.name);
        psql(&url(database.dir(), "postgres", "postgres"), &text).expect("a database can be made");
        database
    }

    /// The address as `service`, `owner`, `auditor` or `postgres` (the superuser).
    #[must_use]
    pub fn url(&self, role: &str) -> String {
        url(self.dir(), role, &self.name)
    }

    #[must_use]
    pub fn options(&self) -> Options {
        Options { url: self.url("service"), owner_url: self.url("owner"), ..Options::default() }
    }

    /// A store of the service's role.
    ///
    /// # Panics
    /// When it does not connect.
    pub async fn store(&self) -> Store {
        Store::connect(&self.options()).await.expect("the database is there")
    }

    /// Runs SQL by `psql` as a role; the rows, a line each and columns between bars, or what Postgres said.
    ///
    /// # Errors
    /// The error as Postgres worded it, with its SQLSTATE.
    pub fn sql(&self, role: &str, text: &str) -> Result<String, String> {
        psql(&self.url(role), text)
    }

    /// Has Postgres stand still for whoever is connected from a store: it answers nothing and ends nothing.
    ///
    /// # Panics
    /// When it cannot be told.
    #[must_use]
    pub fn stand_still(&self) -> Still {
        self.stands_still("true")
    }

    /// Of its stores' backends only those of whom this is true in `pg_stat_activity`: nobody at their other end is told.
    ///
    /// # Panics
    /// When there is none, or it cannot be told.
    #[must_use]
    pub fn stands_still(&self, which: &str) -> Still {
        let text = format!(
            "select pid from pg_stat_activity where application_name = 'wakala' \
             and datname = current_database() and ({which})"
        );
        let still = Still(self.rows(&text).lines().map(str::to_owned).collect());
        still.signal("-STOP");
        still
    }

    /// As the superuser.
    ///
    /// # Panics
    /// When Postgres refuses.
    #[must_use]
    pub fn rows(&self, text: &str) -> String {
        self.sql("postgres", text).expect("a good statement")
    }
}

/// Postgres' backends of a database's stores, stopped by SIGSTOP until this is dropped.
#[derive(Debug)]
pub struct Still(Vec<String>);

impl Still {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(signal).args(&self.0).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

impl Default for Database {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.keep {
            let text = format!("drop database {} with (force)", self.name);
            // The cluster goes in the end, and with it what could not be dropped.
            let _ = psql(&url(self.dir(), "postgres", "postgres"), &text);
        }
    }
}

fn url(dir: &Path, role: &str, database: &str) -> String {
    let printed = Command::new(script("postgres"))
        .args(["url", "--role", role, "--database", database, "--dir"])
        .arg(dir)
        .output()
        .expect("the script can be run");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    String::from_utf8(printed.stdout).expect("text").trim().to_owned()
}

fn psql(url: &str, text: &str) -> Result<String, String> {
    let run = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
        .args(["--set", "VERBOSITY=verbose", "--command", text, url])
        .output()
        .expect("psql is there, where Postgres is");
    if run.status.success() {
        Ok(String::from_utf8_lossy(&run.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&run.stderr).trim().to_owned())
    }
}
