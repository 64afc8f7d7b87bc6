//! The node's clock: monotonic, anchored to the calendar when the node starts.
//!
//! A calendar that jumps (a battery ran out, NTP stepped) moves no deadline and reorders nothing while the node runs.

use std::time::{Duration, Instant, SystemTime};

use wakala::time::Time;

use crate::ports::Clock;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    started: Instant,
    anchor: Time,
}

impl MonotonicClock {
    #[must_use]
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let millis = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
        Self { started: Instant::now(), anchor: Time::from_millis(millis) }
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        self.anchor + self.started.elapsed()
    }
}
