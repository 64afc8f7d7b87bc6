//! What a client receives: the page of its queue that is in flight or next, and what is for this connection alone.
//!
//! A queue in the database holds rows of two kinds: receipts and other messages ([`lanes`]). Rows of a kind that the client
//! does not subscribe to are not read, so that they neither block what is behind them nor fill the page; when it subscribes
//! they are read from where their lane was left.
//!
//! What is not worth a row comes directly: messages at QoS 0, and all messages for a session that ends with its connection.

mod flight;
mod lanes;

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::QoS;

use super::aliases::Told;
use super::connect::Terms;
use super::rights::Rights;
use super::{Effect, Limits, Loaded, Subscription};
use crate::id::ClientId;
use crate::message::Message;
use crate::time::Time;
pub use flight::payload_bytes_max;
pub use lanes::Beyond;
use lanes::Lanes;

/// One row of a client's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The place in the client's queue, counted from 1 for the life of the client.
    pub seq: i64,
    /// The client has it, at QoS 2, and a PUBREL is owed or was sent: as which one its PUBREC came.
    pub received: Option<u32>,
    pub what: What,
}

/// What kind of row it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A receipt: at QoS 1 to the client's own topic, and never dropped.
    Receipt(Bytes),
    Message(Addressed),
}

/// A message and how one client is to be sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressed {
    pub message: Arc<Message>,
    /// At this QoS at most [MQTT-3.8.4-8].
    pub qos: QoS,
    pub retain: bool,
    /// Of the subscriptions that it matched (3.3.4).
    pub identifiers: Vec<NonZeroU32>,
}

impl Addressed {
    /// What the message takes in memory.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.message.bytes()
    }
}

impl What {
    /// What the message takes in memory, or the receipt.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        match self {
            Self::Receipt(receipt) => u32::try_from(receipt.len()).unwrap_or(u32::MAX),
            Self::Message(addressed) => addressed.bytes(),
        }
    }
}

/// The packet identifier of a row. It follows from the row's place, so that a resend carries the original one
/// [MQTT-4.4.0-1] although nothing was written when the row was sent.
#[must_use]
pub fn packet_id(seq: i64) -> NonZeroU16 {
    let number = 1 + seq.saturating_sub(1).rem_euclid(ROW_IDENTIFIERS);
    u16::try_from(number).ok().and_then(NonZeroU16::new).unwrap_or(NonZeroU16::MIN)
}

/// The lower half of the packet identifiers (2.2.1) is for rows, the upper for what is not stored.
const ROW_IDENTIFIERS: i64 = 32_767;
const DIRECT_IDENTIFIERS: std::ops::RangeInclusive<u16> = 32_768..=u16::MAX;
/// One of them is free for the next.
const WINDOW_MAX: u16 = u16::MAX - *DIRECT_IDENTIFIERS.start();

#[derive(Debug)]
pub(super) struct Outgoing {
    /// Rows in the order of their places, and what came directly; what is not sent of the rows belongs to a lane that the
    /// client subscribes to.
    queue: VecDeque<Queued>,
    lanes: Lanes,
    /// There were hints of rows up to this place.
    hinted_to: i64,
    /// The database may have rows beyond what was read, hint or no hint.
    unread: bool,
    fetching: Fetching,
    /// Rows up to this place may have been sent on an earlier connection.
    sent_before: i64,
    /// The highest place that was sent, on this connection or an earlier one.
    sent_to: i64,
    /// The identifier that the last one got that came directly.
    direct_id: u16,
    /// How many in the queue came directly.
    direct: u16,
    /// What they take in memory.
    direct_bytes: u32,
    settled: Settled,
    aliases: Told,
    in_flight: u16,
    /// The number of the next PUBREC for a row: above those of rows that an earlier connection left.
    received: u32,
    owed: Owed,
    window: u16,
    limits: Arc<Limits>,
    packet_bytes_max: u32,
    /// When the client last acknowledged something, or was first sent something after all was acknowledged.
    progress: Time,
    now: Time,
}

/// What is to be read, before all else, of the rows whose PUBREL an earlier connection left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// Those from the number on that the next PUBREC would have.
    Unread,
    /// Nothing; some may wait in the queue.
    Read,
    /// Nothing, and none waits.
    Released,
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
    place: Place,
    what: What,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Row(i64),
    Direct,
}

