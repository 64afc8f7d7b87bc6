//! Retained messages, as they are stored: the last of each topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use wakala::id::ClientId;
use wakala::message::Message;
use wakala::time::Time;

use super::messages::{read_properties, stored_properties};
use super::publications::Publication;
use super::sessions::qos_of;
use super::{Error, Store, timestamp};

/// What a topic retains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    pub message: Arc<Message>,
    /// Who published it, if a client did: to a subscription of its own that wants no local messages it is not sent
    /// [MQTT-3.8.3-3].
    pub publisher: Option<ClientId>,
}

impl RetainedMessage {
    /// What it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        let publisher = self.publisher.as_ref().map_or(0, |publisher| publisher.as_str().len());
        self.message.bytes().saturating_add(u32::try_from(publisher).unwrap_or(u32::MAX))
    }
}

/// A message that is to be its topic's retained one. Who keeps it in memory already is told what became of that when this is
/// dropped, however it comes to that.
#[derive(Debug)]
pub struct Retaining {
    new: RetainedMessage,
    stored: AtomicBool,
    keeper: Option<Arc<dyn Keeper>>,
}

/// Who keeps messages before they are stored.
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// One of them is stored, as the last of its topic then; or it is not, as far as is known.
    fn settled(&self, message: &Arc<Message>, stored: bool);
}

impl Retaining {
    #[must_use]
    pub fn new(new: RetainedMessage, keeper: Option<Arc<dyn Keeper>>) -> Self {
        Self { new, stored: AtomicBool::new(false), keeper }
    }

    #[must_use]
    pub fn topic(&self) -> &str {
        &self.new.message.topic
    }

    /// After its commit.
    pub(super) fn mark_stored(&self) {
        self.stored.store(true, Ordering::Relaxed);
    }
}

impl Drop for Retaining {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.settled(&self.new.message, *self.stored.get_mut());
        }
    }
}

type Row = (String, i16, Vec<u8>, Option<Vec<u8>>, Option<OffsetDateTime>, Option<String>);

impl Store {
    /// Deletes at most `limit` retained messages that are over, and says how many.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn forget_retained(&self, now: Time, limit: u32) -> Result<u64, Error> {
        self.run(move |db| async move {
            let done = sqlx::query(
                "delete from wakala.retained where topic in (select topic from wakala.retained where expires_at <= $1 \
                 order by expires_at limit $2 for update skip locked)",
            )
            .bind(timestamp(now))
            .bind(i64::from(limit))
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(done.rows_affected())
        })
        .await
    }

    /// All retained messages that are not over, or those of these topics.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn retained(&self, now: Time, of: Option<Vec<String>>) -> Result<Vec<RetainedMessage>, Error> {
        self.run(move |db| async move {
            let rows: Vec<Row> = sqlx::query_as(
                "select topic, qos, payload, properties, expires_at, publisher from wakala.retained \
                 where (expires_at is null or expires_at > $1) and ($2::text[] is null or topic = any($2))",
            )
            .bind(timestamp(now))
            .bind(of)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            rows.into_iter().map(read).collect()
        })
        .await
    }
}

fn read((topic, qos, payload, properties, expires_at, publisher): Row) -> Result<RetainedMessage, Error> {
    let (qos, properties, expires_at) = (qos_of(qos), read_properties(properties)?, expires_at.map(super::time_of));
    let message = Message { topic: topic.into(), payload: payload.into(), qos, retain: true, expires_at, properties };
    // A name that no client can have is nobody's.
    let publisher = publisher.and_then(|publisher| ClientId::new(&publisher).ok());
    Ok(RetainedMessage { message: Arc::new(message), publisher })
}

/// Stores the last of each topic, of those that are `new`.
pub(super) async fn retain(db: &mut PgConnection, publications: &[Publication], new: &[bool]) -> Result<(), Error> {
    // Of several for one topic the last counts; sorted, so that two nodes lock in one order.
    let last: BTreeMap<&str, (&RetainedMessage, Time)> = publications
        .iter()
        .zip(new)
        .filter(|(_, new)| **new)
        .filter_map(|(each, _)| each.retain.as_ref().map(|retaining| (retaining.topic(), (&retaining.new, each.at))))
        .collect();
    if last.is_empty() {
        return Ok(());
    }
    let (kept, gone): (Vec<_>, Vec<_>) =
        last.into_values().partition(|(retained, _)| !retained.message.payload.is_empty());
    let messages = || kept.iter().map(|(retained, _)| &retained.message);
    let publishers =
        kept.iter().map(|(retained, _)| retained.publisher.as_ref().map(|client| client.as_str().to_owned()));
    sqlx::query(
        "insert into wakala.retained (topic, qos, payload, properties, expires_at, at, publisher) \
         select * from unnest($1::text[], $2::smallint[], $3::bytea[], $4::bytea[], $5::timestamptz[], $6::timestamptz[], \
           $7::text[]) \
         on conflict (topic) do update set qos = excluded.qos, payload = excluded.payload, \
         properties = excluded.properties, expires_at = excluded.expires_at, at = excluded.at, \
         publisher = excluded.publisher",
    )
    .bind(messages().map(|message| message.topic.to_string()).collect::<Vec<_>>())
    .bind(messages().map(|message| message.qos as i16).collect::<Vec<_>>())
    .bind(messages().map(|message| message.payload.to_vec()).collect::<Vec<_>>())
    .bind(messages().map(|message| stored_properties(&message.properties)).collect::<Vec<_>>())
    .bind(messages().map(|message| message.expires_at.map(timestamp)).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, at)| timestamp(*at)).collect::<Vec<_>>())
    .bind(publishers.collect::<Vec<_>>())
    .execute(&mut *db)
    .await?;
    sqlx::query("delete from wakala.retained where topic = any($1)")
        .bind(gone.iter().map(|(retained, _)| retained.message.topic.to_string()).collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}
