//! A node that is to be stopped, or has more than its share, sends its clients to others: a few in each second, so that those
//! are not overrun. Whoever has nothing waiting here goes first; a terminal with a transaction in flight may wait for its
//! receipt. Their sessions go on there, for they are rows.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use wakala::admission::Claim;
use wakala::id::ClientId;
use wakala::session::Elsewhere;

use super::Sessions;
use crate::session::Leave;

/// How clients are sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuate {
    /// Clients that are sent away within a second, at most.
    pub per_second: u32,
    /// How many stay. With 0 nobody is let in any more, until it is called off or the node is started again.
    pub down_to: usize,
    /// How long a client with a transaction in flight may wait for its receipt, in seconds.
    pub wait_s: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Evacuation {
    #[serde(flatten)]
    pub wanted: Evacuate,
    /// Clients that were told to go.
    pub sent: u64,
    /// Clients whose transaction is waited for.
    pub waited_for: usize,
    pub done: bool,
}

#[derive(Debug)]
struct Running {
    wanted: Evacuate,
    sent: AtomicU64,
    waited_for: AtomicUsize,
    done: AtomicBool,
}

/// The one that is under way, if any.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Option<Arc<Running>>>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Running>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many may be here meanwhile.
    fn most(&self) -> usize {
        self.lock().as_ref().map_or(usize::MAX, |running| running.wanted.down_to)
    }

    fn is(&self, running: &Arc<Running>) -> bool {
        self.lock().as_ref().is_some_and(|now| Arc::ptr_eq(now, running))
    }
}

const WHY: &str = "the node sends its clients elsewhere";
const SECOND: Duration = Duration::from_secs(1);
/// Parts of a second: what goes at once comes at once elsewhere.
const PARTS: u32 = 10;

impl Sessions {
    /// Whether one more may connect; a terminal that is connected already takes nobody's place.
    pub(crate) fn has_room_for(&self, terminal: &ClientId, connections_max: usize) -> bool {
        let most = connections_max.min(self.0.evacuation.most());
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        connected.len() + self.0.admission.len() < most || connected.contains_key(terminal)
    }

    /// Begins to send clients to these other servers, in the place of what was under way before.
    pub fn evacuate(&self, wanted: Evacuate, elsewhere: Elsewhere) {
        let wanted = Evacuate { per_second: wanted.per_second.max(1), ..wanted };
        let (sent, waited_for, done) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let running = Arc::new(Running { wanted, sent, waited_for, done });
        *self.0.evacuation.lock() = Some(Arc::clone(&running));
        let sessions = Arc::downgrade(&self.0);
        self.store().handle().spawn(async move {
            let mut patience = Patience { of: Duration::from_secs(wanted.wait_s), since: None };
            while let Some(sessions) =
                sessions.upgrade().map(Self).filter(|sessions| sessions.0.evacuation.is(&running))
            {
                let next = Instant::now() + SECOND;
                if sessions.send_some(&running, &elsewhere, &mut patience).await {
                    break;
                }
                drop(sessions);
                tokio::time::sleep_until(next).await;
            }
        });
    }

    /// How far it is with it, if clients are being sent elsewhere.
    #[must_use]
    pub fn evacuation(&self) -> Option<Evacuation> {
        self.0.evacuation.lock().as_deref().map(|running| Evacuation {
            wanted: running.wanted,
            sent: running.sent.load(Ordering::Relaxed),
            waited_for: running.waited_for.load(Ordering::Relaxed),
            done: running.done.load(Ordering::Relaxed),
        })
    }

    /// Ends it. False when there was nothing to end.
    pub fn stay(&self) -> bool {
        self.0.evacuation.lock().take().is_some()
    }

