//! Rates, guesses and shares: what is borne, what is not, and what is forgotten.

use super::*;

fn at(seconds: i64) -> Time {
    Time::from_millis(1_700_000_000_000 + seconds * 1000)
}

fn place(last: u8) -> Place {
    Place::of(IpAddr::from([10, 0, 0, last]))
}

fn patience() -> Patience {
    Patience {
        per_client: 3,
        per_place: 10,
        per_name: 6,
        wait_min: Duration::from_secs(10),
        wait_max: Duration::from_secs(900),
    }
}

fn bounds() -> Bounds {
    Bounds::new(
        Limits {
            strangers_per_place_max: 2,
            client_connects: Rate::new(4, Duration::from_secs(5)),
            place_connects: Rate::new(3, Duration::from_secs(1)),
            patience: patience(),
            known_for: Duration::from_secs(3600),
            remembered_max: 50,
        },
        Vec::new(),
    )
}

/// Guesses once and is wrong; whether the password was verified.
fn guess(bounds: &mut Bounds, name: &str, place: Place, now: Time) -> bool {
    let verified = bounds.guess(name, place, now).is_ok();
    if verified {
        let _ = bounds.misguessed(name, place, now);
    }
    verified
}

#[test]
fn a_bucket_gives_its_burst_and_then_one_token_at_a_time() {
    let rate = Rate::new(3, Duration::from_secs(10)).expect("a limit");
    let (mut bucket, mut taken) = (Bucket::default(), Vec::new());
    for second in 0..60 {
        if bucket.empty_until(rate) <= at(second) {
            bucket.take(rate, 1, at(second));
            taken.push(second);
        }
    }
    assert_eq!(taken, [0, 1, 2, 10, 20, 30, 40, 50]);
    assert_eq!((Rate::new(0, Duration::from_secs(1)), Rate::per_second(0, 5)), (None, None), "no limit");
    let fast = Rate::per_second(300_000_000, 1).expect("a limit");
    let mut bucket = Bucket::default();
    bucket.take(fast, 300_000_001, at(0));
    let wait = bucket.empty_until(fast).since(at(0));
    assert!(wait > Duration::from_millis(800) && wait <= Duration::from_secs(1), "{wait:?}");
}

/// Whoever can have names made up for him has them counted against his address; whoever has a name vouched for has not.
#[test]
fn guests_cost_their_address_unless_somebody_vouches_for_their_name() {
    let mut bounds = bounds();
    bounds.proved("T1", place(1), at(0)).expect("the first");
    for n in 0..3 {
        assert_eq!(bounds.guest(&format!("random-{n}"), place(1), at(0)), Ok(()));
    }
    assert_eq!(bounds.knock("random-3", place(1), false, at(0)), Err(Excess::Place));
    assert_eq!(bounds.knock("random-0", place(1), false, at(0)), Err(Excess::Place), "nor is one known there");
    assert_eq!(bounds.guest("", place(1), at(0)), Err(Excess::Place), "nor by the name of one who is");
    let mut bounds = self::bounds();
    bounds.proved("T1", place(1), at(0)).expect("the first");
    for n in 0..100 {
        assert_eq!(bounds.knock(&format!("d{n}"), place(1), false, at(0)), Ok(()), "{n}");
        assert_eq!(bounds.vouched(&format!("d{n}"), place(1), at(0)), Ok(()), "{n}");
    }
    while bounds.knock("a stranger", place(1), false, at(0)).is_ok() {
        bounds.failed(place(1), at(0));
    }
    assert!(bounds.is_spent(place(1), at(0)) && !bounds.is_spent(place(2), at(0)));
    assert_eq!(bounds.knock("d99", place(1), false, at(0)), Ok(()), "known there");
    assert_eq!(
        bounds.knock("T1", place(1), false, at(0)),
        Ok(()),
        "a hundred guests are remembered, and so is a terminal"
    );
}

