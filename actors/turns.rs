//! The turnstile of each worker thread: whoever comes and whoever goes passes it round by round. [`wakala::turnstile`] decides
//! how many.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;
use wakala::turnstile::Turnstile;

#[derive(Default)]
struct Line {
    turnstile: Turnstile,
    /// How many this round still lets in. Rounds are counted while somebody comes.
    left: Option<u32>,
    waiting: VecDeque<oneshot::Sender<()>>,
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::default();
}

/// Done when it is the caller's turn to come in or to go. Whoever stops waiting takes nobody's place.
pub(crate) async fn turn() {
    if let Some(mine) = stand() {
        // The sender lives as long as this thread.
        let _ = mine.await;
    }
}

/// [`turn`] for whoever polls by hand: None when it is the caller's turn already.
pub(crate) fn stand() -> Option<oneshot::Receiver<()>> {
    LINE.with_borrow_mut(Line::stand)
}

impl Line {
    fn stand(&mut self) -> Option<oneshot::Receiver<()>> {
        if self.left.is_none() {
            self.left = Some(self.turnstile.at_once());
            tokio::task::spawn_local(rounds());
        }
        if let Some(left @ 1..) = self.left.as_mut()
            && self.waiting.is_empty()
        {
            *left -= 1;
            return None;
        }
        let (told, mine) = oneshot::channel();
        self.waiting.push_back(told);
        Some(mine)
    }

    /// A round is over. False when nobody came in it, and nobody waits.
    fn next_round(&mut self, began: Instant) -> bool {
        let idle = self.waiting.is_empty() && self.left == Some(self.turnstile.at_once());
        if idle {
            *self = Self { turnstile: self.turnstile, ..Self::default() };
            return false;
        }
        self.turnstile.took(began.elapsed());
        let mut left = self.turnstile.at_once();
        while left > 0
            && let Some(next) = self.waiting.pop_front()
        {
            left -= u32::from(next.send(()).is_ok());
        }
        self.left = Some(left);
        true
    }
}

/// A round is over when everybody who was ready has had a turn, and the sockets have been looked at.
async fn rounds() {
    loop {
        let began = Instant::now();
        tokio::task::yield_now().await;
        if !LINE.with_borrow_mut(|line| line.next_round(began)) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[tokio::test]
    async fn whoever_is_inside_has_a_turn_between_those_who_come() {
        let came = Rc::new(Cell::new(0));
        let newcomer = |n: usize| {
            let came = Rc::clone(&came);
            let newcomer = spawn_local(async move {
                turn().await;
                came.set(came.get() + 1);
            });
            if n.is_multiple_of(5) {
                newcomer.abort();
            }
        };
        let inside = async {
            (0..5_000).for_each(newcomer);
            // A task like theirs, behind them at first.
            let came = Rc::clone(&came);
            let inside = spawn_local(async move {
                let (mut rounds, mut most) = (0, 0);
                while came.get() < 4_000 {
                    let before = came.get();
                    yield_now().await;
                    most = most.max(came.get() - before);
                    rounds += 1;
                    assert!(rounds < 10_000, "they come in");
                }
                (rounds, most)
            });
            let (rounds, most) = inside.await.expect("no panic");
            assert!(rounds >= 40 && most <= 128, "in {rounds} rounds, {most} while one that was ready waited");
            // When nobody comes any more, nothing goes on.
            for _ in 0..8 {
                yield_now().await;
            }
            assert!(LINE.with_borrow(|line| line.left.is_none() && line.waiting.capacity() == 0));
        };
        LocalSet::new().run_until(inside).await;
    }
}
