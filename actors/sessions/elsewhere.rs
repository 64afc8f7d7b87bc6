//! Ends all connections of a node that stops, and says where else MQTT 5 clients may go.

use std::sync::PoisonError;

use wakala::session::Elsewhere;

use super::Sessions;
use crate::session::Leave;

/// Why a connection ends with its node.
pub(crate) const STOPPING: &str = "the node is stopping";

impl Sessions {
    /// Ends all connections. MQTT 5 clients hear that the node is stopping, and which other servers there are.
    pub(crate) fn send_elsewhere(&self, elsewhere: &Elsewhere) {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        for each in connected.values() {
            // A session that does not hear it is ended with its worker.
            let _ = each.addr.try_send(Leave(elsewhere.clone(), STOPPING));
        }
    }
}
