//! The world of one seed: who lives in it, what happens to them, and how it ends.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use wakala::id::{AgentId, CoreId, TerminalId, TransactionId};
use wakala::receipt::Stage as Step;
use wakala::time::Time;
use wakala::transaction::State;

use super::auditor::Remains;
use super::chance::{Chance, Weather};
use super::core::{self, Core};
use super::log::{self, Log};
use super::node::Node;
use super::postgres::Postgres;
use super::stage::{About, Call, End, Enrolment, Fate, Home, Side, Stage, Village, Violation, What, WireNo};
use super::terminal::{self, Terminal};

/// What happens to a world from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NodeCrash,
    NodeStart(usize),
    NodePause,
    ActorCrash,
    Cut,
    Hole,
    PostgresAway,
    LogAway,
    CoreRestart,
    TerminalCrash,
}

/// What each agent's float holds at first, minor units: enough for some deposits, not for all.
pub(crate) const FLOAT: i64 = 90_000_000;

/// How long there are faults, at most.
const PERIOD: Duration = Duration::from_secs(90);
/// How long a node sleeps, at most.
const PAUSE_MAX: Duration = Duration::from_secs(40);
/// After the end of the faults: before the auditor comes, and how long she waits.
const REST: Duration = Duration::from_secs(60);
const REST_MAX: Duration = Duration::from_secs(600);
/// More things than happen in any world that goes on.
const EVENTS_MAX: u64 = 2_000_000;

pub(crate) struct World {
    stage: Stage,
    terminals: Vec<Terminal>,
    nodes: Vec<Node>,
    cores: Vec<Core>,
    postgres: Postgres,
    log: Log,
    /// The last life of each node whose connections the database has dropped.
    dropped: Vec<u32>,
    healed_at: Option<Time>,
}

/// How a seed came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) events: u64,
    pub(crate) requests: u64,
    pub(crate) digest: u64,
    pub(crate) tally: Tally,
    pub(crate) violation: Option<Violation>,
    pub(crate) story: Vec<String>,
}

/// What happened, by name: a world in which nothing happens proves nothing.
pub(crate) type Tally = BTreeMap<&'static str, usize>;

/// How much of the story is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Story {
    Untold,
    /// What the violation is about.
    Concerned,
    Whole,
}

/// Lives through one seed.
pub(crate) fn live(seed: u64, story: Story) -> Outcome {
    let mut world = World::new(seed, story != Story::Untold);
    let lived = catch_unwind(AssertUnwindSafe(|| world.live()));
    let violation = match lived {
        Ok(violation) => violation,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let text = text.unwrap_or_else(|| "a panic".to_owned());
            Some(Violation { invariant: "nothing panics", text, about: About::World })
        }
    };
    let stage = &world.stage;
    let (events, requests, digest) = (stage.events, stage.requests, stage.digest);
    let story = world.story(violation.as_ref().filter(|_| story != Story::Whole).map(|violation| &violation.about));
    let tally = world.tally();
    Outcome { events, requests, digest, tally, violation, story }
}

impl World {
    fn new(seed: u64, told: bool) -> Self {
        let mut chance = Chance::new(seed);
        let weather = if chance.happens(0.03) { Weather::calm() } else { Weather::drawn(&mut chance) };
        let village = village(&mut chance);
        let stan = u32::try_from(chance.within(0, 999_999)).unwrap_or(0);
        let mut stage = Stage::new(chance, Chance::aside(seed), weather, village, told);
        let postgres = Postgres::new(&stage.village, FLOAT, stan, stage.now);
        let mut nodes: Vec<Node> = (0..stage.village.nodes).map(Node::new).collect();
        for node in &mut nodes {
            node.start(&mut stage);
        }
        let terminals = (0..stage.village.terminals.len())
            .map(|no| {
                let requests = stage.chance.within(1, 6);
                Terminal::new(no, &mut stage, requests, PERIOD)
            })
            .collect();
        let cores = (0..stage.village.cores.len()).map(Core::new).collect();
        let dropped = vec![0; nodes.len()];
        let mut world =
            Self { stage, terminals, nodes, cores, postgres, log: Log::default(), dropped, healed_at: None };
        world.schedule_faults();
        world
    }