/// How messages ended that are not stored. One without room, and one that is too large, are effects of their own. And what the
/// client published that went nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub delivered: u32,
    pub expired: u32,
    pub declined: u32,
    /// Publishes of the client's to topics to which it has no right.
    pub unauthorised: u32,
}

/// How far a delivery is, with its packet identifier (4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// PUBREC came on an earlier connection, as which one; the PUBREL is owed on this one.
    Owed(u32),
    Sent(NonZeroU16, QoS),
    /// PUBREC came, as which one; that is being stored.
    Received(NonZeroU16, u32),
    /// That is stored, and PUBREL waits for those whose PUBREC came before.
    Kept(NonZeroU16, u32),
    /// PUBREL was sent.
    Released(NonZeroU16),
}

impl State {
    fn packet_id(self) -> Option<NonZeroU16> {
        match self {
            Self::Waiting | Self::Owed(_) => None,
            Self::Sent(packet_id, _)
            | Self::Received(packet_id, _)
            | Self::Kept(packet_id, _)
            | Self::Released(packet_id) => Some(packet_id),
        }
    }

    fn in_flight(self) -> bool {
        self.packet_id().is_some()
    }
}

impl Outgoing {
    pub(super) fn new(
        client: &ClientId,
        rights: &Rights,
        terms: &Terms,
        limits: &Arc<Limits>,
        loaded: &Loaded,
        now: Time,
    ) -> Self {
        let sent_to = loaded.sent_to;
        let window = match rights {
            Rights::Terminal => limits.terminal_outbound_max,
            Rights::Open(_) | Rights::Granted(_) => limits.outbound_max,
        };
        Self {
            queue: VecDeque::new(),
            lanes: Lanes::of(client, rights),
            hinted_to: 0,
            // A session that begins has no rows, but for receipts; of those that come it hears.
            unread: loaded.present || matches!(rights, Rights::Terminal),
            fetching: Fetching::No,
            sent_before: sent_to,
            sent_to,
            direct_id: u16::MAX,
            direct: 0,
            direct_bytes: 0,
            settled: Settled::default(),
            aliases: Told::new(terms.topic_alias_max.min(limits.topic_alias_max)),
            in_flight: 0,
            received: 0,
            owed: if loaded.present { Owed::Unread } else { Owed::Released },
            window: terms.receive_max.min(window.get()).min(WINDOW_MAX),
            limits: Arc::clone(limits),
            packet_bytes_max: terms.packet_bytes_max,
            progress: now,
            now,
        }
    }

    pub(super) fn now(&mut self, now: Time) {
        self.now = now;
    }

    /// The client published what it has no right to.
    pub(super) fn unauthorised(&mut self) {
        self.settled.unauthorised += 1;
    }

    pub(super) fn settled(&mut self) -> (Settled, u16) {
        (std::mem::take(&mut self.settled), self.direct)
    }

    /// How many rows are held, at most.
    fn page(&self) -> usize {
        self.limits.page.get().into()
    }

