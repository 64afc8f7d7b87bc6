//! From a PUBLISH to a record that is durable: the edge admits, the log keeps.

use std::sync::Arc;

use ntex_bytes::Bytes;
use wakala::id::PartitionNo;

use crate::edge::Edge;
use crate::ports::{Log, Wait};
use crate::sessions::{Away, Intake};
use crate::terminal::Enrolled;

/// The edge and the log, as a session sees them.
pub struct Admission {
    pub edge: Arc<Edge>,
    pub log: Arc<dyn Log>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

impl Intake for Admission {
    fn take(&self, terminal: &Enrolled, payload: Bytes) -> Wait<'static, Result<(), Away>> {
        let (edge, log, terminal) = (Arc::clone(&self.edge), Arc::clone(&self.log), terminal.clone());
        Box::pin(async move {
            let record = edge.admit(&terminal, &payload).await.map_err(|error| Away(error.to_string()))?;
            let partition = PartitionNo::of(&terminal.terminal, log.partitions());
            let appended = log.append(partition, &terminal.terminal, record.encode()).await;
            appended.map(drop).map_err(|error| Away(error.to_string()))
        })
    }
}
