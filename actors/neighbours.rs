//! Other nodes of this database, as far as they are told things.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::store::words::{Word, Words};

/// A node says as often that it is there.
pub(crate) const HERE_EVERY: Duration = Duration::from_secs(5);

/// One that has not for so long is not told anything: it listens again, or begins, by reading what there is.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// Whether there are any, and the way to tell them.
#[derive(Debug)]
pub struct Neighbours {
    words: Words,
    began: Instant,
    /// When one was last heard, in milliseconds from `began` on; 0 for never.
    heard: AtomicU64,
    /// This node hears what they say.
    listening: AtomicBool,
    /// A word of this node was not said: they are to read all again.
    unsaid: Arc<AtomicBool>,
}

impl Neighbours {
    #[must_use]
    pub fn new(words: Words) -> Self {
        Self {
            words,
            began: Instant::now(),
            heard: AtomicU64::new(0),
            listening: AtomicBool::new(false),
            unsaid: Arc::default(),
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
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now.max(1), Ordering::Relaxed);
        new
    }

    pub(crate) fn listening(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
    }

    /// Says that this node is there, whoever hears it.
    pub(crate) fn greet(&self) {
        self.say(if self.unsaid.swap(false, Ordering::Relaxed) { Word::Anything } else { Word::Here });
    }

    fn say(&self, word: Word) {
        let unsaid = Arc::clone(&self.unsaid);
        self.words.hand_over(word, move |said| {
            if said.is_err() {
                unsaid.store(true, Ordering::Relaxed);
            }
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
            self.unsaid.store(true, Ordering::Relaxed);
            tracing::debug!(%error, "other nodes were not told");
        }
    }

    /// Whether one has been heard lately.
    pub(crate) fn are_known(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > 0 && self.are_there()
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
}
