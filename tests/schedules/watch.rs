//! What a client and the database see of a session, and what must hold of it whatever comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ntex_bytes::{BytePages, ByteString};
use ntex_codec::Encoder;
use ntex_mqtt::v5::codec::{self as mqtt, Packet, QoS};
use wakala::conservation::Fate;
use wakala::mqtt::Publish;
use wakala::session::{self, Effect, Limits, Sizes, Version};

use crate::connection::Row;
use crate::frames::{Frames, Outbound};

/// A publish of the client's above QoS 0 that is to be answered in its turn.
struct Arrival {
    serial: u32,
    packet_id: u16,
    qos: QoS,
    repeated: bool,
}

/// A publish to the client that is not complete, and whose row it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) qos: QoS,
    pub(crate) seq: Option<i64>,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Sent,
    /// The client's PUBREC is on its way or was.
    Received,
    Released,
}

/// One connection, seen from outside.
pub(crate) struct Watch {
    pub(crate) version: Version,
    limits: Limits,
    frames: Frames,
    packet_bytes_max: usize,
    window: usize,
    topic_alias_max: u16,
    /// Rows up to this place may have been sent before.
    sent_before: i64,
    /// The effects so far.
    connacks: u32,
    pub(crate) closed: bool,
    last_words: bool,
    // The client's publishes.
    next_serial: u32,
    arrivals: VecDeque<Arrival>,
    handed: u32,
    durable: BTreeSet<u32>,
    /// Identifiers of QoS 2 whose PUBREC said that the message was taken.
    pub(crate) received: BTreeSet<u16>,
    /// Those of them that an earlier connection left, and whose PUBLISH did not come again.
    earlier: BTreeSet<u16>,
    pub(crate) releasing: BTreeSet<u16>,
    completes_unknown: u32,
    /// Of SUBSCRIBE and UNSUBSCRIBE: the identifier, how many filters, and which of the two.
    pub(crate) changes: VecDeque<(u16, usize, bool)>,
    pings: u32,
    // Publishes to the client.
    pub(crate) flights: BTreeMap<u16, Flight>,
    aliases: BTreeMap<u16, ByteString>,
    sent_rows: BTreeSet<i64>,
    /// As which one the PUBREC came of the last row that an earlier connection left and that was released here.
    last_owed: Option<u32>,
    last_of_kind: [i64; 2],
    last_direct: [i64; 2],
    may_be_done: BTreeSet<i64>,
    pub(crate) fetching: bool,
    pub(crate) storing: bool,
    pub(crate) sent_to: i64,
}

/// What a payload says of a delivery: a row, or what came directly, at QoS 0 or higher, in an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Row { receipt: bool, seq: i64 },
    Direct { waits: bool, number: i64 },
}

impl Source {
    pub(crate) fn write(self, padding: usize) -> Vec<u8> {
        let (kind, number) = match self {
            Self::Row { receipt: true, seq } => ('r', seq),
            Self::Row { receipt: false, seq } => ('m', seq),
            Self::Direct { waits: true, number } => ('w', number),
            Self::Direct { waits: false, number } => ('d', number),
        };
        format!("{kind}{number:08}{}", ".".repeat(padding)).into_bytes()
    }

    fn read(payload: &[u8]) -> Self {
        let number = std::str::from_utf8(&payload[1..9]).expect("text").parse().expect("a number");
        match payload[0] {
            b'r' => Self::Row { receipt: true, seq: number },
            b'm' => Self::Row { receipt: false, seq: number },
            kind => Self::Direct { waits: kind == b'w', number },
        }
    }
}

