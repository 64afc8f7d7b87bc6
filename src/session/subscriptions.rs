//! What a client subscribes to, and what it may.

use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{
    Packet, QoS, Subscribe, SubscribeAck, SubscribeAckReason, SubscriptionOptions, Unsubscribe, UnsubscribeAck,
    UnsubscribeAckReason,
};

use super::Effect;
use super::connect::Terms;
use super::rights::Rights;
use crate::id::ClientId;

/// One subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub filter: ByteString,
    /// The granted QoS and the other options (3.8.3.1).
    pub options: SubscriptionOptions,
    /// Goes out with every message that it matches (3.8.2.1.2).
    pub identifier: Option<NonZeroU32>,
}

/// What is to be stored of a SUBSCRIBE or an UNSUBSCRIBE before it is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A subscription with the same filter is replaced [MQTT-3.8.4-3].
    Subscribe(Vec<Subscription>),
    Unsubscribe(Vec<ByteString>),
}

/// A SUBSCRIBE or UNSUBSCRIBE, and the acknowledgement that waits for its change.
#[derive(Debug)]
pub(super) struct Pending {
    packet_id: NonZeroU16,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Another is before it, whose change it is decided upon.
    Asked(Asked),
    Decided(Option<Change>, Answer),
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

impl Pending {
    pub(super) fn new(asked: Asked) -> Self {
        let packet_id = match &asked {
            Asked::Subscribe(subscribe) => subscribe.packet_id,
            Asked::Unsubscribe(unsubscribe) => unsubscribe.packet_id,
        };
        Self { packet_id, state: State::Asked(asked) }
    }

    pub(super) fn packet_id(&self) -> NonZeroU16 {
        self.packet_id
    }

    /// Decides it upon what the client subscribes to now.
    pub(super) fn decide(&mut self, client: &ClientId, rights: &Rights, has: &[Subscription], max: NonZeroU16) {
        if let State::Asked(asked) = &mut self.state {
            self.state = match asked {
                Asked::Subscribe(subscribe) => decide::subscribe(client, rights, has, max, subscribe),
                Asked::Unsubscribe(unsubscribe) => decide::unsubscribe(has, unsubscribe),
            };
        }
    }

    pub(super) fn change(&self) -> Option<&Change> {
        match &self.state {
            State::Decided(change, _) => change.as_ref(),
            State::Asked(_) => None,
        }
    }

    /// Makes the change and gives the acknowledgement. What others must know of it comes before.
    pub(super) fn apply(self, subscriptions: &mut Vec<Subscription>, terms: &Terms, effects: &mut Vec<Effect>) {
        let State::Decided(change, answer) = self.state else { return };
        match change {
            Some(Change::Subscribe(new)) => {
                for subscription in new {
                    let old = subscriptions.iter_mut().find(|old| old.filter == subscription.filter);
                    effects.push(Effect::Subscribed { subscription: subscription.clone(), existed: old.is_some() });
                    match old {
                        Some(old) => *old = subscription,
                        None => {
                            // Most have one, and a list that grows by itself makes room for four.
                            subscriptions.reserve_exact(usize::from(subscriptions.is_empty()));
                            subscriptions.push(subscription);
                        }
                    }
                }
            }
            Some(Change::Unsubscribe(filters)) => {
                subscriptions.retain(|old| !filters.contains(&old.filter));
                effects.extend(filters.into_iter().map(|filter| Effect::Unsubscribed { filter }));
            }
            None => {}
        }
        let (packet_id, properties) = (self.packet_id, Vec::new());
        effects.push(Effect::Send(match answer {
            Answer::Subscribe(status, why) => {
                let reason_string = why.and_then(|why| terms.explain(why, status.len()));
                Packet::SubscribeAck(SubscribeAck { packet_id, properties, reason_string, status })
            }
            Answer::Unsubscribe(status) => {
                Packet::UnsubscribeAck(UnsubscribeAck { packet_id, properties, reason_string: None, status })
            }
        }));
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
        subscribe: &mut Subscribe,
    ) -> State {
        let mut room = usize::from(max.get()).saturating_sub(subscriptions.len());
        let mut granted: Vec<Subscription> = Vec::new();
        let mut why = None;
        let status = std::mem::take(&mut subscribe.topic_filters).into_iter().map(|(filter, options)| {
            let new = subscriptions.iter().chain(&granted).all(|subscription| subscription.filter != filter);
            let may = rights.subscribe(client, &filter, options.qos).and_then(|qos| {
                let full = (SubscribeAckReason::QuotaExceeded, "no more subscriptions than a client may have");
                room = if new { room.checked_sub(1).ok_or(full)? } else { room };
                Ok(qos)
            });
            match may {
                Ok(qos) => {
                    // Of two equal filters in one packet the later counts (3.8.4).
                    granted.retain(|earlier| earlier.filter != filter);
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
        let change = (!granted.is_empty()).then_some(Change::Subscribe(granted));
        State::Decided(change, Answer::Subscribe(status, why))
    }

    pub(super) fn unsubscribe(subscriptions: &[Subscription], unsubscribe: &mut Unsubscribe) -> State {
        let mut gone: Vec<ByteString> = Vec::new();
        let status = std::mem::take(&mut unsubscribe.topic_filters).into_iter().map(|filter| {
            if subscriptions.iter().any(|subscription| subscription.filter == filter) && !gone.contains(&filter) {
                gone.push(filter);
                UnsubscribeAckReason::Success
            } else {
                UnsubscribeAckReason::NoSubscriptionExisted
            }
        });
        let status = status.collect();
        State::Decided((!gone.is_empty()).then_some(Change::Unsubscribe(gone)), Answer::Unsubscribe(status))
    }
}
