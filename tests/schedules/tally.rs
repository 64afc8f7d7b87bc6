//! How much of everything a schedule had in it.

/// What happened, so that a test can see that it does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) events: u64,
    pub(crate) packets: u64,
    pub(crate) connections: u64,
    pub(crate) answered: u64,
    pub(crate) delivered: u64,
    pub(crate) completed: u64,
    pub(crate) refused: u64,
    pub(crate) stopped: u64,
    pub(crate) to_the_end: u64,
}

impl Tally {
    #[allow(dead_code, reason = "the fuzz target does not count")]
    pub(crate) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.packets += other.packets;
        self.connections += other.connections;
        self.answered += other.answered;
        self.delivered += other.delivered;
        self.completed += other.completed;
        self.refused += other.refused;
        self.stopped += other.stopped;
        self.to_the_end += other.to_the_end;
    }
}
