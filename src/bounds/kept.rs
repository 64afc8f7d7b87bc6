//! A bounded table of what is worth remembering until some time. Without room it forgets what would be forgotten first.
//!
//! In all that is kept here, who owes more is remembered for longer. So nobody is forgotten for the sake of newcomers
//! before these owe more than he does, and there is one for each place of the table.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Time;

/// What is forgotten at once.
const FORGET_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Kept<K, V> {
    max: usize,
    values: BTreeMap<K, (Time, V)>,
    /// By when they are forgotten.
    ends: BTreeSet<(Time, K)>,
}

impl<K: Ord + Clone, V> Kept<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), values: BTreeMap::new(), ends: BTreeSet::new() }
    }

    pub(super) fn get(&self, key: &K, now: Time) -> Option<&V> {
        self.values.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value)
    }

    pub(super) fn set(&mut self, key: K, until: Time, value: V, now: Time) {
        self.remove(&key);
        // Two for one: the table empties itself as it is used.
        for _ in 0..2 {
            let over = self.ends.first().is_some_and(|(end, _)| *end <= now || self.values.len() >= self.max);
            if over && let Some((_, forgotten)) = self.ends.pop_first() {
                self.values.remove(&forgotten);
            }
        }
        self.ends.insert((until, key.clone()));
        self.values.insert(key, (until, value));
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (until, value) = self.values.remove(key)?;
        self.ends.remove(&(until, key.clone()));
        Some(value)
    }

    /// Forgets what is over, some of it at a time: whoever else wants the table waits no longer than a moment.
    pub(super) fn forget(&mut self, now: Time) {
        for _ in 0..FORGET_MAX {
            if self.ends.first().is_none_or(|(end, _)| *end > now) {
                break;
            }
            if let Some((_, forgotten)) = self.ends.pop_first() {
                self.values.remove(&forgotten);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.values.len(), self.ends.len());
        self.values.len()
    }
}
