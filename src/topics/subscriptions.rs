//! Who receives a message: ordinary and shared subscriptions of all clients.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};

use ntex_mqtt::v5::codec::{QoS, SubscriptionOptions};

use super::{NotShared, Tree, shared};

/// What a subscription was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub options: SubscriptionOptions,
    pub identifier: Option<NonZeroU32>,
}

/// One client that receives a message, once, whatever number of its subscriptions match: at the highest QoS of them, with
/// all their identifiers (3.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match<C> {
    pub client: C,
    /// Granted; the message's own may be lower [MQTT-3.8.4-8].
    pub qos: QoS,
    /// The RETAIN flag goes on as it came [MQTT-3.3.1-13].
    pub retain_as_published: bool,
    pub identifiers: Vec<NonZeroU32>,
    /// By a shared subscription.
    pub shared: bool,
}

/// How the member of a shared subscription stands whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// And has room.
    Connected,
    /// Or connected, and has none; what comes waits in the database.
    Away,
    /// What comes is lost: its session has ended, or ends with its connection and has no room.
    Lost,
}

/// The subscriptions of all clients. `C` names a client.
#[derive(Debug)]
pub struct Subscriptions<C> {
    own: Tree<C, Granted>,
    groups: Tree<Box<str>, Group<C>>,
}

/// The members of one shared subscription.
#[derive(Debug)]
struct Group<C> {
    members: Vec<(C, Granted)>,
    /// Whose turn it is.
    next: AtomicUsize,
}

impl<C> Default for Subscriptions<C> {
    fn default() -> Self {
        Self { own: Tree::default(), groups: Tree::default() }
    }
}

impl<C> Default for Group<C> {
    fn default() -> Self {
        Self { members: Vec::new(), next: AtomicUsize::new(0) }
    }
}

impl<C: Ord + Clone> Subscriptions<C> {
    /// Adds a subscription or replaces the one with the same filter [MQTT-3.8.4-3]; true if it replaced one.
    ///
    /// # Errors
    /// When the filter is no shared one and begins like one.
    pub fn subscribe(&mut self, client: C, filter: &str, granted: Granted) -> Result<bool, NotShared> {
        let Some(wanted) = shared(filter)? else { return Ok(self.own.insert(filter, client, granted).is_some()) };
        let group = self.groups.entry(wanted.filter, wanted.name.into());
        Ok(match group.members.iter_mut().find(|(member, _)| *member == client) {
            Some((_, old)) => {
                *old = granted;
                true
            }
            None => {
                group.members.push((client, granted));
                false
            }
        })
    }

    /// Takes a subscription away; false if there was none.
    pub fn unsubscribe(&mut self, client: &C, filter: &str) -> bool {
        let Ok(wanted) = shared(filter) else { return false };
        let Some(wanted) = wanted else { return self.own.remove(filter, client).is_some() };
        let name: Box<str> = wanted.name.into();
        let Some(mut group) = self.groups.remove(wanted.filter, &name) else { return false };
        let before = group.members.len();
        group.members.retain(|(member, _)| member != client);
        let was_there = group.members.len() < before;
        if !group.members.is_empty() {
            self.groups.insert(wanted.filter, name, group);
        }
        was_there
    }

    /// Who receives a message of this topic from `publisher`, into `out`, in the order of the clients' names. Of each
    /// shared subscription one member, in turn: the first that is connected, or else comes back.
    pub fn route(&self, topic: &str, publisher: Option<&C>, reach: impl Fn(&C) -> Reach, out: &mut Vec<Match<C>>) {
        let begin = out.len();
        self.own.for_each(topic, |client, granted| {
            // [MQTT-3.8.3-3]
            if !(granted.options.no_local && publisher == Some(client)) {
                out.push(matched(client, granted, false));
            }
        });
        self.groups.for_each(topic, |_, group| {
            if let Some((client, granted)) = group.turn(&reach) {
                out.push(matched(client, granted, true));
            }
        });
        merge(out, begin);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.groups.is_empty()
    }
}

impl<C> Group<C> {
    fn turn(&self, reach: impl Fn(&C) -> Reach) -> Option<&(C, Granted)> {
        let count = self.members.len();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let at = |offset: usize| self.members.get(first.wrapping_add(offset) % count);
        if count == 0 {
            return None;
        }
        let who = |how| (0..count).filter_map(at).find(|(client, _)| reach(client) == how);
        who(Reach::Connected).or_else(|| who(Reach::Away)).or_else(|| at(0))
    }
}

fn matched<C: Clone>(client: &C, granted: &Granted, shared: bool) -> Match<C> {
    Match {
        client: client.clone(),
        qos: granted.options.qos,
        retain_as_published: granted.options.retain_as_published,
        identifiers: granted.identifier.into_iter().collect(),
        shared,
    }
}

