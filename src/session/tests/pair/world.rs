//! The database, the links and the clock between two clients and their sessions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ntex_mqtt::v5::codec::RetainHandling;

use super::super::*;
use super::broker::{Broker, FILTERS, TOPICS};
use super::client::{Client, qos_of};
use super::{Manner, Step, Tally, Words};

/// What is stored of one client's session.
#[derive(Default)]
struct Stored {
    epoch: u32,
    present: bool,
    /// While it is not connected: when it is over.
    over_at: Option<i64>,
    expiry_s: i64,
    /// What is for it becomes rows.
    kept: bool,
    rows: BTreeMap<i64, Delivery>,
    next: i64,
    received: BTreeSet<u16>,
    subscriptions: Vec<Subscription>,
    sent_to: Option<i64>,
}

/// A connection.
struct Link {
    session: Session,
    up: VecDeque<Event>,
    down: VecDeque<Effect>,
    questions: VecDeque<Beyond>,
    change: Option<Change>,
    /// Of SUBSCRIBE and UNSUBSCRIBE.
    last_id: u16,
    window: usize,
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
    Received(i64, u32),
}

/// A publish of a client's.
struct Published {
    qos: u8,
    topic: usize,
    routed: u32,
    /// Its client gave it up, with its session.
    abandoned: bool,
}

pub(super) struct World {
    stored: [Stored; 2],
    manners: [Manner; 2],
    /// When each is back.
    back_at: [i64; 2],
    links: [Option<Link>; 2],
    clients: [Client; 2],
    broker: Broker,
    publications: VecDeque<Waiting>,
    marks: VecDeque<(usize, u32, Marked)>,
    /// What was stored, and that is told after the next.
    late: Option<(usize, u32, Event)>,
    acks: VecDeque<(usize, u32, i64)>,
    published: Vec<Published>,
    now: i64,
    tally: Tally,
}

/// As both begin, and as both come back at the end.
const STAYS: Manner =
    Manner { five: true, clean_start: false, expiry_s: 3600, receive_max: 3, topic_alias_max: 2, away: 0 };

impl World {
    pub(super) fn new(tally: Tally) -> Self {
        let mut world = Self {
            stored: Default::default(),
            manners: [STAYS; 2],
            back_at: [0; 2],
            links: [None, None],
            clients: Default::default(),
            broker: Broker::default(),
            publications: VecDeque::new(),
            marks: VecDeque::new(),
            late: None,
            acks: VecDeque::new(),
            published: Vec::new(),
            now: 0,
            tally,
        };
        for client in 0..2 {
            world.connect(client);
        }
        world
    }

    fn connect(&mut self, client: usize) {
        let manner = self.manners[client];
        let stored = &mut self.stored[client];
        let overdue = stored.present && stored.over_at.is_some_and(|at| at <= self.now);
        self.tally.expired += u64::from(overdue);
        self.tally.cleaned += u64::from(stored.present && manner.clean_start);
        if overdue || manner.clean_start {
            self.forget(client);
        }
        let stored = &mut self.stored[client];
        stored.epoch += 1;
        stored.over_at = None;
        let loaded = Loaded {
            present: stored.present,
            received: stored.received.iter().map(|&number| id(number)).collect(),
            subscriptions: stored.subscriptions.clone(),
            sent_to: stored.sent_to.take().unwrap_or(stored.next),
        };
        self.tally.resumed += u64::from(stored.present);
        self.tally.released_again += stored.rows.values().filter(|row| row.received.is_some()).count() as u64;
        let version = if manner.five { Version::V5 } else { Version::V3 };
        let connect = Connect {
            clean_start: manner.clean_start,
            keep_alive: 0,
            session_expiry_interval_secs: manner.expiry_s,
            receive_max: NonZeroU16::new(manner.receive_max).filter(|_| manner.five),
            topic_alias_max: if manner.five { manner.topic_alias_max } else { 0 },
            ..asked(false)
        };
        let receive_max = if manner.five { manner.receive_max } else { u16::MAX };
        stored.expiry_s = match (manner.five, manner.clean_start) {
            (true, _) => manner.expiry_s.into(),
            (false, clean) => {
                if clean {
                    0
                } else {
                    86_400
                }
            }
        };
        stored.kept = stored.expiry_s > 0 || stored.present;
        let (present, subscriptions) = (std::mem::replace(&mut stored.present, true), stored.subscriptions.clone());
        self.broker.only(client, &subscriptions);
        self.clients[client].connects(manner.five, receive_max, connect.topic_alias_max);
        let terms = Terms::of(&connect, version, &limits(), &open()).expect("granted");
        let mut session =
            Session::load(super::super::client(), open(), terms, &Arc::new(limits()), loaded, at(self.now));
        let mut effects = Vec::new();
        session.resume(&mut effects);
        self.links[client] = Some(Link {
            session,
            up: VecDeque::new(),
            down: VecDeque::new(),
            questions: VecDeque::new(),
            change: None,
            last_id: 100,
            window: usize::from(receive_max.min(limits().outbound_max.get())),
        });
        self.carry_out(client, effects);
        let asks = self.links[client].as_ref().is_some_and(|link| !link.questions.is_empty());
        assert!(asks || self.stored[client].rows.is_empty(), "what is queued is not asked for");
        let (again, abandoned) = self.clients[client].resumes(present);
        for number in abandoned {
            self.published[number as usize].abandoned = true;
        }
        for event in again {
            self.say(client, event);
        }
    }

