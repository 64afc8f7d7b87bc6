//! From a publisher to the subscribers of a general broker: who they are, what is retained, what is stored on the way.
//!
//! The subscriptions of all clients are in memory, of those that are away too: whoever publishes finds them without the
//! database. A message goes directly to the session of a subscriber if that ends with its connection, or if it is at
//! QoS 0; else it is a row of its queue, and the session has a hint. Terminals have no part in this: a terminal's topics
//! are its own, and its receipts are rows from the start.

mod crowd;
mod elsewhere;
pub(crate) mod owed;
pub(crate) mod retained;
mod table;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::task::Waker;
use std::time::Duration;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::QoS;
use serde::{Deserialize, Serialize};
use wakala::conservation::Fate;
use wakala::id::{ClientId, Epoch};
use wakala::message::Message as Published;
use wakala::mqtt::Properties;
use wakala::session::{Addressed, Subscription, Template, What};
use wakala::time::Time;
use wakala::topics::{Match, Retained, matches};

use self::crowd::Crowd;
use self::owed::{Behind, Owed};
use self::retained::Memory;
use self::table::{Client, Table};
use crate::metrics::Metrics;
use crate::neighbours::Neighbours;
use crate::session::inbox::Inbox;
use crate::store::marks::Remembered;
use crate::store::publications::{Overflow, Publication, Publications, Recipient, Room, Stored};
use crate::store::retained::{RetainedMessage, Retaining};
use crate::store::told::Asked;
use crate::store::words::Word;
use crate::store::{Error, Store};

/// A general broker, with no bank behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Anybody may connect, under any client identifier, and use every topic. Then nobody is a terminal.
    pub anonymous: bool,
    /// Whoever a token or the hook vouches for and is no terminal may connect as a guest (listener.jwt, listener.hook).
    pub guests: bool,
    /// Topics that nobody may publish or subscribe to, as filters; `$SYS/#` hides what the broker says of itself.
    pub closed: Vec<String>,
    /// Topics that a guest may publish on, unless its token or the hook says otherwise. %c stands for its client
    /// identifier, %u for its user name where somebody has vouched for that.
    pub publish: Vec<Template>,
    /// The same for subscribing. A wildcard in a client's filter needs one here.
    pub subscribe: Vec<Template>,
    /// Such topics of one guest, for each of the two, that a token or the hook may bring; with more it is not let in.
    pub templates_max: usize,
    /// Publishes of all clients together that may be on their way into the database; beyond that whoever has one there is left
    /// unread.
    pub waiting_max: usize,
    /// Publishes in one commit, at most.
    pub batch_max: usize,
    /// Rows that may wait for one client; beyond that messages are dropped for it, and counted.
    pub queue_max: u32,
    /// Which then: "newest", the one that comes, or "oldest", the one that has waited longest.
    pub queue_overflow: Overflow,
    /// The longest that a message waits in a queue, whatever its publisher said; without, for as long as the session lives. It
    /// stands in for the publisher's own (3.3.2.3.3), also towards the subscriber.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub message_ttl_max: Option<Duration>,
    /// Sessions of guests that outlive their connection; more are refused.
    pub kept_max: usize,
    /// Topics that have a retained message; of more topics none is retained, and that is counted.
    pub retained_max: usize,
    /// Bytes that all retained messages take in memory: their topics, payloads and properties, and the names of who published
    /// them. What would be more is not retained, and counted; what its topic had before is gone too, for it is out of date.
    pub retained_bytes_max: u64,
    /// How often wills are looked for that are due. One whose delay is 0 is sent at once, unless its node died.
    #[serde(with = "humantime_serde")]
    pub wills_every: Duration,
    /// How often the broker says on $SYS how it is. Never, if it is 0.
    #[serde(with = "humantime_serde")]
    pub sys_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            anonymous: false,
            guests: false,
            closed: Vec::new(),
            publish: templates(&["#"]),
            subscribe: templates(&["#"]),
            templates_max: 32,
            waiting_max: 16_384,
            batch_max: 1000,
            queue_max: 10_000,
            queue_overflow: Overflow::Newest,
            message_ttl_max: None,
            kept_max: 100_000,
            retained_max: 100_000,
            retained_bytes_max: 256 * 1024 * 1024,
            wills_every: Duration::from_secs(1),
            sys_every: Duration::from_secs(10),
        }
    }
}

