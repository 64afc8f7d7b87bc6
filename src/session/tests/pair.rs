//! Two clients of a general broker that publish to each other, against a reference of a few lines.
//!
//! Goal: whatever breaks, what was published at QoS 2 is heard once, at QoS 1 at least once, at QoS 0 once at most, and each
//! QoS in its order. Method: two sessions, the database with what waits for it, two links and two clients that follow the
//! standard; links are cut and the node dies at steps drawn by proptest; at the end everything is let through and counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ntex_mqtt::v5::codec::PublishAck2;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(usize, u8),
    /// The server reads one packet of this client's.
    Up(usize),
    /// The client reads one packet of the server's.
    Down(usize),
    /// The database answers this client's session what is queued.
    Answer(usize),
    /// The oldest publish that waits for the database is stored; its hint comes whole, bare or not at all.
    Store(u8),
    /// The oldest mark of QoS 2 is stored.
    Mark,
    /// The oldest acknowledgement is stored.
    Ack,
    /// The link breaks; how far the session had sent is stored before the client is back, or is not.
    Cut(usize, bool),
    /// The node dies, and with it all that waits for the database.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, 0..3_u8).prop_map(|(client, qos)| Step::Publish(client, qos)),
        8 => (0..2_usize).prop_map(Step::Up),
        8 => (0..2_usize).prop_map(Step::Down),
        4 => (0..2_usize).prop_map(Step::Answer),
        4 => (0..3_u8).prop_map(Step::Store),
        4 => Just(Step::Mark),
        4 => Just(Step::Ack),
        1 => (0..2_usize, any::<bool>()).prop_map(|(client, stored)| Step::Cut(client, stored)),
        1 => Just(Step::Crash),
    ]
}

/// What is stored of one client's session.
#[derive(Default)]
struct Stored {
    epoch: u32,
    rows: BTreeMap<i64, Delivery>,
    next: i64,
    received: BTreeSet<u16>,
    sent_to: Option<i64>,
}

/// A connection.
struct Link {
    session: Session,
    up: VecDeque<Event>,
    down: VecDeque<Effect>,
    questions: VecDeque<Beyond>,
}

/// A client, which forgets nothing.
#[derive(Default)]
struct Model {
    /// Packet identifier, number, QoS, and whether it was released, in the order of publishing.
    unacknowledged: Vec<(u16, u32, u8, bool)>,
    last_id: u16,
    /// Identifiers of QoS 2 that it has and the server has not released.
    received: BTreeSet<u16>,
    heard: Vec<u32>,
}

struct Waiting {
    client: usize,
    epoch: u32,
    ticket: u32,
    message: Arc<Message>,
    remember: Option<NonZeroU16>,
}

enum Marked {
    Forget(u16),
    Received(i64),
}

#[derive(Default)]
struct World {
    stored: [Stored; 2],
    links: [Option<Link>; 2],
    clients: [Model; 2],
    publications: VecDeque<Waiting>,
    marks: VecDeque<(usize, u32, Marked)>,
    acks: VecDeque<(usize, u32, i64)>,
    /// Who published each number, and at which QoS.
    published: Vec<(usize, u8)>,
}

fn qos_of(number: u8) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(number)]
}

impl World {
    fn connect(&mut self, client: usize) {
        let stored = &mut self.stored[client];
        stored.epoch += 1;
        let sent_to = stored.sent_to.take().unwrap_or(stored.next);
        let received = stored.received.iter().map(|&number| id(number)).collect();
        let loaded = Loaded { present: true, received, sent_to, ..Loaded::default() };
        let version = if stored.epoch.is_multiple_of(2) { Version::V3 } else { Version::V5 };
        let (session, effects) = playing(open(), version, &asked(false), loaded);
        let link = Link { session, up: VecDeque::new(), down: VecDeque::new(), questions: VecDeque::new() };
        self.links[client] = Some(link);
        self.carry_out(client, effects);
        for (number, text, qos, released) in self.clients[client].unacknowledged.clone() {
            self.say(client, if released { release(number) } else { publish_of(number, text, qos, true) });
        }
    }

    fn say(&mut self, client: usize, event: Event) {
        if let Some(link) = &mut self.links[client] {
            link.up.push_back(event);
        }
    }

    /// Something happened to a session, if it is still the one of this connection.
    fn event(&mut self, client: usize, epoch: u32, event: Event) {
        if self.stored[client].epoch != epoch {
            return;
        }
        if let Some(link) = &mut self.links[client] {
            let effects = handle(&mut link.session, event, 1);
            self.carry_out(client, effects);
        }
    }

