//! What is not counted but is so: asked of the database when somebody looks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{Copies, Metrics, Taken};
use crate::store::figures::PartitionFigures;
use crate::store::tally::{Receipts, Tally};
use crate::store::{Error, Store};

/// What the database said.
#[derive(Debug, Default)]
pub struct Figures {
    pub tally: Tally,
    pub partitions: Vec<PartitionFigures>,
}

/// What came of a look.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// The database answers. Where there is much to count it may, and have no figures in time.
    pub up: bool,
    pub figures: Option<Arc<Figures>>,
}

/// Whoever looks waits no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the database, once at a time however many look.
#[derive(Debug)]
pub struct Looks {
    store: Store,
    asking: AtomicBool,
    last: Mutex<Looked>,
}

impl Looks {
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, asking: AtomicBool::new(false), last: Mutex::default() }
    }

    /// What it says now; what it said last where another is asking it.
    pub async fn look(&self) -> Looked {
        if self.asking.swap(true, Ordering::AcqRel) {
            return self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        let asking = Asking(&self.asking);
        let say = |error: Error| tracing::debug!(%error, "there are no figures of the database");
        let (there, figures) = tokio::join!(
            tokio::time::timeout(PATIENCE, self.store.is_there()),
            tokio::time::timeout(PATIENCE, self.ask()),
        );
        let figures = figures.ok().and_then(|figures| figures.map_err(say).ok()).map(Arc::new);
        let said = Looked { up: matches!(there, Ok(Ok(()))), figures };
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&said);
        drop(asking);
        said
    }

    async fn ask(&self) -> Result<Figures, Error> {
        Ok(Figures { tally: self.store.tally().await?, partitions: self.store.partition_figures().await? })
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }
}

/// Whoever looks may stop waiting.
struct Asking<'a>(&'a AtomicBool);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The law of conservation, for `wakala status`.
#[derive(Clone, Debug, Serialize)]
pub struct Conservation {
    /// Copies that are not stored, since the node started.
    pub direct: Copies,
    /// Copies that are rows, or were, of all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<Copies>,
    pub requests: Taken,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipts: Option<Receipts>,
}

impl Conservation {
    /// `arriving` copies have been handed to sessions and not been taken.
    #[must_use]
    pub fn of(metrics: &Metrics, figures: Option<&Figures>, arriving: usize) -> Self {
        Self {
            direct: metrics.direct.copies(arriving),
            stored: figures.map(|figures| copies(&figures.tally)),
            requests: metrics.requests.taken(),
            receipts: figures.map(|figures| figures.tally.receipts),
        }
    }
}

fn copies(tally: &Tally) -> Copies {
    Copies::new(|fate| tally.ends.of(fate), tally.waiting, || tally.addressed)
}

/// Sums the counts in the database up, again and again, until nobody holds the looks any more.
pub fn sum_up_every(looks: &Arc<Looks>, every: Duration) {
    let weak = Arc::downgrade(looks);
    looks.store().handle().spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let Some(looks) = weak.upgrade() else { break };
            if let Err(error) = looks.store().sum_up().await {
                tracing::debug!(%error, "the counts are summed up later");
            }
        }
    });
}
