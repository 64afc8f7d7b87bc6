//! What a client subscribes to, and what it may.

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{
    Packet, QoS, Subscribe, SubscribeAck, SubscribeAckReason, SubscriptionOptions, Unsubscribe, UnsubscribeAck,
    UnsubscribeAckReason,
};

use super::strict::Flaw;
use super::{Effect, Session, Version, protocol};
use crate::mqtt::user_property_bytes;

/// One subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub filter: ByteString,
    /// The granted QoS and the other options (3.8.3.1).
    pub options: SubscriptionOptions,
    /// Goes out with every message that it matches (3.8.2.1.2).
    pub identifier: Option<NonZeroU32>,
}

/// What SUBSCRIBE and UNSUBSCRIBE packets change. It is stored before they are acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// A subscription with the same filter is replaced [MQTT-3.8.4-3]. No two of these have the same.
    pub begun: Vec<Subscription>,
    /// None of these is begun by it too.
    pub ended: Vec<ByteString>,
}

impl Change {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.ended.is_empty()
    }

    /// Makes it one with what follows it.
    fn followed_by(&mut self, later: Self) {
        self.begun.retain(|earlier| {
            later.begun.iter().all(|new| new.filter != earlier.filter) && !later.ended.contains(&earlier.filter)
        });
        self.ended
            .retain(|earlier| later.begun.iter().all(|new| new.filter != *earlier) && !later.ended.contains(earlier));
        self.begun.extend(later.begun);
        self.ended.extend(later.ended);
    }

    /// What it makes of what is stored, for worlds that store it in memory.
    pub fn apply(self, stored: &mut Vec<Subscription>) {
        stored.retain(|old| !self.ended.contains(&old.filter));
        for new in self.begun {
            match stored.iter_mut().find(|old| old.filter == new.filter) {
                Some(old) => *old = new,
                None => stored.push(new),
            }
        }
    }
}

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Asked {
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
}

#[derive(Debug)]
enum Answer {
    Subscribe(Vec<SubscribeAckReason>, Option<&'static str>),
    Unsubscribe(Vec<UnsubscribeAckReason>),
}

/// Changes that have been made and are not stored yet, with the acknowledgements that wait for that.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Oldest first.
    answers: VecDeque<(NonZeroU16, Answer)>,
    /// What is being stored, and how many of the answers wait for it.
    storing: Option<(Change, usize)>,
    /// What the others wait for.
    next: Change,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    fn uses(&self, packet_id: NonZeroU16) -> bool {
        self.answers.iter().any(|&(used, _)| used == packet_id)
    }
}

/// How many bytes of a SUBSCRIBE or UNSUBSCRIBE packet are its filters and its user properties; None of another packet.
pub(super) fn changed_bytes(packet: &Packet) -> Option<usize> {
    let (filters, user_properties) = match packet {
        // Each has its length before it, and its options behind it.
        Packet::Subscribe(subscribe) => (
            subscribe.topic_filters.iter().map(|(filter, _)| 3 + filter.len()).sum::<usize>(),
            &subscribe.user_properties,
        ),
        Packet::Unsubscribe(unsubscribe) => {
            (unsubscribe.topic_filters.iter().map(|filter| 2 + filter.len()).sum(), &unsubscribe.user_properties)
        }
        _ => return None,
    };
    Some(filters + user_property_bytes(user_properties))
}

impl Session {
    /// A change takes effect when it is read: a client may go to sleep before it hears that, and what others publish then is
    /// for it. What the subscription brings may come before the SUBACK (3.8.4), and does not, for small clients have no ear
    /// for it before.
    pub(super) fn change(&mut self, asked: Asked, effects: &mut Vec<Effect>) -> Result<(), Flaw> {
        let (packet_id, filters) = match &asked {
            Asked::Subscribe(subscribe) => (subscribe.packet_id, subscribe.topic_filters.len()),
            Asked::Unsubscribe(unsubscribe) => (unsubscribe.packet_id, unsubscribe.topic_filters.len()),
        };
        self.unused(packet_id)?;
        self.terms.may_answer(filters)?;
        if let (Version::V5, Asked::Subscribe(subscribe)) = (self.terms.version, &asked) {
            let offers = self.rights.offers();
            subscribe.topic_filters.iter().try_for_each(|(filter, _)| offers.include(filter))?;
        }
        let (mut change, answer) = match asked {
            Asked::Subscribe(subscribe) => self.subscribe(subscribe, effects),
            Asked::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe, effects),
        };
        // One that was kept and ends with this connection has rows until then, by which other nodes go.
        if self.terms.expiry_s == 0 && !self.present {
            change = Change::default();
        }
        let pending = self.pending.get_or_insert_default();
        pending.answers.push_back((packet_id, answer));
        pending.next.followed_by(change);
        if pending.storing.is_none() {
            self.store_next(effects);
        }
        Ok(())
    }

    /// What was being stored is stored.
    pub(super) fn stored(&mut self, effects: &mut Vec<Effect>) {
        let storing = self.pending.as_mut().and_then(|pending| pending.storing.take());
        if let Some((_, answers)) = storing {
            self.acknowledge(answers, effects);
            self.store_next(effects);
        }
    }

    /// Has all that waits stored in one go; or acknowledges it, where there is nothing to store.
    fn store_next(&mut self, effects: &mut Vec<Effect>) {
        let Some(pending) = &mut self.pending else { return };
        let (change, answers) = (std::mem::take(&mut pending.next), pending.answers.len());
        if change.is_empty() {
            self.acknowledge(answers, effects);
            self.pending = None;
        } else {
            effects.push(Effect::Store(change.clone()));
            pending.storing = Some((change, answers));
        }
    }

    fn acknowledge(&mut self, count: usize, effects: &mut Vec<Effect>) {
        let Some(pending) = &mut self.pending else { return };
        effects.extend(pending.answers.drain(..count).map(|(packet_id, answer)| {
            let properties = Vec::new();
            Effect::Send(match answer {
                Answer::Subscribe(status, why) => {
                    let reason_string = why.and_then(|why| self.terms.explain(why, status.len()));
                    Packet::SubscribeAck(SubscribeAck { packet_id, properties, reason_string, status })
                }
                Answer::Unsubscribe(status) => {
                    Packet::UnsubscribeAck(UnsubscribeAck { packet_id, properties, reason_string: None, status })
                }
            })
        }));
    }

    /// What has been changed and is not known to be stored, of a session that is kept.
    pub(super) fn unstored(&mut self) -> Option<Change> {
        let Pending { storing, next, .. } = *self.pending.take().filter(|_| self.terms.expiry_s > 0)?;
        let mut change = storing.map(|(change, _)| change).unwrap_or_default();
        change.followed_by(next);
        Some(change)
    }

    pub(super) fn unused(&self, packet_id: NonZeroU16) -> Result<(), Flaw> {
        let used = self.pending.as_ref().is_some_and(|pending| pending.uses(packet_id))
            || self.incoming.as_ref().is_some_and(|incoming| incoming.uses(packet_id));
        if used { Err(protocol("packet identifier in use [MQTT-2.2.1-3]")) } else { Ok(()) }
    }
}

