//! The database: tables as maps, transactions with row locks, the fence, and the constraints of the schema. It does what
//! `actors/store` has Postgres do, in the same order, and the auditor looks at it after every commit.

mod receipts;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use wakala::card::Token;
use wakala::id::{Epoch, Offset, PartitionNo, RequestKey, Stan, TerminalId, TransactionId};
use wakala::ledger::{Account, Entry, Phase};
use wakala::money::Currency;
use wakala::partition::{Decision, Known, Late, Needs, Parked};
use wakala::receipt::{Answer, Stage};
use wakala::time::Time;
use wakala::transaction::Transaction;

pub(crate) use receipts::{Hint, Receipt};
pub(crate) use sessions::{Admission, Arrival, Ended, Opening};

use super::stage::{About, Home, Village, Violation};

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// Perhaps done, perhaps not.
    Away,
    /// Somebody later owns it.
    Fenced,
    /// A constraint does not allow it.
    Broken,
}

/// A call that was tried.
pub(crate) enum Attempt<T> {
    /// It needs a row that somebody has locked.
    Blocked,
    Done(Result<T, Error>),
}

impl<T> Attempt<T> {
    pub(crate) fn ok(value: T) -> Self {
        Self::Done(Ok(value))
    }
}

#[derive(Clone, Debug)]
struct Owner {
    node: Option<usize>,
    epoch: i64,
    position: Offset,
    lease_until: Time,
    /// Under which epoch rows were written last.
    written: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Float {
    pub(crate) posted: i64,
    pub(crate) reserved: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lock {
    Owner(PartitionNo),
    Float(Account),
}

/// A database transaction that is open.
#[derive(Debug)]
struct Open {
    home: Home,
    partition: PartitionNo,
    epoch: Epoch,
    position: Offset,
    /// It gave its locks up to take all of them in their order.
    starting_over: bool,
}

/// What a decision was given, and under which number it is committed.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) number: u64,
    pub(crate) known: BTreeMap<TransactionId, Known>,
    pub(crate) floats: BTreeMap<Account, i64>,
    pub(crate) stans: VecDeque<Stan>,
}

pub(crate) struct Postgres {
    owners: Vec<Owner>,
    /// When each node was last seen.
    nodes: BTreeMap<usize, Time>,
    pub(crate) transactions: BTreeMap<TransactionId, Transaction>,
    pub(crate) entries: Vec<Entry>,
    phases: BTreeSet<(TransactionId, Phase)>,
    pub(crate) floats: BTreeMap<Account, Float>,
    pub(crate) receipts: BTreeMap<(TransactionId, Stage), Receipt>,
    /// By terminal and place, what waits.
    queue: BTreeMap<(TerminalId, i64), (TransactionId, Stage)>,
    sessions: BTreeMap<TerminalId, sessions::Row>,
    key_counters: BTreeMap<[u8; 8], (u32, TerminalId, RequestKey)>,
    tries: BTreeMap<(TerminalId, RequestKey), sessions::Try>,
    cards: BTreeMap<Token, sessions::Card>,
    pub(crate) late: Vec<Late>,
    pub(crate) parked: Vec<Parked>,
    stan: u32,
    open: BTreeMap<u64, Open>,
    locks: BTreeMap<Lock, u64>,
    begun: u64,
    pub(crate) away_until: Option<Time>,
    sums: BTreeMap<&'static str, i128>,
    pub(crate) violation: Option<Violation>,
}

/// How long a node is counted after it was last seen, and a lease lasts.
const LEASE: Duration = Duration::from_secs(10);

impl Postgres {
    pub(crate) fn new(village: &Village, float: i64, stan: u32, now: Time) -> Self {
        let owner = Owner { node: None, epoch: 0, position: Offset(0), lease_until: now, written: 0 };
        let account = |agent: &wakala::id::AgentId| Account::float(agent.clone(), Currency::TZS);
        Self {
            owners: vec![owner; usize::from(village.partitions)],
            nodes: BTreeMap::new(),
            transactions: BTreeMap::new(),
            entries: Vec::new(),
            phases: BTreeSet::new(),
            floats: village.agents.iter().map(|agent| (account(agent), Float { posted: float, reserved: 0 })).collect(),
            receipts: BTreeMap::new(),
            queue: BTreeMap::new(),
            sessions: village.terminals.iter().map(|t| (t.id.clone(), sessions::Row::default())).collect(),
            key_counters: BTreeMap::new(),
            tries: BTreeMap::new(),
            cards: super::edge::CARDS.iter().map(|card| (card.token(), sessions::Card::default())).collect(),
            late: Vec::new(),
            parked: Vec::new(),
            stan,
            open: BTreeMap::new(),
            locks: BTreeMap::new(),
            begun: 0,
            away_until: None,
            sums: BTreeMap::new(),
            violation: None,
        }
    }

    pub(crate) fn is_away(&self, now: Time) -> bool {
        self.away_until.is_some_and(|until| now < until)
    }

    /// It starts again: what was open is undone, what was committed is there.
    pub(crate) fn restart(&mut self, until: Time) {
        self.away_until = Some(until);
        self.open.clear();
        self.locks.clear();
    }

