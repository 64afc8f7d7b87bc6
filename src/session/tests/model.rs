//! Schedules of drops and crashes against a small reference model.
//!
//! Goal: no queued receipt or message is lost but at QoS 0, which goes out once at most; the order of each kind is kept, a
//! resend carries the original identifier, what was sent before is never sent as new, and requests are acknowledged in
//! order and only once they are durable. Method: the twin with a database, a client and a network of a few lines each; a
//! list of steps drawn by proptest; at the end everything is let through and counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::mqtt::Properties;

#[derive(Clone, Debug)]
enum Step {
    /// A receipt is queued; its hint comes with the bytes, without them, or is lost.
    Queue(u8),
    /// A message is queued, at QoS 1 or not, and the session is told to look or is not.
    Tell(bool, bool),
    /// The client subscribes to messages, if it does not, or unsubscribes. Kept by the database with the step.
    Turn,
    /// The database answers the oldest question.
    Answer,
    /// The client reads one packet, and acknowledges it if it is a receipt and it is willing.
    Read(bool),
    /// The oldest acknowledgement is stored.
    Mark,
    /// The client publishes a request.
    Ask,
    /// One of the requests that are being admitted becomes durable.
    Durable(usize),
    /// The connection ends and that is stored.
    Cut,
    /// The node dies: nothing is stored that was not.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_u8).prop_map(Step::Queue),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(kept, look)| Step::Tell(kept, look)),
        1 => Just(Step::Turn),
        4 => Just(Step::Answer),
        5 => any::<bool>().prop_map(Step::Read),
        2 => Just(Step::Mark),
        2 => Just(Step::Ask),
        2 => (0..4_usize).prop_map(Step::Durable),
        1 => Just(Step::Cut),
        1 => Just(Step::Crash),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Receipt,
    Kept,
    Unkept,
}

#[derive(Debug)]
struct Row {
    kind: Kind,
    /// It was acknowledged, and that is stored; or it was for a connection that is gone.
    done: bool,
}

#[derive(Default)]
struct World {
    // The database.
    rows: BTreeMap<i64, Row>,
    subscribed: bool,
    sent_to: Option<i64>,
    // The connection.
    session: Option<Session>,
    /// Questions whose answers are as of when they are answered.
    questions: VecDeque<(Beyond, u16)>,
    marks: VecDeque<i64>,
    wire: VecDeque<Effect>,
    admitting: Vec<(u32, u16)>,
    connections: u32,
    // What is known outside.
    sent_ever: BTreeSet<i64>,
    sent_here: Vec<i64>,
    in_flight: BTreeSet<i64>,
    heard: BTreeSet<i64>,
    asked: u16,
    durable: BTreeSet<u16>,
    unacknowledged: VecDeque<u16>,
}

impl World {
    fn connect(&mut self) {
        self.connections += 1;
        let version = if self.connections.is_multiple_of(2) { Version::V3 } else { Version::V5 };
        let sent_to = self.sent_to.unwrap_or_else(|| i64::try_from(self.rows.len()).expect("few"));
        let mut subscriptions = vec![receipts()];
        if self.subscribed {
            subscriptions.push(Subscription { filter: "c/T1".into(), ..receipts() });
        }
        self.rows.values_mut().filter(|row| row.kind == Kind::Unkept).for_each(|row| row.done = true);
        let loaded = Loaded { present: true, subscriptions, sent_to, ..Loaded::default() };
        let (session, effects) = resumed(version, &asked(false), loaded);
        self.session = Some(session);
        self.sent_to = None;
        self.carry_out(effects);
    }

    fn end(&mut self, stored: bool) {
        let Some(mut session) = self.session.take() else { return };
        if stored {
            self.sent_to = Some(session.remains().sent_to);
        }
        self.questions.clear();
        self.wire.clear();
        self.in_flight.clear();
        self.sent_here.clear();
        self.admitting.clear();
        self.unacknowledged.clear();
        if !stored {
            self.marks.clear();
        }
    }

    fn event(&mut self, event: Event) {
        if let Some(session) = &mut self.session {
            let effects = handle(session, event, 1);
            self.carry_out(effects);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match &effect {
                Effect::Publish(publish, payload) => {
                    let seq: i64 = std::str::from_utf8(payload).expect("text").parse().expect("a place");
                    let kind = self.rows[&seq].kind;
                    assert_eq!(&*publish.topic, if kind == Kind::Receipt { "r/T1" } else { "c/T1" });
                    assert!(kind == Kind::Receipt || self.subscribed, "{seq}: nobody subscribes to it");
                    assert_eq!(publish.packet_id, (kind != Kind::Unkept).then(|| packet_id(seq)));
                    assert!(!self.sent_here.contains(&seq), "{seq} twice on one connection");
                    let mut alike = self
                        .sent_here
                        .iter()
                        .filter(|before| (self.rows[before].kind == Kind::Receipt) == (kind == Kind::Receipt));
                    assert!(alike.all(|&before| before < seq), "{seq} after {:?}", self.sent_here);
                    let before = !self.sent_ever.insert(seq);
                    assert!(
                        !before || (publish.dup && kind != Kind::Unkept),
                        "{seq} was sent before, and goes out as new"
                    );
                    self.sent_here.push(seq);
                    if kind != Kind::Unkept {
                        self.in_flight.insert(seq);
                    }
                    assert!(self.in_flight.len() <= usize::from(limits().outbound_max.get()));
                    self.wire.push_back(effect);
                }
                Effect::Send(Packet::PublishAck(ack)) => {
                    let number = ack.packet_id.get();
                    assert_eq!(self.unacknowledged.pop_front(), Some(number), "in the order of arrival");
                    assert!(self.durable.contains(&number), "only once it is durable");
                }
                Effect::Admit { ticket, payload, .. } => {
                    let number = std::str::from_utf8(payload).expect("text").parse().expect("a number");
                    self.admitting.push((*ticket, number));
                }
                Effect::Acked { seq, .. } => {
                    self.in_flight.remove(seq);
                    self.marks.push_back(*seq);
                }
                Effect::Fetch { beyond, max } => self.questions.push_back((*beyond, *max)),
                Effect::Send(_) | Effect::Subscribed { .. } | Effect::Unsubscribed { .. } => {}
                Effect::Store(_) => {
                    self.subscribed = !self.subscribed;
                    self.event(Event::Stored);
                }
                Effect::TooLarge { .. }
                | Effect::Close(_)
                | Effect::Route { .. }
                | Effect::Forget { .. }
                | Effect::Received { .. }
                | Effect::Dropped => panic!("{effect:?}"),
            }
        }
    }