    /// The session is over, and all that is kept with it.
    fn forget(&mut self, client: usize) {
        self.broker.forget(client);
        let Stored { epoch, next, .. } = self.stored[client];
        self.stored[client] = Stored { epoch, next, ..Stored::default() };
    }

    /// The connection is over.
    fn disconnected(&mut self, client: usize, stored: bool) {
        let Some(mut link) = self.links[client].take() else { return };
        let remains = link.session.remains();
        let own = &mut self.stored[client];
        own.sent_to = stored.then_some(remains.sent_to);
        if let Some(change) = remains.change.filter(|_| stored) {
            self.tally.left_over += 1;
            change.apply(&mut own.subscriptions);
        }
        if stored && own.expiry_s > 0 {
            self.broker.has_only(client, &own.subscriptions);
        }
        own.over_at = Some(self.now + own.expiry_s);
        self.back_at[client] = self.now + i64::from(self.manners[client].away);
        if own.expiry_s == 0 {
            self.forget(client);
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
            let effects = handle(&mut link.session, event, self.now);
            self.carry_out(client, effects);
        }
    }

    fn carry_out(&mut self, client: usize, effects: Vec<Effect>) {
        let epoch = self.stored[client].epoch;
        for effect in effects {
            let Some(link) = &mut self.links[client] else { return };
            match effect {
                Effect::Route { ticket, message, remember } => {
                    let waiting = Waiting { client, epoch, ticket, message, remember };
                    if waiting.message.qos == QoS::AtMostOnce && !waiting.message.retain {
                        assert_eq!(remember, None);
                        self.route(&waiting.message, 0);
                        self.event(client, epoch, Event::Durable { ticket });
                    } else {
                        self.publications.push_back(waiting);
                    }
                }
                Effect::Forget { packet_id } => {
                    self.marks.push_back((client, epoch, Marked::Forget(packet_id.get())));
                }
                Effect::Received { seq, nth } => self.marks.push_back((client, epoch, Marked::Received(seq, nth))),
                Effect::Acked { seq, .. } => self.acks.push_back((client, epoch, seq)),
                Effect::Fetch { beyond, .. } => link.questions.push_back(beyond),
                Effect::Store(change) => assert!(link.change.replace(change).is_none(), "one at a time"),
                Effect::Subscribed { subscription, existed } => self.subscribed(client, subscription, existed),
                Effect::Unsubscribed { filter } => {
                    self.tally.unsubscribed += 1;
                    self.broker.unsubscribe(client, &filter);
                }
                Effect::Publish(ref publish, ref payload) => {
                    let copy: usize = std::str::from_utf8(payload).expect("text").parse().expect("a number");
                    let copy = &mut self.broker.copies[copy];
                    let over_at = copy.over_at;
                    let again = publish.dup && publish.qos == QoS::ExactlyOnce;
                    let over = over_at.is_some_and(|over_at| at(self.now) >= over_at);
                    assert!(!over || again, "it is over [MQTT-3.3.2-5]");
                    self.tally.over_again += u64::from(over);
                    copy.late |= over;
                    link.down.push_back(effect);
                }
                Effect::Send(_) => link.down.push_back(effect),
                Effect::Dropped => {
                    self.tally.dropped += 1;
                    // The newest is the one that found no room.
                    self.broker.copies.last_mut().expect("a copy").excused = true;
                }
                Effect::Close(_) => self.disconnected(client, true),
                other => panic!("{other:?}"),
            }
        }
    }

