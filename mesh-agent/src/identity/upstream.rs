//! TLS towards endpoints that are not of the mesh: what clusters' settings and secrets
//! make of rustls' configurations.
//!
//! A [`UpstreamContext`] is made of one version of a cluster's settings, secrets and
//! files, and has a number that no other has: connections are shared only among those
//! who would get the same one. Where a new version is of no use (a file that is half
//! written), the last good one stays.

pub(super) mod names;
mod verify;

use std::{
    collections::HashSet,
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_util::sync::CancellationToken;

pub use verify::{RefusedServer, refused_server};

use self::verify::Expected;
pub(super) use self::verify::Trust;
use super::{
    clock::{Clock, system_clock},
    material::{self, Stamp, Unusable},
};
use crate::model::{
    cluster::ClusterName,
    tls::{
        CertificateMaterial, CertificateSource, TlsOrigination, UpstreamTls, ValidationContext,
        ValidationSource,
    },
};

/// How often files are looked at.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

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
    #[error("cluster `{cluster}`: rustls refuses its settings: {source}")]
    Tls {
        cluster: ClusterName,
        #[source]
        source: rustls::Error,
    },
}

/// The contexts of all clusters that are in use.
pub struct UpstreamContexts {
    clock: Clock,
    numbers: AtomicU64,
    /// Every request reads it; a change copies nothing but its own place.
    contexts: ArcSwap<Contexts>,
}

type Contexts = HashTrieMapSync<Place, Arc<Kept>>;

/// A cluster, and which of its transport sockets.
type Place = (ClusterName, Option<usize>);

struct Kept {
    origination: TlsOrigination,
    context: Arc<UpstreamContext>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// TLS for one version of a cluster.
pub struct UpstreamContext {
    id: u64,
    settings: Arc<UpstreamTls>,
    base: ClientConfig,
    trust: Arc<Trust>,
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
        Self { clock, numbers: AtomicU64::new(1), contexts: ArcSwap::default() }
    }

    /// The context of settings and secrets, made anew where these have changed: the first
    /// that asks then reads the files, everybody else takes what is there.
    ///
    /// # Errors
    /// See [`UpstreamTlsError`].
    pub fn context(
        &self,
        origination: &TlsOrigination,
    ) -> Result<Arc<UpstreamContext>, UpstreamTlsError> {
        let place = (origination.cluster.clone(), origination.place);
        if let Some(kept) = self.contexts.load().get(&place)
            && same(&kept.origination, origination)
        {
            return Ok(Arc::clone(&kept.context));
        }
        // The stamps come first: what changes while it is read is read again.
        let files = Stamp::all(files(origination));
        let context = Arc::new(self.make(origination)?);
        let made = Arc::new(Kept { origination: origination.clone(), context, files });
        // Who came first has made what all share.
        let put = |kept: &Arc<Contexts>| match kept.get(&place) {
            Some(kept) if same(&kept.origination, origination) => None,
            _ => Some(kept.insert(place.clone(), Arc::clone(&made))),
        };
        let before = self.change(put);
        let first = before.get(&place).filter(|kept| same(&kept.origination, origination));
        Ok(Arc::clone(&first.unwrap_or(&made).context))
    }

    /// Reads files anew, now and then, for as long as anybody holds these contexts. Not on
    /// any connection's time.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if self.contexts.load().values().any(|kept| !kept.files.is_empty()) {
                let this = Arc::clone(&self);
                if let Err(error) = tokio::task::spawn_blocking(move || this.look()).await {
                    tracing::error!(%error, "the certificates' files were not looked at");
                }
            }
        }
    }

    /// Makes contexts anew whose files have changed. Blocks.
    fn look(&self) {
        let contexts = self.contexts.load_full();
        for (place, old) in contexts.iter() {
            if old.files.iter().all(|(path, stamp)| Stamp::of(path) == *stamp) {
                continue;
            }
            let files = Stamp::all(files(&old.origination));
            let context = match self.make(&old.origination) {
                Ok(context) => Arc::new(context),
                Err(error) => {
                    tracing::error!(%error, "the last good certificates stay in use");
                    Arc::clone(&old.context)
                }
            };
            let new = Arc::new(Kept { origination: old.origination.clone(), context, files });
            self.change(|kept| {
                // Other settings may have come meanwhile.
                let current = kept.get(place).filter(|kept| Arc::ptr_eq(kept, old));
                current.map(|_| kept.insert(place.clone(), Arc::clone(&new)))
            });
        }
    }

    /// The contexts whose connections are what new ones would be, by their numbers.
    pub fn current(&self) -> HashSet<u64> {
        self.contexts.load().values().map(|kept| kept.context.id).collect()
    }

    /// Forgets clusters that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&TlsOrigination) -> bool) {
        self.change(|contexts| {
            let unwanted = contexts.iter().filter(|(_, kept)| !keep(&kept.origination));
            let unwanted: Vec<_> = unwanted.map(|(place, _)| place.clone()).collect();
            let mut left = Contexts::clone(contexts);
            unwanted.iter().for_each(|place| _ = left.remove_mut(place));
            (!unwanted.is_empty()).then_some(left)
        });
    }

    /// Changes what is kept, unless there is nothing to change; what was kept before.
    fn change(&self, change: impl Fn(&Arc<Contexts>) -> Option<Contexts>) -> Arc<Contexts> {
        self.contexts.rcu(|contexts| match change(contexts) {
            Some(changed) => Arc::new(changed),
            None => Arc::clone(contexts),
        })
    }

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
            .with_protocol_versions(material::versions(settings.min_version, settings.max_version))
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

