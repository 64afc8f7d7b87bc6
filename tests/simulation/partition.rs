//! The actor of one partition, around its twin: `actors/partition.rs` step by step. Begin, decide, commit, act; whatever
//! fails ends it, and its supervisor loads the rows again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wakala::id::{Epoch, Offset, PartitionNo, TransactionId};
use wakala::partition::{Act, Event as Twinned, Partition as Twin, Supply};
use wakala::record::Record;
use wakala::time::Time;
use wakala::transaction::{Patience, State, Transaction};

use super::log::{Away, Records};
use super::node::{self, ActorNo, Node};
use super::postgres::{Error, Hint, Work};
use super::stage::{About, Stage, What};
use super::{edge, log};

/// One partition as its supervisor sees it.
pub(crate) struct Partition {
    actor: ActorNo,
    deaths: u32,
    /// None while it loads.
    living: Option<Living>,
}

struct Living {
    twin: Twin,
    epoch: Epoch,
    inbox: VecDeque<Twinned>,
    /// It waits for records.
    reading: bool,
    busy: bool,
    /// Places held at each core, by the transaction that holds them.
    places: BTreeMap<TransactionId, usize>,
    wakes_at: Option<Time>,
}

#[derive(Debug)]
pub(crate) enum Event {
    Loaded(Result<(Epoch, Offset, Vec<Transaction>), Error>),
    Read(Result<Records, Away>),
    ReadAgain,
    Begun(Batch, Result<Work, Error>),
    Committed(Batch, Vec<Act>, Vec<TransactionId>, Result<Vec<Hint>, Error>),
    Heard(Twinned),
    Wake,
}

/// What happens in one go, and how many places it may use at each core.
#[derive(Debug)]
pub(crate) struct Batch {
    events: Vec<Twinned>,
    places: BTreeMap<usize, usize>,
    /// The database transaction, once it is begun.
    work: Option<u64>,
}

/// As by default.
pub(crate) const PATIENCE: Patience = Patience {
    request: Duration::from_secs(300),
    room: Duration::from_secs(30),
    answer: Duration::from_secs(15),
    reversal_first: Duration::from_secs(2),
    reversal_max: Duration::from_secs(60),
};
const BATCH_MAX: usize = 8;
const OPEN_MAX: usize = 6;
const LOG_RETRY: Duration = Duration::from_millis(500);
const ROOM_POLL: Duration = Duration::from_millis(50);

impl Node {
    pub(crate) fn start_partition(&mut self, number: PartitionNo, stage: &mut Stage) {
        if self.partitions.get(&number).is_some_and(|partition| partition.actor != 0) {
            return;
        }
        let actor = self.next_actor();
        let deaths = self.partitions.get(&number).map_or(0, |partition| partition.deaths);
        self.partitions.insert(number, Partition { actor, deaths, living: None });
        let no = self.no;
        stage.ask(
            self.home(),
            move |postgres, now| postgres.load(number, no, now),
            move |loaded| node::Event::Partition(number, actor, Box::new(Event::Loaded(loaded))),
        );
    }

    /// It stops, or dies; while it is this node's its supervisor starts it again.
    pub(crate) fn end_partition(&mut self, number: PartitionNo, why: &str, stage: &mut Stage) {
        let Some(partition) = self.partitions.get_mut(&number).filter(|partition| partition.actor != 0) else { return };
        let no = self.no;
        stage.tell_world(|| format!("node {no}: partition {number} ends: {why}"));
        partition.actor = 0;
        partition.deaths += 1;
        let backoff = Duration::from_millis(50) * 2_u32.pow(partition.deaths.min(6));
        // A commit that is on its way is not called back.
        for core in partition.living.take().into_iter().flat_map(|living| living.places.into_values()) {
            self.banks[core].give_back(1);
        }
        stage.node(backoff, self.home(), node::Event::StartPartition(number));
    }

