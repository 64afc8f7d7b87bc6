//! What every part of the fake world acts through: the clock, the lots, the queue of what will happen, the connections,
//! and the story that is told when a seed fails.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use wakala::id::{AgentId, CoreId, PartitionNo, TerminalId, TransactionId};
use wakala::iso8583::{Bytes, Dialect};
use wakala::time::Time;

use super::chance::{Chance, Weather};
use super::log::Call as LogCall;
use super::mqtt::Mqtt;
use super::postgres::{Attempt, Error, Postgres};
use super::{core, log, node, terminal};

/// 2026-11-21T01:23:45Z.
pub(crate) const START: Time = Time::from_millis(1_795_224_225_000);

/// The dialect of every core here.
pub(crate) static DIALECT: LazyLock<Arc<Dialect>> = LazyLock::new(|| {
    Arc::new(Dialect::parse(include_str!("../../config/banks/sandbox.toml")).expect("the sandbox's dialect"))
});

/// A node in one of its lives: what was started in an earlier life arrives nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Home {
    pub(crate) node: usize,
    pub(crate) life: u32,
}

/// What happens next, and where.
pub(crate) enum What {
    Terminal(usize, terminal::Event),
    Node(Home, Box<node::Event>),
    Postgres(Call),
    /// The database notices that a node is gone, and undoes what it had open.
    PostgresDrops(Home),
    /// A database transaction is dropped without a commit.
    PostgresUndoes(u64),
    Log(LogCall),
    Core(usize, core::Event),
    /// The next thing on this way of a connection arrives.
    Arrives(WireNo, Side),
    Fault(super::world::Fault),
    /// The faults end.
    Heals,
    /// The auditor looks whether all is done.
    Looks,
}

struct Scheduled {
    at: Time,
    nth: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.nth == other.nth
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.nth).cmp(&(other.at, other.nth))
    }
}

/// Who is enrolled, and what stands where. It never changes.
#[derive(Debug)]
pub(crate) struct Village {
    pub(crate) terminals: Vec<Enrolment>,
    pub(crate) agents: Vec<AgentId>,
    pub(crate) cores: Vec<CoreId>,
    pub(crate) partitions: u16,
    pub(crate) nodes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    pub(crate) id: TerminalId,
    pub(crate) agent: AgentId,
    pub(crate) core: usize,
}

impl Village {
    pub(crate) fn enrolled(&self, id: &str) -> Option<&Enrolment> {
        self.terminals.iter().find(|terminal| terminal.id.as_str() == id)
    }

    pub(crate) fn core(&self, id: &CoreId) -> usize {
        self.cores.iter().position(|core| core == id).expect("a core of this village")
    }
}

/// What a line of the story is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    World,
    Terminal(TerminalId),
    Transaction(TransactionId),
    /// The request that has this amount, as a core knows it.
    Amount(u64),
}

/// An invariant that does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// As in the list of invariants.
    pub(crate) invariant: &'static str,
    pub(crate) text: String,
    pub(crate) about: About,
}

pub(crate) type WireNo = u64;

/// Which end of a connection: the one that opened it is 0.
pub(crate) type Side = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Terminal { no: usize, life: u32 },
    Node(Home),
    Core { no: usize },
}

/// A TCP connection: bytes arrive in order, or a prefix of them does, and its end may be heard or not.
struct Wire {
    ends: [End; 2],
    ways: [Way; 2],
    /// Takes bytes and delivers none.
    hole: bool,
}

/// From the side whose number it has to the other.
struct Way {
    queue: VecDeque<Payload>,
    last: Time,
    open: bool,
}

pub(crate) enum Payload {
    /// The other side asks for a connection, or has accepted it.
    Open,
    Mqtt(Mqtt),
    Iso {
        bytes: Bytes,
        /// In which order messages were written, over all connections.
        written: u64,
    },
    /// The connection is over.
    End,
}

/// What a call to the database meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Through,
    /// Nothing was done.
    Lost,
    /// It was done, and whoever asked is not told so.
    Unheard,
}

type Work = Box<dyn FnMut(&mut Postgres, Time, Fate) -> Option<node::Event>>;

/// A call on its way to the database.
pub(crate) struct Call {
    pub(crate) home: Home,
    pub(crate) fate: Fate,
    /// When it gives up waiting for a lock.
    pub(crate) until: Time,
    /// Housekeeping, with lots of its own.
    pub(crate) aside: bool,
    pub(crate) work: Work,
}

/// See the module's text.
pub(crate) struct Stage {
    pub(crate) now: Time,
    pub(crate) chance: Chance,
    /// For what nodes do every so often and mostly to no effect: a world in which it has none goes on as without it.
    aside: Chance,
    pub(crate) weather: Weather,
    pub(crate) village: Arc<Village>,
    /// How many things have happened.
    pub(crate) events: u64,
    /// Requests so far; each amount has its number in it, so that an amount names its request at the core.
    pub(crate) requests: u64,
    pub(crate) violation: Option<Violation>,
    pub(crate) digest: u64,
    /// A node was paused in this world.
    pub(crate) slept: bool,
    /// How often a late owner was told that it is one.
    pub(crate) fenced: usize,
    nth: u64,
    written: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    wires: BTreeMap<WireNo, Wire>,
    story: Option<Vec<(Time, About, String)>>,
}