    /// What goes in one second. True when that was all, and the door is to be open again.
    async fn send_some(&self, running: &Running, elsewhere: &Elsewhere, patience: &mut Patience) -> bool {
        let here = self.clients();
        let too_many = here.len().saturating_sub(running.wanted.down_to);
        running.done.store(too_many == 0, Ordering::Relaxed);
        if too_many == 0 {
            running.waited_for.store(0, Ordering::Relaxed);
            let over = running.wanted.down_to > 0;
            if over {
                tracing::info!(sent = running.sent.load(Ordering::Relaxed), "clients were sent elsewhere");
                self.stay();
            }
            return over;
        }
        let claims = match self.store().claims(here.clone()).await {
            Ok(claims) => claims,
            Err(error) => {
                tracing::warn!(%error, "who may go elsewhere cannot be asked; nobody is sent for now");
                return false;
            }
        };
        let (mut go, busy) = parted(here, claims);
        go.truncate(too_many);
        let missing = too_many - go.len();
        let waited_for = busy.len().min(missing);
        if patience.is_over(go.is_empty(), Instant::now()) {
            go.extend(busy.into_iter().take(missing));
            running.waited_for.store(0, Ordering::Relaxed);
        } else {
            running.waited_for.store(waited_for, Ordering::Relaxed);
        }
        self.send(go, running, elsewhere).await;
        false
    }

    async fn send(&self, mut go: Vec<ClientId>, running: &Running, elsewhere: &Elsewhere) {
        let per_second = running.wanted.per_second;
        go.truncate(usize::try_from(per_second).unwrap_or(usize::MAX));
        let part = usize::try_from(per_second.div_ceil(PARTS)).unwrap_or(usize::MAX);
        for part in go.chunks(part) {
            for client in part {
                let leave = Leave(elsewhere.clone(), WHY);
                // One whose mailbox is full hears it in the next second.
                if self.addr(client).is_some_and(|addr| addr.try_send(leave).is_ok()) {
                    running.sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            tokio::time::sleep(SECOND / PARTS).await;
        }
    }

    fn clients(&self) -> Vec<ClientId> {
        let connected = self.0.connected.read().unwrap_or_else(PoisonError::into_inner);
        connected.keys().cloned().collect()
    }
}

/// Those who may go, who has least to lose first; and those whose transaction is waited for.
fn parted(here: Vec<ClientId>, claims: Vec<Claim>) -> (Vec<ClientId>, Vec<ClientId>) {
    let mut each: Vec<(Claim, ClientId)> = claims.into_iter().zip(here).collect();
    // Who comes first when all come at once goes last.
    each.sort_by_key(|(claim, _)| std::cmp::Reverse(*claim));
    let busy_from = each.partition_point(|(claim, _)| *claim > Claim::Transaction);
    let busy = each.split_off(busy_from);
    let named = |each: Vec<(Claim, ClientId)>| each.into_iter().map(|(_, client)| client).collect();
    (named(each), named(busy))
}

/// How long it is waited for those who alone are left.
struct Patience {
    of: Duration,
    since: Option<Instant>,
}

impl Patience {
    fn is_over(&mut self, they_alone: bool, now: Instant) -> bool {
        if !they_alone {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= self.of
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_least_to_lose_goes_first() {
        let client = |name: &str| ClientId::new(name).expect("a name");
        let here = ["a", "b", "c", "d", "e"].map(client).to_vec();
        let claims = vec![Claim::Transaction, Claim::Messages, Claim::None, Claim::Transaction, Claim::None];
        let (go, busy) = parted(here, claims);
        assert_eq!((go, busy), (["c", "e", "b"].map(client).to_vec(), ["a", "d"].map(client).to_vec()));
        assert_eq!(parted(Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_transaction_is_waited_for_once_nobody_else_is_left_and_not_for_ever() {
        let (begun, mut patience) = (Instant::now(), Patience { of: Duration::from_secs(5), since: None });
        let mut is_over = |they_alone, second| patience.is_over(they_alone, begun + Duration::from_secs(second));
        assert!(!is_over(true, 0));
        assert!(!is_over(false, 4), "another one came");
        assert!(!is_over(true, 8) && !is_over(true, 12) && is_over(true, 13));
    }
}
