//! Other nodes of this database, as far as they are told things.

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
}

impl Neighbours {
    #[must_use]
    pub fn new(words: Words) -> Self {
        Self { words, began: Instant::now(), heard: AtomicU64::new(0), listening: AtomicBool::new(false) }
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
        self.words.hand_over(Word::Here, |_| {});
    }

    /// Tells whoever is there, sooner or later, or not at all.
    pub(crate) fn tell(&self, word: impl FnOnce() -> Word) {
        if self.are_there() {
            self.words.hand_over(word(), |_| {});
        }
    }

    /// The same, and waits until it is said.
    pub(crate) async fn have_told(&self, word: Word) {
        if self.are_there()
            && let Err(error) = self.words.submit(word).await
        {
            // They read what there is when the database is back.
            tracing::debug!(%error, "other nodes were not told");
        }
    }

    /// Whether one has been heard lately.
    pub(crate) fn are_known(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > 0 && self.are_there()
    }
}
