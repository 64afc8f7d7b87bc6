//! What is retained for a new subscription, given a page at a time.
//!
//! Nothing is copied when a client subscribes: it is owed what is retained then, and has the next page when there is room for
//! one. What is kept at a topic later comes to it as any publish does, and is left out here: so nobody hears of a topic twice
//! what is new, or what is old after it. What another node has kept comes to it as a publish only if that is stored for it; so that
//! is not left out, and may come twice.

use std::sync::Arc;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{QoS, RetainHandling};
use wakala::id::ClientId;
use wakala::message::Message as Published;
use wakala::session::{Addressed, Subscription};
use wakala::time::Time;
use wakala::topics::{Retained, shared};

use super::Router;
use crate::store::retained::RetainedMessage;

/// What one subscription is still owed.
#[derive(Clone, Debug)]
pub(crate) struct Owed {
    subscription: Subscription,
    /// Nothing that it published itself [MQTT-3.8.3-3].
    not_of: Option<ClientId>,
    behind: Behind,
    /// Nothing that came after so many others.
    until: u64,
    only: Option<Only>,
    done: bool,
}

/// Where it is, and the last place that was looked at.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    Retained(Option<Box<str>>),
    /// What the broker says of itself.
    Announced(Option<Box<str>>),
    /// Who is there.
    Present(Option<ClientId>),
}

/// Which of the messages, for a session that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    AtMostOnce,
    /// Those that are stored for it.
    AboveThat,
}

/// How much may be looked at now.
#[derive(Debug)]
pub(crate) struct Share {
    /// Topics, or clients of whose presence is told.
    pub(crate) looks: u16,
    /// What is found is not more by far.
    pub(crate) bytes: u32,
}

impl Owed {
    /// None if the subscription asks for nothing of it (3.8.3.1).
    pub(crate) fn of(client: &ClientId, new: &Subscription, existed: bool, behind: Behind, until: u64) -> Option<Self> {
        let wanted = match new.options.retain_handling {
            RetainHandling::AtSubscribe => true,
            RetainHandling::AtSubscribeNew => !existed,
            RetainHandling::NoAtSubscribe => false,
        };
        let alone = !matches!(shared(&new.filter), Ok(Some(_)));
        let not_of = new.options.no_local.then(|| client.clone());
        (wanted && alone).then(|| Self { subscription: new.clone(), not_of, behind, until, only: None, done: false })
    }

    /// These of it alone.
    pub(crate) fn only(&self, only: Only) -> Self {
        Self { only: Some(only), ..self.clone() }
    }

    pub(crate) fn filter(&self) -> &ByteString {
        &self.subscription.filter
    }

    /// Whether a later subscription to the same filter owes this again.
    pub(crate) fn is_in(&self, later: &Self) -> bool {
        let same = std::mem::discriminant(&self.behind) == std::mem::discriminant(&later.behind);
        same && self.only == later.only && self.filter() == later.filter()
    }

    /// Nothing is owed any more.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn behind(&self) -> &Behind {
        &self.behind
    }

    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// Takes a page out of what was found, as far as the share goes. Gives the last place that was looked at besides.
    pub(crate) fn fill<P>(
        &self,
        mut found: impl Iterator<Item = (P, Option<Arc<Published>>)>,
        share: &mut Share,
        now: Time,
    ) -> Page<P> {
        let (mut messages, mut last, mut bytes) = (Vec::new(), None, 0_u32);
        while share.looks > 0 && bytes < share.bytes {
            let Some((place, message)) = found.next() else { return Page { messages, last, done: true } };
            share.looks -= 1;
            last = Some(place);
            if let Some(message) = message.filter(|message| !message.is_over(now) && self.has(message)) {
                let Subscription { options, identifier, .. } = &self.subscription;
                let identifiers = identifier.iter().copied().collect();
                let addressed = Addressed { message, qos: options.qos, retain: true, identifiers };
                bytes = bytes.saturating_add(addressed.bytes());
                messages.push(addressed);
            }
        }
        Page { messages, last, done: false }
    }

    fn wants(&self, retained: &RetainedMessage) -> Option<Arc<Published>> {
        let own = self.not_of.is_some() && self.not_of == retained.publisher;
        (!own).then(|| Arc::clone(&retained.message))
    }

    fn has(&self, message: &Published) -> bool {
        let at_most_once = message.qos.min(self.subscription.options.qos) == QoS::AtMostOnce;
        self.only.is_none_or(|only| (only == Only::AtMostOnce) == at_most_once)
    }

    /// The next page is behind that place.
    pub(crate) fn go_on(&mut self, last: Option<Behind>, done: bool) {
        self.behind = last.unwrap_or_else(|| self.behind.clone());
        self.done = done;
    }
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Page<P> {
    pub(crate) messages: Vec<Addressed>,
    pub(crate) last: Option<P>,
    pub(crate) done: bool,
}

