//! A bank's ISO 8583, as data: how it is written, which data elements its messages carry and from what, which answers
//! mean what. One TOML file; `config/banks/sandbox.toml` explains every key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;

use super::codec::Layout;
use super::format::{Body, Class, Format, Length, Prefix, notation};
use super::framing::{Framing, LengthPrefix};
use super::message::{Message, Mti};

/// A bank's ISO 8583.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    pub name: Box<str>,
    pub framing: Framing,
    pub layout: Layout,
    /// Of the core's own clock, for the local times DE12 and DE13.
    pub utc_offset_minutes: i16,
    pub matching: Matching,
    pub answers: Answers,
    pub withdrawal: Shape,
    pub deposit: Shape,
    pub reversal: Shape,
    /// `None`: a link is ready as soon as it is connected.
    pub sign_on: Option<Shape>,
    /// `None`: a silent link is trusted.
    pub echo: Option<Shape>,
    pub sign_off: Option<Shape>,
}

/// How an answer finds its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// Data elements that, with the class of the MTI, name one request among those in flight. An answer must have them.
    pub key: Vec<u8>,
    /// Data elements that must be as in the request if the answer has them.
    pub echo: Vec<u8>,
}

/// What the codes of DE39 mean. A code that is in no list means nothing certain: the request is in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// To a request: booked as asked.
    pub approved: BTreeSet<Box<str>>,
    /// To a request: nothing booked.
    pub declined: BTreeSet<Box<str>>,
    /// To a reversal: booked back, or there was nothing to book back. With any other, it is repeated.
    pub settled: BTreeSet<Box<str>>,
    /// To a network management message.
    pub network: BTreeSet<Box<str>>,
}

/// One kind of message: what it is called and what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub mti: Mti,
    pub fields: BTreeMap<u8, Source>,
}

/// Where a data element comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These characters; for a binary element, these bytes.
    Literal(Box<[u8]>),
    Pan,
    /// YYMM.
    Expiry,
    /// Minor units.
    Amount,
    /// ISO 4217 number.
    Currency,
    /// MMDDhhmmss, UTC: when the message is sent.
    Transmission,
    /// hhmmss at the core's place: when the request was sent.
    LocalTime,
    /// MMDD at the core's place: when the request was sent.
    LocalDate,
    Stan,
    Rrn,
    /// Declined here if it does not fit.
    Terminal,
    /// As many of its last characters as fit.
    TerminalTail,
    Agent,
    AgentTail,
    /// In a reversal: whatever the request carried here.
    Same,
    /// In a reversal, DE90: MTI, STAN, transmission time, acquirer (DE32) and forwarder (DE33) of the request.
    Original,
}

impl Source {
    const NAMES: [(&'static str, Self); 15] = [
        ("pan", Self::Pan),
        ("expiry", Self::Expiry),
        ("amount", Self::Amount),
        ("currency", Self::Currency),
        ("transmission", Self::Transmission),
        ("local_time", Self::LocalTime),
        ("local_date", Self::LocalDate),
        ("stan", Self::Stan),
        ("rrn", Self::Rrn),
        ("terminal", Self::Terminal),
        ("terminal_tail", Self::TerminalTail),
        ("agent", Self::Agent),
        ("agent_tail", Self::AgentTail),
        ("same", Self::Same),
        ("original", Self::Original),
    ];

    /// What a message about the link itself can carry.
    fn is_of_the_link(&self) -> bool {
        matches!(self, Self::Literal(_) | Self::Transmission | Self::LocalTime | Self::LocalDate | Self::Stan)
    }

    /// A text of small letters is a name, any other a literal.
    fn parse(text: &str) -> Result<Self, String> {
        let named = Self::NAMES.into_iter().find(|(name, _)| *name == text);
        if let Some((_, source)) = named {
            return Ok(source);
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            return Err(format!("{text:?} names nothing; right would be a literal or one of {}", names.join(", ")));
        }
        Ok(Self::Literal(text.as_bytes().into()))
    }
}

/// Why a file is no dialect: which key, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not TOML, a key too many or too few, or a value of another type; it says where.
    #[error("{0}")]
    Toml(String),
    #[error("{key}: {why}")]
    Key { key: String, why: String },
}

