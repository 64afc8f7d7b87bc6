//! What a node counts, and how an operator's monitoring reads it (`GET /metrics` on the admin port).
//!
//! Whoever has something to count adds to an atomic number that is there from the start: a relaxed addition, with no label to
//! look up and nothing to allocate. What is a state and not a history, such as how many are connected, is looked at when
//! somebody asks ([`figures`]); only then is anything named or written ([`exposition`]).

pub mod counts;
pub mod exposition;
pub mod figures;
mod process;
pub mod sys;
pub mod wire;

use std::sync::Arc;

use ntex_mqtt::v5::codec::ConnectAckReason;
use serde::{Deserialize, Serialize};
use wakala::conservation::{Fate, balance};
use wakala::record::Pin;

use counts::{Count, Histogram, LATENCY_S, Level, SIZES};

/// What one store, and all that works on it, counts. Each [`crate::store::Store`] has one.
#[derive(Debug, Default)]
pub struct Metrics {
    pub connections: Connections,
    /// Messages that clients published and that were sent on their way, and wills.
    pub published: Count,
    /// Those of them to whose topic nobody subscribed.
    pub unmatched: Count,
    /// Messages that clients published on topics to which they have no right.
    pub unauthorised: Count,
    /// Copies of messages that are not stored.
    pub direct: Direct,
    /// Messages that were to be retained when there was no room for them.
    pub unretained: Count,
    /// Beginnings and ends of connections that were not told to subscribers, because too many waited.
    pub presence_untold: Count,
    pub wills: Count,
    /// From the arrival of a PUBLISH that is stored to when it is durable.
    pub durable_publishes: Latency,
    /// The same of a request.
    pub durable_requests: Latency,
    pub requests: Requests,
    /// PINs that the HSM looked at.
    pub pins: Pins,
    pub batches: Batches,
    pub telling: Telling,
}

/// What programs were answered that had something to tell, since the node started.
#[derive(Debug, Default)]
pub struct Telling {
    answers: [Count; STATUSES.len()],
    other: Count,
}

const STATUSES: [u16; 13] = [200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 422, 429, 503];

impl Telling {
    pub fn answered(&self, status: u16) {
        let known = STATUSES.iter().zip(&self.answers).find(|(known, _)| **known == status);
        known.map_or(&self.other, |(_, count)| count).one();
    }

    /// By the status of HTTP.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (String, u64)> {
        let known = STATUSES.iter().map(ToString::to_string).zip(&self.answers);
        known.chain([("other".to_owned(), &self.other)]).map(|(status, count)| (status, count.get()))
    }
}

/// Connections since the node started.
#[derive(Debug, Default)]
pub struct Connections {
    pub plain: Count,
    pub tls: Count,
    pub websocket: Count,
    pub websocket_tls: Count,
    /// CONNECTs that were accepted.
    pub sessions: Count,
    /// Closed at the door: too many had not proved yet who they are.
    pub crowded: Count,
    /// No whole CONNECT in time.
    pub slow: Count,
    /// No CONNECT that could be read.
    pub unread: Count,
    /// By the reason code of the CONNACK, from 0x80.
    refused: [Count; 0x20],
}

impl Connections {
    #[must_use]
    pub fn taken(&self) -> u64 {
        [&self.plain, &self.tls, &self.websocket, &self.websocket_tls].map(Count::get).iter().sum()
    }

    pub fn refuse(&self, reason: ConnectAckReason) {
        let place = usize::from(u8::from(reason).saturating_sub(0x80));
        if let Some(count) = self.refused.get(place) {
            count.one();
        }
    }

    /// By reason code of MQTT 5 (3.2.2.2).
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CODES.iter().filter_map(|(code, word)| {
            let count = self.refused.get(usize::from(code.saturating_sub(0x80)))?;
            Some((*word, count.get()))
        })
    }
}

const CODES: [(u8, &str); 21] = [
    (0x80, "unspecified"),
    (0x81, "malformed"),
    (0x82, "protocol_error"),
    (0x83, "implementation_specific"),
    (0x84, "protocol_version"),
    (0x85, "client_identifier"),
    (0x86, "bad_password"),
    (0x87, "not_authorized"),
    (0x88, "unavailable"),
    (0x89, "busy"),
    (0x8A, "banned"),
    (0x8C, "authentication_method"),
    (0x90, "topic_name"),
    (0x95, "packet_too_large"),
    (0x97, "quota"),
    (0x99, "payload_format"),
    (0x9A, "retain"),
    (0x9B, "qos"),
    (0x9C, "another_server"),
    (0x9D, "server_moved"),
    (0x9F, "rate"),
];

/// Copies that are handed to a session in memory, since the node started: at QoS 0, and all for a session that ends with its
/// connection.
#[derive(Debug, Default)]
pub struct Direct {
    pub addressed: Count,
    ends: [Count; Fate::ALL.len()],
    /// In flight or waiting for the window, in the sessions.
    pub waiting: Level,
}

impl Direct {
    pub fn end(&self, fate: Fate, copies: u64) {
        if copies > 0
            && let Some(count) = self.ends.get(fate as usize)
        {
            count.add(copies);
        }
    }

