//! Wills (3.1.2.5): kept with the session from CONNECT on, so that one whose node died is sent all the same.
//!
//! A row is of one connection. It is deleted when the client takes its leave, or when its delay is not over and the client
//! is back; it falls due at the end of the connection, after the delay or with the session, whichever is first
//! [MQTT-3.1.3-9]. Whoever sends it deletes it in the commit that carries the message. That is the node that had the connection, for
//! its subscribers hear what is not stored too; or, when that is dead, any other.

use std::time::Duration;

use ntex_mqtt::v5::codec::LastWill;
use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use wakala::id::{ClientId, Epoch};
use wakala::message::Message;
use wakala::mqtt::Properties;
use wakala::time::Time;

use super::messages::{read_properties, stored_properties};
use super::sessions::{Ended, Left, qos_of};
use super::{Error, Store, timestamp};

/// A will that is to be sent.
#[derive(Clone, Debug)]
pub struct Will {
    pub client: ClientId,
    pub epoch: Epoch,
    pub message: Message,
}

type Row = (String, i64, String, i16, bool, Vec<u8>, Option<Vec<u8>>, Option<i64>);

impl Store {
    /// At most `limit` wills that are due and this node's to send, or anybody's, oldest first. Their rows stay until they are sent.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn wills_due(&self, node: &str, now: Time, limit: u32) -> Result<Vec<Will>, Error> {
        let node = node.to_owned();
        self.run(move |db| async move {
            let rows: Vec<Row> = sqlx::query_as(
                "select client_id, epoch, topic, qos, retain, payload, properties, expiry_s from wakala.will \
                 where due_at <= $1 and (node = $2 or node is null) order by due_at limit $3",
            )
            .bind(timestamp(now))
            .bind(node)
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            rows.into_iter().map(|row| read(row, now)).collect()
        })
        .await
    }
}

fn read((client, epoch, topic, qos, retain, payload, properties, expiry_s): Row, now: Time) -> Result<Will, Error> {
    let seconds = |seconds: i64| now + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let message = Message {
        topic: topic.into(),
        payload: payload.into(),
        qos: qos_of(qos),
        retain,
        expires_at: expiry_s.map(seconds),
        properties: read_properties(properties)?,
    };
    let client = ClientId::new(&client).map_err(|error| Error::Broken(error.to_string()))?;
    Ok(Will { client, epoch: Epoch(epoch), message })
}

/// CONNECTs came of these clients, whose sessions go on or not, at these times: wills of earlier connections are sent now, or
/// not at all if the session goes on before their delay is over.
pub(super) async fn overtake<'a>(
    db: &mut PgConnection,
    clients: impl Iterator<Item = (&'a str, bool, OffsetDateTime)>,
) -> Result<(), Error> {
    let (mut names, mut present, mut at) = (Vec::new(), Vec::new(), Vec::new());
    for (client, goes_on, now) in clients {
        names.push(client);
        present.push(goes_on);
        at.push(now);
    }
    sqlx::query(
        "with c as (select * from unnest($1::text[], $2::bool[], $3::timestamptz[]) as c (client_id, present, at)), \
         gone as (delete from wakala.will w using c where w.client_id = c.client_id \
           and c.present and w.delay_s > 0 and (w.due_at is null or w.due_at > c.at)) \
         update wakala.will w set due_at = c.at from c where w.client_id = c.client_id \
           and not (c.present and w.delay_s > 0) and (w.due_at is null or w.due_at > c.at)",
    )
    .bind(names)
    .bind(present)
    .bind(at)
    .execute(db)
    .await?;
    Ok(())
}

/// Keeps the wills of these connections to these nodes.
pub(super) async fn keep(db: &mut PgConnection, wills: &[(&ClientId, Epoch, &str, &LastWill)]) -> Result<(), Error> {
    if wills.is_empty() {
        return Ok(());
    }
    let properties = wills.iter().map(|(.., will)| stored_properties(&Properties::from(*will))).collect::<Vec<_>>();
    let expiry_s = |will: &LastWill| will.message_expiry_interval.map(|seconds| i64::from(seconds.get()));
    sqlx::query(
        "insert into wakala.will (client_id, epoch, topic, qos, retain, payload, properties, expiry_s, delay_s, \
         node) select * from unnest($1::text[], $2::bigint[], $3::text[], $4::smallint[], $5::bool[], $6::bytea[], \
         $7::bytea[], $8::bigint[], $9::bigint[], $10::text[])",
    )
    .bind(wills.iter().map(|(client, ..)| client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(wills.iter().map(|(_, epoch, ..)| epoch.0).collect::<Vec<_>>())
    .bind(wills.iter().map(|(.., will)| will.topic.to_string()).collect::<Vec<_>>())
    .bind(wills.iter().map(|(.., will)| will.qos as i16).collect::<Vec<_>>())
    .bind(wills.iter().map(|(.., will)| will.retain).collect::<Vec<_>>())
    .bind(wills.iter().map(|(.., will)| will.message.to_vec()).collect::<Vec<_>>())
    .bind(properties)
    .bind(wills.iter().map(|(.., will)| expiry_s(will)).collect::<Vec<_>>())
    .bind(wills.iter().map(|(.., will)| will.will_delay_interval_sec.map_or(0, i64::from)).collect::<Vec<_>>())
    .bind(wills.iter().map(|(_, _, node, _)| (*node).to_owned()).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Connections have ended: their wills fall due, or are gone with the client's leave.
pub(super) async fn end<'a>(db: &mut PgConnection, ended: impl Iterator<Item = &'a Ended>) -> Result<(), Error> {
    let ended: Vec<&Ended> = ended.filter(|each| each.will != Left::Nothing).collect();
    if ended.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with e as (select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bool[], $5::timestamptz[]) \
           as e (client_id, epoch, expiry_s, sent, at)), \
         gone as (delete from wakala.will w using e where w.client_id = e.client_id and w.epoch = e.epoch and not e.sent) \
         update wakala.will w set due_at = e.at + make_interval(secs => least(w.delay_s, e.expiry_s)) \
         from e where w.client_id = e.client_id and w.epoch = e.epoch and w.due_at is null and e.sent",
    )
    .bind(ended.iter().map(|e| e.client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| e.epoch.0).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| i64::from(e.expiry_s)).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| e.will == Left::Will).collect::<Vec<_>>())
    .bind(ended.iter().map(|e| timestamp(e.at)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// Connections have ended with their node.
pub(super) async fn node_died(db: &mut PgConnection, node: &str, now: OffsetDateTime) -> Result<(), Error> {
    sqlx::query(
        "update wakala.will w set due_at = $2 + make_interval(secs => least(w.delay_s, s.expiry_s)) \
         from wakala.session s where s.node = $1 and s.connected and w.client_id = s.client_id and w.epoch = s.epoch \
         and w.due_at is null",
    )
    .bind(node)
    .bind(now)
    .execute(db)
    .await?;
    Ok(())
}

/// What waits of a dead node's wills is anybody's to send. Of one that somebody has locked it is said at the next look.
pub(super) async fn release(db: &mut PgConnection, dead: &str) -> Result<(), Error> {
    sqlx::query(
        "with w as (select client_id, epoch from wakala.will where node = $1 and due_at is not null for update skip locked) \
         update wakala.will r set node = null from w where r.client_id = w.client_id and r.epoch = w.epoch",
    )
    .bind(dead)
    .execute(db)
    .await?;
    Ok(())
}
