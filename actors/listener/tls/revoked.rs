//! Which certificates are revoked: the lists of the configured authorities, as a set that is asked in no time.
//!
//! rustls would verify the signature of a list, over all its bytes, in each handshake, and in no resumed one. Here it is
//! verified once, when the list is read, and every connection asks the same set: while it shakes hands, when it says
//! CONNECT, and from then on as long as it lives.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// Names one certificate: SHA-256 over its issuer and its serial number.
pub(super) type Name = [u8; 32];

/// The names of all that is revoked.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    names: HashSet<Name>,
    /// When the first of the lists should have been replaced by a newer one.
    until: Option<OffsetDateTime>,
}

impl Revoked {
    /// Reads the lists. Each must have been signed by one of the authorities, and be whole: no delta, no list on behalf
    /// of others, nothing critical that is not understood (RFC 5280 §5.2).
    pub(super) fn read(
        lists: &[CertificateRevocationListDer<'static>],
        authorities: &[CertificateDer<'static>],
        roots: &Arc<RootCertStore>,
        provider: &Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Self, String> {
        // For its strict reading alone: webpki refuses what it could not be sure of.
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .with_crls(lists.iter().cloned())
            .build()
            .map_err(|error| error.to_string())?;
        let authorities =
            authorities.iter().map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate));
        let authorities: Vec<_> = authorities.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let (mut names, mut until) = (HashSet::new(), None);
        for der in lists {
            let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| error.to_string())?;
            let signed = |authority: &&X509Certificate<'_>| list.verify_signature(authority.public_key()).is_ok();
            let signers: Vec<_> = authorities.iter().filter(signed).collect();
            // Of authorities with one key, as one that was given another name, that which the list names.
            let named = signers.iter().find(|signer| signer.subject().as_raw() == list.issuer().as_raw());
            let Some(signer) = named.or_else(|| signers.first()) else {
                return Err(format!("none of the configured authorities signed the list of {}", list.issuer()));
            };
            // By the signer's own name: that is what certificates under it call their issuer, byte for byte.
            let issuer = signer.subject().as_raw();
            until = until.into_iter().chain(list.next_update().map(|next| next.to_datetime())).min();
            names.extend(list.iter_revoked_certificates().map(|each| name(issuer, each.raw_serial())));
        }
        Ok(Self { names, until })
    }

    pub(super) fn has(&self, name: &Name) -> bool {
        self.names.contains(name)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn until(&self) -> Option<OffsetDateTime> {
        self.until
    }
}

pub(super) fn name(issuer: &[u8], serial: &[u8]) -> Name {
    let serial = &serial[serial.iter().take_while(|&&byte| byte == 0).count()..];
    Sha256::new().chain_update(Sha256::digest(issuer)).chain_update(serial).finalize().into()
}