impl fmt::Debug for UpstreamContexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamContexts").finish_non_exhaustive()
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

    /// The configuration of one connection, and the name to connect with. `host` is the
    /// host that is asked for, where requests decide. An address instead of a name is
    /// never sent.
    pub fn connection(
        &self,
        alpn: Alpn,
        host: Option<&str>,
        address: std::net::IpAddr,
    ) -> (Arc<ClientConfig>, ServerName<'static>) {
        let settings = &*self.settings;
        let by_host = &settings.by_host;
        let sni = host.filter(|_| by_host.sni).or(settings.sni.as_deref());
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
        must_be.extend(host.filter(|_| by_host.san).map(str::to_owned));
        must_be.extend(sni.filter(|_| settings.sni_is_san).map(str::to_owned));
        if !must_be.is_empty() {
            let expected = Expected::new(Arc::clone(&self.trust), must_be);
            config.dangerous().set_certificate_verifier(Arc::new(expected));
        }
        (Arc::new(config), name.unwrap_or(ServerName::IpAddress(address.into())))
    }
}

/// Whether nothing has changed, files apart.
fn same(a: &TlsOrigination, b: &TlsOrigination) -> bool {
    fn is<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
    Arc::ptr_eq(&a.settings, &b.settings)
        && is(&a.certificate, &b.certificate)
        && is(&a.validation, &b.validation)
}

fn no_secret(origination: &TlsOrigination, secret: &Arc<str>) -> UpstreamTlsError {
    let cluster = origination.cluster.clone();
    UpstreamTlsError::NoSecret { cluster, secret: Arc::clone(secret) }
}

fn material(
    origination: &TlsOrigination,
) -> Result<Option<&CertificateMaterial>, UpstreamTlsError> {
    match &origination.settings.certificate {
        None => Ok(None),
        Some(CertificateSource::Given(material)) => Ok(Some(material)),
        Some(CertificateSource::Secret(name)) => match &origination.certificate {
            Some(material) => Ok(Some(&**material)),
            None => Err(no_secret(origination, name)),
        },
    }
}

fn presented(origination: &TlsOrigination) -> Result<Option<Arc<CertifiedKey>>, UpstreamTlsError> {
    let certified = material(origination)?.map(material::certified).transpose();
    certified.map_err(|source| unusable(origination, source))
}

fn unusable(origination: &TlsOrigination, source: Unusable) -> UpstreamTlsError {
    UpstreamTlsError::Material { cluster: origination.cluster.clone(), source }
}

fn validation(origination: &TlsOrigination) -> Result<ValidationContext, UpstreamTlsError> {
    let secret = |name| origination.validation.as_ref().ok_or_else(|| no_secret(origination, name));
    Ok(match &origination.settings.validation {
        ValidationSource::Inline(context) => ValidationContext::clone(context),
        ValidationSource::Secret(name) => ValidationContext::clone(secret(name)?),
        ValidationSource::Combined { default, secret: name } => secret(name)?.on_top_of(default),
    })
}

fn files(origination: &TlsOrigination) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Ok(Some(certificate)) = material(origination) {
        files.extend(material::files_of_certificate(certificate));
    }
    if let Ok(context) = validation(origination) {
        files.extend(material::files_of_validation(&context));
    }
    files
}

#[cfg(test)]
mod tests;
