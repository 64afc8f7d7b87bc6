//! What a client receives: the page of its queue that is in flight or next.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Publish, PublishProperties, QoS};

use super::connect::Terms;
use super::{Effect, Limits, Subscription, receipts_topic};
use crate::id::TerminalId;
use crate::time::Time;

/// One row of a client's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The place in the client's queue, counted from 1 for the life of the client.
    pub seq: i64,
    pub what: What,
    pub payload: Bytes,
}

/// What kind of row it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A receipt: to the terminal's own topic, at QoS 1, and only while it has subscribed to it.
    Receipt,
    Message {
        topic: ByteString,
        qos: QoS,
        retain: bool,
    },
}

/// The packet identifier of a row. It follows from the row's place, so that a resend carries the original one
/// [MQTT-4.4.0-1] although nothing was written when the row was sent.
#[must_use]
pub fn packet_id(seq: i64) -> NonZeroU16 {
    let number = 1 + seq.saturating_sub(1).rem_euclid(IDENTIFIERS);
    u16::try_from(number).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
}

/// How many packet identifiers there are (2.2.1).
const IDENTIFIERS: i64 = 65_535;

#[derive(Debug)]
pub(super) struct Outgoing {
    /// In the order of their places.
    queue: VecDeque<Queued>,
    topic: ByteString,
    /// Rows up to this place are in `queue` or done with.
    read_to: i64,
    /// There were hints of rows up to this place.
    hinted_to: i64,
    /// The database may have rows beyond `read_to`, hint or no hint.
    unread: bool,
    /// The database is being read.
    fetching: bool,
    /// Rows up to this place may have been sent on an earlier connection.
    sent_before: i64,
    /// The highest place that was sent, on this connection or an earlier one.
    sent_to: i64,
    in_flight: u16,
    window: u16,
    page: u16,
    packet_bytes_max: u32,
    ack_within: Duration,
    /// When the client last acknowledged something, or was first sent something after all was acknowledged.
    progress: Time,
    now: Time,
}

#[derive(Debug)]
struct Queued {
    delivery: Delivery,
    sent: bool,
}

impl Outgoing {
    pub(super) fn new(terminal: &TerminalId, terms: &Terms, limits: &Limits, sent_to: i64, now: Time) -> Self {
        Self {
            queue: VecDeque::new(),
            topic: receipts_topic(terminal),
            read_to: 0,
            hinted_to: 0,
            unread: true,
            fetching: false,
            sent_before: sent_to,
            sent_to,
            in_flight: 0,
            window: terms.receive_max.min(limits.outbound_max.get()),
            page: limits.page.get(),
            packet_bytes_max: terms.packet_bytes_max,
            ack_within: limits.ack_within,
            progress: now,
            now,
        }
    }

    pub(super) fn now(&mut self, now: Time) {
        self.now = now;
    }

    pub(super) fn sent_to(&self) -> i64 {
        self.sent_to
    }

    /// When the connection is given up because nothing was acknowledged.
    pub(super) fn stalls_at(&self) -> Option<Time> {
        (self.in_flight > 0).then(|| self.progress + self.ack_within)
    }

    pub(super) fn fetched(&mut self, deliveries: Vec<Delivery>, last: i64) {
        self.fetching = false;
        let whole = deliveries.len() < usize::from(self.page);
        for delivery in deliveries {
            if delivery.seq > self.read_to {
                self.read_to = delivery.seq;
                self.queue.push_back(Queued { delivery, sent: false });
            }
        }
        self.unread = !whole;
        if whole {
            self.read_to = self.read_to.max(last);
        }
    }

    pub(super) fn hint(&mut self, seq: i64, receipt: Option<Bytes>) {
        // Every place up to `read_to` is known here, so the next one follows without a gap that could hold a row.
        let known = !self.fetching && !self.unread && self.hinted_to <= self.read_to;
        let next = known && seq == self.read_to + 1;
        if next
            && let Some(payload) = receipt
            && self.queue.len() < usize::from(self.page)
        {
            self.queue.push_back(Queued { delivery: Delivery { seq, what: What::Receipt, payload }, sent: false });
            self.read_to = seq;
        }
        self.hinted_to = self.hinted_to.max(seq);
    }

