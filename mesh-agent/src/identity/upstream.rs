//! TLS towards endpoints that are not of the mesh: what clusters' settings and secrets
//! make of rustls' configurations.
//!
//! A [`UpstreamContext`] is made of one version of a cluster's settings, secrets and
//! files, and has a number that no other has: connections are shared only among those
//! who would get the same one. Where a new version is of no use (a file that is half
//! written), the last good one stays.

mod names;
mod verify;

use std::{
    collections::HashSet,
    fmt, fs, io,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;
use rustls::{
    ClientConfig, SupportedProtocolVersion,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use verify::{RefusedServer, refused_server};

use self::verify::{Expected, Trust};
use super::clock::{Clock, system_clock};
use crate::model::{
    cluster::ClusterName,
    tls::{
        CertificateFiles, CertificateMaterial, CertificateSource, Crls, MATERIAL_MAX_BYTES,
        MaterialError, Roots, TlsCertificate, TlsOrigination, TlsVersion, UpstreamTls,
        ValidationContext, ValidationSource, anchors_from_pem, crls_from_pem,
    },
};

/// How often files are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why there is no TLS configuration for a cluster's endpoints: they are not dialled.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    /// SDS has not delivered it, or no longer does.
    #[error("cluster `{cluster}`: there is no secret `{secret}`")]
    NoSecret { cluster: ClusterName, secret: Arc<str> },
    #[error("cluster `{cluster}`: {}: {source}", path.display())]
    Unreadable {
        cluster: ClusterName,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cluster `{cluster}`: {}: {source}", path.display())]
    Material {
        cluster: ClusterName,
        path: PathBuf,
        #[source]
        source: MaterialError,
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

/// Tells one content of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
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
        let files = stamped(origination);
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
            let files = stamped(&old.origination);
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
        let provider = Arc::new(provider(settings));
        let trust = Arc::new(trust(cluster, &validation, &provider)?);
        let expected = Expected::new(Arc::clone(&trust), Vec::new());
        let builder = ClientConfig::builder_with_details(provider, Arc::clone(&self.clock))
            .with_protocol_versions(versions(settings))
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
    let cluster = &origination.cluster;
    let certificate = match material(origination)? {
        None => return Ok(None),
        Some(CertificateMaterial::Inline(certificate)) => certificate.clone(),
        Some(CertificateMaterial::Files(CertificateFiles { chain, key })) => {
            let (pem, key_pem) = (read(cluster, chain)?, read(cluster, key)?);
            TlsCertificate::from_pem(&pem, &key_pem).map_err(|source| {
                let at_key = matches!(source, MaterialError::Key | MaterialError::KeyMismatch);
                let path = if at_key { key } else { chain }.clone();
                UpstreamTlsError::Material { cluster: cluster.clone(), path, source }
            })?
        }
    };
    Ok(Some(Arc::clone(certificate.certified())))
}

fn validation(origination: &TlsOrigination) -> Result<ValidationContext, UpstreamTlsError> {
    let secret = |name| origination.validation.as_ref().ok_or_else(|| no_secret(origination, name));
    Ok(match &origination.settings.validation {
        ValidationSource::Inline(context) => ValidationContext::clone(context),
        ValidationSource::Secret(name) => ValidationContext::clone(secret(name)?),
        ValidationSource::Combined { default, secret: name } => secret(name)?.on_top_of(default),
    })
}

/// With files read.
fn trust(
    cluster: &ClusterName,
    context: &ValidationContext,
    provider: &CryptoProvider,
) -> Result<Trust, UpstreamTlsError> {
    let bad = |path: &Path, source| UpstreamTlsError::Material {
        cluster: cluster.clone(),
        path: path.to_owned(),
        source,
    };
    let anchors = |roots: &Roots| match roots {
        Roots::Inline(anchors) => Ok(Arc::clone(anchors)),
        Roots::File(path) => {
            let anchors = anchors_from_pem(&read(cluster, path)?);
            anchors.map(Arc::from).map_err(|error| bad(path, error))
        }
    };
    let crls = match &context.crls {
        None => None,
        Some(Crls::Inline(lists)) => Some(Arc::clone(lists)),
        Some(Crls::File(path)) => {
            let lists = crls_from_pem(&read(cluster, path)?).map_err(|error| bad(path, error))?;
            Some(Arc::from(lists))
        }
    };
    let mut trust_domains = std::collections::BTreeMap::new();
    for (domain, roots) in &context.trust_domains {
        trust_domains.insert(domain.clone(), anchors(roots)?);
    }
    Ok(Trust {
        roots: context.roots.as_ref().map(anchors).transpose()?,
        trust_domains,
        crls,
        only_leaf_crl: context.only_leaf_crl,
        certificate_hashes: context.certificate_hashes.clone(),
        spki_hashes: context.spki_hashes.clone(),
        sans: context.sans.clone(),
        accept_untrusted: context.accept_untrusted,
        algorithms: provider.signature_verification_algorithms,
    })
}

/// Every file that is taken, as it is now.
fn stamped(origination: &TlsOrigination) -> Vec<(PathBuf, Option<Stamp>)> {
    let stamped = |path: PathBuf| {
        let stamp = Stamp::of(&path);
        (path, stamp)
    };
    files(origination).into_iter().map(stamped).collect()
}

fn files(origination: &TlsOrigination) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Ok(Some(CertificateMaterial::Files(CertificateFiles { chain, key }))) =
        material(origination)
    {
        files.extend([chain.clone(), key.clone()]);
    }
    if let Ok(context) = validation(origination) {
        let roots = context.roots.iter().chain(context.trust_domains.values());
        files.extend(roots.filter_map(|roots| match roots {
            Roots::File(path) => Some(path.clone()),
            Roots::Inline(_) => None,
        }));
        if let Some(Crls::File(path)) = context.crls {
            files.push(path);
        }
    }
    files
}

fn read(cluster: &ClusterName, path: &Path) -> Result<Zeroizing<Vec<u8>>, UpstreamTlsError> {
    let whole = || {
        // A pipe in its place must not hold a connection up for ever.
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        if metadata.len() > MATERIAL_MAX_BYTES as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Large enough from the start: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 1));
        file.take(metadata.len()).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    whole().map_err(|source| UpstreamTlsError::Unreadable {
        cluster: cluster.clone(),
        path: path.to_owned(),
        source,
    })
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

fn versions(settings: &UpstreamTls) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match (settings.min_version, settings.max_version) {
        (TlsVersion::V1_2, TlsVersion::V1_2) => &BOTH[1..],
        (TlsVersion::V1_2, TlsVersion::V1_3) => &BOTH,
        (TlsVersion::V1_3, _) => &BOTH[..1],
    }
}

fn provider(settings: &UpstreamTls) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !settings.cipher_suites.is_empty() {
        // The list is about TLS 1.2 alone.
        let place = |suite| settings.cipher_suites.iter().position(|wanted| *wanted == suite);
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || place(suite.suite()).is_some());
        provider.cipher_suites.sort_by_key(|suite| place(suite.suite()));
    }
    if !settings.curves.is_empty() {
        let place = |group| settings.curves.iter().position(|wanted| *wanted == group);
        provider.kx_groups = aws_lc_rs::ALL_KX_GROUPS.to_vec();
        provider.kx_groups.retain(|group| place(group.name()).is_some());
        provider.kx_groups.sort_by_key(|group| place(group.name()));
    }
    provider
}

#[cfg(test)]
mod tests;
