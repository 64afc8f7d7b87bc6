//! MQTT sessions as they are stored. Every write names the epoch that the connection raised when it opened the session;
//! under an older one it changes no row.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{QoS, RetainHandling, SubscriptionOptions};
use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use wakala::conservation::Fate;
use wakala::id::{ClientId, Epoch};
use wakala::session::Subscription;
use wakala::time::Time;

use super::batch::Batcher;
use super::openings::WhenLocked;
use super::{Error, Store, name, time_of, timestamp, wills};

/// A delivery that a client is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub client: ClientId,
    pub epoch: Epoch,
    pub seq: i64,
    /// A receipt, not another message.
    pub receipt: bool,
    pub fate: Fate,
    pub at: Time,
}

/// A connection that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub client: ClientId,
    pub epoch: Epoch,
    /// How long the session lives on, in seconds; 0 if it ended too.
    pub expiry_s: u32,
    /// Deliveries up to this place were sent.
    pub sent_to: i64,
    pub will: Left,
    pub why: String,
    pub at: Time,
    /// A batch in which one end passes over what is locked waits for no lock.
    pub when_locked: WhenLocked,
}

/// What became of the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Stored,
    /// A later connection owns the session.
    Fenced,
    /// Somebody else has the session locked; nothing was done.
    Locked,
}

/// What a connection leaves of its will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It had none.
    Nothing,
    /// The client took its leave, and the will is void.
    Void,
    /// It is to be sent, when its delay is over.
    Will,
}

/// A connection that a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub client: ClientId,
    pub epoch: Epoch,
    /// Something of it is stored.
    pub stored: bool,
}

/// Why a connection that a node has is not its session's any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A later connection has opened the session, on whatever node.
    Overtaken,
    /// Its end has been told already: somebody took its node for dead.
    Buried,
}

/// A connection that ended with its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub client: ClientId,
    pub epoch: Epoch,
    pub guest: bool,
    /// Its session ended with it.
    pub over: bool,
}

/// A session that is kept, with one of its subscriptions or without.
#[derive(Clone, Debug)]
pub struct Kept {
    pub client: ClientId,
    pub epoch: Epoch,
    /// Of one that is connected nobody knows.
    pub over_at: Option<Time>,
    pub subscription: Option<Subscription>,
}

type KeptRow = (String, i64, Option<OffsetDateTime>, Option<String>, i16, i16, Option<i32>);

/// Marks deliveries, many in one commit. False when a later connection owns the session.
pub type Acknowledgements = Batcher<Acknowledged, bool>;

/// Stores ends of connections, many in one commit.
pub type Ends = Batcher<Ended, Closed>;

/// How long an end may wait for others. Nobody waits for it but its own client's next connection, and where many come and go
/// it is a commit for each few of them that is saved.
const PATIENCE: Duration = Duration::from_millis(10);

impl Store {
    /// A batcher that marks deliveries: at most `room` wait, at most `max` go into one commit.
    #[must_use]
    pub fn acknowledgements(&self, room: usize, max: usize) -> Acknowledgements {
        let store = self.clone();
        let counts = Arc::clone(&self.metrics().batches.acknowledgements);
        Batcher::counted(self.handle(), room, max, counts, move |acknowledged| {
            let store = store.clone();
            async move { store.acknowledge(acknowledged).await }
        })
    }

