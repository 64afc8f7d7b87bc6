//! What happened in, rows and acts out.

use std::time::Duration;

use prost::Message as _;

use super::*;
use crate::card::{CardRef, Expiry, Ksn, Masked, Sealed, Token};
use crate::id::{AgentId, RequestKey, TerminalId};
use crate::money::{Currency, Money};
use crate::receipt::Stage;
use crate::wire;

const PATIENCE: Patience = Patience {
    request: Duration::from_secs(300),
    room: Duration::from_secs(30),
    answer: Duration::from_secs(15),
    reversal_first: Duration::from_secs(2),
    reversal_max: Duration::from_secs(8),
};

const START: Time = Time::from_millis(1_795_224_225_000);

/// A partition and the database beside it, as far as the twin looks at it.
struct World {
    twin: Partition,
    now: Time,
    rows: BTreeMap<TransactionId, Transaction>,
    refusals: BTreeSet<TransactionId>,
    room: usize,
    float: i64,
    stan: u32,
    offset: i64,
}

impl World {
    fn new() -> Self {
        Self {
            twin: Partition::load(PartitionNo(0), Offset(0), Vec::new(), PATIENCE, START),
            now: START,
            rows: BTreeMap::new(),
            refusals: BTreeSet::new(),
            room: 10,
            float: 1_000_000,
            stan: 0,
            offset: 0,
        }
    }

    fn handle(&mut self, events: Vec<Event>) -> Decision {
        let core = core();
        let wanted = self.twin.wants(&events).get(&core).copied().unwrap_or(0);
        let room = BTreeMap::from([(core, self.room.min(wanted))]);
        let needs = self.twin.needs(&events, &room);
        let known = needs.ids.iter().filter_map(|id| {
            let row = self.rows.get(id).map(|t| Known::Transaction { fingerprint: t.fingerprint, state: t.state });
            row.or_else(|| self.refusals.contains(id).then_some(Known::Refusal)).map(|known| (*id, known))
        });
        let stans = (0..needs.stans).map(|_| {
            self.stan += 1;
            Stan(self.stan)
        });
        let supply = Supply {
            now: self.now,
            known: known.collect(),
            floats: needs.floats.into_iter().map(|account| (account, self.float)).collect(),
            stans: stans.collect(),
            room,
        };
        let decision = self.twin.handle(events, supply);
        self.rows.extend(decision.transactions.clone());
        let refused = decision.answers.iter().filter(|a| !self.rows.contains_key(&a.answers)).map(|a| a.answers);
        self.refusals.extend(refused.collect::<Vec<_>>());
        decision
    }

    fn records(&mut self, records: Vec<Record>) -> Decision {
        let events = records.into_iter().map(|record| {
            let offset = Offset(self.offset);
            self.offset += 1;
            Event::Record { offset, record }
        });
        let events = events.collect();
        self.handle(events)
    }

    fn after(&mut self, wait: Duration) -> Decision {
        self.now = self.now + wait;
        self.handle(vec![Event::Wake])
    }

    fn answered(&mut self, answer: CoreAnswer) -> Decision {
        self.handle(vec![Event::Answer { transaction: withdrawal(1).transaction(), answer }])
    }

    /// The node dies and comes back: what was not committed is gone.
    fn crash(&mut self) {
        let open = self.rows.values().filter(|t| !t.state.is_final()).cloned().collect();
        self.twin = Partition::load(PartitionNo(0), Offset(self.offset), open, PATIENCE, self.now);
    }

    fn state(&self, key: u8) -> State {
        self.rows[&withdrawal(key).transaction()].state
    }
}

fn core() -> CoreId {
    CoreId::new("sandbox").expect("name")
}

fn asked(kind: Kind, key: u8, minor: u64, pin: Pin) -> Record {
    Record {
        terminal: TerminalId::new("T1").expect("name"),
        agent: AgentId::new("A1").expect("name"),
        core: core(),
        key: RequestKey([key; 16]),
        at: Time::from_millis(1_795_224_224_000),
        ksn: Ksn::from_bytes(&[3; 12]),
        body: Body::Asked(Asked {
            kind,
            amount: Money::new(minor, Currency::TZS).expect("amount"),
            card: CardRef {
                token: Token([9; 16]),
                masked: Masked::stored("411111******1111"),
                sealed: Sealed([1].into()),
                expiry: Expiry { year: 26, month: 11 },
            },
            pin,
        }),
    }
}

