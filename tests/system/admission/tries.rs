//! PIN tries: counted before the PIN is looked at, once per request, whoever asks and whatever dies.

use std::collections::BTreeSet;

use wakala::card::Token;
use wakala::id::RequestKey;
use wakala::record::Pin;
use wakala_node::store::cards::{Admission, Admissions, Arrival, Settlement, TRIES_MAX};
use wakala_system_tests::{now, terminal};

use super::village::{Envelope, NOISE, RIGHT, Village, WRONG, verdict_of};

#[tokio::test]
async fn the_fourth_is_refused_without_asking_the_hsm() {
    let village = Village::new(true).await;
    for counter in 1..=3 {
        assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, counter, WRONG)).await), Pin::Wrong);
    }
    for counter in 4..=6 {
        let right = village.admit(&Envelope::withdrawal(1, counter, RIGHT)).await;
        assert_eq!(verdict_of(&right), Pin::TriesExceeded, "the right PIN comes too late");
    }
    assert_eq!((village.tries_used().await, village.hsm.asked()), (3, 3));

    // After a restart and on another node it is the same.
    let (_store, hsm, edge) = village.another_node().await;
    let record = edge.admit(&village.terminal(1), &Envelope::withdrawal(1, 7, RIGHT).bytes()).await.expect("a record");
    assert_eq!((verdict_of(&record), hsm.asked()), (Pin::TriesExceeded, 0));

    // The bank knows its customer again.
    assert_eq!(village.store.clear_tries(village.token()).await, Ok(true));
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 8, RIGHT)).await), Pin::Correct);
    assert_eq!(village.tries_used().await, 0);
}

#[tokio::test]
async fn a_correct_pin_clears_the_wrong_ones_before_it() {
    let village = Village::new(true).await;
    for (counter, pin, used) in [(1, WRONG, 1), (2, WRONG, 2), (3, RIGHT, 0), (4, WRONG, 1), (5, RIGHT, 0)] {
        let _ = village.admit(&Envelope::withdrawal(1, counter, pin)).await;
        assert_eq!(village.tries_used().await, used, "after {counter}");
    }
}

#[tokio::test]
async fn a_repetition_burns_nothing() {
    let village = Village::new(true).await;
    let envelope = Envelope::withdrawal(1, 1, WRONG);
    for _ in 0..5 {
        assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::Wrong);
    }
    assert_eq!(village.tries_used().await, 1);
    // At once on two nodes: a terminal that is taken over while its request is under way.
    let (_store, _hsm, edge) = village.another_node().await;
    let bytes = Envelope::withdrawal(1, 2, WRONG).bytes();
    let both = (0..10).map(|n| {
        let (edge, terminal) = (if n % 2 == 0 { village.edge.clone() } else { edge.clone() }, village.terminal(1));
        let bytes = bytes.clone();
        tokio::spawn(async move { edge.admit(&terminal, &bytes).await.expect("a record") })
    });
    for repetition in both.collect::<Vec<_>>() {
        assert_eq!(verdict_of(&repetition.await.expect("no panic")), Pin::Wrong);
    }
    assert_eq!(village.tries_used().await, 2);
    // One that was refused stays refused, though the card has tries again.
    let _ = village.admit(&Envelope::withdrawal(1, 3, WRONG)).await;
    let refused = Envelope::withdrawal(1, 4, RIGHT);
    assert_eq!(verdict_of(&village.admit(&refused).await), Pin::TriesExceeded);
    assert_eq!(village.store.clear_tries(village.token()).await, Ok(true));
    assert_eq!(verdict_of(&village.admit(&refused).await), Pin::TriesExceeded);
}

