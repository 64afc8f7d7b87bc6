//! Any bytes, as the frames of a WebSocket and as the request that opens one: what they are does not depend on how they were cut
//! under way. The first byte says how.

#![no_main]

use wakala::websocket::frames::{Frames, What};
use wakala::websocket::upgrade::{self, Terms};

#[path = "../../src/websocket/frames/hear.rs"]
mod hear;

use hear::hear;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&step, bytes)) = bytes.split_first() else { return };
    assert_eq!(hear(bytes, usize::from(step)), hear(bytes, bytes.len()));
    let terms = Terms { path: "/mqtt".to_owned(), origins: vec!["https://portal.example".to_owned()] };
    if let Err(refusal) = upgrade::accept(bytes, &terms) {
        assert!(refusal.answer().starts_with("HTTP/1.1 "), "whoever is refused is told");
    }
});
