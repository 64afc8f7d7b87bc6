//! The keys that tokens are verified with, and how a JWK set holds them (RFC 7517, RFC 7518 §6, RFC 8037).

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Algorithm;

/// A key, and which tokens it is for. It cannot be printed: it may be a secret.
pub struct Key {
    kid: Option<Box<str>>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Box<[u8]>>),
    Public(PublicKey),
    Secret(Zeroizing<Vec<u8>>),
}

/// A public key by itself, as the file of one key has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// `RSAPublicKey` in DER (RFC 8017 §A.1.1).
    Rsa(Box<[u8]>),
    /// A point of P-256, uncompressed: 65 bytes.
    P256(Box<[u8]>),
    /// 32 bytes.
    Ed25519(Box<[u8]>),
}

/// The shortest secret of HS256, in bytes (RFC 7518 §3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// Why a text has no keys in it, or wrong ones.
#[derive(Debug, thiserror::Error)]
pub enum NoKeys {
    #[error("no JWK set (RFC 7517 §5): {0}")]
    NoSet(String),
    #[error("key {at} (from 0): {why}")]
    Key { at: usize, why: &'static str },
    #[error("it has no key to verify RS256, ES256, EdDSA or HS256 with")]
    None,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("for", &self.algorithm()).finish_non_exhaustive()
    }
}

impl Key {
    /// A key that is known by no name: for any token of its algorithm.
    #[must_use]
    pub fn public(key: PublicKey) -> Self {
        Self { kid: None, material: Material::Public(key) }
    }

    /// None when the secret is too short.
    #[must_use]
    pub fn secret(secret: Zeroizing<Vec<u8>>) -> Option<Self> {
        let long = secret.len() >= SECRET_BYTES_MIN;
        long.then_some(Self { kid: None, material: Material::Secret(secret) })
    }

    /// The one that it is for: a public key is never taken for a secret.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.material {
            Material::Rsa(_) | Material::Public(PublicKey::Rsa(_)) => Algorithm::RS256,
            Material::Public(PublicKey::P256(_)) => Algorithm::ES256,
            Material::Public(PublicKey::Ed25519(_)) => Algorithm::EdDsa,
            Material::Secret(_) => Algorithm::HS256,
        }
    }

    /// Whether a token with this header is to be verified with it.
    pub(super) fn fits(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        let named = match (self.kid.as_deref(), kid) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.algorithm() == algorithm && named
    }

    pub(super) fn verifies(&self, signed: &[u8], signed_with: &[u8]) -> bool {
        match &self.material {
            Material::Rsa(key) => key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signed_with).is_ok(),
            Material::Public(PublicKey::Rsa(key)) => {
                let key = UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key);
                key.verify(signed, signed_with).is_ok()
            }
            Material::Public(PublicKey::P256(key)) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key);
                key.verify(signed, signed_with).is_ok()
            }
            Material::Public(PublicKey::Ed25519(key)) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, signed_with).is_ok()
            }
            // In constant time.
            Material::Secret(secret) => Hmac::<Sha256>::new_from_slice(secret)
                .is_ok_and(|mac| mac.chain_update(signed).verify_slice(signed_with).is_ok()),
        }
    }
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<Jwk<'a>>,
}

/// What is looked at of a JWK. Texts are borrowed from the file, so that a secret has no copy that is not erased.
#[derive(Deserialize)]
struct Jwk<'a> {
    #[serde(borrow)]
    kty: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    alg: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "use")]
    usage: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_ops: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow)]
    crv: Option<Cow<'a, str>>,
    #[serde(borrow)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow)]
    e: Option<Cow<'a, str>>,
    #[serde(borrow)]
    x: Option<Cow<'a, str>>,
    #[serde(borrow)]
    y: Option<Cow<'a, str>>,
    #[serde(borrow)]
    k: Option<Cow<'a, str>>,
    d: Option<serde::de::IgnoredAny>,
}

/// The keys of a JWK set. Those of other kinds or for other uses are passed over (RFC 7517 §5); one that should serve
/// and cannot is an error.
///
/// # Errors
/// What is wrong, without the keys.
pub fn of_set(text: &str) -> Result<Vec<Key>, NoKeys> {
    // serde_json says where it failed, not what stood there.
    let set: Set<'_> = serde_json::from_str(text).map_err(|error| {
        NoKeys::NoSet(format!("line {}, column {}, in {:?}", error.line(), error.column(), error.classify()))
    })?;
    let mut keys = Vec::new();
    for (at, jwk) in set.keys.iter().enumerate() {
        let wrong = |why| NoKeys::Key { at, why };
        keys.extend(of_jwk(jwk).map_err(wrong)?);
    }
    if keys.is_empty() { Err(NoKeys::None) } else { Ok(keys) }
}

fn of_jwk(jwk: &Jwk<'_>) -> Result<Option<Key>, &'static str> {
    let verifies = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
        && jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    let material = match (&*jwk.kty, jwk.crv.as_deref()) {
        _ if !verifies => return Ok(None),
        ("RSA", _) => {
            let n = bytes(jwk.n.as_deref())?;
            // Without the zeros before it, as ring wants it.
            let n: Box<[u8]> = n.iter().copied().skip_while(|&byte| byte == 0).collect();
            if n.len() < 256 {
                return Err("an RSA key has at least 2048 bits (RFC 7518 §3.3)");
            }
            Material::Rsa(RsaPublicKeyComponents { n, e: bytes(jwk.e.as_deref())?.as_slice().into() })
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes(jwk.x.as_deref())?, bytes(jwk.y.as_deref())?);
            if (x.len(), y.len()) != (32, 32) {
                return Err("the coordinates of P-256 have 32 bytes (RFC 7518 §6.2.1.2)");
            }
            Material::Public(PublicKey::P256([&[4], &x[..], &y[..]].concat().into()))
        }
        ("OKP", Some("Ed25519")) => {
            let x = bytes(jwk.x.as_deref())?;
            if x.len() != 32 {
                return Err("a key of Ed25519 has 32 bytes");
            }
            Material::Public(PublicKey::Ed25519(x.as_slice().into()))
        }
        ("oct", _) => {
            let secret = bytes(jwk.k.as_deref())?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err("a secret of HS256 has at least 32 bytes (RFC 7518 §3.2)");
            }
            Material::Secret(secret)
        }
        _ => return Ok(None),
    };
    if jwk.d.is_some() {
        return Err("it is a private key, and whoever reads it can issue tokens; only its public part belongs here");
    }
    let key = Key { kid: jwk.kid.as_deref().map(Into::into), material };
    // PS256 and the like are signed with an RSA key too.
    Ok(jwk.alg.as_deref().is_none_or(|alg| Algorithm::named(alg) == Some(key.algorithm())).then_some(key))
}

fn bytes(text: Option<&str>) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let text = text.filter(|text| !text.is_empty()).ok_or("a part of it is missing")?;
    BASE64.decode(text).map(Zeroizing::new).map_err(|_| "a part of it is not base64url without padding")
}
