//! Certificates with their keys, and what peers are checked against, as SDS delivers them.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{secret,common,tls_spiffe_validator_config}.proto`.

use std::{fmt, sync::Arc};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use serde::{Serialize, Serializer};
use zeroize::Zeroize as _;

use super::{authz::StringMatcher, identity::TrustDomain};

/// One secret, by the name it is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Secret {
    pub name: Arc<str>,
    pub kind: SecretKind,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretKind {
    TlsCertificate(Arc<TlsCertificate>),
    ValidationContext(Arc<ValidationContext>),
}

impl Secret {
    /// Whether it must stay in memory: what holds a key is never written to disk.
    pub fn holds_private_key(&self) -> bool {
        matches!(self.kind, SecretKind::TlsCertificate(_))
    }
}

/// A certificate that proves who we are. Whether key and chain belong together is for
/// who uses them to check.
#[derive(Debug, Serialize)]
pub struct TlsCertificate {
    /// The leaf first; never empty.
    #[serde(serialize_with = "count")]
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKey,
}

/// A private key: wiped from memory when it goes, and never shown.
pub struct PrivateKey(PrivateKeyDer<'static>);

impl PrivateKey {
    /// Takes the key over.
    pub fn new(der: PrivateKeyDer<'static>) -> Self {
        Self(der)
    }

    /// The key itself; do not keep copies.
    pub fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[redacted]")
    }
}

/// What a peer's certificate has to be.
///
/// Spec: `envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ValidationContext {
    /// Roots, whatever the peer's trust domain.
    #[serde(serialize_with = "count")]
    pub trusted_ca: Vec<CertificateDer<'static>>,
    #[serde(serialize_with = "count")]
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    pub only_verify_leaf_cert_crl: bool,
    /// One must match; empty: any name will do.
    pub san_matchers: Vec<SanMatcher>,
    /// Roots of one trust domain each, from `SPIFFECertValidatorConfig`; not together
    /// with `trusted_ca`.
    pub trust_bundles: Vec<TrustBundle>,
    /// `ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
}

/// The roots of a trust domain.
#[derive(Debug, Clone, Serialize)]
pub struct TrustBundle {
    pub trust_domain: TrustDomain,
    #[serde(serialize_with = "count")]
    pub roots: Vec<CertificateDer<'static>>,
}

/// Spec: `envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct SanMatcher {
    pub san: SanType,
    pub matcher: StringMatcher,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SanType {
    Email,
    Dns,
    Uri,
    IpAddress,
}

/// Bytes of certificates say nothing to people; how many there are does.
fn count<T, S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(items.len() as u64)
}
