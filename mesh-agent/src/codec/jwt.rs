//! Tokens: read, and their signatures verified.
//!
//! Spec: RFC 7519 (JWT), RFC 7515 (JWS compact serialisation), RFC 7518 §3 (algorithms). What is
//! wrong is said in Envoy's words.

use aws_lc_rs::{
    constant_time, hmac,
    signature::{self, RsaPublicKeyComponents, UnparsedPublicKey},
};
use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::model::jwks::{Curve, Jwk, Jwks, Key};

/// As Envoy: what is left of the last character is not looked at. Padding: see [`decoded`].
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("Jwt is missing")]
    Missing,
    #[error("Jwt not yet valid")]
    NotYetValid,
    #[error("Jwt is expired")]
    Expired,
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Format,
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderBase64,
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    #[error("Jwt header [alg] field is required and must be a string")]
    HeaderAlg,
    #[error("Jwt header [alg] is not supported")]
    UnknownAlg,
    #[error("Jwt header [kid] field is not a string")]
    HeaderKid,
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadBase64,
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    #[error("Jwt payload [iss] field is not a string")]
    Issuer,
    #[error("Jwt payload [sub] field is not a string")]
    Subject,
    #[error("Jwt payload [iat] field is not an integer")]
    IssuedAt,
    #[error("Jwt payload [iat] field is not a positive 64 bit integer")]
    IssuedAtRange,
    #[error("Jwt payload [nbf] field is not an integer")]
    NotBefore,
    #[error("Jwt payload [nbf] field is not a positive 64 bit integer")]
    NotBeforeRange,
    #[error("Jwt payload [exp] field is not an integer")]
    Expiration,
    #[error("Jwt payload [exp] field is not a positive 64 bit integer")]
    ExpirationRange,
    #[error("Jwt payload [aud] field is not a string or string list")]
    Audience,
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureBase64,
    #[error("Jwt issuer is not configured")]
    UnknownIssuer,
    #[error("Audiences in Jwt are not allowed")]
    AudienceNotAllowed,
    /// By none of the keys; or it is not of a subject or a lifetime that its provider takes.
    #[error("Jwt verification fails")]
    VerificationFails,
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    #[error("Jwks remote fetch is failed")]
    FetchFailed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alg {
    Rsa(&'static signature::RsaParameters),
    Ec(Curve, &'static signature::EcdsaVerificationAlgorithm),
    EdDsa,
    Hmac(hmac::Algorithm),
}

impl Alg {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            "ES256" => Self::Ec(Curve::P256, &signature::ECDSA_P256_SHA256_FIXED),
            "ES384" => Self::Ec(Curve::P384, &signature::ECDSA_P384_SHA384_FIXED),
            "ES512" => Self::Ec(Curve::P521, &signature::ECDSA_P521_SHA512_FIXED),
            "EdDSA" => Self::EdDsa,
            "HS256" => Self::Hmac(hmac::HMAC_SHA256),
            "HS384" => Self::Hmac(hmac::HMAC_SHA384),
            "HS512" => Self::Hmac(hmac::HMAC_SHA512),
            _ => return None,
        })
    }
}

/// A token as it reads; nothing of it is proven.
#[derive(Debug)]
pub struct Jwt<'a> {
    /// What is signed.
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: Alg,
    alg: String,
    kid: Option<String>,
    pub header: Map<String, Value>,
    pub payload: Map<String, Value>,
    /// As it was sent.
    pub payload_base64url: &'a str,
    /// Empty where there is none.
    pub issuer: String,
    pub subject: String,
    pub audiences: Vec<String>,
    /// In seconds since 1970.
    pub not_before: Option<f64>,
    pub expires: Option<f64>,
}

