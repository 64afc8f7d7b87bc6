//! Wakala's parts against their real neighbours.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

mod admission;
mod banks;
mod decisions;
mod ledger;
mod locks;
mod logs;
mod messages;
mod mqtt;
mod names;
mod partitions;
mod pins;
mod rows;
mod schema;
mod still;
