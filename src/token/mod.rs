//! JSON Web Tokens (RFC 7519), signed (RFC 7515): who the bearer is, until when, and what it may do.
//!
//! A token is judged by what the operator has configured, never by what it says of itself: its algorithm must be one of
//! those that are allowed and the one of the key that it names (RFC 8725 §3.1, §3.2). The usual library for this would
//! bring a second provider of cryptography; ring is here already, for TLS.

mod keys;
#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::time::Time;
pub use keys::{Key, NoKeys, PublicKey, SECRET_BYTES_MIN, of_set};

/// How a token is signed (RFC 7518 §3.1, RFC 8037 §3.1). There are others, and `none`; they are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    RS256,
    ES256,
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// With a secret that whoever issues tokens and this node share: whoever reads it here can issue them.
    HS256,
}

/// What a token must say to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub algorithms: Vec<Algorithm>,
    /// `iss`, if it is to be looked at.
    pub issuer: Option<String>,
    /// One of these must be in `aud`. A token that is for somebody (RFC 7519 §4.1.3) is for nobody here if there is none.
    pub audience: Vec<String>,
    /// How far the clock of whoever issues tokens may be from this node's.
    pub leeway: Duration,
    /// The claim that names the bearer.
    pub name_claim: String,
    /// The claims with the topic templates that it may publish on and subscribe to, if it has them.
    pub publish_claim: String,
    pub subscribe_claim: String,
}

/// What a good token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    /// From then on it is good no longer: `exp` and the leeway.
    pub until: Time,
    /// None where it does not say.
    pub publish: Option<Vec<String>>,
    pub subscribe: Option<Vec<String>>,
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    #[error("it is no signed token")]
    Malformed,
    #[error("its header has `crit`: something that it must not be taken without, and that nobody here knows")]
    Critical,
    #[error("its algorithm is not one of those that are allowed")]
    Algorithm,
    #[error("there is no key for it; without a `kid` it must be the only one of its algorithm")]
    Key,
    #[error("its signature is wrong")]
    Signature,
    #[error("its claims are not what they should be: {0}")]
    Claim(&'static str),
    #[error("it has expired")]
    Expired,
    #[error("it is not yet good (`nbf`)")]
    NotYet,
    #[error("another issuer")]
    Issuer,
    #[error("it is for somebody else (`aud`)")]
    Audience,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    crit: Present,
}

/// That a field is there, whatever its value.
#[derive(Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(from).map(|_| Self(true))
    }
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::RS256),
            "ES256" => Some(Self::ES256),
            "EdDSA" => Some(Self::EdDsa),
            "HS256" => Some(Self::HS256),
            _ => None,
        }
    }
}

/// Whether a password is meant to be a token: three parts, and the first is a JSON object that names an algorithm. One
/// without a signature is meant to be one too.
#[must_use]
pub fn is_meant(text: &[u8]) -> bool {
    let mut parts = text.split(|&byte| byte == b'.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let Ok(header) = BASE64.decode(header) else { return false };
    matches!(serde_json::from_slice::<Value>(&header), Ok(Value::Object(fields)) if fields.contains_key("alg"))
}

/// Judges a token. Its signature comes before its claims: what nobody has signed says nothing.
///
/// # Errors
/// Why it is not taken.
pub fn judge(text: &[u8], keys: &[Key], policy: &Policy, now: Time) -> Result<Token, Objection> {
    let dot = text.iter().rposition(|&byte| byte == b'.').ok_or(Objection::Malformed)?;
    let (signed, signature) = (&text[..dot], &text[dot + 1..]);
    let mut parts = signed.split(|&byte| byte == b'.');
    let (Some(header), Some(claims), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Objection::Malformed);
    };
    let decoded = |part: &[u8]| BASE64.decode(part).map_err(|_| Objection::Malformed);
    let (header, claims, signature) = (decoded(header)?, decoded(claims)?, decoded(signature)?);
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| Objection::Malformed)?;
    if header.crit.0 {
        return Err(Objection::Critical);
    }
    let algorithm = Algorithm::named(&header.alg).filter(|algorithm| policy.algorithms.contains(algorithm));
    let algorithm = algorithm.ok_or(Objection::Algorithm)?;
    let mut fitting = keys.iter().filter(|key| key.fits(algorithm, header.kid.as_deref())).peekable();
    if fitting.peek().is_none() || (header.kid.is_none() && fitting.clone().nth(1).is_some()) {
        return Err(Objection::Key);
    }
    if !fitting.any(|key| key.verifies(signed, &signature)) {
        return Err(Objection::Signature);
    }
    let Ok(Value::Object(claims)) = serde_json::from_slice(&claims) else {
        return Err(Objection::Claim("they are no JSON object"));
    };
    read(claims, policy, now)
}

fn read(mut claims: Map<String, Value>, policy: &Policy, now: Time) -> Result<Token, Objection> {
    let end = moment(&claims, "exp")?.ok_or(Objection::Claim("there is no `exp`: it would be good for ever"))?;
    let until = end + policy.leeway;
    if until <= now {
        return Err(Objection::Expired);
    }
    if moment(&claims, "nbf")?.is_some_and(|from| from > now + policy.leeway) {
        return Err(Objection::NotYet);
    }
    if let Some(issuer) = &policy.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(Objection::Issuer);
    }
    let wanted = |aud: &Value| aud.as_str().is_some_and(|aud| policy.audience.iter().any(|ours| ours == aud));
    match claims.get("aud") {
        None if policy.audience.is_empty() => {}
        Some(Value::Array(many)) if many.iter().any(wanted) => {}
        Some(one) if wanted(one) => {}
        _ => return Err(Objection::Audience),
    }
    let publish = templates(&mut claims, &policy.publish_claim)?;
    let subscribe = templates(&mut claims, &policy.subscribe_claim)?;
    match claims.remove(&policy.name_claim) {
        // As in a CONNECT (MQTT 5, 1.5.4): no client could say it, and no ban name it.
        Some(Value::String(name)) if name.contains(char::is_control) => {
            Err(Objection::Claim("there is a control character in the bearer's name"))
        }
        Some(Value::String(name)) if !name.is_empty() => Ok(Token { name, until, publish, subscribe }),
        _ => Err(Objection::Claim("none of them names the bearer")),
    }
}

/// A `NumericDate`: seconds since 1970, whole or not (RFC 7519 §2).
fn moment(claims: &Map<String, Value>, claim: &str) -> Result<Option<Time>, Objection> {
    /// The end of the year 9999. What is good for longer is good until then.
    const LAST: f64 = 253_402_300_799.0;
    let Some(value) = claims.get(claim) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0);
    let seconds = seconds.ok_or(Objection::Claim("a time that is not in seconds since 1970"))?;
    #[expect(clippy::cast_possible_truncation, reason = "it is between 0 and 2.6e14")]
    let millis = (seconds.min(LAST) * 1000.0) as i64;
    Ok(Some(Time::from_millis(millis)))
}

/// A text or several.
fn templates(claims: &mut Map<String, Value>, claim: &str) -> Result<Option<Vec<String>>, Objection> {
    const WRONG: Objection = Objection::Claim("its topics are no text and no list of texts");
    let text = |value| match value {
        Value::String(text) => Ok(text),
        _ => Err(WRONG),
    };
    match claims.remove(claim) {
        None => Ok(None),
        Some(Value::Array(many)) => many.into_iter().map(text).collect::<Result<_, _>>().map(Some),
        Some(one) => text(one).map(|one| Some(vec![one])),
    }
}
