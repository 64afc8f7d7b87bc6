//! The link itself: signing on, echoes, back-off, breaker, and what a cut does to what is in flight.

use proptest::prelude::*;

use super::*;

#[test]
fn nothing_is_taken_before_the_sign_on_is_answered() {
    let mut link = Link::new();
    let refused = |link: &mut Link| {
        assert_eq!(link.handle(Event::Ask { partition: P, transaction: transaction(1) }), [unsent(1)]);
        assert_eq!(link.reverse(1, 1), []);
    };
    assert_eq!(link.handle(Event::Wake), [Said::Connect(1)]);
    refused(&mut link);
    let said = link.handle(Event::Up { link: 1 });
    refused(&mut link);
    let [Said::Write(sign_on)] = &said[..] else { panic!("{said:?}") };
    // An answer to another sign-on than this one changes nothing.
    let stale = network_answer(sign_on, "00").with(11, "000099");
    assert_eq!(link.receive(&stale), unmatched("no sign-on or echo waits for it"));
    refused(&mut link);
    assert_eq!(link.receive(&network_answer(sign_on, "00")), [Said::Gate(true)]);
    link.ask(1);
}

#[test]
fn a_refused_or_unanswered_sign_on_ends_the_link() {
    let mut link = Link::new();
    link.handle(Event::Wake);
    let said = link.handle(Event::Up { link: 1 });
    let [Said::Write(sign_on)] = &said[..] else { panic!("{said:?}") };
    let said = link.receive(&network_answer(sign_on, "91"));
    let why = "the sign-on was refused".to_owned();
    assert_eq!(said, [Said::Unmatched(why.clone()), Said::Close(why)]);
    assert_eq!((link.bank.standing(), link.bank.last_down()), (Standing::Waiting, Some("the sign-on was refused")));
    assert_eq!(link.after(seconds(1)), [Said::Connect(2)]);
    link.handle(Event::Up { link: 2 });
    assert_eq!(link.after(seconds(9)), []);
    assert_eq!(link.after(seconds(1)), [Said::Close("the sign-on was not answered".to_owned())]);
}

