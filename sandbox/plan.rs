//! What the customers of the village want, by seed, and what each must be told.
//!
//! A terminal's steps are its own: its own two cards, one step after the other. So what must come of a step follows from
//! the steps before it, however the terminals interleave.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use wakala::request::Kind;

/// One customer at one terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    /// In minor units of TZS.
    pub amount: u64,
    /// Which of the terminal's cards.
    pub card: usize,
    /// Whether she types her own PIN.
    pub pin_is_right: bool,
    pub manner: Manner,
    pub expected: Expected,
}

/// How the terminal behaves about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As docs/terminals.md says.
    Plain,
    /// Publishes the same bytes three times at once.
    Hasty,
    /// Asks again when the receipt is there, and wants the same bytes once more.
    AsksAgain,
    /// Uses the key of the step before with another amount.
    ReusesKey,
    /// Publishes bytes that are no request.
    Malformed,
    /// The request's authentication code is not over these bytes.
    ForgedMac,
}

/// What the receipt must say when nothing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Approved,
    Declined(&'static str),
    Refused(&'static str),
}

/// More than any account or float of the sandbox holds, and less than the largest amount: TZS 9,000,000,000.00.
pub const MORE_THAN_ANYBODY_HAS: u64 = 900_000_000_000;

/// How many cards a terminal has of its own.
pub const CARDS_PER_TERMINAL: usize = 2;

/// Wrong PINs after which a card is blocked.
const PIN_TRIES: u32 = 3;

/// Who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Everybody, mistaken, poor and hostile ones too.
    Everybody,
    /// Withdrawals that are right, for whoever measures.
    Withdrawals,
}

/// The steps of each terminal: `transactions` in all, spread evenly.
#[must_use]
pub fn plan(seed: u64, terminals: usize, transactions: usize, mix: Mix) -> Vec<Vec<Step>> {
    (0..terminals)
        .map(|terminal| {
            let share = transactions / terminals + usize::from(terminal < transactions % terminals);
            let mut customers = Customers::new(seed, terminal, mix);
            (0..share).map(|_| customers.next_step()).collect()
        })
        .collect()
}

struct Customers {
    random: ChaCha8Rng,
    mix: Mix,
    /// Wrong PINs in a row, by card.
    wrong: [u32; CARDS_PER_TERMINAL],
    /// The first terminal's second card gets blocked on purpose.
    blocks_a_card: bool,
    before: Option<Step>,
}

