//! What the system tests stand on: private clusters, a database for each test, a partition's desk.
//!
//! Clusters are started once per run by the scripts that a person would use, in temporary directories. Each has a
//! watcher, a shell that waits for this process to end and then stops the cluster; it does so after a panic or a kill -9
//! as well.

#![allow(clippy::expect_used, reason = "what a test stands on fails by panicking")]

mod clusters;
mod desk;

pub use clusters::{Database, Kafka, Still, kafka, script};
pub use desk::{Desk, agent, core, deposit, now, record, terminal, withdrawal};
