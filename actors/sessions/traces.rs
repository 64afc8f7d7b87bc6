//! The traces of clients that this node carries out. A trace is a row, so any node may be told of one: each looks again and again
//! which there are, and stores what their clients send and are sent here. A node that died takes them up again in its next life.

use std::collections::BTreeMap;

use tokio::sync::Mutex;
use wakala::time::Time;

use super::{Deps, Inner, Sessions};
use crate::store::Error;
use crate::store::Store;
use crate::tap::Options;
use crate::tap::kept::{Keeping, Writing};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Traces {
    /// Locked while it is looked: a trace is not taken up twice.
    kept: Mutex<BTreeMap<i64, Keeping>>,
    writing: Writing,
}

impl Traces {
    pub(super) fn new(options: &Options, store: &Store, node: &str) -> Self {
        Self { kept: Mutex::default(), writing: Writing::new(store.trace_rows(node), options.waiting_max) }
    }
}

impl Sessions {
    /// Looks at once which traces there are; gives how many are carried out here.
    ///
    /// # Errors
    /// When the database cannot be asked. What is carried out goes on.
    pub async fn look_for_traces(&self) -> Result<usize, Error> {
        let mut kept = self.0.traces.kept.lock().await;
        let open = self.store().open_traces(self.clock().now()).await?;
        kept.retain(|trace, keeping| {
            keeping.own_up();
            open.iter().any(|open| open.trace == *trace)
        });
        let new: Vec<i64> = open.iter().map(|open| open.trace).filter(|trace| !kept.contains_key(trace)).collect();
        if new.is_empty() {
            return Ok(kept.len());
        }
        for (trace, look) in self.store().look_at_traces(new).await? {
            let Some(open) = open.iter().find(|open| open.trace == trace) else { continue };
            let whose = self.whose(&open.client).await;
            match self.taps().keep(open, look, whose, &self.0.traces.writing) {
                Ok(keeping) => {
                    tracing::info!(trace, client = %keeping.client(), "a trace is carried out");
                    kept.insert(trace, keeping);
                }
                Err(error) => tracing::warn!(trace, %error, "a trace is not carried out; it is tried again"),
            }
        }
        Ok(kept.len())
    }

    /// Looks now and again and again.
    pub(super) async fn look_again_for_traces(&self) {
        if let Err(error) = self.look_for_traces().await {
            tracing::warn!(%error, "no trace is carried out until the database can be asked");
        }
        let (sessions, every) = (std::sync::Arc::downgrade(&self.0), self.0.deps.tap.traces_every);
        self.store().handle().spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(sessions) = sessions.upgrade().map(Self) else { break };
                // While the database is away others say so.
                if let Err(error) = sessions.look_for_traces().await {
                    tracing::debug!(%error, "could not look for traces");
                }
            }
        });
    }

    /// Done when all that traces were shown is stored.
    pub async fn all_traced(&self) {
        for keeping in self.0.traces.kept.lock().await.values() {
            keeping.own_up();
        }
        self.0.traces.writing.stored().await;
    }
}

impl Inner {
    /// Forgets traces that ended long ago, and the oldest where there are too many.
    pub(super) async fn forget_traces(&self, now: Time) {
        let Deps { store, tap, options, .. } = &self.deps;
        let until = now - tap.keep;
        loop {
            match store.forget_traces(until, tap.rows_max, options.expire_batch_max).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => break tracing::warn!(%error, "old traces are kept for now"),
            }
        }
    }
}