    fn live(&mut self) -> Option<Violation> {
        while let Some(what) = self.stage.next() {
            if let Some(violation) = self.happens(what) {
                return violation;
            }
            let found = self.stage.violation.take().or_else(|| self.postgres.violation.take());
            if found.is_some() {
                return found;
            }
            if self.stage.events > EVENTS_MAX {
                let text = format!("{EVENTS_MAX} events and no end");
                return Some(Violation { invariant: "the world goes on", text, about: About::World });
            }
        }
        None
    }

    /// `Some` when the world has ended.
    fn happens(&mut self, what: What) -> Option<Option<Violation>> {
        let stage = &mut self.stage;
        match what {
            What::Terminal(no, event) => self.terminals[no].handle(event, stage),
            What::Node(home, event) => {
                let node = &mut self.nodes[home.node];
                if home.is(node) {
                    match node.paused_until {
                        Some(until) if until > stage.now => stage.at(until, What::Node(home, event)),
                        _ => node.handle(*event, stage),
                    }
                }
            }
            What::Postgres(call) => self.postgres(call),
            What::PostgresDrops(home) => {
                let dropped = &mut self.dropped[home.node];
                *dropped = home.life.max(*dropped);
                self.postgres.drop_connections(home);
            }
            What::PostgresUndoes(work) => self.postgres.roll_back(work),
            What::Log(call) => self.log.call(call, stage),
            What::Core(no, event) => self.cores[no].handle(event, stage),
            What::Arrives(wire, side) => self.arrives(wire, side),
            What::Fault(fault) => self.fault(fault),
            What::Heals => self.heal(),
            What::Looks => return self.look(),
        }
        None
    }

    fn postgres(&mut self, mut call: Call) {
        let stage = &mut self.stage;
        let gone = self.dropped[call.home.node] >= call.home.life;
        let fate = if gone || self.postgres.is_away(stage.now) { Fate::Lost } else { call.fate };
        let event = (call.work)(&mut self.postgres, stage.now, fate);
        match event {
            Some(event) => {
                let wait = stage.latency_of(&call);
                stage.node(wait, call.home, event);
            }
            None if stage.now < call.until => stage.after(Duration::from_millis(20), What::Postgres(call)),
            None => {
                call.fate = Fate::Lost;
                self.postgres(call);
            }
        }
    }

    fn arrives(&mut self, wire: WireNo, side: Side) {
        let stage = &mut self.stage;
        // A paused node reads when it wakes.
        if let Some(End::Node(Home { node, .. })) = stage.receiver(wire, side)
            && let Some(until) = self.nodes[node].paused_until.filter(|&until| until > stage.now)
        {
            return stage.at(until, What::Arrives(wire, side));
        }
        let Some((end, payload)) = stage.arrived(wire, side) else { return };
        match end {
            End::Terminal { no, life } => self.terminals[no].heard(wire, life, payload, stage),
            End::Core { no } => self.cores[no].heard(wire, side, payload, stage),
            End::Node(home) => {
                let node = &mut self.nodes[home.node];
                // A terminal calls an address: whoever lives there answers, or nobody.
                if node.up && (home.life == node.life || home.life == 0) {
                    stage.settle(wire, side, node.home());
                    node.heard(wire, side, payload, stage);
                } else {
                    stage.close(wire, 1 - side);
                }
            }
        }
    }

    fn schedule_faults(&mut self) {
        let weather = self.stage.weather.clone();
        for (fault, per_minute) in [
            (Fault::NodeCrash, weather.node_crash),
            (Fault::NodePause, weather.node_pause),
            (Fault::ActorCrash, weather.actor_crash),
            (Fault::Cut, weather.cut),
            (Fault::Hole, weather.hole),
            (Fault::PostgresAway, weather.postgres_away),
            (Fault::LogAway, weather.log_away),
            (Fault::CoreRestart, weather.core_restart),
            (Fault::TerminalCrash, weather.terminal_crash),
        ] {
            if per_minute == 0.0 {
                continue;
            }
            let mut at = self.stage.now + self.stage.chance.until_next(per_minute);
            while at.since(self.stage.now) < PERIOD {
                self.stage.at(at, What::Fault(fault));
                at = at + self.stage.chance.until_next(per_minute);
            }
        }
        self.stage.after(PERIOD, What::Heals);
    }

