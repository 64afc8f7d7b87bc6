//! What was sent and is not forgotten yet: by match key, so that an answer finds its request.
//!
//! A request that was given up or answered stays for a while, so that a late or second answer still names its
//! transaction. There is no card data here.

use std::collections::{BTreeMap, BTreeSet};

use super::compose::{Order, comparable};
use crate::id::{PartitionNo, TransactionId};
use crate::iso8583::{Dialect, Message};
use crate::time::Time;

/// The class of the MTI and the values of the dialect's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Box<str>);

impl Key {
    /// `None` when the message lacks a part of it.
    pub(super) fn of(dialect: &Dialect, message: &Message) -> Option<Self> {
        let mut key = message.mti.class().to_string();
        for &field in &dialect.matching.key {
            // A value cannot hold a control character, so no two keys look alike.
            key.push('\0');
            key.push_str(comparable(dialect, field, message.text(field)?));
        }
        Some(Self(key.into()))
    }
}

/// Data elements, and how they compare.
pub(super) type Echoed = Vec<(u8, Box<str>)>;

/// One message and what became of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) transaction: TransactionId,
    pub(super) partition: PartitionNo,
    pub(super) order: Order,
    pub(super) stage: Stage,
    /// What the answer must repeat, if it has it.
    pub(super) echo: Echoed,
    /// When the stage ends by itself.
    pub(super) due: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The card's number is being opened; nothing left.
    Held { ticket: u64 },
    /// May be at the core.
    Left,
    /// Given up or lost: kept for an answer that comes late.
    Past,
    /// Kept for an answer that comes again.
    Answered,
}

impl Stage {
    pub(super) fn is_open(self) -> bool {
        match self {
            Self::Held { .. } | Self::Left => true,
            Self::Past | Self::Answered => false,
        }
    }
}

/// All entries, by key, by ticket and by time.
#[derive(Debug, Default)]
pub(super) struct Flight {
    entries: BTreeMap<Key, Entry>,
    tickets: BTreeMap<u64, Key>,
    timers: BTreeSet<(Time, Key)>,
    open_requests: usize,
    open_reversals: usize,
}

impl Flight {
    /// Requests and reversals that are held or have left and are not answered.
    pub(super) fn open(&self, order: Order) -> usize {
        match order {
            Order::Ask => self.open_requests,
            Order::Reverse => self.open_reversals,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn key_of_ticket(&self, ticket: u64) -> Option<Key> {
        self.tickets.get(&ticket).cloned()
    }

    /// The earliest time at which a stage ends by itself.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.timers.first().map(|&(due, _)| due)
    }

    pub(super) fn due(&self, now: Time) -> Option<Key> {
        self.timers.first().filter(|(due, _)| *due <= now).map(|(_, key)| key.clone())
    }

    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        self.count(&entry, 1);
        if let Stage::Held { ticket } = entry.stage {
            self.tickets.insert(ticket, key.clone());
        }
        self.timers.insert((entry.due, key.clone()));
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.count(&entry, -1);
        if let Stage::Held { ticket } = entry.stage {
            self.tickets.remove(&ticket);
        }
        self.timers.remove(&(entry.due, key.clone()));
        Some(entry)
    }

    /// Moves an entry on; what it was before is given back.
    pub(super) fn turn(&mut self, key: &Key, stage: Stage, due: Time) -> Option<Stage> {
        let mut entry = self.remove(key)?;
        let before = std::mem::replace(&mut entry.stage, stage);
        entry.due = due;
        self.insert(key.clone(), entry);
        Some(before)
    }

    /// The keys of all that is held or has left.
    pub(super) fn open_keys(&self) -> Vec<Key> {
        let open = self.entries.iter().filter(|(_, entry)| entry.stage.is_open());
        open.map(|(key, _)| key.clone()).collect()
    }

    /// Forgets the past entry that would be forgotten first, to make room.
    pub(super) fn forget_one(&mut self) {
        let past = |(_, key): &&(Time, Key)| self.entries.get(key).is_some_and(|entry| !entry.stage.is_open());
        if let Some((_, key)) = self.timers.iter().find(past).cloned() {
            self.remove(&key);
        }
    }

    fn count(&mut self, entry: &Entry, change: isize) {
        if entry.stage.is_open() {
            let counter = match entry.order {
                Order::Ask => &mut self.open_requests,
                Order::Reverse => &mut self.open_reversals,
            };
            *counter = counter.saturating_add_signed(change);
        }
    }
}
