//! A schedule that bytes make: a client, a database and a clock around one session after another of the same client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use ntex_bytes::{ByteString, Bytes as Payload, BytesMut};
use ntex_codec::Decoder;
use ntex_mqtt::v5::codec::{DisconnectReasonCode as Reason, Packet, QoS};
use wakala::id::ClientId;
use wakala::message::Message;
use wakala::session::connect::Terms;
use wakala::session::{
    Addressed, Delivery, Effect, Event, Limits, Loaded, Rights, Session, Subscription, Version, What,
};
use wakala::time::Time;

use crate::bytes::{self, Bytes};
use crate::connection::{Connection, FRAME_BYTES_MAX, Row, connect, limits};
use crate::frames::{Frames, Inbound};
use crate::tally::Tally;
use crate::watch::{Source, State, Watch};

/// Of one client, one after the other.
const CONNECTIONS_MAX: u64 = 8;
const TOPICS: [&str; 8] = ["q/T1", "t", "t/u", "closed", "$SYS/x", "", "r/T1", "a/rather/longer/topic/than/the/others"];
const FILTERS: [&str; 12] =
    ["r/T1", "c/T1", "t", "t/+", "#", "closed", "$share/g/t", "q/T1", "a", "b", "c", "$share/h/closed"];

/// What outlives a connection.
#[derive(Default)]
struct Stored {
    present: bool,
    rows: BTreeMap<i64, Row>,
    next: i64,
    received: BTreeSet<u16>,
    subscriptions: Vec<Subscription>,
    /// None after a crash.
    sent_to: Option<i64>,
}

struct World {
    rights: Rights,
    limits: Limits,
    now: Time,
    stored: Stored,
    connection: Option<Connection>,
    direct: i64,
    tally: Tally,
    effects: Vec<Effect>,
}

/// Plays what the bytes say.
///
/// # Panics
/// When what must hold does not.
pub(crate) fn play(bytes: &[u8]) -> Tally {
    let mut bytes = Bytes(bytes);
    let Some(first) = bytes.byte() else { return Tally::default() };
    let rights =
        if first & 1 == 0 { Rights::Terminal } else { Rights::Open(Arc::new(vec![ByteString::from_static("closed")])) };
    let mut world = World {
        rights,
        limits: limits(first & 2 == 0),
        now: Time::from_millis(1_000_000),
        stored: Stored::default(),
        connection: None,
        direct: 0,
        tally: Tally::default(),
        effects: Vec::new(),
    };
    while world.tally.connections < CONNECTIONS_MAX {
        if !world.connect(&mut bytes) {
            break;
        }
        while world.connection.is_some() {
            if world.step(&mut bytes).is_none() {
                world.finish();
                return world.tally;
            }
        }
    }
    world.tally
}

impl World {
    /// The next connection, if there is one and it is let in.
    fn connect(&mut self, bytes: &mut Bytes<'_>) -> bool {
        let Some((version, connect)) = connect(bytes) else { return false };
        let Ok(terms) = Terms::of(&connect, version, &self.limits, &self.rights) else { return false };
        self.tally.connections += 1;
        if terms.clean_start || !self.stored.present {
            // Receipts are owed to the terminal, whatever became of its session.
            let next = self.stored.next;
            let receipts = std::mem::take(&mut self.stored.rows).into_iter();
            let rows = receipts.filter(|(_, row)| matches!(row.what, What::Receipt(_))).collect();
            self.stored = Stored { rows, next, sent_to: self.stored.sent_to, ..Stored::default() };
        }
        let loaded = Loaded {
            present: self.stored.present,
            subscriptions: self.stored.subscriptions.clone(),
            received: self.stored.received.iter().filter_map(|&id| NonZeroU16::new(id)).collect(),
            sent_to: self.stored.sent_to.take().unwrap_or(self.stored.next),
        };
        self.stored.present = true;
        let client = ClientId::new("T1").expect("short");
        let window = match self.rights {
            Rights::Terminal => self.limits.terminal_outbound_max,
            Rights::Open(_) | Rights::Granted(_) => self.limits.outbound_max,
        };
        let watch = Watch::new(version, &connect, self.limits, window, &loaded);
        let (expiry_s, loaded_ids, subscriptions) =
            (terms.expiry_s, loaded.received.len(), loaded.subscriptions.clone());
        let session = Session::load(client, self.rights.clone(), terms, &Arc::new(self.limits), loaded, self.now);
        self.connection = Some(Connection {
            session,
            subscriptions,
            watch,
            expiry_s,
            loaded: loaded_ids,
            frames: Frames::new(version, FRAME_BYTES_MAX),
            socket: BytesMut::new(),
            tickets: Vec::new(),
            question: None,
            change: None,
            forgetting: VecDeque::new(),
            keeping: VecDeque::new(),
            marks: VecDeque::new(),
            behaves: true,
        });
        self.decide(|session, _, effects| session.resume(effects));
        true
    }