impl<'a> Jwt<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(token: &'a str) -> Result<Self, JwtError> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtError::Format);
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        let bytes = decoded(header).ok_or(JwtError::HeaderBase64)?;
        let header: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| JwtError::HeaderJson)?;
        let alg = header.get("alg").and_then(Value::as_str).ok_or(JwtError::HeaderAlg)?.to_owned();
        let algorithm = Alg::named(&alg).ok_or(JwtError::UnknownAlg)?;
        let kid = text(&header, "kid", JwtError::HeaderKid)?.map(str::to_owned);
        let bytes = decoded(payload).ok_or(JwtError::PayloadBase64)?;
        let claims: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| JwtError::PayloadJson)?;
        let issuer = text(&claims, "iss", JwtError::Issuer)?.unwrap_or_default().to_owned();
        let subject = text(&claims, "sub", JwtError::Subject)?.unwrap_or_default().to_owned();
        time(&claims, "iat", [JwtError::IssuedAt, JwtError::IssuedAtRange])?;
        let not_before = time(&claims, "nbf", [JwtError::NotBefore, JwtError::NotBeforeRange])?;
        let expires = time(&claims, "exp", [JwtError::Expiration, JwtError::ExpirationRange])?;
        let audiences = match claims.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => {
                let all = all.iter().map(|one| Some(one.as_str()?.to_owned()));
                all.collect::<Option<_>>().ok_or(JwtError::Audience)?
            }
            Some(_) => return Err(JwtError::Audience),
        };
        let signature = decoded(signature).ok_or(JwtError::SignatureBase64)?;
        Ok(Self {
            signed,
            signature,
            algorithm,
            alg,
            kid,
            header,
            payload: claims,
            payload_base64url: payload,
            issuer,
            subject,
            audiences,
            not_before,
            expires,
        })
    }

    /// Whether one of the keys has signed it.
    ///
    /// # Errors
    /// None has, or none is for it.
    pub fn verify(&self, jwks: &Jwks) -> Result<(), JwtError> {
        let mut why = JwtError::NoKey;
        for key in &jwks.keys {
            let other = |own: &Option<String>, its: Option<&str>| {
                matches!((own.as_deref(), its), (Some(own), Some(its))
                    if !own.is_empty() && !its.is_empty() && own != its)
            };
            if other(&key.kid, self.kid.as_deref()) || other(&key.alg, Some(&self.alg)) {
                continue;
            }
            if self.is_signed_by(key) {
                return Ok(());
            }
            why = JwtError::VerificationFails;
        }
        Err(why)
    }

    fn is_signed_by(&self, Jwk { key, .. }: &Jwk) -> bool {
        let (message, signature) = (self.signed.as_bytes(), self.signature.as_slice());
        match (self.algorithm, key) {
            (Alg::Rsa(parameters), Key::Rsa { n, e }) => {
                let key = RsaPublicKeyComponents { n: trimmed(n), e: trimmed(e) };
                key.verify(parameters, message, signature).is_ok()
            }
            (Alg::Ec(wanted, algorithm), Key::Ec { curve, point }) if wanted == *curve => {
                UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
            }
            (Alg::EdDsa, Key::Ed25519(key)) => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            (Alg::Hmac(algorithm), Key::Octets(secret)) => {
                let tag = hmac::sign(&hmac::Key::new(algorithm, secret), message);
                constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok()
            }
            _ => false,
        }
    }
}

/// Some write numbers with leading zeros, which the library refuses.
fn trimmed(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|b| *b != 0).unwrap_or(number.len());
    &number[start..]
}

fn text<'m>(
    fields: &'m Map<String, Value>,
    name: &str,
    error: JwtError,
) -> Result<Option<&'m str>, JwtError> {
    fields.get(name).map(|value| value.as_str().ok_or(error)).transpose()
}

/// As Envoy: padding may be there, but then all of it.
fn decoded(part: &str) -> Option<Vec<u8>> {
    let padded = part.ends_with('=');
    if padded && !part.len().is_multiple_of(4) { None } else { BASE64.decode(part).ok() }
}

/// A time that is there is a number, and of 64 bits without a sign. `errors`: the two.
fn time(
    fields: &Map<String, Value>,
    name: &str,
    [no_number, out_of_range]: [JwtError; 2],
) -> Result<Option<f64>, JwtError> {
    const END: f64 = u64::MAX as f64;
    let Some(value) = fields.get(name) else { return Ok(None) };
    match value.as_f64().ok_or(no_number)? {
        time if (0.0..END).contains(&time) => Ok(Some(time)),
        _ => Err(out_of_range),
    }
}

/// Reads a peer's bytes as a token and as the keys it is verified by, of which the first byte
/// says how many, in 16s, are the token. For fuzzing.
#[doc(hidden)]
pub fn fuzz_token(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else { return };
    let (token, keys) = rest.split_at((usize::from(*length) * 16).min(rest.len()));
    let jwks = Jwks::parse(keys);
    if let Ok(text) = std::str::from_utf8(token)
        && let Ok(token) = Jwt::parse(text.trim_end())
        && let Ok(jwks) = &jwks
    {
        let _: Result<(), JwtError> = token.verify(jwks);
    }
}

#[cfg(test)]
mod tests;