impl Watch {
    pub(crate) fn new(
        version: Version,
        connect: &mqtt::Connect,
        limits: Limits,
        window: std::num::NonZeroU16,
        loaded: &session::Loaded,
    ) -> Self {
        let own = connect.receive_max.map_or(u16::MAX, std::num::NonZeroU16::get);
        Self {
            version,
            frames: Frames::new(version, u32::MAX),
            packet_bytes_max: connect
                .max_packet_size
                .map_or(usize::MAX, |max| usize::try_from(max.get()).expect("32 bits")),
            window: usize::from(own.min(window.get())),
            topic_alias_max: connect.topic_alias_max,
            sent_before: loaded.sent_to,
            sent_to: loaded.sent_to,
            received: loaded.received.iter().map(|id| id.get()).collect(),
            earlier: loaded.received.iter().map(|id| id.get()).collect(),
            limits,
            connacks: 0,
            closed: false,
            last_words: false,
            next_serial: 0,
            arrivals: VecDeque::new(),
            handed: 0,
            durable: BTreeSet::new(),
            releasing: BTreeSet::new(),
            completes_unknown: 0,
            changes: VecDeque::new(),
            pings: 0,
            flights: BTreeMap::new(),
            aliases: BTreeMap::new(),
            sent_rows: BTreeSet::new(),
            last_owed: None,
            last_of_kind: [0; 2],
            last_direct: [-1; 2],
            may_be_done: BTreeSet::new(),
            fetching: false,
            storing: false,
        }
    }

    pub(crate) fn takes(&self, bytes: usize) -> bool {
        self.packet_bytes_max >= bytes
    }

    /// The identifiers of the client's publishes that are not complete.
    pub(crate) fn unanswered(&self) -> BTreeSet<u16> {
        self.arrivals.iter().map(|arrival| arrival.packet_id).chain(self.received.iter().copied()).collect()
    }

    /// Whether the client may send one more, by the Receive Maximum that it was told (4.9) and by what one may leave unreleased.
    pub(crate) fn has_room(&self) -> bool {
        let all = match self.version {
            Version::V3 => self.limits.unreleased_max,
            Version::V5 => self.limits.unreleased_max.max(self.limits.inbound_max),
        };
        self.counts_one_more() && self.unanswered().len() < usize::from(all.get())
    }

    fn counts_one_more(&self) -> bool {
        let counted = self.unanswered().difference(&self.earlier).count();
        self.version == Version::V3 || counted < usize::from(self.limits.inbound_max.get())
    }

    /// What it may send again of what it sent on another connection.
    pub(crate) fn may_repeat(&self) -> Option<u16> {
        self.earlier.difference(&self.releasing).next().copied().filter(|_| self.counts_one_more())
    }

    /// The client sends a publish: its serial number, and whether it is one more than it may.
    pub(crate) fn publishes(&mut self, publish: &Publish) -> (u32, bool) {
        self.next_serial += 1;
        let serial = self.next_serial;
        let Some(packet_id) = publish.packet_id.map(std::num::NonZeroU16::get) else { return (serial, false) };
        let room = match self.unanswered().contains(&packet_id) {
            true => !self.earlier.contains(&packet_id) || self.counts_one_more(),
            false => self.has_room(),
        };
        let over = self.version == Version::V5 && !room;
        self.earlier.remove(&packet_id);
        let repeated = publish.qos == QoS::ExactlyOnce && self.received.contains(&packet_id);
        let waits = self.arrivals.iter().any(|arrival| arrival.packet_id == packet_id);
        let ignored = self.version == Version::V3 && publish.dup && waits && !repeated;
        if !ignored {
            self.arrivals.push_back(Arrival { serial, packet_id, qos: publish.qos, repeated });
        }
        (serial, over)
    }

