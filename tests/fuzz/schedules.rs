//! Any bytes, as a schedule of one client's sessions: what they say is what a client and a database may expect.

#![no_main]
#![allow(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "../schedules/bytes.rs"]
mod bytes;
#[path = "../schedules/connection.rs"]
mod connection;
#[path = "../../actors/session/frames.rs"]
#[allow(dead_code, unreachable_pub, reason = "a connection uses more of it")]
mod frames;
#[path = "../schedules/play.rs"]
mod play;
#[path = "../schedules/tally.rs"]
mod tally;
#[path = "../schedules/watch.rs"]
mod watch;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    play::play(bytes);
});
