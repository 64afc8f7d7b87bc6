//! Values under topic filters, found by topic name in the time that the name's levels take, however many filters there
//! are.

use super::below::Below;

/// Under each filter, values by key.
#[derive(Clone, Debug)]
pub struct Tree<K, V> {
    root: Level<K, V>,
}

#[derive(Clone, Debug)]
struct Level<K, V> {
    named: Below<Self>,
    /// `+`
    any: Option<Box<Self>>,
    /// Filters that end here, by key: a sorted list, for most have one key.
    here: Vec<(K, V)>,
    /// Filters that go on with `#` and so end here too (4.7.1.2: `sport/#` matches `sport`).
    rest: Vec<(K, V)>,
}

impl<K, V> Default for Tree<K, V> {
    fn default() -> Self {
        Self { root: Level::default() }
    }
}

impl<K, V> Default for Level<K, V> {
    fn default() -> Self {
        Self { named: Below::default(), any: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<K, V> Level<K, V> {
    fn is_bare(&self) -> bool {
        self.named.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

impl<K: Ord, V> Tree<K, V> {
    /// Puts a value there and gives back the one before it.
    pub fn insert(&mut self, filter: &str, key: K, value: V) -> Option<V> {
        let values = self.values(filter);
        match values.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => values.get_mut(at).map(|(_, old)| std::mem::replace(old, value)),
            Err(at) => {
                // Most have one.
                values.reserve_exact(usize::from(values.is_empty()));
                values.insert(at, (key, value));
                None
            }
        }
    }

    /// The value that is there, or a new one that is put there.
    pub fn entry(&mut self, filter: &str, key: K) -> &mut V
    where
        V: Default,
    {
        let values = self.values(filter);
        let at = match values.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => at,
            Err(at) => {
                values.insert(at, (key, V::default()));
                at
            }
        };
        &mut values[at].1
    }

    fn values(&mut self, filter: &str) -> &mut Vec<(K, V)> {
        let mut level = &mut self.root;
        for name in filter.split('/') {
            level = match name {
                "#" => return &mut level.rest,
                "+" => level.any.get_or_insert_default(),
                _ => level.named.get_or_insert(name),
            };
        }
        &mut level.here
    }

    /// Takes a value away, and with it the levels that nobody needs any more.
    pub fn remove(&mut self, filter: &str, key: &K) -> Option<V> {
        take(&mut self.root, &mut filter.split('/'), key)
    }

    /// All values whose filter matches the topic.
    pub fn for_each<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a K, &'a V)) {
        let (first, rest) = match topic.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (topic, None),
        };
        if !topic.starts_with('$') {
            self.root.rest.iter().for_each(|(key, value)| found(key, value));
            if let Some(any) = &self.root.any {
                visit(any, rest, &mut found);
            }
        }
        if let Some(level) = self.root.named.get(first) {
            visit(level, rest, &mut found);
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_bare()
    }
}

fn visit<'a, K, V>(level: &'a Level<K, V>, topic: Option<&str>, found: &mut impl FnMut(&'a K, &'a V)) {
    level.rest.iter().for_each(|(key, value)| found(key, value));
    let Some(topic) = topic else {
        return level.here.iter().for_each(|(key, value)| found(key, value));
    };
    let (first, rest) = match topic.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (topic, None),
    };
    if let Some(any) = &level.any {
        visit(any, rest, found);
    }
    if let Some(level) = level.named.get(first) {
        visit(level, rest, found);
    }
}

fn take<K: Ord, V>(level: &mut Level<K, V>, names: &mut std::str::Split<'_, char>, key: &K) -> Option<V> {
    let out_of = |values: &mut Vec<(K, V)>| {
        let at = values.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        let (_, value) = values.remove(at);
        if values.is_empty() {
            *values = Vec::new();
        }
        Some(value)
    };
    match names.next() {
        None => out_of(&mut level.here),
        Some("#") => out_of(&mut level.rest),
        Some("+") => {
            let taken = take(level.any.as_mut()?, names, key);
            if level.any.as_ref().is_some_and(|any| any.is_bare()) {
                level.any = None;
            }
            taken
        }
        Some(name) => {
            let below = level.named.get_mut(name)?;
            let taken = take(below, names, key);
            if below.is_bare() {
                level.named.remove(name);
            }
            taken
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::matches;
    use super::*;

    fn found(tree: &Tree<u8, u8>, topic: &str) -> Vec<u8> {
        let mut keys = Vec::new();
        tree.for_each(topic, |key, _| keys.push(*key));
        keys.sort_unstable();
        keys
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut tree = Tree::default();
        for (key, filter) in ["a/b/c", "a/+/c", "a/#", "#", "+", "a/b/c"].into_iter().enumerate() {
            let key = u8::try_from(key).expect("few");
            assert_eq!(tree.insert(filter, key, key), None);
        }
        assert_eq!(tree.insert("a/b/c", 0, 9), Some(0), "the same key is replaced");
        assert_eq!(found(&tree, "a/b/c"), [0, 1, 2, 3, 5]);
        assert_eq!(tree.remove("a/b", &0), None, "a filter that nobody has");
        for (key, filter) in ["a/b/c", "a/+/c", "a/#", "#", "+", "a/b/c"].into_iter().enumerate() {
            let key = u8::try_from(key).expect("few");
            assert!(tree.remove(filter, &key).is_some(), "{filter}");
        }
        assert!(tree.is_empty());
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "a", "b", "$x"])
    }

    fn topic() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("a name has a character", |name| !name.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let wild = prop_oneof![3 => level(), 2 => Just("+")];
        (prop::collection::vec(wild, 0..5), any::<bool>())
            .prop_map(|(mut levels, rest)| {
                if rest {
                    levels.push("#");
                }
                levels.join("/")
            })
            .prop_filter("a filter has a character", |filter| !filter.is_empty())
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_the_definition_says(
            filters in prop::collection::vec(filter(), 0..20),
            gone in prop::collection::vec(any::<bool>(), 20),
            topics in prop::collection::vec(topic(), 1..10),
        ) {
            let mut tree = Tree::default();
            for (key, filter) in filters.iter().enumerate() {
                tree.insert(filter, u8::try_from(key).expect("few"), 0);
            }
            let mut left = Vec::new();
            for (key, filter) in filters.iter().enumerate() {
                let key = u8::try_from(key).expect("few");
                if gone[usize::from(key)] {
                    prop_assert_eq!(tree.remove(filter, &key), Some(0));
                } else {
                    left.push((key, filter));
                }
            }
            for topic in &topics {
                let expected: Vec<u8> =
                    left.iter().filter(|(_, filter)| matches(filter, topic)).map(|(key, _)| *key).collect();
                prop_assert_eq!(found(&tree, topic), expected, "{}", topic);
            }
            for (key, filter) in left {
                tree.remove(filter, &key);
            }
            prop_assert!(tree.is_empty());
        }
    }
}
