use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaKeyPair,
    },
};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::*;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn unsigned(alg: &str, payload: &str) -> String {
    format!("{}.{}", b64(format!(r#"{{"alg":"{alg}","kid":"k"}}"#)), b64(payload))
}

fn jwks(key: &str) -> Jwks {
    Jwks::parse(format!(r#"{{"keys": [{{"kid": "k", {key}}}]}}"#).as_bytes()).unwrap()
}

/// The key's own token is taken; of another key, changed, or said to be by another algorithm
/// it is not.
fn check(alg: &str, jwks: &Jwks, sign: impl Fn(&[u8]) -> Vec<u8>) {
    let signed = unsigned(alg, r#"{"iss":"me"}"#);
    let token = format!("{signed}.{}", b64(sign(signed.as_bytes())));
    let jwt = Jwt::parse(&token).unwrap();
    assert_eq!(jwt.verify(jwks), Ok(()), "{alg}");
    let forged =
        format!("{}.{}", unsigned(alg, r#"{"iss":"you"}"#), token.rsplit('.').next().unwrap());
    assert_eq!(Jwt::parse(&forged).unwrap().verify(jwks), Err(JwtError::VerificationFails));
    let mut others = jwks.clone();
    others.keys[0].kid = Some("other".to_owned());
    assert_eq!(jwt.verify(&others), Err(JwtError::NoKey), "{alg}");
    for other in ["RS256", "PS384", "ES256", "EdDSA", "HS256"].into_iter().filter(|o| *o != alg) {
        let signed = unsigned(other, r#"{"iss":"me"}"#);
        let token = format!("{signed}.{}", b64(sign(signed.as_bytes())));
        assert!(Jwt::parse(&token).unwrap().verify(jwks).is_err(), "{alg} {other}");
    }
}

#[test]
fn signatures_of_every_kind() {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = rsa.public_key();
    let (n, e) = (public.modulus(), public.exponent());
    let key = format!(
        r#""kty": "RSA", "n": "{}", "e": "{}""#,
        b64(n.big_endian_without_leading_zero()),
        b64(e.big_endian_without_leading_zero())
    );
    for (alg, padding) in
        [("RS256", &RSA_PKCS1_SHA256 as &dyn signature::RsaEncoding), ("PS512", &RSA_PSS_SHA512)]
    {
        check(alg, &jwks(&key), |message| {
            let mut signature = vec![0; rsa.public_modulus_len()];
            rsa.sign(padding, &random, message, &mut signature).unwrap();
            signature
        });
    }
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = ec.public_key().as_ref();
    let (x, y) = (b64(&point[1..33]), b64(&point[33..]));
    let key = format!(r#""kty": "EC", "crv": "P-256", "x": "{x}", "y": "{y}""#);
    check("ES256", &jwks(&key), |message| ec.sign(&random, message).unwrap().as_ref().to_vec());
    let ed = Ed25519KeyPair::generate().unwrap();
    let x = b64(ed.public_key());
    let key = format!(r#""kty": "OKP", "crv": "Ed25519", "x": "{x}""#);
    check("EdDSA", &jwks(&key), |message| ed.sign(message).as_ref().to_vec());
    let key = jwks(&format!(r#""kty": "oct", "k": "{}""#, b64("secret")));
    check("HS256", &key, |message| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"secret"), message).as_ref().to_vec()
    });
}

#[test]
fn what_is_no_token() {
    let with = |header: &str, payload: &str| format!("{}.{}.c2ln", b64(header), b64(payload));
    let ok = r#"{"alg":"ES256"}"#;
    for (token, expected) in [
        ("a.b".to_owned(), JwtError::Format),
        ("a.b.c.d".to_owned(), JwtError::Format),
        ("!.b.c".to_owned(), JwtError::HeaderBase64),
        (with("x", "{}"), JwtError::HeaderJson),
        (with("{}", "{}"), JwtError::HeaderAlg),
        (with(r#"{"alg":"none"}"#, "{}"), JwtError::UnknownAlg),
        (with(r#"{"alg":"ES256","kid":1}"#, "{}"), JwtError::HeaderKid),
        (format!("{}.!.c2ln", b64(ok)), JwtError::PayloadBase64),
        (with(ok, "[]"), JwtError::PayloadJson),
        (with(ok, &"[".repeat(10_000)), JwtError::PayloadJson),
        (with(ok, r#"{"iss":1}"#), JwtError::Issuer),
        (with(ok, r#"{"exp":"1"}"#), JwtError::Expiration),
        (with(ok, r#"{"exp":-1}"#), JwtError::ExpirationRange),
        (with(ok, r#"{"exp":1e30}"#), JwtError::ExpirationRange),
        (with(ok, r#"{"exp":18446744073709551616}"#), JwtError::ExpirationRange),
        (with(ok, r#"{"nbf":1e30}"#), JwtError::NotBeforeRange),
        (with(ok, r#"{"iat":1e30}"#), JwtError::IssuedAtRange),
        (with(ok, r#"{"nbf":{}}"#), JwtError::NotBefore),
        (with(ok, r#"{"aud":[1]}"#), JwtError::Audience),
        (format!("{}.{}.!", b64(ok), b64("{}")), JwtError::SignatureBase64),
    ] {
        assert_eq!(Jwt::parse(&token).unwrap_err(), expected, "{token}");
    }
    // Of padding there is all or none.
    let bare = with(ok, "{}");
    let bare = bare.trim_end_matches(|c| c != '.');
    for signature in ["AA", "AA==", "AAA", "AAA="] {
        assert!(Jwt::parse(&format!("{bare}{signature}")).is_ok(), "{signature}");
    }
    for signature in ["AA=", "AA===", "AAAA=", "AAAA===="] {
        let token = format!("{bare}{signature}");
        assert_eq!(Jwt::parse(&token).unwrap_err(), JwtError::SignatureBase64, "{signature}");
    }
    let token = with(ok, r#"{"aud":"a","exp":9}"#);
    let jwt = Jwt::parse(&token).unwrap();
    assert_eq!((jwt.audiences, jwt.expires), (vec!["a".to_owned()], Some(9.0)));
}
