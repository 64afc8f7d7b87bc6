//! Who is let in first when more CONNECTs come than can be opened.
//!
//! A power cut ends and ten thousand terminals come back within a second. All are accepted, and wait here until their
//! sessions are opened, many in one commit. Whoever waits for a receipt comes first, then whoever has messages, then the
//! rest; among equals whoever came first. The queue is bounded in number and in time: who finds no room, or has waited for
//! too long, is told that the server is busy and when to come again, and not all at once.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// What a client has waiting here. The first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A transaction without its receipt, or a receipt.
    Transaction,
    /// Other messages.
    Messages,
    /// Nothing, or nobody knows yet.
    None,
}

const CLAIMS: usize = 3;

/// One that waits, or whose turn it is.
#[derive(Debug)]
pub struct Place<T> {
    pub who: T,
    since: Time,
    /// Among all that ever came.
    number: u64,
    claim: Claim,
    /// Whether the claim is known.
    judged: bool,
}

/// Those who wait to be let in.
#[derive(Debug)]
pub struct Waiting<T> {
    /// One for each claim, each in the order in which they came.
    lines: [VecDeque<Place<T>>; CLAIMS],
    arrived: u64,
    max: usize,
    patience: Duration,
}

impl<T> Waiting<T> {
    /// At most `max` wait, for at most `patience`, not counting those whose turn came to nothing.
    #[must_use]
    pub fn new(max: usize, patience: Duration) -> Self {
        Self { lines: [const { VecDeque::new() }; CLAIMS], arrived: 0, max: max.max(1), patience }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(VecDeque::is_empty)
    }

    /// One more comes, of whom nothing is known. Gives whom to turn away, if all places are taken: of those who are known to
    /// have nothing waiting here the one who came last, or else the newcomer.
    pub fn come(&mut self, who: T, now: Time) -> Option<T> {
        let full = self.len() >= self.max;
        let [.., rest] = &mut self.lines;
        let mut turned_away = None;
        if full {
            let Some(last) = rest.iter().rposition(|place| place.judged) else { return Some(who) };
            turned_away = rest.remove(last).map(|place| place.who);
        }
        rest.push_back(Place { who, since: now, number: self.arrived, claim: Claim::None, judged: false });
        self.arrived += 1;
        turned_away
    }

    /// At most `max` of whom nothing is known yet, in the order in which they came, with their numbers.
    pub fn unjudged(&self, max: usize) -> impl Iterator<Item = (u64, &T)> {
        let [.., rest] = &self.lines;
        rest.iter().filter(|place| !place.judged).map(|place| (place.number, &place.who)).take(max)
    }

    /// What these, by their numbers, in order, have waiting here. Who is gone meanwhile is passed over.
    pub fn judge(&mut self, claims: impl IntoIterator<Item = (u64, Claim)>) {
        let mut claims = claims.into_iter().peekable();
        let [.., rest] = &mut self.lines;
        for mut place in std::mem::take(rest) {
            while claims.next_if(|(number, _)| *number < place.number).is_some() {}
            if let Some((_, claim)) = claims.next_if(|(number, _)| *number == place.number) {
                place.claim = claim;
                place.judged = true;
            }
            self.stand(place);
        }
    }

    /// Puts a place into its line, behind those who came before. Most come after all who are there.
    fn stand(&mut self, place: Place<T>) {
        let [transactions, messages, rest] = &mut self.lines;
        let line = match place.claim {
            Claim::Transaction => transactions,
            Claim::Messages => messages,
            Claim::None => rest,
        };
        if line.back().is_none_or(|last| last.number < place.number) {
            line.push_back(place);
        } else {
            line.insert(line.partition_point(|other| other.number < place.number), place);
        }
    }

    /// At most `max` whose turn it is: the best claims first.
    pub fn take(&mut self, max: usize) -> Vec<Place<T>> {
        let mut taken = Vec::with_capacity(max.min(self.len()));
        for line in &mut self.lines {
            taken.extend(line.drain(..line.len().min(max - taken.len())));
        }
        taken
    }

    /// A turn came to nothing, through no fault of who had it: it waits again, where it was.
    pub fn put_back(&mut self, place: Place<T>) {
        self.stand(place);
    }

    /// Those who have waited for too long.
    pub fn overdue(&mut self, now: Time) -> Vec<T> {
        let mut overdue = Vec::new();
        for line in &mut self.lines {
            // In the order in which they came, so the longest waiting are in front.
            while let Some(place) = line.pop_front_if(|place| place.since + self.patience <= now) {
                overdue.push(place.who);
            }
        }
        overdue
    }
}

/// When to come again, in seconds: drawn by lot between the two, so that those who were turned away together do not come
/// back together.
#[must_use]
pub fn come_again_in(min: Duration, max: Duration, drawn: u64) -> u64 {
    let (min, max) = (min.as_secs().max(1), max.as_secs());
    min + drawn % (max.saturating_sub(min) + 1)
}

#[cfg(test)]
mod tests;
