//! Tokens by which a broker that asks for them knows each client: JSON Web Tokens, HS256 (RFC 7519, RFC 7515 appendix A.1).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

/// Longer than any measurement.
const GOOD_FOR_S: u64 = 24 * 3600;

pub(crate) fn read_secret(file: &Path) -> Result<hmac::Key> {
    let secret = std::fs::read(file).with_context(|| file.display().to_string())?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret.trim_ascii()))
}

pub(crate) fn token(secret: &hmac::Key, client: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = serde_json::json!({"sub": client, "exp": now + GOOD_FOR_S});
    let signed = format!("{}.{}", coded(br#"{"alg":"HS256","typ":"JWT"}"#), coded(claims.to_string().as_bytes()));
    let signature = coded(hmac::sign(secret, signed.as_bytes()).as_ref());
    format!("{signed}.{signature}")
}

fn coded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_and_names_its_client() {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let token = token(&secret, "c1");
        let (signed, signature) = token.rsplit_once('.').unwrap();
        hmac::verify(&secret, signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.').unwrap().1).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&claims).unwrap()["sub"], "c1");
    }
}
