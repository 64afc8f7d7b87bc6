//! Rights by template: `readings/%c/#` is a different filter for every client, and grants what it matches.
//!
//! What is put in the place of a placeholder comes from the client. If it could bring levels or wildcards of its own, a
//! client named `#` would be granted everything (CVE-2017-7650); then the template grants nothing.

use crate::topics::{covers, matches};

/// A topic filter, in which `%c` stands for the client identifier, `%u` for the user name and `%%` for `%`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template(Box<str>);

/// Why a text is no [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no topic template: {why}")]
pub struct NoTemplate {
    found: String,
    why: &'static str,
}

/// The longest template, in bytes.
pub const TEMPLATE_MAX: usize = 256;

impl Template {
    /// # Errors
    /// When it is not a filter once its placeholders are filled in, or has a placeholder that is not known.
    pub fn new(text: &str) -> Result<Self, NoTemplate> {
        let not = |why| NoTemplate { found: text.chars().take(64).collect(), why };
        if text.len() > TEMPLATE_MAX {
            return Err(not("it is longer than 256 bytes"));
        }
        let filter = fill(text, "x", Some("x")).ok_or_else(|| not("after % come c, u or another %"))?;
        if filter.is_empty() || filter.contains('\0') {
            return Err(not("it is empty or has a NUL in it"));
        }
        if filter.starts_with("$share/") {
            return Err(not("what it grants may be shared anyway; leave $share/… out"));
        }
        let levels: Vec<&str> = filter.split('/').collect();
        let whole = |level: &&str| matches!(*level, "+" | "#") || !level.contains(['+', '#']);
        if !levels.iter().all(whole) || levels.iter().rev().skip(1).any(|level| *level == "#") {
            return Err(not("+ and # are whole levels, and # is the last [MQTT-4.7.1-1] [MQTT-4.7.1-2]"));
        }
        Ok(Self(text.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Template {
    type Error = NoTemplate;
    fn try_from(text: String) -> Result<Self, NoTemplate> {
        Self::new(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.0.into()
    }
}

/// The template with its placeholders filled in; none if it wants what is not there or would not stay in its level.
fn fill(template: &str, client: &str, user: Option<&str>) -> Option<String> {
    let mut filled = String::with_capacity(template.len() + client.len());
    let mut pieces = template.split('%');
    filled.push_str(pieces.next()?);
    while let Some(piece) = pieces.next() {
        if piece.is_empty() {
            // `%%`: the next piece is plain text.
            filled.push('%');
            filled.push_str(pieces.next()?);
            continue;
        }
        let value = match piece.as_bytes()[0] {
            b'c' => client,
            b'u' => user?,
            _ => return None,
        };
        if value.is_empty() || value.contains(['/', '+', '#', '\0']) || (filled.is_empty() && value.starts_with('$')) {
            return None;
        }
        filled.push_str(value);
        filled.push_str(&piece[1..]);
    }
    Some(filled)
}

/// Templates for publishing and for subscribing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Templates {
    pub publish: Vec<Template>,
    pub subscribe: Vec<Template>,
}

impl Templates {
    /// What they grant to one client. A user name that nobody has vouched for is none.
    #[must_use]
    pub fn fill(&self, client: &str, user: Option<&str>) -> Grants {
        let filled = |templates: &[Template]| {
            templates.iter().filter_map(|template| fill(&template.0, client, user).map(Into::into)).collect()
        };
        Grants { publish: filled(&self.publish), subscribe: filled(&self.subscribe) }
    }
}

/// What one client may publish on and subscribe to: filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    publish: Box<[Box<str>]>,
    subscribe: Box<[Box<str>]>,
}

impl Grants {
    pub(super) fn publish(&self, topic: &str) -> bool {
        self.publish.iter().any(|granted| matches(granted, topic))
    }

    /// Whether all that `filter` matches is granted.
    pub(super) fn subscribe(&self, filter: &str) -> bool {
        self.subscribe.iter().any(|granted| covers(granted, filter))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn granted(templates: &[&str], client: &str, user: Option<&str>) -> Grants {
        let templates: Vec<Template> = templates.iter().map(|text| Template::new(text).expect("a template")).collect();
        Templates { publish: templates.clone(), subscribe: templates }.fill(client, user)
    }

    #[test]
    fn placeholders_are_filled_in_once() {
        let texts = |grants: Grants| grants.subscribe.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = ["up/%c/#", "u/%u", "%u-%c", "100%%/%%c", "plain"];
        assert_eq!(texts(granted(&all, "d1", Some("asha"))), ["up/d1/#", "u/asha", "asha-d1", "100%/%c", "plain"]);
        assert_eq!(texts(granted(&all, "%u", Some("%c"))), ["up/%u/#", "u/%c", "%c-%u", "100%/%c", "plain"]);
        assert_eq!(texts(granted(&all, "d1", None)), ["up/d1/#", "100%/%c", "plain"]);
    }

    #[test]
    fn a_name_brings_no_level_and_no_wildcard_of_its_own() {
        for name in ["#", "+", "a/b", "a#", "", "a\0"] {
            assert_eq!(granted(&["%c/#", "x/%c", "x/%u"], name, Some(name)).subscribe.len(), 0, "{name:?}");
        }
        assert_eq!(granted(&["%c/#", "x/%c"], "$SYS", None).subscribe.len(), 1, "$SYS in a level of its own is a name");
        assert_eq!(granted(&["%c%u"], "$", Some("SYS")).subscribe.len(), 0);
    }

    #[test]
    fn what_is_no_filter_is_no_template() {
        for bad in ["", "a/#/b", "a#", "+a", "%", "%x", "a%", "%%%", "+%c", "$share/g/a", "a\0", &"a".repeat(257)] {
            assert!(Template::new(bad).is_err(), "{bad:?}");
        }
        for good in ["#", "+", "/", "a//b", "+/#", "%c", "%u/%c/+/#", "%%", "$SYS/#"] {
            assert_eq!(Template::new(good).map(|template| template.as_str().to_owned()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn a_wildcard_is_granted_by_a_wildcard_only() {
        let grants = granted(&["a/+/c", "b/#", "d"], "x", None);
        for (filter, may) in [
            ("a/+/c", true),
            ("a/1/c", true),
            ("a/#", false),
            ("a/+/+", false),
            ("a/1/c/d", false),
            ("+/1/c", false),
            ("b", true),
            ("b/#", true),
            ("b/+/1/#", true),
            ("+", false),
            ("#", false),
            ("d", true),
            ("d/#", false),
            ("D", false),
        ] {
            assert_eq!(grants.subscribe(filter), may, "{filter}");
        }
        let all = granted(&["#"], "x", None);
        assert!(all.subscribe("#") && all.subscribe("+/a/#") && all.publish("a/b"));
        assert!(!all.subscribe("$SYS/#") && !all.publish("$SYS/x"), "# does not see topics of $");
    }

    fn levels(of: &'static [&'static str]) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(of), 1..5).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        /// Whatever a granted filter lets through, the grant lets through as well.
        #[test]
        fn a_granted_filter_sees_nothing_more(
            granted in levels(&["a", "b", "", "+", "$S"]),
            filter in levels(&["a", "b", "", "+", "$S"]),
            (ends_granted, ends_filter) in any::<(bool, bool)>(),
            topic in levels(&["a", "b", "", "$S"]),
        ) {
            let ended = |text: String, ends| if ends { format!("{text}/#") } else { text };
            let (granted, filter) = (ended(granted, ends_granted), ended(filter, ends_filter));
            if covers(&granted, &filter) && matches(&filter, &topic) {
                prop_assert!(matches(&granted, &topic), "{granted} {filter} {topic}");
            }
            // Without wildcards, to subscribe is to see one topic.
            prop_assert_eq!(covers(&granted, &topic), matches(&granted, &topic), "{} {}", granted, topic);
        }
    }
}
