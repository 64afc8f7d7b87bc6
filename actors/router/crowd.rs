//! Publishes that are on their way into the database, of all clients together, and who is left unread until they are fewer.
//!
//! A client's own window bounds what it has under way; the windows of all clients together are more than a small server has
//! memory for, when the database is slow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use wakala::id::ClientId;

pub(super) struct Crowd {
    max: usize,
    under_way: AtomicUsize,
    unread: Mutex<BTreeMap<ClientId, Waker>>,
}

impl Crowd {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), under_way: AtomicUsize::new(0), unread: Mutex::default() }
    }

    pub(super) fn enter(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn leave(&self) {
        // Whoever finds it full under the lock is in the list before this takes it: the number falls before the lock is asked for.
        if self.under_way.fetch_sub(1, Ordering::AcqRel) == self.max {
            for waker in std::mem::take(&mut *self.unread()).into_values() {
                waker.wake();
            }
        }
    }

    /// Whether this client is to be left unread; `waker` is woken when there is room.
    pub(super) fn is_full(&self, client: &ClientId, waker: &Waker) -> bool {
        if self.under_way.load(Ordering::Acquire) < self.max {
            return false;
        }
        let mut unread = self.unread();
        let full = self.under_way.load(Ordering::Acquire) >= self.max;
        if full {
            unread.insert(client.clone(), waker.clone());
        }
        full
    }

    fn unread(&self) -> MutexGuard<'_, BTreeMap<ClientId, Waker>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::inbox::tests::Woken;

    #[test]
    fn whoever_found_it_full_is_woken_once_when_there_is_room() {
        let (crowd, woken) = (Crowd::new(2), Arc::<Woken>::default());
        let (waker, count) = (Waker::from(Arc::clone(&woken)), || woken.times());
        let client = |name: &str| ClientId::new(name).expect("a name");
        assert!(!crowd.is_full(&client("a"), &waker));
        for _ in 0..3 {
            crowd.enter();
        }
        for name in ["a", "b", "a"] {
            assert!(crowd.is_full(&client(name), &waker), "{name}");
        }
        crowd.leave();
        assert!(crowd.is_full(&client("a"), &waker), "as many as there may be");
        assert_eq!(count(), 0);
        crowd.leave();
        assert_eq!(count(), 2, "each client once");
        assert!(!crowd.is_full(&client("a"), &waker));
        crowd.leave();
        assert_eq!(count(), 2);
    }
}
