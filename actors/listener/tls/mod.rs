//! TLS for terminals: rustls with ring, TLS 1.3 and 1.2, and the terminal's certificate if it has one.
//!
//! A terminal is known by the SHA-256 of its certificate, which was enrolled. So no authority need have signed it: the
//! handshake proves that the terminal holds the certificate's key, and the look-up says whose it is. Where an authority
//! is configured, only certificates under it pass the handshake, and none that it has revoked.
//!
//! Certificates change while terminals are connected. The files are looked at again and again, and what they say is
//! taken over as a whole (`trust`) or, if anything in them is wrong, not at all. Handshakes use what is in force when
//! they begin. Nobody's connection is touched but theirs whose certificate is no longer good.

mod files;
mod papers;
mod resumptions;
mod revoked;
#[cfg(test)]
mod tests;
mod trust;
mod verifiers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::version::{TLS12, TLS13};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::sessions::Sessions;
use crate::watched::Looks;

pub use files::Files;
pub use papers::Papers;
pub(super) use trust::Inside;
pub use trust::{Objection, Trust};

/// A TLS listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub address: SocketAddr,
    pub files: Files,
    /// How often it is looked whether the files have changed, and which sessions' certificates are no longer good. What
    /// has changed is read when it has stood still for one look; who is revoked then is out at once.
    #[serde(default = "look_every", with = "humantime_serde")]
    pub look_every: Duration,
    /// Connections that are remembered, so that the terminal's next handshake is a short one; the oldest are forgotten.
    /// Each takes about 1 KiB with a terminal's certificate.
    #[serde(default = "resumptions_max")]
    pub resumptions_max: usize,
    /// The oldest version that is spoken: "1.2" or "1.3".
    #[serde(default)]
    pub oldest: Oldest,
}

/// See [`Tls::oldest`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Oldest {
    /// What many terminals speak.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

impl Oldest {
    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &NEWEST,
        }
    }
}

fn look_every() -> Duration {
    Duration::from_millis(250)
}

fn resumptions_max() -> usize {
    25_000
}

impl Tls {
    /// With these files and all else as it is by default.
    #[must_use]
    pub fn new(address: SocketAddr, files: Files) -> Self {
        Self { address, files, look_every: look_every(), resumptions_max: resumptions_max(), oldest: Oldest::default() }
    }
}

/// Why TLS cannot be offered, or not as the files would have it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// The fingerprint by which a terminal is enrolled.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

/// Reads the files of a listener as it would when it starts.
///
/// # Errors
/// What is wrong with the first of them that is.
pub fn check(files: &Files) -> Result<(), Error> {
    Trust::read(files, Oldest::default(), 0, None).map(drop)
}

/// What the listener serves TLS with, now and after each change of its files. Clones are the same.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: Files,
    oldest: Oldest,
    resumptions_max: usize,
    trust: RwLock<Arc<Trust>>,
    seen: Mutex<Seen>,
}

/// A handshake that begins, and what came of it.
#[derive(Debug)]
pub(super) struct Handshake {
    credentials: Credentials,
    trust: Arc<Trust>,
}

/// What was seen of the files, and what came of it.
#[derive(Debug)]
struct Seen {
    looks: Looks,
    reloads: u64,
    failures: u64,
    failure: Option<String>,
}