    pub(crate) fn partition(&mut self, number: PartitionNo, actor: ActorNo, event: Event, stage: &mut Stage) {
        let Some(partition) = self.partitions.get_mut(&number).filter(|partition| partition.actor == actor) else {
            // What a dead actor had begun is dropped with it.
            match event {
                Event::Begun(mut batch, begun) => {
                    batch.work = begun.ok().map(|work| work.number);
                    self.drop_batch(batch, stage);
                }
                Event::Committed(batch, ..) => self.drop_batch(batch, stage),
                _ => {}
            }
            return;
        };
        match (event, partition.living.as_mut()) {
            (Event::Loaded(Ok((epoch, position, open))), None) => {
                partition.deaths = partition.deaths.saturating_sub(1);
                partition.living = Some(Living {
                    twin: Twin::load(number, position, open, PATIENCE, stage.now),
                    epoch,
                    inbox: VecDeque::from([Twinned::Wake]),
                    reading: false,
                    busy: false,
                    places: BTreeMap::new(),
                    wakes_at: None,
                });
                let no = self.no;
                stage.tell_world(|| format!("node {no}: partition {number} loads, epoch {}", epoch.0));
                self.work(number, stage);
            }
            (Event::Loaded(Err(error)), None) => self.end_partition(number, &format!("{error:?}"), stage),
            (Event::Heard(event), Some(living)) => {
                living.inbox.push_back(event);
                self.work(number, stage);
            }
            (Event::Read(read), Some(living)) => {
                living.reading = false;
                match read {
                    Ok(records) => {
                        living.inbox.extend(records.into_iter().map(record));
                        self.work(number, stage);
                    }
                    Err(Away) => {
                        living.reading = true;
                        self.to_partition(number, Event::ReadAgain, LOG_RETRY, stage);
                    }
                }
            }
            (Event::ReadAgain, Some(living)) => {
                living.reading = false;
                self.work(number, stage);
            }
            (Event::Wake, Some(living)) => {
                living.wakes_at = None;
                living.inbox.push_back(Twinned::Wake);
                self.work(number, stage);
            }
            (Event::Begun(batch, Ok(work)), Some(_)) => self.decide(number, batch, work, stage),
            (Event::Committed(batch, acts, gone, Ok(hints)), Some(_)) => {
                self.act_on(number, batch, acts, &gone, hints, stage);
            }
            (Event::Begun(batch, Err(error)) | Event::Committed(batch, _, _, Err(error)), Some(_)) => {
                self.drop_batch(batch, stage);
                stage.fenced += usize::from(error == Error::Fenced);
                self.end_partition(number, &format!("{error:?}"), stage);
            }
            _ => {}
        }
    }

    fn to_partition(&self, number: PartitionNo, event: Event, wait: Duration, stage: &mut Stage) {
        if let Some(partition) = self.partitions.get(&number) {
            stage.node(wait, self.home(), node::Event::Partition(number, partition.actor, Box::new(event)));
        }
    }

    /// What a core said. A word that finds no living partition is lost.
    pub(crate) fn tell_partition(&mut self, number: PartitionNo, event: Twinned, stage: &mut Stage) {
        if self.partitions.get(&number).is_some_and(|partition| partition.living.is_some()) {
            let wait = stage.chance.millis(0, 2);
            self.to_partition(number, Event::Heard(event), wait, stage);
        }
    }

    fn work(&mut self, number: PartitionNo, stage: &mut Stage) {
        let home = self.home();
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        let actor = partition.actor;
        let Some(living) = partition.living.as_mut().filter(|living| !living.busy) else { return };
        living.read_on(number, actor, home, stage);
        let events: Vec<Twinned> = living.inbox.drain(..living.inbox.len().min(BATCH_MAX)).collect();
        let due = living.twin.poll_timeout().is_some_and(|due| due <= stage.now);
        if events.is_empty() && !due {
            return self.sleep(number, stage);
        }
        living.busy = true;
        let wants = living.twin.wants(&events);
        let mut places = BTreeMap::new();
        let mut room = BTreeMap::new();
        for (core, wanted) in wants {
            let no = stage.village.core(&core);
            let taken = self.banks[no].take(wanted);
            places.insert(no, taken);
            room.insert(core, taken);
        }
        let needs = living.twin.needs(&events, &room);
        let (epoch, position) = (living.epoch, living.twin.position());
        let batch = Batch { events, places, work: None };
        stage.ask_open(
            home,
            move |postgres, _| postgres.begin(home, number, epoch, position, &needs),
            move |begun| node::Event::Partition(number, actor, Box::new(Event::Begun(batch, begun))),
        );
    }

    fn sleep(&mut self, number: PartitionNo, stage: &mut Stage) {
        let Some(living) = self.partitions.get_mut(&number).and_then(|partition| partition.living.as_mut()) else {
            return;
        };
        let poll = living.twin.waiting().next().map(|_| stage.now + ROOM_POLL);
        let next = living.twin.poll_timeout().into_iter().chain(poll).min();
        if let Some(at) = next
            && living.wakes_at.is_none_or(|set| set > at)
        {
            living.wakes_at = Some(at);
            let wait = at.since(stage.now).max(Duration::from_millis(1));
            self.to_partition(number, Event::Wake, wait, stage);
        }
    }