    fn step(&mut self, step: &Step) {
        if self.session.is_none() {
            self.connect();
        }
        match *step {
            Step::Queue(hint) => {
                let seq = i64::try_from(self.rows.len()).expect("few") + 1;
                self.rows.insert(seq, Row { kind: Kind::Receipt, done: false });
                match hint {
                    0 => {}
                    1 => self.event(Event::Hint { seq, what: None }),
                    _ => self.event(Event::Hint { seq, what: Some(What::Receipt(Bytes::from(seq.to_string()))) }),
                }
            }
            Step::Tell(kept, look) => {
                let seq = i64::try_from(self.rows.len()).expect("few") + 1;
                self.rows.insert(seq, Row { kind: if kept { Kind::Kept } else { Kind::Unkept }, done: false });
                if look {
                    self.event(Event::Look);
                }
            }
            Step::Turn => self.turn(),
            Step::Answer => self.answer(),
            Step::Read(willing) => {
                if let Some(Effect::Publish(publish, payload)) = self.wire.pop_front() {
                    let seq: i64 = std::str::from_utf8(&payload).expect("text").parse().expect("a place");
                    self.heard.insert(seq);
                    if let Some(packet_id) = publish.packet_id.filter(|_| willing) {
                        self.event(puback(packet_id.get()));
                    }
                }
            }
            Step::Mark => {
                if let Some(seq) = self.marks.pop_front() {
                    self.rows.get_mut(&seq).expect("a row").done = true;
                }
            }
            Step::Ask => {
                if self.unacknowledged.len() < usize::from(limits().inbound_max.get()) {
                    self.asked += 1;
                    self.unacknowledged.push_back(self.asked);
                    let Event::Publish(publish, _) = publish(self.asked, "") else { unreachable!() };
                    self.event(Event::Publish(publish, Bytes::from(self.asked.to_string())));
                }
            }
            Step::Durable(which) => {
                if !self.admitting.is_empty() {
                    let (ticket, number) = self.admitting.remove(which % self.admitting.len());
                    self.durable.insert(number);
                    self.event(Event::Durable { ticket });
                }
            }
            Step::Cut => self.end(true),
            Step::Crash => self.end(false),
        }
    }

    fn answer(&mut self) {
        if let Some((beyond, max)) = self.questions.pop_front() {
            let wanted = |seq: i64, kind| {
                let after = if kind == Kind::Receipt { beyond.receipts } else { beyond.messages };
                after.is_some_and(|after| seq > after)
            };
            let waiting = self.rows.iter().filter(|(seq, row)| !row.done && wanted(**seq, row.kind));
            let message = |seq: i64, qos| {
                let (topic, payload) = ("c/T1".into(), Bytes::from(seq.to_string()));
                let message =
                    Message { topic, payload, qos, retain: false, expires_at: None, properties: Properties::default() };
                What::Message(Addressed { message: Arc::new(message), qos, retain: false, identifiers: vec![] })
            };
            let deliveries = waiting.take(usize::from(max)).map(|(&seq, row)| {
                let what = match row.kind {
                    Kind::Receipt => What::Receipt(Bytes::from(seq.to_string())),
                    Kind::Kept => message(seq, QoS::AtLeastOnce),
                    Kind::Unkept => message(seq, QoS::AtMostOnce),
                };
                Delivery { seq, received: None, what }
            });
            let deliveries = deliveries.collect();
            let last = i64::try_from(self.rows.len()).expect("few");
            self.event(Event::Fetched { deliveries, last });
        }
    }

    fn turn(&mut self) {
        let packet = if self.subscribed {
            let topic_filters = vec!["c/T1".into()];
            Packet::Unsubscribe(Unsubscribe { packet_id: id(60_000), user_properties: vec![], topic_filters })
        } else {
            let topic_filters = vec![("c/T1".into(), receipts().options)];
            Packet::Subscribe(Subscribe { packet_id: id(60_000), id: None, user_properties: vec![], topic_filters })
        };
        self.event(Event::Packet(packet));
    }

    /// Lets everything through on one last connection.
    fn finish(&mut self) {
        self.end(false);
        self.subscribed = true;
        self.connect();
        for _ in 0..self.rows.len() * 4 + 20 {
            self.event(Event::Look);
            for step in [Step::Answer, Step::Read(true), Step::Mark, Step::Durable(0)] {
                self.step(&step);
            }
        }
        assert!(self.rows.values().all(|row| row.done), "lost: {:?}", self.rows);
        let kept = self.rows.iter().filter(|(_, row)| row.kind != Kind::Unkept);
        assert!(kept.map(|(seq, _)| seq).all(|seq| self.heard.contains(seq)), "{:?} of {:?}", self.heard, self.rows);
        assert!(self.unacknowledged.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_the_order_is_kept(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = World::default();
        for step in &steps {
            world.step(step);
        }
        world.finish();
    }
}