    /// What was retained is for the new subscription: stored for a session that is kept, like what comes after it.
    fn subscribed(&mut self, client: usize, subscription: Subscription, existed: bool) {
        for addressed in self.broker.subscribe(client, subscription, existed, &mut self.tally) {
            if !addressed.message.is_over(at(self.now)) {
                self.give(client, &addressed, 1);
            }
        }
    }

    /// To one subscriber: as a row, or directly.
    fn give(&mut self, client: usize, addressed: &Addressed, hint: u8) {
        let kept = self.stored[client].kept;
        let addressed = self.broker.copy(client, addressed);
        let epoch = self.stored[client].epoch;
        if !kept || addressed.qos.min(addressed.message.qos) == QoS::AtMostOnce {
            return self.event(client, epoch, Event::Message(addressed));
        }
        let stored = &mut self.stored[client];
        stored.next += 1;
        let seq = stored.next;
        let what = What::Message(addressed);
        stored.rows.insert(seq, Delivery { seq, received: None, what: what.clone() });
        match hint {
            0 => {}
            1 => self.event(client, epoch, Event::Hint { seq, what: None }),
            _ => self.event(client, epoch, Event::Hint { seq, what: Some(what) }),
        }
    }

    fn route(&mut self, message: &Arc<Message>, hint: u8) {
        let number: usize = std::str::from_utf8(&message.payload).expect("text").parse().expect("a number");
        self.published[number].routed += 1;
        assert_eq!(message.topic, TOPICS[self.published[number].topic], "an alias stands for its latest topic");
        for (client, qos) in self.broker.route(message, &mut self.tally) {
            let addressed = Addressed { message: Arc::clone(message), qos, retain: false, identifiers: Vec::new() };
            self.give(client, &addressed, hint);
        }
    }

    pub(super) fn step(&mut self, step: Step) {
        self.tally.steps += 1;
        for client in 0..2 {
            if self.links[client].is_none() && self.now >= self.back_at[client] {
                self.connect(client);
            }
        }
        match step {
            Step::Publish(client, words) => self.publish(client, words),
            Step::Subscribe(client, filter, qos, handling) => self.subscribe(client, filter, qos, handling),
            Step::Unsubscribe(client, filter) => {
                let Some(packet_id) = self.next_id(client) else { return };
                let topic_filters = vec![FILTERS[filter].into()];
                let packet = Unsubscribe { packet_id, user_properties: vec![], topic_filters };
                self.say(client, Event::Packet(Packet::Unsubscribe(packet)));
            }
            Step::Up(client) => self.up(client),
            Step::Down(client) => {
                if let Some(effect) = self.links[client].as_mut().and_then(|link| link.down.pop_front()) {
                    self.hear(client, effect);
                }
            }
            Step::Answer(client) => self.answer(client),
            Step::Store(hint) => self.store(hint),
            Step::Change(client) => self.change(client),
            Step::Mark { late } => self.mark(late),
            Step::Ack => {
                if let Some((client, epoch, seq)) = self.acks.pop_front()
                    && self.stored[client].epoch == epoch
                {
                    self.stored[client].rows.remove(&seq);
                }
            }
            Step::Pass(seconds) => self.now += i64::from(seconds),
            Step::Cut(client, stored, manner) => {
                self.tally.cuts += 1;
                self.manners[client] = manner;
                self.disconnected(client, stored);
            }
            Step::TakeOver(client, manner) => {
                self.tally.takeovers += 1;
                self.manners[client] = manner;
                // It opens the new one first: what the old one still stores is fenced.
                self.disconnected(client, false);
                self.connect(client);
            }
            Step::Leave(client, manner) => {
                self.manners[client] = manner;
                self.say(client, Event::Packet(Packet::Disconnect(Disconnect::new(Reason::NormalDisconnection))));
            }
            Step::Crash => self.crash(),
        }
        self.watch();
    }

