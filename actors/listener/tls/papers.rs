//! What is remembered of the certificates that a connection came with: enough to see, at any later moment and without
//! its worker, that one of them is no longer good.

use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::revoked::{Name, Revoked, name};

/// The papers of one connection.
#[derive(Debug)]
pub struct Papers {
    /// Of the certificates that were shown, the terminal's own first.
    names: Box<[Name]>,
    /// The end of the terminal's own, in seconds since 1970.
    not_after: i64,
    /// Up to which generation of authorities one is known to vouch for them.
    vouched: AtomicU64,
}

/// Something that is no certificate.
#[derive(Debug)]
pub(super) struct Unreadable;

impl Papers {
    /// Of a chain, the terminal's own certificate first.
    pub(super) fn of<'a>(chain: impl Iterator<Item = &'a CertificateDer<'a>>) -> Result<Self, Unreadable> {
        let (mut names, mut not_after) = (Vec::with_capacity(2), None);
        for der in chain {
            let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Unreadable)?;
            names.push(name(certificate.issuer().as_raw(), certificate.raw_serial()));
            not_after.get_or_insert_with(|| certificate.validity().not_after.timestamp());
        }
        let not_after = not_after.ok_or(Unreadable)?;
        Ok(Self { names: names.into(), not_after, vouched: AtomicU64::new(0) })
    }

    pub(super) fn are_in(&self, revoked: &Revoked) -> bool {
        self.names.iter().any(|name| revoked.has(name))
    }

    pub(super) fn have_expired(&self, now: UnixTime) -> bool {
        i64::try_from(now.as_secs()).unwrap_or(i64::MAX) > self.not_after
    }

    pub(super) fn vouched(&self) -> u64 {
        self.vouched.load(Ordering::Relaxed)
    }

    pub(super) fn vouch(&self, generation: u64) {
        self.vouched.fetch_max(generation, Ordering::Relaxed);
    }
}