    fn decide(&mut self, number: PartitionNo, batch: Batch, work: Work, stage: &mut Stage) {
        let home = self.home();
        let Some(partition) = self.partitions.get_mut(&number) else { return };
        let actor = partition.actor;
        let Some(living) = partition.living.as_mut() else { return };
        let room = batch.places.iter().map(|(&core, &count)| (stage.village.cores[core].clone(), count)).collect();
        let Work { number: begun, known, floats, stans } = work;
        let supply = Supply { now: stage.now, known, floats, stans, room };
        let Batch { events, places, .. } = batch;
        let mut decision = living.twin.handle(events, supply);
        let acts = std::mem::take(&mut decision.acts);
        let gone = decision.transactions.values().filter(|t| t.state != State::Sent).map(|t| t.id).collect();
        for row in decision.transactions.values() {
            let text = || format!("node {}: decides {} (epoch {})", home.node, row.state.as_str(), living.epoch.0);
            stage.tell(|| About::Transaction(row.id), text);
        }
        let answers = std::mem::take(&mut decision.answers);
        let sealed: Vec<_> = answers
            .into_iter()
            .map(|answer| {
                let envelope = answer.envelope(answer.ksn.map(|ksn| edge::mac(&ksn, &answer.body)));
                (answer, envelope)
            })
            .collect();
        let batch = Batch { events: Vec::new(), places, work: Some(begun) };
        stage.ask(
            home,
            move |postgres, _| postgres.commit(begun, &decision, &sealed),
            move |hints: Result<_, Error>| {
                let event = Event::Committed(batch, acts, gone, hints);
                node::Event::Partition(number, actor, Box::new(event))
            },
        );
    }

    /// It is committed: the world may hear of it.
    fn act_on(
        &mut self,
        number: PartitionNo,
        mut batch: Batch,
        acts: Vec<Act>,
        gone: &[TransactionId],
        hints: Vec<Hint>,
        stage: &mut Stage,
    ) {
        let Some(living) = self.partitions.get_mut(&number).and_then(|partition| partition.living.as_mut()) else {
            return;
        };
        living.busy = false;
        let given: Vec<usize> = gone.iter().filter_map(|id| living.places.remove(id)).collect();
        for act in &acts {
            if let Act::Ask(transaction) = act {
                let core = stage.village.core(&transaction.core);
                if let Some(left @ 1..) = batch.places.get_mut(&core) {
                    *left -= 1;
                    living.places.insert(transaction.id, core);
                }
            }
        }
        for core in given {
            self.banks[core].give_back(1);
        }
        self.give_back(batch.places);
        for act in acts {
            match act {
                Act::Ask(transaction) => self.ask_bank(number, transaction, stage),
                Act::Reverse(transaction) => self.reverse_at_bank(number, transaction, stage),
            }
        }
        for hint in hints {
            self.hint(hint, stage);
        }
        self.work(number, stage);
    }

    /// It came to nothing, or to something that nobody follows: what it held is free again.
    fn drop_batch(&mut self, batch: Batch, stage: &mut Stage) {
        self.give_back(batch.places);
        batch.work.into_iter().for_each(|work| stage.undo(work));
    }

    fn give_back(&mut self, places: BTreeMap<usize, usize>) {
        for (core, count) in places {
            self.banks[core].give_back(count);
        }
    }
}

impl Living {
    fn read_on(&mut self, number: PartitionNo, actor: ActorNo, home: super::stage::Home, stage: &mut Stage) {
        let room = BATCH_MAX.saturating_sub(self.inbox.len());
        if self.reading || room == 0 || self.twin.open().len() >= OPEN_MAX {
            return;
        }
        self.reading = true;
        // The reader goes on after what it gave last, decided or not.
        let last = self.inbox.iter().rev().find_map(|event| match event {
            Twinned::Record { offset, .. } | Twinned::Unreadable { offset, .. } => Some(Offset(offset.0 + 1)),
            _ => None,
        });
        let from = last.unwrap_or(Offset(0)).max(self.twin.position());
        let then = move |read| node::Event::Partition(number, actor, Box::new(Event::Read(read)));
        let wait = stage.latency();
        stage
            .after(wait, What::Log(log::Call::Read { home, partition: number, from, max: room, then: Box::new(then) }));
    }
}

fn record((offset, bytes): (Offset, Vec<u8>)) -> Twinned {
    match Record::decode(&bytes) {
        Ok(record) => Twinned::Record { offset, record },
        Err(unreadable) => Twinned::Unreadable { offset, why: unreadable.to_string() },
    }
}
