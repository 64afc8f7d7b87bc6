//! A village to try Wakala in, which is also what proves it: terminals, links and a bank core that are simulated, and an
//! auditor who compares what all of them remember.
//!
//! In the order of a run:

/// Who lives here, by seed.
pub mod cards;
/// What they want, by seed, and what each must be told.
pub mod plan;

/// How a node comes to know everybody.
pub mod enrol;
/// The node, to be killed and started.
pub mod node;
/// Where it listens.
pub mod ports;
/// The node's configuration for a run.
pub mod settings;

/// What a terminal remembers.
pub mod flash;
/// What it speaks.
pub mod mqtt;
/// What it does.
pub mod terminal;

/// Who books.
pub mod core;
/// What is broken on purpose, and when.
pub mod faults;
/// What lies between terminal and node, and between node and core.
pub mod link;

/// Who compares what all remember.
pub mod auditor;
/// What the database remembers.
pub mod records;

/// What a run must have left nowhere, and the search for it.
pub mod secrets;

/// What a person sees.
pub mod screen;
/// A run in one line.
pub mod summary;

/// All of it together.
pub mod world;

#[cfg(test)]
mod worked_example;
