//! The actor of one connected terminal, around the session twin: `actors/session.rs` and `actors/listener/welcome.rs`
//! without their sockets.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::{ConnectAckReason, DisconnectReasonCode as Reason, Packet};
use wakala::session::connect::{Terms, refuse};
use wakala::session::pace::Pace;
use wakala::session::{
    Beyond, Change, Delivery, Effect, Event as Twinned, Limits, Loaded, Remains, Rights, Session as Twin, Version, What,
};
use wakala::time::Time;

use super::mqtt::{Mqtt, Raised};
use super::node::{self, Node};
use super::postgres::{Ended, Error, Opening};
use super::stage::{Enrolment, Payload, Stage, WireNo};

/// One connection, from its first byte on.
#[derive(Default)]
pub(crate) struct Session {
    /// Set with the CONNECT.
    who: Option<(Enrolment, Version)>,
    epoch: i64,
    twin: Option<Twin>,
    /// What the socket holds and nobody has read.
    unread: VecDeque<Mqtt>,
    wakes_at: Option<Time>,
}

#[derive(Debug)]
pub(crate) enum Event {
    Packet(Box<Mqtt>),
    /// The other side ended it.
    Gone,
    Opened(Box<Terms>, Result<(i64, Loaded), Error>),
    Durable(u32),
    Stored(Change, Result<(), Error>, Duration),
    Fetched(Beyond, u16, Result<(Vec<Delivery>, i64), Error>, Duration),
    Marked(i64, Result<bool, Error>, Duration),
    Again(Again, Duration),
    Hint(i64, Vec<u8>),
    Look,
    Wake,
    End(Reason, &'static str),
}

/// What is tried again when the database is back.
#[derive(Debug)]
pub(crate) enum Again {
    Store(Change),
    Fetch(Beyond, u16),
    Mark(i64),
}

const fn count(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

/// The defaults' shape in small, so that every bound is met.
pub(crate) const LIMITS: Limits = Limits {
    keep_alive_max: Duration::from_secs(1200),
    keep_alive_unannounced_max: Duration::from_secs(3600),
    session_expiry_max: Duration::from_secs(30 * 24 * 3600),
    packet_bytes_max: 64 * 1024,
    inbound_max: count(3),
    outbound_max: count(2),
    terminal_outbound_max: count(2),
    admitting_max: count(1),
    unreleased_max: count(3),
    direct_max: count(1),
    direct_bytes_max: NonZeroU32::MAX,
    subscriptions_max: count(2),
    topic_alias_max: 0,
    page: count(3),
    ack_within: Duration::from_secs(20),
    pace: Pace { publishes: None, bytes: None, frame_within: None },
};

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
pub(crate) const TAKEN_OVER: Event = Event::End(Reason::SessionTakenOver, "the session was taken over");

impl Node {
    pub(crate) fn greet(&mut self, wire: WireNo) {
        self.sessions.insert(wire, Session::default());
    }

    pub(crate) fn is_connected(&self, wire: WireNo) -> bool {
        self.sessions.contains_key(&wire)
    }

    fn to_session(&self, wire: WireNo, event: Event, wait: Duration, stage: &mut Stage) {
        stage.node(wait, self.home(), node::Event::Session(wire, event));
    }

    pub(crate) fn session(&mut self, wire: WireNo, event: Event, stage: &mut Stage) {
        let Some(session) = self.sessions.get_mut(&wire) else {
            if matches!(event, Event::Packet(_)) {
                stage.close(wire, 1);
            }
            return;
        };
        let event = match event {
            Event::Packet(packet) => {
                session.unread.push_back(*packet);
                return self.read(wire, stage);
            }
            Event::Gone => return self.end_session(wire, stage),
            Event::Opened(terms, opened) => return self.opened(wire, *terms, opened, stage),
            Event::Durable(ticket) => Twinned::Durable { ticket },
            Event::Stored(_, Ok(()), _) => Twinned::Stored,
            Event::Stored(change, Err(error), wait) => {
                return self.retry(wire, Again::Store(change), error, wait, stage);
            }
            Event::Fetched(_, _, Ok((deliveries, last)), _) => Twinned::Fetched { deliveries, last },
            Event::Fetched(beyond, max, Err(error), wait) => {
                return self.retry(wire, Again::Fetch(beyond, max), error, wait, stage);
            }
            Event::Marked(_, Ok(true), _) => return,
            Event::Marked(_, Ok(false), _) => return self.session(wire, TAKEN_OVER, stage),
            Event::Marked(seq, Err(error), wait) => return self.retry(wire, Again::Mark(seq), error, wait, stage),
            Event::Again(again, wait) => return self.again(wire, again, (wait * 2).min(RETRY_MAX), stage),
            Event::Hint(seq, envelope) => Twinned::Hint { seq, what: Some(What::Receipt(Bytes::from(envelope))) },
            Event::Look => Twinned::Look,
            Event::Wake => {
                session.wakes_at = None;
                Twinned::Wake
            }
            Event::End(reason, why) => Twinned::End(reason, why),
        };
        self.twinned(wire, event, stage);
        self.read(wire, stage);
    }

    fn twinned(&mut self, wire: WireNo, event: Twinned, stage: &mut Stage) {
        if let Some(twin) = self.sessions.get_mut(&wire).and_then(|session| session.twin.as_mut()) {
            let mut effects = Vec::new();
            twin.handle(event, stage.now, &mut effects);
            self.act(wire, effects, stage);
        }
    }

    /// Reads on as long as the twin takes more.
    fn read(&mut self, wire: WireNo, stage: &mut Stage) {
        while let Some(session) = self.sessions.get_mut(&wire) {
            if session.who.is_some() && session.twin.as_ref().is_none_or(Twin::full) {
                return;
            }
            let Some(packet) = session.unread.pop_front() else { return };
            let version = packet.version();
            match packet.raised() {
                Raised::Packet(Packet::Connect(connect)) if session.who.is_none() => {
                    self.welcome(wire, &connect, version, stage);
                }
                _ if session.who.is_none() => self.end_session(wire, stage),
                Raised::Packet(packet) => self.twinned(wire, Twinned::Packet(packet), stage),
                Raised::Publish(publish, payload) => self.twinned(wire, Twinned::Publish(publish, payload), stage),
            }
        }
    }

    fn welcome(&mut self, wire: WireNo, connect: &ntex_mqtt::v5::codec::Connect, version: Version, stage: &mut Stage) {
        let Some(enrolled) = stage.village.enrolled(&connect.client_id).cloned() else {
            return self.end_session(wire, stage);
        };
        let terms =
            Terms::of(connect, version, &LIMITS, &Rights::Terminal).expect("terminals here ask for what is offered");
        let opening = Opening {
            terminal: enrolled.id.clone(),
            node: self.no,
            clean_start: terms.clean_start,
            expiry_s: terms.expiry_s,
        };
        if let Some(session) = self.sessions.get_mut(&wire) {
            session.who = Some((enrolled, version));
        }
        stage.ask(
            self.home(),
            move |postgres, now| postgres.open_session(&opening, now),
            move |opened| node::Event::Session(wire, Event::Opened(Box::new(terms), opened)),
        );
    }

    fn opened(&mut self, wire: WireNo, terms: Terms, opened: Result<(i64, Loaded), Error>, stage: &mut Stage) {
        let Some(session) = self.sessions.get_mut(&wire) else { return };
        let Some((enrolled, version)) = session.who.clone() else { return };
        let Ok((epoch, loaded)) = opened else {
            let refusal = Packet::ConnectAck(Box::new(refuse(ConnectAckReason::ServerUnavailable)));
            if let Some(packet) = Mqtt::packet(version, refusal) {
                stage.send(wire, 1, Payload::Mqtt(packet));
            }
            return self.end_session(wire, stage);
        };
        let terminal = enrolled.id;
        let mut twin = Twin::load((&terminal).into(), Rights::Terminal, terms, &Arc::new(LIMITS), loaded, stage.now);
        session.epoch = epoch;
        match self.registry.get(&terminal) {
            Some(&(present, _)) if present > epoch => {
                session.twin = Some(twin);
                self.session(wire, TAKEN_OVER, stage);
            }
            before => {
                let before = before.copied();
                let mut effects = Vec::new();
                twin.resume(&mut effects);
                session.twin = Some(twin);
                self.registry.insert(terminal.clone(), (epoch, wire));
                self.told(&terminal, || format!("session {epoch} opens"), stage);
                self.act(wire, effects, stage);
                if let Some((_, before)) = before {
                    self.session(before, TAKEN_OVER, stage);
                }
                self.read(wire, stage);
            }
        }
    }

    fn act(&mut self, wire: WireNo, effects: Vec<Effect>, stage: &mut Stage) {
        for effect in effects {
            let Some(session) = self.sessions.get(&wire) else { return };
            let Some((enrolled, version)) = session.who.clone() else { return };
            match effect {
                Effect::Send(packet) => {
                    if let Some(packet) = Mqtt::packet(version, packet) {
                        stage.send(wire, 1, Payload::Mqtt(packet));
                    }
                }
                Effect::Publish(publish, payload) => {
                    stage.send(wire, 1, Payload::Mqtt(Mqtt::Publish(version, publish, payload)));
                }
                Effect::Admit { ticket, payload, remember: _ } => self.admit(wire, ticket, enrolled, payload, stage),
                Effect::Store(change) => self.again(wire, Again::Store(change), RETRY_MIN, stage),
                Effect::Acked { seq, .. } => self.again(wire, Again::Mark(seq), RETRY_MIN, stage),
                Effect::Fetch { beyond, max } => self.again(wire, Again::Fetch(beyond, max), RETRY_MIN, stage),
                Effect::TooLarge { .. } | Effect::Subscribed { .. } | Effect::Unsubscribed { .. } => {}
                Effect::Route { .. } | Effect::Forget { .. } | Effect::Received { .. } | Effect::Dropped => {
                    unreachable!("a terminal here uses neither QoS 2 nor other topics: {effect:?}")
                }
                Effect::Close(why) => {
                    self.told(&enrolled.id, || format!("closes: {why}"), stage);
                    self.end_session(wire, stage);
                }
            }
        }
        let home = self.home();
        let Some(session) = self.sessions.get_mut(&wire) else { return };
        if let Some(at) = session.twin.as_ref().and_then(Twin::poll_timeout)
            && session.wakes_at.is_none_or(|set| set > at)
        {
            session.wakes_at = Some(at);
            let wait = at.since(stage.now) + Duration::from_millis(1);
            stage.node(wait, home, node::Event::Session(wire, Event::Wake));
        }
    }

    /// Asks the database, again if it was away.
    fn again(&mut self, wire: WireNo, again: Again, wait: Duration, stage: &mut Stage) {
        let Some(session) = self.sessions.get(&wire) else { return };
        let Some((Enrolment { id: terminal, .. }, _)) = session.who.clone() else { return };
        let epoch = session.epoch;
        let to = move |event| node::Event::Session(wire, event);
        match again {
            Again::Store(change) => {
                let stored = change.clone();
                stage.ask(
                    self.home(),
                    move |postgres, _| postgres.change_subscriptions(&terminal, epoch, &change),
                    move |result| to(Event::Stored(stored, result, wait)),
                );
            }
            Again::Fetch(beyond, max) => stage.ask(
                self.home(),
                // No terminal of this village is told anything but receipts.
                move |postgres, _| postgres.queued(&terminal, beyond.receipts.unwrap_or(i64::MAX - 1), max),
                move |result| to(Event::Fetched(beyond, max, result, wait)),
            ),
            Again::Mark(seq) => stage.ask(
                self.home(),
                move |postgres, _| postgres.acknowledge(&terminal, epoch, seq),
                move |result| to(Event::Marked(seq, result, wait)),
            ),
        }
    }

    fn retry(&mut self, wire: WireNo, again: Again, error: Error, wait: Duration, stage: &mut Stage) {
        match error {
            Error::Away => self.to_session(wire, Event::Again(again, wait), wait, stage),
            Error::Fenced | Error::Broken => self.session(wire, TAKEN_OVER, stage),
        }
    }

    /// However it ends, the connection ends with it, and what remains is stored unless a later connection fenced it.
    pub(crate) fn end_session(&mut self, wire: WireNo, stage: &mut Stage) {
        let Some(session) = self.sessions.remove(&wire) else { return };
        stage.close(wire, 1);
        let (Some((Enrolment { id: terminal, .. }, _)), Some(mut twin)) = (session.who, session.twin) else { return };
        if self.registry.get(&terminal).is_some_and(|&(epoch, _)| epoch == session.epoch) {
            self.registry.remove(&terminal);
        }
        let Remains { expiry_s, sent_to, change, .. } = twin.remains();
        let ended = Ended { terminal, epoch: session.epoch, expiry_s, sent_to, change: change.unwrap_or_default() };
        stage.ask(self.home(), move |postgres, now| postgres.end_session(&ended, now), |_| node::Event::Done);
    }
}
