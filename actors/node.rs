//! The root: starts the rooms inside-out, tells systemd, waits for its end, drains outside-in.
//!
//! Inside-out: cores, partitions, receipts, sessions, and the listener last, so that a terminal never finds half a node.
//! Outside-in: the listener first. What is under way needs no waiting for: it is in the log or in Postgres, and a node
//! that starts goes on from there. Draining only spares the terminals a surprise.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use futures_util::FutureExt as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use wakala::id::{CoreId, PartitionNo, TerminalId};

use crate::banks::{self, Banks};
use crate::config::Config;
use crate::edge::Edge;
use crate::intake::Admission;
use crate::partitions::{self, Owner, Partitions, Ping};
use crate::ports::{Clock, Hsm, Log};
use crate::receipts::{self, Receipts};
use crate::sessions::Sessions;
use crate::store::Store;
use crate::supervision::{self, EXIT_ESCALATED, Registry, Start, Stop, Supervisor, Tree};
use crate::{admin, listener, partition};

/// What `main.rs` has chosen for the ports.
pub struct Parts {
    pub store: Store,
    pub log: Arc<dyn Log>,
    pub hsm: Arc<dyn Hsm>,
    pub clock: Arc<dyn Clock>,
    /// Makes the way to a core.
    pub driver: banks::Driver,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("store", &self.store).finish_non_exhaustive()
    }
}
