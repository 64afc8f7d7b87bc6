//! A terminal as it was enrolled: who it is for the edge, once its connection has proved it.

use std::sync::Arc;

use wakala::id::{AgentId, CoreId, TerminalId};

/// Who is connected.
#[derive(Clone, Debug)]
pub enum Who {
    Terminal(Arc<Enrolled>),
    /// Anybody, at a general broker. Its session is stored if it outlives the connection or has a will.
    Guest {
        stored: bool,
    },
}

/// One row of `wakala.terminal`, without what only its authentication needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    pub terminal: TerminalId,
    pub agent: AgentId,
    pub core: CoreId,
    /// Made by the sandbox: refused by a node that is not in sandbox mode.
    pub sandbox: bool,
    pub blocked: bool,
}