    /// What becomes of one at once.
    pub fn addressed(&self, ended: Option<Fate>) {
        self.addressed.one();
        if let Some(fate) = ended {
            self.end(fate, 1);
        }
    }

    /// Those that were not delivered, and not because their time was over.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let refusals = Fate::ALL.into_iter().zip(&self.ends).filter(|(fate, _)| fate.is_refusal());
        refusals.map(|(_, count)| count.get()).sum()
    }

    #[must_use]
    pub fn copies(&self, arriving: usize) -> Copies {
        let waiting = self.waiting.get() + u64::try_from(arriving).unwrap_or(u64::MAX);
        let ended = |fate: Fate| self.ends.get(fate as usize).map_or(0, Count::get);
        Copies::new(ended, waiting, || self.addressed.get())
    }
}

/// The law of conservation, in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    pub addressed: u64,
    pub delivered: u64,
    pub expired: u64,
    pub refused: std::collections::BTreeMap<String, u64>,
    pub waiting: u64,
    /// 0, or something is lost (more) or counted twice (less). While copies are between two hands in memory it is not 0.
    pub balance: i64,
}

impl Copies {
    pub(crate) fn new(ended: impl Fn(Fate) -> u64, waiting: u64, addressed: impl FnOnce() -> u64) -> Self {
        let refused: std::collections::BTreeMap<String, u64> = Fate::ALL
            .into_iter()
            .filter(|fate| fate.is_refusal())
            .map(|fate| (fate.word().to_owned(), ended(fate)))
            .collect();
        let (delivered, expired) = (ended(Fate::Delivered), ended(Fate::Expired));
        let addressed = addressed();
        let all = delivered + expired + refused.values().sum::<u64>();
        Self { addressed, delivered, expired, refused, waiting, balance: balance(addressed, waiting, all) }
    }
}

/// Requests of terminals, since the node started.
#[derive(Debug, Default)]
pub struct Requests {
    pub arrived: Count,
    pub admitted: Count,
    /// Answered with a receipt that says why, and logged like the others.
    pub refused: Count,
    /// The log, the database or the HSM was away: the PUBACK is withheld, and the next try arrives anew.
    pub withheld: Count,
    pub under_way: Level,
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub arrived: u64,
    pub admitted: u64,
    pub refused: u64,
    pub withheld: u64,
    pub under_way: u64,
    pub balance: i64,
}

impl Requests {
    #[must_use]
    pub fn taken(&self) -> Taken {
        let (admitted, refused, withheld) = (self.admitted.get(), self.refused.get(), self.withheld.get());
        let (under_way, arrived) = (self.under_way.get(), self.arrived.get());
        let balance = balance(arrived, under_way, admitted + refused + withheld);
        Taken { arrived, admitted, refused, withheld, under_way, balance }
    }
}

/// PINs that the HSM looked at, by what it said.
#[derive(Debug, Default)]
pub struct Pins {
    pub correct: Count,
    pub wrong: Count,
    pub malformed: Count,
    /// It did not answer.
    pub faults: Count,
}

impl Pins {
    pub(crate) fn verified(&self, pin: Pin) {
        match pin {
            Pin::Correct => self.correct.one(),
            Pin::Wrong => self.wrong.one(),
            Pin::Malformed => self.malformed.one(),
            Pin::HsmFault => self.faults.one(),
            // The HSM was not asked.
            Pin::NotAsked | Pin::UnknownCard | Pin::TriesExceeded => {}
        }
    }
}

/// A histogram of seconds.
#[derive(Debug)]
pub struct Latency(pub Histogram);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(&LATENCY_S))
    }
}

/// What one kind of batches costs, see [`crate::store::batch`].
#[derive(Debug)]
pub struct Batch {
    /// Things in one commit.
    pub sizes: Histogram,
    /// Seconds that a commit took, with all waiting for the database.
    pub seconds: Histogram,
    /// Commits that failed, or of which nobody heard.
    pub failed: Count,
}

impl Default for Batch {
    fn default() -> Self {
        Self { sizes: Histogram::new(&SIZES), seconds: Histogram::new(&LATENCY_S), failed: Count::default() }
    }
}

/// By what is stored in them.
#[derive(Debug, Default)]
pub struct Batches {
    pub publishes: Arc<Batch>,
    pub acknowledgements: Arc<Batch>,
    pub marks: Arc<Batch>,
    pub ends: Arc<Batch>,
    pub requests: Arc<Batch>,
    pub traces: Arc<Batch>,
}

impl Batches {
    pub(crate) fn all(&self) -> [(&'static str, &Batch); 6] {
        [
            ("publishes", &*self.publishes),
            ("acknowledgements", &*self.acknowledgements),
            ("marks", &*self.marks),
            ("ends", &*self.ends),
            ("requests", &*self.requests),
            ("traces", &*self.traces),
        ]
    }
}

/// How often what grows while it counts is made small again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How often the counts in the database are summed up. Each commit adds rows of its own to them.
    #[serde(with = "humantime_serde")]
    pub sum_up_every: std::time::Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { sum_up_every: std::time::Duration::from_secs(10) }
    }
}