    /// How many rows, how many that came directly, and how many aliases.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let direct = usize::from(self.direct);
        (self.queue.len() - direct, direct, self.aliases.len())
    }

    pub(super) fn sent_to(&self) -> i64 {
        self.sent_to
    }

    /// How many wait for the client's acknowledgement, and how many are held to be sent.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let in_flight = usize::from(self.in_flight);
        (in_flight, self.queue.len().saturating_sub(in_flight))
    }

    /// When the connection is given up because nothing was acknowledged. What the client does not owe an answer for is not
    /// its fault: between PUBREC and PUBREL it waits for us.
    pub(super) fn stalls_at(&self) -> Option<Time> {
        let is_owed = |queued: &Queued| matches!(queued.state, State::Sent(..) | State::Released(_));
        (self.in_flight > 0 && self.queue.iter().any(is_owed)).then(|| self.progress + self.limits.ack_within)
    }

    pub(super) fn fetched(&mut self, deliveries: Vec<Delivery>, last: i64) {
        let asked = std::mem::replace(&mut self.fetching, Fetching::No);
        if asked == Fetching::Stale {
            self.unread = true;
            return;
        }
        let whole = deliveries.len() < self.page();
        // What is owed comes first; the rest is in the order of places over both lanes, so it has every row up to its last.
        let read_to = match deliveries.last() {
            _ if whole => last,
            Some(Delivery { seq, received: None, .. }) => *seq,
            _ => 0,
        };
        if self.owed == Owed::Unread {
            let last = deliveries.iter().filter_map(|delivery| delivery.received).max();
            self.received = last.map_or(self.received, |nth| nth.saturating_add(1));
            if whole || read_to > 0 {
                self.owed = Owed::Read;
            }
        }
        for Delivery { seq, received, what } in deliveries {
            if received.is_some() || seq > self.lanes.of_row(&what).read_to {
                let state = received.map_or(State::Waiting, State::Owed);
                // A lane that was subscribed to late has places before those of the other.
                let before = |queued: &Queued| matches!(queued.place, Place::Row(place) if place > seq);
                let place = self.queue.iter().position(before).unwrap_or(self.queue.len());
                self.queue.insert(place, Queued { place: Place::Row(seq), what, state });
            }
        }
        self.lanes.read_up_to(read_to);
        self.unread = !whole || asked == Fetching::LookAgain;
    }

    /// A row was queued at this place; it is taken from the hint where that leaves no gap.
    pub(super) fn hint(&mut self, seq: i64, what: Option<What>) {
        let known = self.fetching == Fetching::No && !self.unread && !self.lanes.behind(self.hinted_to);
        if known
            && self.queue.len() < self.page()
            && let Some(what) = what
            && self.lanes.read_next(&what, seq)
        {
            self.queue.push_back(Queued { place: Place::Row(seq), what, state: State::Waiting });
        }
        self.hinted_to = self.hinted_to.max(seq);
    }

    pub(super) fn look(&mut self) {
        self.unread = true;
        if self.fetching == Fetching::Yes {
            self.fetching = Fetching::LookAgain;
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.direct < self.limits.direct_max.get() && self.direct_bytes < self.limits.direct_bytes_max.get()
    }

    /// A message that is not stored.
    pub(super) fn direct(&mut self, addressed: Addressed, effects: &mut Vec<Effect>) {
        if addressed.message.qos.min(addressed.qos) == QoS::AtMostOnce {
            // It waits for nothing: whoever keeps it must not be reached by it at all (4.3.1).
            self.send_at_most_once(&addressed, effects);
        } else if self.has_room() {
            self.direct += 1;
            self.direct_bytes = self.direct_bytes.saturating_add(addressed.bytes());
            self.queue.push_back(Queued {
                place: Place::Direct,
                what: What::Message(addressed),
                state: State::Waiting,
            });
        } else {
            effects.push(Effect::Dropped);
        }
    }

    /// What the client subscribes to now. What it left and was not sent makes room, and is read again if it comes back.
    fn heed(&mut self, subscriptions: &[Subscription]) {
        for (receipts, has) in self.lanes.heed(subscriptions).into_iter().flatten() {
            if has {
                self.unread = true;
            } else {
                let lane = if receipts { &mut self.lanes.receipts } else { &mut self.lanes.messages };
                self.queue.retain(|queued| {
                    let Place::Row(seq) = queued.place else { return true };
                    let begun = queued.state.in_flight() || matches!(queued.state, State::Owed(_));
                    let stays = begun || matches!(queued.what, What::Receipt(_)) != receipts;
                    if !stays {
                        lane.read_to = lane.read_to.min(seq - 1);
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
        self.fly(effects);
        let owed = (self.owed == Owed::Unread).then_some(self.received);
        let beyond = self.lanes.beyond(owed);
        let room = self.page().saturating_sub(self.queue.len() - usize::from(self.direct));
        if (beyond.receipts.is_some() || beyond.messages.is_some() || owed.is_some())
            && self.fetching == Fetching::No
            && (self.unread || self.lanes.behind(self.hinted_to))
            && room * 2 >= self.page()
        {
            self.fetching = Fetching::Yes;
            effects.push(Effect::Fetch { beyond, max: self.limits.page.get() });
        }
    }
}
