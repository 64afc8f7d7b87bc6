//! Which clients of a general broker are there: what subscribers of their presence are told, and in which order.
//!
//! The board holds the clients that are connected to this node and those whose session is kept, wherever they are. Each
//! connection has an epoch, higher than that of the one before it; the board takes the beginning of a connection only if it is
//! later than what it shows, and the end only of the connection that it shows. So an end is never told after the beginning of
//! a later connection, in whatever order the two come in. Each node tells of its own: what is heard of others is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
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
    /// The other node that had it; none: this one.
    pub node: Option<Box<str>>,
    /// Why its connection ended.
    pub why: Option<String>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Board {
    clients: BTreeMap<ClientId, Shown>,
    /// The names of other nodes.
    nodes: Vec<Box<str>>,
    /// How often something on it has changed.
    changes: u64,
}

#[derive(Debug)]
struct Shown {
    standing: Standing,
    /// The how manieth change it was.
    nth: u64,
    /// Which of the other nodes it is known from; none: this one, or the database.
    node: Option<NonZeroU16>,
}

impl Shown {
    fn is_here(&self) -> bool {
        self.standing.online && self.node.is_none()
    }
}

/// Why a connection ended that a later one of the same client follows.
pub const TAKEN_OVER: &str = "taken over";

impl Board {
    /// How a client stands that is connected elsewhere or away, and which node says so, or has it. What is known better stays:
    /// of two the one of the higher epoch is the later, and in one epoch the end.
    pub fn heard(&mut self, client: ClientId, standing: Standing, node: Option<&str>) {
        let place = |standing: &Standing| (standing.epoch, !standing.online);
        if self.clients.get(&client).is_none_or(|shown| place(&shown.standing) < place(&standing)) {
            let node = node.and_then(|node| self.node(node));
            let shown = Shown { node, ..self.shown(standing) };
            self.clients.insert(client, shown);
        }
    }

    fn node(&mut self, name: &str) -> Option<NonZeroU16> {
        let place = self.nodes.iter().position(|node| **node == *name).unwrap_or(self.nodes.len());
        let nth = u16::try_from(place + 1).ok().and_then(NonZeroU16::new)?;
        if place == self.nodes.len() {
            self.nodes.push(name.into());
        }
        Some(nth)
    }