fn templates(texts: &[&str]) -> Vec<Template> {
    texts.iter().filter_map(|text| Template::new(text).ok()).collect()
}

impl Options {
    /// Whether there may be guests.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.anonymous || self.guests
    }
}

/// The subscribers of this node. Clones are the same ones, for any thread.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    table: Arc<Shared>,
    retained: Arc<Memory>,
    /// What the broker says of itself: retained as well, but not stored, and no client's.
    announced: RwLock<Retained<RetainedMessage>>,
    closed: Vec<String>,
    publications: Publications,
    crowd: Arc<Crowd>,
    kept_max: usize,
}

/// What the hints after a commit need too.
struct Shared {
    table: RwLock<Table>,
    /// Held while the tables are being read: see [`retained::Memory`].
    turn: tokio::sync::Mutex<()>,
    /// The longest that a message waits in a queue.
    ttl_max: Option<Duration>,
    metrics: Arc<Metrics>,
    neighbours: Arc<Neighbours>,
}

/// What the router of a general broker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Topics that have a retained message.
    pub retained: usize,
    /// What those messages take in memory, in bytes.
    pub retained_bytes: u64,
    pub subscriptions: usize,
    /// Those that are connected, and those whose session is kept.
    pub clients: usize,
    /// Sessions that outlive their connection.
    pub kept: usize,
    /// Messages that were handed to sessions, and that these have not taken yet.
    pub arriving: usize,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("holdings", &self.holdings()).finish_non_exhaustive()
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a commit, in its order: whoever is there is told, and has the message already.
    fn stored(&self, publication: &Publication, stored: &Stored) {
        let Stored::At(places) = stored else { return };
        if let Some(retained) = &publication.retain {
            self.neighbours.tell(|| Word::Retained(retained.topic().to_owned()));
        }
        let table = self.read();
        for (Recipient { client, addressed, .. }, seq) in publication.to.iter().zip(places) {
            match (seq, table.inbox(client)) {
                (Some(seq), Some(inbox)) => {
                    inbox.queued(*seq, What::Message(self.as_stored(addressed, publication.at)))
                }
                (Some(_), None) => self.neighbours.tell(|| Word::Queued(client.clone())),
                (None, _) => {}
            }
        }
        for Recipient { client, epoch, addressed } in &publication.then {
            let same = table.clients.get(client).filter(|present| present.epoch == *epoch);
            self.hand(same.and_then(|present| present.inbox.as_ref()), addressed.clone());
        }
    }

    /// It is over when its row is, for who is there too.
    fn as_stored(&self, addressed: &Addressed, at: Time) -> Addressed {
        let mut addressed = addressed.clone();
        if let Some(latest) = self.ttl_max.map(|ttl| at + ttl)
            && addressed.message.expires_at.is_none_or(|own| own > latest)
        {
            Arc::make_mut(&mut addressed.message).expires_at = Some(latest);
        }
        addressed
    }

    /// Hands a message that is not stored to a session.
    fn hand(&self, to: Option<&Arc<Inbox>>, addressed: Addressed) {
        self.metrics.direct.addressed(match to {
            None => Some(Fate::Away),
            Some(inbox) if inbox.hand(addressed) => None,
            Some(_) => Some(Fate::Full),
        });
    }
}

