//! `wakala tap`: what one client sends and is sent, as it happens, for an operator.
//!
//! A session asks at each packet whether it is tapped, which costs a load and a comparison. If it is, a summary without
//! secrets ([`wakala::session::redacted`]) goes into the tap's channel, or is counted as lost where that is full: a reader
//! that is slow slows nobody. A tap is of a client and not of a connection: it waits for one that is away, and goes on when
//! it comes again.
//!
//! A trace ([`kept`]) is a tap that nobody reads: what it is shown goes into the database.

pub mod kept;
mod options;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ntex_mqtt::v5::codec::{Connect, Packet};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use wakala::id::{ClientId, TerminalId, TransactionId};
use wakala::session::redacted::{Joined, Redactor, Summary, Whose};
use wakala::session::{Event, Version};

use crate::cli::rfc3339;
use crate::ports::Clock;
use crate::session::frames::Outbound;
use kept::Kept;
pub use options::Options;

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the client.
    In,
    /// To the client.
    Out,
}

impl Way {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// What a tap shows, a line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Packet {
        at: String,
        way: Way,
        /// That it is about, as far as can be seen.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        transaction: Option<TransactionId>,
        #[serde(flatten)]
        what: Summary,
    },
    /// So many packets are missing here.
    Lost {
        lost: u64,
    },
    Note {
        at: String,
        note: String,
    },
}

/// The taps of this node. Clones are the same ones, for any thread.
#[derive(Clone)]
pub struct Taps(Arc<Inner>);

struct Inner {
    /// Raised when a tap begins or ends: then each session looks whether it is tapped. 0 until the first.
    generation: AtomicU32,
    by_client: Mutex<BTreeMap<ClientId, Vec<Arc<Tap>>>>,
    options: Options,
    clock: Arc<dyn Clock>,
}

/// One view of a client.
#[derive(Debug)]
struct Tap {
    redactor: Redactor,
    to: To,
}

/// Whose it is.
#[derive(Debug)]
enum To {
    Reader { lines: mpsc::Sender<(u64, Line)>, lost: AtomicU64 },
    Trace(Kept),
}

impl std::fmt::Debug for Taps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taps").field("generation", &self.0.generation).finish_non_exhaustive()
    }
}

/// Why there is no tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTap {
    #[error("there are as many taps as may be (tap.at_once_max)")]
    TooMany,
    #[error("no randomness for its key")]
    NoKey,
}

/// What a session knows of the taps of its client.
#[derive(Debug, Default)]
pub struct Tapped {
    generation: u32,
    /// Made when somebody looks first.
    looks: Option<Box<Looks>>,
}

/// Who looks, and what the connection has shown them.
#[derive(Debug)]
struct Looks {
    taps: Vec<Arc<Tap>>,
    joined: Joined,
}

/// Whose packets are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Of<'a> {
    pub(crate) client: &'a ClientId,
    /// What a guest publishes becomes no transaction.
    pub(crate) terminal: Option<&'a TerminalId>,
    pub(crate) version: Version,
}

impl Tapped {
    /// Whether anybody looks. While nothing changes this is a load and a comparison.
    fn by(&mut self, taps: &Taps, client: &ClientId) -> Option<&mut Looks> {
        let generation = taps.0.generation.load(Ordering::Relaxed);
        if generation != self.generation {
            self.generation = generation;
            let joined = self.looks.take().map(|looks| looks.joined);
            let looks = |taps| Box::new(Looks { taps, joined: joined.unwrap_or_default() });
            self.looks = taps.of(client).map(looks);
        }
        self.looks.as_deref_mut()
    }

    /// Something came of the client's doing.
    pub(crate) fn heard(&mut self, taps: &Taps, of: Of<'_>, event: &Event) {
        let Some(looks) = self.by(taps, of.client) else { return };
        let transaction = of.terminal.and_then(|terminal| match event {
            Event::Packet(packet) => looks.joined.heard(packet),
            Event::Publish(publish, payload) => looks.joined.asks(terminal, publish, payload),
            _ => None,
        });
        for tap in &looks.taps {
            let what = match event {
                Event::Packet(packet) => tap.redactor.packet(packet, of.version),
                Event::Publish(publish, payload) => tap.redactor.publish(publish, payload),
                Event::End(reason, why) => Summary::refused(*reason, why),
                _ => continue,
            };
            taps.show(tap, Way::In, transaction, what);
        }
    }

    /// A packet goes to the client.
    pub(crate) fn told(&mut self, taps: &Taps, of: Of<'_>, item: &Outbound) {
        let Some(looks) = self.by(taps, of.client) else { return };
        let transaction = of.terminal.and_then(|terminal| match item {
            Outbound::Packet(packet) => looks.joined.said(packet),
            Outbound::Publish(publish, payload) => looks.joined.tells(terminal, publish, payload),
        });
        for tap in &looks.taps {
            let what = match item {
                Outbound::Packet(packet) => tap.redactor.packet(packet, of.version),
                Outbound::Publish(publish, payload) => tap.redactor.publish(publish, payload),
            };
            taps.show(tap, Way::Out, transaction, what);
        }
    }

