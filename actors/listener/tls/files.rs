//! The files of a TLS listener: what they must hold, and whether they have changed.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::watched::Stamp;

/// The files of a TLS listener. All are read again when one of them has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Files {
    /// The server's certificate and what follows it in its chain, PEM.
    pub certificate: PathBuf,
    /// The server's private key, PEM (PKCS #8, PKCS #1 or SEC1).
    pub key: PathBuf,
    /// Certificates of the authorities for terminals, PEM. Without it any certificate passes the handshake, and the
    /// enrolled fingerprint alone decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_authorities: Option<PathBuf>,
    /// Certificates that were revoked: lists (CRLs) that those authorities signed, PEM, or one in DER. Without it none
    /// is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<PathBuf>,
}

/// What the files hold.
pub(super) struct Contents {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
    pub(super) lists: Vec<CertificateRevocationListDer<'static>>,
}

impl Files {
    /// Has paths that the configuration's file gives relative to itself found from anywhere.
    pub(crate) fn resolve(&mut self, found: impl Fn(&Path) -> PathBuf) {
        let Self { certificate, key, client_authorities, revoked } = self;
        for path in [certificate, key].into_iter().chain(client_authorities).chain(revoked) {
            *path = found(path);
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp::of([&self.certificate, &self.key].into_iter().chain(&self.client_authorities).chain(&self.revoked))
    }

    pub(super) fn read(&self) -> Result<Contents, Error> {
        let authorities = self.client_authorities.as_deref().map(certificates).transpose()?;
        let lists = self.revoked.as_deref().map(lists).transpose()?;
        Ok(Contents {
            chain: certificates(&self.certificate)?,
            key: PrivateKeyDer::from_pem_slice(&bytes(&self.key)?).map_err(|error| {
                of_file(&self.key, format!("no private key in PEM (BEGIN PRIVATE KEY, not encrypted): {error}"))
            })?,
            authorities: authorities.unwrap_or_default(),
            lists: lists.unwrap_or_default(),
        })
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| of_file(path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    const WANTED: &str = "no certificate in PEM (BEGIN CERTIFICATE) in it";
    let found = CertificateDer::pem_slice_iter(&bytes(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| of_file(path, error))?;
    if found.is_empty() { Err(of_file(path, WANTED)) } else { Ok(found) }
}

/// In PEM or, as authorities publish them, in DER.
fn lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    const WANTED: &str = "no revocation list in it: neither PEM (BEGIN X509 CRL) nor DER";
    let bytes = bytes(path)?;
    let found = CertificateRevocationListDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, pem::Error>>();
    match found.map_err(|error| of_file(path, error))? {
        // A DER SEQUENCE.
        none if none.is_empty() && bytes.first() == Some(&0x30) => Ok(vec![bytes.into()]),
        // A file that was emptied by mistake must not let everybody in again.
        none if none.is_empty() => Err(of_file(path, WANTED)),
        found => Ok(found),
    }
}

pub(super) fn of_file(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.to_owned(), why: why.to_string() }
}
