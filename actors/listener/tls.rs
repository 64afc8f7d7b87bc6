//! TLS for terminals: rustls with ring, TLS 1.3 and 1.2, and the terminal's certificate if it has one.
//!
//! A terminal is known by the SHA-256 of its certificate, which was enrolled. So no authority need have signed it: the
//! handshake proves that the terminal holds the certificate's key, and the look-up says whose it is. Where an authority
//! is configured, only certificates under it pass the handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The files of a TLS listener.
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
}

/// Why TLS cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// What the listener serves TLS with.
///
/// # Errors
/// When a file cannot be read or holds something else.
pub fn server(files: &Files) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| of_file(&files.key, error))?;
    let verifier: Arc<dyn ClientCertVerifier> = match &files.client_authorities {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority)?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| of_file(path, error))?
        }
        None => Arc::new(Possession { provider: Arc::clone(&provider) }),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    // One ticket is enough for one reconnect, and each costs the terminal bytes.
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The fingerprint by which a terminal is enrolled.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| of_file(path, error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| of_file(path, error))?;
    if found.is_empty() { Err(of_file(path, "no certificate in it")) } else { Ok(found) }
}

fn of_file(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::File { path: path.to_owned(), why: why.to_string() }
}

/// Takes any certificate whose key the client holds.
#[derive(Debug)]
struct Possession {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Possession {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
