//! What a client receives: the page of its queue that is in flight or next.
//!
//! A queue holds rows of two kinds, [`Lane`]s: receipts and other messages. Rows of a kind that the client does not
//! subscribe to are not read, so that they neither block what is behind them nor fill the page; when it subscribes they
//! are read from where their lane was left.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::v5::codec::{Publish, PublishProperties, QoS};

use super::connect::Terms;
use super::{Effect, Limits, Subscription, messages_topic, receipts_topic};
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

/// What kind of row it is. Each kind has its topic, and goes out only while the client subscribes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A receipt: at QoS 1, and never dropped.
    Receipt,
    /// Anything else: at this QoS at most, and only until it expires.
    Message { qos: QoS, expires_at: Option<Time> },
}

/// Where the queue is to be read on, for each kind of rows; none for a kind that the client does not subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    pub receipts: Option<i64>,
    pub messages: Option<i64>,
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
    /// In the order of their places; what is not sent belongs to a lane that the client subscribes to.
    queue: VecDeque<Queued>,
    receipts: Lane,
    messages: Lane,
    /// There were hints of rows up to this place.
    hinted_to: i64,
    /// The database may have rows beyond what was read, hint or no hint.
    unread: bool,
    fetching: Fetching,
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

/// The rows of one kind.
#[derive(Debug)]
struct Lane {
    topic: ByteString,
    /// What the client subscribes with, if it does: the granted QoS and the identifier.
    granted: Option<(QoS, Option<NonZeroU32>)>,
    /// Rows of this kind up to this place are in the queue or done with.
    read_to: i64,
}

impl Lane {
    fn of(topic: ByteString) -> Self {
        Self { topic, granted: None, read_to: 0 }
    }

    /// Where it is to be read on, if it is.
    fn beyond(&self) -> Option<i64> {
        self.granted.map(|_| self.read_to)
    }
}

