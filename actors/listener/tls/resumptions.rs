//! TLS sessions that may be resumed, in this process' memory.
//!
//! The terminal keeps a key of 32 bytes and the server the rest. A ticket that held the rest would hold the terminal's
//! certificate too, and make a resumed handshake cost more bytes than a full one. What is not found here costs one full
//! handshake.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rustls::server::StoresServerSessions;

use crate::metrics::wire;

type Entries = HashMap<Vec<u8>, Vec<u8>>;

/// A bounded store. (rustls' own one searches all its entries when one is taken.)
pub(super) struct Resumptions {
    halves: Mutex<Halves>,
    half_max: usize,
}

/// The younger half takes what comes; when it is full it becomes the older, and what was the older is forgotten.
#[derive(Default)]
struct Halves {
    younger: Entries,
    older: Entries,
}

impl Resumptions {
    pub(super) fn new(max: usize) -> Self {
        Self { halves: Mutex::default(), half_max: max.div_ceil(2) }
    }

    fn halves(&self) -> std::sync::MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        let halves = self.halves();
        halves.younger.len() + halves.older.len()
    }
}

/// Without the keys that are in it.
impl std::fmt::Debug for Resumptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resumptions").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl StoresServerSessions for Resumptions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        if self.half_max == 0 {
            return false;
        }
        let mut halves = self.halves();
        if halves.younger.len() >= self.half_max {
            halves.older = std::mem::take(&mut halves.younger);
        }
        halves.younger.insert(key, value);
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let halves = self.halves();
        let found = halves.younger.get(key).or_else(|| halves.older.get(key)).cloned();
        wire::RESUMED.add(u64::from(found.is_some()));
        found
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut halves = self.halves();
        let found = halves.younger.remove(key).or_else(|| halves.older.remove(key));
        wire::RESUMED.add(u64::from(found.is_some()));
        found
    }

    fn can_cache(&self) -> bool {
        self.half_max > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_no_more_than_it_may_and_the_newest_longest() {
        let resumptions = Resumptions::new(10);
        let key = |n: u8| vec![n];
        for n in 0..100 {
            assert!(resumptions.put(key(n), key(n)));
            assert!(resumptions.len() <= 10, "after {n}: {}", resumptions.len());
            for newest in n.saturating_sub(4)..=n {
                assert_eq!(resumptions.get(&key(newest)), Some(key(newest)), "after {n}");
            }
        }
        assert_eq!(resumptions.get(&key(80)), None, "forgotten");
        assert_eq!((resumptions.take(&key(99)), resumptions.take(&key(99))), (Some(key(99)), None), "once");
        assert!(!Resumptions::new(0).can_cache(), "none where none may be kept");
    }
}
