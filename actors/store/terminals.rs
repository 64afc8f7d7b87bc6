//! Enrolled terminals. Enrolment makes all that a terminal will be looked for in: its row, its session (so that a
//! receipt always finds its queue) and its agent's float.

use std::collections::BTreeMap;

use sea_orm::sqlx::postgres::{PgConnection, PgRow};
use sea_orm::sqlx::{self, Row as _};
use time::OffsetDateTime;
use wakala::ban::Subject;
use wakala::id::{AgentId, CoreId, TerminalId};
use wakala::ledger::Account;
use wakala::money::Currency;
use wakala::time::Time;

use super::bans::{self, NewBan, Whom};
use super::batch::Batcher;
use super::sessions::discard;
use super::{Error, Store, accounts, time_of, timestamp, wills};

/// A terminal, as it is enrolled.
#[derive(Clone, PartialEq, Eq)]
pub struct Terminal {
    pub id: TerminalId,
    pub agent: AgentId,
    /// The bank core that serves the terminal's agent.
    pub core: CoreId,
    /// Argon2id, PHC string; `None` where it comes with a certificate.
    pub password_hash: Option<String>,
    /// SHA-256 over the client certificate in DER.
    pub certificate_sha256: Option<[u8; 32]>,
    pub blocked: Option<Blocked>,
    /// For a node in sandbox mode only.
    pub sandbox: bool,
    pub enrolled_at: Time,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal")
            .field("id", &self.id)
            .field("agent", &self.agent)
            .field("core", &self.core)
            .field("blocked", &self.blocked)
            .field("sandbox", &self.sandbox)
            .finish_non_exhaustive()
    }
}

/// Since when a terminal may not connect, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub at: Time,
    pub why: String,
}

/// By what a terminal is known that connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    Name(TerminalId),
    /// SHA-256 over its certificate in DER.
    Certificate([u8; 32]),
}

/// Looks terminals up. In a storm thousands come at once, and each would want a connection to the database.
pub type Lookups = Batcher<Sought, Option<Terminal>>;

/// What became of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    Done,
    /// There is a terminal of this name; nothing was changed.
    NameTaken,
    /// There is a terminal with this certificate; nothing was changed.
    CertificateTaken,
}

/// With the ban that it has been under for the longest. Those of its address, its certificate and its user name are not
/// asked for here.
const COLUMNS: &str =
    "id, agent, core, password_hash, certificate_sha256, blocked_at, blocked_why, sandbox, enrolled_at";

const FROM: &str = "wakala.terminal t left join lateral (select since as blocked_at, why as blocked_why from wakala.ban \
    where kind = 'client' and subject = t.id and lifted_at is null and coalesce(until, 'infinity') > now() \
    order by id limit 1) b on true";

fn of_row(row: &PgRow) -> Result<Terminal, Error> {
    let bad = |error: wakala::id::Error| Error::Broken(error.to_string());
    let certificate: Option<&[u8]> = row.try_get("certificate_sha256")?;
    let blocked_at: Option<OffsetDateTime> = row.try_get("blocked_at")?;
    Ok(Terminal {
        id: row.try_get::<&str, _>("id")?.parse().map_err(bad)?,
        agent: row.try_get::<&str, _>("agent")?.parse().map_err(bad)?,
        core: row.try_get::<&str, _>("core")?.parse().map_err(bad)?,
        password_hash: row.try_get("password_hash")?,
        certificate_sha256: certificate
            .map(|digest| digest.try_into().map_err(|_| Error::Broken("a fingerprint is not 32 bytes".to_owned())))
            .transpose()?,
        blocked: match (blocked_at, row.try_get("blocked_why")?) {
            (Some(at), Some(why)) => Some(Blocked { at: time_of(at), why }),
            _ => None,
        },
        sandbox: row.try_get("sandbox")?,
        enrolled_at: time_of(row.try_get("enrolled_at")?),
    })
}