impl Router {
    /// An empty one; [`Router::load`] fills it.
    #[must_use]
    pub fn new(options: &Options, store: &Store, neighbours: &Arc<Neighbours>) -> Self {
        let (metrics, neighbours) = (Arc::clone(store.metrics()), Arc::clone(neighbours));
        let retained = Memory::new(options.retained_max, options.retained_bytes_max, Arc::clone(&metrics));
        let table = Arc::new(Shared {
            table: RwLock::default(),
            turn: tokio::sync::Mutex::default(),
            ttl_max: options.message_ttl_max,
            metrics,
            neighbours,
        });
        let hints: Weak<Shared> = Arc::downgrade(&table);
        let publications = store.publications(
            options.waiting_max,
            options.batch_max,
            Room { max: options.queue_max, overflow: options.queue_overflow, ttl_max: options.message_ttl_max },
            move |publication, stored| {
                if let Some(shared) = hints.upgrade() {
                    shared.stored(publication, stored);
                }
            },
        );
        Self(Arc::new(Inner {
            table,
            retained: Arc::new(retained),
            announced: RwLock::default(),
            closed: options.closed.clone(),
            publications,
            crowd: Arc::new(Crowd::new(options.waiting_max)),
            kept_max: options.kept_max,
        }))
    }

    /// What is kept from earlier lives: sessions with their subscriptions, and retained messages.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn load(&self, store: &Store, now: Time) -> Result<(), Error> {
        let reading = self.0.retained.read_all().await;
        reading.adopt(store.retained(now, None).await?);
        let reading = self.read().await;
        reading.adopt(None, store.kept_guests(None).await?);
        Ok(())
    }

    /// Whether a session of this client is kept or lives here, which a connection that is not stored must end first.
    #[must_use]
    pub fn keeps(&self, client: &ClientId) -> bool {
        self.0.table.read().clients.get(client).is_some_and(|client| client.kept)
    }

    /// The epoch of a guest's connection here.
    #[must_use]
    pub fn epoch_here(&self, client: &ClientId) -> Option<Epoch> {
        let table = self.0.table.read();
        table.clients.get(client).filter(|client| client.inbox.is_some()).map(|client| client.epoch)
    }

    /// The guests that are connected here and whose sessions end with that, with their epochs.
    #[must_use]
    pub fn passing(&self) -> Vec<(ClientId, Epoch)> {
        let table = self.0.table.read();
        let passing = table.clients.iter().filter(|(_, client)| client.inbox.is_some() && !client.kept);
        passing.map(|(name, client)| (name.clone(), client.epoch)).collect()
    }

    /// Whether one more session may outlive its connection.
    #[must_use]
    pub fn has_room_for(&self, client: &ClientId) -> bool {
        let table = self.0.table.read();
        table.kept < self.0.kept_max || table.clients.get(client).is_some_and(|client| client.kept)
    }

    /// What it holds, for `wakala status`.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let (retained, retained_bytes) = self.0.retained.holds();
        let table = self.0.table.read();
        let subscriptions = table.clients.values().map(|client| client.filters.len()).sum();
        let inboxes = table.clients.values().filter_map(|client| client.inbox.as_ref());
        let arriving = inboxes.map(|inbox| inbox.messages()).sum();
        Holdings { retained, retained_bytes, subscriptions, clients: table.clients.len(), kept: table.kept, arriving }
    }

    /// A client is connected here, with these subscriptions and no others.
    pub fn connected(&self, client: &ClientId, epoch: Epoch, inbox: Arc<Inbox>, kept: bool, with: &[Subscription]) {
        let mut table = self.0.table.write();
        if table.clients.get(client).is_some_and(|present| present.inbox.is_some() && present.epoch > epoch) {
            return;
        }
        table.remove(client);
        table.add(
            client,
            Client {
                filters: Vec::new(),
                kept,
                epoch,
                ahead: elsewhere::ALL,
                inbox: Some(inbox),
                over_at: Time::NEVER,
            },
        );
        for subscription in with {
            table.subscribe(client, subscription);
        }
    }

    /// A connection has ended; its session with it, or at `over_at`. True when that is the end of one that was kept.
    pub fn gone(&self, client: &ClientId, epoch: Epoch, over_at: Option<Time>) -> bool {
        let mut table = self.0.table.write();
        let Some(present) = table.clients.get_mut(client) else { return false };
        if present.inbox.is_none() || present.epoch != epoch {
            return false;
        }
        present.inbox = None;
        let was_kept = present.kept;
        match over_at {
            Some(over_at) => present.over_at = over_at,
            None => table.remove(client),
        }
        over_at.is_none() && was_kept
    }

    /// Sessions that were kept are over.
    pub fn over(&self, clients: &[ClientId]) {
        let mut table = self.0.table.write();
        for client in clients {
            if table.clients.get(client).is_some_and(|present| present.inbox.is_none()) {
                table.remove(client);
            }
        }
    }

    /// Messages that match are for this client from now on, unless a later connection has its session. Gives what it is owed of
    /// what is retained now (3.8.3.1).
    #[must_use]
    pub(crate) fn subscribe(&self, client: &ClientId, epoch: Epoch, new: &Subscription, existed: bool) -> Option<Owed> {
        {
            let mut table = self.0.table.write();
            if !table.is_of(client, epoch) {
                return None;
            }
            table.subscribe(client, new);
        }
        let own = new.filter.split('/').next() == Some("$SYS");
        // Whoever publishes later finds the subscription.
        let (behind, until) = if own {
            (Behind::Announced(None), self.announced().count())
        } else {
            (Behind::Retained(None), self.0.retained.count())
        };
        Owed::of(client, new, existed, behind, until)
    }

    /// The opposite, of the same.
    pub fn unsubscribe(&self, client: &ClientId, epoch: Epoch, filter: &ByteString) {
        let mut table = self.0.table.write();
        if !table.is_of(client, epoch) {
            return;
        }
        table.subscriptions.unsubscribe(client, filter);
        if let Some(present) = table.clients.get_mut(client) {
            present.filters.retain(|other| other != filter);
        }
    }

    /// Sends a message on its way. Gives what is to be stored of it, if anything is: it is done when that is.
    #[must_use]
    pub fn route(
        &self,
        publisher: Option<&ClientId>,
        message: &Arc<Published>,
        remember: Option<Remembered>,
        now: Time,
    ) -> Option<Publication> {
        self.0.table.metrics.published.one();
        // Before it is sent: who subscribes in between has it twice, and else would not have it.
        let retain = self.retain(publisher, message);
        // At QoS 2 nobody has it before it is sure that it did not come before.
        let waits = remember.is_some();
        let (to, then) = self.send(publisher, message, waits, now);
        let stored = !to.is_empty() || retain.is_some() || remember.is_some();
        stored.then_some(Publication { to, then, retain, remember, ..Publication::at(now) })
    }

    /// The same of a will, of which something is to be stored in any case. Nobody has it before it is sure that no other node has
    /// sent it.
    pub(crate) fn route_will(&self, publisher: &ClientId, message: &Arc<Published>, now: Time) -> Publication {
        self.0.table.metrics.published.one();
        let retain = self.retain(Some(publisher), message);
        let (to, then) = self.send(Some(publisher), message, true, now);
        Publication { to, then, retain, ..Publication::at(now) }
    }

    /// Publishes what a program wants published. Nobody has it before it is stored that it was: asked for once more, it came
    /// before. Gives what became of it, and to how many it was handed who are connected.
    ///
    /// # Errors
    /// What the database said.
    pub async fn tell(&self, message: Published, asked: Asked, now: Time) -> Result<(Stored, usize), Error> {
        self.0.table.metrics.published.one();
        let message = Arc::new(message);
        let retain = self.retain(None, &message);
        let (to, then) = self.send(None, &message, true, now);
        let direct = then.len();
        let told = Some((asked, message));
        let publication = Publication { to, then, retain, told, ..Publication::at(now) };
        Ok((self.0.publications.submit(publication).await??, direct))
    }

    /// Whether nobody may publish on this topic.
    #[must_use]
    pub fn is_closed(&self, topic: &str) -> bool {
        self.0.closed.iter().any(|closed| matches(closed, topic))
    }

    /// Says something on a topic of the broker's own, to whoever subscribes now or later; once, as long as it is so.
    pub fn announce(&self, topic: &str, text: String) {
        if self.is_closed(topic) {
            return;
        }
        let mut announced = self.0.announced.write().unwrap_or_else(PoisonError::into_inner);
        if announced.get(topic).is_some_and(|before| *before.message.payload == *text.as_bytes()) {
            return;
        }
        let (topic, payload, qos) = (ByteString::from(topic), text.into(), QoS::AtMostOnce);
        let message =
            Published { topic, payload, qos, retain: true, expires_at: None, properties: Properties::default() };
        let message = Arc::new(message);
        let new = RetainedMessage { message: Arc::clone(&message), publisher: None };
        announced.keep(&message.topic, new, message.bytes());
        drop(announced);
        // At QoS 0 there is nothing to store, and whose session is over is not here.
        let _ = self.send(None, &message, false, Time::NEVER);
    }

    /// Done when it is stored.
    ///
    /// # Errors
    /// What the database said.
    pub async fn store(&self, publication: Publication) -> Result<Stored, Error> {
        self.0.publications.submit(publication).await?
    }

    /// The same for whoever goes on meanwhile; `then` is told, on the database's threads.
    pub fn hand_over(&self, publication: Publication, then: impl FnOnce(Result<Stored, Error>) + Send + 'static) {
        let crowd = Arc::clone(&self.0.crowd);
        crowd.enter();
        self.0.publications.hand_over(publication, move |stored| {
            crowd.leave();
            then(stored.and_then(|stored| stored));
        });
    }

    /// Whether a client that has publishes on their way into the database is to be left unread, because so many are there;
    /// `waker` is woken when there is room.
    #[must_use]
    pub fn is_full(&self, client: &ClientId, waker: &Waker) -> bool {
        self.0.crowd.is_full(client, waker)
    }

    /// A session had no room for a message.
    pub fn dropped(&self) {
        self.0.table.metrics.direct.end(Fate::Full, 1);
    }

    /// To whoever is there, unless that `waits`; gives for whom it is to be stored, and who waits.
    fn send(
        &self,
        publisher: Option<&ClientId>,
        message: &Arc<Published>,
        waits: bool,
        now: Time,
    ) -> (Vec<Recipient>, Vec<Recipient>) {
        let (shared, mut found, mut to, mut then) = (&self.0.table, Vec::new(), Vec::new(), Vec::new());
        let table = shared.read();
        table.subscriptions.route(&message.topic, publisher, |client| table.reach(client, now), &mut found);
        // What the broker says of itself, every so often, is nobody's loss.
        if found.is_empty() && !message.topic.starts_with("$SYS/") {
            shared.metrics.unmatched.one();
        }
        for Match { client, qos, retain_as_published, identifiers, .. } in found {
            let Some(present) = table.clients.get(&client) else { continue };
            let retain = retain_as_published && message.retain;
            let addressed = Addressed { message: Arc::clone(message), qos, retain, identifiers };
            let (epoch, kept) = (present.epoch, present.kept && message.qos.min(qos) != QoS::AtMostOnce);
            if kept {
                to.push(Recipient { client, epoch, addressed });
            } else if waits {
                then.push(Recipient { client, epoch, addressed });
            } else {
                shared.hand(table.inbox(&client), addressed);
            }
        }
        (to, then)
    }

    fn retain(&self, publisher: Option<&ClientId>, message: &Arc<Published>) -> Option<Retaining> {
        if !message.retain {
            return None;
        }
        self.0.retained.keep(RetainedMessage { message: Arc::clone(message), publisher: publisher.cloned() })
    }

    /// What is retained.
    pub(crate) fn retained(&self) -> &Arc<Memory> {
        &self.0.retained
    }

    fn announced(&self) -> RwLockReadGuard<'_, Retained<RetainedMessage>> {
        self.0.announced.read().unwrap_or_else(PoisonError::into_inner)
    }
}