/// Whether the database is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetching {
    No,
    Yes,
    /// It is, and perhaps without what has been queued since.
    LookAgain,
    /// It is, for other subscriptions than there are now: the answer says nothing.
    Stale,
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
            receipts: Lane::of(receipts_topic(terminal)),
            messages: Lane::of(messages_topic(terminal)),
            hinted_to: 0,
            unread: true,
            fetching: Fetching::No,
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
        let asked = std::mem::replace(&mut self.fetching, Fetching::No);
        if asked == Fetching::Stale {
            self.unread = true;
            return;
        }
        let whole = deliveries.len() < usize::from(self.page);
        // The page is in the order of places over both lanes, so it has every row up to its last.
        let read_to = if whole { last } else { deliveries.last().map_or(last, |delivery| delivery.seq) };
        for delivery in deliveries {
            if delivery.seq > self.lane(&delivery.what).read_to {
                // A lane that was subscribed to late has places before those of the other.
                let place = self.queue.partition_point(|queued| queued.delivery.seq < delivery.seq);
                self.queue.insert(place, Queued { delivery, sent: false });
            }
        }
        for lane in [&mut self.receipts, &mut self.messages] {
            if lane.granted.is_some() {
                lane.read_to = lane.read_to.max(read_to);
            }
        }
        self.unread = !whole || asked == Fetching::LookAgain;
    }

    fn lane(&self, what: &What) -> &Lane {
        match what {
            What::Receipt => &self.receipts,
            What::Message { .. } => &self.messages,
        }
    }

    /// Whether there was a hint of a row that was not read.
    fn behind(&self) -> bool {
        let lanes = [&self.receipts, &self.messages];
        lanes.into_iter().filter_map(Lane::beyond).any(|read_to| self.hinted_to > read_to)
    }

    pub(super) fn hint(&mut self, seq: i64, receipt: Option<Bytes>) {
        // Every receipt up to `read_to` is known here, so the next place follows without a gap that could hold one.
        let known = self.fetching == Fetching::No && !self.unread && !self.behind();
        let next = known && self.receipts.beyond() == Some(seq - 1);
        if next
            && let Some(payload) = receipt
            && self.queue.len() < usize::from(self.page)
        {
            self.queue.push_back(Queued { delivery: Delivery { seq, what: What::Receipt, payload }, sent: false });
            self.receipts.read_to = seq;
            if self.messages.read_to == seq - 1 {
                self.messages.read_to = seq;
            }
        }
        self.hinted_to = self.hinted_to.max(seq);
    }

    pub(super) fn look(&mut self) {
        self.unread = true;
        if self.fetching == Fetching::Yes {
            self.fetching = Fetching::LookAgain;
        }
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

    /// What the client subscribes to now. What it left and was not sent makes room, and is read again if it comes back.
    fn heed(&mut self, subscriptions: &[Subscription]) {
        for (lane, receipts) in [(&mut self.receipts, true), (&mut self.messages, false)] {
            let found = subscriptions.iter().find(|subscription| subscription.filter == lane.topic);
            let had = lane.granted.is_some();
            lane.granted = found.map(|subscription| (subscription.options.qos, subscription.identifier));
            let has = lane.granted.is_some();
            if had == has {
                continue;
            }
            if has {
                self.unread = true;
            } else {
                self.queue.retain(|queued| {
                    let stays = queued.sent || (queued.delivery.what == What::Receipt) != receipts;
                    if !stays {
                        lane.read_to = lane.read_to.min(queued.delivery.seq - 1);
                    }
                    stays
                });
            }
            if self.fetching != Fetching::No {
                self.fetching = Fetching::Stale;
            }
        }
    }

    /// Sends what the window has room for, and asks for more rows.
    pub(super) fn deliver(&mut self, subscriptions: &[Subscription], effects: &mut Vec<Effect>) {
        self.heed(subscriptions);
        let mut in_flight = self.queue.iter().filter(|q| q.sent).map(|q| q.delivery.seq);
        let first = in_flight.next();
        let mut flying = first.map(|first| (first, in_flight.next_back().unwrap_or(first)));
        let mut place = 0;
        while self.in_flight < self.window
            && let Some(queued) = self.queue.get(place)
        {
            if queued.sent {
                place += 1;
                continue;
            }
            let seq = queued.delivery.seq;
            let (first, last) = flying.map_or((seq, seq), |(first, last)| (first.min(seq), last.max(seq)));
            if last - first >= IDENTIFIERS {
                break;
            }
            let in_flight = self.in_flight;
            place = self.send(place, effects);
            if self.in_flight > in_flight {
                flying = Some((first, last));
            }
        }
        let beyond = Beyond { receipts: self.receipts.beyond(), messages: self.messages.beyond() };
        let room = usize::from(self.page).saturating_sub(self.queue.len());
        if (beyond.receipts.is_some() || beyond.messages.is_some())
            && self.fetching == Fetching::No
            && (self.unread || self.behind())
            && room * 2 >= usize::from(self.page)
        {
            self.fetching = Fetching::Yes;
            effects.push(Effect::Fetch { beyond, max: self.page });
        }
    }

    /// Sends one; gives the place of the one after it.
    fn send(&mut self, place: usize, effects: &mut Vec<Effect>) -> usize {
        let Some(queued) = self.queue.get_mut(place) else { return place + 1 };
        let Delivery { seq, what, payload } = &queued.delivery;
        let seq = *seq;
        let (lane, asked, expires_at) = match what {
            What::Receipt => (&self.receipts, QoS::AtLeastOnce, None),
            What::Message { qos, expires_at } => (&self.messages, *qos, *expires_at),
        };
        let Some((granted, identifier)) = lane.granted else { return place + 1 };
        let remaining = expires_at.map(|at| at.since(self.now));
        if remaining.is_some_and(|remaining| remaining.is_zero()) {
            // [MQTT-3.3.2-5]: it must not be sent. The row is the housekeeping's to delete.
            self.queue.remove(place);
            return place;
        }
        // [MQTT-3.8.4-8].
        let qos = asked.min(granted);
        let packet_id = (qos != QoS::AtMostOnce).then(|| packet_id(seq));
        let receipt = *what == What::Receipt;
        let publish = Publish {
            dup: packet_id.is_some() && seq <= self.sent_before,
            retain: false,
            qos,
            packet_id,
            payload_size: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            properties: PublishProperties {
                message_expiry_interval: remaining.and_then(seconds),
                subscription_ids: identifier.into_iter().collect(),
                ..PublishProperties::default()
            },
            topic: lane.topic.clone(),
        };
        if frame_bytes(&publish) > u64::from(self.packet_bytes_max) {
            // [MQTT-3.1.2-25]: it counts as delivered. But a receipt is never dropped, so it stays in the database.
            self.queue.remove(place);
            effects.push(Effect::TooLarge { seq });
            if !receipt {
                effects.push(Effect::Acked { seq, receipt });
            }
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

/// What is left of a message's time, in seconds; a second that has begun counts.
fn seconds(remaining: Duration) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(remaining.as_millis().div_ceil(1000)).unwrap_or(u32::MAX))
}

/// The largest payload of a message to this terminal in a packet of so many bytes.
#[must_use]
pub fn payload_bytes_max(terminal: &TerminalId, packet_bytes_max: u32) -> u32 {
    let properties = PublishProperties {
        message_expiry_interval: NonZeroU32::new(1),
        subscription_ids: vec![NonZeroU32::MIN],
        ..PublishProperties::default()
    };
    let empty = Publish { topic: messages_topic(terminal), properties, ..Publish::default() };
    u32::try_from(u64::from(packet_bytes_max).saturating_sub(frame_bytes(&empty))).unwrap_or(0)
}

/// No fewer bytes than the packet has on the wire.
fn frame_bytes(publish: &Publish) -> u64 {
    let identifiers = publish.properties.subscription_ids.len() * 5;
    let expiry = if publish.properties.message_expiry_interval.is_some() { 5 } else { 0 };
    let bytes = 5 + 2 + publish.topic.len() + 2 + 1 + identifiers + expiry;
    u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(u64::from(publish.payload_size))
}
