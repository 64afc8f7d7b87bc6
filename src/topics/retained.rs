//! The last retained message of each topic (3.3.1.3).

use std::collections::BTreeMap;
use std::ops::Bound;

use super::matches;

/// One value per topic name.
#[derive(Clone, Debug)]
pub struct Retained<V> {
    /// Sorted by name: all names that begin as a filter does lie beside each other.
    by_topic: BTreeMap<Box<str>, V>,
}

impl<V> Default for Retained<V> {
    fn default() -> Self {
        Self { by_topic: BTreeMap::new() }
    }
}

impl<V> Retained<V> {
    /// Keeps a topic's value in place of the one before it, which is given back [MQTT-3.3.1-5].
    pub fn keep(&mut self, topic: &str, value: V) -> Option<V> {
        match self.by_topic.get_mut(topic) {
            Some(old) => Some(std::mem::replace(old, value)),
            None => self.by_topic.insert(topic.into(), value),
        }
    }

    /// Forgets a topic's value, such as when a retained message without payload came [MQTT-3.3.1-6].
    pub fn forget(&mut self, topic: &str) -> Option<V> {
        self.by_topic.remove(topic)
    }

    #[must_use]
    pub fn get(&self, topic: &str) -> Option<&V> {
        self.by_topic.get(topic)
    }

    /// The topics that a filter matches, in the order of their names.
    pub fn matching<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = (&'a str, &'a V)> {
        let literal = literal(filter);
        self.by_topic
            .range::<str, _>((Bound::Included(literal), Bound::Unbounded))
            .map(|(topic, value)| (&**topic, value))
            .take_while(move |(topic, _)| topic.starts_with(literal))
            .filter(move |(topic, _)| matches(filter, topic))
    }

    /// Those of all topics.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.by_topic.values()
    }

    /// How many topics have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_topic.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_topic.is_empty()
    }
}

/// How every name that the filter matches begins: the filter up to its first wildcard, and without the slash before a
/// `#`, for `a/#` matches `a` too.
fn literal(filter: &str) -> &str {
    match filter.find(['+', '#']) {
        None => filter,
        Some(at) => {
            let before = &filter[..at];
            if filter[at..].starts_with('#') { before.strip_suffix('/').unwrap_or(before) } else { before }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_finds_what_it_matches() {
        let mut kept = Retained::default();
        for topic in ["a", "a/b", "a/b/c", "a-b", "b/c", "$SYS/a", "/a"] {
            assert_eq!(kept.keep(topic, topic.len()), None);
        }
        assert_eq!(kept.keep("a", 9), Some(1));
        let found = |filter: &str| kept.matching(filter).map(|(topic, _)| topic.to_owned()).collect::<Vec<_>>();
        assert_eq!(found("a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(found("a"), ["a"]);
        assert_eq!(found("+/b"), ["a/b"]);
        assert_eq!(found("a/+/c"), ["a/b/c"]);
        assert_eq!(found("#"), ["/a", "a", "a-b", "a/b", "a/b/c", "b/c"], "none that begins with $ [MQTT-4.7.2-1]");
        assert_eq!(found("$SYS/#"), ["$SYS/a"]);
        assert_eq!(found("+/+"), ["/a", "a/b", "b/c"]);
        assert_eq!(found("c/#"), Vec::<String>::new());
        assert_eq!((kept.forget("a"), kept.forget("a")), (Some(9), None));
        assert_eq!(kept.len(), 6);
    }
}
