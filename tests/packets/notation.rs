//! How a table is written. A line is a case:
//!
//! ```text
//! name | version | bytes | verdict | rule
//! ```
//!
//! - version: `3` (3.1.1), `5`, or both; `max=N` for a maximum packet size; `first` for the first packet of a connection,
//!   which a CONNECT always is.
//! - bytes: hex; `"text"` a UTF-8 string with its two bytes of length; `'text'` the same without them; `( … )` two bytes of
//!   length and what they count; `[ … ]` a Variable Byte Integer and what it counts (a remaining length, a property
//!   length); `61*300` repeats a byte. So `30 [ "t" [ 23 0001 ] 'hi' ]` is a PUBLISH with a topic alias.
//! - verdict: `ok` and the packet as `render.rs` writes it; a reason code in hex, or several where the standard leaves it
//!   open; `connack` and its code; `close`; `more` for a frame that is not there whole. Under 3.1.1, a reason code stands for
//!   the end of the connection.
//! - rule: the numbered statement, or the section in round brackets.
//!
//! Lines that are empty or begin with `#` say nothing.

use std::iter::Peekable;
use std::str::Chars;

use wakala::session::Version;

use super::case::{BYTES_MAX, Case, Wanted};

pub(crate) fn table(file: &str, text: &str) -> Vec<Case> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
    lines.flat_map(|(line, number)| cases(&format!("{file}:{number}"), line)).collect()
}

fn cases(place: &str, line: &str) -> Vec<Case> {
    let columns: Vec<&str> = line.split(" | ").map(str::trim).collect();
    let [name, versions, written, verdict, rule] = columns[..] else { panic!("{place}: not five columns: {line}") };
    let mut bytes_max = BYTES_MAX;
    let mut by = Vec::new();
    let mut first = false;
    for word in versions.split(' ') {
        match word {
            "3" => by.push(Version::V3),
            "5" => by.push(Version::V5),
            "first" => first = true,
            word => {
                let max = word.strip_prefix("max=").and_then(|max| max.parse().ok());
                bytes_max = max.unwrap_or_else(|| panic!("{place}: no version: {word}"));
            }
        }
    }
    let case = |by| Case {
        place: place.to_owned(),
        name: name.to_owned(),
        by,
        first,
        bytes_max,
        bytes: bytes(written),
        wanted: match (Wanted::parse(verdict), by) {
            (Wanted::Refused(_), Version::V3) => Wanted::Closed,
            (wanted, _) => wanted,
        },
        rule: rule.to_owned(),
    };
    by.into_iter().map(case).collect()
}

/// The bytes that a notation stands for.
pub(crate) fn bytes(written: &str) -> Vec<u8> {
    let mut reader = written.chars().peekable();
    let bytes = sequence(&mut reader, None);
    assert_eq!(reader.next(), None, "unpaired bracket: {written}");
    bytes
}

fn sequence(reader: &mut Peekable<Chars<'_>>, end: Option<char>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(&next) = reader.peek() {
        if Some(next) == end {
            return bytes;
        }
        match next {
            ' ' => _ = reader.next(),
            '[' => {
                let inner = within(reader, ']');
                bytes.extend(variable(inner.len()));
                bytes.extend(inner);
            }
            '(' => {
                let inner = within(reader, ')');
                bytes.extend(counted(&inner));
            }
            '"' => bytes.extend(counted(&text(reader, '"'))),
            '\'' => bytes.extend(text(reader, '\'')),
            _ => bytes.extend(hexadecimal(reader)),
        }
    }
    assert_eq!(end, None, "a bracket is not closed");
    bytes
}

fn within(reader: &mut Peekable<Chars<'_>>, end: char) -> Vec<u8> {
    reader.next();
    let inner = sequence(reader, Some(end));
    reader.next();
    inner
}

fn text(reader: &mut Peekable<Chars<'_>>, quote: char) -> Vec<u8> {
    reader.next();
    let text: String = reader.by_ref().take_while(|&c| c != quote).collect();
    text.into_bytes()
}

fn hexadecimal(reader: &mut Peekable<Chars<'_>>) -> Vec<u8> {
    let digits = while_it_is(reader, |c| c.is_ascii_hexdigit());
    let bytes = hex::decode(&digits).unwrap_or_else(|_| panic!("not hex: {digits} before {:?}", reader.peek()));
    assert!(!bytes.is_empty(), "not hex: {:?}", reader.peek());
    if reader.next_if_eq(&'*').is_none() {
        return bytes;
    }
    bytes.repeat(while_it_is(reader, |c| c.is_ascii_digit()).parse().expect("how many times"))
}

fn while_it_is(reader: &mut Peekable<Chars<'_>>, it_is: impl Fn(char) -> bool) -> String {
    std::iter::from_fn(|| reader.next_if(|&c| it_is(c))).collect()
}

/// Two bytes of length, and what they count.
pub(crate) fn counted(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).expect("at most 65,535 bytes").to_be_bytes()[..], bytes].concat()
}

/// A Variable Byte Integer (1.5.5).
pub(crate) fn variable(value: usize) -> Vec<u8> {
    let mut left = value;
    let mut bytes = Vec::new();
    loop {
        let digit = u8::try_from(left % 128).expect("seven bits");
        left /= 128;
        if left == 0 {
            bytes.push(digit);
            return bytes;
        }
        bytes.push(digit | 0x80);
    }
}

/// A first byte, the remaining length, and the rest.
pub(crate) fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first], variable(body.len()).as_slice(), body].concat()
}