#[test]
fn a_core_that_is_away_is_tried_less_and_less() {
    let mut link = Link::new();
    let mut waits = Vec::new();
    link.handle(Event::Wake);
    for _ in 0..8 {
        link.down();
        let due = link.bank.poll_timeout().expect("a next attempt");
        waits.push(due.since(link.now).as_secs());
        link.now = due;
        link.handle(Event::Wake);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
    // The smallest lot waits half of that.
    assert_eq!(limits().backoff(3, 0), seconds(2));
    // A connection that never comes counts like one that was refused.
    assert_eq!(link.after(seconds(5)), [Said::Close("no connection in time".to_owned())]);
}

#[test]
fn a_link_that_was_good_is_tried_again_soon() {
    let mut link = Link::ready();
    for _ in 0..3 {
        let request = link.ask(1);
        link.receive(&answer(&request, "00"));
        assert_eq!(link.down(), [Said::Gate(false)]);
        assert_eq!(link.bank.poll_timeout(), Some(link.now + seconds(1)));
        link.now = link.now + seconds(1);
        link.sign_on();
    }
}

#[test]
fn a_silent_link_is_asked_and_given_up() {
    let mut link = Link::ready();
    assert_eq!(link.after(seconds(29)), []);
    let said = link.after(seconds(1));
    let [Said::Write(echo)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((echo.mti, echo.text(70)), (Mti::NETWORK_REQUEST, Some("301")));
    assert_eq!(link.receive(&network_answer(echo, "00")), []);
    assert_eq!(link.after(seconds(29)), [], "anything heard begins the silence anew");
    assert!(matches!(link.after(seconds(1))[..], [Said::Write(_)]));
    link.ask(42);
    let said = link.after(seconds(10));
    assert_eq!(said, [Said::Close("the echo was not answered".to_owned()), Said::Gate(false), lost(42)]);
}

#[test]
fn a_busy_link_is_not_asked() {
    let mut link = Link::ready();
    for n in 1..=10 {
        let request = link.ask(n);
        link.now = link.now + seconds(15);
        assert_eq!(link.receive(&answer(&request, "51")).len(), 1);
    }
}

#[test]
fn the_core_may_ask_too() {
    let mut link = Link::ready();
    let echo = Message::new(Mti::NETWORK_REQUEST).with(7, "1121012345").with(11, "777777").with(70, "301");
    let expected = Message::new(Mti::NETWORK_REQUEST.response())
        .with(7, "1121012345")
        .with(11, "777777")
        .with(39, "00")
        .with(70, "301");
    assert_eq!(link.receive(&echo), [Said::Write(expected)]);
}

#[test]
fn a_cut_says_of_each_whether_it_may_have_left() {
    let mut link = Link::ready();
    let first = link.ask(1);
    assert_eq!(link.receive(&answer(&first, "00").with(38, "123456")), [approved(1)]);
    let second = link.ask(2);
    assert_eq!(link.reverse(3, 1).len(), 1);
    link.hold = true;
    let held = link.handle(Event::Ask { partition: P, transaction: transaction(4) });
    let [Said::Prepare(ticket)] = held[..] else { panic!("{held:?}") };
    let mut said = link.down();
    said.sort_by_key(|said| format!("{said:?}"));
    let mut expected = vec![Said::Gate(false), lost(2), unsent(4)];
    expected.sort_by_key(|said| format!("{said:?}"));
    assert_eq!(said, expected, "the answered one and the reversal are not spoken of");
    assert_eq!(link.bank.in_flight(), (0, 0));
    // What was held must not leave over the next link.
    link.now = link.now + seconds(1);
    link.sign_on();
    let message = Ok(Bytes::new(b"0200".to_vec()));
    assert_eq!(link.handle(Event::Prepared { ticket, message }), []);
    // An answer that comes over the next link still names its transaction.
    assert_eq!(link.receive(&answer(&second, "00").with(38, "123456")), [approved(2)]);
}

/// A node that slept asks when another has taken its partition, given the request up and reversed it.
#[test]
fn what_is_due_does_not_leave_any_more() {
    let mut link = Link::ready();
    let due = |n, wait| Box::new(Transaction { due: Some(START + seconds(wait)), ..*transaction(n) });
    let ask = |link: &mut Link, transaction| link.handle(Event::Ask { partition: P, transaction });
    link.now = START + seconds(15);
    assert_eq!(ask(&mut link, due(1, 15)), [unsent(1)]);
    assert_eq!(ask(&mut link, due(2, 16)).len(), 1, "a second before, it leaves");
    // Nor when it became due while its card's number was opened.
    link.hold = true;
    let held = ask(&mut link, due(3, 16));
    let [Said::Prepare(ticket)] = held[..] else { panic!("{held:?}") };
    link.now = link.now + seconds(1);
    let message = Ok(Bytes::new(b"0200".to_vec()));
    assert_eq!(link.handle(Event::Prepared { ticket, message }), [unsent(3)]);
    assert_eq!(link.bank.in_flight(), (1, 0));
}

#[test]
fn words_of_an_older_link_change_nothing() {
    let mut link = Link::ready();
    link.ask(1);
    link.down();
    link.now = link.now + seconds(1);
    link.sign_on();
    let request = link.ask(2);
    let late = link.bank.dialect.layout.encode(&answer(&request, "00")).expect("fits");
    for event in [
        Event::Down { link: 1, why: "again".to_owned(), lot: 0 },
        Event::Up { link: 1 },
        Event::Received { link: 1, message: late },
    ] {
        assert_eq!(link.handle(event), []);
    }
    assert_eq!((link.bank.standing(), link.bank.in_flight()), (Standing::Ready, (1, 0)));
}

#[test]
fn silence_in_a_row_opens_the_breaker() {
    let mut link = Link::ready();
    link.ask(1);
    link.ask(2);
    link.now = link.now + seconds(10);
    let third = link.ask(3);
    let said = link.after(seconds(10));
    assert_eq!(said, [], "two are not enough");
    assert_eq!(link.receive(&answer(&third, "51")).len(), 1, "an answer ends the row");
    for n in 4..=7 {
        link.ask(n);
        link.now = link.now + seconds(1);
    }
    let said = link.after(seconds(18));
    let why = "3 messages in a row were not answered".to_owned();
    assert_eq!(said, [Said::Gate(false), lost(7), Said::Close(why)]);
    assert_eq!(link.bank.standing(), Standing::Broken);
    assert_eq!(link.handle(Event::Ask { partition: P, transaction: transaction(8) }), [unsent(8)]);
    link.now = link.now + seconds(15);
    link.sign_on();
    link.ask(8);
}

#[test]
fn a_core_that_talks_to_nobody_is_hung_up_on() {
    let mut link = Link::ready();
    let request = link.ask(1);
    let noise = |link: &mut Link| link.receive_bytes(Bytes::new(b"noise".to_vec()));
    for _ in 0..40 {
        assert!(matches!(noise(&mut link)[..], [Said::Unmatched(_)]));
    }
    link.now = link.now + seconds(1);
    for _ in 0..40 {
        assert!(matches!(noise(&mut link)[..], [Said::Unmatched(_)]), "each second anew");
    }
    let why = "too many messages that nobody waits for".to_owned();
    assert_eq!(noise(&mut link), [Said::Close(why), Said::Gate(false), lost(1)]);
    assert_eq!(noise(&mut link), [], "it is not listened to any more");
    link.now = link.now + seconds(1);
    link.sign_on();
    assert_eq!(link.receive(&answer(&request, "00").with(38, "123456")), [approved(1)]);
}

#[test]
fn stopping_signs_off_and_leaves_nobody_waiting() {
    let mut link = Link::ready();
    link.ask(1);
    let said = link.handle(Event::Stop);
    let [Said::Write(sign_off), rest @ ..] = &said[..] else { panic!("{said:?}") };
    assert_eq!(sign_off.text(70), Some("002"));
    assert_eq!(rest, [Said::Gate(false), lost(1), Said::Close("stopped".to_owned())]);
    assert_eq!((link.bank.standing(), link.bank.poll_timeout().is_some()), (Standing::Stopped, true));
    assert_eq!(link.after(seconds(3_600)), []);
    assert_eq!(link.bank.poll_timeout(), None);
}

#[test]
fn a_dialect_without_sign_on_is_ready_when_connected() {
    let without = SANDBOX.split("[messages.sign_on]").next().expect("the rest");
    let mut link = Link::with(without, limits());
    assert_eq!(link.handle(Event::Wake), [Said::Connect(1)]);
    assert_eq!(link.handle(Event::Up { link: 1 }), [Said::Gate(true)]);
    assert_eq!(link.bank.poll_timeout(), None, "nor is it asked whether it is there");
}

/// One thing that may happen, whatever happened before.
#[derive(Clone, Debug)]
enum Move {
    Wait(u64),
    Up,
    Down,
    Ask(u32),
    Reverse(u32, u32),
    Answer(u32, u16, &'static str),
    Noise(Vec<u8>),
    Hold(bool),
}

fn any_move() -> impl Strategy<Value = Move> {
    let n = 1..12_u32;
    let code = prop::sample::select(vec!["00", "51", "25", "10", "ZZ"]);
    prop_oneof![
        (0..40_u64).prop_map(Move::Wait),
        Just(Move::Up),
        Just(Move::Down),
        n.clone().prop_map(Move::Ask),
        (n.clone(), 1..3_u32).prop_map(|(n, times)| Move::Reverse(n, times)),
        (n, prop::sample::select(vec![210, 430, 810]), code).prop_map(|(n, mti, code)| Move::Answer(n, mti, code)),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Move::Noise),
        any::<bool>().prop_map(Move::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: the bounds hold, the gate is open exactly while the link is ready, nothing is written to a link
    /// that is not up, and what never left is never said to be lost.
    #[test]
    fn whatever_happens(moves in prop::collection::vec(any_move(), 0..80)) {
        let mut link = Link::new();
        let mut open = false;
        let mut left = std::collections::BTreeSet::new();
        link.handle(Event::Wake);
        for each in moves {
            let said = match each {
                Move::Wait(wait) => link.after(seconds(wait)),
                Move::Up => { let number = link.bank.link; link.handle(Event::Up { link: number }) }
                Move::Down => link.down(),
                Move::Ask(n) => link.handle(Event::Ask { partition: P, transaction: transaction(n) }),
                Move::Reverse(n, times) => link.reverse(n, times),
                Move::Answer(n, mti, code) => {
                    let message = Message::new(Mti::new(mti).expect("four digits"));
                    link.receive(&message.with(11, format!("{n:06}").as_str()).with(41, "T0000001").with(39, code))
                }
                Move::Noise(bytes) => link.receive_bytes(Bytes::new(bytes)),
                Move::Hold(hold) => { link.hold = hold; Vec::new() }
            };
            for said in &said {
                match said {
                    Said::Gate(now) => { prop_assert_ne!(open, *now); open = *now; }
                    Said::Write(message) if message.mti.class() == 2 => {
                        prop_assert!(open);
                        left.insert(message.text(11).expect("STAN").parse::<u32>().expect("digits"));
                    }
                    Said::Tell(partition::Event::Lost { transaction }) => {
                        prop_assert!(left.iter().any(|&n| id(n) == *transaction), "{transaction} never left");
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(open, link.bank.standing() == Standing::Ready);
            let (requests, reversals) = link.bank.in_flight();
            prop_assert!(requests <= 4 && reversals <= 4 && link.bank.flight.len() <= 16);
            if let Some(due) = link.bank.poll_timeout() {
                prop_assert!(due > link.now || link.bank.standing() == Standing::Stopped, "it would never sleep");
            }
        }
    }
}
