//! Word for sessions that something is queued for them.

use std::sync::PoisonError;

use actix::prelude::*;
use ntex_bytes::Bytes;
use wakala::id::{ClientId, TerminalId};
use wakala::session::What;

use super::Sessions;
use crate::session::Hint;
use crate::store::words::Word;

impl Sessions {
    /// A receipt was queued for a terminal at this place. From any thread; lossy, and nothing if it is not connected
    /// here. With the bytes, and if nothing else waits before it, the database is not read.
    pub fn hint(&self, terminal: &TerminalId, seq: i64, envelope: Option<Vec<u8>>) {
        let client = terminal.into();
        match self.addr(&client) {
            Some(addr) => {
                // A full mailbox: the sweeper looks again.
                let what = envelope.map(|envelope| What::Receipt(Bytes::from(envelope)));
                let _ = addr.try_send(Hint(Some((seq, what))));
            }
            None => self.0.neighbours.tell(|| Word::Queued(client)),
        }
    }

    /// Something may be queued for a terminal. From any thread; lossy. False when it is not connected here.
    #[expect(clippy::must_use_candidate, reason = "who wakes need not know")]
    pub fn wake(&self, terminal: &str) -> bool {
        let addr = ClientId::new(terminal).ok().and_then(|terminal| self.addr(&terminal));
        // A full mailbox: the sweeper looks again.
        addr.is_some_and(|addr| !matches!(addr.try_send(Hint(None)), Err(SendError::Closed(_))))
    }

    /// Something may be queued for anybody.
    pub(crate) fn wake_all(&self) {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        for each in connected.values() {
            // A full mailbox: what is in it makes the session look.
            let _ = each.addr.try_send(Hint(None));
        }
    }
}
