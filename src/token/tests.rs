//! The examples of the standards, and tokens that must not be taken.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::*;

/// RFC 7515, appendix A.1.1, A.2.1, A.3.1: the same claims under each algorithm.
const CLAIMS: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

const HS256: (&str, &str, &str) = (
    "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
    "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#,
);

const RS256: (&str, &str, &str) = (
    "eyJhbGciOiJSUzI1NiJ9",
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t\
     1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12j\
     zDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQ\
     Ge77Rw",
    r#"{"kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}"#,
);

const ES256: (&str, &str, &str) = (
    "eyJhbGciOiJFUzI1NiJ9",
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
);

/// RFC 8037, appendix A.2 and A.4. What it signs are no claims.
const EDDSA: (&str, &str) = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
     hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
);

const EXP: i64 = 1_300_819_380;

fn policy() -> Policy {
    Policy {
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDsa, Algorithm::HS256],
        issuer: None,
        audience: Vec::new(),
        leeway: Duration::from_secs(5),
        name_claim: "iss".to_owned(),
        publish_claim: "publish".to_owned(),
        subscribe_claim: "subscribe".to_owned(),
    }
}

fn keys(jwks: &[&str]) -> Vec<Key> {
    of_set(&format!(r#"{{"keys":[{}]}}"#, jwks.join(","))).expect("keys")
}

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

const SECRET: &[u8; 32] = b"a secret of two and thirty bytes";

/// A token of this header and these claims, under that secret.
fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(&signed).finalize();
    format!("{signed}.{}", BASE64.encode(mac.into_bytes()))
}

/// With `SECRET` and the usual header.
fn saying(claims: &str) -> String {
    signed(r#"{"alg":"HS256"}"#, claims, SECRET)
}

fn secret() -> Vec<Key> {
    vec![Key::secret(SECRET.to_vec().into()).expect("long enough")]
}

fn named_by_sub() -> Policy {
    Policy { name_claim: "sub".to_owned(), ..policy() }
}

#[test]
fn the_examples_of_the_standard_are_taken_until_they_expire() {
    for (algorithm, (header, signature, jwk)) in
        [(Algorithm::HS256, HS256), (Algorithm::RS256, RS256), (Algorithm::ES256, ES256)]
    {
        let (token, keys) = (format!("{header}.{CLAIMS}.{signature}"), keys(&[jwk]));
        let judged = |now| judge(token.as_bytes(), &keys, &policy(), now);
        let good = Token { name: "joe".to_owned(), until: at(EXP + 5), publish: None, subscribe: None };
        assert_eq!(judged(at(EXP + 4)), Ok(good), "{algorithm:?}");
        assert_eq!(judged(at(EXP + 5)), Err(Objection::Expired));
        // Any bit of the signature, and any of what it is over.
        let spoilt = token.replace("IjpqbyI", "").replacen("eyJpc3MiOiJqb2Ui", "eyJpc3MiOiJqb2Ii", 1);
        assert_eq!(judge(spoilt.as_bytes(), &keys, &policy(), at(EXP)), Err(Objection::Signature));
        let mut signature = BASE64.decode(signature).expect("base64url");
        signature[7] ^= 1;
        let spoilt = format!("{header}.{CLAIMS}.{}", BASE64.encode(signature));
        assert_eq!(judge(spoilt.as_bytes(), &keys, &policy(), at(EXP)), Err(Objection::Signature));
        // The key of another.
        let allowed = Policy { algorithms: vec![Algorithm::EdDsa], ..policy() };
        assert_eq!(judge(token.as_bytes(), &keys, &allowed, at(EXP)), Err(Objection::Algorithm));
    }
    let (token, jwk) = EDDSA;
    let objection = judge(token.as_bytes(), &keys(&[jwk]), &policy(), at(EXP));
    assert_eq!(objection, Err(Objection::Claim("they are no JSON object")), "the signature is right");
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let claims = r#"{"sub":"d1","exp":2000}"#;
    let judged = |token: &str, keys: &[Key]| judge(token.as_bytes(), keys, &named_by_sub(), at(1000));
    assert_eq!(judged(&saying(claims), &secret()).map(|token| token.name), Ok("d1".to_owned()));
    // RFC 7515, appendix A.5: no signature, and no algorithm.
    let unsecured = format!("eyJhbGciOiJub25lIn0.{}.", BASE64.encode(claims));
    assert!(is_meant(unsecured.as_bytes()));
    assert_eq!(judged(&unsecured, &secret()), Err(Objection::Algorithm));
    for alg in ["none", "None", "HS384", "RS384", "hs256", "ES256K"] {
        let token = signed(&format!(r#"{{"alg":"{alg}"}}"#), claims, SECRET);
        assert_eq!(judged(&token, &secret()), Err(Objection::Algorithm), "{alg}");
    }
    // A public key is everybody's: as a secret it would be nobody's.
    let public: Box<[u8]> = vec![4; 65].into();
    let forged = signed(r#"{"alg":"HS256"}"#, claims, &public);
    assert_eq!(judged(&forged, &[Key::public(PublicKey::P256(public))]), Err(Objection::Key));
    for (header, why) in [
        (r#"{"alg":"HS256","crit":["exp"]}"#, Objection::Critical),
        (r#"{"alg":"HS256","crit":null}"#, Objection::Critical),
        (r#"{"alg":"HS256","alg":"HS256"}"#, Objection::Malformed),
        (r#"{"typ":"JWT"}"#, Objection::Malformed),
    ] {
        assert_eq!(judged(&signed(header, claims, SECRET), &secret()), Err(why), "{header}");
    }
}

#[test]
fn what_is_no_token_is_refused_and_not_meant_to_be_one() {
    let keys = secret();
    for text in
        ["", ".", "..", "...", "a.b", "kanga-kitenge", "a.b.c", "eyJhbGciOiJIUzI1NiJ9", "eyJ4IjoxfQ.e30.", "🔑.🔑.🔑"]
    {
        assert!(judge(text.as_bytes(), &keys, &policy(), at(0)).is_err(), "{text}");
        assert!(!is_meant(text.as_bytes()), "{text}");
    }
    let good = saying(r#"{"sub":"d1","exp":2000}"#);
    assert!(is_meant(good.as_bytes()));
    for bad in [good.clone() + "=", good.clone() + ".x", format!(" {good}"), good.replacen('.', "=.", 1)] {
        assert!(judge(bad.as_bytes(), &keys, &named_by_sub(), at(1000)).is_err(), "{bad}");
    }
}

#[test]
fn a_key_is_chosen_by_its_name() {
    let named = |kid: &str, secret: &[u8]| format!(r#"{{"kty":"oct","kid":"{kid}","k":"{}"}}"#, BASE64.encode(secret));
    let old = [0x55; 32];
    let both = keys(&[&named("new", SECRET), &named("old", &old)]);
    let (claims, now) = (r#"{"sub":"d1","exp":2000}"#, at(1000));
    let judged = |header: &str, secret: &[u8], keys: &[Key]| {
        judge(signed(header, claims, secret).as_bytes(), keys, &named_by_sub(), now).map(|token| token.name)
    };
    let (plain, new) = (r#"{"alg":"HS256"}"#, r#"{"alg":"HS256","kid":"new"}"#);
    assert_eq!(judged(new, SECRET, &both), Ok("d1".to_owned()));
    assert_eq!(judged(new, &old, &both), Err(Objection::Signature), "the name of the one, signed with the other");
    assert_eq!(judged(r#"{"alg":"HS256","kid":"other"}"#, SECRET, &both), Err(Objection::Key));
    assert_eq!(judged(plain, SECRET, &both), Err(Objection::Key), "which one?");
    assert_eq!(judged(plain, SECRET, &both[..1]), Ok("d1".to_owned()));
    assert_eq!(judged(new, SECRET, &secret()), Ok("d1".to_owned()), "a key without a name is for any");
}

#[test]
fn claims_are_what_is_configured_or_the_token_is_not_taken() {
    use Objection::{Audience, Claim, Expired, Issuer, NotYet};
    let policy = Policy {
        issuer: Some("https://id.bank.example".to_owned()),
        audience: vec!["wakala".to_owned(), "mqtt".to_owned()],
        ..named_by_sub()
    };
    let base = r#""sub":"d1","iss":"https://id.bank.example""#;
    for (more, wanted) in [
        (r#","aud":"wakala","exp":1000.5"#, Ok(1_005_500)),
        (r#","aud":["x","mqtt"],"exp":1e300"#, Ok(253_402_300_804_000)),
        (r#","aud":"wakala","exp":995"#, Err(Expired)),
        (r#","aud":"wakala","exp":996,"nbf":1005"#, Ok(1_001_000)),
        (r#","aud":"wakala","exp":2000,"nbf":1006"#, Err(NotYet)),
        (r#","aud":"wakala""#, Err(Claim("there is no `exp`: it would be good for ever"))),
        (r#","aud":"wakala","exp":"2000""#, Err(Claim("a time that is not in seconds since 1970"))),
        (r#","aud":"wakala","exp":-1"#, Err(Claim("a time that is not in seconds since 1970"))),
        (r#","aud":"wakala","exp":null"#, Err(Claim("a time that is not in seconds since 1970"))),
        (r#","exp":2000"#, Err(Audience)),
        (r#","aud":"other","exp":2000"#, Err(Audience)),
        (r#","aud":[],"exp":2000"#, Err(Audience)),
        (r#","aud":{"wakala":1},"exp":2000"#, Err(Audience)),
    ] {
        let token = saying(&format!("{{{base}{more}}}"));
        let judged = judge(token.as_bytes(), &secret(), &policy, at(1000)).map(|token| token.until.millis());
        assert_eq!(judged, wanted, "{more}");
    }
    for (claims, wanted) in [
        (r#"{"sub":"d1","iss":"https://id.bank.example/","aud":"mqtt","exp":2000}"#, Issuer),
        (r#"{"sub":"d1","aud":"mqtt","exp":2000}"#, Issuer),
        (r#"{"iss":"https://id.bank.example","aud":"mqtt","exp":2000}"#, Claim("none of them names the bearer")),
        (
            r#"{"sub":7,"iss":"https://id.bank.example","aud":"mqtt","exp":2000}"#,
            Claim("none of them names the bearer"),
        ),
        (r#"[{"exp":2000}]"#, Claim("they are no JSON object")),
    ] {
        assert_eq!(judge(saying(claims).as_bytes(), &secret(), &policy, at(1000)), Err(wanted), "{claims}");
    }
    for name in [r"\u0000", r"d\u00001", r"d\n1", r"d\u0085"] {
        let claims = format!(r#"{{"sub":"{name}","exp":2000}}"#);
        let judged = judge(saying(&claims).as_bytes(), &secret(), &named_by_sub(), at(0)).map(|token| token.name);
        assert_eq!(judged, Err(Claim("there is a control character in the bearer's name")), "{name}");
    }
    // RFC 7519 §4.1.3: whoever does not find himself in `aud` must not take it.
    let anybodys = judge(saying(r#"{"sub":"d1","aud":"x","exp":2000}"#).as_bytes(), &secret(), &named_by_sub(), at(0));
    assert_eq!(anybodys, Err(Audience));
}

#[test]
fn a_token_may_bring_its_topics() {
    let judged = |topics: &str| {
        let token = saying(&format!(r#"{{"sub":"d1","exp":2000,{topics}}}"#));
        judge(token.as_bytes(), &secret(), &named_by_sub(), at(0)).map(|token| (token.publish, token.subscribe))
    };
    let texts = |texts: &[&str]| Some(texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
    assert_eq!(judged(r#""publish":["a","b/%c"],"subscribe":[]"#), Ok((texts(&["a", "b/%c"]), texts(&[]))));
    assert_eq!(judged(r#""subscribe":"one/#""#), Ok((None, texts(&["one/#"]))));
    for bad in [r#""publish":[1]"#, r#""publish":null"#, r#""subscribe":{"a":1}"#] {
        assert!(matches!(judged(bad), Err(Objection::Claim(_))), "{bad}");
    }
}

#[test]
fn a_set_has_the_keys_that_verify_and_no_wrong_ones() {
    let good = ES256.2;
    let with = |more: &str| good.replacen('{', &format!("{{{more},"), 1);
    for passed_over in [
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#.to_owned(),
        r#"{"kty":"new"}"#.to_owned(),
        with(r#""use":"enc""#),
        with(r#""key_ops":["sign"]"#),
        with(r#""alg":"ES384""#),
    ] {
        assert_eq!(keys(&[good, &passed_over]).len(), 1, "{passed_over}");
        let alone = of_set(&format!(r#"{{"keys":[{passed_over}]}}"#)).map(drop);
        assert!(matches!(alone, Err(NoKeys::None)), "{passed_over}: {alone:?}");
    }
    for taken in [with(r#""use":"sig","alg":"ES256""#), with(r#""key_ops":["verify"],"kid":"7""#)] {
        assert_eq!(keys(&[&taken]).len(), 1, "{taken}");
    }
    let short = BASE64.encode([1; 31]);
    let small = BASE64.encode([0xFF; 128]);
    for wrong in [
        r#"{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}"#.to_owned(),
        r#"{"kty":"RSA","n":"AQAB"}"#.to_owned(),
        format!(r#"{{"kty":"RSA","n":"{small}","e":"AQAB"}}"#),
        r#"{"kty":"OKP","crv":"Ed25519","x":"AA"}"#.to_owned(),
        format!(r#"{{"kty":"oct","k":"{short}"}}"#),
        r#"{"kty":"oct","k":"not base64 but a secret that must not be printed"}"#.to_owned(),
        with(r#""d":"AAAA""#),
    ] {
        let said = of_set(&format!(r#"{{"keys":[{good},{wrong}]}}"#)).map(drop).expect_err("wrong").to_string();
        assert!(said.starts_with("key 1 (from 0): ") && !said.contains("must not be printed"), "{said}");
    }
    let said = of_set(r#"{"keys":["hunter2"]}"#).map(drop).expect_err("wrong").to_string();
    assert!(said.contains("line 1") && !said.contains("hunter2"), "{said}");
    let printed = format!("{:?}", secret());
    assert!(printed.contains("HS256") && !printed.contains("secret of"), "{printed}");
}
