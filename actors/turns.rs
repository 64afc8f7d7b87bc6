//! The turnstile of each worker thread: whoever comes and whoever goes passes it round by round. [`wakala::turnstile`] decides
//! how many.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;
use wakala::turnstile::{LONG, Turnstile};

#[derive(Default)]
struct Line {
    turnstile: Turnstile,
    /// Rounds are counted while somebody comes.
    round: Option<Round>,
    waiting: VecDeque<oneshot::Sender<()>>,
}

struct Round {
    began: Instant,
    /// How many it still lets in.
    left: u32,
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

/// To be called whenever the thread has nothing to do and is about to look at its sockets (`on_thread_park`): everybody who was
/// ready has had a turn. No task can tell: tokio's `LocalSet` takes one that another thread has woken only at every 31st turn,
/// as long as there is one that this thread has woken, and those who pass the turnstile are such.
pub(crate) fn idle() {
    LINE.with_borrow_mut(Line::idle);
}

impl Line {
    fn stand(&mut self) -> Option<oneshot::Receiver<()>> {
        let at_once = self.turnstile.at_once();
        let round = self.round.get_or_insert_with(|| {
            tokio::task::spawn_local(never_idle());
            Round { began: Instant::now(), left: at_once }
        });
        if self.waiting.is_empty() && round.left > 0 {
            if round.left == at_once {
                round.began = Instant::now();
            }
            round.left -= 1;
            return None;
        }
        let (told, mine) = oneshot::channel();
        self.waiting.push_back(told);
        Some(mine)
    }

    fn idle(&mut self) {
        let Some(round) = &self.round else { return };
        if self.waiting.is_empty() && round.left == self.turnstile.at_once() {
            *self = Self { turnstile: self.turnstile, ..Self::default() };
        } else {
            self.next_round();
        }
    }

    fn next_round(&mut self) {
        let Some(round) = &mut self.round else { return };
        let now = Instant::now();
        self.turnstile.took(now - round.began);
        *round = Round { began: now, left: self.turnstile.at_once() };
        while round.left > 0
            && let Some(next) = self.waiting.pop_front()
        {
            round.left -= u32::from(next.send(()).is_ok());
        }
    }

    /// False when rounds are no longer counted.
    fn late(&mut self) -> bool {
        if self.round.as_ref().is_some_and(|round| !self.waiting.is_empty() && round.began.elapsed() >= LONG) {
            self.next_round();
        }
        self.round.is_some()
    }
}

/// Where somebody is always ready, a round ends all the same.
async fn never_idle() {
    loop {
        tokio::time::sleep(LONG).await;
        if !LINE.with_borrow_mut(Line::late) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::runtime::Builder;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// As the listener's threads run, without their sockets.
    fn on_a_thread_with_a_turnstile(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_all().on_thread_park(idle).build().expect("a runtime");
        LocalSet::new().block_on(&runtime, test);
    }

    /// Of five who come, one goes away again.
    fn come(count: usize, came: &Rc<Cell<usize>>) {
        for n in 0..count {
            let came = Rc::clone(came);
            let newcomer = spawn_local(async move {
                turn().await;
                came.set(came.get() + 1);
                // A newcomer has much to do.
                for _ in 0..50 {
                    yield_now().await;
                }
            });
            if n.is_multiple_of(5) {
                newcomer.abort();
            }
        }
    }

    /// Two hundred who are inside wait for another thread, as for the database's, and get their answers in one moment.
    #[test]
    fn whoever_is_inside_has_a_turn_between_those_who_come() {
        on_a_thread_with_a_turnstile(async {
            let came = Rc::new(Cell::new(0));
            come(5_000, &came);
            let (asks, answers): (Vec<_>, Vec<_>) = (0..200).map(|_| oneshot::channel::<()>()).unzip();
            let inside: Vec<_> = answers.into_iter().map(spawn_local).collect();
            while came.get() < 500 {
                yield_now().await;
            }
            let answering =
                std::thread::spawn(move || asks.into_iter().for_each(|ask| ask.send(()).expect("it waits")));
            while !answering.is_finished() {
                yield_now().await;
            }
            let before = came.get();
            for each in inside {
                each.await.expect("no panic").expect("answered");
            }
            let meanwhile = came.get() - before;
            assert!(meanwhile <= 64, "{meanwhile} came in while those inside were ready");
        });
    }

    #[test]
    fn they_come_in_where_somebody_is_always_ready_and_nothing_goes_on_afterwards() {
        on_a_thread_with_a_turnstile(async {
            let came = Rc::new(Cell::new(0));
            come(500, &came);
            let busy = spawn_local(async {
                loop {
                    tokio::task::coop::unconstrained(yield_now()).await;
                }
            });
            while came.get() < 400 {
                yield_now().await;
            }
            busy.abort();
            tokio::time::sleep(3 * LONG).await;
            assert!(LINE.with_borrow(|line| line.round.is_none() && line.waiting.capacity() == 0));
        });
    }
}
