//! Death, by seed: the node is killed, its actors are made to panic, links are cut and terminals lose their power, spread
//! over the run by how many transactions are done, so that a slow machine sees as many as a fast one.

use std::time::Duration;

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;

/// What is done to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and started again after so long.
    KillNode(Duration),
    Panic(&'static str),
    CutCore,
    CutTerminals,
    /// So many terminals, in parts of a hundred.
    PowerLoss(u32),
}

/// How often each is done in one run.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub kills: usize,
    pub panics: usize,
    pub core_cuts: usize,
    pub terminal_cuts: usize,
    pub power_losses: usize,
}

/// What `--faults death` means: at least ten kills and twenty panics.
pub const DEATH: Amount = Amount { kills: 12, panics: 30, core_cuts: 15, terminal_cuts: 10, power_losses: 10 };

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub kills: usize,
    pub panics: usize,
    pub core_cuts: usize,
    pub terminal_cuts: usize,
    pub power_losses: usize,
    /// The node ended by itself and was started again.
    pub escalations: usize,
}

/// Faults in the order in which they come, each with the number of finished transactions at which it comes.
#[must_use]
pub fn schedule(amount: Amount, transactions: usize, seed: u64) -> Vec<(usize, Fault)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::MAX);
    let mut faults = Vec::new();
    for _ in 0..amount.kills {
        faults.push(Fault::KillNode(Duration::from_millis(random.random_range(0..800))));
    }
    // Each kind of actor in turn, so that each has its share.
    faults.extend(["session", "partition", "bank"].into_iter().cycle().take(amount.panics).map(Fault::Panic));
    faults.extend(std::iter::repeat_n(Fault::CutCore, amount.core_cuts));
    faults.extend(std::iter::repeat_n(Fault::CutTerminals, amount.terminal_cuts));
    for _ in 0..amount.power_losses {
        faults.push(Fault::PowerLoss(random.random_range(5..50)));
    }
    faults.shuffle(&mut random);
    // Not in the last tenth: what is started must also be seen to come back while there is work.
    let within = (transactions * 9 / 10).max(1);
    let mut at: Vec<usize> = faults.iter().map(|_| random.random_range(0..within)).collect();
    at.sort_unstable();
    at.into_iter().zip(faults).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_follows_from_its_seed_and_has_all_that_is_asked() {
        let faults = schedule(DEATH, 2_000, 9);
        assert_eq!(faults, schedule(DEATH, 2_000, 9));
        assert_ne!(faults, schedule(DEATH, 2_000, 10));
        assert!(faults.is_sorted_by_key(|&(at, _)| at));
        assert!(faults.iter().all(|&(at, _)| at < 1_800));
        let kills = faults.iter().filter(|(_, fault)| matches!(fault, Fault::KillNode(_))).count();
        let panics = |actor| faults.iter().filter(|(_, fault)| *fault == Fault::Panic(actor)).count();
        assert_eq!((kills, panics("session"), panics("partition"), panics("bank")), (12, 10, 10, 10));
    }
}