    /// What waits because the client takes no more at once.
    fn watch(&mut self) {
        for link in self.links.iter().flatten() {
            let sizes = link.session.sizes();
            self.tally.held += u64::from(sizes.rows + sizes.direct > link.window);
        }
    }

    fn crash(&mut self) {
        self.tally.crashes += 1;
        for client in 0..2 {
            self.disconnected(client, false);
            // The node that comes after it reads what is stored.
            self.broker.only(client, &self.stored[client].subscriptions);
        }
        (self.publications, self.marks, self.acks) = Default::default();
    }

    fn publish(&mut self, client: usize, words: Words) {
        let number = u32::try_from(self.published.len()).expect("few");
        if self.links[client].is_none() {
            return;
        }
        let Some(event) = self.clients[client].publishes(number, words, &mut self.tally) else { return };
        self.tally.published[usize::from(words.qos)] += 1;
        self.published.push(Published { qos: words.qos, topic: words.topic, routed: 0, abandoned: false });
        self.say(client, event);
    }

    fn next_id(&mut self, client: usize) -> Option<NonZeroU16> {
        let link = self.links[client].as_mut()?;
        link.last_id += 1;
        NonZeroU16::new(link.last_id)
    }

    fn subscribe(&mut self, client: usize, filter: usize, qos: u8, retain_handling: RetainHandling) {
        let Some(packet_id) = self.next_id(client) else { return };
        let options = SubscriptionOptions { qos: qos_of(qos), retain_handling, ..SubscriptionOptions::default() };
        let topic_filters = vec![(FILTERS[filter].into(), options)];
        let packet = Subscribe { packet_id, id: None, user_properties: vec![], topic_filters };
        self.say(client, Event::Packet(Packet::Subscribe(packet)));
    }

    fn up(&mut self, client: usize) {
        let Some(link) = &mut self.links[client] else { return };
        if link.session.full() {
            self.tally.unread += 1;
        } else if let Some(event) = link.up.pop_front() {
            self.event(client, self.stored[client].epoch, event);
        }
    }

    fn hear(&mut self, client: usize, effect: Effect) {
        let heard = self.clients[client].hears(effect, &mut self.tally);
        if let Some(number) = heard.acknowledged {
            assert!(self.published[number as usize].routed > 0, "acknowledged, and not durable");
        }
        if let Some(copy) = heard.copy {
            let copy = &mut self.broker.copies[copy];
            assert_eq!(copy.client, client, "it was for the other one");
            copy.heard += 1;
            self.tally.heard[usize::from(u8::from(copy.qos))] += 1;
        }
        if let Some(event) = heard.says {
            self.say(client, event);
        }
    }

    fn answer(&mut self, client: usize) {
        let Some(beyond) = self.links[client].as_mut().and_then(|link| link.questions.pop_front()) else { return };
        let stored = &self.stored[client];
        let after = beyond.messages.expect("it hears all");
        let page = usize::from(limits().page.get());
        let now = at(self.now);
        let is_over = |row: &Delivery| {
            matches!(&row.what, What::Message(addressed)
            if addressed.message.is_over(now) && addressed.qos.min(addressed.message.qos) != QoS::ExactlyOnce)
        };
        let rows = stored.rows.range(after + 1..).map(|(_, row)| row);
        let rows = rows.filter(|row| row.received.is_none() && !is_over(row));
        let is_owed = |row: &&Delivery| beyond.owed.is_some_and(|from| row.received.is_some_and(|nth| nth >= from));
        let mut owed: Vec<&Delivery> = stored.rows.values().filter(is_owed).collect();
        owed.sort_by_key(|row| row.received);
        let deliveries = owed.into_iter().chain(rows).take(page).cloned().collect();
        self.event(client, stored.epoch, Event::Fetched { deliveries, last: self.stored[client].next });
    }

