//! A node: its leases, its supervisor, its sweeper, and the living actors of its three rooms. All of it is gone when it
//! loses its power; all of it is old when it wakes from a pause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wakala::id::{PartitionNo, TerminalId};
use wakala::time::Time;

use super::postgres::Error;
use super::stage::{About, End, Home, Payload, Side, Stage, What, WireNo};
use super::{bank, edge, partition, session};

/// Which life of an actor: what was meant for an earlier one does not arrive.
pub(crate) type ActorNo = u64;

#[derive(Debug)]
pub(crate) enum Event {
    Session(WireNo, session::Event),
    Partition(PartitionNo, ActorNo, Box<partition::Event>),
    Bank(usize, ActorNo, bank::Event),
    Edge(edge::Event),
    /// Renew the leases.
    Renew,
    Claimed(Result<Vec<PartitionNo>, Error>),
    Sweep,
    /// `sessions.overtaken_every` has passed.
    Look,
    /// Which of the sessions held here have a later connection.
    Overtaken(Result<Vec<(TerminalId, i64)>, Error>),
    Swept(Result<Vec<TerminalId>, Error>),
    /// Start what its supervisor waits to start again.
    StartPartition(PartitionNo),
    StartBank(usize),
    /// The connections of the last life are forgotten, as far as that was possible: let terminals in.
    Listen,
    /// Nothing that anybody waits for.
    Done,
}

/// See the module's text.
pub(crate) struct Node {
    pub(crate) no: usize,
    pub(crate) life: u32,
    pub(crate) up: bool,
    /// Terminals are let in.
    pub(crate) listening: bool,
    pub(crate) paused_until: Option<Time>,
    pub(crate) sessions: BTreeMap<WireNo, session::Session>,
    /// The session of each terminal that is connected here, with its epoch.
    pub(crate) registry: BTreeMap<TerminalId, (i64, WireNo)>,
    pub(crate) partitions: BTreeMap<PartitionNo, partition::Partition>,
    owned: BTreeSet<PartitionNo>,
    pub(crate) banks: Vec<bank::Bank>,
    pub(crate) actors: ActorNo,
}

/// `partitions.renew`, `receipts.sweep` and `receipts.waited` as they are by default.
const RENEW: Duration = Duration::from_secs(3);
const SWEEP: Duration = Duration::from_secs(2);
const WAITED: Duration = Duration::from_secs(2);
/// `sessions.overtaken_every` as it is by default.
const LOOK: Duration = Duration::from_secs(5);

impl Node {
    pub(crate) fn new(no: usize) -> Self {
        Self {
            no,
            life: 0,
            up: false,
            listening: false,
            paused_until: None,
            sessions: BTreeMap::new(),
            registry: BTreeMap::new(),
            partitions: BTreeMap::new(),
            owned: BTreeSet::new(),
            banks: Vec::new(),
            actors: 0,
        }
    }

    pub(crate) fn start(&mut self, stage: &mut Stage) {
        if self.up {
            return;
        }
        self.life += 1;
        self.up = true;
        let no = self.no;
        stage.tell_world(|| format!("node {no} starts"));
        self.banks = stage.village.cores.iter().map(|_| bank::Bank::default()).collect();
        for core in 0..self.banks.len() {
            stage.node(Duration::ZERO, self.home(), Event::StartBank(core));
        }
        stage.ask(self.home(), move |postgres, now| postgres.forget_connections(no, now), |_| Event::Listen);
        stage.node(Duration::ZERO, self.home(), Event::Renew);
        stage.node(SWEEP, self.home(), Event::Sweep);
        stage.node(LOOK, self.home(), Event::Look);
    }

    /// Power off: whatever was in memory is gone, whatever was sent is on its way.
    pub(crate) fn crash(&mut self, stage: &mut Stage) {
        if !self.up {
            return;
        }
        let home = self.home();
        stage.tell_world(|| format!("node {} loses its power", home.node));
        *self = Self { life: self.life, actors: self.actors, ..Self::new(self.no) };
        for (wire, _) in stage.wires_of(|end| *end == End::Node(home)) {
            let heard = stage.chance.happens(0.7);
            stage.cut(wire, heard);
        }
        // A process that was killed is noticed at once, a machine without power not so soon.
        let wait = stage.chance.wait(8_000);
        stage.after(wait, What::PostgresDrops(home));
    }

    pub(crate) fn pause(&mut self, until: Time, stage: &mut Stage) {
        if self.up {
            let no = self.no;
            stage.tell_world(|| format!("node {no} is paused until {until:?}"));
            self.paused_until = Some(until);
            stage.slept = true;
        }
    }

