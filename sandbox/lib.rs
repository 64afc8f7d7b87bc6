//! A village to try Wakala in, which is also what proves it: terminals, links and a bank core that are simulated, and an
//! auditor who compares what all of them remember.
//!
//! In the order of a run:

/// Who lives here, by seed.
pub mod cards;
/// What they want, by seed, and what each must be told.
pub mod plan;

/// What a terminal remembers.
pub mod flash;
/// What it speaks.
pub mod mqtt;
/// What it does.
pub mod terminal;

/// Who books.
pub mod core;
/// What lies between terminal and node, and between node and core.
pub mod link;

#[cfg(test)]
mod worked_example;