    /// The client sends another packet.
    pub(crate) fn sends(&mut self, packet: &Packet) {
        match packet {
            Packet::PingRequest => self.pings += 1,
            Packet::Subscribe(it) => self.changes.push_back((it.packet_id.get(), it.topic_filters.len(), true)),
            Packet::Unsubscribe(it) => self.changes.push_back((it.packet_id.get(), it.topic_filters.len(), false)),
            Packet::PublishRelease(it) => {
                let packet_id = it.packet_id.get();
                if self.received.contains(&packet_id) {
                    self.releasing.insert(packet_id);
                    // Another PUBREC would be taken for one of the next with this identifier.
                    self.arrivals.retain(|arrival| arrival.packet_id != packet_id);
                } else {
                    self.completes_unknown += 1;
                }
            }
            Packet::PublishAck(it) => self.done(it.packet_id.get(), QoS::AtLeastOnce, State::Sent),
            Packet::PublishReceived(it) if u8::from(it.reason_code) >= 0x80 => {
                self.done(it.packet_id.get(), QoS::ExactlyOnce, State::Sent);
            }
            Packet::PublishReceived(it) => {
                if let Some(flight) = self.flights.get_mut(&it.packet_id.get())
                    && flight.state == State::Sent
                {
                    flight.state = State::Received;
                }
            }
            Packet::PublishComplete(it) => self.done(it.packet_id.get(), QoS::ExactlyOnce, State::Released),
            _ => {}
        }
    }

    fn done(&mut self, packet_id: u16, qos: QoS, state: State) {
        if let Some(flight) = self.flights.get(&packet_id)
            && (flight.qos, flight.state) == (qos, state)
        {
            self.may_be_done.extend(flight.seq);
            self.flights.remove(&packet_id);
        }
    }

    pub(crate) fn durable(&mut self, serial: u32) {
        self.durable.insert(serial);
    }

    /// One more effect.
    pub(crate) fn sees(&mut self, effect: &Effect, rows: &BTreeMap<i64, Row>) {
        assert!(!self.closed, "after the end: {effect:?}");
        assert!(!self.last_words || matches!(effect, Effect::Close(_)), "after DISCONNECT: {effect:?}");
        assert!(
            self.connacks == 1 || matches!(effect, Effect::Send(Packet::ConnectAck(_))),
            "before CONNACK: {effect:?}"
        );
        match effect {
            Effect::Send(packet) => self.hears(packet, rows),
            Effect::Publish(publish, payload) => self.hears_publish(publish, payload),
            Effect::Admit { payload, remember, .. } => self.handed_on(payload, *remember),
            Effect::Route { message, remember, .. } => self.handed_on(&message.payload, *remember),
            Effect::Forget { packet_id } => {
                assert!(self.releasing.contains(&packet_id.get()), "nobody released {packet_id}");
            }
            Effect::Store(_) => assert!(!std::mem::replace(&mut self.storing, true), "two changes at once"),
            Effect::Fetch { max, .. } => {
                assert!(!std::mem::replace(&mut self.fetching, true), "two questions at once");
                assert_eq!(*max, self.limits.page.get());
            }
            Effect::Acked { seq, fate: Fate::Expired, .. } => {
                let flies = self.flights.values().any(|flight| flight.seq == Some(*seq));
                assert!(!flies, "{seq} is in flight");
            }
            Effect::Acked { seq, .. } => assert!(self.may_be_done.remove(seq), "{seq} is not done with"),
            Effect::Received { seq, .. } => {
                let of = |flight: &&Flight| flight.seq == Some(*seq) && flight.state == State::Received;
                assert!(self.flights.values().any(|flight| of(&flight)), "nobody has {seq}");
            }
            Effect::TooLarge { seq } => self.may_be_done.extend(*seq),
            Effect::Close(_) => self.closed = true,
            Effect::Subscribed { .. } | Effect::Unsubscribed { .. } | Effect::Dropped => {}
        }
    }

    fn handed_on(&mut self, payload: &[u8], remember: Option<std::num::NonZeroU16>) {
        let serial: u32 = std::str::from_utf8(payload).expect("text").parse().expect("a number");
        assert!(serial > self.handed, "{serial} was handed on already, or after {}", self.handed);
        self.handed = serial;
        let arrival = self.arrivals.iter().find(|arrival| arrival.serial == serial);
        if let Some(remember) = remember {
            let arrival = arrival.expect("remembered above QoS 0 only");
            assert_eq!((arrival.packet_id, arrival.qos), (remember.get(), QoS::ExactlyOnce));
        }
        assert!(arrival.is_none_or(|arrival| !arrival.repeated), "a repetition is not taken again [MQTT-4.3.3-10]");
    }

