//! Retained messages, as whoever subscribes finds them.
//!
//! What is published here is found at once, before it is stored; what another node has stored, when this one has read it.
//! Memory follows the table: a topic is in doubt when what was found of it is not stored after all, when the last that is
//! stored is not the one that is found, and when another node has stored something. Then its row is read, once nothing of it
//! is under way here: until then the row is not the last word.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ntex_bytes::{ByteString, Bytes};
use tokio::sync::{Mutex, MutexGuard, Notify};
use wakala::message::Message;
use wakala::time::Time;
use wakala::topics::Retained;

use crate::metrics::Metrics;
use crate::store::retained::{Keeper, RetainedMessage, Retaining};

/// Messages that are forgotten while nobody else can look for one.
const FORGOTTEN_PAGE: usize = 1000;

/// Rows that are read in one go.
const READ_PAGE: usize = 1000;

pub(crate) struct Memory {
    known: RwLock<Known>,
    topics_max: usize,
    bytes_max: u64,
    metrics: Arc<Metrics>,
    doubted: Notify,
    /// Held while rows are being read and adopted, also while the database has not answered: of two readings that overlap the
    /// earlier would undo the later one. Whoever reads waits for nothing else with it, and no client waits for whoever reads.
    turn: Mutex<()>,
}

#[derive(Default)]
struct Known {
    messages: Retained<RetainedMessage>,
    /// How many publishes of a topic are on their way into the table. Those of whom none is any more stay here as long as
    /// rows are being read, which may be from before.
    under_way: BTreeMap<ByteString, usize>,
    doubtful: BTreeSet<ByteString>,
    reading: bool,
}

/// Rows are being read, of these topics or of all. Until it is dropped nobody else reads any.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    memory: &'a Memory,
    of: Option<BTreeSet<ByteString>>,
    read: bool,
    _turn: MutexGuard<'a, ()>,
}

