//! Topic names and topic filters (MQTT 5 and 3.1.1, section 4.7), and who is subscribed to what.
//!
//! A name or a filter that comes in here has been checked already ([`crate::session::strict`]): it has at least one
//! character, `#` stands last and alone in its level, `+` alone in its.

mod below;
mod retained;
mod subscriptions;
mod tree;

pub use retained::Retained;
pub use subscriptions::{Granted, Match, Reach, Subscriptions};
pub use tree::Tree;

/// Bytes of a topic name or a topic filter, at most. Postgres' indexes take 2,704 of a row, and a filter stands there with its
/// client's name ([`crate::id::CLIENT_ID_MAX`]).
pub const BYTES_MAX: usize = 2_048;

/// Their levels, at most: each is a turn of whoever walks through the tree, and a node of it. Mosquitto takes 200.
pub const LEVELS_MAX: usize = 128;

/// Whether nobody but the server publishes there.
#[must_use]
pub fn is_servers(topic: &str) -> bool {
    topic.split('/').next() == Some("$SYS")
}

/// Whether a name or a filter is no longer and no deeper than is taken here. The standard allows 65,535 bytes of anything
/// (4.7.3), and an answer to who sends them.
#[must_use]
pub fn fits(topic: &str) -> bool {
    topic.len() <= BYTES_MAX && (topic.len() < LEVELS_MAX || topic.split('/').count() <= LEVELS_MAX)
}

/// Whether a filter matches a topic name (4.7.1). Shared subscriptions are matched by the filter in them.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if hides(filter, topic) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether every topic name that `narrow` matches is matched by `wide` too.
#[must_use]
pub fn covers(wide: &str, narrow: &str) -> bool {
    if hides(wide, narrow) {
        return false;
    }
    let mut levels = narrow.split('/');
    for wanted in wide.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            None | Some("#") => return false,
            Some(level) if wanted == "+" || wanted == level => {}
            Some(_) => return false,
        }
    }
    levels.next().is_none()
}

/// A filter that begins with a wildcard does not see topics that begin with `$` [MQTT-4.7.2-1].
fn hides(filter: &str, topic: &str) -> bool {
    topic.starts_with('$') && filter.starts_with(['+', '#'])
}

/// A filter of a shared subscription, `$share/{name}/{filter}` (4.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared<'a> {
    pub name: &'a str,
    pub filter: &'a str,
}

/// Takes a shared subscription's filter apart; none if it is an ordinary one.
///
/// # Errors
/// When it begins like one and is none: the name must have a character and no wildcard, and a filter must follow
/// [MQTT-4.8.2-1], [MQTT-4.8.2-2].
pub fn shared(filter: &str) -> Result<Option<Shared<'_>>, NotShared> {
    let Some(rest) = filter.strip_prefix("$share/") else { return Ok(None) };
    match rest.split_once('/') {
        Some((name, filter)) if !name.is_empty() && !name.contains(['+', '#']) && !filter.is_empty() => {
            Ok(Some(Shared { name, filter }))
        }
        _ => Err(NotShared),
    }
}

/// See [`shared`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shared subscription is $share/{{name}}/{{filter}} [MQTT-4.8.2-2]")]
pub struct NotShared;

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of section 4.7.1 to 4.7.3, which are the same in both standards.
    #[test]
    fn the_standards_examples() {
        for topic in ["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"] {
            assert!(matches("sport/tennis/player1/#", topic), "{topic}");
        }
        assert!(matches("sport/#", "sport"));
        assert!(matches("#", "sport/tennis"));
        assert!(matches("sport/tennis/+", "sport/tennis/player1"));
        assert!(!matches("sport/tennis/+", "sport/tennis/player1/ranking"));
        assert!(!matches("sport/+", "sport"));
        assert!(matches("sport/+", "sport/"));
        assert!(matches("+/+", "/finance"));
        assert!(matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
        assert!(!matches("#", "$SYS/x") && !matches("+/monitor/Clients", "$SYS/monitor/Clients"));
        assert!(matches("$SYS/#", "$SYS/x") && matches("$SYS/monitor/+", "$SYS/monitor/Clients"));
        assert!(!matches("ACCOUNTS", "Accounts"));
        assert!(!matches("/finance", "finance"));
    }

    #[test]
    fn a_filter_covers_another_when_it_matches_all_that_the_other_does() {
        for (wide, narrow) in [
            ("a", "a"),
            ("+", "a"),
            ("#", "a/b/#"),
            ("a/#", "a"),
            ("a/#", "a/#"),
            ("a/#", "a/+/b"),
            ("+/b", "a/b"),
            ("$SYS/#", "$SYS/broker/+"),
            ("$SYS/#", "$SYS"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("a", "b"),
            ("a", "+"),
            ("+", "#"),
            ("a/+", "a/#"),
            ("a/b", "a"),
            ("a", "a/b"),
            ("#", "$SYS/x"),
            ("+/x", "$SYS/x"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn a_topic_has_so_many_bytes_and_levels() {
        let (deepest, longest) = (vec!["a"; LEVELS_MAX].join("/"), "a".repeat(BYTES_MAX));
        assert!(fits("a") && fits(&deepest) && fits(&longest));
        assert!(!fits(&format!("{deepest}/")) && !fits(&format!("{longest}a")) && !fits(&"/".repeat(LEVELS_MAX)));
    }

    #[test]
    fn shared_subscriptions_are_taken_apart() {
        assert_eq!(shared("a/b"), Ok(None));
        assert_eq!(shared("$share/g/a/+"), Ok(Some(Shared { name: "g", filter: "a/+" })));
        assert_eq!(shared("$share/g//a"), Ok(Some(Shared { name: "g", filter: "/a" })));
        for bad in ["$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a"] {
            assert_eq!(shared(bad), Err(NotShared), "{bad}");
        }
        assert_eq!(shared("$shared/g"), Ok(None), "another topic altogether");
    }
}
