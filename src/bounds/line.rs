//! Who waits for something dear, each place in its turn: thousands who come from one place make nobody wait who comes from
//! another.

use std::collections::{BTreeMap, VecDeque};

use super::Place;

/// A line for each place, and whose turn it is. It is as long as there are who wait: the caller bounds it.
#[derive(Debug)]
pub struct Line<T> {
    waiting: BTreeMap<Place, VecDeque<T>>,
    /// Each place that somebody waits from, once.
    turns: VecDeque<Place>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Line<T> {
    /// Whoever has `gone` and was the first of that place makes room.
    pub fn push(&mut self, place: Place, who: T, gone: impl Fn(&T) -> bool) {
        let here = self.waiting.entry(place).or_default();
        if here.is_empty() {
            self.turns.push_back(place);
        }
        while here.front().is_some_and(&gone) {
            here.pop_front();
        }
        here.push_back(who);
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let place = self.turns.pop_front()?;
        let here = self.waiting.get_mut(&place)?;
        let next = here.pop_front();
        if here.is_empty() {
            self.waiting.remove(&place);
        } else {
            self.turns.push_back(place);
        }
        next
    }
}
