//! SPIFFE identities and trust domains.
//!
//! Spec: SPIFFE-ID (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID, in bytes, that is accepted. Spec: SPIFFE-ID §2.3.
pub const SPIFFE_ID_MAX_BYTES: usize = 2048;

/// Why a string is not a SPIFFE ID of a workload, or not a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Longer than [`SPIFFE_ID_MAX_BYTES`].
    #[error("SPIFFE ID of {0} bytes is longer than {SPIFFE_ID_MAX_BYTES}")]
    TooLong(usize),
    /// The scheme is not `spiffe://`.
    #[error("`{0}` is not a SPIFFE ID: it must start with spiffe://")]
    Scheme(String),
    /// Empty, or holds a character other than `a-z 0-9 . - _`.
    #[error("`{0}` is not a trust domain: use lower-case letters, digits, `.`, `-`, `_`")]
    TrustDomain(String),
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error(
        "`{0}` is not a workload's SPIFFE ID: its path must be /ns/<namespace>/sa/<service account>"
    )]
    Path(String),
}

/// A SPIFFE trust domain, for example `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name without scheme, for example `cluster.local`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        if s.is_empty() || s.len() > 255 || !s.bytes().all(valid) {
            return Err(IdentityError::TrustDomain(s.chars().take(64).collect()));
        }
        Ok(Self(s.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cheap to clone: the three parts are shared strings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl Identity {
    /// An identity of its parts.
    ///
    /// # Errors
    /// [`IdentityError::Path`] where a part is empty or holds a character that a
    /// SPIFFE path segment does not allow.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if !is_segment(namespace) || !is_segment(service_account) {
            return Err(IdentityError::Path(format!(
                "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"
            )));
        }
        Ok(Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The trust domain that vouches for this identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace, for example `shop`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account, for example `checkout`.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

/// Spec: SPIFFE-ID §2.2: letters, digits, `.`, `-`, `_`; not `.` or `..`.
fn is_segment(s: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    !s.is_empty() && s != "." && s != ".." && s.bytes().all(valid)
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() > SPIFFE_ID_MAX_BYTES {
            return Err(IdentityError::TooLong(s.len()));
        }
        let rest = s
            .strip_prefix("spiffe://")
            .ok_or_else(|| IdentityError::Scheme(s.chars().take(64).collect()))?;
        let (domain, path) =
            rest.split_once('/').ok_or_else(|| IdentityError::Path(s.to_owned()))?;
        let trust_domain = domain.parse()?;
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(IdentityError::Path(s.to_owned())),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_id_survives_the_round_trip() {
        let id: Identity = "spiffe://cluster.local/ns/shop/sa/checkout".parse().unwrap();
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "checkout");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/checkout");
    }

    #[test]
    fn what_is_not_a_workload_id_is_refused() {
        for s in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a/sa/b?x=1",
            "spiffe://cluster.local/ns/a%2fb/sa/b",
        ] {
            assert!(s.parse::<Identity>().is_err(), "{s} was accepted");
        }
        let long = format!("spiffe://a/ns/{}/sa/b", "x".repeat(SPIFFE_ID_MAX_BYTES));
        assert!(matches!(long.parse::<Identity>(), Err(IdentityError::TooLong(_))));
    }
}