    /// The connection has ended.
    pub(crate) fn ended(&mut self, taps: &Taps, client: &ClientId, why: &str) {
        for tap in self.by(taps, client).into_iter().flat_map(|looks| &looks.taps) {
            taps.show(tap, Way::Out, None, Summary::ended(why));
        }
    }
}

impl Taps {
    #[must_use]
    pub fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        let (generation, by_client) = (AtomicU32::new(0), Mutex::default());
        Self(Arc::new(Inner { generation, by_client, options, clock }))
    }

    /// Begins to show what this client sends and is sent.
    ///
    /// # Errors
    /// When there are too many, or there is no randomness.
    pub fn begin(&self, client: &ClientId, whose: Whose) -> Result<View, NoTap> {
        let (to, lines) = mpsc::channel(self.0.options.waiting_max.max(1));
        let place = self.take_place(client, whose, To::Reader { lines: to, lost: AtomicU64::new(0) })?;
        Ok(View { place, lines, waiting: None })
    }

    /// Gives a tap its place. Traces are counted where they begin, not here.
    fn take_place(&self, client: &ClientId, whose: Whose, to: To) -> Result<Place, NoTap> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| NoTap::NoKey)?;
        let tap = Arc::new(Tap { redactor: Redactor::new(client.clone(), whose, key), to });
        let mut by_client = self.by_client();
        let read = by_client.values().flatten().filter(|tap| matches!(tap.to, To::Reader { .. })).count();
        if matches!(tap.to, To::Reader { .. }) && read >= self.0.options.at_once_max {
            return Err(NoTap::TooMany);
        }
        by_client.entry(client.clone()).or_default().push(Arc::clone(&tap));
        self.changed();
        drop(by_client);
        Ok(Place { taps: self.clone(), client: client.clone(), tap })
    }

    #[must_use]
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Somebody says CONNECT under this name. Whether it is his is not known yet.
    pub(crate) fn connecting(&self, connect: &Connect, version: Version) {
        self.each_of(&connect.client_id, |tap| (Way::In, tap.redactor.connect(connect, version)));
    }

    /// He was refused.
    pub(crate) fn refused(&self, client: &str, ack: &Packet, version: Version) {
        self.each_of(client, |tap| (Way::Out, tap.redactor.packet(ack, version)));
    }

    fn each_of(&self, client: &str, show: impl Fn(&Tap) -> (Way, Summary)) {
        if self.0.generation.load(Ordering::Relaxed) == 0 {
            return;
        }
        let views = ClientId::new(client).ok().and_then(|client| self.of(&client));
        for tap in views.iter().flatten() {
            let (way, what) = show(tap);
            self.show(tap, way, None, what);
        }
    }

    fn by_client(&self) -> MutexGuard<'_, BTreeMap<ClientId, Vec<Arc<Tap>>>> {
        self.0.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, client: &ClientId) -> Option<Vec<Arc<Tap>>> {
        self.by_client().get(client).cloned()
    }

    /// With the map locked. A session that sees the number sees the map as it is after it.
    fn changed(&self) {
        let next = |generation: u32| Some(generation.checked_add(1).unwrap_or(1));
        let _ = self.0.generation.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    fn show(&self, tap: &Tap, way: Way, transaction: Option<TransactionId>, what: Summary) {
        let now = self.0.clock.now();
        match &tap.to {
            To::Reader { lines, lost } => {
                let line = Line::Packet { at: rfc3339(now), way, transaction, what };
                let before = lost.swap(0, Ordering::Relaxed);
                if lines.try_send((before, line)).is_err() {
                    lost.fetch_add(before + 1, Ordering::Relaxed);
                }
            }
            To::Trace(kept) => kept.keep(now, way, transaction, what),
        }
    }
}

/// A tap's place among those of its client. The tap ends with it.
#[derive(Debug)]
struct Place {
    taps: Taps,
    client: ClientId,
    tap: Arc<Tap>,
}

/// What the operator reads.
#[derive(Debug)]
pub struct View {
    place: Place,
    lines: mpsc::Receiver<(u64, Line)>,
    /// Read, and behind what is said to be missing before it.
    waiting: Option<Line>,
}

impl View {
    /// The next line.
    pub async fn next(&mut self) -> Line {
        if let Some(line) = self.waiting.take() {
            return line;
        }
        match self.lines.recv().await {
            Some((0, line)) => line,
            Some((lost, line)) => {
                self.waiting = Some(line);
                Line::Lost { lost }
            }
            // It holds a sender itself.
            None => std::future::pending().await,
        }
    }

    /// What was lost after the last line.
    #[must_use]
    pub fn lost(&self) -> u64 {
        match &self.place.tap.to {
            To::Reader { lost, .. } => lost.swap(0, Ordering::Relaxed),
            To::Trace(_) => 0,
        }
    }