    fn fault(&mut self, fault: Fault) {
        let stage = &mut self.stage;
        match fault {
            Fault::NodeStart(no) => self.nodes[no].start(stage),
            Fault::NodeCrash => {
                let no = stage.chance.index(self.nodes.len());
                self.nodes[no].crash(stage);
                let wait = stage.chance.wait(20_000);
                stage.after(wait, What::Fault(Fault::NodeStart(no)));
            }
            Fault::NodePause => {
                let no = stage.chance.index(self.nodes.len());
                let until = stage.now + stage.chance.wait(u64::try_from(PAUSE_MAX.as_millis()).unwrap_or(0));
                self.nodes[no].pause(until, stage);
            }
            Fault::ActorCrash => {
                let no = stage.chance.index(self.nodes.len());
                if self.nodes[no].up && self.nodes[no].paused_until.is_none_or(|until| until <= stage.now) {
                    self.nodes[no].crash_actor(stage);
                }
            }
            Fault::Cut | Fault::Hole => {
                let wires = stage.all_wires();
                if !wires.is_empty() {
                    let wire = wires[stage.chance.index(wires.len())];
                    stage.tell_world(|| format!("connection {wire}: {fault:?}"));
                    stage.cut(wire, fault == Fault::Cut);
                }
            }
            Fault::PostgresAway => {
                let wait = stage.chance.wait(10_000);
                stage.tell_world(|| format!("the database starts again, away for {wait:?}"));
                self.postgres.restart(stage.now + wait);
            }
            Fault::LogAway => {
                let wait = stage.chance.wait(10_000);
                self.log.call(log::Call::Leaves(wait), stage);
            }
            Fault::CoreRestart => {
                let no = stage.chance.index(self.cores.len());
                self.cores[no].handle(core::Event::Restarts, stage);
            }
            Fault::TerminalCrash => {
                let no = stage.chance.index(self.terminals.len());
                self.terminals[no].handle(terminal::Event::Crash, stage);
            }
        }
    }

    /// The faults are over: what was broken is mended, and nobody forgets what happened.
    fn heal(&mut self) {
        let stage = &mut self.stage;
        stage.tell_world(|| "the faults are over".to_owned());
        stage.weather = Weather::calm();
        self.healed_at = Some(stage.now);
        self.log.heal();
        self.postgres.away_until = None;
        for core in &mut self.cores {
            // One core in some worlds stays away beyond everybody's patience.
            let away = stage.chance.happens(0.1).then_some(2 * REST);
            core.heal(away, stage);
        }
        for node in &mut self.nodes {
            node.start(stage);
        }
        for wire in stage.holes() {
            stage.cut(wire, true);
        }
        for terminal in &mut self.terminals {
            terminal.handle(terminal::Event::Heal, stage);
        }
        stage.after(REST, What::Looks);
    }

    fn look(&mut self) -> Option<Option<Violation>> {
        let Self { terminals, cores, postgres, log, stage, .. } = self;
        let remains = Remains { terminals, cores, postgres, log };
        let awake = super::stage::START + PERIOD + PAUSE_MAX;
        if let Some(left) = remains.impatient(awake, stage.now) {
            return Some(Some(left));
        }
        match remains.unsettled() {
            None => Some(remains.check().err()),
            Some(left) if self.healed_at.is_some_and(|at| self.stage.now >= at + REST_MAX) => {
                let text = format!("{}; locked: {}", left.text, self.postgres.locked());
                Some(Some(Violation { text, ..left }))
            }
            Some(_) => {
                self.stage.after(Duration::from_secs(5), What::Looks);
                None
            }
        }
    }

