//! The turnstile of each worker thread: whoever comes and whoever goes passes it round by round. [`wakala::turnstile`] decides
//! how many.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use wakala::turnstile::{LONG, REST, Turnstile};

#[derive(Default)]
struct Line {
    turnstile: Turnstile,
    /// Rounds are counted while somebody comes.
    round: Option<Round>,
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Whose turn is before theirs.
    ahead: VecDeque<oneshot::Sender<()>>,
    /// Of the task that keeps the time, while it is there: what has it let the thread rest.
    clock: Option<Rc<Notify>>,
}

struct Round {
    began: Instant,
    /// How many it still lets in.
    left: u32,
    /// It is over, and the next one begins after a rest.
    rests: bool,
}

thread_local! {
    static LINE: RefCell<Line> = RefCell::default();
}

/// Done when it is the caller's turn to come in or to go. Whoever stops waiting takes nobody's place.
pub(crate) async fn turn() {
    told(stand()).await;
}

/// The same for whoever has come in before and waited for something that many are given at once: ahead of those who have not.
pub(crate) async fn turn_again() {
    told(LINE.with_borrow_mut(|line| line.stand(true))).await;
}

async fn told(mine: Option<oneshot::Receiver<()>>) {
    if let Some(mine) = mine {
        // The sender lives as long as this thread.
        let _ = mine.await;
    }
}

/// [`turn`] for whoever polls by hand: None when it is the caller's turn already.
pub(crate) fn stand() -> Option<oneshot::Receiver<()>> {
    LINE.with_borrow_mut(|line| line.stand(false))
}

/// To be called whenever the thread has nothing to do and is about to look at its sockets (`on_thread_park`): everybody who was
/// ready has had a turn. No task can tell: tokio's `LocalSet` takes one that another thread has woken only at every 31st turn,
/// as long as there is one that this thread has woken, and those who pass the turnstile are such.
pub(crate) fn idle() {
    LINE.with_borrow_mut(Line::idle);
}

impl Line {
    /// None when it is the caller's turn already.
    fn stand(&mut self, again: bool) -> Option<oneshot::Receiver<()>> {
        let at_once = self.turnstile.at_once();
        let round = self.round.get_or_insert_with(|| Round { began: Instant::now(), left: at_once, rests: false });
        self.clock.get_or_insert_with(|| {
            let clock = Rc::<Notify>::default();
            tokio::task::spawn_local(keep_time(Rc::clone(&clock)));
            clock
        });
        let line = if again { &mut self.ahead } else { &mut self.waiting };
        if line.is_empty() && round.left > 0 {
            if round.left == at_once {
                round.began = Instant::now();
            }
            round.left -= 1;
            return None;
        }
        let (told, mine) = oneshot::channel();
        line.push_back(told);
        Some(mine)
    }

    fn waits(&self) -> usize {
        self.ahead.len() + self.waiting.len()
    }

    fn idle(&mut self) {
        let Some(round) = &self.round else { return };
        if self.waits() == 0 && round.left == self.turnstile.at_once() {
            (self.round, self.waiting, self.ahead) = (None, VecDeque::new(), VecDeque::new());
        } else if !round.rests {
            self.end_round();
        }
    }

    fn end_round(&mut self) {
        let waits = self.waits();
        let Some(round) = &mut self.round else { return };
        round.rests = self.turnstile.took(round.began.elapsed(), waits);
        match &self.clock {
            Some(clock) if round.rests => clock.notify_one(),
            _ => self.next_round(),
        }
    }

    fn next_round(&mut self) {
        let Some(round) = &mut self.round else { return };
        *round = Round { began: Instant::now(), left: self.turnstile.at_once(), rests: false };
        while round.left > 0
            && let Some(next) = self.ahead.pop_front().or_else(|| self.waiting.pop_front())
        {
            round.left -= u32::from(next.send(()).is_ok());
        }
    }

    /// False when rounds are no longer counted.
    fn late(&mut self) -> bool {
        let Some(round) = &self.round else {
            self.clock = None;
            return false;
        };
        if self.waits() > 0 && !round.rests && round.began.elapsed() >= LONG {
            self.end_round();
        }
        true
    }
}

/// Has the thread rest, and where somebody is always ready, a round end all the same.
async fn keep_time(clock: Rc<Notify>) {
    loop {
        if timeout(LONG, clock.notified()).await.is_ok() {
            sleep(REST).await;
            LINE.with_borrow_mut(Line::next_round);
        } else if !LINE.with_borrow_mut(Line::late) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::runtime::Builder;
    use tokio::task::{LocalSet, spawn_local, yield_now};
    use wakala::turnstile::{SPELL, STORM};

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
            let rests = || {
                LINE.with_borrow(|line| line.round.is_none() && line.clock.is_none() && line.waiting.capacity() == 0)
            };
            // As long as it takes a machine that has other work.
            for _ in 0..1000 {
                if rests() {
                    return;
                }
                tokio::time::sleep(LONG).await;
            }
            panic!("something goes on");
        });
    }

    #[test]
    fn while_the_thread_rests_nobody_comes_in() {
        on_a_thread_with_a_turnstile(async {
            let came = Rc::new(Cell::new(0));
            come(2 * STORM, &came);
            let waiting = || LINE.with_borrow(|line| line.waiting.len());
            while waiting() < STORM {
                yield_now().await;
            }
            // A spell at one go.
            std::thread::sleep(SPELL);
            LINE.with_borrow_mut(Line::end_round);
            let before = waiting();
            assert!(before >= STORM, "{before}");
            (0..9).for_each(|_| idle());
            assert_eq!(waiting(), before, "it rests");
            LINE.with_borrow_mut(Line::next_round);
            assert!(waiting() < before, "and goes on");
            while waiting() > 0 {
                sleep(REST).await;
            }
        });
    }

    #[test]
    fn whoever_came_in_before_is_ahead_of_those_who_come() {
        on_a_thread_with_a_turnstile(async {
            let came = Rc::new(Cell::new(0));
            come(STORM, &came);
            while LINE.with_borrow(|line| line.waiting.len()) < STORM / 2 {
                yield_now().await;
            }
            turn_again().await;
            assert!(came.get() < STORM / 2, "{} came in before", came.get());
        });
    }
}
