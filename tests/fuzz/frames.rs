//! Any bytes, as the frames of a client: refused, or a packet that reads the same when it is written again.
//! The first byte chooses the version.

#![no_main]
#![allow(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "../../actors/session/frames.rs"]
#[allow(dead_code, unreachable_pub, reason = "a connection uses more of it")]
mod frames;
#[path = "../packets/stranger.rs"]
mod stranger;

use wakala::session::Version;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((first, bytes)) = bytes.split_first() {
        stranger::is_packet(if first & 1 == 0 { Version::V3 } else { Version::V5 }, bytes);
    }
});