    fn event(&mut self, event: Event) {
        self.tally.events += 1;
        let ends = matches!(event, Event::End(..) | Event::Wake | Event::Packet(Packet::Disconnect(_)));
        if let Some(connection) = &mut self.connection
            && ends
        {
            connection.behaves = false;
        }
        self.decide(|session, now, effects| session.handle(event, now, effects));
    }

    /// Has the session decide, looks at what it says, and does it.
    fn decide(&mut self, decide: impl FnOnce(&mut Session, Time, &mut Vec<Effect>)) {
        let Some(connection) = &mut self.connection else { return };
        let mut effects = std::mem::take(&mut self.effects);
        decide(&mut connection.session, self.now, &mut effects);
        for effect in &effects {
            connection.watch.sees(effect, &self.stored.rows);
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::Publish(..) => self.tally.delivered += 1,
                Effect::Send(Packet::PublishAck(_) | Packet::PublishReceived(_)) => self.tally.answered += 1,
                Effect::Send(Packet::PublishComplete(_)) => self.tally.completed += 1,
                Effect::Admit { ticket, payload, remember } => connection.ticket(ticket, &payload, remember),
                Effect::Route { ticket, message, remember } => connection.ticket(ticket, &message.payload, remember),
                Effect::Forget { packet_id } => connection.forgetting.push_back(packet_id),
                Effect::Store(change) => connection.change = Some(change),
                Effect::Received { seq, nth } => connection.keeping.push_back((seq, nth)),
                Effect::Acked { seq, .. } => connection.marks.push_back(seq),
                Effect::Fetch { beyond, max } => connection.question = Some((beyond, max)),
                Effect::Dropped => self.tally.refused += 1,
                Effect::Subscribed { subscription, existed } => {
                    let old = connection.subscriptions.iter_mut().find(|old| old.filter == subscription.filter);
                    assert_eq!(existed, old.is_some(), "{}", subscription.filter);
                    match old {
                        Some(old) => *old = subscription,
                        None => connection.subscriptions.push(subscription),
                    }
                }
                Effect::Unsubscribed { filter } => connection.subscriptions.retain(|old| old.filter != filter),
                Effect::Send(_) | Effect::TooLarge { .. } | Effect::Close(_) => {}
            }
        }
        self.effects = effects;
        let admitting = usize::from(self.limits.admitting_max.get());
        assert!(!matches!(self.rights, Rights::Terminal) || connection.tickets.len() <= admitting, "too many at once");
        connection.watch.is_at_rest(connection.session.sizes(), connection.loaded);
        if connection.watch.closed {
            assert!(!connection.behaves, "the client did nothing wrong, and all is well");
            assert_eq!(connection.session.poll_timeout(), None, "a wake-up after the end");
            self.end(true);
        }
    }

    /// The connection is over; what remains of it is stored, or the node died.
    fn end(&mut self, stored: bool) {
        let Some(mut connection) = self.connection.take() else { return };
        let mut effects = Vec::new();
        if connection.watch.closed {
            connection.session.handle(Event::Look, self.now, &mut effects);
            assert!(effects.is_empty(), "after the end: {effects:?}");
        }
        let remains = connection.session.remains();
        assert!(u64::from(remains.expiry_s) <= self.limits.session_expiry_max.as_secs());
        assert_eq!(remains.sent_to, connection.watch.sent_to, "how far it was sent");
        if stored {
            self.stored.sent_to = Some(remains.sent_to);
            remains.change.unwrap_or_default().apply(&mut self.stored.subscriptions);
            let same = alike(&self.stored.subscriptions, &connection.subscriptions);
            assert!(remains.expiry_s == 0 || same, "stored otherwise than it took effect");
        }
        if remains.expiry_s == 0 {
            self.stored.present = false;
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let step = bytes.byte()?;
        match step % 64 {
            0 => self.write_raw(bytes.some()?),
            1 => self.publish_anything(bytes.byte()?, bytes.byte()?),
            2 => self.acknowledge_something(bytes.byte()?, bytes.byte()?, bytes.byte()?),
            3 => self.happen(bytes.byte()?),
            4 => self.time(bytes.byte()?),
            5 => self.ping(bytes.byte()?),
            6..=12 => self.publish(bytes.byte()?),
            13 => self.repeat(),
            14..=21 => self.acknowledge(),
            22..=25 => self.release(),
            26 | 27 => self.subscribe(bytes)?,
            28 => self.unsubscribe(bytes)?,
            29..=35 => self.durable(bytes.byte()?),
            36..=38 => self.stored(),
            39..=41 => self.forgotten(bytes.byte()?),
            42..=44 => self.kept(bytes.byte()?),
            45..=47 => self.fetched(),
            48..=53 => self.queue(bytes.byte()?, bytes.byte()?),
            54..=57 => self.message(bytes.byte()?, bytes.byte()?),
            58 | 59 => self.hint(bytes.byte()?),
            60 => self.event(Event::Look),
            _ => self.mark(),
        }
        self.read();
        Some(())
    }

    /// The server reads what the client wrote, unless it has enough for now.
    fn read(&mut self) {
        while let Some(connection) = &mut self.connection {
            if connection.session.full() {
                self.tally.stopped += 1;
                return;
            }
            let event = match connection.frames.decode(&mut connection.socket) {
                Ok(None) => return,
                Ok(Some(Inbound::Packet(packet))) => {
                    connection.watch.sends(&packet);
                    Event::Packet(packet)
                }
                Ok(Some(Inbound::Publish(publish, _))) => {
                    let (serial, over) = connection.watch.publishes(&publish);
                    if over {
                        connection.behaves = false;
                    }
                    self.event(Event::Publish(publish, Payload::from(serial.to_string())));
                    assert!(!over || self.connection.is_none(), "more than the Receive Maximum was taken");
                    self.tally.packets += 1;
                    continue;
                }
                Err(flaw) => Event::End(flaw.reason, flaw.why),
            };
            self.tally.packets += 1;
            self.event(event);
        }
    }

    fn write(&mut self, behaves: bool, frame: impl FnOnce(&Watch) -> Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.behaves &= behaves;
            let frame = frame(&connection.watch);
            connection.socket.extend_from_slice(&frame);
        }
    }

    fn write_raw(&mut self, bytes: &[u8]) {
        self.write(false, |_| bytes.to_vec());
    }

    /// One that the client may publish, if it may.
    fn publish(&mut self, how: u8) {
        let Some(connection) = &self.connection else { return };
        let used = connection.watch.unanswered();
        let free = (1..=40_u16).map(|id| (id + u16::from(how >> 4)) % 40 + 1).find(|id| !used.contains(id));
        let may = connection.watch.has_room() && connection.socket.is_empty();
        let Some(packet_id) = free.filter(|_| may) else { return };
        let topic = match (&self.rights, connection.watch.version) {
            (Rights::Terminal, _) => "q/T1",
            (_, Version::V5) if how & 12 == 0 => "closed",
            (_, Version::V3 | Version::V5) => "t",
        };
        let publish = bytes::Publish { qos: how % 3, dup: false, retain: false, topic, packet_id, alias: how.into() };
        let alias = if publish.alias % 4 == 1 { 1 } else { 0 };
        self.write(true, |watch| bytes::Publish { alias, ..publish }.frame(watch.version));
    }

    /// What was sent on an earlier connection, whose PUBREC may have been lost.
    fn repeat(&mut self) {
        let Some(connection) = &self.connection else { return };
        let Some(packet_id) = connection.watch.may_repeat().filter(|_| connection.socket.is_empty()) else { return };
        let publish = bytes::Publish { qos: 2, dup: true, retain: false, topic: "t", packet_id, alias: 0 };
        self.write(true, |watch| publish.frame(watch.version));
    }

    fn publish_anything(&mut self, how: u8, which: u8) {
        self.write(false, |watch| {
            let publish = bytes::Publish {
                qos: how & 3,
                dup: how & 4 != 0 && how & 3 != 0,
                retain: how & 0x80 != 0 && how & 0x40 != 0,
                topic: TOPICS[usize::from(which & 7)],
                packet_id: u16::from(which >> 3 & 7) + 1,
                alias: u16::from(how >> 3 & 3),
            };
            publish.frame(watch.version)
        });
    }

    /// What the client owes for the delivery that has waited longest, and rightly.
    fn acknowledge(&mut self) {
        self.write(true, |watch| {
            let owed = watch.flights.iter().find(|(_, flight)| flight.state != State::Received);
            let Some((&packet_id, flight)) = owed else { return Vec::new() };
            let first = match (flight.qos, flight.state) {
                (QoS::AtLeastOnce, _) => 0x40,
                (_, State::Released) => 0x70,
                _ => 0x50,
            };
            bytes::acknowledgement(watch.version, first, packet_id, 0)
        });
    }

    fn acknowledge_something(&mut self, how: u8, which: u8, reason: u8) {
        let first = [0x40, 0x50, 0x62, 0x70][usize::from(how & 3)];
        let packet_id = if how & 4 == 0 { u16::from(which) } else { 32_767 + u16::from(which) };
        self.write(false, |watch| bytes::acknowledgement(watch.version, first, packet_id, reason));
    }

    fn release(&mut self) {
        self.write(true, |watch| {
            let received = watch.received.iter().find(|id| !watch.releasing.contains(id));
            received.map_or_else(Vec::new, |&id| bytes::acknowledgement(watch.version, 0x62, id, 0))
        });
    }

    fn subscribe(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let (chosen, count) = (bytes.byte()?, bytes.below(4)? + 1);
        let mut filters = Vec::new();
        for _ in 0..count {
            let which = bytes.byte()?;
            filters.push((FILTERS[usize::from(which >> 2) % FILTERS.len()], which % 3));
        }
        // What is not offered ends the connection of a client that was told so (3.2.2.3).
        let wide = |(filter, _): &(&str, u8)| filter.contains(['+', '#', '$']);
        let refused = |watch: &Watch| watch.version == Version::V5 && filters.iter().any(wide);
        let terminal = self.rights == Rights::Terminal;
        let rightly = !terminal || self.connection.as_ref().is_some_and(|connection| !refused(&connection.watch));
        if rightly || chosen >= 0x80 {
            self.change(chosen, rightly, |version, packet_id| bytes::subscribe(version, packet_id, &filters));
        }
        Some(())
    }

    fn unsubscribe(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let (chosen, which) = (bytes.byte()?, bytes.byte()?);
        let filters = [which & 15, which >> 4].map(|which| FILTERS[usize::from(which) % FILTERS.len()]);
        self.change(chosen, true, |version, packet_id| bytes::unsubscribe(version, packet_id, &filters));
        Some(())
    }

    /// With an identifier that is free, or now and then with another.
    fn change(&mut self, chosen: u8, rightly: bool, frame: impl FnOnce(Version, u16) -> Vec<u8>) {
        let Some(connection) = &self.connection else { return };
        let packet_id = 100 + u16::from(chosen & 7);
        let free = connection.socket.is_empty() && connection.watch.changes.iter().all(|(used, ..)| *used != packet_id);
        if free || chosen >= 0xF0 {
            self.write(free && rightly, |watch| frame(watch.version, packet_id));
        }
    }

    /// PINGREQ, or now and then DISCONNECT.
    fn ping(&mut self, how: u8) {
        let frame = |version| match (how, version) {
            (0..0x20, _) | (0x20..0x40, Version::V3) => vec![0xE0, 0],
            (0x20..0x40, Version::V5) => vec![0xE0, 1, 4],
            _ => vec![0xC0, 0],
        };
        self.write(true, |watch| frame(watch.version));
    }

    /// One of the publishes becomes durable; or the word is about a ticket that may be nobody's.
    fn durable(&mut self, which: u8) {
        let Some(connection) = &mut self.connection else { return };
        if which >= 0xF0 && connection.tickets.iter().all(|(ticket, ..)| *ticket != u32::from(which & 15)) {
            return self.event(Event::Durable { ticket: u32::from(which & 15) });
        }
        if !connection.tickets.is_empty() {
            let at = usize::from(which) % connection.tickets.len();
            let (ticket, serial, remember) = connection.tickets.remove(at);
            connection.watch.durable(serial);
            self.stored.received.extend(remember.map(NonZeroU16::get));
            self.event(Event::Durable { ticket });
        }
    }

    fn stored(&mut self) {
        let Some(change) = self.connection.as_mut().and_then(|connection| connection.change.take()) else { return };
        change.apply(&mut self.stored.subscriptions);
        if let Some(connection) = &mut self.connection {
            connection.watch.storing = false;
        }
        self.event(Event::Stored);
    }

    fn forgotten(&mut self, which: u8) {
        let Some(connection) = &mut self.connection else { return };
        if !connection.forgetting.is_empty() {
            let at = usize::from(which) % connection.forgetting.len();
            let packet_id = connection.forgetting.remove(at).expect("it is there");
            self.stored.received.remove(&packet_id.get());
            self.event(Event::Forgotten { packet_id });
        }
    }

    fn kept(&mut self, which: u8) {
        let Some(connection) = &mut self.connection else { return };
        if !connection.keeping.is_empty() {
            let at = usize::from(which) % connection.keeping.len();
            let (seq, nth) = connection.keeping.remove(at).expect("it is there");
            if let Some(row) = self.stored.rows.get_mut(&seq) {
                row.received = Some(nth);
            }
            self.event(Event::Kept { seq });
        }
    }

    fn fetched(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let Some((beyond, max)) = connection.question.take() else { return };
        connection.watch.fetching = false;
        let wanted = |seq: i64, row: &Row| {
            let after = if matches!(row.what, What::Receipt(_)) { beyond.receipts } else { beyond.messages };
            after.is_some_and(|after| seq > after)
        };
        let rows = || self.stored.rows.iter();
        let page = rows().filter(|(seq, row)| row.received.is_none() && wanted(**seq, row));
        let is_owed = |row: &Row| beyond.owed.is_some_and(|from| row.received.is_some_and(|nth| nth >= from));
        let mut owed: Vec<_> = rows().filter(|(_, row)| is_owed(row)).collect();
        owed.sort_by_key(|(_, row)| row.received);
        let row = |(&seq, row): (&i64, &Row)| Delivery { seq, received: row.received, what: row.what.clone() };
        let deliveries = owed.into_iter().chain(page).take(usize::from(max)).map(row).collect();
        self.event(Event::Fetched { deliveries, last: self.stored.next });
    }

    fn addressed(&self, how: u8, padding: u8, source: Source) -> Addressed {
        let qos = |number| [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(number) % 3];
        let life = Duration::from_secs(u64::from(padding));
        let message = Message {
            topic: ByteString::from_static(["t", "t/u", "other"][usize::from(how >> 4 & 3) % 3]),
            payload: Payload::from(source.write(usize::from(padding))),
            qos: qos(how),
            retain: false,
            expires_at: (how & 0x40 != 0).then(|| self.now + life),
            properties: wakala::mqtt::Properties::default(),
        };
        let identifiers = if how & 0x80 == 0 {
            Vec::new()
        } else {
            vec![NonZeroU32::MIN.saturating_add(268_435_454), NonZeroU32::MIN]
        };
        Addressed { message: Arc::new(message), qos: qos(how >> 2), retain: how & 0x20 != 0, identifiers }
    }

    /// Something is queued; its hint comes whole, bare or not at all.
    fn queue(&mut self, how: u8, padding: u8) {
        self.stored.next += 1;
        let seq = self.stored.next;
        let receipt = matches!(self.rights, Rights::Terminal) && how & 4 == 0;
        let source = Source::Row { receipt, seq };
        let what = if receipt {
            What::Receipt(Payload::from(source.write(usize::from(padding))))
        } else {
            What::Message(self.addressed(how | 1, padding, source))
        };
        self.stored.rows.insert(seq, Row { what: what.clone(), received: None });
        match padding % 3 {
            0 => {}
            1 => self.event(Event::Hint { seq, what: None }),
            _ => self.event(Event::Hint { seq, what: Some(what) }),
        }
    }

    fn message(&mut self, how: u8, padding: u8) {
        self.direct += 1;
        let waits = !how.is_multiple_of(3) && !(how >> 2).is_multiple_of(3);
        let addressed = self.addressed(how, padding, Source::Direct { waits, number: self.direct });
        self.event(Event::Message(addressed));
    }

    /// A hint that was late, of a row that may be gone.
    fn hint(&mut self, which: u8) {
        let seq = (self.stored.next - i64::from(which & 7)).max(0);
        match self.stored.rows.get(&seq) {
            Some(row) if which & 8 != 0 && row.received.is_none() => {
                let what = Some(row.what.clone());
                self.event(Event::Hint { seq, what });
            }
            _ => self.event(Event::Hint { seq, what: None }),
        }
    }

    fn time(&mut self, how: u8) {
        let Some(connection) = &self.connection else { return };
        let due = connection.session.poll_timeout();
        self.now = match due {
            Some(due) if how & 0x80 != 0 => self.now.max(due),
            _ => self.now + Duration::from_millis(u64::from(how) * u64::from(how) * 10),
        };
        self.event(Event::Wake);
        if let Some(connection) = &self.connection {
            let next = connection.session.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "woken for nothing, again and again");
        }
    }

    fn happen(&mut self, how: u8) {
        match how % 8 {
            0 => self.end(true),
            1 => self.crash(),
            2 => self.event(Event::End(Reason::ServerShuttingDown, "the node is stopping")),
            _ => self.mark(),
        }
    }

    fn crash(&mut self) {
        self.end(false);
        self.stored.sent_to = None;
    }

    /// The oldest acknowledgement is stored.
    fn mark(&mut self) {
        if let Some(seq) = self.connection.as_mut().and_then(|connection| connection.marks.pop_front()) {
            self.stored.rows.remove(&seq);
        }
    }

    /// Everything is answered, and the client acknowledges all. Then nothing may be left over.
    fn finish(&mut self) {
        // Hints may have been lost.
        self.event(Event::Look);
        let rounds = 4 * (self.stored.rows.len() + 200);
        for round in 0.. {
            let Some(connection) = &mut self.connection else { return };
            // What a client writes by halves, it does not finish.
            connection.socket = BytesMut::new();
            let owed = connection.watch.flights.values().any(|flight| flight.state != State::Received);
            let busy = !connection.tickets.is_empty()
                || connection.question.is_some()
                || connection.change.is_some()
                || !(connection.forgetting.is_empty() && connection.keeping.is_empty() && connection.marks.is_empty());
            if !(owed || busy) {
                break;
            }
            assert!(round < rounds, "it never comes to rest");
            self.durable(0);
            self.stored();
            self.forgotten(0);
            self.kept(0);
            self.fetched();
            self.mark();
            self.acknowledge();
            self.read();
        }
        let Some(connection) = &self.connection else { return };
        let stored = connection.expiry_s > 0;
        let same = alike(&connection.subscriptions, &self.stored.subscriptions);
        assert!(!stored || same, "stored otherwise than it took effect");
        connection.watch.is_done();
        assert!(!connection.session.full(), "the socket is left unread for ever");
        let sizes = connection.session.sizes();
        assert_eq!((sizes.arrived, sizes.changes, sizes.direct), (0, 0, 0), "{sizes:?}");
        for (seq, row) in &self.stored.rows {
            assert!(!connection.wants(row, &self.rights, self.now), "{seq} was never delivered");
        }
        self.tally.to_the_end += 1;
    }
}

/// Whether these are the same, in whatever order.
fn alike(some: &[Subscription], others: &[Subscription]) -> bool {
    some.len() == others.len() && some.iter().all(|one| others.contains(one))
}