    async fn acknowledge(&self, acknowledged: Vec<Acknowledged>) -> Result<Vec<bool>, Error> {
        self.run(move |db| async move {
            // No lock of the session: what a client acknowledged it has, whoever owns the session by the time of the commit.
            // The rows are locked in the order of all who lock several: receipts by what they answer, messages by their
            // place.
            let owned: Vec<(i64,)> = sqlx::query_as(
                "with a as materialized ( \
                   select a.client_id, a.seq, a.receipt, a.at, a.fate, a.nth, s.epoch = a.epoch as owned \
                   from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bool[], $5::timestamptz[], $6::text[]) \
                   with ordinality a (client_id, epoch, seq, receipt, at, fate, nth) \
                   join wakala.session s using (client_id)), \
                 told as (select r.answers, r.stage, a.at from a \
                   join wakala.receipt r on r.terminal = a.client_id and r.seq = a.seq \
                   where a.owned and a.receipt and r.delivered_at is null and r.withdrawn_at is null \
                   order by r.answers, r.stage for no key update of r), \
                 r as (update wakala.receipt r set delivered_at = told.at from told where r.answers = told.answers \
                   and r.stage = told.stage and r.delivered_at is null and r.withdrawn_at is null returning 1), \
                 done as (select m.client_id, m.seq, a.fate from a join wakala.message m using (client_id, seq) \
                   where a.owned and not a.receipt order by m.client_id, m.seq for update of m), \
                 m as (delete from wakala.message m using done where m.client_id = done.client_id \
                   and m.seq = done.seq returning done.fate, m.client_id, m.seq, m.told), \
                 e as (insert into wakala.told_end (told, client_id, seq, fate) \
                   select told, client_id, seq, fate from m where told is not null), \
                 t as (insert into wakala.tally select fate, count(*) from m group by fate \
                   union all select 'receipt_delivered', count(*) from r having count(*) > 0) \
                 select nth from a where owned",
            )
            .bind(acknowledged.iter().map(|a| a.client.as_str().to_owned()).collect::<Vec<_>>())
            .bind(acknowledged.iter().map(|a| a.epoch.0).collect::<Vec<_>>())
            .bind(acknowledged.iter().map(|a| a.seq).collect::<Vec<_>>())
            .bind(acknowledged.iter().map(|a| a.receipt).collect::<Vec<_>>())
            .bind(acknowledged.iter().map(|a| timestamp(a.at)).collect::<Vec<_>>())
            .bind(acknowledged.iter().map(|a| a.fate.word()).collect::<Vec<_>>())
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            Ok(nth_true(acknowledged.len(), &owned))
        })
        .await
    }

    /// A batcher that stores ends of connections: at most `max` go into one commit. They are handed over, so that none waits
    /// for room: there are no more than there were connections.
    #[must_use]
    pub fn ends(&self, max: usize) -> Ends {
        let store = self.clone();
        let counts = Arc::clone(&self.metrics().batches.ends);
        Batcher::patient(self.handle(), PATIENCE, max, max, counts, move |ended| {
            let store = store.clone();
            async move { store.end_sessions(ended).await }
        })
    }

    async fn end_sessions(&self, ended: Vec<Ended>) -> Result<Vec<Closed>, Error> {
        self.run(move |db| async move {
            let pool = db.get_postgres_connection_pool();
            if ended.iter().all(|each| each.expiry_s > 0 && each.will == Left::Nothing) {
                // Nothing follows it, so the statement is the commit.
                return end(&mut *pool.acquire().await?, &ended).await;
            }
            let mut opened = pool.begin().await?;
            let closed = end(&mut opened, &ended).await?;
            let with = || ended.iter().zip(&closed);
            wills::end(&mut opened, with().filter(|(_, closed)| **closed != Closed::Locked).map(|(each, _)| each))
                .await?;
            let over = with().filter(|(each, closed)| each.expiry_s == 0 && **closed == Closed::Stored);
            let over: Vec<String> = over.map(|(each, _)| each.client.as_str().to_owned()).collect();
            if !over.is_empty() {
                discard(&mut opened, &over).await?;
                forget_guests(&mut opened, &over).await?;
            }
            opened.commit().await?;
            Ok(closed)
        })
        .await
    }