/// Without what is retained: it is its publishers'.
impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    pub(super) fn new(topics_max: usize, bytes_max: u64, metrics: Arc<Metrics>) -> Self {
        let (known, doubted, turn) = Default::default();
        Self { known, topics_max, bytes_max, metrics, doubted, turn }
    }

    /// Keeps a message in place of the one of its topic, or forgets that if this one has no payload or there is no room for
    /// it: it is out of date all the same [MQTT-3.3.1-5]. None when there is nothing to do.
    pub(super) fn keep(self: &Arc<Self>, mut new: RetainedMessage) -> Option<Retaining> {
        let mut known = self.write();
        if !self.has_room(&known.messages, &new) {
            self.metrics.unretained.one();
            known.messages.get(&new.message.topic)?;
            new.message = Arc::new(Message { payload: Bytes::new(), ..(*new.message).clone() });
        }
        known.put(&new);
        *known.under_way.entry(new.message.topic.clone()).or_default() += 1;
        drop(known);
        Some(Retaining::new(new, Some(Arc::clone(self) as Arc<dyn Keeper>)))
    }

    fn has_room(&self, messages: &Retained<RetainedMessage>, new: &RetainedMessage) -> bool {
        let old = messages.get(&new.message.topic).map(RetainedMessage::bytes);
        let (bytes, before) = (u64::from(new.bytes()), old.map_or(0, u64::from));
        // What becomes smaller has room, also where a limit was lowered since.
        let fits = bytes <= before || messages.bytes() - before + bytes <= self.bytes_max;
        new.message.payload.is_empty() || fits && (old.is_some() || messages.len() < self.topics_max)
    }

    /// How many topics have one, and what they take in memory, in bytes.
    pub(super) fn holds(&self) -> (usize, u64) {
        let known = self.read();
        (known.messages.len(), known.messages.bytes())
    }

    /// How many were ever kept: what is kept from now on is beyond it.
    pub(super) fn count(&self) -> u64 {
        self.read().messages.count()
    }

    pub(super) fn looked_at<T>(&self, look: impl FnOnce(&Retained<RetainedMessage>) -> T) -> T {
        look(&self.read().messages)
    }

    /// Forgets those that are over: their topics make room for others.
    pub(crate) fn forget_over(&self, now: Time) {
        let over: Vec<ByteString> = self.looked_at(|messages| {
            let over = messages.values().map(|retained| &retained.message).filter(|message| message.is_over(now));
            over.map(|message| message.topic.clone()).collect()
        });
        for page in over.chunks(FORGOTTEN_PAGE) {
            let mut known = self.write();
            for topic in page {
                // There may be another by now.
                if known.messages.get(topic).is_some_and(|retained| retained.message.is_over(now)) {
                    known.messages.forget(topic);
                }
            }
        }
    }

    /// Another node has stored something there.
    pub(crate) fn doubt(&self, topics: impl IntoIterator<Item = String>) {
        self.write().doubtful.extend(topics.into_iter().map(ByteString::from));
        self.doubted.notify_one();
    }

    /// Done when a topic may be in doubt.
    pub(crate) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    /// To be called before the rows of all topics are read.
    pub(crate) async fn read_all(&self) -> Reading<'_> {
        let turn = self.turn.lock().await;
        self.write().reading = true;
        Reading { memory: self, of: None, read: false, _turn: turn }
    }

    /// The same for a page of those that are in doubt; None when no row would be the last word.
    pub(crate) async fn read_doubtful(&self) -> Option<Reading<'_>> {
        let turn = self.turn.lock().await;
        let mut known = self.write();
        let Known { under_way, doubtful, .. } = &mut *known;
        let of: BTreeSet<_> =
            doubtful.iter().filter(|topic| !under_way.contains_key(*topic)).take(READ_PAGE).cloned().collect();
        if of.is_empty() {
            return None;
        }
        doubtful.retain(|topic| !of.contains(topic));
        known.reading = true;
        drop(known);
        Some(Reading { memory: self, of: Some(of), read: false, _turn: turn })
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Memory {
    fn settled(&self, message: &Arc<Message>, stored: bool) {
        let mut known = self.write();
        let Known { messages, under_way, doubtful, reading } = &mut *known;
        let Some(left) = under_way.get_mut(&message.topic) else { return };
        *left -= 1;
        let last = *left == 0;
        if last && !*reading {
            under_way.remove(&message.topic);
        }
        let found = messages.get(&message.topic);
        let same = found.map_or(message.payload.is_empty(), |found| Arc::ptr_eq(&found.message, message));
        if !stored || last && !same {
            doubtful.insert(message.topic.clone());
        }
        let doubted = last && doubtful.contains(&message.topic);
        drop(known);
        if doubted {
            self.doubted.notify_one();
        }
    }
}

impl Reading<'_> {
    /// Whose rows are to be read; all if it does not say.
    pub(crate) fn topics(&self) -> Option<Vec<String>> {
        Some(self.of.as_ref()?.iter().map(ToString::to_string).collect())
    }

    /// These are the rows.
    pub(crate) fn adopt(mut self, rows: Vec<RetainedMessage>) {
        let rows: BTreeMap<ByteString, RetainedMessage> =
            rows.into_iter().map(|row| (row.message.topic.clone(), row)).collect();
        let mut known = self.memory.write();
        let without_row: Vec<ByteString> = match &self.of {
            Some(of) => of.iter().filter(|topic| !rows.contains_key(*topic)).cloned().collect(),
            None => {
                let topics = known.messages.values().map(|retained| &retained.message.topic);
                topics.filter(|topic| !rows.contains_key(*topic)).cloned().collect()
            }
        };
        for topic in without_row {
            if known.has_last_word(&topic) {
                known.messages.forget(&topic);
            }
        }
        for (topic, row) in rows {
            let new = known.messages.get(&topic).is_none_or(|found| *found != row);
            if new && known.has_last_word(&topic) {
                // Whoever is walking through them has still to come by it: as a publish it may not come to him.
                let bytes = row.bytes();
                known.messages.adopt(&topic, row, bytes);
            }
        }
        drop(known);
        self.read = true;
    }

    /// They cannot be read, now or later.
    pub(crate) fn give_up(mut self) {
        self.read = true;
    }
}