    fn tally(&self) -> Tally {
        let rows = |state| self.postgres.transactions.values().filter(|row| row.state == state).count();
        let asked = |is: fn(&terminal::Asked) -> bool| {
            self.terminals.iter().flat_map(|terminal| &terminal.journal).filter(|asked| is(asked)).count()
        };
        let entries = &self.postgres.receipts;
        Tally::from([
            ("approved", rows(State::Approved)),
            ("declined", rows(State::Declined)),
            ("reversed", rows(State::Reversed)),
            ("junk", asked(|asked| asked.sort == terminal::Sort::Junk)),
            ("keys used again", asked(|asked| matches!(asked.sort, terminal::Sort::Reuse(_)) && !asked.given_up)),
            ("wrong PINs", asked(|asked| asked.sort == terminal::Sort::WrongPin)),
            ("notices", entries.keys().filter(|(_, stage)| *stage == Step::Notice).count()),
            ("notices withdrawn", entries.values().filter(|receipt| receipt.withdrawn).count()),
            ("late words", self.postgres.late.len()),
            ("records parked", self.postgres.parked.len()),
            ("late owners fenced", self.stage.fenced),
            ("bookings taken back", self.cores.iter().map(Core::taken_back).sum()),
            ("requests after their reversal", self.cores.iter().map(Core::came_after).sum()),
        ])
    }

    /// The lines about the transaction concerned and the world around it, or all.
    fn story(&self, about: Option<&About>) -> Vec<String> {
        let asked = |matches: &dyn Fn(&Terminal, &terminal::Asked) -> bool| {
            let all = self.terminals.iter().flat_map(|t| t.journal.iter().map(move |asked| (t, asked)));
            all.filter(|(t, asked)| matches(t, asked))
                .map(|(t, asked)| (t.id(asked), t.enrolled.id.clone(), asked.amount))
                .next()
        };
        let concerned: Option<(TransactionId, TerminalId, u64)> = match about {
            Some(About::Transaction(id)) => asked(&|t, asked| t.id(asked) == *id),
            Some(About::Amount(amount)) => asked(&|_, asked| asked.amount == *amount),
            _ => None,
        };
        let mine: Vec<TransactionId> = match about {
            Some(About::Terminal(terminal)) => {
                let whose = self.terminals.iter().filter(|t| t.enrolled.id == *terminal);
                whose.flat_map(|t| t.journal.iter().map(|asked| t.id(asked))).collect()
            }
            _ => Vec::new(),
        };
        let wanted = |line: &About| match (about, &concerned, line) {
            (_, _, About::Transaction(line)) if mine.contains(line) => true,
            (_, _, About::World) | (None, _, _) => true,
            (Some(_), Some((id, ..)), About::Transaction(line)) => line == id,
            (Some(_), Some((_, terminal, _)), About::Terminal(line)) => line == terminal,
            (Some(_), Some((.., amount)), About::Amount(line)) => line == amount,
            (Some(About::Terminal(terminal)), None, About::Terminal(line)) => terminal == line,
            _ => false,
        };
        let lines = self.stage.story().iter().filter(|(_, line, _)| wanted(line));
        lines.map(|(at, _, text)| format!("{:>9.3} s  {text}", at.since(super::stage::START).as_secs_f64())).collect()
    }
}

fn village(chance: &mut Chance) -> Village {
    let name = |letter: char, no: usize| format!("{letter}{}", no + 1);
    let agents: Vec<AgentId> = (0..=chance.index(2)).map(|no| AgentId::new(&name('A', no)).expect("a name")).collect();
    let cores: Vec<CoreId> = (0..=chance.index(2)).map(|no| CoreId::new(&name('C', no)).expect("a name")).collect();
    let terminals = (0..=chance.index(5)).map(|no| Enrolment {
        id: TerminalId::new(&name('T', no)).expect("a name"),
        agent: agents[chance.index(agents.len())].clone(),
        core: chance.index(cores.len()),
    });
    let terminals: Vec<Enrolment> = terminals.collect();
    let partitions = u16::try_from(chance.within(1, 4)).expect("few");
    let nodes = 1 + chance.index(3);
    Village { terminals, agents, cores, partitions, nodes }
}
