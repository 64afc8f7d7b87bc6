//! What other nodes tell: what guests subscribe to there, what is retained, for whom something is queued.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use wakala::id::{ClientId, Epoch};
use wakala::presence::concerns;

use super::{Inner, Sessions};
use crate::neighbours::{HERE_EVERY, SILENT_MAX, Voices};
use crate::session::End;
use crate::store::Error;
use crate::store::again::Backoff;
use crate::store::sessions::Kept;
use crate::store::words::{Came, Ear, Heard, Word};

/// How often it is looked whether there are sessions still, and who there is to be greeted.
const PATIENCE: Duration = Duration::from_secs(1);

/// As long as there are others, what they subscribe to is read again so often: a word may have been lost.
const READ_EVERY: Duration = Duration::from_secs(60);

/// Guests of whom the tables may have something else than this node.
pub(super) type Doubtful = Mutex<BTreeSet<ClientId>>;

impl Inner {
    /// A later connection owns the session of one that was here. If that is at another node, word of what was queued meanwhile
    /// came to the one that has ended, and what it subscribes to is known there.
    pub(super) fn overtaken(&self, client: ClientId) {
        self.neighbours.tell(|| Word::Queued(client.clone()));
        if self.neighbours.are_known() {
            self.doubtful().insert(client);
        }
    }

    fn doubtful(&self) -> MutexGuard<'_, BTreeSet<ClientId>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// Tells other nodes that what a guest subscribes to is another.
    pub(crate) async fn tell_changed(&self, client: &ClientId) {
        if self.open().is_open() {
            self.0.neighbours.have_told(Word::Changed(client.clone())).await;
        }
    }

    /// The same of a session that is kept, or kept no longer; nobody waits for it.
    pub(crate) fn kept_otherwise(&self, client: &ClientId) {
        self.0.neighbours.tell(|| Word::Changed(client.clone()));
    }

    /// Tells other nodes of a guest who is connected and of whom nothing is stored: they find it nowhere [MQTT-3.1.4-3].
    pub(crate) fn tell_came(&self, client: ClientId, epoch: Epoch) {
        self.0.neighbours.tell_now(|| Word::Came(Came { client, epoch, node: self.node().to_owned() }));
    }

    /// The same of all who came when nobody was heard.
    fn tell_who_came(&self) {
        let (neighbours, node, all) = (Arc::clone(&self.0.neighbours), self.node().to_owned(), self.router().passing());
        tokio::spawn(async move {
            let came = |(client, epoch)| Word::Came(Came { client, epoch, node: node.clone() });
            neighbours.tell_all_now(all.into_iter().map(came)).await;
        });
    }

    /// Of two connections of one guest the later one stays; of two that cannot be told apart, that of the one node.
    fn meet(&self, other: &Came) {
        let Some(here) = self.router().epoch_here(&other.client) else { return };
        if (here, self.node()) < (other.epoch, &*other.node) {
            let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
            let earlier = connected.get(&other.client).filter(|present| present.epoch == here);
            if let Some(addr) = earlier.map(|earlier| earlier.addr.clone()) {
                // It waits for room in a mailbox that is full: nobody says it again.
                let end = End(Reason::SessionTakenOver, "the session was taken over at another node");
                tokio::spawn(async move { addr.send(end).await });
            }
        } else {
            self.tell_came(other.client.clone(), here);
        }
    }

    /// Listens before anything is read, so that nothing is missed, and then for ever.
    pub(super) async fn hear_neighbours(&self) {
        let store = self.store().clone();
        let (inner, node) = (Arc::downgrade(&self.0), self.node().to_owned());
        let (began, begins) = tokio::sync::oneshot::channel();
        let mut began = Some(began);
        self.store().handle().spawn(async move {
            let (mut backoff, mut voices) = (Backoff::new(), Voices::default());
            loop {
                let listening = store.listen(&node).await;
                // Whoever waits for it need not wait for the database: without, all that is there is told of.
                let first = began.take().is_some_and(|began| began.send(()).is_ok());
                if inner.strong_count() == 0 {
                    break;
                }
                let heard = match listening {
                    Ok(mut ear) => {
                        backoff = Backoff::new();
                        listen(&inner, &mut ear, &mut voices, first).await
                    }
                    Err(error) => Err(error),
                };
                let Some(sessions) = inner.upgrade() else { break };
                sessions.neighbours.listening(false);
                drop(sessions);
                match heard {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(%error, "other nodes are not heard for now"),
                }
                backoff.wait().await;
            }
        });
        let _ = begins.await;
    }

