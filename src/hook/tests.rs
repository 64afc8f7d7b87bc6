//! Clients come, answers come or do not, time passes.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    at_once: 2,
    waiting_max: 5,
    known_max: 4,
    breaker_after: 3,
    breaker: Duration::from_secs(10),
    stale_for: None,
};

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn key(number: u8) -> Key {
    [number; 32]
}

fn allow() -> Decision {
    Decision::Allow(Arc::default())
}

fn holds(decision: Decision, seconds: u64) -> Option<(Decision, Duration)> {
    Some((decision, Duration::from_secs(seconds)))
}

#[test]
fn a_decision_is_remembered_for_as_long_as_it_holds_yes_and_no() {
    let mut desk = Desk::new(LIMITS);
    for (number, decision) in [(1, allow()), (2, Decision::Deny)] {
        assert_eq!(desk.comes(&key(number), at(0)), Reply::Ask);
        let told = desk.settle(&key(number), holds(decision.clone(), 60), at(1));
        desk.leaves();
        assert_eq!(told, Outcome::Decided(decision.clone()));
        assert_eq!(desk.comes(&key(number), at(60)), Reply::Known(decision));
        assert_eq!(desk.comes(&key(number), at(61)), Reply::Ask, "it is over");
        desk.settle(&key(number), None, at(61));
        desk.leaves();
    }
    let report = desk.report();
    assert_eq!((report.asked, report.known, report.failed, report.waiting), (4, 2, 2, 0));
}

#[test]
fn a_question_is_asked_once_and_only_so_many_at_once() {
    let mut desk = Desk::new(LIMITS);
    let replies = [1, 1, 2, 3, 3, 4].map(|number| desk.comes(&key(number), at(0)));
    assert_eq!(replies, [Reply::Ask, Reply::Join, Reply::Ask, Reply::Queue, Reply::Join, Reply::Full]);
    assert_eq!(desk.next(at(0)), None, "two are under way");
    desk.settle(&key(1), holds(allow(), 60), at(1));
    desk.leaves();
    desk.leaves();
    assert_eq!((desk.next(at(1)), desk.next(at(1))), (Some(key(3)), None));
    assert_eq!(desk.comes(&key(3), at(1)), Reply::Join, "it is under way now");
    assert_eq!(desk.report().full, 1);
}

#[test]
fn nobody_waits_for_whom_the_breaker_spares() {
    let mut desk = Desk::new(LIMITS);
    for number in 1..=2 {
        assert_eq!(desk.comes(&key(number), at(0)), Reply::Ask);
    }
    for number in 3..=4 {
        assert_eq!(desk.comes(&key(number), at(0)), Reply::Queue);
    }
    for number in 1..=2 {
        assert_eq!(desk.settle(&key(number), None, at(2)), Outcome::Unanswered);
        assert_eq!(desk.given_up(at(2)), []);
        desk.leaves();
    }
    assert_eq!(desk.next(at(2)), Some(key(3)));
    desk.settle(&key(3), None, at(4));
    assert_eq!(desk.next(at(4)), None, "it is open");
    assert_eq!(desk.given_up(at(4)), [(key(4), Outcome::Unanswered)]);
    desk.leaves();
    desk.leaves();
    assert_eq!(desk.comes(&key(5), at(13)), Reply::Shut);
    assert_eq!([5, 6].map(|number| desk.comes(&key(number), at(14))), [Reply::Ask, Reply::Shut], "one tries");
    assert_eq!(desk.comes(&key(5), at(14)), Reply::Join, "and another may wait for the same");
    desk.settle(&key(5), holds(Decision::Deny, 60), at(15));
    assert_eq!(desk.comes(&key(6), at(15)), Reply::Ask);
    assert_eq!((desk.report().shut, desk.report().open), (2, false));
}

#[test]
fn for_want_of_an_answer_whoever_was_let_in_before_is_let_in_if_so_configured() {
    let mut desk = Desk::new(Limits { stale_for: Some(Duration::from_secs(100)), ..LIMITS });
    for (number, decision) in [(1, allow()), (2, Decision::Deny)] {
        assert_eq!(desk.comes(&key(number), at(0)), Reply::Ask);
        desk.settle(&key(number), holds(decision, 10), at(0));
        desk.leaves();
    }
    for seconds in [10, 11, 12] {
        assert_eq!(desk.comes(&key(1), at(seconds)), Reply::Ask, "as long as it may be asked, it is");
        assert_eq!(desk.settle(&key(1), None, at(seconds)), Outcome::Decided(allow()));
        desk.leaves();
    }
    assert_eq!(desk.comes(&key(1), at(13)), Reply::Known(allow()));
    assert_eq!(desk.comes(&key(2), at(13)), Reply::Shut);
    assert_eq!(desk.comes(&key(9), at(13)), Reply::Shut);
    assert_eq!(desk.report().stale, 4);
    let mut late = at(110);
    assert!(desk.breaker.lets_through(late), "another's question");
    late = at(111);
    assert_eq!(desk.comes(&key(1), late), Reply::Shut, "longer than that is too long");
}

