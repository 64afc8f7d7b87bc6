//! Messages that operators and programs have for a terminal (`wakala terminals tell`, `telling.http`). They share the
//! terminal's queue with its receipts, and unlike these are part of its MQTT session: they end with it.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ntex_bytes::Bytes;
use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::conservation::Fate;
use wakala::id::{ClientId, TerminalId};
use wakala::mqtt::Properties;
use wakala::session::{Addressed, Delivery, What, messages_topic};
use wakala::time::Time;

use super::sessions::qos_of;
use super::told::{self, Asked, Entered, Entry};
use super::{Error, Store, decision, tally, time_of, timestamp};

const HOUR: Duration = Duration::from_secs(3600);

/// What is done when there is too much of it. Receipts are of no class: each of them waits for its terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// One that would be too many is refused.
    #[default]
    Message,
    /// Only the last of a topic is kept: it takes the place of the one before it.
    Configuration,
    /// When there are too many the oldest is dropped, and none waits for long.
    News,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Message, Self::Configuration, Self::News];

    /// Its name, as operators and programs give it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Configuration => "configuration",
            Self::News => "news",
        }
    }
}

impl std::str::FromStr for Class {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|class| class.word() == text).ok_or("message, configuration or news")
    }
}

/// How much may wait for one terminal, and how often it is told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Messages; more are refused.
    pub messages_max: u32,
    /// The longest that they wait; without, for as long as the session lives.
    pub messages_ttl_max: Option<Duration>,
    /// News; of more the oldest are dropped.
    pub news_max: u32,
    /// The longest that news wait.
    pub news_ttl_max: Duration,
    /// Of each class (in the order of [`Class::ALL`]) within an hour; more are refused. 0 is no limit.
    pub per_hour: [u32; Class::ALL.len()],
}

/// A message to be queued.
#[derive(Clone, Debug)]
pub struct Message {
    pub terminal: TerminalId,
    pub class: Class,
    /// Whether it is kept until the terminal acknowledges it (QoS 1), or sent once to who is there (QoS 0).
    pub kept: bool,
    pub payload: Vec<u8>,
    /// From when on it is not sent any more.
    pub expires_at: Option<Time>,
    pub at: Time,
    pub asked: Asked,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queueing {
    Queued(Place),
    /// No such terminal; nothing was queued, as in the cases below.
    NotEnrolled,
    /// At QoS 0 there must be somebody to send it to.
    NotConnected,
    /// The terminal is away, and left no session that would keep it.
    NoSession,
    /// So many messages wait already.
    Full(u32),
    /// It was told so many of this class within the hour; one more after this time.
    TooOften(u32, Duration),
    /// Whoever asks has asked before, and it is told as this message.
    Again(Uuid),
    /// Under its key something else was told, as this message.
    KeyTaken(Uuid),
}

/// Where it is in the terminal's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the life of the queue; the packet identifier follows from it.
    pub seq: i64,
    /// How many receipts and messages wait, with this one.
    pub waiting: i64,
    pub connected: bool,
    /// Whether the session outlives the connection, and the message with it.
    pub persistent: bool,
    /// How many older ones of its class went for it.
    pub dropped: u64,
}

impl Store {
    /// Queues a message for a terminal, as far as these limits allow. It is as durable as a receipt when this is done.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn queue_message(&self, message: Message, limits: Limits) -> Result<Queueing, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let queueing = queue(&mut opened, &message, limits).await?;
            if matches!(queueing, Queueing::Queued(_)) {
                opened.commit().await?;
            }
            Ok(queueing)
        })
        .await
    }

    /// Deletes at most `limit` messages that have expired.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn expire_messages(&self, now: Time, limit: u32) -> Result<u64, Error> {
        self.run(move |db| async move {
            let (expired,): (i64,) = sqlx::query_as(
                // Of QoS 2 what may have been sent is none of these [MQTT-4.3.3-7]: its receiver remembers the identifier.
                "with gone as (delete from wakala.message where ctid in (select m.ctid from wakala.message m \
                 join wakala.session s using (client_id) where m.expires_at <= $1 and not m.released \
                 and (m.qos < 2 or (s.sent_seq is not null and m.seq > s.sent_seq)) \
                 order by m.expires_at limit $2 for update of m skip locked) returning client_id, seq, told), \
                 e as (insert into wakala.told_end (told, client_id, seq, fate) \
                   select told, client_id, seq, 'expired' from gone where told is not null), \
                 t as (insert into wakala.tally select 'expired', count(*) from gone having count(*) > 0) \
                 select count(*) from gone",
            )
            .bind(timestamp(now))
            .bind(i64::from(limit))
            .fetch_one(db.get_postgres_connection_pool())
            .await?;
            Ok(u64::try_from(expired).unwrap_or(0))
        })
        .await
    }
}

