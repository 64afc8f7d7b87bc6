//! Who is sent what: the real trees of topics, held against the definition of a match, and every copy that was made.

use std::collections::BTreeMap;

use ntex_mqtt::v5::codec::RetainHandling;

use super::super::*;
use super::Tally;
use crate::topics::{self, Granted, Reach, Retained, Subscriptions, shared};

pub(super) const TOPICS: [&str; 3] = ["a", "a/b", "c"];
pub(super) const FILTERS: [&str; 5] = ["a/#", "+", "c", "$share/g/#", "a/b"];

/// One message for one subscriber.
pub(super) struct Copy {
    pub(super) client: usize,
    pub(super) qos: QoS,
    /// Nothing is promised: its session was over, or its time may be.
    pub(super) excused: bool,
    /// Not to be sent from then on.
    pub(super) over_at: Option<Time>,
    pub(super) heard: u32,
    /// It was sent when it was over.
    pub(super) late: bool,
}

#[derive(Default)]
pub(super) struct Broker {
    subscriptions: Subscriptions<usize>,
    retained: Retained<Arc<Message>>,
    /// What the trees should have in them.
    has: [Vec<Subscription>; 2],
    last: BTreeMap<String, Arc<Message>>,
    pub(super) copies: Vec<Copy>,
}

impl Broker {
    /// A client is connected, or its node is new, with these subscriptions and no others.
    pub(super) fn only(&mut self, client: usize, with: &[Subscription]) {
        for gone in std::mem::take(&mut self.has[client]) {
            assert!(self.subscriptions.unsubscribe(&client, &gone.filter));
        }
        for subscription in with {
            self.put(client, subscription);
        }
        self.has[client] = with.to_vec();
    }

    /// That what is for a client is what is stored of it.
    pub(super) fn has_only(&self, client: usize, stored: &[Subscription]) {
        let has = &self.has[client];
        assert!(has.len() == stored.len() && has.iter().all(|one| stored.contains(one)), "{has:?}, stored {stored:?}");
    }

    fn put(&mut self, client: usize, subscription: &Subscription) -> bool {
        let granted = Granted { options: subscription.options, identifier: subscription.identifier };
        self.subscriptions.subscribe(client, &subscription.filter, granted).expect("a filter")
    }

    /// A new subscription; what was retained for it.
    pub(super) fn subscribe(
        &mut self,
        client: usize,
        subscription: Subscription,
        existed: bool,
        tally: &mut Tally,
    ) -> Vec<Addressed> {
        let place = self.has[client].iter().position(|old| old.filter == subscription.filter);
        assert_eq!(place.is_some(), existed, "whether it was there: {}", subscription.filter);
        assert_eq!(self.put(client, &subscription), existed);
        *(if existed { &mut tally.replaced } else { &mut tally.subscribed }) += 1;
        let sends = match subscription.options.retain_handling {
            RetainHandling::AtSubscribe => true,
            RetainHandling::AtSubscribeNew => !existed,
            RetainHandling::NoAtSubscribe => false,
        } && !subscription.filter.starts_with("$share/");
        let filter = subscription.filter.clone();
        let options = subscription.options;
        match place {
            Some(place) => self.has[client][place] = subscription,
            None => self.has[client].push(subscription),
        }
        if !sends {
            return Vec::new();
        }
        let found: Vec<_> =
            self.retained.look(&filter, None, u64::MAX).filter_map(|(_, message)| message.cloned()).collect();
        let wanted = self.last.iter().filter(|(topic, _)| topics::matches(&filter, topic));
        assert!(found.iter().eq(wanted.map(|(_, message)| message)), "what is retained");
        tally.retained += u64::try_from(found.len()).expect("few");
        let addressed = |message| Addressed { message, qos: options.qos, retain: true, identifiers: Vec::new() };
        found.into_iter().map(addressed).collect()
    }

