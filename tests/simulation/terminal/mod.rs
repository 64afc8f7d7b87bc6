//! A terminal: keeps a request in flash until it has its receipt, and repeats it byte for byte. It loses its connection,
//! its power and its patience; it sends twice, sends nonsense, and sometimes asks for something else under a used key.
//!
//! Here is what it does; `hears` has what it hears. Its journal is not the terminal's: it is what really went out and came in, for the auditor.

mod hears;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::time::Duration;

use ntex_bytes::{ByteString, Bytes};
use ntex_mqtt::{v3::codec as v3, v5::codec as v5};
use prost::Message as _;
use wakala::card::Ksn;
use wakala::id::{RequestKey, TransactionId};
use wakala::mqtt::Publish;
use wakala::session::Version;
use wakala::time::Time;
use wakala::wire;

use super::edge::{self, CARDS, PIN_MALFORMED, PIN_RIGHT, PIN_WRONG};
use super::mqtt::Mqtt;
use super::stage::{About, End, Enrolment, Home, Payload, Stage, What, WireNo};

/// What a request is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Good,
    WrongPin,
    MalformedPin,
    /// Bytes that are no request, or one with a fault.
    Junk,
    /// Another amount under the key of the request at this place.
    Reuse(usize),
}

/// One request in the journal.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) key: RequestKey,
    pub(crate) sort: Sort,
    pub(crate) deposit: bool,
    pub(crate) amount: u64,
    bytes: Bytes,
    /// A PUBACK of it was heard.
    pub(crate) durable: bool,
    /// The final receipts that were received, without repetitions.
    pub(crate) receipts: Vec<Bytes>,
    /// One of them was acknowledged.
    pub(crate) acknowledged: bool,
    /// Kept in flash: no receipt yet.
    open: bool,
    /// When it went out last, in this life.
    sent: Option<Time>,
    /// How often it went out.
    sends: u32,
    /// It used a key again, and what came was the receipt of the key's first request.
    pub(crate) given_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Radio {
    /// Without power or connection, until then.
    Away {
        until: Time,
    },
    /// CONNECT is sent.
    Greeting {
        wire: WireNo,
        until: Time,
    },
    /// SUBSCRIBE is sent.
    Subscribing {
        wire: WireNo,
        until: Time,
    },
    Online {
        wire: WireNo,
    },
}

#[derive(Debug)]
pub(crate) enum Event {
    Wake {
        life: u32,
    },
    Crash,
    /// The faults are over: connect again soon.
    Heal,
}

pub(crate) struct Terminal {
    no: usize,
    pub(crate) enrolled: Enrolment,
    version: Version,
    clean: bool,
    expiry_s: u32,
    keep_alive_s: u16,
    patience: Duration,
    /// Flash.
    counter: u32,
    plan: VecDeque<(Time, f64)>,
    pub(crate) journal: Vec<Asked>,
    /// Memory.
    life: u32,
    radio: Radio,
    packet: u16,
    /// Publishes that wait for their PUBACK, in their order, with their place in the journal; one that went to a topic
    /// of somebody else has none.
    in_flight: VecDeque<(NonZeroU16, Option<usize>)>,
    /// Deliveries of this session, by packet identifier.
    heard: BTreeMap<NonZeroU16, Bytes>,
    pinged: Option<Time>,
    last_sent: Time,
    failures: u32,
    wakes_at: Option<Time>,
}