impl Customers {
    fn new(seed: u64, terminal: usize, mix: Mix) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(u64::try_from(terminal).unwrap_or(0) + 1);
        let blocks_a_card = terminal == 0 && mix == Mix::Everybody;
        Self { random, mix, wrong: [0; CARDS_PER_TERMINAL], blocks_a_card, before: None }
    }

    fn next_step(&mut self) -> Step {
        let step = self.draw();
        self.before = Some(step.clone());
        step
    }

    fn draw(&mut self) -> Step {
        if self.blocks_a_card && self.wrong[1] <= PIN_TRIES {
            return self.one_step_towards_a_blocked_card();
        }
        let card = if self.blocks_a_card { 0 } else { self.random.random_range(0..CARDS_PER_TERMINAL) };
        // Whole shillings from TZS 1,000.00 to 50,000.00.
        let amount = self.random.random_range(1_000_u64..=50_000) * 100;
        let plain =
            |kind| Step { kind, amount, card, pin_is_right: true, manner: Manner::Plain, expected: Expected::Approved };
        let lot = if self.mix == Mix::Withdrawals { 0 } else { self.random.random_range(0..100) };
        match lot {
            0..55 => self.with_right_pin(plain(Kind::Withdrawal)),
            55..75 => plain(Kind::Deposit),
            75..79 if self.wrong[card] + 1 < PIN_TRIES => {
                self.wrong[card] += 1;
                let expected = Expected::Declined("55");
                Step { pin_is_right: false, expected, ..plain(Kind::Withdrawal) }
            }
            79..83 => {
                let kind = if self.random.random_bool(0.5) { Kind::Withdrawal } else { Kind::Deposit };
                let expected = Expected::Declined("51");
                self.with_right_pin(Step { amount: MORE_THAN_ANYBODY_HAS, expected, ..plain(kind) })
            }
            83..88 => self.with_right_pin(Step { manner: Manner::Hasty, ..plain(Kind::Withdrawal) }),
            88..92 => self.with_right_pin(Step { manner: Manner::AsksAgain, ..plain(Kind::Withdrawal) }),
            92..95 => match &self.before {
                Some(before) if has_a_transaction(before) => {
                    let (kind, card, amount) = (before.kind, before.card, before.amount + 100);
                    let expected = Expected::Refused("94");
                    // The PIN is looked at before anybody knows that the key was used.
                    let step = Step { kind, card, amount, pin_is_right: true, manner: Manner::ReusesKey, expected };
                    self.with_right_pin(step)
                }
                _ => self.with_right_pin(plain(Kind::Withdrawal)),
            },
            95..98 => Step { manner: Manner::Malformed, expected: Expected::Refused("30"), ..plain(Kind::Deposit) },
            98..100 => Step { manner: Manner::ForgedMac, expected: Expected::Refused("63"), ..plain(Kind::Deposit) },
            _ => self.with_right_pin(plain(Kind::Withdrawal)),
        }
    }

    /// A right PIN clears the tries of its card.
    fn with_right_pin(&mut self, step: Step) -> Step {
        if step.kind == Kind::Withdrawal {
            self.wrong[step.card] = 0;
        }
        step
    }

    /// Three wrong PINs, and then the right one, which is not looked at any more.
    fn one_step_towards_a_blocked_card(&mut self) -> Step {
        self.wrong[1] += 1;
        let tried = self.wrong[1];
        let (pin_is_right, code) = if tried <= PIN_TRIES { (false, "55") } else { (true, "75") };
        Step {
            kind: Kind::Withdrawal,
            amount: 1_000_000,
            card: 1,
            pin_is_right,
            manner: Manner::Plain,
            expected: Expected::Declined(code),
        }
    }
}

/// Whether a step leaves a transaction behind whose key can be reused, and no wrong PIN.
fn has_a_transaction(step: &Step) -> bool {
    matches!(step.expected, Expected::Approved | Expected::Declined("51"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed() {
        assert_eq!(plan(7, 5, 100, Mix::Everybody), plan(7, 5, 100, Mix::Everybody));
        assert_ne!(plan(7, 5, 100, Mix::Everybody), plan(8, 5, 100, Mix::Everybody));
        assert_eq!(plan(7, 3, 100, Mix::Everybody).iter().map(Vec::len).collect::<Vec<_>>(), [34, 33, 33]);
    }

    #[test]
    fn every_kind_of_customer_comes() {
        let steps: Vec<Step> = plan(1, 50, 2_000, Mix::Everybody).into_iter().flatten().collect();
        for manner in
            [Manner::Plain, Manner::Hasty, Manner::AsksAgain, Manner::ReusesKey, Manner::Malformed, Manner::ForgedMac]
        {
            assert!(steps.iter().filter(|step| step.manner == manner).count() >= 10, "{manner:?}");
        }
        for code in ["51", "55"] {
            assert!(steps.iter().filter(|step| step.expected == Expected::Declined(code)).count() >= 10, "{code}");
        }
    }

    #[test]
    fn only_the_one_card_is_blocked() {
        for (terminal, steps) in plan(3, 20, 4_000, Mix::Everybody).iter().enumerate() {
            let mut wrong = [0_u32; CARDS_PER_TERMINAL];
            for step in steps.iter().filter(|step| step.kind == Kind::Withdrawal) {
                let reached_hsm = wrong[step.card] < PIN_TRIES;
                wrong[step.card] = if step.pin_is_right && reached_hsm { 0 } else { wrong[step.card] + 1 };
            }
            let blocked = wrong.iter().filter(|&&tries| tries >= PIN_TRIES).count();
            assert_eq!(blocked, usize::from(terminal == 0), "terminal {terminal}");
        }
    }
}