/// How long a statement waits for a lock (`store.lock_timeout`).
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

impl Stage {
    pub(crate) fn new(chance: Chance, aside: Chance, weather: Weather, village: Village, told: bool) -> Self {
        Self {
            now: START,
            chance,
            aside,
            weather,
            village: Arc::new(village),
            events: 0,
            requests: 0,
            violation: None,
            digest: 0,
            slept: false,
            fenced: 0,
            nth: 0,
            written: 0,
            queue: BinaryHeap::new(),
            wires: BTreeMap::new(),
            story: told.then(Vec::new),
        }
    }

    /// The next thing to happen; the clock is turned to it.
    pub(crate) fn next(&mut self) -> Option<What> {
        let Reverse(next) = self.queue.pop()?;
        self.now = next.at;
        self.events += 1;
        // Two runs of one seed are the same run if this is the same in both.
        self.digest = (self.digest.rotate_left(5) ^ next.nth).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::try_from(next.at.millis()).unwrap_or(0);
        Some(next.what)
    }

    pub(crate) fn at(&mut self, at: Time, what: What) {
        self.nth += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), nth: self.nth, what }));
    }

    pub(crate) fn after(&mut self, wait: Duration, what: What) {
        self.at(self.now + wait, what);
    }

    pub(crate) fn node(&mut self, wait: Duration, home: Home, event: node::Event) {
        self.after(wait, What::Node(home, Box::new(event)));
    }

    pub(crate) fn latency(&mut self) -> Duration {
        self.chance.wait(self.weather.latency_ms)
    }

    // The story.

    pub(crate) fn tell(&mut self, about: impl FnOnce() -> About, text: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push((self.now, about(), text()));
        }
    }

    pub(crate) fn tell_world(&mut self, text: impl FnOnce() -> String) {
        self.tell(|| About::World, text);
    }

    pub(crate) fn story(&self) -> &[(Time, About, String)] {
        self.story.as_deref().unwrap_or_default()
    }

    pub(crate) fn violated(&mut self, invariant: &'static str, about: About, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, text: text(), about });
        }
    }

    // The database and the log.

    /// Calls the database. `work` may be blocked by a lock, and is then tried again.
    pub(crate) fn ask<T: 'static>(
        &mut self,
        home: Home,
        work: impl FnMut(&mut Postgres, Time) -> Attempt<T> + 'static,
        then: impl FnOnce(Result<T, Error>) -> node::Event + 'static,
    ) {
        let fate = fate(&mut self.chance, &self.weather);
        let call = Call { home, fate, until: self.now, aside: false, work: work_of(work, then) };
        self.call(call);
    }

    /// The same, of housekeeping.
    pub(crate) fn ask_aside<T: 'static>(
        &mut self,
        home: Home,
        work: impl FnMut(&mut Postgres, Time) -> Attempt<T> + 'static,
        then: impl FnOnce(Result<T, Error>) -> node::Event + 'static,
    ) {
        let fate = fate(&mut self.aside, &self.weather);
        let call = Call { home, fate, until: self.now, aside: true, work: work_of(work, then) };
        self.call(call);
    }

    /// The same, of a call whose effect ends with the connection: either it is heard or it was not.
    pub(crate) fn ask_open<T: 'static>(
        &mut self,
        home: Home,
        work: impl FnMut(&mut Postgres, Time) -> Attempt<T> + 'static,
        then: impl FnOnce(Result<T, Error>) -> node::Event + 'static,
    ) {
        let fate = if self.chance.happens(self.weather.call_lost) { Fate::Lost } else { Fate::Through };
        let call = Call { home, fate, until: self.now, aside: false, work: work_of(work, then) };
        self.call(call);
    }

    fn call(&mut self, call: Call) {
        let wait = self.latency_of(&call);
        let until = self.now + wait + LOCK_TIMEOUT;
        self.after(wait, What::Postgres(Call { until, ..call }));
    }

    /// How long a call to the database is on its way, or its answer.
    pub(crate) fn latency_of(&mut self, call: &Call) -> Duration {
        let chance = if call.aside { &mut self.aside } else { &mut self.chance };
        chance.wait(self.weather.latency_ms)
    }

    pub(crate) fn undo(&mut self, work: u64) {
        let wait = self.latency();
        self.after(wait, What::PostgresUndoes(work));
    }

    pub(crate) fn append(
        &mut self,
        home: Home,
        partition: PartitionNo,
        bytes: Vec<u8>,
        then: impl FnOnce(Result<(), log::Away>) -> node::Event + 'static,
    ) {
        let wait = self.latency();
        self.after(wait, What::Log(LogCall::Append { home, partition, bytes, then: Box::new(then) }));
    }

    // Connections.

    /// Opens a connection. The other side hears [`Payload::Open`].
    pub(crate) fn connect(&mut self, from: End, to: End) -> WireNo {
        self.nth += 1;
        let way = || Way { queue: VecDeque::new(), last: START, open: true };
        self.wires.insert(self.nth, Wire { ends: [from, to], ways: [way(), way()], hole: false });
        let wire = self.nth;
        self.send(wire, 0, Payload::Open);
        wire
    }

    pub(crate) fn send(&mut self, wire: WireNo, side: Side, payload: Payload) {
        let wait = self.latency();
        let now = self.now;
        let Some(Wire { ways, hole: false, .. }) = self.wires.get_mut(&wire) else { return };
        let way = &mut ways[side];
        if way.open {
            way.open = !matches!(payload, Payload::End);
            way.queue.push_back(payload);
            way.last = way.last.max(now + wait);
            let at = way.last;
            self.at(at, What::Arrives(wire, side));
        }
    }

    pub(crate) fn send_iso(&mut self, wire: WireNo, side: Side, bytes: Bytes) {
        self.written += 1;
        let written = self.written;
        self.send(wire, side, Payload::Iso { bytes, written });
    }

    /// One side ends the connection: what it said before gets through, what it is told is not heard.
    pub(crate) fn close(&mut self, wire: WireNo, side: Side) {
        self.send(wire, side, Payload::End);
        if let Some(Wire { ways, .. }) = self.wires.get_mut(&wire) {
            ways[1 - side].queue.clear();
            ways[1 - side].open = false;
        }
    }

    /// Takes what arrives, and says at whom.
    pub(crate) fn arrived(&mut self, wire: WireNo, side: Side) -> Option<(End, Payload)> {
        let found = self.wires.get_mut(&wire)?;
        let payload = found.ways[side].queue.pop_front()?;
        let end = found.ends[1 - side];
        if found.ways.iter().all(|way| !way.open && way.queue.is_empty()) {
            self.wires.remove(&wire);
        }
        Some((end, payload))
    }

    /// The end that is to hear the next thing on this way.
    pub(crate) fn receiver(&self, wire: WireNo, side: Side) -> Option<End> {
        self.wires.get(&wire).map(|found| found.ends[1 - side])
    }

    /// A caller is answered by the node in the life it is in.
    pub(crate) fn settle(&mut self, wire: WireNo, side: Side, home: Home) {
        if let Some(found) = self.wires.get_mut(&wire) {
            found.ends[1 - side] = End::Node(home);
        }
    }

    /// Of what is under way, some prefix gets through; then both ends hear that it is over, or neither ever does.
    pub(crate) fn cut(&mut self, wire: WireNo, heard: bool) {
        let Some(found) = self.wires.get(&wire) else { return };
        let lengths = [found.ways[0].queue.len(), found.ways[1].queue.len()];
        let kept = lengths.map(|length| self.chance.index(length + 1));
        for side in [0, 1] {
            let Some(found) = self.wires.get_mut(&wire) else { return };
            // An end that is said already is not taken back.
            if found.ways[side].open {
                found.ways[side].queue.truncate(kept[side]);
            }
            if heard {
                found.hole = false;
                self.send(wire, side, Payload::End);
            } else {
                found.hole = true;
            }
        }
    }

    /// The connections that have this end; with their side.
    pub(crate) fn wires_of(&self, is: impl Fn(&End) -> bool) -> Vec<(WireNo, Side)> {
        let sides = self.wires.iter().flat_map(|(&no, wire)| {
            let open = |side: &Side| wire.ways[*side].open;
            [0, 1].into_iter().filter(open).filter(|&side| is(&wire.ends[side])).map(move |side| (no, side))
        });
        sides.collect()
    }

    pub(crate) fn all_wires(&self) -> Vec<WireNo> {
        self.wires.keys().copied().collect()
    }

    pub(crate) fn holes(&self) -> Vec<WireNo> {
        self.wires.iter().filter(|(_, wire)| wire.hole).map(|(&no, _)| no).collect()
    }
}

fn fate(chance: &mut Chance, weather: &Weather) -> Fate {
    if chance.happens(weather.call_lost) {
        Fate::Lost
    } else if chance.happens(weather.answer_lost) {
        Fate::Unheard
    } else {
        Fate::Through
    }
}

/// What the database does, and what whoever asked hears of it.
fn work_of<T: 'static>(
    mut work: impl FnMut(&mut Postgres, Time) -> Attempt<T> + 'static,
    then: impl FnOnce(Result<T, Error>) -> node::Event + 'static,
) -> Work {
    let mut then = Some(then);
    let mut answer = move |result| then.take().map(|then| then(result));
    Box::new(move |postgres, now, fate| {
        if fate == Fate::Lost {
            return answer(Err(Error::Away));
        }
        match work(postgres, now) {
            Attempt::Blocked => None,
            Attempt::Done(_) if fate == Fate::Unheard => answer(Err(Error::Away)),
            Attempt::Done(result) => answer(result),
        }
    })
}