#[test]
fn what_ends_first_is_forgotten_first() {
    let mut desk = Desk::new(LIMITS);
    for (number, seconds) in [(1, 500), (2, 600), (3, 700)] {
        desk.remember(key(number), allow(), Duration::from_secs(seconds), at(0));
    }
    for number in 10..200 {
        desk.remember(key(number), Decision::Deny, Duration::from_secs(10), at(0));
    }
    assert_eq!((desk.known.len(), desk.ends.len()), (4, 4));
    assert!((1..=3).all(|number| desk.known.contains_key(&key(number))), "a flood of refusals forgot who is let in");
    desk.remember(key(9), allow(), Duration::from_secs(900), at(650));
    assert_eq!(desk.known.keys().copied().collect::<Vec<_>>(), [key(3), key(9)], "what is over goes");
}

#[test]
fn a_question_nobody_waits_for_makes_room() {
    let mut desk = Desk::new(Limits { at_once: 1, ..LIMITS });
    let replies = [1, 2, 3].map(|number| desk.comes(&key(number), at(0)));
    assert_eq!(replies, [Reply::Ask, Reply::Queue, Reply::Queue]);
    desk.settle(&key(1), holds(allow(), 1), at(1));
    assert_eq!(desk.next(at(1)), Some(key(2)));
    desk.drop_question(&key(2));
    assert_eq!(desk.next(at(1)), Some(key(3)));
    assert_eq!(desk.report().asked, 2);
}

#[test]
fn an_answer_is_what_was_agreed_on_or_none() {
    let lifetimes = Lifetimes {
        allowed: Duration::from_secs(300),
        denied: Duration::from_secs(10),
        max: Duration::from_secs(3600),
    };
    let read = |text: &str| Answer::read(text.as_bytes(), &lifetimes, 2);
    let Ok(Answer { decision: Decision::Allow(allowed), holds }) =
        read(r#"{"result":"allow","ttl":99999,"publish":["up/%c"],"subscribe":[],"session":60}"#)
    else {
        panic!("it is right");
    };
    assert_eq!(holds, lifetimes.max);
    assert_eq!(allowed.publish.as_ref().map(|all| all[0].as_str().to_owned()), Some("up/%c".to_owned()));
    assert_eq!((allowed.subscribe.clone(), allowed.session), (Some(vec![]), Some(Duration::from_secs(60))));
    for (text, decision, seconds) in [
        (r#"{"result":"allow"}"#, allow(), 300),
        (r#"{"result":"deny"}"#, Decision::Deny, 10),
        (r#"{"result":"deny","ttl":0}"#, Decision::Deny, 0),
    ] {
        assert_eq!(read(text).ok(), Some(Answer { decision, holds: Duration::from_secs(seconds) }), "{text}");
    }
    for bad in [
        "",
        "allow",
        "{}",
        r#"{"result":"Allow"}"#,
        r#"{"result":"allow","ttl":-1}"#,
        r#"{"result":"allow","publish":"a"}"#,
        r#"{"result":"allow","publish":["a#"]}"#,
        r#"{"result":"allow","publish":["a","b","c"]}"#,
        r#"{"result":"allow","topics":["a"]}"#,
        r#"{"result":"allow"} {"result":"deny"}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Comes(u8),
    Leaves,
    Settles(Option<bool>),
    Passes(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12_u8).prop_map(Step::Comes),
        2 => Just(Step::Leaves),
        3 => any::<Option<bool>>().prop_map(Step::Settles),
        1 => (0..8_u8).prop_map(Step::Passes),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Whatever comes, nothing is more than its limit, and no question is under way twice.
    #[test]
    fn nothing_is_unbounded(steps in steps()) {
        let mut desk = Desk::new(LIMITS);
        let (mut under_way, mut waiting, mut seconds) = (Vec::<Key>::new(), 0_usize, 0);
        for step in steps {
            match step {
                Step::Comes(number) => match desk.comes(&key(number), at(seconds)) {
                    Reply::Ask => {
                        prop_assert!(!under_way.contains(&key(number)));
                        under_way.push(key(number));
                        waiting += 1;
                    }
                    Reply::Queue | Reply::Join => waiting += 1,
                    Reply::Known(_) | Reply::Full | Reply::Shut => {}
                },
                Step::Leaves if waiting > 0 => {
                    desk.leaves();
                    waiting -= 1;
                }
                Step::Settles(answer) if !under_way.is_empty() => {
                    let answer = answer.and_then(|yes| holds(if yes { allow() } else { Decision::Deny }, 5));
                    desk.settle(&under_way.remove(0), answer, at(seconds));
                    while let Some(next) = desk.next(at(seconds)) {
                        prop_assert!(!under_way.contains(&next));
                        under_way.push(next);
                    }
                    desk.given_up(at(seconds));
                }
                Step::Leaves | Step::Settles(_) => {}
                Step::Passes(by) => seconds += i64::from(by),
            }
            prop_assert_eq!((desk.under_way, desk.waiting), (under_way.len(), waiting));
            prop_assert!(waiting <= LIMITS.waiting_max && desk.queue.len() + under_way.len() == desk.open.len());
            prop_assert!(desk.known.len() <= LIMITS.known_max && desk.known.len() == desk.ends.len());
            prop_assert!(under_way.len() <= LIMITS.at_once);
            prop_assert!(desk.queue.is_empty() || !under_way.is_empty(), "whoever waits has somebody before him");
        }
    }
}
