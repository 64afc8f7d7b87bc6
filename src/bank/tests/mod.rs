//! The twin with a core played by hand: events in, effects out, the clock turned.

mod answers;
mod link;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::card::{CardRef, Expiry, Masked, Pan, Sealed, Token};
use crate::id::{AgentId, CoreId, RequestKey, Rrn, Stan, TerminalId};
use crate::iso8583::{Mti, Value};
use crate::money::{Currency, Money};
use crate::request::Kind;
use crate::transaction::{State as TransactionState, Trace};

const SANDBOX: &str = include_str!("../../../config/banks/sandbox.toml");
const PAN: &str = "4111111111111111";
const P: PartitionNo = PartitionNo(3);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn limits() -> Limits {
    Limits {
        requests: 4,
        reversals: 4,
        remembered: 16,
        unmatched: 40,
        connect: seconds(5),
        sign_on: seconds(10),
        idle: seconds(30),
        echo: seconds(10),
        answer: seconds(20),
        memory: seconds(600),
        backoff_min: seconds(1),
        backoff_max: seconds(30),
        breaker_after: 3,
        breaker: seconds(15),
    }
}

/// 2026-11-21T01:23:45Z.
const START: Time = Time::from_millis(1_795_224_225_000);

/// The `n`-th transaction: STAN `n`.
fn transaction(n: u32) -> Box<Transaction> {
    let terminal = TerminalId::new("DSM-T0000001").expect("name");
    let key = RequestKey([u8::try_from(n % 256).expect("small"); 16]);
    let stan = Stan(n);
    Box::new(Transaction {
        id: TransactionId::of(&terminal, key),
        partition: P,
        terminal,
        agent: AgentId::new("A1").expect("name"),
        core: CoreId::new("sandbox").expect("name"),
        key,
        fingerprint: [0; 32],
        kind: Kind::Withdrawal,
        amount: Money::new(5_000_000, Currency::TZS).expect("amount"),
        card: CardRef {
            token: Token([9; 16]),
            masked: Masked::stored("411111******1111"),
            sealed: Sealed([1, 2, 3].into()),
            expiry: Expiry { year: 30, month: 12 },
        },
        ksn: None,
        state: TransactionState::Sent,
        asked_at: START,
        trace: Some(Trace { stan, rrn: Rrn::new(START, stan), sent_at: START }),
        due: None,
        reversals: 0,
        code: None,
        authorisation: None,
    })
}

fn id(n: u32) -> TransactionId {
    transaction(n).id
}

fn reversed(n: u32, times: u32) -> Box<Transaction> {
    let mut transaction = transaction(n);
    transaction.state = TransactionState::InDoubt;
    transaction.reversals = times;
    transaction
}

/// What the twin said, as a test reads it. Messages that went out are decoded.
#[derive(Debug, PartialEq)]
enum Said {
    Connect(u64),
    Close(String),
    Prepare(u64),
    Write(Message),
    Tell(partition::Event),
    Gate(bool),
    Unmatched(String),
    Unfit(String),
}

/// A twin, its clock, and a hand that opens cards at once unless told to hold them.
struct Link {
    bank: Bank,
    now: Time,
    hold: bool,
}

impl Link {
    fn with(dialect: &str, limits: Limits) -> Self {
        let dialect = Arc::new(Dialect::parse(dialect).expect("a dialect"));
        Self { bank: Bank::new(dialect, limits, START), now: START, hold: false }
    }

    fn new() -> Self {
        Self::with(SANDBOX, limits())
    }

    /// Connected and signed on.
    fn ready() -> Self {
        let mut link = Self::new();
        link.sign_on();
        link
    }

    fn sign_on(&mut self) {
        let number = self.bank.link + 1;
        assert_eq!(self.handle(Event::Wake), [Said::Connect(number)]);
        let said = self.handle(Event::Up { link: number });
        let [Said::Write(sign_on)] = &said[..] else { panic!("{said:?}") };
        assert_eq!((sign_on.mti, sign_on.text(70)), (Mti::NETWORK_REQUEST, Some("001")));
        let answer = network_answer(sign_on, "00");
        assert_eq!(self.receive(&answer), [Said::Gate(true)]);
        assert_eq!(self.bank.standing(), Standing::Ready);
    }

