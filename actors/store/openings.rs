//! Sessions are opened many in one commit or two: in a storm of reconnects a commit for each would be what all wait for.
//!
//! Opening raises the session's epoch, so that nothing that an earlier connection writes has an effect, and reads what is
//! left of it. A client comes at most once into a commit: of two CONNECTs that gathered, the later one's follows, and fences
//! the earlier one. A row that somebody else has locked holds nobody else up: it is passed over, and its client comes again.

use std::collections::BTreeMap;

use ntex_mqtt::v5::codec::LastWill;
use sea_orm::sqlx::postgres::{PgArguments, PgConnection, PgPool, Postgres};
use sea_orm::sqlx::query::QueryAs;
use sea_orm::sqlx::{self, types::Json};
use time::OffsetDateTime;
use wakala::admission::Claim;
use wakala::id::{ClientId, Epoch};
use wakala::session::Loaded;
use wakala::time::Time;

use super::batch::{Batcher, one_each};
use super::presence::Connection;
use super::sessions::{discard, received_of, subscription};
use super::{Error, Store, timestamp, wills};

/// How often a session is looked for that ends under our hands.
const AGAIN_MAX: usize = 5;

/// What a CONNECT opens a session with.
#[derive(Clone, Debug)]
pub struct Opening {
    pub client: ClientId,
    /// Not enrolled: its session is made by its CONNECT, and nothing of it stays when it ends.
    pub guest: bool,
    pub node: String,
    /// A connection of this client that is not stored has this epoch.
    pub above: Epoch,
    pub will: Option<Box<LastWill>>,
    pub clean_start: bool,
    /// How long the session outlives the connection, in seconds.
    pub expiry_s: u32,
    pub connection: Connection,
    pub at: Time,
}

/// What became of an opening.
#[derive(Clone, Debug)]
pub enum Opened {
    Session(Epoch, Loaded),
    /// There is no such client.
    Unknown,
    /// Somebody else has the session locked, or its end took it away just now; nothing was done.
    Locked,
    /// The database did not do it, for this one or for one that came with it.
    Failed(Error),
}

/// What to do about a session that somebody else has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenLocked {
    Wait,
    PassOver,
}

/// Says what clients have waiting here.
pub type Claims = Batcher<ClientId, Claim>;

/// A session as it was found, and how it goes on.
struct Found {
    sent_to: i64,
    present: bool,
}

type Row = (String, i64, Option<OffsetDateTime>, i64);

/// A subscription, or the identifier of a publish at QoS 2.
type Left = (String, Option<String>, i16, i16, Option<i32>, Option<i32>);

impl Store {
    /// Raises one session's epoch and reads what is left of it; discards that first if a clean start is wanted or its
    /// time is over.
    ///
    /// # Errors
    /// [`Error::Broken`] when there is no such client.
    pub async fn open_session(&self, opening: Opening) -> Result<(Epoch, Loaded), Error> {
        // A guest's session may end between being found and being locked, and with it the row; then it is made anew.
        for _ in 0..AGAIN_MAX {
            match self.open_sessions(vec![opening.clone()], WhenLocked::Wait).await?.pop() {
                Some(Opened::Session(epoch, loaded)) => return Ok((epoch, loaded)),
                Some(Opened::Locked) => {}
                Some(Opened::Failed(error)) => return Err(error),
                Some(Opened::Unknown) | None => break,
            }
        }
        Err(Error::Broken(format!("{} has no session", opening.client)))
    }

    /// The same for many, each in its place; a client that is there more than once has one after the other opened.
    ///
    /// # Errors
    /// When there is no answer in time. What of it is committed, nobody can say.
    pub async fn open_sessions(&self, openings: Vec<Opening>, when: WhenLocked) -> Result<Vec<Opened>, Error> {
        self.run(move |db| async move {
            let mut opened: Vec<Opened> = openings.iter().map(|_| Opened::Unknown).collect();
            for mut part in one_each(openings, |opening| opening.client.clone()) {
                // In the order in which everybody locks several sessions.
                part.sort_by(|(_, a), (_, b)| a.client.cmp(&b.client));
                let mut done = open(db.get_postgres_connection_pool(), &part, when).await;
                for (place, opening) in part {
                    if let (Some(of), Some(result)) = (opened.get_mut(place), done.remove(opening.client.as_str())) {
                        *of = result;
                    }
                }
            }
            Ok(opened)
        })
        .await
    }

    /// A batcher that says what clients have waiting: at most `room` wait, at most `max` are asked about at once.
    #[must_use]
    pub fn claimed(&self, room: usize, max: usize) -> Claims {
        self.batches(room, max, |store, clients| async move { store.claims(clients).await })
    }