/// A terminal that lost its power asks for the PIN again, under the same key: that is another PIN, and another try. Else
/// one key would let a terminal guess for ever.
#[tokio::test]
async fn another_pin_under_the_same_key_is_another_try() {
    let village = Village::new(true).await;
    let mut verdicts = Vec::new();
    for counter in 1..=5 {
        let guess = Envelope::withdrawal(1, counter, &format!("000{counter}")).with_key(7);
        verdicts.push(verdict_of(&village.admit(&guess).await));
    }
    assert_eq!(verdicts, [Pin::Wrong, Pin::Wrong, Pin::Wrong, Pin::TriesExceeded, Pin::TriesExceeded]);
    assert_eq!(village.hsm.asked(), 3);
    // Nor under one counter.
    assert_eq!(village.store.clear_tries(village.token()).await, Ok(true));
    let asked = village.hsm.asked();
    for pin in ["0001", "0002", "0003", "0004", "0005"] {
        let _ = village.admit(&Envelope::withdrawal(1, 9, pin).with_key(8)).await;
    }
    assert_eq!(village.hsm.asked() - asked, 3);
}

#[tokio::test]
async fn of_many_at_once_three_are_looked_at() {
    let village = Village::new(true).await;
    let (_store, other_hsm, other_edge) = village.another_node().await;
    let at_once: Vec<_> = (1..=40_u8)
        .map(|n| {
            let edge = if n % 2 == 0 { village.edge.clone() } else { other_edge.clone() };
            let (terminal, bytes) = (village.terminal(n), Envelope::withdrawal(n, 1, WRONG).bytes());
            tokio::spawn(async move { verdict_of(&edge.admit(&terminal, &bytes).await.expect("a record")) })
        })
        .collect();
    let mut wrong = 0;
    for verdict in at_once {
        match verdict.await.expect("no panic") {
            Pin::Wrong => wrong += 1,
            other => assert_eq!(other, Pin::TriesExceeded),
        }
    }
    assert_eq!((wrong, village.hsm.asked() + other_hsm.asked(), village.tries_used().await), (3, 3, 3));
}

#[tokio::test]
async fn a_block_without_a_pin_gives_its_try_back() {
    let village = Village::new(true).await;
    for counter in 1..=10 {
        let envelope = Envelope::withdrawal(1, counter, NOISE);
        assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::Malformed);
        assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::Malformed, "repeated");
        assert_eq!(village.tries_used().await, 0);
    }
    // It gives back its own try, no wrong PIN's.
    let _ = village.admit(&Envelope::withdrawal(1, 11, WRONG)).await;
    let _ = village.admit(&Envelope::withdrawal(1, 12, NOISE)).await;
    assert_eq!(village.tries_used().await, 1);
}

#[tokio::test]
async fn an_hsm_that_fails_costs_the_customer_nothing() {
    let village = Village::new(true).await;
    village.hsm.set_broken(true);
    let envelope = Envelope::withdrawal(1, 1, WRONG);
    for _ in 0..5 {
        assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::HsmFault);
    }
    assert_eq!(village.tries_used().await, 0);
    // When it works again the same bytes are a try like any other.
    village.hsm.set_broken(false);
    assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::Wrong);
    assert_eq!(village.tries_used().await, 1);
}

/// The node dies between counting and looking: the try stays counted, and the repetition is that same try.
#[tokio::test]
async fn a_crash_in_between_leaves_the_try_counted() {
    let village = Village::new(true).await;
    let envelope = Envelope::withdrawal(1, 1, RIGHT);
    let dying = Admissions::new(&village.store, true);
    let arrival = Arrival {
        terminal: terminal("T1"),
        key: envelope.key,
        digest: RequestKey::of_bytes(&envelope.bytes()).0,
        ksn: envelope.ksn(),
        token: village.token(),
        pin: true,
        at: now(),
    };
    let counted = dying.admit(arrival).await.expect("let in");
    assert!(matches!(counted, Admission::LetIn { attempt: Some(1), .. }), "{counted:?}");
    assert_eq!(village.tries_used().await, 1);
    assert_eq!(verdict_of(&village.admit(&envelope).await), Pin::Correct);
    assert_eq!(village.tries_used().await, 0);
}

#[tokio::test]
async fn requests_are_forgotten_in_the_end() {
    let village = Village::new(true).await;
    let _ = village.admit(&Envelope::withdrawal(1, 1, WRONG)).await;
    assert_eq!(village.store.forget_tries(wakala::time::Time::from_millis(0), 10).await, Ok(0));
    assert_eq!(village.store.forget_tries(now() + std::time::Duration::from_secs(60), 10).await, Ok(1));
    assert_eq!(village.tries_used().await, 1, "the card remembers");
}

