//! A message in memory: a message type indicator and data elements.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A message as it goes over the wire. It may hold a PAN: it cannot be printed or cloned, and is wiped when dropped.
#[derive(PartialEq, Eq)]
pub struct Bytes(Zeroizing<Vec<u8>>);

impl Bytes {
    /// Takes the bytes as they are; nothing of them is copied.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<Zeroizing<Vec<u8>>> for Bytes {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.0.len())
    }
}

/// Message type indicator: version, class, function and origin, a digit each (ISO 8583:1987 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mti(u16);

impl Mti {
    pub const FINANCIAL_REQUEST: Self = Self(200);
    pub const REVERSAL_ADVICE: Self = Self(420);
    pub const NETWORK_REQUEST: Self = Self(800);

    /// `None` for what has more than four digits.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number <= 9999 { Some(Self(number)) } else { None }
    }

    /// From four ASCII digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit());
        if digits { text.parse().ok().and_then(Self::new) } else { None }
    }

    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The second digit: 2 financial, 4 reversal, 8 network management.
    #[must_use]
    pub const fn class(self) -> u8 {
        (self.0 / 100 % 10) as u8
    }

    /// Whether the third digit is that of a response (1, 3, 5 …).
    #[must_use]
    pub const fn is_response(self) -> bool {
        self.0 / 10 % 2 == 1
    }

    /// The response to this request or advice: 0200 → 0210, 0420 and 0421 → 0430.
    #[must_use]
    pub const fn response(self) -> Self {
        Self(self.0 / 10 * 10 + if self.is_response() { 0 } else { 10 })
    }

    /// The same, said again: 0420 → 0421.
    #[must_use]
    pub const fn repeat(self) -> Self {
        Self(self.0 / 10 * 10 + 1)
    }
}

impl fmt::Display for Mti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

impl fmt::Debug for Mti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The value of one data element: ASCII text, or bytes where the element is binary. It cannot be printed or cloned, and
/// is wiped when dropped.
#[derive(PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Value(Vec<u8>);

impl Value {
    /// Takes the bytes as they are; nothing of them is copied.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Whoever asks for them answers for where they go.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As text without the padding at its right; `None` when the bytes are no text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok().map(|text| text.trim_end_matches(' '))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

/// A message. Its `Debug` masks the PAN (DE2) and leaves out what holds a track, a PIN or chip data.
#[derive(PartialEq, Eq)]
pub struct Message {
    pub mti: Mti,
    fields: BTreeMap<u8, Value>,
}

impl Message {
    /// The primary account number.
    pub const PAN: u8 = 2;

    /// Data elements that are never shown: extended PAN, tracks 2, 3 and 1, PIN data, chip data.
    pub const UNSHOWN: [u8; 6] = [34, 35, 36, 45, 52, 55];

    /// Data elements that tell a person which message this is and what it says, and that hold no card data.
    pub const SUMMARY: [u8; 15] = [3, 4, 7, 11, 12, 13, 25, 37, 38, 39, 41, 42, 49, 70, 90];

    #[must_use]
    pub fn new(mti: Mti) -> Self {
        Self { mti, fields: BTreeMap::new() }
    }

    pub fn set(&mut self, field: u8, value: impl Into<Value>) {
        self.fields.insert(field, value.into());
    }

    #[must_use]
    pub fn with(mut self, field: u8, value: impl Into<Value>) -> Self {
        self.set(field, value);
        self
    }

    #[must_use]
    pub fn get(&self, field: u8) -> Option<&Value> {
        self.fields.get(&field)
    }

    /// The text of a data element without the padding at its right.
    #[must_use]
    pub fn text(&self, field: u8) -> Option<&str> {
        self.get(field).and_then(Value::as_text)
    }

    pub fn fields(&self) -> impl Iterator<Item = (u8, &Value)> {
        self.fields.iter().map(|(&field, value)| (field, value))
    }

    /// Takes a data element out, as a response does that carries on what the request said.
    pub fn take(&mut self, field: u8) -> Option<Value> {
        self.fields.remove(&field)
    }

    /// What may be stored of a message that nobody waits for: no card data is in it.
    #[must_use]
    pub fn summary(&self) -> BTreeMap<String, String> {
        let fields =
            Self::SUMMARY.iter().filter_map(|&field| Some((format!("{field:03}"), self.text(field)?.to_owned())));
        std::iter::once(("mti".to_owned(), self.mti.to_string())).chain(fields).collect()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {{", self.mti)?;
        for (field, value) in self.fields() {
            if field == Self::PAN {
                write!(f, " 2: {}", masked(value.as_bytes()))?;
            } else if Self::UNSHOWN.contains(&field) {
                write!(f, " {field}: …")?;
            } else if let Some(text) = value.as_text() {
                write!(f, " {field}: {text:?}")?;
            } else {
                write!(f, " {field}: {}", hex::encode(value.as_bytes()))?;
            }
        }
        f.write_str(" }")
    }
}

/// First six and last four, as PCI DSS 3.4.1 allows; nothing of what is too short to be a PAN.
fn masked(digits: &[u8]) -> String {
    if digits.len() < 12 {
        return "*".repeat(digits.len());
    }
    let shown = |at: usize| at < 6 || at + 4 >= digits.len();
    digits.iter().enumerate().map(|(at, &digit)| if shown(at) { char::from(digit) } else { '*' }).collect()
}
