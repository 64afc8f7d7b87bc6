//! Other nodes of this database, as far as they are told things.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::store::words::{Word, Words};

/// A node says as often that it is there.
pub(crate) const HERE_EVERY: Duration = Duration::from_secs(5);

/// One that has not for so long is not told anything: it listens again, or begins, by reading what there is. And whoever has heard it
/// until then does not know what it did last.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(20);

/// Words that are said in one go.
const PAGE: usize = 512;

/// Whether there are any, and the way to tell them.
#[derive(Debug)]
pub struct Neighbours {
    words: Words,
    began: Instant,
    /// When one was last heard, in milliseconds from `began` on; 0 for never.
    heard: AtomicU64,
    /// This node hears what they say.
    listening: AtomicBool,
    saying: Arc<Saying>,
}

/// What became of this node's own words.
#[derive(Debug, Default)]
struct Saying {
    /// One was not said: they are to read all again.
    failed: AtomicBool,
    /// When the first was said since this node has heard anything, in milliseconds from `began` on; 0 for none.
    unheard: AtomicU64,
}

impl Neighbours {
    #[must_use]
    pub fn new(words: Words) -> Self {
        Self {
            words,
            began: Instant::now(),
            heard: AtomicU64::new(0),
            listening: AtomicBool::new(false),
            saying: Arc::default(),
        }
    }

    /// Whether somebody may be there who is to be told.
    fn are_there(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let silent = self.began.elapsed().saturating_sub(Duration::from_millis(heard));
        !self.listening.load(Ordering::Relaxed) || heard > 0 && silent < SILENT_MAX
    }

    /// One was heard. True if none was there before.
    pub(crate) fn heard(&self) -> bool {
        let new = !self.are_there();
        self.heard.store(since(self.began), Ordering::Relaxed);
        new
    }

    /// Something was heard, if only what this node says itself; or it listens anew, or listens again after it did something else.
    pub(crate) fn hears(&self) {
        self.saying.unheard.store(0, Ordering::Relaxed);
    }

    /// Whether it has not even heard itself for so long: the connection is open at this end only. Whoever listens writes nothing, so
    /// nobody else would say so.
    pub(crate) fn is_deaf(&self, patience: Duration) -> bool {
        let unheard = self.saying.unheard.load(Ordering::Relaxed);
        unheard > 0 && self.began.elapsed().saturating_sub(Duration::from_millis(unheard)) >= patience
    }

    pub(crate) fn listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    /// Says that this node is there, whoever hears it.
    pub(crate) fn greet(&self) {
        self.say(if self.saying.failed.swap(false, Ordering::Relaxed) { Word::Anything } else { Word::Here });
    }

    fn say(&self, word: Word) {
        let (saying, began) = (Arc::clone(&self.saying), self.began);
        self.words.hand_over(word, move |said| match said {
            // One that is heard before this is followed by another long before it counts.
            Ok(()) => drop(saying.unheard.compare_exchange(0, since(began), Ordering::Relaxed, Ordering::Relaxed)),
            Err(_) => saying.failed.store(true, Ordering::Relaxed),
        });
    }

    /// Tells whoever is there, sooner or later; where that fails they are told to read all again.
    pub(crate) fn tell(&self, word: impl FnOnce() -> Word) {
        if self.are_there() {
            self.say(word());
        }
    }

    /// The same, and waits until it is said.
    pub(crate) async fn have_told(&self, word: Word) {
        if self.are_there()
            && let Err(error) = self.words.submit(word).await
        {
            self.saying.failed.store(true, Ordering::Relaxed);
            tracing::debug!(%error, "other nodes were not told");
        }
    }

    /// Tells what is of no use later: while nobody can be heard, the database being away, it is not said.
    pub(crate) fn tell_now(&self, word: impl FnOnce() -> Word) {
        if self.listening.load(Ordering::Relaxed) {
            self.tell(word);
        }
    }

    /// The same of many, of which few wait at a time.
    pub(crate) async fn tell_all_now(&self, words: impl Iterator<Item = Word>) {
        let mut words = words.peekable();
        while words.peek().is_some() && self.listening.load(Ordering::Relaxed) {
            words.by_ref().take(PAGE).for_each(|word| self.say(word));
            // It is behind them.
            self.have_told(Word::Here).await;
        }
    }

    /// Whether one has been heard lately.
    pub(crate) fn are_known(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > 0 && self.are_there()
    }
}

/// In milliseconds, and never 0.
fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