#[test]
fn each_place_has_its_turn_however_many_wait_from_another() {
    let mut line = Lines::default();
    (0..4).for_each(|n| line.push(place(1), false, n, |_| false));
    assert_eq!(line.pop(), Some(0));
    (10..12).for_each(|n| line.push(place(2), false, n, |_| false));
    line.push(place(3), false, 20, |_| false);
    let rest: Vec<i32> = std::iter::from_fn(|| line.pop()).collect();
    assert_eq!(rest, [1, 10, 20, 2, 11, 3]);
    for n in 0..4 {
        line.push(place(1), false, n, |waits| *waits < 2);
    }
    let rest: Vec<i32> = std::iter::from_fn(|| line.pop()).collect();
    assert_eq!(rest, [2, 3], "who has gone is not kept");
}

#[test]
fn the_urgent_come_first_and_keep_nobody_out() {
    let mut line = Lines::default();
    (0..4).for_each(|n| line.push(place(1), false, n, |_| false));
    (10..14).for_each(|n| line.push(place(1), true, n, |_| false));
    line.push(place(2), true, 20, |_| false);
    let rest: Vec<i32> = std::iter::from_fn(|| line.pop()).collect();
    assert_eq!(rest, [10, 0, 20, 1, 11, 2, 12, 3, 13], "by turns, and each place in its turn");
    assert!(line.is_empty());
    line.push(place(1), true, 30, |_| false);
    assert_eq!((line.is_empty(), line.pop(), line.pop()), (false, Some(30), None));
}

/// screentinker #146: a device that connected successfully, again and again, took the server down.
#[test]
fn pain_13_a_device_that_connects_in_a_loop_successfully_is_slowed_down() {
    let mut bounds = bounds();
    let mut let_in = 0;
    for millis in 0..100_000 {
        let now = Time::from_millis(at(0).millis() + millis);
        if bounds.knock("T1", place(1), false, now).is_ok() {
            bounds.proved("T1", place(1), now).expect("who may knock may enter");
            let_in += 1;
        }
    }
    assert_eq!(let_in, 4 + 19, "its burst, and one each five seconds");
    assert_eq!(bounds.knock("T2", place(1), false, at(100)), Ok(()), "its neighbour pays nothing for it");
    assert_eq!(bounds.proved("T2", place(1), at(100)), Ok(()));
}

/// emqx #18218: bans and limits by client identifier alone are passed with random ones.
#[test]
fn pain_13_random_client_ids_from_one_address_are_one_address() {
    let mut bounds = bounds();
    for n in 0..3 {
        assert_eq!(bounds.knock(&format!("x{n}"), place(1), false, at(0)), Ok(()));
        bounds.guest(&format!("x{n}"), place(1), at(0)).expect("within the burst");
    }
    assert_eq!(bounds.knock("x3", place(1), false, at(0)), Err(Excess::Place));
    assert_eq!(bounds.knock("x3", place(2), false, at(0)), Ok(()), "from elsewhere");
    assert_eq!(bounds.knock("x3", place(1), false, at(1)), Ok(()), "one token came back");
}

#[test]
fn hundreds_of_terminals_behind_one_address_are_not_that_address() {
    let mut bounds = bounds();
    for n in 0..40 {
        let name = format!("T{n}");
        assert_eq!(bounds.knock(&name, place(1), false, at(0)), Ok(()), "{name}");
        assert_eq!(bounds.proved(&name, place(1), at(0)), Ok(()));
    }
    // A neighbour knocks on every door. Who is known there passes, and so does a certificate.
    for _ in 0..1000 {
        bounds.failed(place(1), at(1));
    }
    assert_eq!(bounds.knock("T7", place(1), false, at(1)), Ok(()));
    assert_eq!(bounds.knock("T99", place(1), true, at(1)), Ok(()));
    assert_eq!(bounds.knock("T99", place(1), false, at(1)), Err(Excess::Place));
    assert_eq!(bounds.knock("T99", place(1), false, at(2)), Ok(()), "trying is no debt");
}