fn withdrawal(key: u8) -> Record {
    asked(Kind::Withdrawal, key, 500, Pin::Correct)
}

fn approved() -> CoreAnswer {
    CoreAnswer::Approved { authorisation: "A00001".into() }
}

/// Each answer as `stage outcome code`.
fn told(decision: &Decision) -> Vec<String> {
    let each = decision.answers.iter().map(|answer| {
        let receipt = wire::Receipt::decode(&answer.body[..]).expect("a receipt");
        let stage = if answer.stage == Stage::Final { "final" } else { "notice" };
        format!("{stage} {} {}", receipt.outcome().as_str_name(), receipt.code)
    });
    each.collect()
}

/// Each act as a word and its STAN.
fn acts(decision: &Decision) -> Vec<String> {
    let stan = |t: &Transaction| t.trace.as_ref().map_or(0, |trace| trace.stan.0);
    let each = decision.acts.iter().map(|act| match act {
        Act::Ask(t) => format!("ask {}", stan(t)),
        Act::Reverse(t) => format!("reverse {} #{}", stan(t), t.reversals),
    });
    each.collect()
}

fn booked(decision: &Decision) -> Vec<&'static str> {
    decision.entries.iter().map(|entry| entry.phase.as_str()).collect()
}

#[test]
fn a_withdrawal_is_sent_approved_and_receipted() {
    let mut world = World::new();
    let sent = world.records(vec![withdrawal(1)]);
    assert_eq!((acts(&sent), booked(&sent), told(&sent)), (vec!["ask 1".to_owned()], vec!["pending"], vec![]));
    assert_eq!(sent.position, Some(Offset(1)));
    assert_eq!(world.state(1), State::Sent);

    let done = world.answered(approved());
    assert_eq!((acts(&done), booked(&done)), (vec![], vec!["posted"]));
    assert_eq!(told(&done), ["final APPROVED 00"]);
    assert_eq!(done.position, None);
    assert!(world.twin.open().is_empty());
    assert_eq!(world.twin.poll_timeout(), None);
}

#[test]
fn the_core_declines() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    let done = world.answered(CoreAnswer::Declined(Reason::new("51")));
    assert_eq!((booked(&done), told(&done)), (vec!["voided"], vec!["final DECLINED 51".to_owned()]));
}

#[test]
fn what_the_edge_found_declines_without_the_core() {
    for (pin, code) in [
        (Pin::Wrong, "55"),
        (Pin::TriesExceeded, "75"),
        (Pin::Malformed, "63"),
        (Pin::UnknownCard, "14"),
        (Pin::HsmFault, "96"),
    ] {
        let mut world = World::new();
        let done = world.records(vec![asked(Kind::Withdrawal, 1, 500, pin)]);
        assert_eq!(told(&done), [format!("final DECLINED {code}")]);
        assert_eq!((acts(&done), booked(&done)), (vec![], vec![]));
        assert_eq!(world.state(1), State::Declined);
    }
}

#[test]
fn a_card_is_good_until_its_month_ends() {
    let mut world = World::new();
    assert_eq!(acts(&world.records(vec![withdrawal(1)])), ["ask 1"]);
    world.now = world.now + Duration::from_secs(10 * 86_400);
    let done = world.records(vec![withdrawal(2)]);
    assert_eq!(told(&done), ["final DECLINED 54", "notice PENDING 09"], "the first one was due long ago");
}

#[test]
fn a_repetition_is_answered_with_what_is_stored() {
    let mut world = World::new();
    let both = world.records(vec![withdrawal(1), withdrawal(1)]);
    assert_eq!(acts(&both), ["ask 1"]);
    assert_eq!(both.again, [withdrawal(1).transaction()]);

    world.answered(approved());
    let mut again = withdrawal(1);
    if let Body::Asked(asked) = &mut again.body {
        asked.pin = Pin::Wrong; // the shopkeeper typed it again, and wrongly: it is the same request
    }
    let repeated = world.records(vec![again]);
    assert_eq!(repeated.again, [withdrawal(1).transaction()]);
    assert_eq!((told(&repeated), acts(&repeated), booked(&repeated)), (vec![], vec![], vec![]));
}

