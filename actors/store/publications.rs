//! What clients publish, as far as it is to be stored: for sessions that outlive their connection, as retained messages,
//! and packet identifiers of QoS 2. Many publishes go into one commit, in the order in which they came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::conservation::Fate;
use wakala::id::{ClientId, Epoch};
use wakala::message::Message;
use wakala::session::Addressed;
use wakala::time::Time;

use super::batch::Batcher;
use super::decision::{Drawn, draw_existing};
use super::marks::{Remembered, remember};
use super::messages::read_properties;
use super::sessions::{discard, qos_of};
use super::told::{self, Asked, Entered, Entry};
use super::{Error, Store, tally, timestamp};

/// One publish, as far as it is to be stored.
#[derive(Clone, Debug)]
pub struct Publication {
    /// For whom, of those whose session outlives their connection.
    pub to: Vec<Recipient>,
    /// To whom it is handed when it is stored, of the others: a message at QoS 2 that came before is for nobody.
    pub then: Vec<Recipient>,
    /// It is its topic's retained message now, or with an empty payload removes that.
    pub retain: Option<Arc<Message>>,
    /// A packet identifier that its publisher used at QoS 2.
    pub remember: Option<Remembered>,
    /// It is the will of this connection.
    pub will: Option<(ClientId, Epoch)>,
    /// A program wants it published, and what becomes of it is kept.
    pub told: Option<(Asked, Arc<Message>)>,
    pub at: Time,
}

impl Publication {
    /// One of which nothing is to be stored.
    #[must_use]
    pub fn at(at: Time) -> Self {
        Self { to: Vec::new(), then: Vec::new(), retain: None, remember: None, will: None, told: None, at }
    }
}

/// A client whose subscriptions matched.
#[derive(Clone, Debug)]
pub struct Recipient {
    pub client: ClientId,
    /// Of the connection that it had then, or had last. A session that began with a later one is another session, which
    /// asked for nothing of this [MQTT-3.1.2-4].
    pub epoch: Epoch,
    pub addressed: Addressed,
}

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In these places of the queues of [`Publication::to`]; none where a session is over or its queue is full.
    At(Vec<Option<i64>>),
    /// It is stored already, or its publisher has a later connection by now and sends it again on that one; or another
    /// node sent the will.
    Before,
    /// Whoever wants it told has asked before, under the same key.
    Told(Entered),
}

/// How much may wait for one client, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Rows, from the oldest on.
    pub max: u32,
    /// What goes when there are more.
    pub overflow: Overflow,
    /// The longest that a row waits, whatever its publisher said: one of 3.1.1 can say nothing. Without, its session's life.
    pub ttl_max: Option<Duration>,
}

/// Which message is dropped when a queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// The one that comes.
    #[default]
    Newest,
    /// The one that has waited longest; of QoS 2 none that may have been sent.
    Oldest,
}

/// Stores publishes.
pub type Publications = Batcher<Publication, Stored>;

/// The wait between tries while the database is away.
const RETRY: Duration = Duration::from_millis(200);

type RetainedRow = (String, i16, Vec<u8>, Option<Vec<u8>>, Option<OffsetDateTime>);

impl Store {
    /// A batcher that stores publishes, and then calls `stored` for each, in their order: at most `room`
    /// wait, at most `max` go into one commit. While the database is away
    /// it tries again with the same ones, so that none overtakes another.
    #[must_use]
    pub fn publications(
        &self,
        room: usize,
        max: usize,
        room_for_each: Room,
        stored: impl Fn(&Publication, &Stored) + Send + Sync + 'static,
    ) -> Publications {
        let (store, stored) = (self.clone(), Arc::new(stored));
        let counts = Arc::clone(&self.metrics().batches.publishes);
        Batcher::counted(self.handle(), room, max, counts, move |publications| {
            let (store, stored) = (store.clone(), Arc::clone(&stored));
            let publications = Arc::new(publications);
            async move {
                loop {
                    match store.publish(Arc::clone(&publications), room_for_each).await {
                        Err(Error::Away(why)) => {
                            tracing::warn!(why, publishes = publications.len(), "publishes wait for the database");
                            tokio::time::sleep(RETRY).await;
                        }
                        Ok(all) => {
                            publications.iter().zip(&all).for_each(|(each, one)| stored(each, one));
                            return Ok(all);
                        }
                        refused => return refused,
                    }
                }
            }
        })
    }

