//! What clients publish, as far as it is to be stored: for sessions that outlive their connection, as retained messages,
//! and packet identifiers of QoS 2. Many publishes go into one commit, in the order in which they came.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use serde::{Deserialize, Serialize};
use wakala::id::{ClientId, Epoch};
use wakala::message::Message;
use wakala::session::Addressed;
use wakala::time::Time;

use super::batch::Batcher;
use super::commit::Commit;
use super::copies::queue;
use super::marks::{Remembered, Taken, remember};
use super::retained::{Retaining, retain};
use super::sessions::discard;
use super::told::{self, Asked, Entered, Entry};
use super::{Error, Store};

/// One publish, as far as it is to be stored.
#[derive(Debug)]
pub struct Publication {
    /// For whom, of those whose session outlives their connection.
    pub to: Vec<Recipient>,
    /// To whom it is handed when it is stored, of the others: a message at QoS 2 that came before is for nobody.
    pub then: Vec<Recipient>,
    /// It is its topic's retained message now, or with an empty payload removes that.
    pub retain: Option<Retaining>,
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

    /// After its commit.
    pub(crate) fn settle(&self, stored: &Stored) {
        if let (Some(retain), Stored::At(_)) = (&self.retain, stored) {
            retain.mark_stored();
        }
    }
}

impl Publication {
    /// Whether it is found to have come before when it is stored once more.
    fn is_once(&self) -> bool {
        self.remember.is_some() || self.will.is_some() || self.told.is_some()
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
    /// It is stored already; or another node sent the will.
    Before,
    /// Its publisher has a later connection by now, and sends it again on that one.
    Late,
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

/// Stores publishes; each by itself may be one that the database does not take.
pub type Publications = Batcher<Publication, Result<Stored, Error>>;

/// The wait between tries while the database is away.
pub(super) const RETRY: Duration = Duration::from_millis(200);

impl Store {
    /// A batcher that stores publishes, and then calls `stored` for each, in their order: at most `room`
    /// wait, at most `max` go into one commit, and no more than it can take in its time. While the database is away
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
            async move { Ok(store.publish_all(Arc::new(publications), room_for_each, &*stored).await) }
        })
    }

    /// Stores them in one commit, if they are not too many for that. Those of a commit that fails for what is in it, or takes
    /// too long, are tried by halves: one that cannot be stored keeps no other from it.
    async fn publish_all(
        &self,
        all: Arc<Vec<Publication>>,
        room: Room,
        stored: &(impl Fn(&Publication, &Stored) + Send + Sync),
    ) -> Vec<Result<Stored, Error>> {
        let (mut done, mut parts, mut slow) = (Vec::with_capacity(all.len()), parts(&all), 0);
        while let Some(part) = parts.pop_front() {
            let (began, commit) = (Instant::now(), Arc::default());
            let tried = self.publish(Arc::clone(&all), part.clone(), room, Arc::clone(&commit)).await;
            let took = began.elapsed();
            let error = match self.outcome(tried, &commit).await {
                Ok(taken) => {
                    for (each, one) in all.iter().skip(part.start).zip(&taken) {
                        each.settle(one);
                        stored(each, one);
                    }
                    done.extend(taken.into_iter().map(Ok));
                    slow = 0;
                    continue;
                }
                Err(error) => error,
            };
            let away = matches!(error, Error::Away(_));
            slow += usize::from(away && took >= self.inner.statement_timeout);
            // What takes too long is too much, unless all does.
            let to_blame = !away || slow > SLOW_MAX && self.answers().await;
            if !to_blame {
                tracing::warn!(why = %error, publishes = part.len(), "publishes wait for the database");
                tokio::time::sleep(RETRY).await;
                parts.push_front(part);
                continue;
            }
            slow = 0;
            if part.len() == 1 {
                tracing::error!(%error, "a publish cannot be stored");
                done.push(Err(error));
            } else {
                let middle = part.start + part.len() / 2;
                parts.push_front(middle..part.end);
                parts.push_front(part.start..middle);
            }
        }
        done
    }

    async fn answers(&self) -> bool {
        let asked = self.run(|db| async move {
            sqlx::query("select 1").execute(db.get_postgres_connection_pool()).await?;
            Ok(())
        });
        asked.await.is_ok()
    }

    async fn publish(
        &self,
        all: Arc<Vec<Publication>>,
        part: Range<usize>,
        room: Room,
        commit: Arc<Commit>,
    ) -> Result<Vec<Stored>, Error> {
        self.run(move |db| async move {
            let publications = all.get(part).unwrap_or_default();
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            lock_sessions(&mut opened, publications).await?;
            let wills = settle_wills(&mut opened, publications).await?;
            let remembered: Vec<_> = publications.iter().map(|each| each.remember.as_ref()).collect();
            let identifiers = remember(&mut opened, &remembered).await?;
            let told = enter(&mut opened, publications).await?;
            let new: Vec<bool> = (wills.into_iter().zip(&identifiers).zip(&told))
                .map(|((will, identifier), told)| will && *identifier == Taken::First && *told == Entered::New)
                .collect();
            let mut stored = queue(&mut opened, publications, &new, room).await?;
            retain(&mut opened, publications, &new).await?;
            for (stored, told) in stored.iter_mut().zip(told).filter(|(_, told)| *told != Entered::New) {
                *stored = Stored::Told(told);
            }
            for (stored, _) in stored.iter_mut().zip(identifiers).filter(|(_, of)| *of == Taken::Late) {
                *stored = Stored::Late;
            }
            if publications.iter().any(Publication::is_once) {
                commit.begin(&mut opened, &stored).await?;
            }
            opened.commit().await?;
            Ok(stored)
        })
        .await
    }
}