    /// Which of these connections are not what the session is any more, and why.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn lost(&self, held: Vec<Held>) -> Result<Vec<(Held, Lost)>, Error> {
        self.run(move |db| async move {
            let lost: Vec<(i64, bool)> = sqlx::query_as(
                "select h.nth, coalesce(s.epoch > h.epoch, false) \
                 from unnest($1::text[], $2::bigint[], $3::bool[]) with ordinality h (client_id, epoch, stored, nth) \
                 left join wakala.session s using (client_id) \
                 where s.epoch > h.epoch or h.stored and s.connected is distinct from true",
            )
            .bind(held.iter().map(|held| held.client.as_str().to_owned()).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.epoch.0).collect::<Vec<_>>())
            .bind(held.iter().map(|held| held.stored).collect::<Vec<_>>())
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let of = |(nth, overtaken): (i64, bool)| {
                let held = held.get(usize::try_from(nth - 1).ok()?)?.clone();
                Some((held, if overtaken { Lost::Overtaken } else { Lost::Buried }))
            };
            Ok(lost.into_iter().filter_map(of).collect())
        })
        .await
    }

    /// The sessions that are kept of all clients that are not enrolled, or of these, each with every one of its subscriptions,
    /// or once without: whoever publishes must reach them, there or not, and whoever connects must find them.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn kept_guests(&self, of: Option<Vec<ClientId>>) -> Result<Vec<Kept>, Error> {
        let of = of.map(|of| of.iter().map(|client| client.as_str().to_owned()).collect::<Vec<_>>());
        self.run(|db| async move {
            let rows: Vec<KeptRow> = sqlx::query_as(
                // One that ends with its connection, and goes on until then, has a queue too.
                "select client_id, epoch, expires_at, filter, coalesce(qos, 0::smallint), coalesce(options, 0::smallint), identifier \
                 from wakala.session s left join wakala.subscription using (client_id) \
                 where (expiry_s > 0 or filter is not null or (connected and began < epoch)) \
                 and not exists (select from wakala.terminal t where t.id = s.client_id) \
                 and ($1::text[] is null or client_id = any($1)) order by client_id",
            )
            .bind(of)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |(client, epoch, expires_at, filter, qos, options, identifier): KeptRow| {
                let client = ClientId::new(&client).map_err(|error| Error::Broken(error.to_string()))?;
                let subscription = filter.map(|filter| subscription((filter, qos, options, identifier)));
                Ok(Kept { client, epoch: Epoch(epoch), over_at: expires_at.map(time_of), subscription })
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Says of the sessions that this node held when it died that they are not connected. To be called before the
    /// listener starts.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn forget_connections(&self, node: &str, now: Time) -> Result<Vec<Cut>, Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let forgotten = forget(&mut opened, &node, timestamp(now)).await?;
            opened.commit().await?;
            Ok(forgotten)
        })
        .await
    }

    /// Other nodes that have connections, as far as is known, or wills to send, and whose names nobody holds. One of them may be
    /// about to take its name again.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn missing_nodes(&self, but: &str) -> Result<Vec<String>, Error> {
        let but = but.to_owned();
        self.run(move |db| async move {
            let nodes: Vec<(String,)> = sqlx::query_as(
                "select node from wakala.session where connected and node <> $1 \
                 union select node from wakala.will where due_at is not null and node <> $1",
            )
            .bind(but)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let mut missing = Vec::new();
            for (node,) in nodes {
                let mut opened = db.get_postgres_connection_pool().begin().await?;
                if name::is_free(&mut opened, &node).await? {
                    missing.push(node);
                }
                opened.commit().await?;
            }
            Ok(missing)
        })
        .await
    }

    /// Says of the sessions of another node that is dead that they are not connected, and that its wills are anybody's; of none
    /// if somebody holds its name.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn bury(&self, node: &str, now: Time) -> Result<Vec<Cut>, Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            // Held until the commit: the node does not begin its next life meanwhile.
            if !name::is_free(&mut opened, &node).await? {
                return Ok(Vec::new());
            }
            let forgotten = forget(&mut opened, &node, timestamp(now)).await?;
            wills::release(&mut opened, &node).await?;
            opened.commit().await?;
            Ok(forgotten)
        })
        .await
    }

    /// Discards what is left of at most `limit` sessions whose time is over: subscriptions and messages. Receipts stay.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn expire_sessions(&self, now: Time, limit: u32) -> Result<Vec<ClientId>, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let over: Vec<(String,)> = sqlx::query_as(
                "select client_id from wakala.session where not connected and expiry_s > 0 and expires_at <= $1 \
                 order by expires_at limit $2 for update skip locked",
            )
            .bind(timestamp(now))
            .bind(i64::from(limit))
            .fetch_all(&mut *opened)
            .await?;
            let over: Vec<String> = over.into_iter().map(|(client,)| client).collect();
            discard(&mut opened, &over).await?;
            sqlx::query("update wakala.session set expiry_s = 0 where client_id = any($1)")
                .bind(&over)
                .execute(&mut *opened)
                .await?;
            forget_guests(&mut opened, &over).await?;
            opened.commit().await?;
            Ok(over.iter().filter_map(|client| ClientId::new(client).ok()).collect())
        })
        .await
    }
}

