//! What the terminals of one agent share while they are connected to this node: how fast they may publish together.
//!
//! Their sessions are on several workers, so each bucket is one atomic number, and its arithmetic is [`Bucket`]'s. Nobody
//! waits for anybody: each publish is charged, whether there was enough or not, and its terminal alone is left unread
//! until the moment up to which it was charged. So those who go on publishing take turns, and who does not is not held.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use wakala::bounds::{Bucket, Rate};
use wakala::id::AgentId;
use wakala::time::Time;

/// What the terminals of each agent have together; each may be none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) publishes: Option<Rate>,
    /// Of their topics, properties and payloads.
    pub(super) bytes: Option<Rate>,
}

impl Shares {
    fn are_unlimited(&self) -> bool {
        self.publishes.is_none() && self.bytes.is_none()
    }
}

/// The purses of all agents who have a terminal that is connected. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Agents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shares: Shares,
    purses: Mutex<BTreeMap<AgentId, Weak<Purse>>>,
}

impl Inner {
    fn purses(&self) -> MutexGuard<'_, BTreeMap<AgentId, Weak<Purse>>> {
        self.purses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agents {
    pub(super) fn new(shares: Shares) -> Self {
        Self(Arc::new(Inner { shares, purses: Mutex::default() }))
    }

    /// The purse of this agent, for as long as somebody has it; none where nothing is limited.
    pub(super) fn purse_of(&self, agent: &AgentId) -> Option<Arc<Purse>> {
        if self.0.shares.are_unlimited() {
            return None;
        }
        let mut purses = self.0.purses();
        let there = purses.get(agent).and_then(Weak::upgrade);
        Some(there.unwrap_or_else(|| {
            let purse = Arc::new(Purse {
                agent: agent.clone(),
                publishes: AtomicI64::default(),
                bytes: AtomicI64::default(),
                agents: Arc::clone(&self.0),
            });
            purses.insert(agent.clone(), Arc::downgrade(&purse));
            purse
        }))
    }
}

/// What the connected terminals of one agent have left, and owe. It ends with the last of their connections.
#[derive(Debug)]
pub(crate) struct Purse {
    agent: AgentId,
    publishes: AtomicI64,
    bytes: AtomicI64,
    agents: Arc<Inner>,
}

impl Purse {
    /// Pays for a publish. Gives until when the agent's terminals owe for it, if they do.
    pub(crate) fn pay(&self, bytes: usize, now: Time) -> Option<Time> {
        let (shares, bytes) = (&self.agents.shares, u32::try_from(bytes).unwrap_or(u32::MAX));
        let each = [(shares.publishes, &self.publishes, 1), (shares.bytes, &self.bytes, bytes)];
        let until = each.into_iter().filter_map(|(rate, bucket, tokens)| Some(take(bucket, rate?, tokens, now)));
        until.max().filter(|until| *until > now)
    }
}

/// Nothing else is read that another thread wrote: the number alone counts.
fn take(bucket: &AtomicI64, rate: Rate, tokens: u32, now: Time) -> Time {
    let taken = |before: i64| {
        let mut bucket = Bucket::at(before);
        bucket.take(rate, tokens, now);
        bucket
    };
    let before = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(taken(before).nanoseconds()));
    let (Ok(before) | Err(before)) = before;
    taken(before).empty_until(rate)
}

impl Drop for Purse {
    fn drop(&mut self) {
        let mut purses = self.agents.purses();
        // A terminal that has just connected may have another by now.
        if purses.get(&self.agent).is_some_and(|purse| purse.strong_count() == 0) {
            purses.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: i64) -> Time {
        Time::from_millis(1_700_000_000_000 + millis)
    }

    fn agent(name: &str) -> AgentId {
        AgentId::new(name).expect("a name")
    }

    fn agents(publishes: Option<Rate>, bytes: Option<Rate>) -> Agents {
        Agents::new(Shares { publishes, bytes })
    }

    fn purse(agents: &Agents, name: &str) -> Arc<Purse> {
        agents.purse_of(&agent(name)).expect("a limit")
    }

    #[test]
    fn terminals_of_one_agent_share_and_those_of_another_do_not() {
        let agents = agents(Rate::per_second(10, 3), None);
        let (one, two, other) = (purse(&agents, "A1"), purse(&agents, "A1"), purse(&agents, "A2"));
        assert_eq!([&one, &two].map(|purse| purse.pay(1000, at(0))), [None, None]);
        // The third is there; the fourth would have to wait, and so whoever sent the third does.
        assert_eq!(one.pay(1000, at(0)), Some(at(100)));
        assert_eq!(two.pay(1000, at(0)), Some(at(200)), "behind the other's");
        assert_eq!(one.pay(1000, at(150)), Some(at(300)));
        assert_eq!([0, 0].map(|_| other.pay(1000, at(150))), [None, None]);
        assert_eq!([two.pay(1, at(600)), two.pay(1, at(600))], [None, None], "paid back");
    }

    #[test]
    fn the_bound_that_holds_for_longer_counts() {
        let agents = agents(Rate::per_second(10, 1), Rate::per_second(1000, 1000));
        let purse = purse(&agents, "A1");
        assert_eq!(purse.pay(1500, at(0)), Some(at(501)), "for its bytes");
        assert_eq!(purse.pay(0, at(1000)), Some(at(1100)), "for being one");
    }

    #[test]
    fn a_purse_ends_with_the_last_terminal_that_has_it() {
        let agents = agents(Rate::per_second(1, 1), None);
        let (one, two) = (purse(&agents, "A1"), purse(&agents, "A1"));
        let owed = one.pay(0, at(0)).expect("the next is not there");
        drop(one);
        assert_eq!(agents.0.purses().len(), 1);
        assert_eq!(purse(&agents, "A1").pay(0, at(0)), Some(owed + Duration::from_secs(1)), "the same one");
        drop(two);
        assert!(agents.0.purses().is_empty());
    }

    #[test]
    fn where_nothing_is_limited_nothing_is_kept() {
        let agents = agents(None, None);
        assert!(agents.purse_of(&agent("A1")).is_none() && agents.0.purses().is_empty());
    }

    /// Terminals of one agent are on several workers.
    #[test]
    fn nothing_is_lost_when_many_take_at_once() {
        let agents = agents(Rate::per_second(1000, 1), Rate::per_second(1_000_000, 1));
        let purse = purse(&agents, "A1");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let _ = purse.pay(100, at(0));
                    }
                });
            }
        });
        assert_eq!(purse.pay(100, at(0)), Some(at(80_001)), "each cost a millisecond");
    }
}