    fn violated(&mut self, invariant: &'static str, about: About, text: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, text, about });
        }
    }

    /// Who has locked what, for the story.
    pub(crate) fn locked(&self) -> String {
        format!("{:?} {:?}", self.locks, self.open)
    }

    // Leases.

    /// See `actors/store/partitions.rs`, `claim`.
    pub(crate) fn claim(&mut self, node: usize, now: Time) -> Attempt<Vec<PartitionNo>> {
        self.nodes.insert(node, now);
        let present = self.nodes.values().filter(|&&seen| seen + LEASE > now).count().max(1);
        let share = self.owners.len().div_ceil(present);
        let mut mine: Vec<(bool, usize)> = (0..self.owners.len())
            .filter(|&no| {
                let owner = &self.owners[no];
                owner.node == Some(node) || owner.node.is_none() || owner.lease_until <= now
            })
            .map(|no| (self.owners[no].node != Some(node), no))
            .collect();
        mine.sort_unstable();
        let mut owned = Vec::new();
        for (place, (others, no)) in mine.into_iter().enumerate() {
            let owner = &mut self.owners[no];
            if place < share {
                (owner.node, owner.lease_until) = (Some(node), now + LEASE);
                owned.push(PartitionNo(u16::try_from(no).expect("few partitions")));
            } else if !others {
                owner.node = None;
            }
        }
        owned.sort_unstable();
        Attempt::ok(owned)
    }

    /// Raises the epoch, once the owner before has no commit under way.
    pub(crate) fn load(
        &mut self,
        partition: PartitionNo,
        node: usize,
        now: Time,
    ) -> Attempt<(Epoch, Offset, Vec<Transaction>)> {
        if self.locks.contains_key(&Lock::Owner(partition)) {
            return Attempt::Blocked;
        }
        let owner = &mut self.owners[usize::from(partition.0)];
        if owner.node != Some(node) || owner.lease_until <= now {
            return Attempt::Done(Err(Error::Fenced));
        }
        owner.epoch += 1;
        let (epoch, position) = (Epoch(owner.epoch), owner.position);
        let open = self.transactions.values().filter(|t| t.partition == partition && !t.state.is_final());
        Attempt::ok((epoch, position, open.cloned().collect()))
    }

    // Decisions.

    fn fence(&self, partition: PartitionNo, epoch: Epoch, position: Offset) -> bool {
        let owner = &self.owners[usize::from(partition.0)];
        owner.epoch == epoch.0 && owner.position == position
    }

    fn is_free(&self, lock: &Lock, number: u64) -> bool {
        self.locks.get(lock).is_none_or(|&holder| holder == number)
    }

    pub(crate) fn begin(
        &mut self,
        home: Home,
        partition: PartitionNo,
        epoch: Epoch,
        position: Offset,
        needs: &Needs,
    ) -> Attempt<Work> {
        let number = self.begun + 1;
        let locks: Vec<Lock> =
            std::iter::once(Lock::Owner(partition)).chain(needs.floats.iter().cloned().map(Lock::Float)).collect();
        if !locks.iter().all(|lock| self.is_free(lock, number)) {
            return Attempt::Blocked;
        }
        if !self.fence(partition, epoch, position) {
            return Attempt::Done(Err(Error::Fenced));
        }
        self.begun = number;
        self.locks.extend(locks.into_iter().map(|lock| (lock, number)));
        self.open.insert(number, Open { home, partition, epoch, position, starting_over: false });
        let known = needs.ids.iter().filter_map(|&id| Some((id, self.known(id)?))).collect();
        let free = |account: &Account| self.floats.get(account).map(|float| float.posted - float.reserved);
        let floats = needs.floats.iter().filter_map(|a| Some((a.clone(), free(a)?))).collect();
        let stans = (0..needs.stans).map(|_| {
            self.stan = self.stan % 999_999 + 1;
            Stan(self.stan)
        });
        let stans = stans.collect();
        Attempt::ok(Work { number, known, floats, stans })
    }

    fn known(&self, id: TransactionId) -> Option<Known> {
        let row = self.transactions.get(&id);
        row.map(|t| Known::Transaction { fingerprint: t.fingerprint, state: t.state })
            .or_else(|| self.receipts.contains_key(&(id, Stage::Final)).then_some(Known::Refusal))
    }

    pub(crate) fn roll_back(&mut self, number: u64) {
        self.open.remove(&number);
        self.locks.retain(|_, holder| *holder != number);
    }

    /// The connections of a node are gone.
    pub(crate) fn drop_connections(&mut self, home: Home) {
        let open: Vec<u64> =
            self.open.iter().filter(|(_, open)| open.home == home).map(|(&number, _)| number).collect();
        for number in open {
            self.roll_back(number);
        }
    }