/// What `wakala status` shows of TLS.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The end of the server's certificate.
    #[serde(with = "time::serde::rfc3339")]
    pub certificate_until: time::OffsetDateTime,
    /// Certificates that the lists revoke.
    pub revoked: usize,
    /// When the first of the lists should have been replaced by a newer one.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub lists_until: Option<time::OffsetDateTime>,
    /// Connections that may be resumed.
    pub resumable: usize,
    /// How often changed files were taken over since the node started.
    pub reloads: u64,
    /// How often they were not, because something in them was wrong.
    pub failures: u64,
    /// What is wrong with the files now; those before them are in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Credentials {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What is wrong with the first of them that is.
    pub fn open(options: &Tls) -> Result<Self, Error> {
        let Tls { files, oldest, resumptions_max, .. } = options.clone();
        let read = files.stamp();
        let trust = Trust::read(&files, oldest, resumptions_max, None)?;
        warn_of_age(&trust);
        let seen = Seen { looks: Looks::new(read), reloads: 0, failures: 0, failure: None };
        Ok(Self(Arc::new(Inner {
            files,
            oldest,
            resumptions_max,
            trust: RwLock::new(Arc::new(trust)),
            seen: Mutex::new(seen),
        })))
    }

    /// What is in force.
    #[must_use]
    pub fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.0.trust.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins a handshake with what is in force.
    pub(super) fn handshake(&self) -> Handshake {
        Handshake { credentials: self.clone(), trust: self.trust() }
    }

    /// Reads the files again, whether they have changed or not. It reads files: not for an event loop.
    ///
    /// # Errors
    /// What is wrong with them. It is logged and counted, and what was in force stays so.
    pub fn reload(&self) -> Result<(), Error> {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks is to hear what is wrong, though it be what was wrong before.
        seen.failure = None;
        self.read_again(&mut seen)
    }

    /// Reads the files again if they have changed and stand still. A file that is being written is left to be finished.
    fn look(&self) {
        let stamp = self.0.files.stamp();
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let right = seen.failure.is_none();
        if seen.looks.call_for(stamp, right) {
            // It is logged where it happens.
            let _ = self.read_again(&mut seen);
        }
    }

    fn read_again(&self, seen: &mut Seen) -> Result<(), Error> {
        let Inner { files, oldest, resumptions_max, trust, .. } = &*self.0;
        seen.looks = Looks::new(files.stamp());
        match Trust::read(files, *oldest, *resumptions_max, Some(&self.trust())) {
            Ok(read) => {
                let (until, revoked) = (read.until(), read.revoked().len());
                warn_of_age(&read);
                *trust.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
                seen.reloads += 1;
                seen.failure = None;
                tracing::info!(certificate_until = %until, revoked, "the TLS files were read again and are in force");
                Ok(())
            }
            Err(error) if seen.failure.as_ref() == Some(&error.to_string()) => Err(error),
            Err(error) => {
                seen.failures += 1;
                seen.failure = Some(error.to_string());
                tracing::error!(
                    why = %error,
                    "the TLS files are not right, and those before them stay in force; put it right, and it is read again"
                );
                Err(error)
            }
        }
    }

    pub(crate) fn oldest(&self) -> Oldest {
        self.0.oldest
    }

    #[must_use]
    pub fn report(&self) -> Report {
        let trust = self.trust();
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Report {
            certificate_until: trust.until(),
            revoked: trust.revoked().len(),
            lists_until: trust.revoked().until(),
            resumable: trust.resumable(),
            reloads: seen.reloads,
            failures: seen.failures,
            failure: seen.failure.clone(),
        }
    }

    /// Looks at the files and at the sessions again and again, until nobody holds the credentials any more.
    pub(super) fn look_every(&self, every: Duration, sessions: &Sessions) {
        let (credentials, runtime, sessions) =
            (Arc::downgrade(&self.0), sessions.store().handle().clone(), sessions.clone());
        runtime.spawn(async move {
            while let Some(looked) = look_once(&credentials).await {
                sessions.end_without_papers(&looked.trust());
                drop(looked);
                tokio::time::sleep(every).await;
            }
        });
    }
}

impl Handshake {
    pub(super) fn config(&self, inside: Inside) -> Arc<rustls::ServerConfig> {
        self.trust.config(inside)
    }

    /// Whether a certificate had to be one that an authority vouches for.
    pub(super) fn asked_authorities(&self) -> bool {
        self.trust.asks_authorities()
    }

    /// Judges the certificate that it brought by what is in force now, which may be something else.
    pub(super) fn examine(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Papers>, Objection> {
        self.credentials.trust().examine(chain, &self.trust, UnixTime::now())
    }
}

/// An old list is used all the same: one that its authority publishes too late must not shut out every terminal.
fn warn_of_age(trust: &Trust) {
    let now = UnixTime::now().as_secs();
    if let Some(until) = trust.revoked().until()
        && until.unix_timestamp() < i64::try_from(now).unwrap_or(i64::MAX)
    {
        tracing::warn!(%until, "a revocation list is older than it should be");
    }
}

/// Says in the log why a handshake failed; ntex closes the connection without the alert that would say it to the terminal.
/// Strangers may fail as they like, but who shows a certificate is somebody's terminal.
pub(super) fn tell_of_failure(error: &std::io::Error) {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(why)) => tracing::info!(?why, "a certificate was not taken"),
        _ => tracing::debug!(%error, "a TLS handshake failed"),
    }
}

async fn look_once(credentials: &Weak<Inner>) -> Option<Credentials> {
    let credentials = Credentials(credentials.upgrade()?);
    let looking = credentials.clone();
    // The disk may be slow. A panic is its task's own, and the next look comes.
    let _ = tokio::task::spawn_blocking(move || looking.look()).await;
    Some(credentials)
}