    /// What each of these clients has waiting here: who has most to lose by waiting is let in first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn claims(&self, clients: Vec<ClientId>) -> Result<Vec<Claim>, Error> {
        self.run(move |db| async move {
            let rows: Vec<(i64, bool, bool)> = sqlx::query_as(
                // What is open is little, however many transactions there were.
                "with open as materialized (select distinct terminal from wakala.transaction \
                   where state in ('ACCEPTED', 'SENT', 'IN_DOUBT')) \
                 select c.nth, \
                   exists (select from wakala.receipt r where r.terminal = c.client_id \
                     and r.delivered_at is null and r.withdrawn_at is null) \
                   or exists (select from open o where o.terminal = c.client_id), \
                   exists (select from wakala.message m where m.client_id = c.client_id) \
                 from unnest($1::text[]) with ordinality c (client_id, nth)",
            )
            .bind(clients.iter().map(|client| client.as_str().to_owned()).collect::<Vec<_>>())
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let mut claims = vec![Claim::None; clients.len()];
            for (nth, transaction, message) in rows {
                let claim = usize::try_from(nth - 1).ok().and_then(|place| claims.get_mut(place));
                if let Some(claim) = claim {
                    *claim = match (transaction, message) {
                        (true, _) => Claim::Transaction,
                        (false, true) => Claim::Messages,
                        (false, false) => Claim::None,
                    };
                }
            }
            Ok(claims)
        })
        .await
    }
}

/// Opens sessions of different clients, in the order of their names.
async fn open(pool: &PgPool, part: &[(usize, Opening)], when: WhenLocked) -> BTreeMap<String, Opened> {
    let mut results = BTreeMap::new();
    if let Err(error) = open_in_turn(pool, part, when, &mut results).await {
        for (_, opening) in part {
            results.entry(opening.client.as_str().to_owned()).or_insert_with(|| Opened::Failed(error.clone()));
        }
    }
    results
}

/// First those who come for the first time and leave no will: to make their sessions takes one statement, which is the commit.
async fn open_in_turn(
    pool: &PgPool,
    part: &[(usize, Opening)],
    when: WhenLocked,
    results: &mut BTreeMap<String, Opened>,
) -> Result<(), Error> {
    let mut openings: Vec<&Opening> = part.iter().map(|(_, opening)| opening).collect();
    let light: Vec<&Opening> = openings.iter().copied().filter(|each| each.guest && each.will.is_none()).collect();
    if !light.is_empty() {
        let made = make_guests(&mut *pool.acquire().await?, light.into_iter()).await?;
        openings.retain(|each| !made.contains_key(each.client.as_str()));
        results.extend(new(made));
    }
    if !openings.is_empty() {
        let mut transaction = pool.begin().await?;
        let opened = open_others(&mut transaction, openings, when).await?;
        transaction.commit().await?;
        results.extend(opened);
    }
    Ok(())
}

/// Of a session that there was not nothing is left.
fn new(made: BTreeMap<String, Epoch>) -> impl Iterator<Item = (String, Opened)> {
    made.into_iter().map(|(client, epoch)| (client, Opened::Session(epoch, Loaded::default())))
}

async fn open_others(
    db: &mut PgConnection,
    mut openings: Vec<&Opening>,
    when: WhenLocked,
) -> Result<BTreeMap<String, Opened>, Error> {
    let made = make_guests(db, openings.iter().copied().filter(|each| each.will.is_some())).await?;
    keep_wills(db, &openings, &made).await?;
    openings.retain(|each| !made.contains_key(each.client.as_str()));
    let mut results: BTreeMap<String, Opened> = new(made).collect();
    if openings.is_empty() {
        return Ok(results);
    }
    let found = lock(db, &openings, when).await?;
    let locked: Vec<&Opening> =
        openings.iter().copied().filter(|each| found.contains_key(each.client.as_str())).collect();
    if locked.len() < openings.len() {
        results.extend(passed_over(db, &openings, &found).await?.into_iter().map(|client| (client, Opened::Locked)));
    }
    if locked.is_empty() {
        return Ok(results);
    }
    let present = |wanted: bool| {
        let those = found.iter().filter(move |(_, found)| found.present == wanted);
        those.map(|(client, _)| client.clone()).collect::<Vec<String>>()
    };
    if let guests @ [_, ..] = &*locked.iter().filter(|each| each.guest).copied().collect::<Vec<_>>() {
        let guests = guests.iter().filter_map(|each| {
            let found = found.get(each.client.as_str())?;
            Some((each.client.as_str(), found.present, timestamp(each.at)))
        });
        wills::overtake(db, guests).await?;
    }
    let over = present(false);
    if !over.is_empty() {
        discard(db, &over).await?;
    }
    let mut left = left(db, &present(true)).await?;
    let epochs = raise(db, &locked, present(true)).await?;
    keep_wills(db, &locked, &epochs).await?;
    for (client, found) in found {
        let Some(epoch) = epochs.get(&client) else { continue };
        let loaded = if found.present {
            Loaded { present: true, sent_to: found.sent_to, ..left.remove(&client).unwrap_or_default() }
        } else {
            Loaded::default()
        };
        results.insert(client, Opened::Session(*epoch, loaded));
    }
    Ok(results)
}