#[test]
fn a_key_with_another_body_is_refused_and_moves_nothing() {
    let mut world = World::new();
    let other = asked(Kind::Withdrawal, 1, 501, Pin::Correct);
    let both = world.records(vec![withdrawal(1), other.clone()]);
    assert_eq!((acts(&both), booked(&both)), (vec!["ask 1".to_owned()], vec!["pending"]));
    assert_eq!(told(&both), ["final REFUSED 94"]);
    let again = world.records(vec![other]);
    assert_eq!((told(&again).len(), again.again.len()), (0, 1), "the stored refusal is given again");
    let done = world.answered(approved());
    assert_eq!(told(&done), ["final APPROVED 00"], "the first request goes its way");
}

#[test]
fn bytes_that_are_no_request_are_answered_once_and_again() {
    let mut world = World::new();
    let refused = Record { body: Body::Refused(Refusal::Unreadable), ksn: None, ..withdrawal(1) };
    assert_eq!(told(&world.records(vec![refused.clone()])), ["final REFUSED 30"]);
    let again = world.records(vec![refused]);
    assert_eq!((told(&again).len(), again.again.len()), (0, 1));
}

#[test]
fn no_answer_in_time_is_in_doubt_and_reversed_until_acknowledged() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    assert_eq!(acts(&world.after(Duration::from_secs(14))), [""; 0]);
    let doubt = world.after(Duration::from_secs(1));
    assert_eq!((acts(&doubt), told(&doubt)), (vec!["reverse 1 #1".to_owned()], vec!["notice PENDING 09".to_owned()]));
    assert!(booked(&doubt).is_empty(), "the money stays held");
    for (wait, number) in [(2, 2), (4, 3), (8, 4), (8, 5)] {
        assert!(acts(&world.after(Duration::from_secs(wait - 1))).is_empty());
        assert_eq!(acts(&world.after(Duration::from_secs(1))), [format!("reverse 1 #{number}")]);
    }
    let refused = world.answered(CoreAnswer::ReversalRefused(Reason::new("96")));
    assert_eq!((refused.late.len(), world.state(1)), (1, State::InDoubt));
    let done = world.answered(CoreAnswer::Reversed);
    assert_eq!((booked(&done), told(&done)), (vec!["voided"], vec!["final REVERSED 91".to_owned()]));
}

#[test]
fn a_late_approval_is_recorded_and_not_followed() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    world.after(Duration::from_secs(15));
    let late = world.answered(approved());
    assert_eq!((late.late.len(), booked(&late).len(), told(&late).len()), (1, 0, 0));
    assert_eq!(world.state(1), State::InDoubt);
    world.answered(CoreAnswer::Reversed);
    assert_eq!(world.answered(approved()).late.len(), 1, "also after the end");
}

#[test]
fn a_lost_link_is_in_doubt_at_once_and_an_unsent_request_is_not() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    let transaction = withdrawal(1).transaction();
    world.room = 0;
    world.handle(vec![Event::Unsent { transaction }]);
    assert_eq!(world.state(1), State::Accepted);
    world.room = 10;
    assert_eq!(acts(&world.after(Duration::from_secs(1))), ["ask 2"], "with a STAN of its own");
    let lost = world.handle(vec![Event::Lost { transaction }]);
    assert_eq!((acts(&lost), told(&lost)), (vec!["reverse 2 #1".to_owned()], vec!["notice PENDING 09".to_owned()]));
    assert!(world.handle(vec![Event::Lost { transaction }]).acts.is_empty(), "once");
}

#[test]
fn without_room_it_waits_and_then_is_declined() {
    let mut world = World::new();
    world.room = 0;
    let waits = world.records(vec![withdrawal(1), withdrawal(2)]);
    assert_eq!((acts(&waits), booked(&waits)), (vec![], vec!["pending", "pending"]));
    world.room = 1;
    assert_eq!(acts(&world.handle(vec![Event::Wake])), ["ask 1"], "the oldest first");
    world.room = 0;
    let declined = world.after(Duration::from_secs(30));
    assert_eq!(told(&declined), ["notice PENDING 09", "final DECLINED 91"]);
    assert_eq!((world.state(1), world.state(2)), (State::InDoubt, State::Declined));
}

