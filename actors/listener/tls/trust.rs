//! What the files say at one moment: what handshakes are made with, and whose certificates are good.
//!
//! rustls looks at a terminal's certificate in a full handshake only; a session that is resumed brings its certificate
//! along unseen, and one that lives is never looked at again. So every connection is judged by us as well: when it says
//! CONNECT, and from then on at each look.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::files::{Contents, Files, of_file};
use super::papers::Papers;
use super::resumptions::Resumptions;
use super::revoked::Revoked;
use super::verifiers::{Possession, Vouched};
use super::{Error, Oldest};

/// See the module's text.
#[derive(Debug)]
pub struct Trust {
    /// For MQTT, and for WebSocket.
    configs: [Arc<ServerConfig>; 2],
    /// Without authorities a certificate is good as long as it is enrolled, and its papers say nothing.
    authorities: Option<Authorities>,
    revoked: Arc<Revoked>,
    resumptions: Arc<Resumptions>,
    until: OffsetDateTime,
}

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inside {
    Mqtt,
    WebSocket,
}

impl Inside {
    /// The name that IANA has registered for it; a client that offers others only is at the wrong door (RFC 7301 §3.2). A
    /// WebSocket begins as HTTP, and browsers say so.
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Mqtt => b"mqtt",
            Self::WebSocket => b"http/1.1",
        }
    }
}

#[derive(Clone, Debug)]
struct Authorities {
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Vec<CertificateDer<'static>>,
    /// Raised when one is no longer there: until then whatever they vouched for still holds.
    generation: u64,
}

/// Why a connection's certificate is not good, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    Revoked,
    Expired,
    NoAuthority,
    Unreadable,
}

impl Objection {
    /// As logs and MQTT 5 terminals are told.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Revoked => "the certificate was revoked",
            Self::Expired => "the certificate has expired",
            Self::NoAuthority => "no configured authority vouches for the certificate any more",
            Self::Unreadable => "the certificate cannot be read",
        }
    }
}

