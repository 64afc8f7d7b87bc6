//! What is below a level of a tree, by name. Most levels have one below them or none, and a `BTreeMap` of one takes the
//! room of eleven: with a topic of its own for each client that would be a kilobyte a client.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Below<L> {
    one: Option<Box<(Box<str>, L)>>,
    #[expect(clippy::box_collection, reason = "an empty map is three words, and most levels would have one")]
    others: Option<Box<BTreeMap<Box<str>, L>>>,
}

impl<L> Default for Below<L> {
    fn default() -> Self {
        Self { one: None, others: None }
    }
}

impl<L> Below<L> {
    pub(super) fn is_empty(&self) -> bool {
        self.one.is_none() && self.others.is_none()
    }

    pub(super) fn get(&self, name: &str) -> Option<&L> {
        match &self.one {
            Some(one) if *one.0 == *name => Some(&one.1),
            _ => self.others.as_ref()?.get(name),
        }
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut L> {
        match &mut self.one {
            Some(one) if *one.0 == *name => Some(&mut one.1),
            _ => self.others.as_mut()?.get_mut(name),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.one.take_if(|one| *one.0 == *name).is_some() {
            return;
        }
        let Some(others) = &mut self.others else { return };
        others.remove(name);
        if others.is_empty() {
            self.others = None;
        }
    }
}

impl<L: Default> Below<L> {
    pub(super) fn get_or_insert(&mut self, name: &str) -> &mut L {
        let is_another = self.one.as_ref().is_some_and(|one| *one.0 != *name);
        if is_another || self.others.as_ref().is_some_and(|others| others.contains_key(name)) {
            return self.others.get_or_insert_default().entry(name.into()).or_default();
        }
        &mut self.one.get_or_insert_with(|| Box::new((name.into(), L::default()))).1
    }
}