    /// Something to be said between the lines.
    #[must_use]
    pub fn note(&self, note: String) -> Line {
        Line::Note { at: rfc3339(self.place.taps.0.clock.now()), note }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_client = self.taps.by_client();
        if let Some(taps) = by_client.get_mut(&self.client) {
            taps.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
            if taps.is_empty() {
                by_client.remove(&self.client);
            }
        }
        self.taps.changed();
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The hour is enough for whoever looks on.
        let hour = |at: &str| at.split_once('T').map_or(at, |(_, hour)| hour).trim_end_matches('Z').to_owned();
        match self {
            Self::Packet { at, way, transaction, what } => {
                let arrow = if *way == Way::In { "<-" } else { "->" };
                write!(f, "{:<12} {arrow} {what}", hour(at))?;
                transaction.map_or(Ok(()), |transaction| write!(f, ", transaction {transaction}"))
            }
            Self::Lost { lost } => {
                write!(f, "             {lost} packets are missing here: they came faster than they were read")
            }
            Self::Note { at, note } => write!(f, "{:<12} -- {note}", hour(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use ntex_bytes::Bytes;
    use wakala::time::Time;

    use super::*;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Time {
            Time::from_millis(1_795_224_225_000)
        }
    }

    fn taps(options: Options) -> Taps {
        Taps::new(options, Arc::new(Still))
    }

    fn client(name: &str) -> ClientId {
        ClientId::new(name).expect("short")
    }

    fn ping(tapped: &mut Tapped, taps: &Taps, name: &str) {
        tapped.heard(taps, guest(&client(name)), &Event::Packet(Packet::PingRequest));
    }

    fn guest(client: &ClientId) -> Of<'_> {
        Of { client, terminal: None, version: Version::V5 }
    }

    #[tokio::test]
    async fn a_client_is_seen_from_when_it_is_tapped_until_that_ends() {
        let (taps, mut session, mut other) = (taps(Options::default()), Tapped::default(), Tapped::default());
        ping(&mut session, &taps, "c");
        let mut view = taps.begin(&client("c"), Whose::Guest).expect("a tap");
        ping(&mut session, &taps, "c");
        ping(&mut other, &taps, "d");
        // The next connection.
        let mut again = Tapped::default();
        again.told(&taps, guest(&client("c")), &Outbound::Packet(Packet::PingResponse));
        again.ended(&taps, &client("c"), "cut");
        let lines = [view.next().await, view.next().await, view.next().await].map(|line| line.to_string());
        assert_eq!(lines, ["01:23:45     <- PINGREQ", "01:23:45     -> PINGRESP", "01:23:45     -> ended       cut"]);
        assert!(session.looks.is_some() && other.looks.is_none());
        drop(view);
        ping(&mut session, &taps, "c");
        assert!(session.looks.is_none() && taps.by_client().is_empty());
    }

    #[tokio::test]
    async fn a_slow_reader_loses_packets_and_is_told_how_many_and_where() {
        let taps = taps(Options { waiting_max: 2, ..Options::default() });
        let mut view = taps.begin(&client("c"), Whose::Guest).expect("a tap");
        let mut session = Tapped::default();
        for _ in 0..5 {
            ping(&mut session, &taps, "c");
        }
        for _ in 0..2 {
            assert!(matches!(view.next().await, Line::Packet { .. }));
        }
        ping(&mut session, &taps, "c");
        assert_eq!(view.next().await, Line::Lost { lost: 3 });
        assert!(matches!(view.next().await, Line::Packet { .. }));
        assert_eq!(view.lost(), 0);
    }

    #[test]
    fn there_are_no_more_taps_than_may_be() {
        let taps = taps(Options { at_once_max: 2, ..Options::default() });
        let first = taps.begin(&client("c"), Whose::Guest).expect("one");
        let _second = taps.begin(&client("c"), Whose::Guest).expect("two");
        assert_eq!(taps.begin(&client("d"), Whose::Guest).err(), Some(NoTap::TooMany));
        drop(first);
        assert!(taps.begin(&client("d"), Whose::Guest).is_ok());
    }

    #[tokio::test]
    async fn a_line_is_read_as_it_was_written() {
        let taps = taps(Options::default());
        let mut view = taps.begin(&client("c"), Whose::Guest).expect("a tap");
        let publish = wakala::mqtt::Publish { topic: "t".into(), ..Default::default() };
        let mut session = Tapped::default();
        session.told(&taps, guest(&client("c")), &Outbound::Publish(publish, Bytes::from_static(b"x")));
        let about = Line::Packet {
            at: rfc3339(Still.now()),
            way: Way::Out,
            transaction: Some(TransactionId(uuid::Uuid::from_u128(7))),
            what: Summary::PingResp,
        };
        let said = "01:23:45     -> PINGRESP, transaction 00000000-0000-0000-0000-000000000007";
        assert_eq!(about.to_string(), said);
        for line in [view.next().await, about, Line::Lost { lost: 3 }, view.note("a note".to_owned())] {
            let json = serde_json::to_string(&line).expect("JSON");
            assert_eq!(serde_json::from_str::<Line>(&json).expect(&json), line);
        }
    }
}
