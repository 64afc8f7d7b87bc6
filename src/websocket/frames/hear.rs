//! What a connection says, however its bytes are cut. The fuzzer uses it too (`tests/fuzz/websocket.rs`).

use super::{Frames, What};

/// What a connection has said in the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) bytes: Vec<u8>,
    pub(crate) pings: Vec<Vec<u8>>,
    pub(crate) end: Option<u16>,
}

/// Reads bytes that come `step` at a time.
pub(crate) fn hear(sent: &[u8], step: usize) -> Heard {
    let (mut frames, mut heard, mut unread) = (Frames::default(), Heard::default(), Vec::new());
    for some in sent.chunks(step.max(1)) {
        unread.extend_from_slice(some);
        while let Some(piece) = frames.read(&mut unread) {
            match piece.what {
                What::Bytes(range) => heard.bytes.extend_from_slice(&unread[range]),
                What::Ping(range) => heard.pings.push(unread[range].to_vec()),
                What::Nothing => {}
                What::End(code) => {
                    heard.end = Some(code.0);
                    return heard;
                }
            }
            assert!(piece.bytes > 0, "nothing was read, for ever");
            unread.drain(..piece.bytes);
        }
        assert!(unread.len() <= 14 + 125, "nothing but a head or a control frame is waited for: {}", unread.len());
    }
    heard
}
