//! Copies of messages for sessions that outlive their connection, as rows of their queues.

use std::collections::BTreeMap;

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::conservation::Fate;
use wakala::id::ClientId;
use wakala::session::Addressed;

use super::decision::{Drawn, draw_existing};
use super::messages::stored_properties;
use super::publications::{BYTES_MAX, Overflow, Publication, ROWS_MAX, Recipient, Room, Stored};
use super::{Error, tally, timestamp, told};

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
    bytes: usize,
}

/// Queues them, in their order, of those that are `new`.
pub(super) async fn queue(
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
    let mut rows = vec![Rows::default()];
    let (mut added, mut full, mut over, mut ends) = (0, 0, 0, Vec::new());
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
            if rows.last().is_none_or(Rows::is_full) {
                rows.push(Rows::default());
            }
            if let Some(rows) = rows.last_mut() {
                rows.push(client, place, addressed, at, latest);
                rows.told.push(told);
            }
            added += 1;
            drawn.next += 1;
            Some(place)
        });
        Stored::At(places.collect())
    });
    let stored = stored.collect();
    told::end(db, &ends).await?;
    let addressed = added + full + over;
    let counts = [(tally::ADDRESSED, addressed), (Fate::Full.word(), full + dropped), (Fate::SessionOver.word(), over)];
    if added == 0 {
        tally::add(db, &counts).await?;
    } else {
        let mut counts: &[_] = &counts;
        for rows in rows {
            rows.insert(db, std::mem::take(&mut counts)).await?;
        }
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
    fn is_full(&self) -> bool {
        self.clients.len() >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

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
        self.bytes += message.payload.len();
        self.payloads.push(message.payload.to_vec());
        self.properties.push(stored_properties(&message.properties));
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