impl Known {
    fn put(&mut self, new: &RetainedMessage) {
        let RetainedMessage { message, .. } = new;
        if message.payload.is_empty() {
            self.messages.forget(&message.topic);
        } else {
            self.messages.keep(&message.topic, new.clone(), new.bytes());
        }
    }

    /// Whether the row that was read of this topic counts; else it is to be read again.
    fn has_last_word(&mut self, topic: &ByteString) -> bool {
        let passed = self.under_way.contains_key(topic);
        if passed {
            self.doubtful.insert(topic.clone());
        }
        !passed
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut known = self.memory.write();
        known.reading = false;
        known.under_way.retain(|_, count| *count > 0);
        if !self.read {
            known.doubtful.extend(self.of.take().into_iter().flatten());
        }
        let doubted = !known.doubtful.is_empty();
        drop(known);
        // Not at once where it could not be read: whoever reads waits before it is tried again.
        if self.read && doubted {
            self.memory.doubted.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use ntex_mqtt::v5::codec::QoS;
    use wakala::mqtt::Properties;
    use wakala::time::Time;

    use super::*;
    use crate::store::publications::{Publication, Stored};

    fn at(topic: &'static str, payload: &str) -> RetainedMessage {
        let message = Message {
            topic: ByteString::from_static(topic),
            payload: payload.as_bytes().to_vec().into(),
            qos: QoS::AtLeastOnce,
            retain: true,
            expires_at: None,
            properties: Properties::default(),
        };
        RetainedMessage { message: Arc::new(message), publisher: None }
    }

    fn message(payload: &str) -> RetainedMessage {
        at("t", payload)
    }

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(10, 1000, Arc::default()))
    }

    /// As it goes on its way into the table.
    fn keep(memory: &Arc<Memory>, payload: &str) -> Publication {
        let retain = Some(memory.keep(message(payload)).expect("there is room"));
        Publication { retain, ..Publication::at(Time::from_millis(0)) }
    }

    fn stored(publication: Publication) {
        publication.settle(&Stored::At(Vec::new()));
    }

    fn found(memory: &Memory) -> Option<Vec<u8>> {
        memory.looked_at(|messages| messages.get("t").map(|found| found.message.payload.to_vec()))
    }

    async fn reads(memory: &Memory, rows: &[&str]) -> bool {
        let Some(reading) = memory.read_doubtful().await else { return false };
        reading.adopt(rows.iter().map(|row| message(row)).collect());
        true
    }

    #[tokio::test]
    async fn what_is_stored_in_its_order_is_not_read_again() {
        let memory = memory();
        let (one, two) = (keep(&memory, "one"), keep(&memory, "two"));
        assert_eq!(found(&memory), Some(b"two".to_vec()), "at once");
        stored(one);
        stored(two);
        stored(keep(&memory, ""));
        assert_eq!((found(&memory), reads(&memory, &[]).await), (None, false));
    }

    #[tokio::test]
    async fn what_is_not_stored_is_in_doubt_once_nothing_is_under_way() {
        let memory = memory();
        stored(keep(&memory, "old"));
        let (refused, later) = (keep(&memory, "refused"), keep(&memory, "later"));
        refused.settle(&Stored::Before);
        drop(refused);
        assert!(!reads(&memory, &["old"]).await, "the row is not the last word");
        drop(later);
        assert!(reads(&memory, &["old"]).await);
        assert_eq!(found(&memory), Some(b"old".to_vec()));
        drop(keep(&memory, "refused"));
        assert!(reads(&memory, &[]).await, "and where there is no row");
        assert_eq!((found(&memory), reads(&memory, &[]).await), (None, false));
    }

    #[tokio::test]
    async fn what_is_stored_in_another_order_is_in_doubt() {
        let memory = memory();
        for (one, two, row) in [("one", "two", &["one"][..]), ("", "two", &[]), ("one", "", &["one"])] {
            let (first, second) = (keep(&memory, one), keep(&memory, two));
            stored(second);
            stored(first);
            assert!(reads(&memory, row).await, "{one:?} after {two:?}");
            assert_eq!(found(&memory).as_deref(), row.first().map(|row| row.as_bytes()));
        }
    }

