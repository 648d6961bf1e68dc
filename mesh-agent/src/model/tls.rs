//! TLS towards the endpoints of a cluster, and the secrets it takes: certificates with
//! their keys, and what a peer has to prove.
//!
//! Spec: `envoy/extensions/transport_sockets/tls/v3/{tls,common,secret}.proto`.

mod downstream;
mod material;
mod validation;

use std::sync::Arc;

use rustls::{
    CipherSuite, NamedGroup, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use serde::{Serialize, Serializer};

pub use downstream::{DownstreamTls, TlsTermination};
pub use material::{
    CertificateFiles, MATERIAL_MAX_BYTES, MaterialError, TlsCertificate, anchors_from_pem,
    crls_from_pem,
};
pub use validation::{Crls, Roots, SanMatcher, SanType, ValidationContext};

use super::cluster::ClusterName;

/// How a cluster's endpoints are spoken to. Spec: `UpstreamTlsContext`.
#[derive(Debug, Clone, Serialize)]
pub struct UpstreamTls {
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// For TLS 1.2, best first; empty: the library's.
    #[serde(serialize_with = "shown")]
    pub cipher_suites: Vec<CipherSuite>,
    /// Best first; empty: the library's.
    #[serde(serialize_with = "shown")]
    pub curves: Vec<NamedGroup>,
    /// Best first; empty: what HTTP speaks on the connection, or nothing.
    pub alpn: Vec<Arc<str>>,
    /// A name to ask for; where it is none, nothing is asked for.
    pub sni: Option<Arc<str>>,
    /// What the endpoint is called goes before `sni`, where it has a name.
    pub sni_by_endpoint: bool,
    /// The server's certificate must be for the name that is asked for.
    pub sni_is_san: bool,
    pub by_host: HostNames,
    /// What is presented; `None`: nothing.
    pub certificate: Option<CertificateSource>,
    pub validation: ValidationSource,
}

/// What a request's host decides. Spec: `UpstreamHttpProtocolOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HostNames {
    /// It is the name asked for, in place of `sni`.
    pub sni: bool,
    /// The server's certificate must be for it.
    pub san: bool,
    /// A header that is taken for the host where a request has it.
    pub header: Option<Arc<str>>,
}

impl HostNames {
    /// Whether connections differ by host.
    pub fn any(&self) -> bool {
        self.sni || self.san
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

impl TlsVersion {
    /// From `min` to `max`, for rustls.
    pub fn range(min: Self, max: Self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match (min, max) {
            (Self::V1_2, Self::V1_2) => &BOTH[1..],
            (Self::V1_2, Self::V1_3) => &BOTH,
            (Self::V1_3, _) => &BOTH[..1],
        }
    }
}

/// Where the certificate that is presented comes from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    Given(CertificateMaterial),
    /// SDS, by name.
    Secret(Arc<str>),
}

/// A certificate with its key, or where it is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateMaterial {
    Inline(TlsCertificate),
    /// Read when they are needed, and again when they change.
    Files(CertificateFiles),
}

/// Where it is said what a server has to prove.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationSource {
    Inline(Arc<ValidationContext>),
    /// SDS, by name.
    Secret(Arc<str>),
    /// SDS, by name, on top of what is said here. Spec: `CombinedCertificateValidationContext`.
    Combined {
        default: Arc<ValidationContext>,
        secret: Arc<str>,
    },
}

impl CertificateSource {
    /// The secret it is, if it is one.
    pub fn secret_name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Secret(name) => Some(name),
            Self::Given(_) => None,
        }
    }

    /// What is presented.
    ///
    /// # Errors
    /// The name of the secret, which is not there.
    pub fn resolve<'a>(
        &'a self,
        secret: Option<&'a Arc<CertificateMaterial>>,
    ) -> Result<&'a CertificateMaterial, &'a Arc<str>> {
        match self {
            Self::Given(material) => Ok(material),
            Self::Secret(name) => secret.map(|material| &**material).ok_or(name),
        }
    }
}

impl ValidationSource {
    /// The secret it takes, if it takes one.
    pub fn secret_name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Secret(name) | Self::Combined { secret: name, .. } => Some(name),
            Self::Inline(_) => None,
        }
    }

    /// What has to be proven.
    ///
    /// # Errors
    /// The name of the secret, which is not there.
    pub fn resolve(
        &self,
        secret: Option<&Arc<ValidationContext>>,
    ) -> Result<ValidationContext, &Arc<str>> {
        match self {
            Self::Inline(context) => Ok(ValidationContext::clone(context)),
            Self::Secret(name) => Ok(ValidationContext::clone(secret.ok_or(name)?)),
            Self::Combined { default, secret: name } => Ok(secret.ok_or(name)?.on_top_of(default)),
        }
    }
}

impl UpstreamTls {
    /// Whether a private key is written in it.
    pub fn holds_private_key(&self) -> bool {
        let given = &self.certificate;
        matches!(given, Some(CertificateSource::Given(CertificateMaterial::Inline(_))))
    }

    /// The secrets it takes.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let certificate = self.certificate.as_ref().and_then(CertificateSource::secret_name);
        certificate.into_iter().chain(self.validation.secret_name())
    }
}

/// TLS for one connection, with the secrets of one version of the configuration.
#[derive(Debug, Clone)]
pub struct TlsOrigination {
    pub cluster: ClusterName,
    /// Which of the cluster's matches `settings` are of; `None`: its own.
    pub place: Option<usize>,
    pub settings: Arc<UpstreamTls>,
    /// The secret that `settings` name for it, if it is there.
    pub certificate: Option<Arc<CertificateMaterial>>,
    /// The secret that `settings` name for it, if it is there.
    pub validation: Option<Arc<ValidationContext>>,
}

fn shown<T: std::fmt::Debug, S: Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| format!("{value:?}")))
}