#[test]
fn wrong_passwords_have_to_wait_longer_and_longer() {
    let (mut bounds, mut verified) = (bounds(), Vec::new());
    for second in 0..3600 {
        if guess(&mut bounds, "T1", place(1), at(second)) {
            verified.push(second);
        }
    }
    assert_eq!(verified[..6], [0, 1, 2, 12, 32, 72], "three at once, and then after 10, 20, 40 seconds");
    assert!(verified.len() < 20, "{verified:?}");
    // Right is right, as soon as it is looked at; and then nothing was.
    let free = (3600..5000).find(|&second| bounds.guess("T1", place(1), at(second)).is_ok()).expect("in time");
    bounds.guessed("T1", place(1));
    assert!((0..3).all(|_| guess(&mut bounds, "T1", place(1), at(free))));
    assert!(!guess(&mut bounds, "T1", place(1), at(free)));
}

#[test]
fn guesses_sent_at_once_are_counted_before_they_are_verified() {
    let mut bounds = bounds();
    let begun = (0..100).filter(|_| bounds.guess("T1", place(1), at(0)).is_ok()).count();
    assert_eq!(begun, 3);
    bounds.unguessed("T1", place(1), at(0));
    assert_eq!(bounds.guess("T1", place(1), at(0)), Ok(()), "one was not verified after all");
}

#[test]
fn who_guesses_at_a_name_does_not_keep_its_terminal_out() {
    let mut bounds = bounds();
    // From everywhere, for an hour.
    for second in 0..3600 {
        for last in 1..=20 {
            guess(&mut bounds, "T1", place(last), at(second));
        }
    }
    // At a place where nobody was wrong.
    assert_eq!(bounds.guess("T1", place(99), at(3600)), Ok(()));
    bounds.guessed("T1", place(99));
    bounds.proved("T1", place(99), at(3600)).expect("its first");
    // Known there, it keeps its patience, though its neighbours guess at every name.
    for n in 0..30 {
        guess(&mut bounds, &format!("x{n}"), place(99), at(3601));
    }
    assert_eq!(bounds.guess("T2", place(99), at(3602)), Err(Excess::Guesses), "the place is barred");
    assert!((0..3).all(|_| guess(&mut bounds, "T1", place(99), at(3602))));
    assert!(!guess(&mut bounds, "T1", place(99), at(3602)));
}

#[test]
fn a_name_that_is_guessed_at_from_everywhere_bears_one_guess_from_each_further_place() {
    let mut bounds = bounds();
    for last in 1..=6 {
        assert!(guess(&mut bounds, "T1", place(last), at(0)));
    }
    assert!(guess(&mut bounds, "T1", place(7), at(1)) && !guess(&mut bounds, "T1", place(7), at(1)));
    assert!(guess(&mut bounds, "T2", place(7), at(1)) && guess(&mut bounds, "T2", place(7), at(1)), "another name");
}

#[test]
fn names_made_up_by_the_thousand_do_not_have_a_guesser_forgotten() {
    let mut bounds = bounds();
    while guess(&mut bounds, "T1", place(1), at(0)) {}
    // From one place the place is barred before the table is full; from many, each entry is owed less than his.
    for n in 0..10_000 {
        guess(&mut bounds, &format!("x{n}"), place(1), at(1));
    }
    assert_eq!(bounds.guess("T1", place(1), at(2)), Err(Excess::Guesses));
    for n in 0..10_000_u32 {
        let [.., a, b] = n.to_be_bytes();
        guess(&mut bounds, "x", Place::of(IpAddr::from([10, 9, a, b])), at(3));
    }
    assert_eq!(bounds.guess("T1", place(1), at(4)), Err(Excess::Guesses));
    assert_eq!(bounds.guess("T1", place(1), at(2000)), Ok(()), "time has him forgotten");
}