    fn store(&mut self, hint: u8) {
        let Some(Waiting { client, epoch, ticket, message, remember }) = self.publications.pop_front() else { return };
        let publisher = &mut self.stored[client];
        let new =
            remember.is_none_or(|packet_id| publisher.epoch == epoch && publisher.received.insert(packet_id.get()));
        if new {
            self.tally.over += u64::from(message.is_over(at(self.now)));
            self.route(&message, hint);
        }
        self.event(client, epoch, Event::Durable { ticket });
    }

    fn change(&mut self, client: usize) {
        let Some(change) = self.links[client].as_mut().and_then(|link| link.change.take()) else { return };
        change.apply(&mut self.stored[client].subscriptions);
        self.event(client, self.stored[client].epoch, Event::Stored);
    }

    /// Stored in order, and told in any.
    fn mark(&mut self, late: bool) {
        let marked = self.marks.pop_front().and_then(|(client, epoch, marked)| {
            (self.stored[client].epoch == epoch).then(|| (client, epoch, self.marked(client, marked)))
        });
        let late = if late { std::mem::replace(&mut self.late, marked) } else { marked.or_else(|| self.late.take()) };
        if let Some((client, epoch, event)) = late {
            self.event(client, epoch, event);
        }
    }

    fn marked(&mut self, client: usize, marked: Marked) -> Event {
        let stored = &mut self.stored[client];
        match marked {
            Marked::Forget(packet_id) => {
                stored.received.remove(&packet_id);
                Event::Forgotten { packet_id: id(packet_id) }
            }
            Marked::Received(seq, nth) => {
                // It may be gone with its session.
                if let Some(row) = stored.rows.get_mut(&seq) {
                    row.received = Some(nth);
                }
                Event::Kept { seq }
            }
        }
    }

    /// Lets everything through.
    pub(super) fn finish(mut self) -> Tally {
        (self.manners, self.back_at) = ([STAYS; 2], [0; 2]);
        let mut looks = 0;
        for round in 0.. {
            let waits = |link: &Option<Link>| {
                link.as_ref().is_none_or(|link| {
                    !(link.up.is_empty() && link.down.is_empty() && link.questions.is_empty() && link.change.is_none())
                })
            };
            let stored =
                self.publications.is_empty() && self.marks.is_empty() && self.late.is_none() && self.acks.is_empty();
            let quiet = stored && !self.links.iter().any(waits);
            if quiet && looks == 4 {
                break;
            }
            looks += u32::from(quiet);
            assert!(round < self.published.len() * 40 + 2000, "it never comes to rest");
            for client in 0..2 {
                for step in [Step::Up(client), Step::Down(client), Step::Answer(client), Step::Change(client)] {
                    self.step(step);
                }
                // Hints may have been lost.
                if quiet {
                    self.event(client, self.stored[client].epoch, Event::Look);
                }
            }
            for step in [Step::Store(0), Step::Mark { late: false }, Step::Ack] {
                self.step(step);
            }
        }
        for (number, published) in self.published.iter().enumerate() {
            let (why, routed) = (format!("{number} at QoS {} was routed", published.qos), published.routed);
            match published.qos {
                0 => assert!(routed <= 1, "{why} {routed} times"),
                1 => assert!(routed >= 1 || published.abandoned, "{why} {routed} times"),
                _ => assert!(routed == 1 || routed == 0 && published.abandoned, "{why} {routed} times"),
            }
        }
        let [one, two] = &mut self.clients;
        self.broker.kept_their_promises(&[std::mem::take(&mut one.heard), std::mem::take(&mut two.heard)]);
        for client in 0..2 {
            assert!(self.clients[client].unacknowledged.is_empty());
            let now = at(self.now);
            let over = |row: &Delivery| matches!(&row.what, What::Message(it) if it.message.is_over(now));
            assert!(self.stored[client].rows.values().all(over), "{:?}", self.stored[client].rows);
            assert!(self.stored[client].received.is_empty() || self.stored[client].expiry_s == 0);
        }
        self.tally
    }
}