/// Which request it answers, the last place of the queue, and a row of it: its place, payload, QoS, topic, retain, properties,
/// expiry, number of the PUBREC and subscription identifiers. A receipt has no QoS.
pub(super) type Row = (
    i64,
    i64,
    Option<i64>,
    Option<Vec<u8>>,
    Option<i16>,
    Option<String>,
    Option<bool>,
    Option<Vec<u8>>,
    Option<OffsetDateTime>,
    Option<i64>,
    Option<Vec<i32>>,
);

pub(super) fn delivery(row: Row) -> Result<Option<Delivery>, Error> {
    let (_, _, Some(seq), Some(payload), qos, topic, retain, properties, expires_at, received, identifiers) = row
    else {
        return Ok(None);
    };
    let payload = Bytes::from(payload);
    let Some(qos) = qos else { return Ok(Some(Delivery { seq, received: None, what: What::Receipt(payload) })) };
    let (qos, retain) = (qos_of(qos), retain.unwrap_or(false));
    let message = wakala::message::Message {
        topic: topic.unwrap_or_default().into(),
        payload,
        qos,
        retain,
        expires_at: expires_at.map(time_of),
        properties: read_properties(properties)?,
    };
    let identifiers = identifiers.unwrap_or_default().into_iter();
    let identifiers = identifiers.filter_map(|id| u32::try_from(id).ok().and_then(NonZeroU32::new)).collect();
    let addressed = Addressed { message: Arc::new(message), qos, retain, identifiers };
    let received = received.map(|nth| u32::try_from(nth).unwrap_or(u32::MAX));
    Ok(Some(Delivery { seq, received, what: What::Message(addressed) }))
}

pub(super) fn read_properties(stored: Option<Vec<u8>>) -> Result<Properties, Error> {
    Properties::stored(stored.unwrap_or_default()).map_err(|error| Error::Broken(error.to_string()))
}

/// As they are stored: null where there are none.
pub(super) fn stored_properties(properties: &Properties) -> Option<Vec<u8>> {
    (!properties.is_empty()).then(|| properties.as_bytes().to_vec())
}

