//! Trying again while the database, or the log, is away.

use std::future::Future;
use std::time::Duration;

use super::Error;

/// The wait before the next try: 100 ms at first, then twice as long each time, 5 s at most.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self(MIN)
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(MAX);
    }
}

/// Tries until the database answers.
///
/// # Errors
/// What it answered.
pub(crate) async fn insist<T, F: Future<Output = Result<T, Error>>>(work: impl Fn() -> F) -> Result<T, Error> {
    let mut backoff = Backoff::new();
    loop {
        match work().await {
            Err(Error::Away(_)) => backoff.wait().await,
            answer => return answer,
        }
    }
}
