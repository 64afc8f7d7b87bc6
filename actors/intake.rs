//! From a PUBLISH to a record that is durable: the edge admits, the log keeps.

use std::sync::Arc;
use std::time::Instant;

use ntex_bytes::Bytes;
use wakala::id::PartitionNo;
use wakala::record::Body;

use crate::edge::Edge;
use crate::metrics::Metrics;
use crate::ports::{Log, Wait};
use crate::sessions::{Away, Intake};
use crate::terminal::Enrolled;

/// The edge and the log, as a session sees them.
pub struct Admission {
    pub edge: Arc<Edge>,
    pub log: Arc<dyn Log>,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl Intake for Admission {
    fn take(&self, terminal: &Enrolled, payload: Bytes) -> Wait<'static, Result<(), Away>> {
        let (edge, log, terminal) = (Arc::clone(&self.edge), Arc::clone(&self.log), terminal.clone());
        let mut arrival = Arrival::new(&self.metrics);
        Box::pin(async move {
            let record = edge.admit(&terminal, &payload).await.map_err(|error| Away(error.to_string()))?;
            let partition = PartitionNo::of(&terminal.terminal, log.partitions());
            let appended = log.append(partition, &terminal.terminal, record.encode()).await;
            appended.map_err(|error| Away(error.to_string()))?;
            arrival.becomes(if matches!(record.body, Body::Refused(_)) { End::Refused } else { End::Admitted });
            Ok(())
        })
    }
}

/// A request on its way, counted when it arrived and when this is dropped.
struct Arrival {
    metrics: Arc<Metrics>,
    began: Instant,
    end: End,
}

enum End {
    Withheld,
    Refused,
    Admitted,
}

impl Arrival {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.requests.arrived.one();
        metrics.requests.under_way.change(1);
        Self { metrics: Arc::clone(metrics), began: Instant::now(), end: End::Withheld }
    }

    fn becomes(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let Metrics { requests, durable_requests, .. } = &*self.metrics;
        match self.end {
            End::Withheld => requests.withheld.one(),
            End::Refused => requests.refused.one(),
            End::Admitted => requests.admitted.one(),
        }
        requests.under_way.change(-1);
        if !matches!(self.end, End::Withheld) {
            durable_requests.0.took(self.began.elapsed());
        }
    }
}