impl Store {
    /// Enrols a terminal, opens its session (one that a guest has under this name ends first) and, where the agent has none
    /// yet, a float in this currency.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn enrol_terminal(&self, terminal: Terminal, currency: Currency) -> Result<Enrolment, Error> {
        let store = self.clone();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let at = timestamp(terminal.enrolled_at);
            // On any conflict nothing is inserted: of the name, or of the certificate.
            let enrolled = sqlx::query(
                "insert into wakala.terminal (id, agent, core, password_hash, certificate_sha256, sandbox, enrolled_at) \
                 values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
            )
            .bind(terminal.id.as_str())
            .bind(terminal.agent.as_str())
            .bind(terminal.core.as_str())
            .bind(terminal.password_hash)
            .bind(terminal.certificate_sha256.map(Vec::from))
            .bind(terminal.sandbox)
            .bind(at)
            .execute(&mut *opened)
            .await?;
            if enrolled.rows_affected() == 0 {
                let (taken,): (bool,) = sqlx::query_as("select exists (select from wakala.terminal where id = $1)")
                    .bind(terminal.id.as_str())
                    .fetch_one(&mut *opened)
                    .await?;
                return Ok(if taken { Enrolment::NameTaken } else { Enrolment::CertificateTaken });
            }
            // Where there is one already it is locked.
            let (epoch,): (i64,) = sqlx::query_as(
                "insert into wakala.session (client_id, created_at) values ($1, $2) \
                 on conflict (client_id) do update set created_at = excluded.created_at returning epoch",
            )
            .bind(terminal.id.as_str())
            .bind(at)
            .fetch_one(&mut *opened)
            .await?;
            if epoch > 0 {
                end_guest(&mut opened, terminal.id.as_str(), at).await?;
            }
            let float = [Account::float(terminal.agent, currency)].into();
            let mut found = accounts::known(&mut opened, &store.inner.accounts, &float).await?;
            accounts::make_missing(&mut opened, &mut found, &float).await?;
            opened.commit().await?;
            Ok(Enrolment::Done)
        })
        .await
    }

    /// Bans a terminal for ever, from `at` on; false when there is none. One that is banned for ever stays so for its first
    /// reason.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn block_terminal(&self, id: &TerminalId, why: &str, by: &str, at: Time) -> Result<bool, Error> {
        let subject = Subject::Client(id.as_str().into());
        let ban = NewBan { subject, why: why.to_owned(), by: by.to_owned(), since: at, until: None };
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let (id, at) = (ban.subject.text(), timestamp(ban.since));
            // Its row is held, so that two who block it at once do so one after the other.
            let there = sqlx::query("select from wakala.terminal where id = $1 for update").bind(&id);
            if there.fetch_optional(&mut *opened).await?.is_none() {
                return Ok(false);
            }
            let (blocked,): (bool,) = sqlx::query_as(
                "select exists (select from wakala.ban where kind = 'client' and subject = $1 and lifted_at is null \
                 and until is null and since <= $2)",
            )
            .bind(&id)
            .bind(at)
            .fetch_one(&mut *opened)
            .await?;
            if !blocked {
                bans::insert(&mut *opened, &ban).await?;
            }
            opened.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Lifts the bans on a terminal; false when there is no such terminal.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn unblock_terminal(&self, id: &TerminalId, by: &str, at: Time) -> Result<bool, Error> {
        if self.terminal(id).await?.is_none() {
            return Ok(false);
        }
        self.lift_bans(Whom::Subject(Subject::Client(id.as_str().into())), by, at).await?;
        Ok(true)
    }

    /// The terminal of this name.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn terminal(&self, id: &TerminalId) -> Result<Option<Terminal>, Error> {
        Ok(self.look_up(vec![Sought::Name(id.clone())]).await?.pop().flatten())
    }

    /// A batcher that looks terminals up as they come: at most `room` wait, at most `max` are looked up at once.
    #[must_use]
    pub fn lookups(&self, room: usize, max: usize) -> Lookups {
        self.batches(room, max, |store, sought| async move { store.look_up(sought).await })
    }

    /// Terminals in the order in which they are sought.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn look_up(&self, sought: Vec<Sought>) -> Result<Vec<Option<Terminal>>, Error> {
        self.run(move |db| async move {
            let (mut names, mut digests) = (Vec::new(), Vec::new());
            for each in &sought {
                match each {
                    Sought::Name(id) => names.push(id.as_str().to_owned()),
                    Sought::Certificate(sha256) => digests.push(sha256.to_vec()),
                }
            }
            let pool = db.get_postgres_connection_pool();
            let (mut by_name, mut by_certificate) = (BTreeMap::new(), BTreeMap::new());
            if !names.is_empty() {
                let text = format!("select {COLUMNS} from {FROM} where t.id = any($1)");
                for row in sqlx::query(sqlx::AssertSqlSafe(text)).bind(names).fetch_all(pool).await? {
                    let terminal = of_row(&row)?;
                    by_name.insert(terminal.id.clone(), terminal);
                }
            }
            if !digests.is_empty() {
                let text = format!("select {COLUMNS} from {FROM} where certificate_sha256 = any($1)");
                for row in sqlx::query(sqlx::AssertSqlSafe(text)).bind(digests).fetch_all(pool).await? {
                    let terminal = of_row(&row)?;
                    by_certificate.extend(terminal.certificate_sha256.map(|sha256| (sha256, terminal)));
                }
            }
            let found = |each: Sought| match each {
                Sought::Name(id) => by_name.get(&id).cloned(),
                Sought::Certificate(sha256) => by_certificate.get(&sha256).cloned(),
            };
            Ok(sought.into_iter().map(found).collect())
        })
        .await
    }

    /// Enrolled terminals by name, beyond `after`, at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn terminals(&self, after: Option<&TerminalId>, limit: u32) -> Result<Vec<Terminal>, Error> {
        let after = after.map_or_else(String::new, ToString::to_string);
        self.run(move |db| async move {
            let text = format!("select {COLUMNS} from {FROM} where t.id > $1 order by t.id limit $2");
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(after).bind(i64::from(limit));
            query.fetch_all(db.get_postgres_connection_pool()).await?.iter().map(of_row).collect()
        })
        .await
    }
}

/// Ends the session that a guest has under this name: nothing of it is the terminal's, its connection is fenced off, and what it
/// leaves is sent.
async fn end_guest(db: &mut PgConnection, name: &str, at: OffsetDateTime) -> Result<(), Error> {
    wills::overtake(db, std::iter::once((name, false, at))).await?;
    discard(db, &[name.to_owned()]).await?;
    sqlx::query(
        "with was as materialized (select client_id, epoch, connected, node from wakala.session where client_id = $1), \
         ended as (update wakala.session s set epoch = s.epoch + 1, began = s.epoch + 1, connected = false, node = null, \
             disconnected_at = $2, expiry_s = 0, expires_at = null, sent_seq = null, ended_why = 'enrolled as a terminal' \
           where s.client_id = $1) \
         insert into wakala.presence (client_id, epoch, online, at, node, why) \
         select client_id, epoch, false, $2, node, 'enrolled as a terminal' from was where connected",
    )
    .bind(name)
    .bind(at)
    .execute(db)
    .await?;
    Ok(())
}