/// What the module doc of `store::cards` claims, for any order in which verdicts come and however often each is said: never
/// fewer tries used than there were, and exactly as many where no block was malformed.
#[tokio::test]
async fn verdicts_in_any_order_never_clear_too_much() {
    let village = Village::new(true).await;
    let admissions = Admissions::new(&village.store, true);
    let token = village.token();
    for seed in 1..=60_u64 {
        let malformed = seed % 2 == 0;
        let mut chance = Chance(seed);
        assert_eq!(village.store.clear_tries(token).await, Ok(true));
        let mut card = Model::of(&village).await;
        let mut under_way: Vec<(RequestKey, i64)> = Vec::new();
        for turn in 0..25_u64 {
            let look = !under_way.is_empty() && chance.below(2) == 0;
            if look {
                let at = usize::try_from(chance.below(under_way.len() as u64)).expect("small");
                let (key, attempt) = under_way[at];
                // Sometimes said without being forgotten: it will be said again.
                if chance.below(4) > 0 {
                    under_way.remove(at);
                }
                card.verdict(&admissions, token, key, attempt, chance.below(if malformed { 3 } else { 2 })).await;
            } else {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&seed.to_be_bytes());
                key[8..].copy_from_slice(&turn.to_be_bytes());
                if let Some(attempt) = arrive(&admissions, token, RequestKey(key), seed * 100 + turn).await {
                    card.counted = attempt;
                    under_way.push((RequestKey(key), attempt));
                }
            }
            let used = village.tries_used().await;
            assert!(used >= card.used(), "seed {seed} turn {turn}: {used} used, {card:?}");
            assert!(malformed || used == card.used(), "seed {seed} turn {turn}: {used} used, {card:?}");
            assert!(used <= TRIES_MAX, "seed {seed} turn {turn}");
        }
    }
}

async fn arrive(admissions: &Admissions, token: Token, key: RequestKey, counter: u64) -> Option<i64> {
    let ksn = wakala::card::Ksn { initial_key_id: [1; 8], counter: u32::try_from(counter).expect("small") };
    let arrival = Arrival { terminal: terminal("T9"), key, digest: key.0, ksn, token, pin: true, at: now() };
    match admissions.admit(arrival).await.expect("let in") {
        Admission::LetIn { attempt, .. } => attempt,
        Admission::Replayed => panic!("a new counter"),
    }
}

/// What is true of a card: which try was the last correct one, and which were no PIN.
#[derive(Debug)]
struct Model {
    counted: i64,
    correct: i64,
    returned: BTreeSet<i64>,
    /// Verdicts do not change when they are said again.
    said: std::collections::BTreeMap<i64, u64>,
}

impl Model {
    async fn of(village: &Village) -> Self {
        let counted = village.database.rows("select tries_counted from wakala.card").parse().expect("a number");
        assert_eq!(village.tries_used().await, 0);
        Self { counted, correct: counted, returned: BTreeSet::new(), said: std::collections::BTreeMap::new() }
    }

    /// 0 wrong, 1 correct, 2 malformed.
    async fn verdict(&mut self, admissions: &Admissions, token: Token, key: RequestKey, attempt: i64, verdict: u64) {
        let verdict = *self.said.entry(attempt).or_insert(verdict);
        if verdict == 1 {
            self.correct = self.correct.max(attempt);
        } else if verdict == 2 {
            self.returned.insert(attempt);
        }
        if verdict > 0 {
            let settlement = Settlement { terminal: terminal("T9"), key, token, attempt, correct: verdict == 1 };
            admissions.settle(settlement).await.expect("settled");
        }
    }

    fn used(&self) -> i64 {
        let returned = self.returned.range(self.correct + 1..).count();
        self.counted - self.correct - i64::try_from(returned).expect("small")
    }
}

/// Xorshift: the same seed, the same run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (self.0 >> 7) ^ 0x1234_5678;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        (self.0 >> 11) % bound
    }
}
