//! Certificates with their keys, and what peers are checked against, as SDS delivers them.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/secret.proto`.

use std::sync::Arc;

use serde::Serialize;

use super::tls::{CertificateMaterial, ValidationContext};

/// One secret, by the name it is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Secret {
    pub name: Arc<str>,
    pub kind: SecretKind,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretKind {
    TlsCertificate(Arc<CertificateMaterial>),
    ValidationContext(Arc<ValidationContext>),
}

impl Secret {
    /// Whether it must stay in memory: what holds a key is never written to disk.
    pub fn holds_private_key(&self) -> bool {
        match &self.kind {
            SecretKind::TlsCertificate(material) => {
                matches!(**material, CertificateMaterial::Inline(_))
            }
            SecretKind::ValidationContext(_) => false,
        }
    }
}
