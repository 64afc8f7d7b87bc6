//! How much a session holds: all of it is bounded, and whoever wants to see that looks here.

use super::Session;

/// Entries of a session's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Publishes of the client's that wait for an answer, or for the one before them.
    pub arrived: usize,
    /// Identifiers of its publishes that are not complete.
    pub incomplete: usize,
    /// SUBSCRIBE and UNSUBSCRIBE that wait for the database.
    pub changes: usize,
    pub subscriptions: usize,
    /// Rows of the client's queue, in flight or next.
    pub rows: usize,
    /// Messages for it that are not stored, in flight or next.
    pub direct: usize,
    /// Topics that have an alias, in both directions.
    pub aliases: usize,
}

impl Session {
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let (arrived, incomplete, heard) = self.incoming.as_ref().map_or((0, 0, 0), |incoming| incoming.sizes());
        let (rows, direct, told) = self.outgoing.sizes();
        Sizes {
            arrived,
            incomplete,
            changes: self.changes(),
            subscriptions: self.subscriptions.len(),
            rows,
            direct,
            aliases: told + heard,
        }
    }
}
