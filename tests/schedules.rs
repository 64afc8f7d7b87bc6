//! The session machine, whatever comes: bytes that nobody chose are a schedule of connections, frames, answers of the
//! database in any order, hints, messages, wake-ups and the clock; what the session says is held against what a client and
//! a database may expect (`tests/schedules/watch.rs`). `tests/fuzz` does the same guided by coverage.

#![allow(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "schedules/bytes.rs"]
mod bytes;
#[path = "schedules/connection.rs"]
mod connection;
#[path = "../actors/session/frames.rs"]
#[allow(dead_code, unreachable_pub, reason = "a connection uses more of it")]
mod frames;
#[path = "schedules/play.rs"]
mod play;
#[path = "schedules/tally.rs"]
mod tally;
#[path = "schedules/watch.rs"]
mod watch;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `WAKALA_FUZZ` says how many schedules.
#[test]
fn whatever_happens_a_session_keeps_its_word() {
    let times = std::env::var_os("WAKALA_FUZZ")
        .map_or(20_000, |times| times.to_str().and_then(|times| times.parse().ok()).expect("WAKALA_FUZZ is a number"));
    let mut all = tally::Tally::default();
    for seed in 0..times {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = vec![0; chance.random_range(0..400)];
        chance.fill(bytes.as_mut_slice());
        let played = std::panic::catch_unwind(|| play::play(&bytes));
        let tally = played.unwrap_or_else(|_| panic!("seed {seed}: {}", hex::encode(&bytes)));
        all.add(tally);
    }
    println!("{times} schedules: {all:?}");
    let of = |share: u64| times / share;
    assert!(all.events >= 10 * times && all.packets >= 2 * times && all.connections >= times, "{all:?}");
    assert!(all.answered >= of(5) && all.delivered >= of(5) && all.completed >= of(50), "{all:?}");
    assert!(all.stopped >= of(100) && all.refused >= of(400) && all.to_the_end >= of(10), "{all:?}");
}
