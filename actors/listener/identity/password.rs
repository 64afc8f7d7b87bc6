//! Passwords: argon2id, never on an event loop, a bounded number at once.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier as _};
use ntex_bytes::Bytes;
use tokio::sync::Semaphore;

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
    within: Duration,
}

/// Verified in the place of a hash that is not there, so that the time it takes does not tell who is enrolled.
/// Argon2id with the usual parameters over a text that nobody kept.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$d2FrYWxhLW5vYm9keS1oZXJl$Zm9yZXZlci13cm9uZy1mb3JldmVyLXdyb25nLTMyYnk";

impl Passwords {
    pub(super) fn new(at_once: usize, within: Duration) -> Self {
        Self { room: Arc::new(Semaphore::new(at_once.max(1))), within }
    }

    /// Verifies a password against a PHC string; where there is none, takes as long and says no.
    pub(super) async fn verify(&self, hash: Option<String>, password: Bytes) -> Verdict {
        let Ok(Ok(permit)) = tokio::time::timeout(self.within, Arc::clone(&self.room).acquire_owned()).await else {
            return Verdict::Busy;
        };
        let verified = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let right = verify(hash.as_deref().unwrap_or(NOBODY), &password);
            right && hash.is_some()
        });
        match verified.await {
            Ok(true) => Verdict::Right,
            Ok(false) => Verdict::Wrong,
            Err(_) => Verdict::Busy,
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

    #[tokio::test]
    async fn only_the_right_password_of_somebody_is_right() {
        let hash = Argon2::default().hash_password(b"kanga").expect("hashed").to_string();
        let passwords = Passwords::new(2, Duration::from_secs(30));
        assert_eq!(passwords.verify(Some(hash.clone()), Bytes::from_static(b"kanga")).await, Verdict::Right);
        assert_eq!(passwords.verify(Some(hash), Bytes::from_static(b"kitenge")).await, Verdict::Wrong);
        assert_eq!(passwords.verify(None, Bytes::from_static(b"kanga")).await, Verdict::Wrong);
        assert!(PasswordHash::new(NOBODY).is_ok(), "nobody's hash costs as much as anybody's");
    }

    #[tokio::test]
    async fn who_waits_too_long_hears_that_the_server_is_busy() {
        let passwords = Passwords::new(1, Duration::from_millis(10));
        let _held = Arc::clone(&passwords.room).acquire_owned().await.expect("open");
        assert_eq!(passwords.verify(None, Bytes::from_static(b"x")).await, Verdict::Busy);
    }
}
