//! The actor of one core, around its twin, and the places at the core that outlive it: `actors/bank.rs` and
//! `actors/banks.rs` without their sockets.

use std::collections::VecDeque;
use std::time::Duration;

use wakala::bank::{Bank as Twin, Draft, Effect, Event as Twinned, Limits};
use wakala::card::Pan;
use wakala::id::PartitionNo;
use wakala::iso8583::Bytes;
use wakala::time::Time;
use wakala::transaction::Transaction;

use super::node::{self, ActorNo, Node};
use super::stage::{About, DIALECT, End, Payload, Stage, WireNo};

/// One core as its supervisor sees it, with its gate.
pub(crate) struct Bank {
    /// 0 between two lives.
    actor: ActorNo,
    deaths: u32,
    twin: Option<Twin>,
    connection: Option<(u64, WireNo)>,
    open: bool,
    free: usize,
    wakes_at: Option<Time>,
}

impl Default for Bank {
    fn default() -> Self {
        Self { actor: 0, deaths: 0, twin: None, connection: None, open: false, free: PLACES, wakes_at: None }
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    /// The card's number is open, or cannot be opened.
    Prepared(Box<Draft>, bool),
    Ask(PartitionNo, Box<Transaction>),
    Reverse(PartitionNo, Box<Transaction>),
    Wake,
}

/// Places at each core: few, so that requests wait for room.
const PLACES: usize = 4;

const LIMITS: Limits = Limits {
    requests: 2 * PLACES,
    reversals: 3,
    remembered: 24,
    connect: Duration::from_secs(5),
    sign_on: Duration::from_secs(10),
    idle: Duration::from_secs(30),
    echo: Duration::from_secs(10),
    answer: Duration::from_secs(20),
    memory: Duration::from_secs(600),
    backoff_min: Duration::from_millis(500),
    backoff_max: Duration::from_secs(30),
    breaker_after: 5,
    breaker: Duration::from_secs(15),
    unmatched: 5,
};

impl Bank {
    pub(crate) fn holds(&self, wire: WireNo) -> bool {
        self.connection.is_some_and(|(_, held)| held == wire)
    }

    /// Up to so many places; none while the core is not signed on.
    pub(crate) fn take(&mut self, wanted: usize) -> usize {
        let taken = if self.open { wanted.min(self.free) } else { 0 };
        self.free -= taken;
        taken
    }

    pub(crate) fn give_back(&mut self, count: usize) {
        self.free += count;
        debug_assert!(self.free <= PLACES, "more places than there are");
    }
}

impl Node {
    pub(crate) fn start_bank(&mut self, core: usize, stage: &mut Stage) {
        let actor = self.next_actor();
        let bank = &mut self.banks[core];
        if bank.actor == 0 {
            bank.actor = actor;
            bank.twin = Some(Twin::new(DIALECT.clone(), LIMITS, stage.now));
            bank.wakes_at = None;
            self.happened(core, Twinned::Wake, stage);
        }
    }

    /// It dies of a panic; its last words are said nevertheless.
    pub(crate) fn end_bank(&mut self, core: usize, stage: &mut Stage) {
        let no = self.no;
        let bank = &mut self.banks[core];
        let Some(mut twin) = bank.twin.take() else { return };
        stage.tell_world(|| format!("node {no}: the bank of core {core} panics"));
        (bank.actor, bank.open) = (0, false);
        bank.deaths += 1;
        let backoff = Duration::from_millis(50) * 2_u32.pow(bank.deaths.min(6));
        if let Some((_, wire)) = bank.connection.take() {
            stage.close(wire, 0);
        }
        for effect in twin.handle(Twinned::Stop, stage.now) {
            if let Effect::Tell { partition, event } = effect {
                self.tell_partition(partition, event, stage);
            }
        }
        stage.node(backoff, self.home(), node::Event::StartBank(core));
    }

    /// Sends a request to its core. What cannot be taken comes back as unsent.
    pub(crate) fn ask_bank(&mut self, number: PartitionNo, transaction: Box<Transaction>, stage: &mut Stage) {
        let core = stage.village.core(&transaction.core);
        if self.banks[core].twin.is_none() {
            let event = wakala::partition::Event::Unsent { transaction: transaction.id };
            return self.tell_partition(number, event, stage);
        }
        self.post_to_bank(core, Event::Ask(number, transaction), stage);
    }

    /// What cannot be taken is repeated by the partition when it is due.
    pub(crate) fn reverse_at_bank(&mut self, number: PartitionNo, transaction: Box<Transaction>, stage: &mut Stage) {
        let core = stage.village.core(&transaction.core);
        if self.banks[core].twin.is_some() {
            self.post_to_bank(core, Event::Reverse(number, transaction), stage);
        }
    }

    /// Into the actor's mailbox, which keeps the order.
    fn post_to_bank(&mut self, core: usize, event: Event, stage: &mut Stage) {
        let actor = self.banks[core].actor;
        stage.node(Duration::from_millis(1), self.home(), node::Event::Bank(core, actor, event));
    }

