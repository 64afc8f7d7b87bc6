//! All randomness of a seed, and the weather that it draws: which faults there are in this world, and how often.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The one source of lots.
pub(crate) struct Chance(ChaCha8Rng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Lots of the same seed that take none from the others.
    pub(crate) fn aside(seed: u64) -> Self {
        let mut lots = ChaCha8Rng::seed_from_u64(seed);
        lots.set_stream(1);
        Self(lots)
    }

    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.0.random_bool(probability.min(1.0))
    }

    /// From `low` to `high`, both included.
    pub(crate) fn within(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high.max(low))
    }

    pub(crate) fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count.max(1))
    }

    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(low, high))
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.0.random()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.random()
    }

    /// Mostly short, rarely as long as `most`.
    pub(crate) fn wait(&mut self, most: u64) -> Duration {
        let share: f64 = self.0.random();
        let millis = share * share * share * most as f64;
        Duration::from_millis(millis as u64 + 1)
    }

    /// For the next of what happens `per_minute` times a minute.
    pub(crate) fn until_next(&mut self, per_minute: f64) -> Duration {
        let share: f64 = self.0.random();
        Duration::from_secs_f64((-(1.0 - share).ln() * 60.0 / per_minute.max(1e-3)).min(3600.0))
    }
}

/// How often what goes wrong. What has no unit is the share of the operations that it strikes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// Per minute: a node loses its power, is paused, loses one actor by a panic.
    pub(crate) node_crash: f64,
    pub(crate) node_pause: f64,
    pub(crate) actor_crash: f64,
    /// Per minute: a connection is cut, or goes on taking bytes that arrive nowhere.
    pub(crate) cut: f64,
    pub(crate) hole: f64,
    /// Per minute: a neighbour is away, a core starts again, a terminal loses its power.
    pub(crate) postgres_away: f64,
    pub(crate) log_away: f64,
    pub(crate) core_restart: f64,
    pub(crate) terminal_crash: f64,
    /// Of a call to the database: it does not arrive; it is done and the answer does not arrive.
    pub(crate) call_lost: f64,
    pub(crate) answer_lost: f64,
    /// Of an append: as above; or it fails and is durable some time later.
    pub(crate) append_lost: f64,
    pub(crate) append_unheard: f64,
    pub(crate) append_late: f64,
    /// An offset is left out; bytes are appended that are no record.
    pub(crate) log_gap: f64,
    pub(crate) log_garbage: f64,
    pub(crate) hint_lost: f64,
    /// Of a message to a core: the HSM takes seconds, or fails.
    pub(crate) hsm_slow: f64,
    pub(crate) hsm_fault: f64,
    /// Of the messages that reach a core.
    pub(crate) core_deaf: f64,
    pub(crate) core_mute: f64,
    pub(crate) core_slow: f64,
    pub(crate) core_books_late: f64,
    pub(crate) core_twice: f64,
    pub(crate) core_declines: f64,
    pub(crate) core_unknown_code: f64,
    pub(crate) core_wrong_echo: f64,
    pub(crate) core_refuses_reversal: f64,
    pub(crate) core_refuses_sign_on: f64,
    /// Of what a terminal does.
    pub(crate) terminal_twice: f64,
    pub(crate) terminal_junk: f64,
    pub(crate) terminal_reuse: f64,
    pub(crate) terminal_wrong_pin: f64,
    pub(crate) terminal_dies_on_receipt: f64,
    pub(crate) terminal_leaves: f64,
    /// The longest way of a packet and of a call, in milliseconds.
    pub(crate) latency_ms: u64,
}

impl Weather {
    /// Nothing goes wrong; people still mistype their PINs and terminals still speak as they do.
    pub(crate) fn calm() -> Self {
        Self { latency_ms: 30, ..Self::default() }
    }

    /// A swarm: each fault is in this world or not, and if it is, at a rate of its own. Worlds with few kinds of faults
    /// go deeper into each than worlds that have them all.
    pub(crate) fn drawn(chance: &mut Chance) -> Self {
        let force = [0.3, 1.0, 1.0, 3.0][chance.index(4)];
        let kinds = [0.0, 0.15, 0.3, 0.5, 0.8][chance.index(5)];
        let mut rate = |most: f64| {
            let present = chance.happens(kinds);
            let share = chance.within(5, 100) as f64 / 100.0;
            if present { most * share * force } else { 0.0 }
        };
        Self {
            node_crash: rate(6.0),
            node_pause: rate(6.0),
            actor_crash: rate(20.0),
            cut: rate(40.0),
            hole: rate(6.0),
            postgres_away: rate(4.0),
            log_away: rate(4.0),
            core_restart: rate(4.0),
            terminal_crash: rate(10.0),
            call_lost: rate(0.1),
            answer_lost: rate(0.1),
            append_lost: rate(0.2),
            append_unheard: rate(0.2),
            append_late: rate(0.2),
            log_gap: rate(0.2),
            log_garbage: rate(0.02),
            hint_lost: rate(0.5),
            hsm_slow: rate(0.2),
            hsm_fault: rate(0.1),
            core_deaf: rate(0.2),
            core_mute: rate(0.2),
            core_slow: rate(0.4),
            core_books_late: rate(0.3),
            core_twice: rate(0.3),
            core_declines: rate(0.5),
            core_unknown_code: rate(0.2),
            core_wrong_echo: rate(0.2),
            core_refuses_reversal: rate(0.4),
            core_refuses_sign_on: rate(0.3),
            terminal_twice: rate(0.3),
            terminal_junk: rate(0.2),
            terminal_reuse: rate(0.3),
            terminal_wrong_pin: rate(0.3),
            terminal_dies_on_receipt: rate(0.3),
            terminal_leaves: rate(0.3),
            latency_ms: [10, 60, 400, 3000][chance.index(4)],
        }
    }
}