/// Makes one of the ordinary matches of each client. A shared one stays by itself: it is another subscription (4.8.2).
fn merge<C: Ord>(out: &mut Vec<Match<C>>, begin: usize) {
    out[begin..].sort_by(|a, b| (&a.client, a.shared).cmp(&(&b.client, b.shared)));
    let mut kept = begin;
    for at in begin..out.len() {
        let same = kept > begin && !out[at].shared && !out[kept - 1].shared && out[kept - 1].client == out[at].client;
        if same {
            let identifiers = std::mem::take(&mut out[at].identifiers);
            let (qos, retain) = (out[at].qos, out[at].retain_as_published);
            let first = &mut out[kept - 1];
            first.qos = first.qos.max(qos);
            first.retain_as_published |= retain;
            first.identifiers.extend(identifiers);
        } else {
            out.swap(kept, at);
            kept += 1;
        }
    }
    out.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(qos: QoS) -> Granted {
        Granted { options: SubscriptionOptions { qos, ..SubscriptionOptions::default() }, identifier: None }
    }

    fn route(subscriptions: &Subscriptions<&'static str>, topic: &str) -> Vec<Match<&'static str>> {
        let mut out = Vec::new();
        subscriptions.route(topic, None, |_| Reach::Connected, &mut out);
        out
    }

    #[test]
    fn overlapping_subscriptions_make_one_delivery_at_the_highest_qos_with_all_identifiers() {
        let mut all = Subscriptions::default();
        let with = |qos, id, retain_as_published| Granted {
            options: SubscriptionOptions { qos, retain_as_published, ..SubscriptionOptions::default() },
            identifier: NonZeroU32::new(id),
        };
        assert_eq!(all.subscribe("b", "a/#", with(QoS::AtLeastOnce, 1, false)), Ok(false));
        assert_eq!(all.subscribe("b", "a/+", with(QoS::ExactlyOnce, 2, true)), Ok(false));
        assert_eq!(all.subscribe("a", "a/b", with(QoS::AtMostOnce, 0, false)), Ok(false));
        assert_eq!(all.subscribe("b", "x", with(QoS::AtMostOnce, 3, false)), Ok(false));
        let found = route(&all, "a/b");
        assert_eq!(found.iter().map(|m| m.client).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((found[1].qos, found[1].retain_as_published), (QoS::ExactlyOnce, true));
        let mut identifiers = found[1].identifiers.clone();
        identifiers.sort_unstable();
        assert_eq!(identifiers, [NonZeroU32::MIN, NonZeroU32::MIN.saturating_add(1)]);
        assert_eq!(all.subscribe("b", "a/+", granted(QoS::AtMostOnce)), Ok(true), "replaced");
        assert_eq!(route(&all, "a/b")[1].qos, QoS::AtLeastOnce);
    }

    #[test]
    fn no_local_keeps_a_message_from_its_own_sender_and_from_nobody_else() {
        let mut all = Subscriptions::default();
        let options = SubscriptionOptions { no_local: true, ..SubscriptionOptions::default() };
        let no_local = Granted { options, identifier: None };
        for client in ["a", "b"] {
            assert_eq!(all.subscribe(client, "t", no_local), Ok(false));
        }
        let mut out = Vec::new();
        all.route("t", Some(&"a"), |_| Reach::Connected, &mut out);
        assert_eq!(out.iter().map(|m| m.client).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_shared_subscription_takes_turns_and_prefers_who_is_able() {
        let mut all = Subscriptions::default();
        for client in ["a", "b", "c"] {
            assert_eq!(all.subscribe(client, "$share/g/t/+", granted(QoS::AtLeastOnce)), Ok(false));
        }
        assert_eq!(all.subscribe("a", "$share/h/t/#", granted(QoS::AtLeastOnce)), Ok(false));
        let turns: Vec<_> = (0..6)
            .flat_map(|_| route(&all, "t/1"))
            .filter(|found| found.client != "a" || found.shared)
            .map(|found| found.client)
            .collect();
        for client in ["a", "b", "c"] {
            let times = turns.iter().filter(|&&turn| turn == client).count();
            assert_eq!(times, if client == "a" { 2 + 6 } else { 2 }, "{client}");
        }
        let better = [(Reach::Connected, Reach::Away), (Reach::Connected, Reach::Lost), (Reach::Away, Reach::Lost)];
        for (b, others) in better {
            let mut out = Vec::new();
            for _ in 0..3 {
                all.route("t/1", None, |client| if *client == "b" { b } else { others }, &mut out);
            }
            assert_eq!(out.iter().filter(|found| found.client == "b").count(), 3, "{b:?} among {others:?}");
        }
        assert!(all.unsubscribe(&"a", "$share/g/t/+") && !all.unsubscribe(&"a", "$share/g/t/+"));
        assert!(all.unsubscribe(&"b", "$share/g/t/+") && all.unsubscribe(&"c", "$share/g/t/+"));
        assert!(all.unsubscribe(&"a", "$share/h/t/#"));
        assert!(all.is_empty());
        assert_eq!(all.subscribe("a", "$share/g", granted(QoS::AtMostOnce)), Err(NotShared));
    }

    #[test]
    fn a_shared_and_an_ordinary_subscription_are_two() {
        let mut all = Subscriptions::default();
        assert_eq!(all.subscribe("a", "t", granted(QoS::AtMostOnce)), Ok(false));
        assert_eq!(all.subscribe("a", "$share/g/t", granted(QoS::AtMostOnce)), Ok(false));
        assert_eq!(route(&all, "t").len(), 2);
    }
}