    /// All of it or nothing.
    pub(crate) fn commit(
        &mut self,
        number: u64,
        decision: &Decision,
        sealed: &[(Answer, Vec<u8>)],
    ) -> Attempt<Vec<Hint>> {
        let Some(open) = self.open.get(&number) else { return Attempt::Done(Err(Error::Away)) };
        let (partition, epoch, position) = (open.partition, open.epoch, open.position);
        let starting_over = open.starting_over;
        let moved = decision.floats.iter().map(|moved| Lock::Float(moved.account.clone()));
        let wanted: Vec<Lock> = std::iter::once(Lock::Owner(partition)).chain(moved).collect();
        if !wanted.iter().all(|lock| self.is_free(lock, number)) {
            // Somebody holds a float that we want and may want one that we hold.
            self.locks.retain(|_, holder| *holder != number);
            if let Some(open) = self.open.get_mut(&number) {
                open.starting_over = true;
            }
            return Attempt::Blocked;
        }
        let written = if starting_over && !self.fence(partition, epoch, position) {
            Err(Error::Fenced)
        } else {
            self.write(partition, epoch, position, decision, sealed)
        };
        self.roll_back(number);
        Attempt::Done(written)
    }

    fn write(
        &mut self,
        partition: PartitionNo,
        epoch: Epoch,
        position: Offset,
        decision: &Decision,
        sealed: &[(Answer, Vec<u8>)],
    ) -> Result<Vec<Hint>, Error> {
        if decision.position.is_some() && !self.fence(partition, epoch, position) {
            return Err(Error::Fenced);
        }
        let floats = self.moved(decision)?;
        self.check_entries(decision)?;
        // From here on nothing fails.
        let owner = &mut self.owners[usize::from(partition.0)];
        if epoch.0 < owner.written.max(owner.epoch) {
            let text = format!("partition {partition}: epoch {} wrote after epoch {}", epoch.0, owner.epoch);
            let about = decision.transactions.keys().next().map_or(About::World, |&id| About::Transaction(id));
            self.violated("I9: a late owner writes nothing", about, text);
            return Err(Error::Fenced);
        }
        owner.written = epoch.0;
        owner.position = decision.position.unwrap_or(owner.position);
        for (&id, row) in &decision.transactions {
            if let Some(before) = self.transactions.insert(id, row.clone())
                && before.state.is_final()
            {
                let text = format!("{id} was {} and became {}", before.state.as_str(), row.state.as_str());
                self.violated("I1: a final state is final", About::Transaction(id), text);
            }
        }
        self.floats.extend(floats);
        self.book(&decision.entries);
        self.late.extend(decision.late.iter().cloned());
        self.parked.extend(decision.parked.iter().cloned());
        let hints = self.write_receipts(sealed, &decision.again);
        self.look_at_books();
        Ok(hints)
    }

    /// The balance rows as they will be. The row's own check refuses what is below its floor.
    fn moved(&self, decision: &Decision) -> Result<BTreeMap<Account, Float>, Error> {
        let mut floats: BTreeMap<Account, Float> = BTreeMap::new();
        for moved in &decision.floats {
            let before = floats.get(&moved.account).or_else(|| self.floats.get(&moved.account));
            let Some(before) = before else { return Err(Error::Broken) };
            let after = Float { posted: before.posted + moved.posted, reserved: before.reserved + moved.reserved };
            floats.insert(moved.account.clone(), after);
        }
        let broken = floats.values().any(|float| float.posted - float.reserved < 0);
        if broken { Err(Error::Broken) } else { Ok(floats) }
    }

    /// The constraints of schema `ledger`. A decision that breaks them is not a bad day but a bad machine.
    fn check_entries(&mut self, decision: &Decision) -> Result<(), Error> {
        let mut phases = self.phases.clone();
        for entry in &decision.entries {
            let (id, phase) = (entry.transaction, entry.phase);
            let sum: i128 = entry.postings.iter().map(|posting| i128::from(posting.minor)).sum();
            let after = |phase| phases.contains(&(id, phase));
            let wrong = match phase {
                _ if sum != 0 => Some("does not sum to zero"),
                _ if after(phase) => Some("is there already"),
                Phase::Pending => None,
                Phase::Posted | Phase::Voided if !after(Phase::Pending) => Some("has no pending entry before it"),
                Phase::Posted if after(Phase::Voided) => Some("was voided"),
                Phase::Voided if after(Phase::Posted) => Some("was posted"),
                Phase::Posted | Phase::Voided => None,
            };
            if let Some(wrong) = wrong {
                let text = format!("the {} entry of {id} {wrong}", phase.as_str());
                self.violated("I4: entries are balanced, and one of each", About::Transaction(id), text);
                return Err(Error::Broken);
            }
            phases.insert((id, phase));
        }
        self.phases = phases;
        Ok(())
    }

    fn book(&mut self, entries: &[Entry]) {
        for entry in entries {
            for posting in &entry.postings {
                *self.sums.entry(posting.account.currency()).or_default() += i128::from(posting.minor);
            }
        }
        self.entries.extend(entries.iter().cloned());
    }

    /// What the auditor asks of every committed snapshot.
    fn look_at_books(&mut self) {
        let unbalanced =
            self.sums.iter().find(|(_, sum)| **sum != 0).map(|(currency, sum)| format!("{currency} {sum}"));
        if let Some(text) = unbalanced {
            self.violated("I4: debits are credits", About::World, text);
        }
    }
}
