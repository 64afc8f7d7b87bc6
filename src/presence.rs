//! Which clients of a general broker are there: what subscribers of their presence are told, and in which order.
//!
//! The board holds the clients that are connected to this node and those whose session is kept. Each connection has an
//! epoch, higher than that of the one before it; the board takes the beginning of a connection only if it is later than what
//! it shows, and the end only of the connection that it shows. So an end is never told after the beginning of a later
//! connection, in whatever order the two come in.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::id::{ClientId, Epoch};
use crate::time::Time;
use crate::topics::{matches, shared};

/// How a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Of its latest connection.
    pub epoch: Epoch,
    pub online: bool,
    /// Since when.
    pub since: Time,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub client: ClientId,
    pub standing: Standing,
    /// Why its connection ended.
    pub why: Option<String>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Board {
    clients: BTreeMap<ClientId, Shown>,
    /// How often something on it has changed.
    changes: u64,
}

#[derive(Debug)]
struct Shown {
    standing: Standing,
    /// The how manieth change it was.
    nth: u64,
}

/// Why a connection ended that a later one of the same client follows.
pub const TAKEN_OVER: &str = "taken over";

impl Board {
    /// A client whose session is kept, and who is away.
    pub fn load(&mut self, client: ClientId, epoch: Epoch, since: Time) {
        let shown = self.shown(Standing { epoch, online: false, since });
        self.clients.entry(client).or_insert(shown);
    }

    fn shown(&mut self, standing: Standing) -> Shown {
        self.changes += 1;
        Shown { standing, nth: self.changes }
    }

    /// A connection begins.
    pub fn came(&mut self, client: &ClientId, epoch: Epoch, now: Time) -> Vec<Told> {
        let mut told = Vec::new();
        let standing = Standing { epoch, online: true, since: now };
        let new = self.shown(standing);
        match self.clients.get_mut(client) {
            Some(shown) if shown.standing.epoch >= epoch => return told,
            Some(shown) => {
                if shown.standing.online {
                    let standing = Standing { online: false, since: now, ..shown.standing };
                    told.push(Told { client: client.clone(), standing, why: Some(TAKEN_OVER.to_owned()) });
                }
                *shown = new;
            }
            None => _ = self.clients.insert(client.clone(), new),
        }
        told.push(Told { client: client.clone(), standing, why: None });
        told
    }

    /// A connection has ended; the session is kept, or ended with it.
    pub fn went(&mut self, client: &ClientId, epoch: Epoch, kept: bool, why: &str, now: Time) -> Option<Told> {
        let new = self.shown(Standing { epoch, online: false, since: now });
        let shown = self.clients.get_mut(client)?;
        if !shown.standing.online || shown.standing.epoch != epoch {
            return None;
        }
        let told = Told { client: client.clone(), standing: new.standing, why: Some(why.to_owned()) };
        *shown = new;
        if !kept {
            self.clients.remove(client);
        }
        Some(told)
    }

    /// A session that was kept is over.
    pub fn over(&mut self, client: &ClientId) {
        if self.clients.get(client).is_some_and(|shown| !shown.standing.online) {
            self.clients.remove(client);
        }
    }

    /// The clients among whom those are that this filter concerns, behind the one where an earlier look ended. Each with how it
    /// stands where the filter matches its topic and no more than `until` changes were made up to that.
    pub fn look<'a>(
        &'a self,
        filter: &'a str,
        after: Option<&ClientId>,
        until: u64,
    ) -> impl Iterator<Item = (&'a ClientId, Option<Standing>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let clients = concerns(filter).then(|| self.clients.range::<ClientId, _>((from, Bound::Unbounded)));
        clients.into_iter().flatten().map(move |(client, shown)| {
            let found = shown.nth <= until && matches(filter, &topic(client));
            (client, found.then_some(shown.standing))
        })
    }

    /// How often something has changed: what changes from now on is beyond it.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

const PREFIX: &str = "$SYS/presence/";

/// The topic on which a client's presence is told. An identifier may have anything in it: what would be levels or wildcards
/// of the topic is written as in a URL.
#[must_use]
pub fn topic(client: &ClientId) -> String {
    let mut topic = String::with_capacity(PREFIX.len() + client.as_str().len());
    topic.push_str(PREFIX);
    for character in client.as_str().chars() {
        match character {
            '/' => topic.push_str("%2F"),
            '+' => topic.push_str("%2B"),
            '#' => topic.push_str("%23"),
            '%' => topic.push_str("%25"),
            other => topic.push(other),
        }
    }
    topic
}

