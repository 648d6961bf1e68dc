//! TLS towards endpoints that are not of the mesh: what clusters' settings and secrets
//! make of rustls' configurations.
//!
//! A [`UpstreamContext`] is made of one version of a cluster's settings, secrets and
//! files, and has a number that no other has: connections are shared only among those
//! who would get the same one.

pub(super) mod names;
mod verify;

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};

pub use verify::{RefusedServer, refused_server};

use self::verify::Expected;
pub(super) use self::verify::{Trust, signatures_by_trust};
use super::{
    clock::{Clock, system_clock},
    contexts::{self, Contexts, Make, Recipe},
    material::{self, Unusable},
};
use crate::model::{
    cluster::ClusterName,
    tls::{CertificateMaterial, TlsOrigination, TlsVersion, UpstreamTls, ValidationContext},
};

/// Why there is no TLS configuration for a cluster's endpoints: they are not dialled.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// SDS has not delivered it, or no longer does.
    #[error("cluster `{cluster}`: there is no secret `{secret}`")]
    NoSecret { cluster: ClusterName, secret: Arc<str> },
    #[error("cluster `{cluster}`: {source}")]
    Material {
        cluster: ClusterName,
        #[source]
        source: Unusable,
    },
    /// What SDS delivered leaves open whom to trust.
    #[error("cluster `{cluster}`: validation context: {flaw}")]
    Unsafe { cluster: ClusterName, flaw: &'static str },
    /// The server's certificate would have to be for it.
    #[error("cluster `{cluster}`: {endpoint} has no hostname to validate its certificate against")]
    NoName { cluster: ClusterName, endpoint: SocketAddr },
    #[error("cluster `{cluster}`: rustls refuses its settings: {source}")]
    Tls {
        cluster: ClusterName,
        #[source]
        source: rustls::Error,
    },
}

/// The contexts of all clusters that are in use.
pub type UpstreamContexts = Contexts<TlsOrigination, Originator>;

/// Makes the contexts of clusters.
#[derive(Debug)]
pub struct Originator {
    clock: Clock,
    numbers: AtomicU64,
}

/// TLS for one version of a cluster.
pub struct UpstreamContext {
    id: u64,
    settings: Arc<UpstreamTls>,
    base: ClientConfig,
    trust: Arc<Trust>,
}

/// Names that a server may be asked for by; settings decide which.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names<'a> {
    /// The host of a request, where requests decide.
    pub host: Option<&'a str>,
    /// The endpoint's, where endpoints do.
    pub endpoint: Option<&'a str>,
}

/// What HTTP speaks on a connection, which ALPN says where the cluster does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    Http1,
    Http2,
    /// Not HTTP.
    Opaque,
}

impl Default for UpstreamContexts {
    fn default() -> Self {
        Self::new(system_clock())
    }
}

impl UpstreamContexts {
    /// Certificates are judged by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self::of(Originator { clock, numbers: AtomicU64::new(1) })
    }

    /// The contexts whose connections are what new ones would be, by their numbers.
    pub fn current(&self) -> HashSet<u64> {
        self.all().iter().map(|context| context.id).collect()
    }
}

impl Make<TlsOrigination> for Originator {
    fn make(&self, origination: &TlsOrigination) -> Result<UpstreamContext, UpstreamTlsError> {
        let TlsOrigination { cluster, settings, .. } = origination;
        let certificate = presented(origination)?;
        let validation = validation(origination)?;
        if let Some(flaw) = validation.flaw() {
            return Err(UpstreamTlsError::Unsafe { cluster: cluster.clone(), flaw });
        }
        let provider = Arc::new(material::provider(&settings.cipher_suites, &settings.curves));
        let trust = Trust::new(&validation, &provider).map_err(|e| unusable(origination, e))?;
        let trust = Arc::new(trust);
        let expected = Expected::new(Arc::clone(&trust), Vec::new());
        let builder = ClientConfig::builder_with_details(provider, Arc::clone(&self.clock))
            .with_protocol_versions(TlsVersion::range(settings.min_version, settings.max_version))
            .map_err(|source| UpstreamTlsError::Tls { cluster: cluster.clone(), source })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(expected));
        let mut base = match certificate {
            Some(certified) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        // Every connection is judged by what is in force when it is made.
        base.resumption = Resumption::disabled();
        let id = self.numbers.fetch_add(1, Ordering::Relaxed);
        Ok(UpstreamContext { id, settings: Arc::clone(settings), base, trust })
    }
}

