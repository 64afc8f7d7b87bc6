//! What a run says in the end: one line of JSON.

use serde_json::{Map, Value, json};

/// A figure, and what it is worth.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What must not happen and did: then the figure is none.
    pub(crate) faults: Vec<String>,
    pub(crate) details: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(value: f64, unit: &'static str) -> Self {
        Self { value, unit, faults: Vec::new(), details: Map::new() }
    }

    /// A run that came to no figure.
    pub(crate) fn failed(error: &anyhow::Error) -> Self {
        Self { faults: vec![format!("{error:#}")], ..Self::new(0.0, "") }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn and(mut self, details: Map<String, Value>) -> Self {
        self.details.extend(details);
        self
    }

    /// A fault where `count` is not 0.
    pub(crate) fn unless_zero(mut self, count: u64, what: &str) -> Self {
        if count > 0 {
            self.faults.push(format!("{count} {what}"));
        }
        self
    }

    pub(crate) fn line(&self, figure: &str, broker: &str) -> Value {
        let mut line = Map::new();
        line.insert("figure".to_owned(), json!(figure));
        line.insert("broker".to_owned(), json!(broker));
        line.insert("value".to_owned(), json!(rounded(self.value)));
        line.insert("unit".to_owned(), json!(self.unit));
        line.insert("valid".to_owned(), json!(self.faults.is_empty()));
        if !self.faults.is_empty() {
            line.insert("faults".to_owned(), json!(self.faults));
        }
        line.extend(self.details.clone());
        Value::Object(line)
    }
}

/// Four figures are more than a shared machine can tell.
pub(crate) fn rounded(value: f64) -> f64 {
    if value.abs() >= 1000.0 { value.round() } else { (value * 1000.0).round() / 1000.0 }
}
