//! Writes the bytes of every case of the tables as a file in the folder that is named: where the fuzzing begins.

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
use std::path::PathBuf;

/// Longer ones are their beginning many times over.
const BYTES_MAX: usize = 1024;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("the folder for the seeds"));
    std::fs::create_dir_all(&folder)?;
    let cases = tables::tables().into_iter().chain(families::all());
    let seeds: BTreeSet<Vec<u8>> = cases
        .filter(|case| case.bytes.len() <= BYTES_MAX)
        .map(|case| [&[u8::from(case.version() == 5)], case.bytes.as_slice()].concat())
        .collect();
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("{number:05}")), seed)?;
    }
    println!("{} seeds in {}", seeds.len(), folder.display());
    Ok(())
}