/// Requests that may be without a receipt at once.
const OPEN_MAX: usize = 2;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl Terminal {
    pub(crate) fn new(no: usize, stage: &mut Stage, requests: u64, period: Duration) -> Self {
        let enrolled = stage.village.terminals[no].clone();
        let mut plan: Vec<(Time, f64)> = (0..requests)
            .map(|_| {
                let at = stage.now + stage.chance.millis(0, u64::try_from(period.as_millis()).unwrap_or(0));
                (at, stage.chance.within(0, 1000) as f64 / 1000.0)
            })
            .collect();
        plan.sort_by_key(|(at, _)| *at);
        let version = [Version::V3, Version::V5][stage.chance.index(2)];
        let clean = stage.chance.happens(0.15);
        let expiry_s = [0, 20, 86_400, 86_400][stage.chance.index(4)];
        let keep_alive_s = [10, 30, 60][stage.chance.index(3)];
        let patience = stage.chance.millis(2_000, 40_000);
        let radio = Radio::Away { until: stage.now };
        let mut terminal = Self {
            no,
            enrolled,
            version,
            clean,
            expiry_s,
            keep_alive_s,
            patience,
            counter: 0,
            plan: plan.into(),
            journal: Vec::new(),
            life: 0,
            radio,
            packet: 0,
            in_flight: VecDeque::new(),
            heard: BTreeMap::new(),
            pinged: None,
            last_sent: stage.now,
            failures: 0,
            wakes_at: None,
        };
        terminal.go_on(stage);
        terminal
    }

    /// Nothing is planned and nothing lacks its receipt.
    pub(crate) fn is_content(&self) -> bool {
        self.plan.is_empty() && self.journal.iter().all(|asked| !asked.open)
    }

    pub(crate) fn is_online(&self) -> bool {
        matches!(self.radio, Radio::Online { .. })
    }

    pub(crate) fn id(&self, asked: &Asked) -> TransactionId {
        TransactionId::of(&self.enrolled.id, asked.key)
    }

    fn tell(&self, text: impl FnOnce() -> String, stage: &mut Stage) {
        let id = &self.enrolled.id;
        stage.tell(|| About::Terminal(id.clone()), || format!("{id}: {}", text()));
    }

    pub(crate) fn handle(&mut self, event: Event, stage: &mut Stage) {
        match event {
            Event::Wake { life } if life == self.life => self.wakes_at = None,
            Event::Wake { .. } => return,
            Event::Crash => {
                let off = stage.chance.wait(20_000);
                self.crash(off, stage);
            }
            Event::Heal => {
                if let Radio::Away { .. } = self.radio {
                    let wait = stage.chance.millis(0, 2_000);
                    self.radio = Radio::Away { until: stage.now + wait };
                    self.failures = 0;
                }
            }
        }
        self.go_on(stage);
    }

    /// Power off: what is not in flash is forgotten.
    fn crash(&mut self, off: Duration, stage: &mut Stage) {
        self.tell(|| format!("loses its power for {off:?}"), stage);
        if let Some(wire) = self.wire() {
            let heard = stage.chance.happens(0.3);
            stage.cut(wire, heard);
        }
        self.life += 1;
        self.wakes_at = None;
        self.in_flight.clear();
        self.heard.clear();
        self.packet = 0;
        for asked in &mut self.journal {
            asked.sent = None;
        }
        self.radio = Radio::Away { until: stage.now + off };
    }

    fn wire(&self) -> Option<WireNo> {
        match self.radio {
            Radio::Away { .. } => None,
            Radio::Greeting { wire, .. } | Radio::Subscribing { wire, .. } | Radio::Online { wire } => Some(wire),
        }
    }

    fn hang_up(&mut self, stage: &mut Stage) {
        if let Some(wire) = self.wire() {
            stage.close(wire, 0);
        }
        self.lost(stage);
    }

    fn lost(&mut self, stage: &mut Stage) {
        self.failures += 1;
        let most = 300 * 2_u64.pow(self.failures.min(4));
        let wait = stage.chance.millis(50, most);
        self.radio = Radio::Away { until: stage.now + wait };
    }

    fn send(&mut self, packet: Mqtt, stage: &mut Stage) {
        if let Some(wire) = self.wire() {
            self.last_sent = stage.now;
            stage.send(wire, 0, Payload::Mqtt(packet));
        }
    }

    /// Does what is due, and sets the alarm for what will be.
    fn go_on(&mut self, stage: &mut Stage) {
        let now = stage.now;
        let mut next = match self.radio {
            Radio::Away { until } if until <= now => self.connect(stage),
            Radio::Away { until } => until,
            Radio::Greeting { until, .. } | Radio::Subscribing { until, .. } if until <= now => {
                self.hang_up(stage);
                now + Duration::from_secs(1)
            }
            Radio::Greeting { until, .. } | Radio::Subscribing { until, .. } => until,
            Radio::Online { .. } => self.online(stage),
        };
        if let Radio::Away { until } = self.radio {
            next = until;
        }
        if self.wakes_at.is_none_or(|set| set > next) {
            self.wakes_at = Some(next);
            stage.at(next, What::Terminal(self.no, Event::Wake { life: self.life }));
        }
    }

    fn connect(&mut self, stage: &mut Stage) -> Time {
        let node = stage.chance.index(stage.village.nodes);
        // Which life the node is in is for the network to find out.
        let to = End::Node(Home { node, life: 0 });
        let wire = stage.connect(End::Terminal { no: self.no, life: self.life }, to);
        let until = stage.now + ANSWER_WITHIN;
        self.radio = Radio::Greeting { wire, until };
        self.pinged = None;
        let client_id = ByteString::from(self.enrolled.id.as_str().to_owned());
        let packet = match self.version {
            Version::V3 => {
                let connect =
                    v3::Connect { clean_session: self.clean, keep_alive: self.keep_alive_s, ..Default::default() };
                Mqtt::V3(v3::Packet::Connect(Box::new(connect.client_id(client_id))))
            }
            Version::V5 => Mqtt::V5(v5::Packet::Connect(Box::new(v5::Connect {
                clean_start: self.clean,
                keep_alive: self.keep_alive_s,
                session_expiry_interval_secs: self.expiry_s,
                receive_max: NonZeroU16::new(2),
                client_id,
                ..Default::default()
            }))),
        };
        self.send(packet, stage);
        until
    }

    /// Connected and subscribed: requests, repeats, pings.
    fn online(&mut self, stage: &mut Stage) -> Time {
        let now = stage.now;
        if stage.chance.happens(stage.weather.terminal_leaves * 0.02) {
            self.leave(stage);
            return now + Duration::from_secs(1);
        }
        // First what was asked before: a later key counter must not overtake an earlier one.
        let due: Vec<usize> = self
            .open()
            .filter(|&place| self.journal[place].sent.is_none_or(|sent| sent + self.patience <= now))
            .filter(|place| self.in_flight.iter().all(|(_, waiting)| *waiting != Some(*place)))
            .collect();
        for place in due {
            self.publish(Some(place), stage);
        }
        while self.plan.front().is_some_and(|(at, _)| *at <= now) && self.open().count() < OPEN_MAX {
            if let Some((_, lot)) = self.plan.pop_front() {
                let place = self.make(lot, stage);
                // Between two of its own, one for a topic that is not its own: its PUBACK must keep its turn.
                if stage.chance.happens(stage.weather.terminal_junk) {
                    self.publish(None, stage);
                }
                self.publish(Some(place), stage);
                if stage.chance.happens(stage.weather.terminal_junk) {
                    self.publish(None, stage);
                }
                if stage.chance.happens(stage.weather.terminal_twice) {
                    self.publish(Some(place), stage);
                }
            }
        }
        let keep_alive = Duration::from_secs(self.keep_alive_s.into());
        match self.pinged {
            Some(at) if at + ANSWER_WITHIN <= now => {
                self.hang_up(stage);
                return now + Duration::from_secs(1);
            }
            None if self.last_sent + keep_alive <= now => {
                self.pinged = Some(now);
                let ping = match self.version {
                    Version::V3 => Mqtt::V3(v3::Packet::PingRequest),
                    Version::V5 => Mqtt::V5(v5::Packet::PingRequest),
                };
                self.send(ping, stage);
            }
            _ => {}
        }
        let ping = self.pinged.map_or(self.last_sent + keep_alive, |at| at + ANSWER_WITHIN);
        let plan = self.plan.front().map(|(at, _)| (*at).max(now + Duration::from_secs(1)));
        let repeats = self.open().filter_map(|place| {
            let due = self.journal[place].sent? + self.patience;
            Some(due.max(now + Duration::from_secs(1)))
        });
        let next = repeats.chain(plan).min().unwrap_or(ping);
        next.min(ping)
    }

    fn leave(&mut self, stage: &mut Stage) {
        self.tell(|| "disconnects".to_owned(), stage);
        let packet = match self.version {
            Version::V3 => Mqtt::V3(v3::Packet::Disconnect),
            Version::V5 => {
                let reason = v5::DisconnectReasonCode::NormalDisconnection;
                Mqtt::V5(v5::Packet::Disconnect(v5::Disconnect::new(reason)))
            }
        };
        self.send(packet, stage);
        self.hang_up(stage);
    }

    fn open(&self) -> impl Iterator<Item = usize> {
        self.journal.iter().enumerate().filter(|(_, asked)| asked.open).map(|(place, _)| place)
    }

    /// A new request, in flash before it is sent.
    fn make(&mut self, lot: f64, stage: &mut Stage) -> usize {
        stage.requests += 1;
        let weather = &stage.weather;
        let (junk, reuse, wrong) = (weather.terminal_junk, weather.terminal_reuse, weather.terminal_wrong_pin);
        // Once for each key: a refusal does not say which of two it answers.
        let reused = |place| self.journal.iter().any(|asked| asked.sort == Sort::Reuse(place));
        let used = self.journal.iter().enumerate().rev().filter(|(_, asked)| asked.durable && asked.sort == Sort::Good);
        let reusable = used.map(|(place, _)| place).find(|&place| !reused(place));
        let sort = match reusable {
            _ if lot < junk => Sort::Junk,
            Some(place) if lot < junk + reuse => Sort::Reuse(place),
            _ if lot > 1.0 - wrong * 0.8 => Sort::WrongPin,
            _ if lot > 1.0 - wrong => Sort::MalformedPin,
            _ => Sort::Good,
        };
        let key = match sort {
            Sort::Reuse(place) => self.journal[place].key,
            _ => RequestKey(stage.chance.bytes()),
        };
        // The last three digits are the request's number in this world.
        let amount = stage.chance.within(1, 60_000) * 1000 + stage.requests % 1000;
        let deposit = !matches!(sort, Sort::WrongPin | Sort::MalformedPin) && stage.chance.happens(0.4);
        self.counter += 1;
        let (key, bytes) = self.write(key, sort, deposit, amount, stage);
        let id = TransactionId::of(&self.enrolled.id, key);
        self.tell(|| format!("makes a request: {sort:?} {amount} deposit={deposit} key {key:?} ({id})"), stage);
        self.journal.push(Asked {
            key,
            sort,
            deposit,
            amount,
            bytes,
            durable: false,
            receipts: Vec::new(),
            acknowledged: false,
            open: true,
            sent: None,
            sends: 0,
            given_up: false,
        });
        self.journal.len() - 1
    }

    fn write(&self, key: RequestKey, sort: Sort, deposit: bool, amount: u64, stage: &mut Stage) -> (RequestKey, Bytes) {
        let chance = &mut stage.chance;
        let card = CARDS[chance.index(CARDS.len())].number;
        let pin = match sort {
            Sort::WrongPin => PIN_WRONG,
            Sort::MalformedPin => PIN_MALFORMED,
            Sort::Good | Sort::Junk | Sort::Reuse(_) => PIN_RIGHT,
        };
        let mut request = wire::Request {
            key: key.0.to_vec(),
            kind: if deposit { wire::Kind::Deposit } else { wire::Kind::Withdrawal }.into(),
            amount,
            currency: 834,
            card: Some(wire::Card {
                data: vec![card; 16],
                pin_block: if deposit { Vec::new() } else { vec![pin; 16] },
            }),
            made_at: stage.now.seconds(),
        };
        let ksn =
            Ksn { initial_key_id: std::array::from_fn(|_| u8::try_from(self.no).unwrap_or(0)), counter: self.counter };
        let fault = if sort == Sort::Junk { chance.within(1, 6) } else { 0 };
        match fault {
            1 => request.amount = 0,
            2 => request.currency = 1,
            3 => request.card = None,
            4 => request.kind = 9,
            _ => {}
        }
        let body = request.encode_to_vec();
        let mut mac = edge::mac(&ksn, &body).to_vec();
        if fault == 5 {
            mac[0] ^= 1;
        }
        let bytes = wire::Envelope { body, ksn: ksn.to_bytes().to_vec(), mac }.encode_to_vec();
        if fault == 6 {
            let length = [0, 1, 40, 1025, 3000][chance.index(5)];
            let bytes: Vec<u8> = (0..length).map(|_| chance.byte()).collect();
            return (RequestKey::of_bytes(&bytes), Bytes::from(bytes));
        }
        (key, Bytes::from(bytes))
    }

    fn publish(&mut self, place: Option<usize>, stage: &mut Stage) {
        // A client of 3.1.1 is cut off for it, for its PUBACK has no reason code (3.3.5).
        if place.is_none() && self.version == Version::V3 {
            return;
        }
        // The Receive Maximum of the CONNACK; a client of 3.1.1 keeps to it too.
        if self.in_flight.len() >= usize::from(super::session::LIMITS.inbound_max.get()) {
            return;
        }
        let free = |packet: &NonZeroU16| self.in_flight.iter().all(|(id, _)| id != packet);
        let ids = (1..=65_535_u16).map(|step| self.packet.wrapping_add(step)).filter_map(NonZeroU16::new);
        let Some(packet) = ids.into_iter().find(free) else { return };
        self.packet = packet.get();
        self.in_flight.push_back((packet, place));
        if let Some(asked) = place.and_then(|place| self.journal.get_mut(place)) {
            asked.sent = Some(stage.now);
            asked.sends += 1;
        }
        self.send_publish(packet, place, false, stage);
    }

    fn send_publish(&mut self, packet: NonZeroU16, place: Option<usize>, dup: bool, stage: &mut Stage) {
        let asked = place.map(|place| &self.journal[place]);
        let payload = asked.map_or_else(Bytes::new, |asked| asked.bytes.clone());
        let topic = asked.map_or_else(|| "q/somebody".to_owned(), |_| format!("q/{}", self.enrolled.id));
        let topic = ByteString::from(topic);
        let (qos, packet_id) = (v5::QoS::AtLeastOnce, Some(packet));
        let who = self.enrolled.id.clone();
        let about = asked.map_or_else(|| About::Terminal(who.clone()), |asked| About::Transaction(self.id(asked)));
        stage.tell(|| about, || format!("{who}: publishes on {topic} as {packet}, dup={dup}"));
        let publish = Publish { dup, qos, topic, packet_id, ..Publish::default() };
        self.send(Mqtt::Publish(self.version, publish, payload), stage);
    }
}
