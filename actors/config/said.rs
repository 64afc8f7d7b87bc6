//! What is wrong with a configuration, in words: the file, the key, and what would be right.

use figment::error::Kind;
use figment::providers::Serialized;
use figment::value::Dict;
use figment::{Figment, Metadata};

use super::{Config, Error};

/// Every fault, a line each. Reading ends at the first one, so what is wrong is left out and the rest is read again.
pub(super) fn every(figment: &Figment, first: figment::Error) -> Error {
    let mut left: Dict = figment.extract().unwrap_or_default();
    let (mut lines, mut keys, mut errors) = (Vec::new(), Vec::<Vec<String>>::new(), first);
    loop {
        let mut fewer = false;
        for error in errors {
            let key = key(&error);
            // A table that is wrong only without what was left out of it is no fault of its own.
            if !keys.iter().any(|before| before.len() > key.len() && before.starts_with(&key)) {
                lines.push(line(figment, &error, &key));
            }
            fewer |= leave_out(&mut left, &key);
            keys.push(key);
        }
        match Figment::from(Serialized::defaults(&left)).extract::<Config>() {
            Err(more) if fewer => errors = more,
            _ => return Error(lines),
        }
    }
}

/// The way to the value, that of an unknown key with the key itself.
fn key(error: &figment::Error) -> Vec<String> {
    // figment puts the name of its profile first; nobody here has heard of profiles.
    let mut key: Vec<String> = error.path.iter().filter(|part| *part != "default").cloned().collect();
    if let Kind::UnknownField(found, _) = &error.kind
        && key.last() != Some(found)
    {
        key.push(found.clone());
    }
    key
}

fn leave_out(dict: &mut Dict, key: &[String]) -> bool {
    match key {
        [] => false,
        [last] => dict.remove(last).is_some(),
        [first, rest @ ..] => match dict.get_mut(first) {
            Some(figment::value::Value::Dict(_, below)) => leave_out(below, rest),
            // One of a list: the others are nothing without it.
            Some(figment::value::Value::Array(..)) => dict.remove(first).is_some(),
            _ => false,
        },
    }
}

fn line(figment: &Figment, error: &figment::Error, key: &[String]) -> String {
    // What was left out and read again has forgotten where it came from.
    let origin = figment.find_metadata(&key.join(".")).or(error.metadata.as_ref());
    let source = origin.map_or_else(String::new, source);
    let (place, text) = match &error.kind {
        Kind::UnknownField(found, known) => {
            let near = nearest(found, known).map(|near| format!("did you mean {near}?"));
            let meant = near.unwrap_or_else(|| format!("known here: {}", known.join(", ")));
            (&key[..key.len().saturating_sub(1)], format!("unknown key {found}; {meant}"))
        }
        Kind::UnknownVariant(found, known) => (key, format!("{found:?} is none of: {}", known.join(", "))),
        // What stands in the place of a section is not quoted: a key, or an address with a password.
        Kind::InvalidType(_, expected) if expected.starts_with("struct ") => {
            (key, format!("right would be {}", right(expected)))
        }
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            (key, format!("found {found}; right would be {}", right(expected)))
        }
        Kind::Message(text) if text.contains("socket address") => {
            (key, format!("{text}; right would be, for example, 127.0.0.1:1883"))
        }
        kind => (key, unquoted(&kind.to_string())),
    };
    let place = place.join(".");
    if place.is_empty() { format!("{source}{text}") } else { format!("{source}{place}: {text}") }
}

/// A message without the lines of the file that it draws (`2 | url = …`): there may be a password in them.
fn unquoted(text: &str) -> String {
    let drawn = |line: &str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let said: Vec<&str> = text.lines().filter(|line| !drawn(line)).map(str::trim).collect();
    said.join("; ")
}

/// What serde calls by the names of Rust.
fn right(expected: &str) -> &str {
    match expected {
        "struct Ways" => "one way: { credential = \"NAME\" }, { file = \"PATH\" } or { environment = \"NAME\" }",
        "a duration" => "a duration such as 500ms, 10s or 2m",
        section if section.starts_with("struct ") => "a section with keys of its own",
        number if number.len() <= 5 && number.starts_with(['u', 'i']) => "a whole number",
        other => other,
    }
}

/// Where a value came from: the file, the variables, or a flag (which figment has no name for).
pub(super) fn source(metadata: &Metadata) -> String {
    match &metadata.source {
        Some(source @ figment::Source::File(_)) => format!("{source}: "),
        _ if metadata.name.contains("environment") => "environment: ".to_owned(),
        _ => "--set: ".to_owned(),
    }
}

/// The known key that differs least, if it differs little.
fn nearest<'a>(found: &str, known: &'a [&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|key| (distance(found, key), *key))
        .filter(|(far, key)| *far * 2 <= key.len())
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