fn invalid(key: impl fmt::Display, why: impl fmt::Display) -> Invalid {
    Invalid::Key { key: key.to_string(), why: why.to_string() }
}

impl Dialect {
    /// # Errors
    /// The first key that is wrong, and what would be right.
    pub fn parse(toml: &str) -> Result<Self, Invalid> {
        let file: File =
            toml::from_str(toml).map_err(|error| Invalid::Toml(error.to_string().trim_end().to_owned()))?;
        file.dialect()
    }

    /// The shape of the request for money of this kind.
    #[must_use]
    pub fn request(&self, kind: crate::request::Kind) -> &Shape {
        match kind {
            crate::request::Kind::Withdrawal => &self.withdrawal,
            crate::request::Kind::Deposit => &self.deposit,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    utc_offset_minutes: i16,
    wire: Wire,
    fields: BTreeMap<String, toml::Value>,
    #[serde(rename = "match")]
    matching: MatchingTable,
    answers: AnswersTable,
    messages: Messages,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    length: LengthPrefix,
    #[serde(default)]
    length_counts_itself: bool,
    #[serde(default)]
    header: String,
    #[serde(default = "Wire::message_max_bytes")]
    message_max_bytes: usize,
    mti: Body,
    bitmap: Body,
    digits: Body,
    binary: Body,
    variable: Prefix,
}

impl Wire {
    fn message_max_bytes() -> usize {
        2048
    }

    fn one_of(key: &str, found: Body, right: &[Body]) -> Result<Body, Invalid> {
        if right.contains(&found) {
            Ok(found)
        } else {
            Err(invalid(key, format!("{found:?} cannot be; right would be one of {right:?}")))
        }
    }
}

/// A data element that differs from the rest of its dialect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldTable {
    format: String,
    encoding: Option<Body>,
    variable: Option<Prefix>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchingTable {
    #[serde(default = "MatchingTable::key")]
    key: Vec<u8>,
    #[serde(default = "MatchingTable::echo")]
    echo: Vec<u8>,
}

impl MatchingTable {
    fn key() -> Vec<u8> {
        vec![41, 11]
    }

    fn echo() -> Vec<u8> {
        vec![37, 4, 49]
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswersTable {
    approved: BTreeSet<Box<str>>,
    declined: BTreeSet<Box<str>>,
    settled: BTreeSet<Box<str>>,
    network: BTreeSet<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Messages {
    withdrawal: Table,
    deposit: Table,
    reversal: Table,
    sign_on: Option<Table>,
    echo: Option<Table>,
    sign_off: Option<Table>,
}

/// `mti`, and sources by data element.
type Table = BTreeMap<String, String>;

/// Which sources a message may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Request,
    Reversal,
    Link,
}

impl File {
    fn dialect(self) -> Result<Dialect, Invalid> {
        let layout = self.layout()?;
        let header = hex::decode(&self.wire.header)
            .map_err(|_| invalid("wire.header", "right would be bytes in hexadecimal, such as \"6000030000\""))?;
        if self.utc_offset_minutes.unsigned_abs() > 14 * 60 {
            return Err(invalid(
                "utc_offset_minutes",
                "no place is more than 14 hours from UTC; right would be such as 180",
            ));
        }
        let shape = |name: &str, table: &Table, about| shape(&layout, name, table, about);
        let link =
            |name: &str, table: &Option<Table>| table.as_ref().map(|table| shape(name, table, About::Link)).transpose();
        let messages = &self.messages;
        let dialect = Dialect {
            withdrawal: shape("withdrawal", &messages.withdrawal, About::Request)?,
            deposit: shape("deposit", &messages.deposit, About::Request)?,
            reversal: shape("reversal", &messages.reversal, About::Reversal)?,
            sign_on: link("sign_on", &messages.sign_on)?,
            echo: link("echo", &messages.echo)?,
            sign_off: link("sign_off", &messages.sign_off)?,
            name: self.name.into(),
            framing: Framing {
                prefix: self.wire.length,
                counts_itself: self.wire.length_counts_itself,
                header: header.into(),
                message_max_bytes: self.wire.message_max_bytes,
            },
            utc_offset_minutes: self.utc_offset_minutes,
            matching: Matching { key: self.matching.key, echo: self.matching.echo },
            answers: self.answers.answers()?,
            layout,
        };
        dialect.check_matching()?;
        Ok(dialect)
    }

    fn layout(&self) -> Result<Layout, Invalid> {
        use Body::{Ascii, Bcd, Binary, Hex};
        let wire = &self.wire;
        let digits = Wire::one_of("wire.digits", wire.digits, &[Ascii, Bcd])?;
        let binary = Wire::one_of("wire.binary", wire.binary, &[Binary, Hex])?;
        let mut fields = BTreeMap::new();
        for (key, value) in &self.fields {
            let name = format!("fields.{key}");
            let number = data_element(key).map_err(|why| invalid(&name, why))?;
            let table = match value {
                toml::Value::String(format) => FieldTable { format: format.clone(), encoding: None, variable: None },
                other => FieldTable::deserialize(other.clone()).map_err(|error| invalid(&name, error.message()))?,
            };
            let (class, length) = notation(&table.format).map_err(|why| invalid(&name, why))?;
            let (usual, right) = match class {
                Class::N | Class::Z => (digits, &[Ascii, Bcd][..]),
                Class::An | Class::Ans => (Ascii, &[Ascii][..]),
                Class::B => (binary, &[Binary, Hex][..]),
            };
            let body = Wire::one_of(&format!("{name}.encoding"), table.encoding.unwrap_or(usual), right)?;
            let prefix = table.variable.unwrap_or(wire.variable);
            if let (Prefix::Binary, Length::Variable { digits: 2, max }) = (prefix, length)
                && max > 255
            {
                return Err(invalid(&name, "one byte of length says 255 at most"));
            }
            fields.insert(number, Format { class, length, body, prefix });
        }
        Ok(Layout {
            mti: Wire::one_of("wire.mti", wire.mti, &[Ascii, Bcd])?,
            bitmap: Wire::one_of("wire.bitmap", wire.bitmap, &[Binary, Hex])?,
            fields,
        })
    }
}

impl AnswersTable {
    fn answers(self) -> Result<Answers, Invalid> {
        let lists = [
            ("approved", &self.approved),
            ("declined", &self.declined),
            ("settled", &self.settled),
            ("network", &self.network),
        ];
        for (name, list) in lists {
            if list.is_empty() && name != "declined" {
                return Err(invalid(format!("answers.{name}"), "is empty; right would be such as [\"00\"]"));
            }
            if let Some(code) =
                list.iter().find(|code| code.len() != 2 || !code.bytes().all(|b| b.is_ascii_alphanumeric()))
            {
                return Err(invalid(
                    format!("answers.{name}"),
                    format!("{code:?} is no code; right would be two characters, such as \"00\""),
                ));
            }
        }
        if let Some(code) = self.approved.intersection(&self.declined).next() {
            return Err(invalid("answers.declined", format!("{code:?} is in answers.approved too")));
        }
        Ok(Answers { approved: self.approved, declined: self.declined, settled: self.settled, network: self.network })
    }
}

fn data_element(key: &str) -> Result<u8, String> {
    let number = key.parse().ok().filter(|number| (2..=128).contains(number));
    number.ok_or_else(|| format!("{key:?} is no data element; right would be a number from 2 to 128"))
}

fn shape(layout: &Layout, name: &str, table: &Table, about: About) -> Result<Shape, Invalid> {
    let key = |field: &str| format!("messages.{name}.{field}");
    let missing = || invalid(key("mti"), "is missing; right would be such as \"0200\"");
    let mti = table.get("mti").ok_or_else(missing)?;
    let not_mti = || invalid(key("mti"), format!("{mti:?} is no request; right would be four digits such as \"0200\""));
    let mti = Mti::parse(mti).filter(|mti| !mti.is_response()).ok_or_else(not_mti)?;
    let mut fields = BTreeMap::new();
    for (field, text) in table.iter().filter(|(field, _)| *field != "mti") {
        let number = data_element(field).map_err(|why| invalid(key(field), why))?;
        let not_there =
            || invalid(key(field), format!("DE{number} has no format; right would be fields.{number} = \"…\""));
        let format = layout.fields.get(&number).ok_or_else(not_there)?;
        let mut source = Source::parse(text).map_err(|why| invalid(key(field), why))?;
        if let Source::Literal(literal) = &mut source {
            if format.class == Class::B {
                let bytes =
                    hex::decode(&*literal).map_err(|_| invalid(key(field), "a binary literal is hexadecimal"))?;
                *literal = bytes.into();
            }
            format.check(literal).map_err(|why| invalid(key(field), format!("{text:?} {why}")))?;
        }
        let fits = match about {
            About::Request => !matches!(source, Source::Same | Source::Original),
            About::Reversal => true,
            About::Link => source.is_of_the_link(),
        };
        if !fits {
            return Err(invalid(key(field), format!("{text:?} is not known to this message")));
        }
        if source == Source::Pan && number != Message::PAN {
            return Err(invalid(key(field), "a card's number goes into DE2, where it is never shown"));
        }
        if number == Message::PAN && !matches!(source, Source::Pan | Source::Same) {
            return Err(invalid(key(field), "DE2 is the card's number; right would be \"pan\""));
        }
        fields.insert(number, source);
    }
    Ok(Shape { mti, fields })
}

impl Dialect {
    fn check_matching(&self) -> Result<(), Invalid> {
        let Matching { key, echo } = &self.matching;
        if key.is_empty() {
            return Err(invalid("match.key", "is empty; right would be such as [41, 11]"));
        }
        for (list, fields) in [("match.key", key), ("match.echo", echo)] {
            for &field in fields {
                if field == Message::PAN || Message::UNSHOWN.contains(&field) {
                    return Err(invalid(
                        list,
                        format!("DE{field} is card data and is not kept; right would be such as [41, 11]"),
                    ));
                }
                // DE7 of a repeat is another time than that of the message it repeats.
                if list == "match.key" && field == 7 {
                    return Err(invalid(list, "DE7 differs from repeat to repeat; right would be such as [41, 11]"));
                }
            }
        }
        for (name, shape) in
            [("withdrawal", &self.withdrawal), ("deposit", &self.deposit), ("reversal", &self.reversal)]
        {
            if let Some(field) = key.iter().find(|field| !shape.fields.contains_key(field)) {
                return Err(invalid("match.key", format!("messages.{name} carries no DE{field}")));
            }
        }
        // A second request of the same name would take the first one's late answer for its own.
        let names =
            |shape: &Shape, field| matches!(shape.fields.get(field), Some(Source::Stan | Source::Rrn | Source::Same));
        let shapes = [&self.withdrawal, &self.deposit, &self.reversal];
        if !key.iter().any(|field| shapes.iter().all(|shape| names(shape, field))) {
            return Err(invalid("match.key", "names no request; right would be such as [41, 11]"));
        }
        let network = [("sign_on", &self.sign_on), ("echo", &self.echo), ("sign_off", &self.sign_off)];
        for (name, shape) in network {
            if shape.as_ref().is_some_and(|shape| shape.fields.get(&11) != Some(&Source::Stan)) {
                return Err(invalid(
                    format!("messages.{name}.11"),
                    "is missing; right would be \"stan\", which its answer is known by",
                ));
            }
        }
        Ok(())
    }
}