impl fmt::Debug for UpstreamContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamContext").field("id", &self.id).finish_non_exhaustive()
    }
}

impl UpstreamContext {
    /// Which context this is, among all that this process has made.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The name that a server is asked for by. As Envoy: a host that is an address is none.
    pub fn sni<'a>(&'a self, Names { host, endpoint }: Names<'a>) -> Option<&'a str> {
        let settings = &*self.settings;
        let is_address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        host.filter(|host| settings.by_host.sni && !is_address(host))
            .or(endpoint.filter(|_| settings.sni_by_endpoint))
            .or(settings.sni.as_deref())
    }

    /// The configuration of one connection, and the name to connect with. An address instead
    /// of a name is never sent.
    pub fn connection(
        &self,
        alpn: Alpn,
        names: Names<'_>,
        address: IpAddr,
    ) -> (Arc<ClientConfig>, ServerName<'static>) {
        let settings = &*self.settings;
        let sni = self.sni(names);
        let name = sni.and_then(|sni| ServerName::try_from(sni.to_owned()).ok());
        let mut config = self.base.clone();
        config.enable_sni = name.is_some();
        config.alpn_protocols = match (settings.alpn.is_empty(), alpn) {
            (false, _) => settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect(),
            (true, Alpn::Http1) => vec![b"http/1.1".to_vec()],
            (true, Alpn::Http2) => vec![b"h2".to_vec()],
            (true, Alpn::Opaque) => Vec::new(),
        };
        let mut must_be = Vec::new();
        must_be.extend(names.host.filter(|_| settings.by_host.san).map(str::to_owned));
        must_be.extend(sni.filter(|_| settings.sni_is_san).map(str::to_owned));
        if !must_be.is_empty() {
            let expected = Expected::new(Arc::clone(&self.trust), must_be);
            config.dangerous().set_certificate_verifier(Arc::new(expected));
        }
        (Arc::new(config), name.unwrap_or(ServerName::IpAddress(address.into())))
    }
}

impl Recipe for TlsOrigination {
    /// A cluster, and which of its transport sockets.
    type Place = (ClusterName, Option<usize>);
    type Context = UpstreamContext;
    type Error = UpstreamTlsError;

    fn place(&self) -> Self::Place {
        (self.cluster.clone(), self.place)
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.settings, &other.settings)
            && contexts::is(&self.certificate, &other.certificate)
            && contexts::is(&self.validation, &other.validation)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if let Ok(Some(certificate)) = material(self) {
            files.extend(material::files_of_certificate(certificate));
        }
        if let Ok(context) = validation(self) {
            files.extend(material::files_of_validation(&context));
        }
        files
    }
}

fn no_secret(origination: &TlsOrigination, secret: &Arc<str>) -> UpstreamTlsError {
    let cluster = origination.cluster.clone();
    UpstreamTlsError::NoSecret { cluster, secret: Arc::clone(secret) }
}

fn material(
    origination: &TlsOrigination,
) -> Result<Option<&CertificateMaterial>, UpstreamTlsError> {
    let source = origination.settings.certificate.as_ref();
    let material = source.map(|source| source.resolve(origination.certificate.as_ref()));
    material.transpose().map_err(|name| no_secret(origination, name))
}

fn presented(origination: &TlsOrigination) -> Result<Option<Arc<CertifiedKey>>, UpstreamTlsError> {
    let certified = material(origination)?.map(material::certified).transpose();
    certified.map_err(|source| unusable(origination, source))
}

fn unusable(origination: &TlsOrigination, source: Unusable) -> UpstreamTlsError {
    UpstreamTlsError::Material { cluster: origination.cluster.clone(), source }
}

fn validation(origination: &TlsOrigination) -> Result<ValidationContext, UpstreamTlsError> {
    let context = origination.settings.validation.resolve(origination.validation.as_ref());
    context.map_err(|name| no_secret(origination, name))
}

#[cfg(test)]
mod tests;
