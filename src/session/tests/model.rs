//! Schedules of drops and crashes against a small reference model.
//!
//! Goal: no queued receipt is lost, the order is kept, a resend carries the original identifier, what was sent before
//! is never sent as new, and requests are acknowledged in order and only once they are durable. Method: the twin with a
//! database, a client and a network of a few lines each; a list of steps drawn by proptest; at the end everything is let
//! through and counted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A receipt is queued; its hint comes with the bytes, without them, or is lost.
    Queue(u8),
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
        4 => Just(Step::Answer),
        5 => any::<bool>().prop_map(Step::Read),
        2 => Just(Step::Mark),
        2 => Just(Step::Ask),
        2 => (0..4_usize).prop_map(Step::Durable),
        1 => Just(Step::Cut),
        1 => Just(Step::Crash),
    ]
}

#[derive(Default)]
struct World {
    // The database.
    rows: BTreeMap<i64, bool>,
    sent_to: Option<i64>,
    // The connection.
    session: Option<Session>,
    /// Questions whose answers are as of when they are answered.
    questions: VecDeque<(i64, u16)>,
    marks: VecDeque<i64>,
    wire: VecDeque<Effect>,
    admitting: Vec<(u32, u16)>,
    connections: u32,
    // What is known outside.
    sent_ever: BTreeSet<i64>,
    sent_here: Vec<i64>,
    in_flight: BTreeSet<i64>,
    first_heard: Vec<i64>,
    asked: u16,
    durable: BTreeSet<u16>,
    unacknowledged: VecDeque<u16>,
}

impl World {
    fn connect(&mut self) {
        self.connections += 1;
        let version = if self.connections.is_multiple_of(2) { Version::V3 } else { Version::V5 };
        let sent_to = self.sent_to.unwrap_or_else(|| i64::try_from(self.rows.len()).expect("few"));
        let loaded = Loaded { present: true, subscriptions: vec![receipts()], sent_to };
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
                    assert_eq!(publish.packet_id, Some(packet_id(seq)));
                    assert!(!self.sent_here.contains(&seq), "{seq} twice on one connection");
                    assert!(self.sent_here.iter().all(|&before| before < seq), "{seq} after {:?}", self.sent_here);
                    assert!(
                        publish.dup || !self.sent_ever.contains(&seq),
                        "{seq} was sent before, and goes out as new"
                    );
                    self.sent_ever.insert(seq);
                    self.sent_here.push(seq);
                    self.in_flight.insert(seq);
                    assert!(self.in_flight.len() <= usize::from(limits().outbound_max.get()));
                    self.wire.push_back(effect);
                }
                Effect::Send(Packet::PublishAck(ack)) => {
                    let number = ack.packet_id.get();
                    assert_eq!(self.unacknowledged.pop_front(), Some(number), "in the order of arrival");
                    assert!(self.durable.contains(&number), "only once it is durable");
                }
                Effect::Admit { ticket, payload } => {
                    let number = std::str::from_utf8(payload).expect("text").parse().expect("a number");
                    self.admitting.push((*ticket, number));
                }
                Effect::Acked { seq, .. } => {
                    self.in_flight.remove(seq);
                    self.marks.push_back(*seq);
                }
                Effect::Fetch { after, max } => self.questions.push_back((*after, *max)),
                Effect::Send(_) => {}
                Effect::Store(_) | Effect::TooLarge { .. } | Effect::Close(_) => panic!("{effect:?}"),
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
                self.rows.insert(seq, false);
                match hint {
                    0 => {}
                    1 => self.event(Event::Hint { seq, receipt: None }),
                    _ => self.event(Event::Hint { seq, receipt: Some(Bytes::from(seq.to_string())) }),
                }
            }
            Step::Answer => self.answer(),
            Step::Read(willing) => {
                if let Some(Effect::Publish(publish, payload)) = self.wire.pop_front() {
                    let seq: i64 = std::str::from_utf8(&payload).expect("text").parse().expect("a place");
                    if !self.first_heard.contains(&seq) {
                        self.first_heard.push(seq);
                    }
                    if willing {
                        self.event(puback(publish.packet_id.expect("QoS 1").get()));
                    }
                }
            }
            Step::Mark => {
                if let Some(seq) = self.marks.pop_front() {
                    self.rows.insert(seq, true);
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
        if let Some((after, max)) = self.questions.pop_front() {
            let waiting = self.rows.range(after + 1..).filter(|&(_, &marked)| !marked).take(usize::from(max));
            let deliveries = waiting
                .map(|(&seq, _)| Delivery { seq, what: What::Receipt, payload: Bytes::from(seq.to_string()) })
                .collect();
            let last = i64::try_from(self.rows.len()).expect("few");
            self.event(Event::Fetched { deliveries, last });
        }
    }

    /// Lets everything through on one last connection.
    fn finish(&mut self) {
        self.end(false);
        self.connect();
        for _ in 0..self.rows.len() * 4 + 20 {
            self.event(Event::Look);
            for step in [Step::Answer, Step::Read(true), Step::Mark, Step::Durable(0)] {
                self.step(&step);
            }
        }
        assert!(self.rows.values().all(|&marked| marked), "lost: {:?}", self.rows);
        assert!(self.first_heard.is_sorted() && self.first_heard.len() == self.rows.len(), "{:?}", self.first_heard);
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
