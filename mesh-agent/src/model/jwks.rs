//! Keys that tokens are signed with.
//!
//! Spec: RFC 7517 (JWK), RFC 7518 §6, RFC 8037 §2.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// More keys than anybody rotates through.
const KEYS_MAX: usize = 256;

/// A JWKS: the keys of it that are understood.
#[derive(Clone, PartialEq, Eq)]
pub struct Jwks {
    /// At least one.
    pub keys: Vec<Jwk>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Jwk {
    pub kid: Option<String>,
    pub alg: Option<String>,
    pub key: Key,
}

/// Numbers are big-endian.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    /// A shared secret.
    Octets(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    P256,
    P384,
    P521,
}

/// Why bytes are no JWKS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    #[error("Jwks is an invalid JSON")]
    Json,
    #[error("Jwks does not have [keys] field")]
    NoKeys,
    #[error("[keys] in Jwks is not an array")]
    BadKeys,
    #[error("Jwks doesn't have any valid public key")]
    NoValidKeys,
    #[error("Jwks has more than {KEYS_MAX} keys")]
    TooMany,
}

impl Jwks {
    /// The keys that are understood; the others count for nothing, as with Envoy.
    ///
    /// # Errors
    /// [`JwksError`]
    pub fn parse(json: &[u8]) -> Result<Self, JwksError> {
        let whole: Map<String, Value> =
            serde_json::from_slice(json).map_err(|_| JwksError::Json)?;
        let keys = whole.get("keys").ok_or(JwksError::NoKeys)?;
        let keys = keys.as_array().ok_or(JwksError::BadKeys)?;
        if keys.len() > KEYS_MAX {
            return Err(JwksError::TooMany);
        }
        let keys: Vec<_> = keys.iter().filter_map(|key| Jwk::read(key.as_object()?)).collect();
        if keys.is_empty() { Err(JwksError::NoValidKeys) } else { Ok(Self { keys }) }
    }
}

impl Jwk {
    fn read(jwk: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| jwk.get(name).map(|value| value.as_str().ok_or(())).transpose();
        let (kid, alg) = (text("kid").ok()?, text("alg").ok()?);
        let bytes = |name: &str| {
            let text = jwk.get(name)?.as_str()?.trim_end_matches('=');
            BASE64_URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| !bytes.is_empty())
        };
        let for_alg = |prefixes: &[&str]| {
            alg.is_none_or(|alg| prefixes.iter().any(|prefix| alg.starts_with(prefix)))
        };
        let key = match jwk.get("kty")?.as_str()? {
            "RSA" if for_alg(&["RS", "PS"]) => Key::Rsa { n: bytes("n")?, e: bytes("e")? },
            "EC" => {
                let (curve, name, size) = match (text("crv").ok()?, alg) {
                    (Some("P-256"), _) | (None, Some("ES256")) => (Curve::P256, "ES256", 32_usize),
                    (Some("P-384"), _) | (None, Some("ES384")) => (Curve::P384, "ES384", 48),
                    (Some("P-521"), _) | (None, Some("ES512")) => (Curve::P521, "ES512", 66),
                    _ => return None,
                };
                if alg.is_some_and(|alg| alg != name) {
                    return None;
                }
                let mut point = vec![4];
                for coordinate in [bytes("x")?, bytes("y")?] {
                    let padding = size.checked_sub(coordinate.len())?;
                    point.extend(std::iter::repeat_n(0, padding));
                    point.extend(coordinate);
                }
                Key::Ec { curve, point }
            }
            "OKP" if for_alg(&["EdDSA"]) && text("crv").ok()? == Some("Ed25519") => {
                Key::Ed25519(bytes("x").filter(|x| x.len() == 32)?)
            }
            "oct" if for_alg(&["HS"]) => Key::Octets(bytes("k")?),
            _ => return None,
        };
        Some(Self { kid: kid.map(str::to_owned), alg: alg.map(str::to_owned), key })
    }
}

/// Only what is public.
impl Serialize for Jwks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys.iter().map(|key| &key.kid))
    }
}

/// Only what is public.
impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_counts_for_nothing() {
        let parse = |json: &str| Jwks::parse(json.as_bytes());
        assert_eq!(parse("nonsense"), Err(JwksError::Json));
        assert_eq!(parse("{}"), Err(JwksError::NoKeys));
        assert_eq!(parse(r#"{"keys": {}}"#), Err(JwksError::BadKeys));
        assert_eq!(parse(r#"{"keys": []}"#), Err(JwksError::NoValidKeys));
        let many = vec!["{}"; KEYS_MAX + 1].join(",");
        assert_eq!(parse(&format!(r#"{{"keys": [{many}]}}"#)), Err(JwksError::TooMany));
        let keys = r#"{"keys": [
            {"kty": "RSA", "n": "AQAB"}, {"kty": "RSA", "n": "!", "e": "AQAB"},
            {"kty": "EC", "crv": "P-224", "x": "AQ", "y": "AQ"},
            {"kty": "OKP", "crv": "X25519", "x": "AQ"}, {"kty": "oct", "alg": "RS256", "k": "AQ"},
            {"kty": "EC", "crv": "P-256", "alg": "ES384", "x": "AQ", "y": "AQ"},
            {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "Ag", "kid": "good"}, 7]}"#;
        let keys = parse(keys).unwrap().keys;
        let [Jwk { kid: Some(kid), key: Key::Ec { point, .. }, .. }] = &keys[..] else {
            panic!("one key is good")
        };
        assert_eq!((kid.as_str(), point.len(), point[32], point[64]), ("good", 65, 1, 2));
    }
}
