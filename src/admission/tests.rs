//! The queue against a list that is searched from end to end.

use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn whose<T>(places: Vec<Place<T>>) -> Vec<T> {
    places.into_iter().map(|place| place.who).collect()
}

#[test]
fn who_has_a_transaction_in_flight_comes_first_and_among_equals_who_came_first() {
    let mut waiting = Waiting::new(10, Duration::from_secs(60));
    for name in ["rest 1", "message 1", "transaction 1", "rest 2", "transaction 2", "message 2"] {
        assert_eq!(waiting.come(name, at(0)), None);
    }
    let claim = |name: &&str| match name.split(' ').next() {
        Some("transaction") => Claim::Transaction,
        Some("message") => Claim::Messages,
        _ => Claim::None,
    };
    let claims: Vec<_> = waiting.unjudged(100).map(|(number, name)| (number, claim(name))).collect();
    waiting.judge(claims);
    assert_eq!(waiting.unjudged(100).count(), 0, "asked once");
    let first = waiting.take(3);
    assert_eq!(
        first.iter().map(|place| place.who).collect::<Vec<_>>(),
        ["transaction 1", "transaction 2", "message 1"]
    );
    let [_, back, _] = <[_; 3]>::try_from(first).expect("three");
    waiting.put_back(back);
    assert_eq!(whose(waiting.take(9)), ["transaction 2", "message 2", "rest 1", "rest 2"]);
    assert!(waiting.is_empty());
}

#[test]
fn a_full_queue_turns_away_who_has_nothing_waiting_and_came_last() {
    let mut waiting = Waiting::new(3, Duration::from_secs(60));
    for name in ["a", "b", "c"] {
        assert_eq!(waiting.come(name, at(0)), None);
    }
    assert_eq!(waiting.come("d", at(1)), Some("d"), "of the others nobody knows");
    waiting.judge([(0, Claim::None), (1, Claim::None), (2, Claim::Messages)]);
    assert_eq!(waiting.come("e", at(1)), Some("b"), "it may have a transaction in flight");
    assert_eq!(waiting.come("f", at(1)), Some("a"));
    assert_eq!(waiting.come("g", at(1)), Some("g"));
    assert_eq!(whose(waiting.take(9)), ["c", "e", "f"]);
}

#[test]
fn nobody_waits_for_longer_than_there_is_patience() {
    let mut waiting = Waiting::new(3, Duration::from_secs(10));
    for (name, came) in [("a", 0), ("b", 4), ("c", 8)] {
        assert_eq!(waiting.come(name, at(came)), None);
    }
    waiting.judge([(1, Claim::Transaction)]);
    assert_eq!(waiting.overdue(at(9)), Vec::<&str>::new());
    assert_eq!(waiting.overdue(at(14)), ["b", "a"], "a transaction waits no longer than others");
    assert_eq!(whose(waiting.take(9)), ["c"]);
}

#[test]
fn those_who_are_told_to_come_again_are_told_different_times() {
    let (min, max) = (Duration::from_secs(2), Duration::from_secs(30));
    let told: std::collections::BTreeSet<u64> = (0..1000).map(|drawn| come_again_in(min, max, drawn)).collect();
    assert_eq!((told.first(), told.last(), told.len()), (Some(&2), Some(&30), 29));
    assert_eq!(come_again_in(Duration::ZERO, Duration::ZERO, 7), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Come,
    Judge {
        most: usize,
        claims: Vec<Claim>,
    },
    Take(usize),
    /// And puts back every second one.
    TakeInVain(usize),
    Pass(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let claim = prop_oneof![Just(Claim::Transaction), Just(Claim::Messages), Just(Claim::None)];
    prop_oneof![
        6 => Just(Step::Come),
        2 => (0..6_usize, proptest::collection::vec(claim, 6)).prop_map(|(most, claims)| Step::Judge { most, claims }),
        2 => (0..4_usize).prop_map(Step::Take),
        1 => (0..4_usize).prop_map(Step::TakeInVain),
        1 => (1..5_u8).prop_map(Step::Pass),
    ]
}

/// One that waits: its number, since when, and its claim if that is known.
type Model = Vec<(u64, i64, Option<Claim>)>;

fn in_turn(model: &Model) -> Model {
    let mut sorted = model.clone();
    sorted.sort_by_key(|(number, _, claim)| (claim.unwrap_or(Claim::None), *number));
    sorted
}

fn run(steps: Vec<Step>) {
    const MAX: usize = 8;
    let (mut waiting, mut model, mut now, mut came) =
        (Waiting::new(MAX, Duration::from_secs(10)), Model::new(), 0, 0_u64);
    let remove = |model: &mut Model, gone: &[u64]| model.retain(|(number, ..)| !gone.contains(number));
    for step in steps {
        match step {
            Step::Come => {
                let gone = waiting.come(came, at(now));
                let dispensable = model.iter().filter(|(.., claim)| *claim == Some(Claim::None));
                let expected = match dispensable.map(|(number, ..)| *number).max() {
                    _ if model.len() < MAX => None,
                    None => Some(came),
                    last => last,
                };
                assert_eq!(gone, expected);
                model.push((came, now, None));
                remove(&mut model, &gone.into_iter().collect::<Vec<_>>());
                // Numbers are given to those who are let in; the names of this test follow them.
                if gone != Some(came) {
                    came += 1;
                }
            }
            Step::Judge { most, claims } => {
                let asked: Vec<(u64, Claim)> =
                    waiting.unjudged(most).zip(claims).map(|((number, _), claim)| (number, claim)).collect();
                let unknown = model.iter().filter(|(.., claim)| claim.is_none()).map(|(number, ..)| *number);
                assert_eq!(
                    asked.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
                    unknown.take(most).collect::<Vec<_>>()
                );
                waiting.judge(asked.clone());
                for (number, claim) in asked {
                    for known in model.iter_mut().filter(|known| known.0 == number) {
                        known.2 = Some(claim);
                    }
                }
            }
            Step::Take(max) => {
                let taken = whose(waiting.take(max));
                assert_eq!(taken, in_turn(&model).into_iter().take(max).map(|(number, ..)| number).collect::<Vec<_>>());
                remove(&mut model, &taken);
            }
            Step::TakeInVain(max) => {
                let taken = waiting.take(max);
                let mut gone = Vec::new();
                for (nth, place) in taken.into_iter().enumerate() {
                    if nth % 2 == 0 { waiting.put_back(place) } else { gone.push(place.who) }
                }
                remove(&mut model, &gone);
            }
            Step::Pass(seconds) => {
                now += i64::from(seconds);
                let overdue = waiting.overdue(at(now));
                let mut late: Model = in_turn(&model);
                late.retain(|(_, since, _)| since + 10 <= now);
                assert_eq!(overdue, late.iter().map(|(number, ..)| *number).collect::<Vec<_>>());
                remove(&mut model, &overdue);
            }
        }
        assert_eq!(waiting.len(), model.len());
        assert!(waiting.len() <= MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_list_would_do(steps in proptest::collection::vec(step(), 0..80)) {
        run(steps);
    }
}
