//! Wakala commits and acts here: actors, the adapters behind their ports, and the store.
//!
//! ```text
//! Node ─┬─ Banks ────── one Bank per core                    (src/bank is its twin)
//!       ├─ Partitions ─ one Partition per partition held     (src/partition)
//!       ├─ Receipts ─── the sweeper
//!       ├─ Sessions ─── one Session per connected terminal   (src/session)
//!       └─ Listener     last up, first down
//! ```
//!
//! A child that dies is started again by its parent with its state loaded from Postgres; a parent whose children die too
//! often ends the process, and systemd starts it again ([`supervision`]).

pub mod config;
pub mod node;
pub mod supervision;

pub mod listener;
pub mod presence;
pub mod router;
pub mod session;
pub mod sessions;
pub mod tap;
pub mod telling;
mod turns;

pub mod edge;
pub mod intake;
pub mod terminal;

pub mod partition;
pub mod partitions;

pub mod bank;
pub mod banks;

pub mod receipts;

pub mod adapters;
pub mod clock;
pub mod metrics;
pub mod neighbours;
pub mod ports;
pub mod store;
mod watched;

pub mod admin;
pub mod cli;