    /// One actor dies of a panic.
    pub(crate) fn crash_actor(&mut self, stage: &mut Stage) {
        match stage.chance.index(3) {
            0 => {
                let wires: Vec<WireNo> = self.sessions.keys().copied().collect();
                if !wires.is_empty() {
                    let wire = wires[stage.chance.index(wires.len())];
                    self.end_session(wire, stage);
                }
            }
            1 => {
                let numbers: Vec<PartitionNo> = self.partitions.keys().copied().collect();
                if !numbers.is_empty() {
                    let number = numbers[stage.chance.index(numbers.len())];
                    self.end_partition(number, "a panic", stage);
                }
            }
            _ => {
                let core = stage.chance.index(self.banks.len());
                self.end_bank(core, stage);
            }
        }
    }

    pub(crate) fn next_actor(&mut self) -> ActorNo {
        self.actors += 1;
        self.actors
    }

    pub(crate) fn handle(&mut self, event: Event, stage: &mut Stage) {
        match event {
            Event::Session(wire, event) => self.session(wire, event, stage),
            Event::Partition(number, actor, event) => self.partition(number, actor, *event, stage),
            Event::Bank(core, actor, event) => self.bank(core, actor, event, stage),
            Event::Edge(event) => self.edge(event, stage),
            Event::Renew => {
                let no = self.no;
                stage.ask(self.home(), move |postgres, now| postgres.claim(no, now), Event::Claimed);
            }
            Event::Claimed(claimed) => {
                if let Ok(owned) = claimed {
                    self.own(owned.into_iter().collect(), stage);
                }
                stage.node(RENEW, self.home(), Event::Renew);
            }
            Event::Sweep => {
                stage.ask(self.home(), |postgres, now| postgres.terminals_waiting(WAITED, now), Event::Swept);
                if stage.chance.happens(0.1) {
                    stage.ask(self.home(), |postgres, now| postgres.expire_sessions(now), |_| Event::Done);
                }
            }
            Event::Swept(swept) => {
                for terminal in swept.into_iter().flatten() {
                    if let Some(&(_, wire)) = self.registry.get(&terminal) {
                        self.session(wire, session::Event::Look, stage);
                    }
                }
                stage.node(SWEEP, self.home(), Event::Sweep);
            }
            Event::Look => {
                let held: Vec<_> =
                    self.registry.iter().map(|(terminal, &(epoch, _))| (terminal.clone(), epoch)).collect();
                stage.ask_aside(self.home(), move |postgres, _| postgres.overtaken(&held), Event::Overtaken);
            }
            Event::Overtaken(overtaken) => {
                for (terminal, epoch) in overtaken.into_iter().flatten() {
                    if let Some(&(present, wire)) = self.registry.get(&terminal)
                        && present == epoch
                    {
                        self.session(wire, session::TAKEN_OVER, stage);
                    }
                }
                stage.node(LOOK, self.home(), Event::Look);
            }
            Event::StartPartition(number) if self.owned.contains(&number) => self.start_partition(number, stage),
            Event::StartBank(core) => self.start_bank(core, stage),
            Event::Listen => self.listening = true,
            Event::StartPartition(_) | Event::Done => {}
        }
    }

    fn own(&mut self, owned: BTreeSet<PartitionNo>, stage: &mut Stage) {
        let no = self.no;
        let gone: Vec<PartitionNo> = self.owned.difference(&owned).copied().collect();
        let new: Vec<PartitionNo> = owned.difference(&self.owned).copied().collect();
        self.owned = owned;
        for number in new {
            stage.tell_world(|| format!("node {no} takes partition {number}"));
            self.start_partition(number, stage);
        }
        for number in gone {
            stage.tell_world(|| format!("node {no} lets go of partition {number}"));
            self.end_partition(number, "another node's", stage);
        }
    }

    /// Something arrives on a connection of this node.
    pub(crate) fn heard(&mut self, wire: WireNo, side: Side, payload: Payload, stage: &mut Stage) {
        if side == 0 {
            // From the side that opened it: a terminal.
            match payload {
                Payload::Open if self.listening => self.greet(wire),
                Payload::Open => stage.close(wire, 1),
                Payload::Mqtt(packet) => self.session(wire, session::Event::Packet(Box::new(packet)), stage),
                Payload::End => self.session(wire, session::Event::Gone, stage),
                Payload::Iso { .. } => {}
            }
        } else if let Some(core) = self.banks.iter().position(|bank| bank.holds(wire)) {
            self.bank_heard(core, wire, payload, stage);
        }
    }

    /// Wakes the session of a terminal, if it is here.
    pub(crate) fn hint(&mut self, hint: super::postgres::Hint, stage: &mut Stage) {
        if let Some(&(_, wire)) = self.registry.get(&hint.terminal)
            && !stage.chance.happens(stage.weather.hint_lost)
        {
            self.session(wire, session::Event::Hint(hint.seq, hint.envelope), stage);
        }
    }

    pub(crate) fn told(&self, terminal: &TerminalId, text: impl FnOnce() -> String, stage: &mut Stage) {
        let no = self.no;
        stage.tell(|| About::Terminal(terminal.clone()), || format!("node {no}: {}", text()));
    }
}

impl Home {
    pub(crate) fn is(self, node: &Node) -> bool {
        node.up && node.life == self.life
    }
}