    pub(super) fn look(&mut self) {
        self.unread = true;
    }

    pub(super) fn acked(&mut self, packet_id: NonZeroU16, now: Time, effects: &mut Vec<Effect>) {
        let place = self.queue.iter().position(|q| q.sent && self::packet_id(q.delivery.seq) == packet_id);
        // An acknowledgement of nothing that is in flight is one that came late: no fault (4.4).
        let Some(queued) = place.and_then(|place| self.queue.remove(place)) else { return };
        self.in_flight -= 1;
        self.progress = now;
        let receipt = queued.delivery.what == What::Receipt;
        effects.push(Effect::Acked { seq: queued.delivery.seq, receipt });
        if self.queue.is_empty() && self.queue.capacity() > 8 {
            self.queue = VecDeque::new();
        }
    }

    /// Sends what the window has room for, and asks for more rows.
    pub(super) fn deliver(&mut self, subscriptions: &[Subscription], effects: &mut Vec<Effect>) {
        if subscriptions.is_empty() {
            return;
        }
        let receipts = subscriptions.iter().find(|subscription| *subscription.filter == *self.topic);
        let mut first_in_flight = self.queue.iter().find(|q| q.sent).map(|q| q.delivery.seq);
        let mut place = 0;
        while self.in_flight < self.window
            && let Some(queued) = self.queue.get(place)
        {
            let seq = queued.delivery.seq;
            if queued.sent || (queued.delivery.what == What::Receipt && receipts.is_none()) {
                place += 1;
                continue;
            }
            if first_in_flight.is_some_and(|first| seq - first >= IDENTIFIERS) {
                break;
            }
            let in_flight = self.in_flight;
            place = self.send(place, subscriptions, effects);
            if self.in_flight > in_flight {
                first_in_flight = first_in_flight.or(Some(seq));
            }
        }
        let room = usize::from(self.page).saturating_sub(self.queue.len());
        if !self.fetching && (self.unread || self.hinted_to > self.read_to) && room * 2 >= usize::from(self.page) {
            self.fetching = true;
            effects.push(Effect::Fetch { after: self.read_to, max: self.page });
        }
    }

    /// Sends one; gives the place of the one after it.
    fn send(&mut self, place: usize, subscriptions: &[Subscription], effects: &mut Vec<Effect>) -> usize {
        let Some(queued) = self.queue.get_mut(place) else { return place + 1 };
        let Delivery { seq, what, payload } = &queued.delivery;
        let (seq, receipt) = (*seq, *what == What::Receipt);
        let (topic, qos, retain) = match what {
            What::Receipt => (self.topic.clone(), QoS::AtLeastOnce, false),
            What::Message { topic, qos, retain } => (topic.clone(), *qos, *retain),
        };
        let identifier = subscriptions.iter().find(|s| *s.filter == *topic).and_then(|s| s.identifier);
        let packet_id = (qos != QoS::AtMostOnce).then(|| packet_id(seq));
        let publish = Publish {
            dup: packet_id.is_some() && seq <= self.sent_before,
            retain,
            qos,
            packet_id,
            payload_size: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            properties: PublishProperties {
                subscription_ids: identifier.into_iter().collect(),
                ..PublishProperties::default()
            },
            topic,
        };
        if frame_bytes(&publish) > u64::from(self.packet_bytes_max) {
            // [MQTT-3.1.2-24]: it must not be sent. A receipt is never dropped, so it stays in the database.
            self.queue.remove(place);
            effects.push(Effect::TooLarge { seq });
            return place;
        }
        effects.push(Effect::Publish(publish, payload.clone()));
        if packet_id.is_none() {
            self.queue.remove(place);
            effects.push(Effect::Acked { seq, receipt });
            return place;
        }
        queued.sent = true;
        if self.in_flight == 0 {
            self.progress = self.now;
        }
        self.in_flight += 1;
        self.sent_to = self.sent_to.max(seq);
        place + 1
    }
}

/// No fewer bytes than the packet has on the wire.
fn frame_bytes(publish: &Publish) -> u64 {
    let identifiers = publish.properties.subscription_ids.len() * 5;
    let bytes = 5 + 2 + publish.topic.len() + 2 + 1 + identifiers;
    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(u64::from(publish.payload_size))
}