/// Whether a filter may match the topic of somebody's presence.
#[must_use]
pub fn concerns(filter: &str) -> bool {
    let filter = shared(filter).ok().flatten().map_or(filter, |shared| shared.filter);
    let mut levels = filter.split('/');
    match (levels.next(), levels.next(), levels.next()) {
        (Some("$SYS"), Some("#"), None) => true,
        (Some("$SYS"), Some("+" | "presence"), Some(third)) => {
            levels.next().is_none_or(|more| third == "#" || more == "#")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> ClientId {
        ClientId::new(name).expect("short")
    }

    fn at(millis: i64) -> Time {
        Time::from_millis(millis)
    }

    fn said(told: &[Told]) -> Vec<(i64, bool)> {
        told.iter().map(|told| (told.standing.epoch.0, told.standing.online)).collect()
    }

    fn found(board: &Board, filter: &str) -> Vec<String> {
        let looked = board.look(filter, None, u64::MAX);
        looked.filter_map(|(client, standing)| standing.map(|_| client.to_string())).collect()
    }

    #[test]
    fn a_look_goes_on_where_the_one_before_ended_and_finds_nothing_that_is_newer() {
        let mut board = Board::default();
        for name in ["a", "b", "c", "d"] {
            board.came(&client(name), Epoch(1), at(1));
        }
        let until = board.changes();
        board.went(&client("c"), Epoch(1), true, "cut", at(2));
        board.came(&client("e"), Epoch(1), at(2));
        let looked = |after: Option<&ClientId>| {
            let looked = board.look("$SYS/presence/+", after, until).take(3);
            looked.filter_map(|(client, standing)| standing.map(|_| client.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(looked(None), ["a", "b"]);
        assert_eq!(looked(Some(&client("c"))), ["d"]);
    }

    #[test]
    fn a_takeover_is_the_end_of_the_one_and_then_the_beginning_of_the_other() {
        let (mut board, c) = (Board::default(), client("c"));
        assert_eq!(said(&board.came(&c, Epoch(1), at(1))), [(1, true)]);
        let told = board.came(&c, Epoch(2), at(2));
        assert_eq!(said(&told), [(1, false), (2, true)]);
        assert_eq!((told[0].why.as_deref(), told[1].why.as_deref()), (Some(TAKEN_OVER), None));
        assert_eq!(board.went(&c, Epoch(1), true, "late", at(3)), None, "it was told already");
        let told = board.went(&c, Epoch(2), true, "cut", at(4)).expect("told");
        assert_eq!((told.standing.epoch, told.why.as_deref()), (Epoch(2), Some("cut")));
    }

    #[test]
    fn what_comes_late_is_not_told() {
        let (mut board, c) = (Board::default(), client("c"));
        assert_eq!(said(&board.came(&c, Epoch(7), at(1))), [(7, true)]);
        assert_eq!(board.came(&c, Epoch(6), at(2)), []);
        assert_eq!(board.came(&c, Epoch(7), at(2)), []);
        assert!(board.went(&c, Epoch(7), true, "cut", at(3)).is_some());
        assert_eq!(board.went(&c, Epoch(7), true, "again", at(3)), None);
        assert_eq!(board.came(&c, Epoch(7), at(4)), [], "an end stays one");
    }

    /// In whatever order beginnings and ends come in, each client's are told by rising epoch, the beginning before the end.
    #[test]
    fn whatever_comes_when_is_told_in_order() {
        let mut seed = 7_u32;
        for _ in 0..2000 {
            let (mut board, c) = (Board::default(), client("c"));
            let mut happened: Vec<(i64, bool)> = (1..=6).flat_map(|epoch| [(epoch, true), (epoch, false)]).collect();
            for at in (1..happened.len()).rev() {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                happened.swap(at, usize::try_from(seed >> 16).expect("small") % (at + 1));
            }
            let mut told = Vec::new();
            for (n, (epoch, online)) in (0..).zip(&happened) {
                if *online {
                    told.extend(board.came(&c, Epoch(*epoch), at(n)));
                } else {
                    told.extend(board.went(&c, Epoch(*epoch), true, "cut", at(n)));
                }
            }
            let places: Vec<i64> = said(&told).iter().map(|(epoch, online)| epoch * 2 + i64::from(!online)).collect();
            assert!(places.is_sorted(), "{happened:?}: {told:?}");
            assert!(told.iter().all(|told| told.standing.online) || told.len() > 1);
        }
    }

    #[test]
    fn a_client_whose_session_ended_leaves_nothing() {
        let mut board = Board::default();
        for (name, kept) in [("clean", false), ("kept", true)] {
            board.came(&client(name), Epoch(1), at(1));
            board.went(&client(name), Epoch(1), kept, "cut", at(2));
        }
        board.load(client("loaded"), Epoch(3), at(0));
        let names = |board: &Board| found(board, "$SYS/presence/+");
        assert_eq!(names(&board), ["kept", "loaded"]);
        board.came(&client("loaded"), Epoch(4), at(3));
        for name in ["kept", "loaded"] {
            board.over(&client(name));
        }
        assert_eq!(names(&board), ["loaded"], "who is there is not over");
    }

    #[test]
    fn an_identifier_is_one_level_of_its_topic() {
        assert_eq!(topic(&client("a/b+c#d%e é")), "$SYS/presence/a%2Fb%2Bc%23d%25e é");
        let mut board = Board::default();
        board.came(&client("a/b"), Epoch(1), at(1));
        for (filter, count) in [
            ("$SYS/presence/+", 1),
            ("$SYS/presence/#", 1),
            ("$SYS/#", 1),
            ("$SYS/+/+", 1),
            ("$SYS/presence/a%2Fb", 1),
            ("$SYS/presence/a/b", 0),
            ("#", 0),
            ("+/presence/+", 0),
            ("$SYS/presence", 0),
            ("$SYS/+", 0),
        ] {
            assert_eq!(found(&board, filter).len(), count, "{filter}");
            assert!(concerns(filter) || count == 0, "{filter}");
        }
        assert!(concerns("$share/g/$SYS/presence/+") && !concerns("$SYS/presence/a/b") && !concerns("$SYS/uptime"));
    }
}