pub(super) fn qos_of(number: i16) -> QoS {
    match number {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

pub(super) fn nth_true(count: usize, true_ones: &[(i64,)]) -> Vec<bool> {
    let mut results = vec![false; count];
    for (nth,) in true_ones {
        if let Some(result) = usize::try_from(nth - 1).ok().and_then(|at| results.get_mut(at)) {
            *result = true;
        }
    }
    results
}

/// Says of connections that they have ended, where they owned their session.
async fn end(db: &mut PgConnection, ended: &[Ended]) -> Result<Vec<Closed>, Error> {
    let pass_over = ended.iter().any(|each| each.when_locked == WhenLocked::PassOver);
    let text = format!(
        "with e as materialized ( \
           select client_id, epoch, s.connected, s.node, e.expiry_s, e.sent_to, e.at, e.why, e.nth \
           from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::text[]) \
           with ordinality e (client_id, epoch, expiry_s, sent_to, at, why, nth) \
           join (select client_id, epoch, connected, node from wakala.session where client_id = any($1) \
                 order by client_id for update{}) s using (client_id, epoch)), \
         lost as (select m.client_id, m.seq from e join wakala.message m using (client_id) where m.qos = 0 \
           order by m.client_id, m.seq for update of m), \
         gone as (delete from wakala.message m using lost where m.client_id = lost.client_id \
           and m.seq = lost.seq returning m.client_id, m.seq, m.told), \
         t as (insert into wakala.tally select 'connection_over', count(*) from gone having count(*) > 0), \
         told as (insert into wakala.told_end (told, client_id, seq, fate) \
           select told, client_id, seq, 'connection_over' from gone where told is not null), \
         ended as (update wakala.session s set connected = false, node = null, disconnected_at = e.at, \
             expiry_s = e.expiry_s, expires_at = e.at + make_interval(secs => e.expiry_s), sent_seq = e.sent_to, \
             ended_why = e.why \
           from e where s.client_id = e.client_id and s.epoch = e.epoch returning e.*), \
         went as (insert into wakala.presence (client_id, epoch, online, at, node, why) \
           select client_id, epoch, false, at, node, why from ended where connected) \
         select nth from ended",
        if pass_over { " skip locked" } else { "" }
    );
    let stored: Vec<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(ended.iter().map(|e| e.client.as_str().to_owned()).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| e.epoch.0).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| i64::from(e.expiry_s)).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| e.sent_to).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| timestamp(e.at)).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| e.why.clone()).collect::<Vec<_>>())
        .fetch_all(&mut *db)
        .await?;
    let (stored, mut locked) = (nth_true(ended.len(), &stored), Vec::new());
    if pass_over && !stored.iter().all(|stored| *stored) {
        // Whose session is its own still, and yet was not to be had.
        locked = sqlx::query_as(
            "select e.nth from unnest($1::text[], $2::bigint[]) with ordinality e (client_id, epoch, nth) \
             join wakala.session s using (client_id, epoch)",
        )
        .bind(ended.iter().map(|e| e.client.as_str().to_owned()).collect::<Vec<_>>())
        .bind(ended.iter().map(|e| e.epoch.0).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    }
    let closed = stored.into_iter().zip(nth_true(ended.len(), &locked)).map(|each| match each {
        (true, _) => Closed::Stored,
        (false, true) => Closed::Locked,
        (false, false) => Closed::Fenced,
    });
    Ok(closed.collect())
}