    fn hears(&mut self, packet: &Packet, rows: &BTreeMap<i64, Row>) {
        let bytes = self.encoded(Outbound::Packet(packet.clone()));
        assert!(bytes <= self.packet_bytes_max, "larger than the client takes [MQTT-3.1.2-24]: {packet:?}");
        match packet {
            Packet::ConnectAck(_) => self.connacks += 1,
            Packet::PublishAck(ack) => self.answers(ack, QoS::AtLeastOnce),
            Packet::PublishReceived(ack) => self.answers(ack, QoS::ExactlyOnce),
            Packet::PublishComplete(ack) => {
                let packet_id = ack.packet_id.get();
                if u8::from(ack.reason_code) == 0 {
                    assert!(self.releasing.remove(&packet_id) && self.received.remove(&packet_id));
                    self.earlier.remove(&packet_id);
                } else {
                    assert!(!self.received.contains(&packet_id));
                    self.completes_unknown = self.completes_unknown.checked_sub(1).expect("for a PUBREL each");
                }
            }
            Packet::PublishRelease(ack) => self.releases(ack, rows),
            Packet::SubscribeAck(ack) => {
                let first = self.changes.pop_front();
                assert_eq!(first, Some((ack.packet_id.get(), ack.status.len(), true)));
            }
            Packet::UnsubscribeAck(ack) => {
                let (packet_id, filters, subscribes) = self.changes.pop_front().expect("it was asked for");
                assert_eq!((packet_id, subscribes), (ack.packet_id.get(), false));
                assert!(self.version == Version::V3 || filters == ack.status.len());
            }
            Packet::PingResponse => self.pings = self.pings.checked_sub(1).expect("it was asked for"),
            Packet::Disconnect(_) => {
                assert_eq!(self.version, Version::V5, "MQTT 3.1.1 has no DISCONNECT of a server");
                self.last_words = true;
            }
            other => panic!("not a server's: {other:?}"),
        }
    }

    fn answers(&mut self, ack: &mqtt::PublishAck, qos: QoS) {
        let arrival = self.arrivals.pop_front().expect("it answers a publish");
        assert_eq!((ack.packet_id.get(), qos), (arrival.packet_id, arrival.qos), "in the order of arrival");
        let taken = u8::from(ack.reason_code) == 0;
        if arrival.repeated {
            assert!(taken);
        } else {
            assert_eq!(taken, self.durable.contains(&arrival.serial), "durable, or refused");
        }
        if taken && qos == QoS::ExactlyOnce {
            self.received.insert(arrival.packet_id);
        }
    }

    fn releases(&mut self, ack: &mqtt::PublishAck2, rows: &BTreeMap<i64, Row>) {
        let packet_id = ack.packet_id.get();
        if u8::from(ack.reason_code) != 0 {
            return assert!(!self.flights.contains_key(&packet_id), "it is known");
        }
        if let Some(flight) = self.flights.get_mut(&packet_id) {
            assert_ne!(flight.state, State::Sent, "the client did not say that it has it");
            flight.state = State::Released;
            return;
        }
        let owed = |(&seq, row): (&i64, &Row)| {
            let its = session::packet_id(seq).get() == packet_id && !self.sent_rows.contains(&seq);
            its.then_some((row.received?, seq))
        };
        let (nth, seq) = rows.iter().find_map(owed).expect("a PUBREL for nothing");
        assert!(self.last_owed.is_none_or(|last| last < nth), "not in the order of the PUBRECs [MQTT-4.6.0-4]");
        self.last_owed = Some(nth);
        self.sent_rows.insert(seq);
        self.flights.insert(packet_id, Flight { qos: QoS::ExactlyOnce, seq: Some(seq), state: State::Released });
        assert!(self.flights.len() <= self.window, "more than the client takes at once");
    }