    fn carry_out(&mut self, client: usize, effects: Vec<Effect>) {
        let epoch = self.stored[client].epoch;
        for effect in effects {
            match effect {
                Effect::Route { ticket, message, remember } if message.qos == QoS::AtMostOnce => {
                    assert_eq!(remember, None);
                    let addressed = Addressed { message, qos: QoS::ExactlyOnce, retain: false, identifiers: vec![] };
                    let other = 1 - client;
                    self.event(other, self.stored[other].epoch, Event::Message(addressed));
                    self.event(client, epoch, Event::Durable { ticket });
                }
                Effect::Route { ticket, message, remember } => {
                    self.publications.push_back(Waiting { client, epoch, ticket, message, remember });
                }
                Effect::Forget { packet_id } => {
                    self.marks.push_back((client, epoch, Marked::Forget(packet_id.get())));
                }
                Effect::Received { seq } => self.marks.push_back((client, epoch, Marked::Received(seq))),
                Effect::Acked { seq, .. } => self.acks.push_back((client, epoch, seq)),
                Effect::Fetch { beyond, .. } => {
                    if let Some(link) = &mut self.links[client] {
                        link.questions.push_back(beyond);
                    }
                }
                Effect::Send(_) | Effect::Publish(..) => {
                    if let Some(link) = &mut self.links[client] {
                        link.down.push_back(effect);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn step(&mut self, step: Step) {
        for client in 0..2 {
            if self.links[client].is_none() {
                self.connect(client);
            }
        }
        match step {
            Step::Publish(client, qos) => self.publish(client, qos),
            Step::Up(client) => {
                if let Some(event) = self.links[client].as_mut().and_then(|link| link.up.pop_front()) {
                    self.event(client, self.stored[client].epoch, event);
                }
            }
            Step::Down(client) => {
                if let Some(effect) = self.links[client].as_mut().and_then(|link| link.down.pop_front()) {
                    self.hear(client, effect);
                }
            }
            Step::Answer(client) => self.answer(client),
            Step::Store(hint) => self.store(hint),
            Step::Mark => self.mark(),
            Step::Ack => {
                if let Some((client, epoch, seq)) = self.acks.pop_front()
                    && self.stored[client].epoch == epoch
                {
                    self.stored[client].rows.remove(&seq);
                }
            }
            Step::Cut(client, stored) => {
                if let Some(mut link) = self.links[client].take()
                    && stored
                {
                    self.stored[client].sent_to = Some(link.session.remains().sent_to);
                }
            }
            Step::Crash => {
                self.links = [None, None];
                (self.publications, self.marks, self.acks) = Default::default();
            }
        }
    }

    fn publish(&mut self, client: usize, qos: u8) {
        let model = &mut self.clients[client];
        if qos > 0 && model.unacknowledged.len() >= usize::from(limits().inbound_max.get()) {
            return;
        }
        let number = u32::try_from(self.published.len()).expect("few");
        self.published.push((client, qos));
        if qos > 0 {
            loop {
                // Few of them, so that they are used again soon.
                model.last_id = model.last_id % 6 + 1;
                if model.unacknowledged.iter().all(|(used, ..)| *used != model.last_id) {
                    break;
                }
            }
            model.unacknowledged.push((model.last_id, number, qos, false));
        }
        let packet_id = model.last_id;
        self.say(client, publish_of(packet_id, number, qos, false));
    }

    fn hear(&mut self, client: usize, effect: Effect) {
        let model = &mut self.clients[client];
        let place = |model: &Model, packet_id: NonZeroU16| {
            model.unacknowledged.iter().position(|(used, ..)| *used == packet_id.get())
        };
        match effect {
            Effect::Publish(publish, payload) => {
                let number = std::str::from_utf8(&payload).expect("text").parse().expect("a number");
                match (publish.qos, publish.packet_id.map(NonZeroU16::get)) {
                    (QoS::AtMostOnce, None) => model.heard.push(number),
                    (QoS::AtLeastOnce, Some(packet_id)) => {
                        model.heard.push(number);
                        self.say(client, puback(packet_id));
                    }
                    (QoS::ExactlyOnce, Some(packet_id)) => {
                        if model.received.insert(packet_id) {
                            model.heard.push(number);
                        }
                        let ack = PublishAck { packet_id: id(packet_id), ..PublishAck::default() };
                        self.say(client, Event::Packet(Packet::PublishReceived(ack)));
                    }
                    _ => panic!("{publish:?}"),
                }
            }
            Effect::Send(Packet::PublishRelease(ack)) => {
                model.received.remove(&ack.packet_id.get());
                let ack = PublishAck2 { packet_id: ack.packet_id, ..PublishAck2::default() };
                self.say(client, Event::Packet(Packet::PublishComplete(ack)));
            }
            Effect::Send(Packet::PublishAck(ack)) => {
                let at = place(model, ack.packet_id).expect("what it acknowledges was published");
                model.unacknowledged.remove(at);
            }
            Effect::Send(Packet::PublishReceived(ack)) => {
                let at = place(model, ack.packet_id).expect("what it acknowledges was published");
                model.unacknowledged[at].3 = true;
                self.say(client, release(ack.packet_id.get()));
            }
            Effect::Send(Packet::PublishComplete(ack)) => {
                // A second one for the same: the first PUBREL was answered, and so was its repetition.
                if let Some(at) = place(model, ack.packet_id).filter(|&at| model.unacknowledged[at].3) {
                    model.unacknowledged.remove(at);
                }
            }
            Effect::Send(Packet::ConnectAck(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, client: usize) {
        let Some(beyond) = self.links[client].as_mut().and_then(|link| link.questions.pop_front()) else { return };
        let stored = &self.stored[client];
        let after = beyond.messages.expect("it hears all");
        let page = usize::from(limits().page.get());
        let deliveries = stored.rows.range(after + 1..).map(|(_, row)| row.clone()).take(page).collect();
        self.event(client, stored.epoch, Event::Fetched { deliveries, last: self.stored[client].next });
    }

    fn store(&mut self, hint: u8) {
        let Some(Waiting { client, epoch, ticket, message, remember }) = self.publications.pop_front() else { return };
        let publisher = &mut self.stored[client];
        let new =
            remember.is_none_or(|packet_id| publisher.epoch == epoch && publisher.received.insert(packet_id.get()));
        if new {
            let other = 1 - client;
            let stored = &mut self.stored[other];
            stored.next += 1;
            let (seq, qos) = (stored.next, message.qos);
            let what = What::Message(Addressed { message, qos, retain: false, identifiers: vec![] });
            stored.rows.insert(seq, Delivery { seq, released: false, what: what.clone() });
            let hint = match hint {
                0 => None,
                1 => Some(Event::Hint { seq, what: None }),
                _ => Some(Event::Hint { seq, what: Some(what) }),
            };
            if let Some(hint) = hint {
                self.event(other, self.stored[other].epoch, hint);
            }
        }
        self.event(client, epoch, Event::Durable { ticket });
    }

    fn mark(&mut self) {
        match self.marks.pop_front() {
            Some((client, epoch, Marked::Forget(packet_id))) if self.stored[client].epoch == epoch => {
                self.stored[client].received.remove(&packet_id);
                self.event(client, epoch, Event::Forgotten);
            }
            Some((client, epoch, Marked::Received(seq))) if self.stored[client].epoch == epoch => {
                self.stored[client].rows.get_mut(&seq).expect("a row").released = true;
                self.event(client, epoch, Event::Kept { seq });
            }
            Some(_) | None => {}
        }
    }

    /// Lets everything through.
    fn finish(&mut self) {
        for _ in 0..self.published.len() * 12 + 60 {
            for client in 0..2 {
                self.step(Step::Up(client));
                self.step(Step::Down(client));
                self.step(Step::Answer(client));
                self.event(client, self.stored[client].epoch, Event::Look);
            }
            for step in [Step::Store(0), Step::Mark, Step::Ack] {
                self.step(step);
            }
        }
        for client in 0..2 {
            let sent = |qos| {
                let of = move |&(_, (by, at)): &(usize, &(usize, u8))| *by != client && *at == qos;
                self.published.iter().enumerate().filter(of).map(|(number, _)| u32::try_from(number).expect("few"))
            };
            let heard = &self.clients[client].heard;
            let times = |number: u32| heard.iter().filter(|&&other| other == number).count();
            assert!(sent(2).all(|number| times(number) == 1), "QoS 2, each once: {heard:?} of {:?}", self.published);
            assert!(sent(1).all(|number| times(number) >= 1), "QoS 1, lost: {heard:?} of {:?}", self.published);
            assert!(sent(0).all(|number| times(number) <= 1), "QoS 0, twice: {heard:?} of {:?}", self.published);
            for qos in 0..3 {
                let mut first = BTreeSet::new();
                let order: Vec<u32> = heard
                    .iter()
                    .copied()
                    .filter(|&number| {
                        self.published[usize::try_from(number).expect("few")].1 == qos && first.insert(number)
                    })
                    .collect();
                assert!(order.is_sorted(), "QoS {qos} out of order: {order:?}");
            }
            assert!(self.clients[client].unacknowledged.is_empty() && self.stored[client].rows.is_empty());
            assert!(self.stored[client].received.is_empty());
        }
    }
}

fn publish_of(packet_id: u16, number: u32, qos: u8, dup: bool) -> Event {
    let publish = Publish {
        dup: dup && qos > 0,
        qos: qos_of(qos),
        packet_id: (qos > 0).then(|| id(packet_id)),
        topic: "t".into(),
        ..Publish::default()
    };
    Event::Publish(publish, Bytes::from(number.to_string()))
}

fn release(packet_id: u16) -> Event {
    Event::Packet(Packet::PublishRelease(PublishAck2 { packet_id: id(packet_id), ..PublishAck2::default() }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_qos_keeps_its_promise_whatever_breaks(steps in proptest::collection::vec(step(), 0..200)) {
        let mut world = World::default();
        for step in &steps {
            world.step(*step);
        }
        world.finish();
    }
}
