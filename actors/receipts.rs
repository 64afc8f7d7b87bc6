//! Receipts that wait: the sweeper that wakes sessions again.
//!
//! The stored receipt row is the queue. A session that connects reads what is undelivered, and the partition hints when
//! it commits; a hint may be lost (another node, a full mailbox). So every so often the rows that have waited for a while
//! are hinted again.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ports::Clock;
use crate::store::Store;
use crate::supervision::{Link, Stop};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How often receipts that wait are looked for.
    #[serde(with = "humantime_serde")]
    pub sweep: Duration,
    /// How long a receipt must have waited.
    #[serde(with = "humantime_serde")]
    pub waited: Duration,
    /// Terminals woken by one sweep, at most.
    pub batch_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { sweep: Duration::from_secs(2), waited: Duration::from_secs(2), batch_max: 1000 }
    }
}

/// What the sweeper is given.
pub struct Deps {
    pub options: Options,
    /// This node's name: sessions elsewhere are woken there.
    pub node: String,
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    /// Wakes the session of a terminal, if it is here. Lossy.
    pub wake: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The sweeper.
#[derive(Debug)]
pub struct Receipts {
    deps: Arc<Deps>,
    /// Held for its end: the supervisor hears of it.
    _link: Link,
}

impl Receipts {
    #[must_use]
    pub fn start(deps: Arc<Deps>, link: Link) -> Addr<Self> {
        Actor::start(Self { deps, _link: link })
    }

    fn sweep(&mut self, ctx: &mut Context<Self>) {
        let deps = Arc::clone(&self.deps);
        let swept = async move {
            let before = deps.clock.now();
            deps.store.terminals_waiting(&deps.node, before, deps.options.waited, deps.options.batch_max).await
        };
        ctx.spawn(swept.into_actor(self).map(|terminals, this, ctx| {
            match terminals {
                Ok(terminals) => terminals.iter().for_each(|terminal| (this.deps.wake)(terminal.as_str())),
                Err(error) => tracing::warn!(%error, "could not look for receipts that wait"),
            }
            ctx.run_later(this.deps.options.sweep, Self::sweep);
        }));
    }
}

impl Actor for Receipts {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.sweep(ctx);
    }
}

impl Handler<Stop> for Receipts {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