    fn shown(&mut self, standing: Standing) -> Shown {
        self.changes += 1;
        Shown { standing, nth: self.changes, node: None }
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
                    let node = self.nodes.get(at(shown.node)).cloned();
                    told.push(Told { client: client.clone(), standing, node, why: Some(TAKEN_OVER.to_owned()) });
                }
                *shown = new;
            }
            None => _ = self.clients.insert(client.clone(), new),
        }
        told.push(Told { client: client.clone(), standing, node: None, why: None });
        told
    }

    /// A connection has ended; the session is kept, or ended with it.
    pub fn went(&mut self, client: &ClientId, epoch: Epoch, kept: bool, why: &str, now: Time) -> Option<Told> {
        let new = self.shown(Standing { epoch, online: false, since: now });
        let shown = self.clients.get_mut(client)?;
        if !shown.is_here() || shown.standing.epoch != epoch {
            return None;
        }
        let told = Told { client: client.clone(), standing: new.standing, node: None, why: Some(why.to_owned()) };
        *shown = new;
        if !kept {
            self.clients.remove(client);
        }
        Some(told)
    }

    /// A session that was kept is over, or another node's connection of which nothing is kept; so it was after `until` changes.
    pub fn over(&mut self, client: &ClientId, until: u64) {
        if self.clients.get(client).is_some_and(|shown| !shown.is_here() && shown.nth <= until) {
            self.clients.remove(client);
        }
    }

    /// Of all others it was so: of the next `page` of the clients behind that one. Gives the last of these.
    pub fn over_but(
        &mut self,
        known: &BTreeSet<ClientId>,
        until: u64,
        after: Option<&ClientId>,
        page: usize,
    ) -> Option<ClientId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let looked: Vec<_> =
            self.clients.range((from, Bound::Unbounded)).take(page).map(|(it, _)| it.clone()).collect();
        looked.iter().filter(|client| !known.contains(*client)).for_each(|client| self.over(client, until));
        looked.into_iter().last()
    }

    /// The clients among whom those are that this filter concerns, behind the one where an earlier look ended. Each with how it
    /// stands, and at which other node, where the filter matches its topic and no more than `until` changes were made up to that.
    pub fn look<'a>(
        &'a self,
        filter: &'a str,
        after: Option<&ClientId>,
        until: u64,
    ) -> impl Iterator<Item = (&'a ClientId, Option<(Standing, Option<&'a str>)>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let clients = concerns(filter).then(|| self.clients.range::<ClientId, _>((from, Bound::Unbounded)));
        clients.into_iter().flatten().map(move |(client, shown)| {
            let found = shown.nth <= until && matches(filter, &topic(client));
            let node = self.nodes.get(at(shown.node)).map(|name| &**name);
            (client, found.then_some((shown.standing, node)))
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

/// The place of its name.
fn at(node: Option<NonZeroU16>) -> usize {
    node.map_or(usize::MAX, |nth| usize::from(nth.get()) - 1)
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
        board.heard(client("loaded"), Standing { epoch: Epoch(3), online: false, since: at(0) }, None);
        let names = |board: &Board| found(board, "$SYS/presence/+");
        assert_eq!(names(&board), ["kept", "loaded"]);
        board.came(&client("loaded"), Epoch(4), at(3));
        for name in ["kept", "loaded"] {
            board.over(&client(name), u64::MAX);
        }
        assert_eq!(names(&board), ["loaded"], "who is there is not over");
    }

    #[test]
    fn what_is_heard_of_other_nodes_is_shown_and_theirs_to_tell() {
        let (mut board, c) = (Board::default(), client("c"));
        let stands = |epoch, online| Standing { epoch: Epoch(epoch), online, since: at(epoch) };
        let shown = |board: &Board| {
            let all: Vec<_> = board.look("$SYS/presence/c", None, u64::MAX).collect();
            let (_, found) = all.into_iter().next()?;
            found.map(|(standing, node)| (standing.epoch.0, standing.online, node.map(ToOwned::to_owned)))
        };
        let n2 = Some("n2".to_owned());
        board.came(&c, Epoch(1), at(1));
        board.heard(c.clone(), stands(2, true), Some("n2"));
        assert_eq!(shown(&board), Some((2, true, n2.clone())), "taken over there");
        assert_eq!(board.went(&c, Epoch(1), true, "late", at(3)), None, "its end is known");
        assert_eq!(board.went(&c, Epoch(2), true, "not ours", at(3)), None);
        for (epoch, online) in [(1, false), (2, true)] {
            board.heard(c.clone(), stands(epoch, online), Some("n3"));
        }
        assert_eq!(shown(&board), Some((2, true, n2.clone())), "older, or the same");
        board.heard(c.clone(), stands(2, false), Some("n2"));
        board.heard(c.clone(), stands(2, true), None);
        assert_eq!(shown(&board), Some((2, false, n2)), "an end stays one");
        let told = board.came(&c, Epoch(3), at(4));
        assert_eq!((said(&told), shown(&board)), (vec![(3, true)], Some((3, true, None))));
        board.heard(c.clone(), stands(4, true), Some("n2"));
        assert_eq!(said(&board.came(&c, Epoch(5), at(5))), [(4, false), (5, true)], "taken over from there");
    }

    #[test]
    fn what_is_stored_of_nobody_is_over_but_for_who_came_meanwhile() {
        let mut board = Board::default();
        let stands = Standing { epoch: Epoch(1), online: true, since: at(1) };
        board.came(&client("here"), Epoch(1), at(1));
        for name in ["stored", "lost"] {
            board.heard(client(name), stands, Some("n2"));
        }
        let until = board.changes();
        board.heard(client("meanwhile"), stands, Some("n2"));
        board.over(&client("meanwhile"), until);
        let (known, mut after) = ([client("stored")].into(), None);
        loop {
            after = board.over_but(&known, until, after.as_ref(), 2);
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found(&board, "$SYS/presence/+"), ["here", "meanwhile", "stored"]);
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