    async fn publish(&self, publications: Arc<Vec<Publication>>, room: Room) -> Result<Vec<Stored>, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            lock_sessions(&mut opened, &publications).await?;
            let wills = settle_wills(&mut opened, &publications).await?;
            let remembered: Vec<_> = publications.iter().map(|each| each.remember.as_ref()).collect();
            let identifiers = remember(&mut opened, &remembered).await?;
            let told = enter(&mut opened, &publications).await?;
            let new: Vec<bool> = (wills.into_iter().zip(identifiers).zip(&told))
                .map(|((will, identifier), told)| will && identifier && *told == Entered::New)
                .collect();
            let mut stored = queue(&mut opened, &publications, &new, room).await?;
            retain(&mut opened, &publications, &new).await?;
            opened.commit().await?;
            for (stored, told) in stored.iter_mut().zip(told).filter(|(_, told)| *told != Entered::New) {
                *stored = Stored::Told(told);
            }
            Ok(stored)
        })
        .await
    }

    /// All retained messages that are not over.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn retained(&self, now: Time) -> Result<Vec<Message>, Error> {
        self.run(move |db| async move {
            let rows: Vec<RetainedRow> = sqlx::query_as(
                "select topic, qos, payload, properties, expires_at from wakala.retained \
                 where expires_at is null or expires_at > $1",
            )
            .bind(timestamp(now))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |(topic, qos, payload, properties, expires_at): RetainedRow| {
                let properties = read_properties(properties)?;
                let expires_at = expires_at.map(super::time_of);
                let (topic, payload) = (topic.into(), payload.into());
                Ok(Message { topic, payload, qos: qos_of(qos), retain: true, expires_at, properties })
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }
}

/// Where packet identifiers of QoS 2 are remembered, nobody opens a session of their publishers until this commit: it would
/// not know of them. All rows that this commit will want are locked here, in one order, so that two commits never wait for
/// each other.
async fn lock_sessions(db: &mut PgConnection, publications: &[Publication]) -> Result<(), Error> {
    if publications.iter().all(|each| each.remember.is_none() && each.will.is_none()) {
        return Ok(());
    }
    // Sessions before wills, as whoever opens and ends sessions locks them.
    let leavers = publications.iter().filter_map(|each| each.will.as_ref()).map(|(client, _)| client);
    let publishers = publications.iter().filter_map(|each| each.remember.as_ref()).map(|each| &each.client);
    let subscribers = publications.iter().flat_map(|each| &each.to).map(|to| &to.client);
    let clients: BTreeSet<&str> = publishers.chain(subscribers).chain(leavers).map(ClientId::as_str).collect();
    sqlx::query("select from wakala.session where client_id = any($1) order by client_id for no key update")
        .bind(clients.into_iter().collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}

/// Deletes the rows of wills that are sent with this batch. For each publish whether it is to be sent: a will that another
/// node has sent meanwhile is not.
async fn settle_wills(db: &mut PgConnection, publications: &[Publication]) -> Result<Vec<bool>, Error> {
    let wills: Vec<&(ClientId, Epoch)> = publications.iter().filter_map(|each| each.will.as_ref()).collect();
    if wills.is_empty() {
        return Ok(vec![true; publications.len()]);
    }
    let gone: Vec<(String, i64)> = sqlx::query_as(
        "delete from wakala.will w using unnest($1::text[], $2::bigint[]) s (client_id, epoch) \
         where w.client_id = s.client_id and w.epoch = s.epoch returning w.client_id, w.epoch",
    )
    .bind(wills.iter().map(|(client, _)| client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(wills.iter().map(|(_, epoch)| epoch.0).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    end_guests(db, &gone).await?;
    let ours =
        |will: &(ClientId, Epoch)| gone.iter().any(|(client, epoch)| *client == *will.0.as_str() && *epoch == will.1.0);
    Ok(publications.iter().map(|each| each.will.as_ref().is_none_or(ours)).collect())
}

/// Enters what programs want published. They are few, and what else is published costs nothing here.
async fn enter(db: &mut PgConnection, publications: &[Publication]) -> Result<Vec<Entered>, Error> {
    let mut entered = vec![Entered::New; publications.len()];
    for (publication, entered) in publications.iter().zip(&mut entered) {
        let Some((asked, message)) = &publication.told else { continue };
        let entry = Entry::of(asked, message, publication.then.len(), publication.at);
        *entered = told::enter(db, &entry).await?;
    }
    Ok(entered)
}

/// Sessions that were over, but for their wills, are over.
async fn end_guests(db: &mut PgConnection, clients: &[(String, i64)]) -> Result<(), Error> {
    let over: Vec<(String,)> = sqlx::query_as(
        "select client_id from wakala.session s where client_id = any($1) and not connected and expiry_s = 0 \
         and not exists (select from wakala.terminal t where t.id = s.client_id) \
         and not exists (select from wakala.will w where w.client_id = s.client_id) order by client_id for update",
    )
    .bind(clients.iter().map(|(client, _)| client.clone()).collect::<Vec<_>>())
    .fetch_all(&mut *db)
    .await?;
    if over.is_empty() {
        return Ok(());
    }
    let over: Vec<String> = over.into_iter().map(|(client,)| client).collect();
    discard(db, &over).await?;
    sqlx::query("delete from wakala.session where client_id = any($1)").bind(over).execute(db).await?;
    Ok(())
}

/// One message for one session, as a row.
#[derive(Default)]
struct Rows {
    clients: Vec<String>,
    seqs: Vec<i64>,
    topics: Vec<String>,
    qos: Vec<i16>,
    retain: Vec<bool>,
    payloads: Vec<Vec<u8>>,
    properties: Vec<Option<Vec<u8>>>,
    identifiers: Vec<String>,
    expires: Vec<Option<OffsetDateTime>>,
    at: Vec<OffsetDateTime>,
    told: Vec<Option<Uuid>>,
}

async fn queue(
    db: &mut PgConnection,
    publications: &[Publication],
    new: &[bool],
    room: Room,
) -> Result<Vec<Stored>, Error> {
    let mut wanted: BTreeMap<&str, i64> = BTreeMap::new();
    for (publication, _) in publications.iter().zip(new).filter(|(_, new)| **new) {
        for to in &publication.to {
            *wanted.entry(to.client.as_str()).or_default() += 1;
        }
    }
    let (mut next, mut first, mut dropped) = (BTreeMap::new(), BTreeMap::new(), 0);
    if !wanted.is_empty() {
        next = draw_existing(db, &wanted).await?;
        first = oldest(db, wanted.keys().copied()).await?;
        if room.overflow == Overflow::Oldest {
            dropped = make_room(db, &wanted, &next, &mut first, room.max).await?;
        }
    }
    let mut rows = Rows::default();
    let (mut full, mut over, mut ends) = (0, 0, Vec::new());
    let stored = publications.iter().zip(new).map(|(publication, new)| {
        if !new {
            return Stored::Before;
        }
        let at = timestamp(publication.at);
        let latest = room.ttl_max.map(|ttl| timestamp(publication.at + ttl));
        let told = publication.told.as_ref().map(|(asked, _)| asked.id);
        let mut end = |client: &ClientId, fate| ends.extend(told.map(|told| (told, client.clone(), fate)));
        let places = publication.to.iter().map(|Recipient { client, epoch, addressed }| {
            let Some(drawn) = next.get_mut(client.as_str()).filter(|drawn| drawn.began <= *epoch) else {
                over += 1;
                end(client, Fate::SessionOver);
                return None;
            };
            let place = drawn.next;
            // From the oldest row on; those in between that are gone count too.
            if place - *first.entry(client.as_str().to_owned()).or_insert(place) >= i64::from(room.max) {
                full += 1;
                end(client, Fate::Full);
                return None;
            }
            rows.push(client, place, addressed, at, latest);
            rows.told.push(told);
            drawn.next += 1;
            Some(place)
        });
        Stored::At(places.collect())
    });
    let stored = stored.collect();
    told::end(db, &ends).await?;
    let addressed = rows.clients.len() + full + over;
    let counts = [(tally::ADDRESSED, addressed), (Fate::Full.word(), full + dropped), (Fate::SessionOver.word(), over)];
    if rows.clients.is_empty() {
        tally::add(db, &counts).await?;
    } else {
        rows.insert(db, &counts).await?;
    }
    Ok(stored)
}

/// Drops the oldest rows of queues that would be too long, and says how many.
///
/// What is released stays, and of QoS 2 what may have been sent: its receiver remembers the identifier until a PUBREL comes
/// (4.3.3), and would take another message under it for this one.
async fn make_room(
    db: &mut PgConnection,
    wanted: &BTreeMap<&str, i64>,
    next: &BTreeMap<String, Drawn>,
    first: &mut BTreeMap<String, i64>,
    max: u32,
) -> Result<usize, Error> {
    let full = wanted.iter().filter_map(|(client, count)| {
        // Of a batch that is longer than the queue, what comes first finds room and the rest does not.
        let last = next.get(*client)?.next + (*count).min(i64::from(max)) - 1;
        (last - first.get(*client)? >= i64::from(max)).then_some(((*client).to_owned(), last - i64::from(max)))
    });
    let (clients, up_to): (Vec<String>, Vec<i64>) = full.unzip();
    if clients.is_empty() {
        return Ok(0);
    }
    let (dropped,): (i64,) = sqlx::query_as(
        "with old as (select m.client_id, m.seq from unnest($1::text[], $2::bigint[]) f (client_id, up_to) \
           join wakala.session s using (client_id) \
           join wakala.message m on m.client_id = f.client_id and m.seq <= f.up_to \
           where not m.released and (m.qos < 2 or (s.sent_seq is not null and m.seq > s.sent_seq)) \
           order by m.client_id, m.seq for update of m), \
         gone as (delete from wakala.message m using old where m.client_id = old.client_id and m.seq = old.seq \
           returning m.client_id, m.seq, m.told), \
         e as (insert into wakala.told_end (told, client_id, seq, fate) \
           select told, client_id, seq, $3 from gone where told is not null) \
         select count(*) from gone",
    )
    .bind(&clients)
    .bind(up_to)
    .bind(Fate::Full.word())
    .fetch_one(&mut *db)
    .await?;
    for client in &clients {
        first.remove(client);
    }
    first.extend(oldest(db, clients.iter().map(String::as_str)).await?);
    Ok(usize::try_from(dropped).unwrap_or(usize::MAX))
}

/// The place of the oldest row of each queue that has one.
async fn oldest<'a>(
    db: &mut PgConnection,
    clients: impl Iterator<Item = &'a str>,
) -> Result<BTreeMap<String, i64>, Error> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select c, m.seq from unnest($1::text[]) c \
         join lateral (select seq from wakala.message where client_id = c order by seq limit 1) m on true",
    )
    .bind(clients.collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().collect())
}

impl Rows {
    fn push(
        &mut self,
        client: &ClientId,
        seq: i64,
        addressed: &Addressed,
        at: OffsetDateTime,
        latest: Option<OffsetDateTime>,
    ) {
        let message = &addressed.message;
        self.clients.push(client.as_str().to_owned());
        self.seqs.push(seq);
        self.topics.push(message.topic.to_string());
        self.qos.push(message.qos.min(addressed.qos) as i16);
        self.retain.push(addressed.retain);
        self.payloads.push(message.payload.to_vec());
        self.properties.push(message.properties.as_ref().map(|properties| properties.to_bytes()));
        // An array of arrays would have to be rectangular.
        let identifiers: Vec<String> = addressed.identifiers.iter().map(ToString::to_string).collect();
        self.identifiers.push(format!("{{{}}}", identifiers.join(",")));
        self.expires.push(message.expires_at.map(timestamp).into_iter().chain(latest).min());
        self.at.push(at);
    }

    async fn insert(self, db: &mut PgConnection, counts: &[(&str, usize)]) -> Result<(), Error> {
        let (what, copies) = tally::columns(counts);
        sqlx::query(
            "with t as (insert into wakala.tally select * from unnest($11::text[], $12::bigint[])) \
             insert into wakala.message (client_id, seq, topic, qos, retain, payload, properties, identifiers, expires_at, at, \
               told) \
             select client_id, seq, topic, qos, retain, payload, properties, identifiers::integer[], expires_at, at, told \
             from unnest($1::text[], $2::bigint[], $3::text[], $4::smallint[], $5::bool[], $6::bytea[], $7::bytea[], \
             $8::text[], $9::timestamptz[], $10::timestamptz[], $13::uuid[]) \
             m (client_id, seq, topic, qos, retain, payload, properties, identifiers, expires_at, at, told)",
        )
        .bind(self.clients)
        .bind(self.seqs)
        .bind(self.topics)
        .bind(self.qos)
        .bind(self.retain)
        .bind(self.payloads)
        .bind(self.properties)
        .bind(self.identifiers)
        .bind(self.expires)
        .bind(self.at)
        .bind(what)
        .bind(copies)
        .bind(self.told)
        .execute(db)
        .await?;
        Ok(())
    }
}

async fn retain(db: &mut PgConnection, publications: &[Publication], new: &[bool]) -> Result<(), Error> {
    // Of several for one topic the last counts; sorted, so that two nodes lock in one order.
    let last: BTreeMap<&str, (&Message, Time)> = publications
        .iter()
        .zip(new)
        .filter(|(_, new)| **new)
        .filter_map(|(each, _)| each.retain.as_ref().map(|message| (&*message.topic, (&**message, each.at))))
        .collect();
    if last.is_empty() {
        return Ok(());
    }
    let (kept, gone): (Vec<_>, Vec<_>) = last.into_iter().partition(|(_, (message, _))| !message.payload.is_empty());
    sqlx::query(
        "insert into wakala.retained (topic, qos, payload, properties, expires_at, at) \
         select * from unnest($1::text[], $2::smallint[], $3::bytea[], $4::bytea[], $5::timestamptz[], $6::timestamptz[]) \
         on conflict (topic) do update set qos = excluded.qos, payload = excluded.payload, \
         properties = excluded.properties, expires_at = excluded.expires_at, at = excluded.at",
    )
    .bind(kept.iter().map(|(topic, _)| (*topic).to_owned()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, (message, _))| message.qos as i16).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, (message, _))| message.payload.to_vec()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, (message, _))| message.properties.as_ref().map(|p| p.to_bytes())).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, (message, _))| message.expires_at.map(timestamp)).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, (_, at))| timestamp(*at)).collect::<Vec<_>>())
    .execute(&mut *db)
    .await?;
    sqlx::query("delete from wakala.retained where topic = any($1)")
        .bind(gone.iter().map(|(topic, _)| (*topic).to_owned()).collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}