impl Trust {
    /// Reads the files. What was trusted `before` decides what may be resumed.
    pub(super) fn read(
        files: &Files,
        oldest: Oldest,
        resumptions_max: usize,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let Contents { chain, key, authorities, lists } = files.read()?;
        let until = until(files, &chain)?;
        let roots = Arc::new(roots(files, &authorities)?);
        let revoked = match (&files.revoked, &files.client_authorities) {
            (Some(path), Some(_)) => {
                Revoked::read(&lists, &authorities, &roots, &provider).map_err(|why| of_file(path, why))?
            }
            (Some(path), None) => return Err(of_file(path, "needs client_authorities, which must have signed it")),
            (None, _) => Revoked::default(),
        };
        let revoked = Arc::new(revoked);
        let authorities = match &files.client_authorities {
            Some(path) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| of_file(path, error))?;
                let generation = generation(&authorities, before);
                Some(Authorities { verifier, certificates: authorities, generation })
            }
            None => None,
        };
        // What was resumable under an authority that is gone is not: the next handshake is a full one.
        let resumptions = match before {
            Some(before) if before.generation() == authorities.as_ref().map_or(0, |a| a.generation) => {
                Arc::clone(&before.resumptions)
            }
            _ => Arc::new(Resumptions::new(resumptions_max)),
        };
        let verifier: Arc<dyn ClientCertVerifier> = match &authorities {
            Some(Authorities { verifier, .. }) => {
                Arc::new(Vouched { authorities: Arc::clone(verifier), revoked: Arc::clone(&revoked) })
            }
            None => Arc::new(Possession { provider: Arc::clone(&provider) }),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(oldest.versions())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    of_file(&files.key, format!("not the key of the certificate in {}", files.certificate.display()))
                }
                error => of_file(&files.key, error),
            })?;
        // rustls makes no stateless tickets unless told to (`resumptions` says why not). One is enough for one reconnect,
        // and each costs the terminal bytes.
        config.session_storage = Arc::clone(&resumptions) as _;
        config.send_tls13_tickets = 1;
        // What comes with the first flight can be sent again by whoever has seen it (RFC 8446 §8): a request must not.
        config.max_early_data_size = 0;
        let configs = [Inside::Mqtt, Inside::WebSocket].map(|inside| {
            let mut config = config.clone();
            config.alpn_protocols = vec![inside.alpn().to_vec()];
            Arc::new(config)
        });
        Ok(Self { configs, authorities, revoked, resumptions, until })
    }

    /// What the next handshake is made with.
    pub(super) fn config(&self, inside: Inside) -> Arc<ServerConfig> {
        let [mqtt, web] = &self.configs;
        Arc::clone(match inside {
            Inside::Mqtt => mqtt,
            Inside::WebSocket => web,
        })
    }

    /// Who knows which certificate is shown.
    pub(crate) fn shows(&self) -> &dyn ResolvesServerCert {
        let [mqtt, _] = &self.configs;
        &*mqtt.cert_resolver
    }

    /// Judges a certificate with what followed it, after a handshake that was made with what was in force `then`. The papers are for
    /// `objection`; there are none where no authorities are configured.
    pub(super) fn examine(
        &self,
        chain: &[CertificateDer<'_>],
        then: &Self,
        now: UnixTime,
    ) -> Result<Option<Papers>, Objection> {
        if self.authorities.is_none() {
            return Ok(None);
        }
        let papers = Papers::of(chain.iter()).map_err(|_| Objection::Unreadable)?;
        papers.vouch(then.generation());
        if let Some(objection) = self.objection(&papers, now) {
            return Err(objection);
        }
        if self.must_vouch_for(&papers) {
            self.vouch(chain, &papers, now)?;
        }
        Ok(Some(papers))
    }

    /// What speaks against these papers now. Quick enough for all sessions at each look.
    #[must_use]
    pub(crate) fn objection(&self, papers: &Papers, now: UnixTime) -> Option<Objection> {
        if papers.are_in(&self.revoked) {
            Some(Objection::Revoked)
        } else if papers.have_expired(now) {
            Some(Objection::Expired)
        } else {
            None
        }
    }

    /// Whether the authorities are no longer those under which these papers were found good.
    #[must_use]
    pub(crate) fn must_vouch_for(&self, papers: &Papers) -> bool {
        papers.vouched() < self.generation()
    }

    /// Asks the authorities of now about these certificates: signatures and all.
    pub(crate) fn vouch(&self, chain: &[CertificateDer<'_>], papers: &Papers, now: UnixTime) -> Result<(), Objection> {
        let (Some(authorities), Some((leaf, rest))) = (&self.authorities, chain.split_first()) else { return Ok(()) };
        authorities.verifier.verify_client_cert(leaf, rest, now).map_err(|_| Objection::NoAuthority)?;
        papers.vouch(authorities.generation);
        Ok(())
    }

    pub(super) const fn asks_authorities(&self) -> bool {
        self.authorities.is_some()
    }

    fn generation(&self) -> u64 {
        self.authorities.as_ref().map_or(0, |authorities| authorities.generation)
    }

    /// When the server's certificate ends.
    pub(super) fn until(&self) -> OffsetDateTime {
        self.until
    }

    pub(super) fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    pub(super) fn resumable(&self) -> usize {
        self.resumptions.len()
    }
}

fn generation(now: &[CertificateDer<'_>], before: Option<&Trust>) -> u64 {
    match before.and_then(|before| before.authorities.as_ref()) {
        Some(before) if before.certificates.iter().all(|each| now.contains(each)) => before.generation,
        Some(before) => before.generation + 1,
        None => 1,
    }
}

fn roots(files: &Files, authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| {
            of_file(files.client_authorities.as_deref().unwrap_or(&files.certificate), format!("no authority: {error}"))
        })?;
    }
    Ok(roots)
}

fn until(files: &Files, chain: &[CertificateDer<'_>]) -> Result<OffsetDateTime, Error> {
    let first = chain.first().map(|der| X509Certificate::from_der(der));
    match first {
        Some(Ok((_, certificate))) => Ok(certificate.validity().not_after.to_datetime()),
        Some(Err(error)) => Err(of_file(&files.certificate, error)),
        None => Err(of_file(&files.certificate, "no certificate")),
    }
}