/// Of those whose session could not be locked, whose is there all the same; a guest's is made with the next attempt.
async fn passed_over(
    db: &mut PgConnection,
    openings: &[&Opening],
    found: &BTreeMap<String, Found>,
) -> Result<Vec<String>, Error> {
    let missing = openings.iter().copied().filter(|each| !found.contains_key(each.client.as_str()));
    let (guests, enrolled): (Vec<&Opening>, Vec<&Opening>) = missing.partition(|each| each.guest);
    let mut passed: Vec<String> = guests.into_iter().map(|each| each.client.as_str().to_owned()).collect();
    if !enrolled.is_empty() {
        let rows: Vec<(String,)> = sqlx::query_as("select client_id from wakala.session where client_id = any($1)")
            .bind(enrolled.into_iter().map(|each| each.client.as_str().to_owned()).collect::<Vec<_>>())
            .fetch_all(db)
            .await?;
        passed.extend(rows.into_iter().map(|(client,)| client));
    }
    Ok(passed)
}

/// A guest has no session before its first CONNECT: one that is not there is made as this connection opens it, and is
/// locked until the commit. There is nothing to discard with it, and nobody else has it.
async fn make_guests(
    db: &mut PgConnection,
    openings: impl Iterator<Item = &Opening>,
) -> Result<BTreeMap<String, Epoch>, Error> {
    let guests: Vec<&Opening> = openings.filter(|opening| opening.guest).collect();
    if guests.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(String, i64)> = columns(
        "with made as (insert into wakala.session \
             (client_id, epoch, began, created_at, node, connected, connected_at, expiry_s, sent_seq, connection) \
           select o.client_id, new.epoch, new.epoch, o.at, o.node, true, o.at, o.expiry_s, null, o.connection \
           from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::jsonb[]) \
             as o (client_id, node, at, expiry_s, above, connection) \
           cross join lateral (select greatest(nextval('wakala.guest_epoch'), o.above) + 1 as epoch) new \
           where not exists (select from wakala.session s where s.client_id = o.client_id) \
           order by o.client_id on conflict do nothing returning *), \
         came as (insert into wakala.presence (client_id, epoch, online, at, node, connection) \
           select client_id, epoch, true, connected_at, node, connection from made) \
         select client_id, epoch from made",
        &guests,
    )
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(client, epoch)| (client, Epoch(epoch))).collect())
}

/// Keeps the wills of those whose session has been opened with these epochs.
async fn keep_wills(db: &mut PgConnection, opened: &[&Opening], epochs: &BTreeMap<String, Epoch>) -> Result<(), Error> {
    let wills = opened.iter().filter_map(|each| {
        let (will, epoch) = (each.will.as_deref()?, epochs.get(each.client.as_str())?);
        Some((&each.client, *epoch, &*each.node, will))
    });
    wills::keep(db, &wills.collect::<Vec<_>>()).await
}

/// A statement about how these connections are: client, node, time, expiry, the epoch to be above, connection.
fn columns<'a>(text: &'static str, openings: &[&Opening]) -> QueryAs<'a, Postgres, (String, i64), PgArguments> {
    sqlx::query_as(text)
        .bind(openings.iter().map(|each| each.client.as_str().to_owned()).collect::<Vec<_>>())
        .bind(openings.iter().map(|each| each.node.clone()).collect::<Vec<_>>())
        .bind(openings.iter().map(|each| timestamp(each.at)).collect::<Vec<_>>())
        .bind(openings.iter().map(|each| i64::from(each.expiry_s)).collect::<Vec<_>>())
        .bind(openings.iter().map(|each| each.above.0).collect::<Vec<_>>())
        .bind(openings.iter().map(|each| Json(each.connection.clone())).collect::<Vec<_>>())
}