    pub(crate) fn bank(&mut self, core: usize, actor: ActorNo, event: Event, stage: &mut Stage) {
        if self.banks[core].actor != actor {
            // A request that is dropped unread says by that that it did not leave.
            if let Event::Ask(number, transaction) = event {
                let unsent = wakala::partition::Event::Unsent { transaction: transaction.id };
                self.tell_partition(number, unsent, stage);
            }
            return;
        }
        let event = match event {
            Event::Prepared(draft, well) => {
                let ticket = draft.ticket;
                Twinned::Prepared { ticket, message: if well { encode(&draft) } else { Err("no HSM".to_owned()) } }
            }
            Event::Ask(partition, transaction) => Twinned::Ask { partition, transaction },
            Event::Reverse(partition, transaction) => Twinned::Reverse { partition, transaction },
            Event::Wake => {
                self.banks[core].wakes_at = None;
                Twinned::Wake
            }
        };
        self.happened(core, event, stage);
    }

    pub(crate) fn bank_heard(&mut self, core: usize, wire: WireNo, payload: Payload, stage: &mut Stage) {
        let Some((link, _)) = self.banks[core].connection else { return };
        let event = match payload {
            Payload::Open => Twinned::Up { link },
            Payload::Iso { bytes, .. } => Twinned::Received { link, message: bytes },
            Payload::End => {
                self.banks[core].connection = None;
                stage.close(wire, 0);
                Twinned::Down { link, why: "closed by the core".to_owned(), lot: stage.chance.byte() }
            }
            Payload::Mqtt(_) => return,
        };
        self.happened(core, event, stage);
    }

    fn happened(&mut self, core: usize, event: Twinned, stage: &mut Stage) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(twin) = self.banks[core].twin.as_mut() else { return };
            for effect in twin.handle(event, stage.now) {
                events.extend(self.do_for_bank(core, effect, stage));
            }
        }
        self.bank_sleeps(core, stage);
    }

    fn do_for_bank(&mut self, core: usize, effect: Effect, stage: &mut Stage) -> Option<Twinned> {
        let home = self.home();
        let bank = &mut self.banks[core];
        match effect {
            Effect::Connect { link } => {
                let wire = stage.connect(End::Node(home), End::Core { no: core });
                bank.connection = Some((link, wire));
            }
            Effect::Close { link, why } => {
                if let Some((_, wire)) = bank.connection.take() {
                    stage.close(wire, 0);
                }
                stage.tell_world(|| format!("node {}: the link to core {core} is closed: {why}", home.node));
                return Some(Twinned::Down { link, why, lot: stage.chance.byte() });
            }
            Effect::Prepare(draft) => {
                let wait = if stage.chance.happens(stage.weather.hsm_slow) { 25_000 } else { 5 };
                let wait = stage.chance.wait(wait);
                let well = !stage.chance.happens(stage.weather.hsm_fault);
                let prepared = Event::Prepared(Box::new(draft), well);
                stage.node(wait, home, node::Event::Bank(core, bank.actor, prepared));
            }
            Effect::Write { message, .. } => {
                if let Some((_, wire)) = bank.connection {
                    stage.send_iso(wire, 0, message);
                }
            }
            Effect::Tell { partition, event } => {
                let heard = || format!("node {}: the bank says {event:?}", home.node);
                if let Some(id) = about(&event) {
                    stage.tell(|| About::Transaction(id), heard);
                }
                self.tell_partition(partition, event, stage);
            }
            Effect::Gate { open } => bank.open = open,
            Effect::Unmatched(unmatched) => {
                stage
                    .tell_world(|| format!("node {}: unmatched: {} {:?}", home.node, unmatched.why, unmatched.summary));
            }
            Effect::Unfit { .. } => {}
        }
        None
    }

    fn bank_sleeps(&mut self, core: usize, stage: &mut Stage) {
        let home = self.home();
        let bank = &mut self.banks[core];
        if let Some(at) = bank.twin.as_ref().and_then(Twin::poll_timeout)
            && bank.wakes_at.is_none_or(|set| set > at)
        {
            bank.wakes_at = Some(at);
            let wait = at.since(stage.now).max(Duration::from_millis(1));
            stage.node(wait, home, node::Event::Bank(core, bank.actor, Event::Wake));
        }
    }
}

fn encode(draft: &Draft) -> Result<Bytes, String> {
    let digits = std::str::from_utf8(&draft.transaction.card.sealed.0).expect("digits");
    let pan = Pan::new(digits).map_err(|error| error.to_string())?;
    draft.encode(&DIALECT, &pan).map_err(|unfit| unfit.to_string())
}

fn about(event: &wakala::partition::Event) -> Option<wakala::id::TransactionId> {
    use wakala::partition::Event;
    match event {
        Event::Answer { transaction, .. } | Event::Unsent { transaction } | Event::Lost { transaction } => {
            Some(*transaction)
        }
        Event::Record { .. } | Event::Unreadable { .. } | Event::Wake => None,
    }
}
