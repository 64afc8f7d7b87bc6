//! What a core does wrong: by chance from a seed, or by script.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

/// One misbehaviour about one message. Whatever is booked is booked before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// None.
    Behave,
    /// Declines with this code, and books nothing. To a reversal: refuses it, and takes nothing back.
    Decline(&'static str),
    /// Books and never answers.
    Swallow,
    /// Neither books nor answers.
    Ignore,
    /// Books and answers after so long.
    Late(Duration),
    /// Books once and answers twice.
    Twice,
    /// Books, and answers right after the answer to the reversal.
    AfterReversal,
    /// Books, and closes the link instead of answering.
    Cut,
}

/// How often it does what, of 1,000 messages. What is left over behaves.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Before each answer.
    pub delay: Range<Duration>,
    pub decline: u32,
    pub swallow: u32,
    pub ignore: u32,
    pub late: u32,
    /// How late a late one is.
    pub lateness: Range<Duration>,
    pub twice: u32,
    pub after_reversal: u32,
    pub cut: u32,
    /// The first messages with money in them, requests and reversals, are treated so, before chance decides.
    pub script: VecDeque<Quirk>,
}

impl Behaviour {
    /// By the name that the command line takes.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let millis = Duration::from_millis;
        match name {
            "none" => Some(Self::default()),
            "slow" => Some(Self { delay: millis(50)..millis(800), ..Self::default() }),
            "rough" => Some(Self {
                delay: millis(1)..millis(50),
                decline: 30,
                swallow: 20,
                ignore: 10,
                late: 20,
                lateness: millis(500)..millis(5_000),
                twice: 20,
                after_reversal: 10,
                cut: 10,
                script: VecDeque::new(),
            }),
            _ => None,
        }
    }

    /// Treats the first messages so, and behaves from then on.
    #[must_use]
    pub fn scripted(script: impl IntoIterator<Item = Quirk>) -> Self {
        Self { script: script.into_iter().collect(), ..Self::default() }
    }
}

/// A behaviour and its lots.
#[derive(Debug)]
pub struct Temper {
    behaviour: Behaviour,
    random: ChaCha8Rng,
}

impl Temper {
    #[must_use]
    pub fn new(behaviour: Behaviour, seed: u64) -> Self {
        Self { behaviour, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    pub fn become_like(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
    }

    /// How the next message is treated.
    pub fn quirk(&mut self) -> Quirk {
        if let Some(quirk) = self.behaviour.script.pop_front() {
            return quirk;
        }
        let late = self.between(self.behaviour.lateness.clone());
        let each = [
            (self.behaviour.decline, Quirk::Decline("96")),
            (self.behaviour.swallow, Quirk::Swallow),
            (self.behaviour.ignore, Quirk::Ignore),
            (self.behaviour.late, Quirk::Late(late)),
            (self.behaviour.twice, Quirk::Twice),
            (self.behaviour.after_reversal, Quirk::AfterReversal),
            (self.behaviour.cut, Quirk::Cut),
        ];
        let mut lot = self.random.random_range(0..1000_u32);
        for (chance, quirk) in each {
            match lot.checked_sub(chance) {
                None => return quirk,
                Some(rest) => lot = rest,
            }
        }
        Quirk::Behave
    }

    /// How long the next answer takes.
    pub fn delay(&mut self) -> Duration {
        self.between(self.behaviour.delay.clone())
    }

    fn between(&mut self, range: Range<Duration>) -> Duration {
        if range.is_empty() { range.start } else { self.random.random_range(range) }
    }
}