/// The decisions, filter by filter, as if each had come in a packet of its own [MQTT-3.8.4-5] [MQTT-3.10.4-6]: of two equal
/// ones the later replaces the earlier, which had what was retained for it.
impl Session {
    fn subscribe(&mut self, subscribe: Subscribe, effects: &mut Vec<Effect>) -> (Change, Answer) {
        let (mut begun, mut why) = (BTreeMap::new(), None);
        let status = subscribe.topic_filters.into_iter().map(|(filter, options)| {
            let place = place(&self.subscriptions, &filter);
            let may = self.rights.subscribe(&self.client, &filter, options.qos).and_then(|qos| {
                let full = (SubscribeAckReason::QuotaExceeded, "no more subscriptions than a client may have");
                let room = place.is_ok() || self.subscriptions.len() < usize::from(self.limits.subscriptions_max.get());
                if room { Ok(qos) } else { Err(full) }
            });
            let qos = match may {
                Ok(qos) => qos,
                Err((reason, text)) => {
                    why = Some(text);
                    return reason;
                }
            };
            // A slice of the packet would keep all of it in memory for the life of the session.
            let filter = ByteString::from(filter.as_str().to_owned());
            let options = SubscriptionOptions { qos, ..options };
            let new = Subscription { filter: filter.clone(), options, identifier: subscribe.id };
            effects.push(Effect::Subscribed { subscription: new.clone(), existed: place.is_ok() });
            begun.insert(filter, new.clone());
            put(&mut self.subscriptions, place, new);
            match qos {
                QoS::AtMostOnce => SubscribeAckReason::GrantedQos0,
                QoS::AtLeastOnce => SubscribeAckReason::GrantedQos1,
                QoS::ExactlyOnce => SubscribeAckReason::GrantedQos2,
            }
        });
        let status = status.collect();
        (Change { begun: begun.into_values().collect(), ended: Vec::new() }, Answer::Subscribe(status, why))
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe, effects: &mut Vec<Effect>) -> (Change, Answer) {
        let mut ended = Vec::new();
        let status = unsubscribe.topic_filters.into_iter().map(|filter| {
            let Ok(place) = place(&self.subscriptions, &filter) else {
                return UnsubscribeAckReason::NoSubscriptionExisted;
            };
            let Subscription { filter, .. } = self.subscriptions.remove(place);
            effects.push(Effect::Unsubscribed { filter: filter.clone() });
            ended.push(filter);
            UnsubscribeAckReason::Success
        });
        let status = status.collect();
        (Change { begun: Vec::new(), ended }, Answer::Unsubscribe(status))
    }
}

/// By filter, as the session has them: a packet may have thousands.
pub(super) fn sorted(mut subscriptions: Vec<Subscription>) -> Vec<Subscription> {
    subscriptions.sort_unstable_by(|one, other| one.filter.cmp(&other.filter));
    subscriptions
}

/// Where the subscription with this filter is, or would be.
pub(super) fn place(subscriptions: &[Subscription], filter: &str) -> Result<usize, usize> {
    subscriptions.binary_search_by(|one| (*one.filter).cmp(filter))
}

fn put(subscriptions: &mut Vec<Subscription>, place: Result<usize, usize>, new: Subscription) {
    match place {
        Ok(place) => subscriptions[place] = new,
        Err(place) => {
            // Most have one, and a list that grows by itself makes room for four.
            subscriptions.reserve_exact(usize::from(subscriptions.is_empty()));
            subscriptions.insert(place, new);
        }
    }
}
