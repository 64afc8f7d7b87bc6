//! Tokens in the password field: which keys they are verified with, and the files of those.
//!
//! Verifying takes 4 µs (HS256), 22 (RS256), 38 (EdDSA) or 51 (ES256), where that was measured: a quarter of the TLS handshake
//! before it, and what handing it to another thread would cost. So it is done where the connection is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use wakala::time::Time;
use wakala::token::{self, Algorithm, Key, Objection, Policy, PublicKey, SECRET_BYTES_MIN, Token};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use zeroize::Zeroizing;

use crate::watched::{Report, Watched};

/// Tokens (RFC 7519) that clients bring as their password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// A JWK set (RFC 7517), or one public key in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<PathBuf>,
    /// The secret of HS256: the bytes of this file, but for a line's end after them. At least 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<PathBuf>,
    /// How tokens may be signed: "RS256", "ES256", "EdDSA", "HS256".
    pub algorithms: Vec<Algorithm>,
    /// `iss`, which then must be this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// `aud`, which then must have one of these. Without it a token that has an `aud` is not taken.
    pub audience: Vec<String>,
    /// How far the clock of whoever issues tokens may be from this node's. A token is good, and its session lives, until
    /// so long after its `exp`.
    #[serde(with = "humantime_serde")]
    pub leeway: Duration,
    /// The claim that names the client. Its client identifier must be the same, or empty.
    pub name_claim: String,
    /// The claim with the topic templates for publishing, a text or a list. A token without it has `open.publish`.
    pub publish_claim: String,
    /// The same for subscribing, and `open.subscribe`.
    pub subscribe_claim: String,
    /// Tokens may name enrolled terminals too, which then need neither certificate nor password.
    pub terminals: bool,
    /// How often it is looked whether the files have changed. What has changed is read when it has stood still for one
    /// look.
    #[serde(with = "humantime_serde")]
    pub look_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keys: None,
            secret: None,
            algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDsa],
            issuer: None,
            audience: Vec::new(),
            leeway: Duration::from_secs(5),
            name_claim: "sub".to_owned(),
            publish_claim: "publish".to_owned(),
            subscribe_claim: "subscribe".to_owned(),
            terminals: false,
            look_every: Duration::from_millis(250),
        }
    }
}

impl Options {
    /// Has paths that the configuration's file gives relative to itself found from anywhere.
    pub(super) fn resolve(&mut self, found: impl Fn(&Path) -> PathBuf) {
        for path in self.keys.iter_mut().chain(&mut self.secret) {
            *path = found(path);
        }
    }

    /// Reads the keys.
    pub(super) fn read(&self) -> Result<Vec<Key>, String> {
        let mut keys = Vec::new();
        if let Some(path) = &self.keys {
            keys.extend(of_file(path).map_err(|why| format!("{}: {why}", path.display()))?);
        }
        if let Some(path) = &self.secret {
            keys.push(secret(path).map_err(|why| format!("{}: {why}", path.display()))?);
        }
        if keys.iter().any(|key| self.algorithms.contains(&key.algorithm())) {
            Ok(keys)
        } else {
            Err("none of the keys is for any of `algorithms`".to_owned())
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            algorithms: self.algorithms.clone(),
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            leeway: self.leeway,
            name_claim: self.name_claim.clone(),
            publish_claim: self.publish_claim.clone(),
            subscribe_claim: self.subscribe_claim.clone(),
        }
    }
}

/// What tokens are judged by. Clones are the same.
#[derive(Clone)]
pub(super) struct Tokens {
    policy: std::sync::Arc<Policy>,
    keys: Watched<Vec<Key>>,
    pub(super) terminals: bool,
}

impl Tokens {
    pub(super) fn open(options: &Options, runtime: &tokio::runtime::Handle) -> Result<Self, String> {
        let paths = options.keys.iter().chain(&options.secret).cloned().collect();
        let reading = options.clone();
        let keys = Watched::open("the keys of tokens", paths, move || reading.read())?;
        keys.look_every(options.look_every, runtime);
        Ok(Self { policy: options.policy().into(), keys, terminals: options.terminals })
    }

    pub(super) fn judge(&self, text: &[u8], now: Time) -> Result<Token, Objection> {
        token::judge(text, &self.keys.now(), &self.policy, now)
    }

    pub(super) fn reload(&self) {
        self.keys.reload();
    }

    pub(super) fn report(&self) -> (usize, Report) {
        (self.keys.now().len(), self.keys.report())
    }
}

fn of_file(path: &Path) -> Result<Vec<Key>, String> {
    let text = Zeroizing::new(std::fs::read(path).map_err(|error| error.to_string())?);
    if text.trim_ascii_start().starts_with(b"{") {
        let text = std::str::from_utf8(&text).map_err(|_| "it is not text".to_owned())?;
        return token::of_set(text).map_err(|error| error.to_string());
    }
    const WANTED: &str = "neither a JWK set (JSON) nor a public key in PEM (BEGIN PUBLIC KEY)";
    let der = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_| WANTED.to_owned())?;
    Ok(vec![Key::public(public(&der)?)])
}

fn public(der: &[u8]) -> Result<PublicKey, String> {
    let (_, key) = SubjectPublicKeyInfo::from_der(der).map_err(|_| "it is no public key (RFC 5280 §4.1.2.7)")?;
    let parameters = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    let parameters = parameters.map(|oid| oid.to_id_string());
    let bits: Box<[u8]> = key.subject_public_key.data.as_ref().into();
    match (key.algorithm.algorithm.to_id_string().as_str(), parameters.as_deref(), bits.len()) {
        // 2048 bits and what DER adds.
        ("1.2.840.113549.1.1.1", _, 266..) => Ok(PublicKey::Rsa(bits)),
        ("1.2.840.113549.1.1.1", ..) => Err("an RSA key has at least 2048 bits (RFC 7518 §3.3)".to_owned()),
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7"), 65) => Ok(PublicKey::P256(bits)),
        ("1.3.101.112", _, 32) => Ok(PublicKey::Ed25519(bits)),
        _ => Err("it is no key of RSA, of P-256 or of Ed25519".to_owned()),
    }
}

fn secret(path: &Path) -> Result<Key, String> {
    let mut bytes = Zeroizing::new(std::fs::read(path).map_err(|error| error.to_string())?);
    let length = bytes.trim_ascii_end().len();
    // A line's end is an editor's; spaces before it may be meant.
    while bytes.len() > length && matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Key::secret(bytes).ok_or_else(|| format!("a secret of HS256 has at least {SECRET_BYTES_MIN} bytes (RFC 7518 §3.2)"))
}
