//! TLS that a gateway listener terminates.
//!
//! Spec: `envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext`.

use std::sync::Arc;

use rustls::{CipherSuite, NamedGroup};
use serde::Serialize;

use super::{
    CertificateMaterial, CertificateSource, TlsVersion, ValidationContext, ValidationSource, shown,
};

/// How a filter chain's clients are spoken to.
#[derive(Debug, Clone, Serialize)]
pub struct DownstreamTls {
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// For TLS 1.2, best first; empty: the library's.
    #[serde(serialize_with = "shown")]
    pub cipher_suites: Vec<CipherSuite>,
    /// Best first; empty: the library's.
    #[serde(serialize_with = "shown")]
    pub curves: Vec<NamedGroup>,
    /// Best first; empty: no protocol is agreed on.
    pub alpn: Vec<Arc<str>>,
    /// Never empty. The client's SNI picks; the first is for who names none of them.
    pub certificates: Vec<CertificateSource>,
    /// What a client that presents a certificate has to prove; `None`: none is asked for.
    pub validation: Option<ValidationSource>,
    /// Whether clients without a certificate are refused.
    pub require_client_certificate: bool,
    /// Whether clients are refused that name no server, or one that no certificate is for.
    pub require_sni: bool,
    /// Whether the client's order of cipher suites goes before ours.
    pub prefer_client_ciphers: bool,
}

impl DownstreamTls {
    /// Whether a private key is written in it.
    pub fn holds_private_key(&self) -> bool {
        let inline = |source: &CertificateSource| {
            matches!(source, CertificateSource::Given(CertificateMaterial::Inline(_)))
        };
        self.certificates.iter().any(inline)
    }

    /// The secrets it takes.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let certificates = self.certificates.iter().filter_map(CertificateSource::secret_name);
        let validation = self.validation.as_ref().and_then(ValidationSource::secret_name);
        certificates.chain(validation)
    }
}

/// TLS for one connection, with the secrets of one version of the configuration.
#[derive(Debug, Clone)]
pub struct TlsTermination {
    pub listener: Arc<str>,
    pub settings: Arc<DownstreamTls>,
    /// For each of the settings' certificates, the secret it names, if it is there.
    pub certificates: Vec<Option<Arc<CertificateMaterial>>>,
    /// The secret that `settings` name for it, if it is there.
    pub validation: Option<Arc<ValidationContext>>,
}