#[test]
fn a_table_is_bounded_and_forgets_the_least_first() {
    let mut kept: Kept<u32, ()> = Kept::new(10);
    kept.set(0, at(1000), (), at(0));
    for n in 1..1000 {
        kept.set(n, at(500), (), at(0));
    }
    assert_eq!((kept.len(), kept.get(&0, at(0))), (10, Some(&())));
    assert_eq!(kept.get(&0, at(1000)), None, "over");
    kept.set(7, at(3000), (), at(2000));
    kept.set(8, at(3000), (), at(2000));
    assert!(kept.len() <= 8, "what is over makes room as the table is used: {}", kept.len());
    kept.forget(at(2999));
    assert_eq!(kept.len(), 2, "and when it is not");
    kept.forget(at(3000));
    assert_eq!(kept.len(), 0);
}

#[test]
fn an_idle_node_has_forgotten_what_is_over_and_nothing_else() {
    let mut bounds = bounds();
    assert_eq!(bounds.proved("T1", place(1), at(0)), Ok(()));
    assert_eq!(bounds.guest("c", place(2), at(0)), Ok(()));
    assert!(guess(&mut bounds, "T1", place(3), at(0)) && bounds.is_news("a name", at(0)));
    bounds.forget(at(2));
    assert!(!bounds.is_news("a name", at(2)) && bounds.knows("T1", place(1), at(2)));
    bounds.forget(at(3599));
    assert!(bounds.knows("T1", place(1), at(3599)));
    bounds.forget(at(3600));
    let left = format!("{:?}", (&bounds.known, &bounds.clients, &bounds.places, &bounds.guesses, &bounds.told));
    assert!(!left.contains("Sign(") && !left.contains("Place("), "{left}");
}

#[test]
fn a_name_is_known_where_it_was_given_and_nowhere_else() {
    let network = |text: &str| text.parse::<Network>().expect("a network");
    let six = Place::of("::ffff:10.0.0.1".parse().expect("an address"));
    assert_eq!(Sign::at("T1", place(1)), Sign::at("T1", six), "the same address");
    let signs = [
        Sign::of("T1"),
        Sign::of("T2"),
        Sign::at("T1", place(1)),
        Sign::at("T1", place(2)),
        Sign::at("T2", place(1)),
        Sign::within("T1", network("10.0.0.0/8")),
        Sign::within("T1", network("128.0.0.0/16")),
        Sign::within("6 T1", network("128.0.0.0/1")),
    ];
    let different: std::collections::BTreeSet<_> = signs.into_iter().collect();
    assert_eq!(different.len(), signs.len());
}

#[test]
fn a_place_has_a_share_of_the_strangers() {
    let mut bounds = bounds();
    assert!(bounds.enter(place(1)) && bounds.enter(place(1)) && !bounds.enter(place(1)));
    assert!(bounds.enter(place(2)), "another place");
    bounds.leave(place(1));
    assert!(bounds.enter(place(1)));
    for last in [1, 1, 2, 2] {
        bounds.leave(place(last));
    }
    assert!(bounds.strangers.is_empty());
}

#[test]
fn what_was_said_is_not_said_again_for_a_while() {
    let mut bounds = bounds();
    let said = [0, 1, 599, 600, 601].map(|second| bounds.is_news("T1", at(second)));
    assert_eq!(said, [true, false, false, true, false]);
}

#[test]
fn one_line_of_ipv6_is_one_place() {
    let of = |text: &str| Place::of(text.parse().expect("an address"));
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_eq!(
        (of("2001:db8::1").to_string(), of("10.0.0.1").to_string()),
        ("2001:db8::/64".into(), "10.0.0.1".into())
    );
}

