//! What a client subscribes to, and what it may.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{
    Packet, QoS, Subscribe, SubscribeAck, SubscribeAckReason, SubscriptionOptions, Unsubscribe, UnsubscribeAck,
    UnsubscribeAckReason,
};

use super::rights::Rights;
use super::strict::Flaw;
use super::{Effect, Session, protocol};
use crate::id::ClientId;
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

    /// Of two subscriptions with the same filter the later counts.
    fn keep_the_last_of_each(&mut self) {
        for new in std::mem::take(&mut self.begun) {
            self.begun.retain(|earlier| earlier.filter != new.filter);
            self.begun.push(new);
        }
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

    /// Makes the change.
    pub fn apply(self, subscriptions: &mut Vec<Subscription>) {
        subscriptions.retain(|old| !self.ended.contains(&old.filter));
        for new in self.begun {
            match subscriptions.iter_mut().find(|old| old.filter == new.filter) {
                Some(old) => *old = new,
                None => {
                    // Most have one, and a list that grows by itself makes room for four.
                    subscriptions.reserve_exact(usize::from(subscriptions.is_empty()));
                    subscriptions.push(new);
                }
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
        let has = &self.subscriptions;
        let (mut change, answer) = match asked {
            Asked::Subscribe(subscribe) => {
                decide::subscribe(&self.client, &self.rights, has, self.limits.subscriptions_max, subscribe)
            }
            Asked::Unsubscribe(unsubscribe) => decide::unsubscribe(has, unsubscribe),
        };
        // Filter by filter, as if each had come in a packet of its own [MQTT-3.8.4-5]: of two equal ones the later replaces the
        // earlier, which had what was retained for it.
        let begins = |(nth, new): (usize, &Subscription)| Effect::Subscribed {
            subscription: new.clone(),
            existed: has.iter().chain(&change.begun[..nth]).any(|old| old.filter == new.filter),
        };
        effects.extend(change.begun.iter().enumerate().map(begins));
        change.keep_the_last_of_each();
        effects.extend(change.ended.iter().map(|filter| Effect::Unsubscribed { filter: filter.clone() }));
        change.clone().apply(&mut self.subscriptions);
        if self.terms.expiry_s == 0 {
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

/// The decisions, filter by filter.
mod decide {
    use super::*;

    pub(super) fn subscribe(
        client: &ClientId,
        rights: &Rights,
        subscriptions: &[Subscription],
        max: NonZeroU16,
        subscribe: Subscribe,
    ) -> (Change, Answer) {
        let mut room = usize::from(max.get()).saturating_sub(subscriptions.len());
        let mut granted: Vec<Subscription> = Vec::new();
        let mut why = None;
        let status = subscribe.topic_filters.into_iter().map(|(filter, options)| {
            let new = subscriptions.iter().chain(&granted).all(|subscription| subscription.filter != filter);
            let may = rights.subscribe(client, &filter, options.qos).and_then(|qos| {
                let full = (SubscribeAckReason::QuotaExceeded, "no more subscriptions than a client may have");
                room = if new { room.checked_sub(1).ok_or(full)? } else { room };
                Ok(qos)
            });
            match may {
                Ok(qos) => {
                    let options = SubscriptionOptions { qos, ..options };
                    // A slice of the packet would keep all of it in memory for the life of the session.
                    let filter = ByteString::from(filter.as_str().to_owned());
                    granted.push(Subscription { filter, options, identifier: subscribe.id });
                    match qos {
                        QoS::AtMostOnce => SubscribeAckReason::GrantedQos0,
                        QoS::AtLeastOnce => SubscribeAckReason::GrantedQos1,
                        QoS::ExactlyOnce => SubscribeAckReason::GrantedQos2,
                    }
                }
                Err((reason, text)) => {
                    why = Some(text);
                    reason
                }
            }
        });
        let status = status.collect();
        (Change { begun: granted, ended: Vec::new() }, Answer::Subscribe(status, why))
    }

    pub(super) fn unsubscribe(subscriptions: &[Subscription], unsubscribe: Unsubscribe) -> (Change, Answer) {
        let mut gone: Vec<ByteString> = Vec::new();
        let status = unsubscribe.topic_filters.into_iter().map(|filter| {
            if subscriptions.iter().any(|subscription| subscription.filter == filter) && !gone.contains(&filter) {
                gone.push(filter);
                UnsubscribeAckReason::Success
            } else {
                UnsubscribeAckReason::NoSubscriptionExisted
            }
        });
        let status = status.collect();
        (Change { begun: Vec::new(), ended: gone }, Answer::Unsubscribe(status))
    }
}
