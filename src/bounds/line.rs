//! Who waits for something dear, each place in its turn: thousands who come from one place make nobody wait who comes from
//! another. And the urgent before the others, by turns: a name is easily given, so that whoever gives an urgent one keeps
//! nobody out either.

use std::collections::{BTreeMap, VecDeque};

use super::Place;

/// Two lines: who is urgent, and who is not. They are as long as there are who wait: the caller bounds them.
#[derive(Debug)]
pub struct Lines<T> {
    urgent: Line<T>,
    others: Line<T>,
    /// The last whose turn it was is urgent: if others wait, it is theirs now.
    owed: bool,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self { urgent: Line::default(), others: Line::default(), owed: false }
    }
}

impl<T> Lines<T> {
    /// Whoever has `gone` and was the first of that place in that line makes room.
    pub fn push(&mut self, place: Place, urgent: bool, who: T, gone: impl Fn(&T) -> bool) {
        let line = if urgent { &mut self.urgent } else { &mut self.others };
        line.push(place, who, gone);
    }

    /// Whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let owed = std::mem::take(&mut self.owed);
        let next = if owed { self.others.pop() } else { None };
        next.or_else(|| {
            let urgent = self.urgent.pop();
            self.owed = urgent.is_some();
            urgent.or_else(|| self.others.pop())
        })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.others.is_empty()
    }
}

/// A line for each place, and whose turn it is.
#[derive(Debug)]
struct Line<T> {
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
    fn push(&mut self, place: Place, who: T, gone: impl Fn(&T) -> bool) {
        let here = self.waiting.entry(place).or_default();
        if here.is_empty() {
            self.turns.push_back(place);
        }
        while here.front().is_some_and(&gone) {
            here.pop_front();
        }
        here.push_back(who);
    }

    fn pop(&mut self) -> Option<T> {
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

    fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}