async fn queue(db: &mut PgConnection, message: &Message, limits: Limits) -> Result<Queueing, Error> {
    let (terminal, now) = (message.terminal.as_str(), timestamp(message.at));
    // Locked as whoever draws a place locks it, so that what is found holds until the commit.
    let session: Option<(bool, i64, Option<OffsetDateTime>)> = sqlx::query_as(
        "select s.connected, s.expiry_s, s.expires_at from wakala.terminal t \
         join wakala.session s on s.client_id = t.id where t.id = $1 for no key update of s",
    )
    .bind(terminal)
    .fetch_optional(&mut *db)
    .await?;
    let Some((connected, expiry_s, expires_at)) = session else { return Ok(Queueing::NotEnrolled) };
    let topic = messages_topic(&ClientId::from(&message.terminal));
    match told::enter(db, &entry(message, &topic)).await? {
        Entered::New => {}
        Entered::Again(id) => return Ok(Queueing::Again(id)),
        Entered::Other(id) => return Ok(Queueing::KeyTaken(id)),
    }
    let persistent = expiry_s > 0 && expires_at.is_none_or(|at| at > now);
    if !connected && !message.kept {
        return Ok(Queueing::NotConnected);
    }
    if !connected && !persistent {
        return Ok(Queueing::NoSession);
    }
    let per_hour = limits.per_hour[message.class as usize];
    if let Some(wait) = too_often(db, message, per_hour).await? {
        return Ok(Queueing::TooOften(per_hour, wait));
    }
    let Some(dropped) = make_room(db, message, &topic, limits).await? else {
        return Ok(Queueing::Full(limits.messages_max));
    };
    let drawn = decision::draw_seqs(db, &BTreeMap::from([(terminal, 1)])).await?;
    let seq = *drawn.get(terminal).ok_or_else(|| Error::Broken(format!("no sequence for {terminal}")))?;
    let ttl_max = match message.class {
        Class::Message => limits.messages_ttl_max,
        Class::Configuration => None,
        Class::News => Some(limits.news_ttl_max),
    };
    let latest = ttl_max.map(|ttl| message.at + ttl);
    sqlx::query(
        "insert into wakala.message (client_id, seq, topic, qos, payload, expires_at, at, class, told) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(terminal)
    .bind(seq)
    .bind(&*topic)
    .bind(i16::from(message.kept))
    .bind(&message.payload)
    .bind(message.expires_at.into_iter().chain(latest).min().map(timestamp))
    .bind(now)
    .bind(message.class as i16)
    .bind(message.asked.id)
    .execute(&mut *db)
    .await?;
    tally::add(db, &[(tally::ADDRESSED, 1)]).await?;
    let (receipts, messages): (i64, i64) = sqlx::query_as(
        "select (select count(*) from wakala.receipt where terminal = $1 \
           and delivered_at is null and withdrawn_at is null), \
         (select count(*) from wakala.message where client_id = $1 and (expires_at is null or expires_at > $2))",
    )
    .bind(terminal)
    .bind(now)
    .fetch_one(db)
    .await?;
    Ok(Queueing::Queued(Place { seq, waiting: receipts + messages, connected, persistent, dropped }))
}

fn entry<'a>(message: &'a Message, topic: &'a str) -> Entry<'a> {
    Entry {
        asked: &message.asked,
        terminal: Some(&message.terminal),
        topic,
        class: message.class,
        qos: i16::from(message.kept),
        retain: false,
        payload: &message.payload,
        direct: 0,
        at: message.at,
        expires_at: message.expires_at,
    }
}

/// How long a terminal is not to be told more of this class, if it was told so many within an hour, with this one.
async fn too_often(db: &mut PgConnection, message: &Message, per_hour: u32) -> Result<Option<Duration>, Error> {
    if per_hour == 0 {
        return Ok(None);
    }
    let before: Option<(OffsetDateTime,)> = sqlx::query_as(
        "select at from wakala.told where terminal = $1 and class = $2 and at > $3 order by at desc offset $4 limit 1",
    )
    .bind(message.terminal.as_str())
    .bind(message.class as i16)
    .bind(timestamp(message.at) - HOUR)
    .bind(i64::from(per_hour))
    .fetch_optional(db)
    .await?;
    Ok(before.map(|(at,)| (at + HOUR - timestamp(message.at)).try_into().unwrap_or_default()))
}

/// Drops what goes for a message, by its class, and counts it; none if there is no room for it. One that was sent and not
/// acknowledged may be among them: its PUBACK finds nothing then.
async fn make_room(
    db: &mut PgConnection,
    message: &Message,
    topic: &str,
    limits: Limits,
) -> Result<Option<u64>, Error> {
    let (most, fate) = match message.class {
        Class::Message => {
            let (waiting,): (i64,) = sqlx::query_as(
                "select count(*) from wakala.message where client_id = $1 and class = 0 \
                 and (expires_at is null or expires_at > $2)",
            )
            .bind(message.terminal.as_str())
            .bind(timestamp(message.at))
            .fetch_one(db)
            .await?;
            return Ok((waiting < i64::from(limits.messages_max)).then_some(0));
        }
        Class::Configuration => (0, Fate::Replaced),
        Class::News => (i64::from(limits.news_max) - 1, Fate::Full),
    };
    // In the order in which acknowledgements lock them.
    let (dropped,): (i64,) = sqlx::query_as(
        "with more as (select seq from wakala.message where client_id = $1 and class = $2 and topic = $3 \
           order by seq desc offset $4), \
         old as (select m.client_id, m.seq from wakala.message m join more using (seq) where m.client_id = $1 \
           order by m.seq for update of m), \
         gone as (delete from wakala.message m using old where m.client_id = old.client_id and m.seq = old.seq \
           returning m.client_id, m.seq, m.told), \
         e as (insert into wakala.told_end (told, client_id, seq, fate) \
           select told, client_id, seq, $5 from gone where told is not null) \
         select count(*) from gone",
    )
    .bind(message.terminal.as_str())
    .bind(message.class as i16)
    .bind(topic)
    .bind(most)
    .bind(fate.word())
    .fetch_one(&mut *db)
    .await?;
    tally::add(db, &[(fate.word(), usize::try_from(dropped).unwrap_or(usize::MAX))]).await?;
    Ok(Some(u64::try_from(dropped).unwrap_or(0)))
}