    fn hears_publish(&mut self, publish: &Publish, payload: &ntex_bytes::Bytes) {
        let bytes = self.encoded(Outbound::Publish(publish.clone(), payload.clone()));
        assert!(bytes <= self.packet_bytes_max, "larger than the client takes [MQTT-3.1.2-24]");
        let topic = self.resolve(publish);
        assert!(!topic.is_empty());
        let source = Source::read(payload);
        let seq = match source {
            Source::Row { receipt, seq } => {
                assert!(self.sent_rows.insert(seq), "{seq} twice on one connection [MQTT-4.4.0-1]");
                let last = &mut self.last_of_kind[usize::from(receipt)];
                assert!(*last < seq, "{seq} after {last}");
                *last = seq;
                Some(seq)
            }
            Source::Direct { waits, number } => {
                let last = &mut self.last_direct[usize::from(waits)];
                assert!(*last < number, "{number} after {last}");
                *last = number;
                None
            }
        };
        let Some(packet_id) = publish.packet_id else {
            assert_eq!((publish.qos, publish.dup), (QoS::AtMostOnce, false));
            return self.may_be_done.extend(seq);
        };
        assert_ne!(publish.qos, QoS::AtMostOnce);
        assert_eq!(publish.dup, seq.is_some_and(|seq| seq <= self.sent_before), "{seq:?}");
        assert!(seq.is_none_or(|seq| session::packet_id(seq) == packet_id), "a row's own identifier");
        self.sent_to = self.sent_to.max(seq.unwrap_or(0));
        let flight = Flight { qos: publish.qos, seq, state: State::Sent };
        let before = self.flights.insert(packet_id.get(), flight);
        assert!(before.is_none(), "{packet_id} is in flight [MQTT-2.2.1-3]");
        assert!(self.flights.len() <= self.window, "more than the client takes at once [MQTT-3.3.4-9]");
    }

    fn resolve(&mut self, publish: &Publish) -> ByteString {
        let Some(alias) = publish.topic_alias else { return publish.topic.clone() };
        assert!(alias.get() <= self.topic_alias_max, "more aliases than the client knows [MQTT-3.1.2-26]");
        if !publish.topic.is_empty() {
            self.aliases.insert(alias.get(), publish.topic.clone());
        }
        self.aliases.get(&alias.get()).expect("an alias that it was told").clone()
    }

    fn encoded(&self, item: Outbound) -> usize {
        let mut pages = BytePages::default();
        self.frames.encodev(item, &mut pages).expect("it can be written");
        pages.len()
    }

    /// What must hold when all effects of an event are there.
    pub(crate) fn is_at_rest(&self, sizes: Sizes, loaded: usize) {
        assert!(self.closed || self.pings == 0, "a PINGREQ is answered at once");
        assert!(self.closed || self.completes_unknown == 0, "a PUBREL for nothing is answered at once");
        let limits = &self.limits;
        let of = |max: std::num::NonZeroU16| usize::from(max.get());
        let unanswered = of(limits.unreleased_max.max(limits.inbound_max));
        assert!(sizes.arrived <= 2 * of(limits.inbound_max), "{sizes:?}");
        assert!(sizes.incomplete <= unanswered.max(loaded), "{sizes:?}");
        assert!(sizes.changes <= 16, "{sizes:?}");
        assert!(sizes.rows <= of(limits.page) * 3 / 2, "{sizes:?}");
        assert!(sizes.direct <= of(limits.direct_max), "{sizes:?}");
        assert!(sizes.subscriptions <= of(limits.subscriptions_max), "{sizes:?}");
        assert!(sizes.aliases <= 2 * usize::from(limits.topic_alias_max), "{sizes:?}");
    }

    /// What must hold when everything was answered.
    pub(crate) fn is_done(&self) {
        assert!(self.arrivals.is_empty(), "a publish was never answered");
        assert!(self.changes.is_empty(), "a SUBSCRIBE or UNSUBSCRIBE was never answered");
        assert!(self.releasing.is_empty(), "a PUBREL was never answered");
        assert!(self.flights.is_empty(), "it is in flight for ever: {:?}", self.flights);
    }
}