fn ranges(of: &[(&str, u32)]) -> Bounds {
    let limits = Limits { client_connects: None, known_for: Duration::from_secs(3600), ..bounds().limits };
    let range = |&(network, burst): &(&str, u32)| Range {
        network: network.parse().expect("a network"),
        connects: Rate::new(burst, Duration::from_secs(10)),
        known_every: Duration::from_secs(30),
    };
    Bounds::new(limits, of.iter().map(range).collect())
}

fn sim(bounds: &mut Bounds, name: &str, address: &str, now: Time) -> bool {
    let address = address.parse().expect("an address");
    let let_in = bounds.knock_from(name, address, now);
    if let Err(excess) = let_in {
        assert!(matches!(excess, Excess::Range(_)), "{excess:?}");
        return false;
    }
    bounds.proved_from(name, address, now);
    true
}

/// An APN that drops everybody: each terminal comes within its own limits, successfully, and each from another address.
#[test]
fn pain_13_a_network_whose_terminals_come_back_again_and_again_costs_its_rate() {
    let mut bounds = ranges(&[("10.20.0.0/16", 40)]);
    let mut let_in = [0; 40];
    for second in 0..600 {
        // Twenty of them each five seconds.
        for n in (0..40).filter(|n| second % 10 == n % 2 * 5) {
            let address = format!("10.20.{}.{n}", second % 256);
            let_in[n as usize] += u32::from(sim(&mut bounds, &format!("T{n}"), &address, at(second)));
        }
    }
    let all: u32 = let_in.iter().sum();
    assert!(all <= 40 + 60 + 40 * 20, "its rate, and each terminal twice a minute at most: {all}");
    assert!(let_in.iter().all(|&times| times >= 15), "nobody is kept out for longer than forty seconds: {let_in:?}");
    assert!(sim(&mut bounds, "X", "10.21.0.1", at(600)), "another network");
}

#[test]
fn who_is_known_in_a_network_is_let_in_once_in_a_while_and_nobody_else() {
    let mut bounds = ranges(&[("10.20.0.0/16", 2)]);
    assert!(sim(&mut bounds, "T1", "10.20.0.1", at(0)) && sim(&mut bounds, "T2", "10.20.0.2", at(0)));
    assert!(!sim(&mut bounds, "T1", "10.20.0.1", at(0)), "all are counted, the successful ones too");
    // Others take whatever comes back.
    for second in 1..30 {
        sim(&mut bounds, "X", "10.20.9.9", at(second));
    }
    assert!(!sim(&mut bounds, "T1", "10.20.7.7", at(29)));
    assert!(sim(&mut bounds, "X", "10.20.9.9", at(30)), "one came back");
    // Somebody gives its name, and proves nothing.
    let address = "10.20.6.6".parse().expect("an address");
    assert_eq!(bounds.knock_from("T1", address, at(30)), Ok(()));
    assert!(!sim(&mut bounds, "T9", "10.20.7.8", at(30)), "not known there");
    assert!(sim(&mut bounds, "T1", "10.20.7.7", at(30)), "known there, at another address");
    assert!(!sim(&mut bounds, "T1", "10.20.7.7", at(30)), "once");
    assert!(!sim(&mut bounds, "", "10.20.7.7", at(30)), "who gives no name is nobody");
    assert!(sim(&mut bounds, "T9", "10.20.7.8", at(41)), "trying is no debt");
}

#[test]
fn the_narrowest_network_around_an_address_counts() {
    let mut bounds = ranges(&[("10.0.0.0/8", 1), ("10.20.0.0/16", 2), ("10.20.30.0/24", 0)]);
    let mut let_in = |address: &str| (0..9).filter(|n| sim(&mut bounds, &format!("T{n}"), address, at(0))).count();
    assert_eq!(["10.20.30.1", "10.20.1.1", "10.1.1.1", "11.1.1.1"].map(&mut let_in), [9, 2, 1, 9]);
    assert_eq!(let_in("::ffff:10.20.2.2"), 0, "the same network");
}