async fn forget(db: &mut PgConnection, node: &str, now: OffsetDateTime) -> Result<Vec<Cut>, Error> {
    // Sessions before wills, as whoever opens and ends sessions locks them.
    sqlx::query("select from wakala.session where node = $1 and connected order by client_id for no key update")
        .bind(node)
        .execute(&mut *db)
        .await?;
    wills::node_died(db, node, now).await?;
    let forgotten: Vec<(String, i64, bool, bool)> = sqlx::query_as(
        "with cut as (update wakala.session \
             set connected = false, node = null, disconnected_at = $2, ended_why = 'its node died', \
               expires_at = $2 + make_interval(secs => expiry_s) \
             where node = $1 and connected returning client_id, epoch, ended_why, expiry_s = 0 as over), \
         went as (insert into wakala.presence (client_id, epoch, online, at, node, why) \
           select client_id, epoch, false, $2, $1, ended_why from cut order by client_id) \
         select client_id, epoch, not exists (select from wakala.terminal t where t.id = client_id), over from cut",
    )
    .bind(node)
    .bind(now)
    .fetch_all(&mut *db)
    .await?;
    // A session that had been kept, and was to end with this connection.
    let over: Vec<String> = forgotten.iter().filter(|(.., over)| *over).map(|(client, ..)| client.clone()).collect();
    if !over.is_empty() {
        discard(db, &over).await?;
        forget_guests(db, &over).await?;
    }
    let named = |(client, epoch, guest, over): (String, i64, bool, bool)| {
        Some(Cut { client: ClientId::new(&client).ok()?, epoch: Epoch(epoch), guest, over })
    };
    Ok(forgotten.into_iter().filter_map(named).collect())
}

/// Removes what ends with a session. Receipts are no part of it: they wait for the terminal, session or not.
pub(super) async fn discard(db: &mut PgConnection, clients: &[String]) -> Result<(), Error> {
    for table in ["subscription", "received"] {
        let text = format!("delete from wakala.{table} where client_id = any($1)");
        sqlx::query(sqlx::AssertSqlSafe(text)).bind(clients).execute(&mut *db).await?;
    }
    // In the order in which acknowledgements lock them, for these do not wait for the session's row.
    sqlx::query(
        "with m as (select client_id, seq from wakala.message where client_id = any($1) \
           order by client_id, seq for update), \
         gone as (delete from wakala.message d using m where d.client_id = m.client_id and d.seq = m.seq \
           returning d.client_id, d.seq, d.told), \
         told as (insert into wakala.told_end (told, client_id, seq, fate) \
           select told, client_id, seq, $2 from gone where told is not null) \
         insert into wakala.tally select $2, count(*) from gone having count(*) > 0",
    )
    .bind(clients)
    .bind(Fate::SessionOver.word())
    .execute(db)
    .await?;
    Ok(())
}

/// Removes the sessions of clients that are not enrolled; one with a will is removed when that is sent.
async fn forget_guests(db: &mut PgConnection, clients: &[String]) -> Result<(), Error> {
    sqlx::query(
        "delete from wakala.session s where client_id = any($1) \
         and not exists (select from wakala.terminal t where t.id = s.client_id) \
         and not exists (select from wakala.will w where w.client_id = s.client_id)",
    )
    .bind(clients)
    .execute(db)
    .await?;
    Ok(())
}

pub(super) async fn subscriptions(db: &mut PgConnection, client: &ClientId) -> Result<Vec<Subscription>, Error> {
    let rows: Vec<(String, i16, i16, Option<i32>)> = sqlx::query_as(
        "select filter, qos, options, identifier from wakala.subscription where client_id = $1 order by filter",
    )
    .bind(client.as_str())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(subscription).collect())
}

pub(super) fn subscription((filter, qos, options, identifier): (String, i16, i16, Option<i32>)) -> Subscription {
    Subscription {
        filter: ByteString::from(filter),
        options: options_of(qos, options),
        identifier: identifier.and_then(|number| u32::try_from(number).ok()).and_then(std::num::NonZeroU32::new),
    }
}

pub(super) fn received_of(number: i32) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}

/// The options as the byte of the SUBSCRIBE has them (3.8.3.1), without the QoS.
pub(super) fn option_bits(options: SubscriptionOptions) -> i16 {
    let retain_handling = match options.retain_handling {
        RetainHandling::AtSubscribe => 0,
        RetainHandling::AtSubscribeNew => 0x10,
        RetainHandling::NoAtSubscribe => 0x20,
    };
    i16::from(options.no_local) << 2 | i16::from(options.retain_as_published) << 3 | retain_handling
}

fn options_of(qos: i16, bits: i16) -> SubscriptionOptions {
    SubscriptionOptions {
        qos: qos_of(qos),
        no_local: bits & 0x04 != 0,
        retain_as_published: bits & 0x08 != 0,
        retain_handling: match bits & 0x30 {
            0x10 => RetainHandling::AtSubscribeNew,
            0x20 => RetainHandling::NoAtSubscribe,
            _ => RetainHandling::AtSubscribe,
        },
    }
}