    #[tokio::test]
    async fn what_others_stored_is_read_when_nothing_is_under_way() {
        let memory = memory();
        let own = keep(&memory, "own");
        memory.doubt(["t".to_owned()]);
        assert!(!reads(&memory, &["theirs"]).await);
        assert_eq!(found(&memory), Some(b"own".to_vec()));
        stored(own);
        assert!(reads(&memory, &["theirs"]).await);
        assert_eq!(found(&memory), Some(b"theirs".to_vec()));
    }

    /// It comes in no other way to a session of this node that ends with its connection.
    #[tokio::test]
    async fn what_others_stored_is_found_by_whoever_has_not_come_by_it_yet() {
        let memory = memory();
        for row in ["one", "two"] {
            let until = memory.count();
            memory.doubt(["t".to_owned()]);
            assert!(reads(&memory, &[row]).await);
            let payload = |found: Option<&RetainedMessage>| found.map(|found| found.message.payload.to_vec());
            let found = memory.looked_at(|all| all.look("#", None, until).map(|(_, found)| payload(found)).next());
            assert_eq!(found, Some(Some(row.as_bytes().to_vec())));
        }
    }

    #[tokio::test]
    async fn a_row_that_was_read_before_a_commit_does_not_count_after_it() {
        let memory = memory();
        for all in [true, false] {
            memory.doubt(["t".to_owned()]);
            let reading = if all { memory.read_all().await } else { memory.read_doubtful().await.expect("in doubt") };
            stored(keep(&memory, "new"));
            reading.adopt(vec![message("old")]);
            assert_eq!(found(&memory), Some(b"new".to_vec()));
            assert!(reads(&memory, &["new"]).await, "it is read again");
            assert!(!reads(&memory, &["new"]).await);
        }
    }

    #[tokio::test]
    async fn what_is_in_doubt_is_read_when_what_was_read_before_is_adopted() {
        let memory = memory();
        let all = memory.read_all().await;
        memory.doubt(["t".to_owned()]);
        let mut doubtful = pin!(memory.read_doubtful());
        assert!(poll!(&mut doubtful).is_pending());
        all.adopt(vec![message("old")]);
        doubtful.await.expect("in doubt").adopt(vec![message("new")]);
        assert_eq!(found(&memory), Some(b"new".to_vec()));
    }

    #[tokio::test]
    async fn with_all_rows_what_has_none_is_forgotten_unless_it_is_under_way() {
        let memory = memory();
        stored(keep(&memory, "old"));
        let reading = memory.read_all().await;
        let own = keep(&memory, "own");
        reading.adopt(Vec::new());
        assert_eq!(found(&memory), Some(b"own".to_vec()));
        stored(own);
        memory.read_all().await.adopt(Vec::new());
        assert_eq!(found(&memory), None);
    }

    #[tokio::test]
    async fn what_could_not_be_read_stays_in_doubt() {
        let memory = memory();
        memory.doubt(["t".to_owned()]);
        drop(memory.read_doubtful().await);
        memory.read_doubtful().await.expect("still").give_up();
        assert!(memory.read_doubtful().await.is_none());
    }

    #[test]
    fn no_more_topics_and_bytes_are_kept_than_there_may_be() {
        let memory = Arc::new(Memory::new(1, u64::from(message("12345678").bytes()), Arc::default()));
        let keeps = |topic: &'static str, payload: &str| {
            memory.keep(at(topic, payload)).is_some_and(|_kept| memory.holds().0 == 1 || payload.is_empty())
        };
        assert!(keeps("t", "1234"));
        assert!(!keeps("u", "1"), "a second topic");
        assert_eq!(memory.holds().0, 1);
        assert!(!keeps("t", "123456789"), "too large");
        assert_eq!(memory.holds(), (0, 0), "and what was there is out of date");
        assert!(keeps("t", "12345678"));
        assert!(keeps("t", "") && keeps("u", "1"));
        assert_eq!(memory.metrics.unretained.get(), 2);
    }
}
