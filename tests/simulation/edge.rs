//! The edge: from the bytes of a PUBLISH to a record in the log, as `actors/edge.rs` and `actors/intake.rs` do it, with
//! an HSM that is a page of rules. The work outlives the session that began it; only trying again ends with it.

use std::time::Duration;

use ntex_bytes::Bytes;
use sha2::{Digest as _, Sha256};
use wakala::card::{CardRef, Expiry, Ksn, Masked, Sealed, Token};
use wakala::id::{PartitionNo, RequestKey};
use wakala::record::{Asked, Body, Pin, Record};
use wakala::request::{Kind, Refusal, Request};

use super::log::Away;
use super::node::{self, Node};
use super::postgres::{Admission, Arrival, Error};
use super::stage::{About, Enrolment, Home, Stage, WireNo};

/// A customer's card.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) number: u8,
    pub(crate) pan: &'static str,
}

pub(crate) const CARDS: [Card; 4] = [
    Card { number: 1, pan: "4111111111111111" },
    Card { number: 2, pan: "5555555555554444" },
    Card { number: 3, pan: "4012888888881881" },
    Card { number: 4, pan: "4222222222222" },
];

impl Card {
    pub(crate) fn token(&self) -> Token {
        Token([self.number; 16])
    }

    fn reference(&self) -> CardRef {
        CardRef {
            token: self.token(),
            masked: Masked::stored(&format!("{}…{}", &self.pan[..6], &self.pan[self.pan.len() - 4..])),
            sealed: Sealed(self.pan.as_bytes().into()),
            expiry: Expiry { year: 30, month: 12 },
        }
    }
}

/// What the PIN block says here: its first byte.
pub(crate) const PIN_RIGHT: u8 = 0;
pub(crate) const PIN_WRONG: u8 = 1;
pub(crate) const PIN_MALFORMED: u8 = 2;

/// The code under a terminal's key, of either side.
pub(crate) fn mac(ksn: &Ksn, body: &[u8]) -> [u8; 8] {
    let digest = Sha256::new().chain_update(ksn.to_bytes()).chain_update(body).finalize();
    std::array::from_fn(|nth| digest[nth])
}

/// One PUBLISH on its way into the log.
#[derive(Debug)]
pub(crate) struct Job {
    wire: WireNo,
    ticket: u32,
    enrolled: Enrolment,
    payload: Bytes,
    wait: Duration,
}

#[derive(Debug)]
pub(crate) enum Event {
    Again(Job),
    Admitted(Job, Box<Known>, Result<Admission, Error>),
    Settled(Job, Record, Result<(), Error>),
    Appended(Job, Result<(), Away>),
}