    /// True when all is to be read again.
    fn hear(&self, words: Vec<Word>) -> bool {
        if words.is_empty() {
            return false;
        }
        if self.0.neighbours.heard() {
            self.0.neighbours.tell(|| Word::Anything);
            self.tell_who_came();
        }
        let again = words.contains(&Word::Anything);
        let (mut clients, mut topics, mut came) = (Vec::new(), Vec::new(), Vec::new());
        for word in words {
            match word {
                Word::Here | Word::Anything => {}
                Word::Changed(client) => clients.push(client),
                Word::Retained(topic) => topics.push(topic),
                Word::Queued(client) => drop(self.wake(client.as_str())),
                Word::Came(other) => came.push(other),
                Word::Stands(stands) => {
                    self.router().went_on(&stands.client, stands.standing.epoch);
                    self.0.presence.heard(stands);
                }
            }
        }
        if !self.open().is_open() {
            return false;
        }
        came.iter().for_each(|other| self.meet(other));
        self.0.doubtful().extend(clients);
        self.router().retained().doubt(topics);
        again
    }

    /// Reads what the tables have of guests, and what is retained at topics, of which memory may have it wrong.
    async fn end_doubts(&self) -> Result<(), Error> {
        let clients = mem::take(&mut *self.0.doubtful());
        if !clients.is_empty() {
            let until = self.0.presence.changes();
            let reading = self.router().read().await;
            let stored = self.store().kept_guests(Some(clients.iter().cloned().collect())).await?;
            self.0.presence.watch(stored.iter().any(watches));
            let known: BTreeSet<_> = stored.iter().map(|kept| &kept.client).collect();
            self.0.presence.over(clients.iter().filter(|client| !known.contains(client)), until);
            reading.adopt(Some(&clients), stored);
        }
        while let Some(reading) = self.router().retained().read_doubtful().await {
            match self.store().retained(self.clock().now(), reading.topics()).await {
                Ok(rows) => reading.adopt(rows),
                Err(error @ Error::Broken(_)) => {
                    // Asked again it would say the same, for ever.
                    tracing::error!(%error, "what is retained cannot be read");
                    reading.give_up();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what others subscribe to; and, where they may have told of more than was heard, that too.
    async fn catch_up(&self, behind: bool) -> Result<(), Error> {
        if self.open().is_open() {
            let (router, store) = (self.router(), self.store());
            let reading = router.read().await;
            let stored = store.kept_guests(None).await?;
            self.0.presence.watch(stored.iter().any(watches));
            reading.adopt(None, stored);
            let until = self.0.presence.changes();
            self.0.presence.adopt(self.standings().await?, until);
            if behind {
                let reading = router.retained().read_all().await;
                reading.adopt(store.retained(self.clock().now(), None).await?);
                self.wake_all();
            }
        }
        Ok(())
    }
}

fn watches(kept: &Kept) -> bool {
    kept.subscription.as_ref().is_some_and(|subscription| concerns(&subscription.filter))
}

/// Until the sessions are gone, or the connection is.
async fn listen(inner: &Weak<Inner>, ear: &mut Ear, voices: &mut Voices, first: bool) -> Result<(), Error> {
    // What is there is read once more when others have heard that this node is there.
    let (mut greeted, mut read) = (None::<Instant>, None::<Instant>);
    let mut behind = !first;
    let shared = inner.upgrade().map(|inner| (Arc::clone(inner.router.retained()), Arc::clone(&inner.neighbours)));
    let Some((memory, neighbours)) = shared else { return Ok(()) };
    neighbours.hears();
    loop {
        let heard = tokio::select! {
            heard = ear.hear(PATIENCE) => heard,
            () = memory.doubted() => Ok(Heard::Nothing),
        };
        let Some(sessions) = inner.upgrade().map(Sessions) else { return Ok(()) };
        let begun = Instant::now();
        neighbours.listening(true);
        if greeted.is_none_or(|at| at.elapsed() >= HERE_EVERY) {
            greeted = Some(Instant::now());
            neighbours.greet();
        }
        match heard? {
            Heard::Words(nodes, words) => {
                neighbours.hears();
                voices.heard(nodes, Instant::now());
                behind |= sessions.hear(words);
            }
            Heard::Anything => {
                neighbours.hears();
                behind = true;
            }
            Heard::Nothing if neighbours.is_deaf(SILENT_MAX) => {
                return Err(Error::Away("this node does not hear what it says itself".to_owned()));
            }
            Heard::Nothing => {}
        }
        behind |= voices.fell_silent(Instant::now());
        // Who is alone and has missed nothing knows what there is.
        if behind || neighbours.are_known() && read.is_none_or(|at| at.elapsed() >= READ_EVERY) {
            sessions.catch_up(behind).await?;
            (behind, read) = (false, Some(Instant::now()));
        }
        sessions.end_doubts().await?;
        if begun.elapsed() >= HERE_EVERY {
            // What was said meanwhile waits to be heard.
            neighbours.hears();
            voices.unheeded(Instant::now());
        }
    }
}
