//! What is below a level of a tree, by name. Most levels have one below them or none, and a `BTreeMap` of one takes the
//! room of eleven: with a topic of its own for each client that would be a kilobyte a client.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Below<L> {
    one: Option<Box<(Box<str>, L)>>,
    others: BTreeMap<Box<str>, L>,
}

impl<L> Default for Below<L> {
    fn default() -> Self {
        Self { one: None, others: BTreeMap::new() }
    }
}

impl<L> Below<L> {
    pub(super) fn is_empty(&self) -> bool {
        self.one.is_none() && self.others.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Option<&L> {
        match &self.one {
            Some(one) if *one.0 == *name => Some(&one.1),
            _ => self.others.get(name),
        }
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut L> {
        match &mut self.one {
            Some(one) if *one.0 == *name => Some(&mut one.1),
            _ => self.others.get_mut(name),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.one.take_if(|one| *one.0 == *name).is_none() {
            self.others.remove(name);
        }
    }
}

impl<L: Default> Below<L> {
    pub(super) fn get_or_insert(&mut self, name: &str) -> &mut L {
        let is_another = self.one.as_ref().is_some_and(|one| *one.0 != *name);
        if is_another || self.others.contains_key(name) {
            return self.others.entry(name.into()).or_default();
        }
        &mut self.one.get_or_insert_with(|| Box::new((name.into(), L::default()))).1
    }
}