impl Router {
    /// The next of what is retained, as far as the share goes.
    pub(crate) fn page(&self, owed: &mut Owed, share: &mut Share, now: Time) -> Vec<Addressed> {
        let page = |messages: &Retained<RetainedMessage>, after: &Option<Box<str>>, share| {
            let found = messages.look(owed.filter(), after.as_deref(), owed.until);
            let found = found.map(|(topic, retained)| (topic, retained.and_then(|retained| owed.wants(retained))));
            let Page { messages, last, done } = owed.fill(found, share, now);
            Page { messages, last: last.map(Box::from), done }
        };
        let (Page { messages, last, done }, behind): (_, fn(_) -> _) = match &owed.behind {
            Behind::Retained(after) => (self.0.retained.looked_at(|all| page(all, after, share)), Behind::Retained),
            Behind::Announced(after) => (page(&self.announced(), after, share), Behind::Announced),
            Behind::Present(_) => return Vec::new(),
        };
        owed.go_on(last.map(|topic| behind(Some(topic))), done);
        messages
    }

    /// Whether a client's session is kept and subscribes to this filter.
    pub(crate) fn keeps_for(&self, client: &ClientId, filter: &ByteString) -> bool {
        let table = self.0.table.read();
        table.clients.get(client).is_some_and(|client| client.kept && client.filters.contains(filter))
    }
}

#[cfg(test)]
mod tests {
    use ntex_mqtt::v5::codec::SubscriptionOptions;
    use wakala::mqtt::Properties;

    use super::*;

    fn to(filter: &'static str) -> Subscription {
        let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        Subscription { filter: filter.into(), options, identifier: None }
    }

    fn own() -> ClientId {
        ClientId::new("own").expect("short")
    }

    fn message(qos: QoS, payload: usize) -> Arc<Published> {
        let (topic, payload) = (ByteString::from_static("t"), vec![0; payload].into());
        Arc::new(Published { topic, payload, qos, retain: true, expires_at: None, properties: Properties::default() })
    }

    #[test]
    fn no_more_is_looked_at_or_given_than_the_share_goes() {
        let owed = Owed::of(&own(), &to("t"), false, Behind::Retained(None), 0).expect("owed");
        let take = |looks, bytes, found: &[Option<usize>]| {
            let mut share = Share { looks, bytes };
            let found = found.iter().map(|bytes| bytes.map(|bytes| message(QoS::AtLeastOnce, bytes)));
            let page = owed.fill((0..).zip(found), &mut share, Time::from_millis(0));
            (page.messages.len(), page.last, page.done, share.looks)
        };
        assert_eq!(
            take(2, 100, &[Some(1), None, Some(1)]),
            (1, Some(1), false, 0),
            "what does not match is looked at too"
        );
        assert_eq!(take(9, 10, &[Some(8), Some(8), Some(8)]), (2, Some(1), false, 7), "too many bytes");
        assert_eq!(take(9, 100, &[Some(8), None]), (1, Some(1), true, 7));
        assert_eq!(take(9, 100, &[]), (0, None, true, 9));
    }

    #[test]
    fn of_what_is_stored_and_what_is_not_each_is_given_once() {
        let owed = Owed::of(&own(), &to("t"), false, Behind::Retained(None), 0).expect("owed");
        for (only, given) in [(Only::AtMostOnce, [1, 0]), (Only::AboveThat, [0, 1])] {
            let given_of = |qos| {
                let found = std::iter::once((0, Some(message(qos, 1))));
                let mut share = Share { looks: 9, bytes: 9 };
                owed.only(only).fill(found, &mut share, Time::from_millis(0)).messages.len()
            };
            assert_eq!([given_of(QoS::AtMostOnce), given_of(QoS::ExactlyOnce)], given);
        }
    }

    /// [MQTT-3.8.3-3]
    #[test]
    fn who_wants_no_local_messages_is_not_owed_its_own() {
        let by = |publisher: Option<&str>| RetainedMessage {
            message: message(QoS::AtLeastOnce, 1),
            publisher: publisher.map(|name| ClientId::new(name).expect("short")),
        };
        for (no_local, wanted) in [(true, [false, true, true]), (false, [true; 3])] {
            let mut new = to("t");
            new.options.no_local = no_local;
            let owed = Owed::of(&own(), &new, false, Behind::Retained(None), 0).expect("owed");
            let wants = [Some("own"), Some("other"), None].map(|publisher| owed.wants(&by(publisher)).is_some());
            assert_eq!(wants, wanted);
        }
    }

    #[test]
    fn a_subscription_asks_for_what_is_retained_or_does_not() {
        let asks = |filter, retain_handling, existed| {
            let mut new = to(filter);
            new.options.retain_handling = retain_handling;
            Owed::of(&own(), &new, existed, Behind::Retained(None), 0).is_some()
        };
        assert!(asks("t", RetainHandling::AtSubscribe, true) && asks("t", RetainHandling::AtSubscribeNew, false));
        assert!(!asks("t", RetainHandling::AtSubscribeNew, true) && !asks("t", RetainHandling::NoAtSubscribe, false));
        assert!(!asks("$share/g/t", RetainHandling::AtSubscribe, false));
    }
}