/// Copies in one commit and in one statement, at most, by number and by bytes: it is to be done in its time, and Postgres takes
/// 1 GB in one message.
pub(super) const ROWS_MAX: usize = 10_000;
pub(super) const BYTES_MAX: usize = 32 << 20;

/// How often publishes may take longer than a statement may, before they are tried by halves, and one by itself is given up.
const SLOW_MAX: usize = 2;

/// In their order, what goes into one commit; a publish that is too much by itself goes alone.
fn parts(all: &[Publication]) -> VecDeque<Range<usize>> {
    let (mut parts, mut start, mut rows, mut bytes) = (VecDeque::new(), 0, 0, 0);
    for (nth, publication) in all.iter().enumerate() {
        let copies = publication.to.len();
        let copied = copies * publication.to.first().map_or(0, |to| to.addressed.message.payload.len());
        if nth > start && (rows + copies > ROWS_MAX || bytes + copied > BYTES_MAX) {
            parts.push_back(start..nth);
            (start, rows, bytes) = (nth, 0, 0);
        }
        (rows, bytes) = (rows + copies, bytes + copied);
    }
    parts.push_back(start..all.len());
    parts
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

#[cfg(test)]
mod tests {
    use wakala::time::Time;

    use super::*;

    fn publication(copies: usize, bytes: usize) -> Publication {
        let message = Arc::new(Message {
            topic: "a".into(),
            payload: vec![0; bytes].into(),
            qos: ntex_mqtt::v5::codec::QoS::AtLeastOnce,
            retain: false,
            expires_at: None,
            properties: wakala::mqtt::Properties::default(),
        });
        let addressed = Addressed { qos: message.qos, message, retain: false, identifiers: Vec::new() };
        let client = ClientId::new("c").expect("short");
        let to = vec![Recipient { client, epoch: Epoch(1), addressed }; copies];
        Publication { to, ..Publication::at(Time::from_millis(0)) }
    }

    #[test]
    fn what_is_too_much_for_one_commit_goes_into_several_in_its_order() {
        let of = |each: &[(usize, usize)]| {
            let all: Vec<_> = each.iter().map(|&(copies, bytes)| publication(copies, bytes)).collect();
            parts(&all).into_iter().map(|part| part.len()).collect::<Vec<_>>()
        };
        assert_eq!(of(&[(1, 256); 1000]), [1000]);
        assert_eq!(of(&[(0, 256), (4_000, 1), (6_000, 1), (1, 1)]), [3, 1]);
        assert_eq!(of(&[(20_000, 1), (20_000, 1)]), [1, 1], "one by itself goes alone");
        assert_eq!(of(&[(1, 1), (600, 60_000), (1, 1)]), [1, 1, 1], "by bytes");
    }
}