    pub(super) fn unsubscribe(&mut self, client: usize, filter: &str) {
        assert!(self.subscriptions.unsubscribe(&client, filter));
        self.has[client].retain(|old| old.filter != *filter);
    }

    /// The session is over: nothing more is owed.
    pub(super) fn forget(&mut self, client: usize) {
        self.only(client, &[]);
        self.copies.iter_mut().filter(|copy| copy.client == client).for_each(|copy| copy.excused = true);
    }

    /// Who is to be sent a message, and at which QoS.
    pub(super) fn route(&mut self, message: &Arc<Message>, tally: &mut Tally) -> Vec<(usize, QoS)> {
        if message.retain {
            let topic = message.topic.to_string();
            if message.payload.is_empty() {
                self.retained.forget(&topic);
                self.last.remove(&topic);
            } else {
                self.retained.keep(&topic, Arc::clone(message), message.bytes());
                self.last.insert(topic, Arc::clone(message));
            }
        }
        let mut found = Vec::new();
        self.subscriptions.route(&message.topic, None, |_| Reach::Connected, &mut found);
        let own: Vec<_> = found.iter().filter(|to| !to.shared).map(|to| (to.client, to.qos)).collect();
        let best = |client: usize| {
            let fits = |subscription: &&Subscription| topics::matches(&subscription.filter, &message.topic);
            self.has[client].iter().filter(fits).map(|subscription| subscription.options.qos).max()
        };
        let wanted: Vec<_> = (0..2).filter_map(|client| Some((client, best(client)?))).collect();
        assert_eq!(own, wanted, "who subscribes to {}", message.topic);
        let is_member = |subscription: &Subscription| {
            let group = shared(&subscription.filter).expect("a filter");
            group.is_some_and(|group| topics::matches(group.filter, &message.topic))
        };
        let members: Vec<_> = (0..2).filter(|&client| self.has[client].iter().any(is_member)).collect();
        let group: Vec<_> = found.iter().filter(|to| to.shared).map(|to| to.client).collect();
        assert_eq!(group.len(), usize::from(!members.is_empty()), "one of a group");
        assert!(group.iter().all(|client| members.contains(client)));
        tally.shared += u64::try_from(group.len()).expect("few");
        found.into_iter().map(|to| (to.client, to.qos)).collect()
    }

    /// A copy for one subscriber, which its payload names.
    pub(super) fn copy(&mut self, client: usize, addressed: &Addressed) -> Addressed {
        let number = self.copies.len();
        let qos = addressed.qos.min(addressed.message.qos);
        let over_at = addressed.message.expires_at;
        self.copies.push(Copy { client, qos, excused: over_at.is_some(), over_at, heard: 0, late: false });
        let message = Message { payload: Bytes::from(number.to_string()), ..Message::clone(&addressed.message) };
        Addressed { message: Arc::new(message), ..addressed.clone() }
    }

    /// That everybody heard what they were owed, in order.
    pub(super) fn kept_their_promises(&self, heard: &[Vec<usize>; 2]) {
        for (number, copy) in self.copies.iter().enumerate() {
            let why = format!("copy {number} for {} at {:?} was heard {} times", copy.client, copy.qos, copy.heard);
            match copy.qos {
                QoS::AtMostOnce => assert!(copy.heard <= 1, "{why}"),
                QoS::AtLeastOnce => assert!(copy.heard >= 1 || copy.excused, "{why}"),
                QoS::ExactlyOnce => assert!(copy.heard == 1 || copy.heard == 0 && copy.excused, "{why}"),
            }
        }
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for heard in heard {
                let mut seen = std::collections::BTreeSet::new();
                // One that was over and left out is sent all the same when its node dies before that is stored.
                let first = |number: &&usize| {
                    let copy = &self.copies[**number];
                    copy.qos == qos && !copy.late && seen.insert(**number)
                };
                assert!(heard.iter().filter(first).is_sorted(), "{qos:?} out of order: {heard:?}");
            }
        }
    }
}