/// When each of them was last heard.
#[derive(Debug, Default)]
pub(crate) struct Voices(BTreeMap<String, Instant>);

impl Voices {
    pub(crate) fn heard(&mut self, nodes: BTreeSet<String>, now: Instant) {
        self.0.extend(nodes.into_iter().map(|node| (node, now)));
    }

    /// Nobody listened until now: of none is it known whether it was silent.
    pub(crate) fn unheeded(&mut self, now: Instant) {
        self.0.values_mut().for_each(|heard| *heard = now);
    }

    /// Whether one is heard no more. It may have died with something committed of which it told nobody.
    pub(crate) fn fell_silent(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, heard| now.duration_since(*heard) < SILENT_MAX);
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::Error;
    use crate::store::batch::Batcher;

    fn lost() -> Word {
        Word::Retained("t".to_owned())
    }

    /// Clients of whom nothing is stored come while the database is away, any number of them.
    #[tokio::test]
    async fn what_is_of_use_now_only_is_said_where_somebody_is_heard() {
        let (told, mut hears) = mpsc::unbounded_channel();
        let words = Batcher::new(&Handle::current(), 8, 1, move |words: Vec<Word>| {
            let count = words.len();
            words.into_iter().for_each(|word| told.send(word).expect("it hears"));
            async move { Ok(vec![(); count]) }
        });
        let neighbours = Neighbours::new(words);
        neighbours.heard();
        neighbours.tell_now(lost);
        neighbours.listening(true);
        neighbours.tell_now(|| Word::Here);
        assert_eq!(hears.recv().await, Some(Word::Here));
    }

    #[tokio::test]
    async fn where_a_word_was_not_said_all_is_to_be_read_again() {
        let (told, mut hears) = mpsc::unbounded_channel();
        let words = Batcher::new(&Handle::current(), 8, 1, move |words: Vec<Word>| {
            let (fails, count) = (words.contains(&lost()), words.len());
            words.into_iter().for_each(|word| told.send(word).expect("it hears"));
            async move { if fails { Err(Error::Away("on purpose".to_owned())) } else { Ok(vec![(); count]) } }
        });
        let neighbours = Neighbours::new(words);
        neighbours.tell(lost);
        neighbours.have_told(Word::Here).await;
        neighbours.greet();
        neighbours.have_told(lost()).await;
        neighbours.greet();
        neighbours.greet();
        let mut said = Vec::new();
        for _ in 0..6 {
            said.push(hears.recv().await.expect("said"));
        }
        assert_eq!(said, [lost(), Word::Here, Word::Anything, lost(), Word::Anything, Word::Here]);
    }

    #[tokio::test]
    async fn who_does_not_hear_what_it_says_itself_is_deaf() {
        let fails = Arc::new(AtomicBool::new(true));
        let failing = Arc::clone(&fails);
        let words = Batcher::new(&Handle::current(), 8, 1, move |words: Vec<Word>| {
            let fails = failing.load(Ordering::Relaxed);
            async move { if fails { Err(Error::Away("on purpose".to_owned())) } else { Ok(vec![(); words.len()]) } }
        });
        let neighbours = Neighbours::new(words);
        let greet = async || {
            neighbours.greet();
            // Behind it.
            let _ = neighbours.words.submit(Word::Here).await;
        };
        greet().await;
        assert!(!neighbours.is_deaf(Duration::ZERO), "nothing was said");
        fails.store(false, Ordering::Relaxed);
        greet().await;
        assert!(neighbours.is_deaf(Duration::ZERO) && !neighbours.is_deaf(Duration::from_secs(60)));
        tokio::time::sleep(Duration::from_millis(60)).await;
        greet().await;
        assert!(neighbours.is_deaf(Duration::from_millis(50)), "the first counts");
        neighbours.hears();
        assert!(!neighbours.is_deaf(Duration::ZERO));
    }

    #[test]
    fn one_that_is_heard_no_more_is_missed_once() {
        let (mut voices, began) = (Voices::default(), Instant::now());
        let at = |second| began + Duration::from_secs(second);
        let nodes = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        voices.heard(nodes(&["a", "b"]), at(0));
        voices.heard(nodes(&["a"]), at(15));
        let silent: Vec<bool> = [19, 20, 21, 34, 35, 36].map(|second| voices.fell_silent(at(second))).into();
        assert_eq!(silent, [false, true, false, false, true, false]);
        voices.heard(nodes(&["a"]), at(40));
        voices.unheeded(at(70));
        assert_eq!([71, 90].map(|second| voices.fell_silent(at(second))), [false, true]);
    }
}
