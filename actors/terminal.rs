//! A terminal as it was enrolled: who it is for the edge, once its connection has proved it.

use wakala::id::{AgentId, CoreId, TerminalId};

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