/// The log is read again after hours: whoever stood at the counter has gone, and must not be debited now.
#[test]
fn a_request_that_is_too_old_is_declined_and_never_sent() {
    let mut world = World::new();
    world.now = withdrawal(1).at + PATIENCE.request;
    let done = world.records(vec![withdrawal(1)]);
    assert_eq!((acts(&done), told(&done)), (vec![], vec!["final DECLINED 91".to_owned()]));
    assert_eq!(booked(&done), ["pending", "voided"]);
    world.now = withdrawal(2).at + PATIENCE.request;
    world.now = Time::from_millis(world.now.millis() - 1);
    assert_eq!(acts(&world.records(vec![withdrawal(2)])), ["ask 2"], "a moment earlier it is sent");
}

/// A link that comes and goes gives a request back each time.
#[test]
fn a_request_that_never_leaves_does_not_wait_for_ever() {
    let mut world = World::new();
    let transaction = withdrawal(1).transaction();
    world.records(vec![withdrawal(1)]);
    let mut told_at = None;
    for second in 1..=400 {
        world.now = world.now + Duration::from_secs(1);
        let decision = world.handle(vec![Event::Unsent { transaction }]);
        if !told(&decision).is_empty() {
            assert_eq!((told(&decision), told_at), (vec!["final DECLINED 91".to_owned()], None));
            told_at = Some(second);
        }
    }
    assert_eq!(told_at, Some(299), "the terminal asked a second before");
}

/// The machine comes up with a calendar that is behind: what was due soon is not due in an hour.
#[test]
fn a_calendar_that_is_behind_after_a_crash_puts_nothing_off() {
    let mut world = World::new();
    world.room = 1;
    world.records(vec![withdrawal(1), withdrawal(2)]);
    world.room = 0;
    world.now = Time::from_millis(START.millis() - 3_600_000);
    world.crash();
    assert_eq!(told(&world.after(Duration::from_secs(14))), [""; 0]);
    let doubt = world.after(Duration::from_secs(1));
    assert_eq!((acts(&doubt), told(&doubt)), (vec!["reverse 1 #1".to_owned()], vec!["notice PENDING 09".to_owned()]));
    assert_eq!(told(&world.after(Duration::from_secs(15))), ["final DECLINED 91"]);
    world.now = Time::from_millis(world.now.millis() - 3_600_000);
    world.crash();
    let again = acts(&world.after(PATIENCE.reversal_max));
    assert!(matches!(&again[..], [one] if one.starts_with("reverse 1 #")), "{again:?}");
}

#[test]
fn a_deposit_needs_the_float_it_takes() {
    let mut world = World::new();
    world.float = 900;
    let deposits = (1..=2).map(|key| asked(Kind::Deposit, key, 500, Pin::NotAsked)).collect();
    let decision = world.records(deposits);
    assert_eq!((acts(&decision), told(&decision)), (vec!["ask 1".to_owned()], vec!["final DECLINED 51".to_owned()]));
}

#[test]
fn after_a_crash_what_was_sent_is_reversed_under_its_own_stan() {
    let mut world = World::new();
    world.records(vec![withdrawal(1), withdrawal(2)]);
    world.answered(approved());
    world.crash();
    assert_eq!(world.twin.open().len(), 1);
    let doubt = world.after(Duration::from_secs(15));
    assert_eq!(acts(&doubt), ["reverse 2 #1"]);
    world.crash();
    assert_eq!(acts(&world.after(Duration::from_secs(2))), ["reverse 2 #2"]);
}

#[test]
fn after_a_crash_what_was_not_sent_is_sent() {
    let mut world = World::new();
    world.room = 0;
    world.records(vec![withdrawal(1)]);
    world.crash();
    world.room = 1;
    assert_eq!(acts(&world.handle(vec![Event::Wake])), ["ask 1"]);
}

#[test]
fn an_answer_after_an_actor_came_back_is_followed() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    world.crash();
    assert_eq!(told(&world.answered(approved())), ["final APPROVED 00"]);
}

#[test]
fn a_record_read_twice_is_decided_once() {
    let mut world = World::new();
    world.records(vec![withdrawal(1)]);
    let again = world.handle(vec![Event::Record { offset: Offset(0), record: withdrawal(1) }]);
    assert_eq!(again, Decision::default());
}

#[test]
fn what_cannot_be_read_is_parked_and_passed() {
    let mut world = World::new();
    let parked = world.handle(vec![Event::Unreadable { offset: Offset(0), why: "no body".into() }]);
    assert_eq!((parked.parked.len(), parked.position), (1, Some(Offset(1))));
}
