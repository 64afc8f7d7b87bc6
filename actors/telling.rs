//! What operators and the bank's programs tell terminals, and publish where there is a general broker: for how long that is
//! known, how often a terminal may be told something, and the door for programs ([`http`]).

pub mod http;
mod problem;
mod teller;
pub mod tokens;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wakala::time::Time;

use crate::cli::rfc3339;
use crate::store::messages::Limits;
use crate::store::told::Told;

/// What terminals are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long it is known what was told, and what became of it. A key (`--key`, `Idempotency-Key`) holds as long.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// How many of them are known at most, in rows; the oldest are forgotten, but for those that wait.
    pub rows_max: u64,
    /// Messages that one terminal is told within an hour, at most; more are refused. 0 is no limit.
    pub messages_per_hour: u32,
    /// The same of configurations.
    pub configurations_per_hour: u32,
    /// The same of news: each costs the agent a part of his bundle.
    pub news_per_hour: u32,
    /// Where programs come. Without, none can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<http::Http>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // As humantime counts it: 365.25 days.
            keep: Duration::from_secs(31_557_600),
            rows_max: 1_000_000,
            messages_per_hour: 0,
            configurations_per_hour: 60,
            news_per_hour: 60,
            http: None,
        }
    }
}

impl Options {
    /// How much may wait for one terminal, and how often it is told something.
    #[must_use]
    pub fn limits(&self, sessions: &crate::sessions::Options) -> Limits {
        let crate::sessions::Options { messages_max, messages_ttl_max, news_max, news_ttl_max, .. } = *sessions;
        let per_hour = [self.messages_per_hour, self.configurations_per_hour, self.news_per_hour];
        Limits { messages_max, messages_ttl_max, news_max, news_ttl_max, per_hour }
    }
}

/// How long something is worth being told: `90s`, `2h`, `3days`.
///
/// # Errors
/// What is wrong with it.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    // MQTT counts the expiry in seconds, in 32 bits (3.3.2.3.3).
    if (Duration::from_secs(1)..=Duration::from_secs(u64::from(u32::MAX))).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("a time from 1s to 49710days".to_owned())
    }
}

/// A key under which something is told: what a line of a log can show.
///
/// # Errors
/// What would be right.
pub fn key(text: &str) -> Result<String, String> {
    if (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a key has 1 to 255 printable ASCII characters without spaces".to_owned())
    }
}

/// A message that was told, as programs read it.
#[must_use]
pub fn shown(told: &Told) -> Value {
    let at = |at: i64| rfc3339(Time::from_millis(at));
    let copies =
        told.copies.iter().map(|copy| json!({ "client": copy.client, "became": copy.became, "at": copy.at.map(at) }));
    json!({
        "id": told.id, "asked_by": told.asked_by, "key": told.key, "terminal": told.terminal, "topic": told.topic,
        "class": told.class.word(), "qos": told.qos, "retain": told.retain, "bytes": told.bytes, "at": rfc3339(told.at),
        "expires_at": told.expires_at.map(rfc3339), "direct": told.direct, "became": told.became,
        "copies": copies.collect::<Vec<_>>(),
    })
}
