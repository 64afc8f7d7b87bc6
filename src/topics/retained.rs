//! The last retained message of each topic (3.3.1.3).

use std::collections::BTreeMap;
use std::ops::Bound;

use super::matches;

/// One value per topic name.
#[derive(Clone, Debug)]
pub struct Retained<V> {
    /// Sorted by name: all names that begin as a filter does lie beside each other.
    by_topic: BTreeMap<Box<str>, Kept<V>>,
    /// Of all values, as was said of each.
    bytes: u64,
    /// How many were ever kept.
    count: u64,
}

#[derive(Clone, Debug)]
struct Kept<V> {
    value: V,
    bytes: u32,
    /// The how manieth it was.
    nth: u64,
}

impl<V> Default for Retained<V> {
    fn default() -> Self {
        Self { by_topic: BTreeMap::new(), bytes: 0, count: 0 }
    }
}

impl<V> Retained<V> {
    /// Keeps a topic's value, of so many bytes, in place of the one before it, which is given back [MQTT-3.3.1-5].
    pub fn keep(&mut self, topic: &str, value: V, bytes: u32) -> Option<V> {
        self.count += 1;
        self.put(topic, Kept { value, bytes, nth: self.count })
    }

    /// The same of one that was kept elsewhere: it has the place of the one before it, or one before all, so that whoever looks
    /// for what was kept until now finds it.
    pub fn adopt(&mut self, topic: &str, value: V, bytes: u32) -> Option<V> {
        let nth = self.by_topic.get(topic).map_or(0, |old| old.nth);
        self.put(topic, Kept { value, bytes, nth })
    }

    fn put(&mut self, topic: &str, new: Kept<V>) -> Option<V> {
        self.bytes += u64::from(new.bytes);
        let old = match self.by_topic.get_mut(topic) {
            Some(old) => Some(std::mem::replace(old, new)),
            None => self.by_topic.insert(topic.into(), new),
        };
        self.without(old)
    }

    /// Forgets a topic's value, such as when a retained message without payload came [MQTT-3.3.1-6].
    pub fn forget(&mut self, topic: &str) -> Option<V> {
        let old = self.by_topic.remove(topic);
        self.without(old)
    }

    fn without(&mut self, old: Option<Kept<V>>) -> Option<V> {
        let Kept { value, bytes, .. } = old?;
        self.bytes -= u64::from(bytes);
        Some(value)
    }

    #[must_use]
    pub fn get(&self, topic: &str) -> Option<&V> {
        self.by_topic.get(topic).map(|kept| &kept.value)
    }

    /// The topics at which a filter's matches are to be looked for, in the order of their names, behind the one where an
    /// earlier look ended. Each with its value where the filter matches and no more than `until` were kept up to it.
    pub fn look<'a>(
        &'a self,
        filter: &'a str,
        after: Option<&'a str>,
        until: u64,
    ) -> impl Iterator<Item = (&'a str, Option<&'a V>)> {
        let literal = literal(filter);
        // Without a wildcard there is one such name.
        let exact = literal == filter;
        let from = after.map_or(Bound::Included(literal), Bound::Excluded);
        self.by_topic
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(topic, _)| if exact { &***topic == literal } else { topic.starts_with(literal) })
            .map(move |(topic, kept)| {
                let found = kept.nth <= until && matches(filter, topic);
                (&**topic, found.then_some(&kept.value))
            })
    }

    /// How many were ever kept: what is kept from now on is beyond it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Those of all topics.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.by_topic.values().map(|kept| &kept.value)
    }

    /// How many topics have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_topic.len()
    }

    /// How many bytes they have, as was said of each.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
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
            assert_eq!(kept.keep(topic, topic.len(), 1), None);
        }
        assert_eq!(kept.keep("a", 9, 3), Some(1));
        let found = |filter: &str| {
            let looked = kept.look(filter, None, u64::MAX);
            looked.filter_map(|(topic, value)| value.map(|_| topic.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(found("a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(found("a"), ["a"]);
        assert_eq!(found("+/b"), ["a/b"]);
        assert_eq!(found("a/+/c"), ["a/b/c"]);
        assert_eq!(found("#"), ["/a", "a", "a-b", "a/b", "a/b/c", "b/c"], "none that begins with $ [MQTT-4.7.2-1]");
        assert_eq!(found("$SYS/#"), ["$SYS/a"]);
        assert_eq!(found("+/+"), ["/a", "a/b", "b/c"]);
        assert_eq!(found("c/#"), Vec::<String>::new());
        assert_eq!(kept.look("a", None, u64::MAX).count(), 1, "nothing but the one topic is looked at");
        assert_eq!((kept.forget("a"), kept.forget("a")), (Some(9), None));
        assert_eq!((kept.len(), kept.bytes()), (6, 6));
    }

    #[test]
    fn a_look_goes_on_where_the_one_before_ended_and_finds_nothing_that_is_newer() {
        let mut kept = Retained::default();
        for topic in ["a", "b", "c", "d"] {
            kept.keep(topic, 1, 1);
        }
        let until = kept.count();
        kept.keep("c", 2, 1);
        kept.keep("e", 2, 1);
        let mut after = None::<String>;
        let mut found = Vec::new();
        for _ in 0..3 {
            let page: Vec<_> = kept.look("+", after.as_deref(), until).take(2).collect();
            found.extend(page.iter().filter(|(_, value)| value.is_some()).map(|(topic, _)| (*topic).to_owned()));
            after = page.last().map(|(topic, _)| (*topic).to_owned()).or(after);
            // Where a look ended there may be nothing any more.
            kept.forget("b");
        }
        assert_eq!(found, ["a", "b", "d"]);
    }

    #[test]
    fn what_was_kept_elsewhere_is_as_old_as_what_it_replaces() {
        let mut kept = Retained::default();
        kept.keep("old", 1, 1);
        let until = kept.count();
        kept.keep("new", 1, 1);
        for topic in ["old", "new", "unknown"] {
            kept.adopt(topic, 2, 3);
        }
        let found: Vec<_> = kept.look("+", None, until).filter(|(_, value)| value.is_some()).collect();
        assert_eq!(found, [("old", Some(&2)), ("unknown", Some(&2))]);
        assert_eq!((kept.count(), kept.len(), kept.bytes()), (until + 1, 3, 9));
    }
}