/// Locks what there is of the sessions, and says how each goes on.
async fn lock(
    db: &mut PgConnection,
    openings: &[&Opening],
    when: WhenLocked,
) -> Result<BTreeMap<String, Found>, Error> {
    let skip = match when {
        WhenLocked::Wait => "",
        WhenLocked::PassOver => " skip locked",
    };
    // Where nobody can say how far an earlier connection sent, all of it may have been: but not what was queued when its node was
    // dead, and had been for so long that nobody went on with it who did not know.
    let text = format!(
        "select client_id, expiry_s, expires_at, coalesce(sent_seq, case when connected then next_seq - 1 else \
           (select coalesce(max(seq), 0) from \
             (select seq, at from wakala.message m where m.client_id = s.client_id union all \
              select seq, at from wakala.receipt r where r.terminal = s.client_id and delivered_at is null \
                and withdrawn_at is null) q \
            where q.at <= s.disconnected_at + interval '1 minute') end) \
         from wakala.session s where client_id = any($1) order by client_id for update of s{skip}"
    );
    let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(text))
        .bind(openings.iter().map(|opening| opening.client.as_str().to_owned()).collect::<Vec<_>>())
        .fetch_all(db)
        .await?;
    let by_name: BTreeMap<&str, &Opening> = openings.iter().map(|each| (each.client.as_str(), *each)).collect();
    let found = rows.into_iter().filter_map(|(client, expiry_s, expires_at, sent_to)| {
        let opening = by_name.get(client.as_str())?;
        let lives = expiry_s > 0 && expires_at.is_none_or(|at| at > timestamp(opening.at));
        Some((client, Found { sent_to, present: !opening.clean_start && lives }))
    });
    Ok(found.collect())
}

/// What is left of sessions that go on. A statement of its own, after the locks: what an earlier connection had under way
/// is in it.
async fn left(db: &mut PgConnection, clients: &[String]) -> Result<BTreeMap<String, Loaded>, Error> {
    let mut loaded: BTreeMap<String, Loaded> = BTreeMap::new();
    if clients.is_empty() {
        return Ok(loaded);
    }
    let rows: Vec<Left> = sqlx::query_as(
        "select client_id, filter, qos, options, identifier, null as packet_id \
         from wakala.subscription where client_id = any($1) \
         union all \
         select client_id, null, 0::smallint, 0::smallint, null, packet_id \
         from wakala.received where client_id = any($1) \
         order by client_id, filter, packet_id",
    )
    .bind(clients)
    .fetch_all(db)
    .await?;
    for (client, filter, qos, options, identifier, packet_id) in rows {
        let session = loaded.entry(client).or_default();
        if let Some(filter) = filter {
            session.subscriptions.push(subscription((filter, qos, options, identifier)));
        }
        session.received.extend(packet_id.and_then(received_of));
    }
    Ok(loaded)
}

/// The fence: from the commit on nothing that an earlier connection writes has an effect.
async fn raise(
    db: &mut PgConnection,
    openings: &[&Opening],
    going_on: Vec<String>,
) -> Result<BTreeMap<String, Epoch>, Error> {
    // Messages at QoS 0 were for the earlier connection. Whether one of them was sent nobody knows, and twice would be once
    // too often.
    // While a connection lives, nobody can say how far it sent: `sent_seq` is null until it ends.
    let rows: Vec<(String, i64)> = columns(
        "with o as (select * from unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::jsonb[]) \
           as o (client_id, node, at, expiry_s, above, connection)), \
         lost as (select client_id, seq from wakala.message where client_id = any($1) and qos = 0 \
           order by client_id, seq for update), \
         gone as (delete from wakala.message m using lost where m.client_id = lost.client_id and m.seq = lost.seq \
           returning m.client_id, m.seq, m.told), \
         t as (insert into wakala.tally select 'connection_over', count(*) from gone having count(*) > 0), \
         e as (insert into wakala.told_end (told, client_id, seq, fate) \
           select told, client_id, seq, 'connection_over' from gone where told is not null), \
         was as materialized (select o.*, s.epoch, s.connected, s.node as last_node, \
             greatest(s.epoch, o.above) + 1 as next, o.client_id = any($7) as goes_on \
           from o join wakala.session s using (client_id)), \
         raised as (update wakala.session s set epoch = next, began = case when goes_on then began else next end, \
             node = was.node, connected = true, connected_at = was.at, expiry_s = was.expiry_s, expires_at = null, \
             sent_seq = null, connection = was.connection \
           from was where s.client_id = was.client_id returning s.client_id, s.epoch), \
         told as (insert into wakala.presence (client_id, epoch, online, at, node, why, connection) \
           select client_id, epoch, false, at, last_node, 'taken over', null::jsonb from was where connected \
           union all select client_id, raised.epoch, true, at, was.node, null, connection from raised join was using (client_id)) \
         select client_id, epoch from raised",
        openings,
    )
    .bind(going_on)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(client, epoch)| (client, Epoch(epoch))).collect())
}