/// A request whose code is right and whose card could be read.
#[derive(Debug)]
pub(crate) struct Known {
    request: Request,
    card: CardRef,
}

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Node {
    pub(crate) fn admit(&mut self, wire: WireNo, ticket: u32, enrolled: Enrolment, payload: Bytes, stage: &mut Stage) {
        self.take(Job { wire, ticket, enrolled, payload, wait: RETRY_MIN }, stage);
    }

    pub(crate) fn edge(&mut self, event: Event, stage: &mut Stage) {
        match event {
            Event::Again(job) => self.take(job, stage),
            Event::Admitted(job, known, Ok(admission)) => self.judge(job, *known, admission, stage),
            Event::Settled(job, record, Ok(())) => self.log(job, &record, stage),
            Event::Appended(job, Ok(())) => {
                self.session(job.wire, super::session::Event::Durable(job.ticket), stage);
            }
            Event::Admitted(job, _, Err(_)) | Event::Settled(job, _, Err(_)) | Event::Appended(job, Err(_)) => {
                self.later(job, stage);
            }
        }
    }

    fn later(&mut self, mut job: Job, stage: &mut Stage) {
        if self.is_connected(job.wire) {
            let wait = job.wait;
            job.wait = (wait * 2).min(RETRY_MAX);
            stage.node(wait, self.home(), node::Event::Edge(Event::Again(job)));
        }
    }

    fn take(&mut self, job: Job, stage: &mut Stage) {
        let digest = RequestKey::of_bytes(&job.payload);
        let request = match Request::read(&job.payload) {
            Ok(request) => request,
            Err(malformed) => {
                let record =
                    record(&job, malformed.key.unwrap_or(digest), None, Body::Refused(malformed.refusal), stage);
                return self.log(job, &record, stage);
            }
        };
        let refused = |ksn, refusal, stage: &Stage| record(&job, request.key, ksn, Body::Refused(refusal), stage);
        if request.mac.0 != mac(&request.ksn, &request.body) {
            let record = refused(None, Refusal::BadMac, stage);
            return self.log(job, &record, stage);
        }
        let Some(card) = CARDS.iter().find(|card| card.number == request.card_data[0]) else {
            let record = refused(Some(request.ksn), Refusal::BadCard, stage);
            return self.log(job, &record, stage);
        };
        let arrival = Arrival {
            terminal: job.enrolled.id.clone(),
            key: request.key,
            digest,
            ksn: request.ksn,
            token: card.token(),
            pin: request.pin_block.is_some(),
        };
        let known = Box::new(Known { request, card: card.reference() });
        stage.ask(
            self.home(),
            move |postgres, _| postgres.admit(&arrival),
            move |admitted| node::Event::Edge(Event::Admitted(job, known, admitted)),
        );
    }

    fn judge(&mut self, job: Job, known: Known, admission: Admission, stage: &mut Stage) {
        let Known { request, card } = known;
        let (key, ksn, token) = (request.key, Some(request.ksn), card.token);
        let attempt = match admission {
            Admission::Replayed => {
                let record = record(&job, key, ksn, Body::Refused(Refusal::KsnReplayed), stage);
                return self.log(job, &record, stage);
            }
            Admission::UnknownCard => None,
            Admission::LetIn { attempt } => attempt,
        };
        let pin = match (request.pin_block.as_ref(), attempt) {
            _ if admission == Admission::UnknownCard => Pin::UnknownCard,
            (None, _) if request.kind == Kind::Deposit => Pin::NotAsked,
            (None, _) => Pin::Malformed,
            (Some(_), None) => Pin::TriesExceeded,
            (Some(block), Some(_)) => match block.0[0] {
                PIN_RIGHT => Pin::Correct,
                PIN_WRONG => Pin::Wrong,
                _ => Pin::Malformed,
            },
        };
        let body = Body::Asked(Asked { kind: request.kind, amount: request.amount, card, pin });
        let record = record(&job, key, ksn, body, stage);
        match attempt {
            Some(attempt) if request.pin_block.is_some() && pin != Pin::Wrong => {
                let terminal = job.enrolled.id.clone();
                let correct = pin == Pin::Correct;
                stage.ask(
                    self.home(),
                    move |postgres, _| postgres.settle(&terminal, key, token, attempt, correct),
                    move |settled| node::Event::Edge(Event::Settled(job, record, settled)),
                );
            }
            _ => self.log(job, &record, stage),
        }
    }

    fn log(&mut self, job: Job, record: &Record, stage: &mut Stage) {
        let partition = PartitionNo::of(&record.terminal, stage.village.partitions);
        let id = record.transaction();
        let home = self.home();
        stage.tell(|| About::Transaction(id), || format!("node {}: admitted as {:?}", home.node, record.body));
        stage.append(home, partition, record.encode(), move |appended| {
            node::Event::Edge(Event::Appended(job, appended))
        });
    }

    pub(crate) fn home(&self) -> Home {
        Home { node: self.no, life: self.life }
    }
}

fn record(job: &Job, key: RequestKey, ksn: Option<Ksn>, body: Body, stage: &Stage) -> Record {
    Record {
        terminal: job.enrolled.id.clone(),
        agent: job.enrolled.agent.clone(),
        core: stage.village.cores[job.enrolled.core].clone(),
        key,
        at: stage.now,
        ksn,
        body,
    }
}
