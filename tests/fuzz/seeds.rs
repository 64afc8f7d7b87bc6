//! Writes the bytes of every case of the tables as files in folders of the one that is named, where the fuzzing begins:
//! `frames`, `schedules` in which a client that is in the middle of something sends them, and `websocket` for the layer below.

#![allow(dead_code, reason = "the cases' verdicts are not asked for here")]
#![allow(clippy::expect_used, reason = "a test: what does not hold is to be seen")]

#[path = "../packets/case.rs"]
mod case;
#[path = "../packets/families/mod.rs"]
mod families;
#[path = "../../actors/session/frames.rs"]
#[allow(unreachable_pub, reason = "a connection uses more of it")]
mod frames;
#[path = "../packets/notation.rs"]
mod notation;
#[path = "../packets/render.rs"]
mod render;
#[path = "../packets/seen.rs"]
mod seen;
#[path = "../packets/standard.rs"]
mod standard;
#[path = "../packets/tables.rs"]
mod tables;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Longer ones are their beginning many times over.
const BYTES_MAX: usize = 1024;

/// Of the cases so many are enough for schedules, whose frames are the other target's affair.
const EVERY: usize = 16;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("the folder for the seeds"));
    let cases = tables::tables().into_iter().chain(families::all());
    let (mut frames, mut schedules) = (BTreeSet::new(), BTreeSet::new());
    for (number, case) in cases.filter(|case| case.bytes.len() <= BYTES_MAX).enumerate() {
        let five = u8::from(case.version() == 5);
        frames.insert([&[five], case.bytes.as_slice()].concat());
        if number.is_multiple_of(EVERY) {
            schedules.extend(schedule(five, &case.bytes));
        }
    }
    write(&folder.join("frames"), &frames)?;
    write(&folder.join("schedules"), &schedules)?;
    write(&folder.join("websocket"), &websocket())
}

/// The bytes as they come first, and as they come after other packets (`tests/schedules/play.rs` says how it is read).
fn schedule(five: u8, bytes: &[u8]) -> Vec<Vec<u8>> {
    let Ok(length) = u8::try_from(bytes.len()) else { return Vec::new() };
    let raw = [&[length], bytes].concat();
    let (open, kept, step_raw) = (1, five | 0x20, 0);
    // Subscribes to `t`, publishes, is sent two messages and acknowledges one; the database answers in between.
    let before = [27, 0, 0, 8 + 2, 36, 6, 2, 54, 1 | 4, 9, 54, 2 | 8, 9, 14, 29, 0, 45, 48, 2 | 8, 5, 45];
    let after = [22, 39, 42, 0, 14, 14];
    vec![
        [&[open, 0xC0], raw.as_slice(), &before, &after].concat(),
        [&[open, kept, 0], before.as_slice(), &[step_raw], &raw, &after].concat(),
    ]
}

/// A message in two frames with a ping between them, a longer one, a close, and a request.
fn websocket() -> BTreeSet<Vec<u8>> {
    let frame = |first: u8, payload: &[u8]| {
        let short = u8::try_from(payload.len()).ok().filter(|short| *short <= 125);
        let long = u16::try_from(payload.len()).expect("short").to_be_bytes();
        let length = short.map_or_else(|| vec![0x80 | 126, long[0], long[1]], |short| vec![0x80 | short]);
        // A mask of zeros: as it is.
        [&[first], &*length, &[0; 4], payload].concat()
    };
    let parts = [frame(0x02, &[0xC0]), frame(0x89, b"here?"), frame(0x80, &[0]), frame(0x88, &[3, 0xE8])].concat();
    let request = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\
        Origin: https://portal.example\r\n\r\n";
    let all = [parts, frame(0x82, &[0x30; 300]), request.to_vec()];
    all.iter().flat_map(|bytes| [1, 7, 255].map(|step| [&[step], &**bytes].concat())).collect()
}

fn write(folder: &Path, seeds: &BTreeSet<Vec<u8>>) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("{number:05}")), seed)?;
    }
    println!("{} seeds in {}", seeds.len(), folder.display());
    Ok(())
}
