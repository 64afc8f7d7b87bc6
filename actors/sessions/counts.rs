//! What whoever watches the node counts of its sessions.

use super::Sessions;
use super::admission::Admitted;

impl Sessions {
    /// CONNECTs that wait for their session, and what became of the others.
    #[must_use]
    pub fn admitted(&self) -> Admitted {
        self.0.admission.admitted()
    }
}