    fn handle(&mut self, event: Event) -> Vec<Said> {
        let mut said = Vec::new();
        for effect in self.bank.handle(event, self.now) {
            match effect {
                Effect::Connect { link } => said.push(Said::Connect(link)),
                Effect::Close { link, why } => {
                    said.push(Said::Close(why.clone()));
                    said.extend(self.handle(Event::Down { link, why, lot: 255 }));
                }
                Effect::Prepare(draft) if self.hold => said.push(Said::Prepare(draft.ticket)),
                Effect::Prepare(draft) => {
                    let pan = Pan::new(PAN).expect("a PAN");
                    let message = draft.encode(&self.bank.dialect, &pan).map_err(|unfit| unfit.to_string());
                    said.extend(self.handle(Event::Prepared { ticket: draft.ticket, message }));
                }
                Effect::Write { link, message } => {
                    assert_eq!(link, self.bank.link);
                    said.push(Said::Write(self.bank.dialect.layout.parse(&message).expect("our own message")));
                }
                Effect::Tell { partition, event } => {
                    assert_eq!(partition, P);
                    said.push(Said::Tell(event));
                }
                Effect::Gate { open } => said.push(Said::Gate(open)),
                Effect::Unmatched(unmatched) => {
                    assert!(!format!("{unmatched:?}").contains("4111111111"), "{unmatched:?}");
                    assert_eq!(unmatched.at, self.now);
                    said.push(Said::Unmatched(unmatched.why));
                }
                Effect::Unfit { why, .. } => said.push(Said::Unfit(why)),
            }
        }
        assert!(!format!("{:?}", self.bank).contains("4111111111"), "the twin holds no card's number");
        said
    }

    fn after(&mut self, wait: Duration) -> Vec<Said> {
        self.now = self.now + wait;
        self.handle(Event::Wake)
    }

    fn receive(&mut self, message: &Message) -> Vec<Said> {
        let bytes = self.bank.dialect.layout.encode(message).expect("fits");
        self.receive_bytes(bytes)
    }

    fn receive_bytes(&mut self, message: Bytes) -> Vec<Said> {
        let link = self.bank.link;
        self.handle(Event::Received { link, message })
    }

    /// Asks, and gives back the message that went out.
    fn ask(&mut self, n: u32) -> Message {
        let mut said = self.handle(Event::Ask { partition: P, transaction: transaction(n) });
        match said.pop() {
            Some(Said::Write(message)) if said.is_empty() => message,
            other => panic!("{said:?} {other:?}"),
        }
    }

    fn reverse(&mut self, n: u32, times: u32) -> Vec<Said> {
        self.handle(Event::Reverse { partition: P, transaction: reversed(n, times) })
    }

    fn down(&mut self) -> Vec<Said> {
        let link = self.bank.link;
        self.handle(Event::Down { link, why: "cut".to_owned(), lot: 255 })
    }
}

/// A core's usual answer: carries on what it was asked.
fn answer(request: &Message, code: &str) -> Message {
    let mut answer = Message::new(request.mti.response()).with(39, code);
    for field in [3, 4, 7, 11, 32, 37, 41, 49] {
        if let Some(value) = request.get(field) {
            answer.set(field, Value::new(value.as_bytes().to_vec()));
        }
    }
    answer
}

fn network_answer(request: &Message, code: &str) -> Message {
    answer(request, code).with(70, request.text(70).expect("DE70"))
}

fn approved(n: u32) -> Said {
    told(n, CoreAnswer::Approved { authorisation: "123456".into() })
}

fn told(n: u32, answer: CoreAnswer) -> Said {
    Said::Tell(partition::Event::Answer { transaction: id(n), answer })
}

fn lost(n: u32) -> Said {
    Said::Tell(partition::Event::Lost { transaction: id(n) })
}

fn unsent(n: u32) -> Said {
    Said::Tell(partition::Event::Unsent { transaction: id(n) })
}

fn unmatched(why: &str) -> Vec<Said> {
    vec![Said::Unmatched(why.to_owned())]
}
