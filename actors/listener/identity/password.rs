//! Passwords: argon2id, never on an event loop, a bounded number at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier as _};
use ntex_bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wakala::bounds::{Lines, Place};

/// What came of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many wait; nothing was verified.
    Busy,
}

/// The threads that verify.
#[derive(Clone, Debug)]
pub(super) struct Passwords {
    room: Arc<Semaphore>,
    /// No more than there are strangers.
    lines: Arc<Mutex<Lines<oneshot::Sender<OwnedSemaphorePermit>>>>,
    within: Duration,
}

/// Verified in the place of a hash that is not there, so that the time it takes does not tell who is enrolled.
/// Argon2id with the usual parameters over a text that nobody kept.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$d2FrYWxhLW5vYm9keS1oZXJl$Zm9yZXZlci13cm9uZy1mb3JldmVyLXdyb25nLTMyYnk";

/// Whoever is in line, however that ends: then it is the next one's turn, if there is room.
struct After<'a>(&'a Passwords);

impl Drop for After<'_> {
    fn drop(&mut self) {
        self.0.next();
    }
}

impl Passwords {
    pub(super) fn new(at_once: usize, within: Duration) -> Self {
        Self { room: Arc::new(Semaphore::new(at_once.max(1))), lines: Arc::default(), within }
    }

    /// Verifies a password that came from there against a PHC string; where there is none, takes as long and says no.
    /// Whether it is urgent is asked only if it has to wait.
    pub(super) async fn verify(
        &self,
        from: Place,
        urgent: impl Future<Output = bool>,
        hash: Option<String>,
        password: Bytes,
    ) -> Verdict {
        let Ok(Ok(permit)) = tokio::time::timeout(self.within, self.turn(from, urgent)).await else {
            return Verdict::Busy;
        };
        let after = self.clone();
        let verified = tokio::task::spawn_blocking(move || {
            let right = verify(hash.as_deref().unwrap_or(NOBODY), &password);
            drop(permit);
            // Not by whoever waits for this: its thread may have much to do.
            after.next();
            right && hash.is_some()
        });
        match verified.await {
            Ok(true) => Verdict::Right,
            Ok(false) => Verdict::Wrong,
            Err(_) => {
                self.next();
                Verdict::Busy
            }
        }
    }

    async fn turn(
        &self,
        from: Place,
        urgent: impl Future<Output = bool>,
    ) -> Result<OwnedSemaphorePermit, oneshot::error::RecvError> {
        if let Some(permit) = self.at_once() {
            return Ok(permit);
        }
        let urgent = urgent.await;
        // Its turn may come just when it waits no longer.
        let _after = After(self);
        let (told, turn) = oneshot::channel();
        self.lines().push(from, urgent, told, oneshot::Sender::is_closed);
        self.next();
        turn.await
    }

    /// Room that nobody waits for.
    fn at_once(&self) -> Option<OwnedSemaphorePermit> {
        let lines = self.lines();
        Arc::clone(&self.room).try_acquire_owned().ok().filter(|_| lines.is_empty())
    }

    fn lines(&self) -> MutexGuard<'_, Lines<oneshot::Sender<OwnedSemaphorePermit>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what room there is to those whose turn it is.
    fn next(&self) {
        let mut lines = self.lines();
        while let Ok(mut permit) = Arc::clone(&self.room).try_acquire_owned() {
            loop {
                let Some(next) = lines.pop() else { return };
                match next.send(permit) {
                    Ok(()) => break,
                    // It waits no longer.
                    Err(back) => permit = back,
                }
            }
        }
    }
}

fn verify(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use argon2::PasswordHasher as _;

    use super::*;

    fn place(last: u8) -> Place {
        Place::of(std::net::IpAddr::from([10, 0, 0, last]))
    }

    fn calm() -> std::future::Ready<bool> {
        std::future::ready(false)
    }

    #[tokio::test]
    async fn only_the_right_password_of_somebody_is_right() {
        let hash = Argon2::default().hash_password(b"kanga").expect("hashed").to_string();
        let passwords = Passwords::new(2, Duration::from_secs(30));
        assert_eq!(
            passwords.verify(place(1), calm(), Some(hash.clone()), Bytes::from_static(b"kanga")).await,
            Verdict::Right
        );
        assert_eq!(
            passwords.verify(place(1), calm(), Some(hash), Bytes::from_static(b"kitenge")).await,
            Verdict::Wrong
        );
        assert_eq!(passwords.verify(place(1), calm(), None, Bytes::from_static(b"kanga")).await, Verdict::Wrong);
        assert!(PasswordHash::new(NOBODY).is_ok(), "nobody's hash costs as much as anybody's");
    }

    #[tokio::test]
    async fn who_waits_too_long_hears_that_the_server_is_busy() {
        let passwords = Passwords::new(1, Duration::from_millis(10));
        let _held = Arc::clone(&passwords.room).acquire_owned().await.expect("open");
        assert_eq!(passwords.verify(place(1), calm(), None, Bytes::from_static(b"x")).await, Verdict::Busy);
    }

    #[tokio::test]
    async fn a_turn_that_comes_to_who_has_just_gone_is_the_next_ones() {
        use futures_util::FutureExt as _;
        let passwords = Passwords::new(1, Duration::from_secs(30));
        let held = passwords.at_once().expect("nobody is there");
        let mut waits = [1, 2].map(|from| Box::pin(passwords.turn(place(from), calm())));
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        drop(held);
        passwords.next();
        let [gone, next] = waits;
        drop(gone);
        let _permit = next.now_or_never().expect("its turn has come").expect("there is room");
    }

    #[tokio::test]
    async fn whoever_waits_from_one_address_keeps_nobody_from_another_waiting() {
        let passwords = Passwords::new(1, Duration::from_secs(30));
        let held = Arc::clone(&passwords.room).acquire_owned().await.expect("open");
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        // Some milliseconds: longer than a thread that has verified is kept from saying so.
        let cheap = argon2::Params::new(2048, 2, 1, None).expect("allowed");
        let cheap = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, cheap);
        let hash = cheap.hash_password(b"y").expect("hashed").to_string();
        for from in std::iter::repeat_n(1, 40).chain([2]) {
            let (passwords, told, hash) = (passwords.clone(), told.clone(), Some(hash.clone()));
            tasks.push(tokio::spawn(async move {
                let verdict = passwords.verify(place(from), calm(), hash, Bytes::from_static(b"x")).await;
                told.send((from, verdict)).expect("it hears");
            }));
            tokio::task::yield_now().await;
        }
        // Who waits no longer has no turn.
        tasks[0].abort();
        tokio::task::yield_now().await;
        drop(held);
        passwords.next();
        let mut order = Vec::new();
        for _ in 0..40 {
            order.push(hears.recv().await.expect("each has its turn"));
        }
        let first = order.iter().position(|(from, _)| *from == 2).expect("verified");
        // They are told on another thread than they are verified on.
        assert!(first < 20 && order.iter().all(|(_, verdict)| *verdict == Verdict::Wrong), "{order:?}");
    }
}
