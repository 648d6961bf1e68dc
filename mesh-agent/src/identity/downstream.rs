//! TLS that gateway listeners terminate: what settings, secrets and files make of rustls'
//! configurations. As towards clusters, a bad version of a file leaves the last good one.

use std::{fmt, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureAlgorithm, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;
use webpki::KeyUsage;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{
    clock::{Clock, system_clock},
    material::{self, Stamp, Unusable},
    upstream::{LOOK_AGAIN, Trust, names},
};
use crate::model::{
    captured::GatewayPeer,
    tls::{
        CertificateMaterial, CertificateSource, DownstreamTls, TlsTermination, ValidationContext,
        ValidationSource,
    },
};

/// Why there is no TLS for a listener's clients: they are turned away.
#[derive(Debug, thiserror::Error)]
pub enum DownstreamTlsError {
    /// SDS has not delivered it, or no longer does.
    #[error("listener `{listener}`: there is no secret `{secret}`")]
    NoSecret { listener: Arc<str>, secret: Arc<str> },
    #[error("listener `{listener}`: {source}")]
    Material {
        listener: Arc<str>,
        #[source]
        source: Unusable,
    },
    /// What SDS delivered leaves open whom to trust.
    #[error("listener `{listener}`: validation context: {flaw}")]
    Unsafe { listener: Arc<str>, flaw: &'static str },
    #[error("listener `{listener}`: rustls refuses its settings: {source}")]
    Tls {
        listener: Arc<str>,
        #[source]
        source: rustls::Error,
    },
}

/// The contexts of all filter chains that are in use.
pub struct DownstreamContexts {
    clock: Clock,
    contexts: ArcSwap<Contexts>,
}

/// By the address of the settings, which the value keeps from being another's.
type Contexts = HashTrieMapSync<usize, Arc<Kept>>;

struct Kept {
    termination: TlsTermination,
    context: Arc<DownstreamContext>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

/// TLS for one version of a filter chain.
pub struct DownstreamContext {
    agreeing: Arc<ServerConfig>,
    /// Says nothing of protocols.
    silent: Arc<ServerConfig>,
    proves_names: bool,
}

impl Default for DownstreamContexts {
    fn default() -> Self {
        Self { clock: system_clock(), contexts: ArcSwap::default() }
    }
}

impl fmt::Debug for DownstreamContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownstreamContext").finish_non_exhaustive()
    }
}

impl DownstreamContexts {
    /// The context of settings and secrets, made anew where these have changed.
    ///
    /// # Errors
    /// See [`DownstreamTlsError`].
    pub fn context(
        &self,
        termination: &TlsTermination,
    ) -> Result<Arc<DownstreamContext>, DownstreamTlsError> {
        let place = place(termination);
        if let Some(kept) = self.contexts.load().get(&place)
            && same(&kept.termination, termination)
        {
            return Ok(Arc::clone(&kept.context));
        }
        // The stamps come first: what changes while it is read is read again.
        let files = Stamp::all(files(termination));
        let context = Arc::new(self.make(termination)?);
        let kept = Kept { termination: termination.clone(), context, files };
        Ok(self.keep(Arc::new(kept)))
    }

    fn keep(&self, kept: Arc<Kept>) -> Arc<DownstreamContext> {
        let place = place(&kept.termination);
        self.contexts.rcu(|contexts| Arc::new(contexts.insert(place, Arc::clone(&kept))));
        Arc::clone(&kept.context)
    }

    /// Reads files anew, now and then. Not on any connection's time.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if self.contexts.load().values().any(|kept| !kept.files.is_empty()) {
                let this = Arc::clone(&self);
                if let Err(error) = tokio::task::spawn_blocking(move || this.look()).await {
                    tracing::error!(%error, "the listeners' certificates were not looked at");
                }
            }
        }
    }

    /// Makes contexts anew whose files have changed. Blocks.
    fn look(&self) {
        for old in self.contexts.load_full().values() {
            if old.files.iter().all(|(path, stamp)| Stamp::of(path) == *stamp) {
                continue;
            }
            let termination = old.termination.clone();
            let files = Stamp::all(files(&termination));
            let context = match self.make(&termination) {
                Ok(context) => Arc::new(context),
                Err(error) => {
                    tracing::error!(%error, "the last good certificates stay in use");
                    Arc::clone(&old.context)
                }
            };
            let new = Arc::new(Kept { termination, context, files });
            let place = place(&new.termination);
            self.contexts.rcu(|contexts| match contexts.get(&place) {
                // Other secrets may have come meanwhile.
                Some(kept) if Arc::ptr_eq(kept, old) => {
                    Arc::new(contexts.insert(place, Arc::clone(&new)))
                }
                _ => Arc::clone(contexts),
            });
        }
    }

    /// Forgets settings that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&Arc<DownstreamTls>) -> bool) {
        self.contexts.rcu(|contexts| {
            let kept = contexts.iter().filter(|(_, kept)| keep(&kept.termination.settings));
            Arc::new(kept.map(|(place, kept)| (*place, Arc::clone(kept))).collect::<Contexts>())
        });
    }

    fn make(&self, termination: &TlsTermination) -> Result<DownstreamContext, DownstreamTlsError> {
        let TlsTermination { listener, settings, .. } = termination;
        let unusable =
            |source| DownstreamTlsError::Material { listener: Arc::clone(listener), source };
        let refused = |source| DownstreamTlsError::Tls { listener: Arc::clone(listener), source };
        let certificates = materials(termination)?.into_iter();
        let certificates: Result<Vec<_>, _> = certificates.map(material::certified).collect();
        let certificates: Vec<_> =
            certificates.map_err(unusable)?.into_iter().map(Presentable::new).collect();
        let provider = Arc::new(material::provider(&settings.cipher_suites, &settings.curves));
        let versions = material::versions(settings.min_version, settings.max_version);
        let builder =
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&self.clock))
                .with_protocol_versions(versions)
                .map_err(refused)?;
        let mut proves_names = false;
        let builder = match validation(termination)? {
            None => builder.with_no_client_auth(),
            Some(context) => {
                if let Some(flaw) = context.flaw() {
                    let listener = Arc::clone(listener);
                    return Err(DownstreamTlsError::Unsafe { listener, flaw });
                }
                let trust = Trust::new(&context, &provider).map_err(unusable)?;
                proves_names = trust.proves_names();
                let required = settings.require_client_certificate;
                builder.with_client_cert_verifier(Arc::new(ExpectedClient { trust, required }))
            }
        };
        let require_sni = settings.require_sni;
        let mut silent =
            builder.with_cert_resolver(Arc::new(Certificates { certificates, require_sni }));
        silent.ignore_client_order = !settings.prefer_client_ciphers;
        // Every client is judged by what is in force when it comes.
        silent.session_storage = Arc::new(NoServerSessionStorage {});
        silent.send_tls13_tickets = 0;
        let mut agreeing = silent.clone();
        agreeing.alpn_protocols =
            settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (agreeing, silent) = (Arc::new(agreeing), Arc::new(silent));
        Ok(DownstreamContext { agreeing, silent, proves_names })
    }
}

impl DownstreamContext {
    /// For a client that said this. As with Envoy, who offers none of the protocols is
    /// served without one.
    pub fn config(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        let ours = &self.agreeing.alpn_protocols;
        let common = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|name| ours.iter().any(|ours| ours == name)));
        Arc::clone(if common { &self.agreeing } else { &self.silent })
    }

    /// Who the client of a finished handshake is.
    pub fn peer(&self, connection: &rustls::ServerConnection) -> GatewayPeer {
        let leaf = connection.peer_certificates().and_then(|chain| chain.first());
        let names = leaf.filter(|_| self.proves_names).map(proven_names).unwrap_or_default();
        let identity = names.iter().find_map(|name| name.parse().ok());
        let server_name = connection.server_name().map(|name| name.to_ascii_lowercase().into());
        GatewayPeer::Tls { names: names.into(), identity, server_name }
    }
}

/// URIs, DNS names, then the subject, as Envoy looks for principals.
fn proven_names(leaf: &CertificateDer<'_>) -> Vec<Arc<str>> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let names = names::of(&parsed);
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).into()),
        _ => None,
    });
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).into()),
        _ => None,
    });
    uris.chain(hosts).chain([parsed.subject().to_string().into()]).collect()
}

fn place(termination: &TlsTermination) -> usize {
    Arc::as_ptr(&termination.settings).addr()
}

/// Whether nothing has changed, files apart.
fn same(a: &TlsTermination, b: &TlsTermination) -> bool {
    fn is<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
        a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
    }
    let certificates = a.certificates.iter().zip(&b.certificates).all(|(a, b)| is(a, b));
    Arc::ptr_eq(&a.settings, &b.settings) && certificates && is(&a.validation, &b.validation)
}

fn no_secret(termination: &TlsTermination, secret: &Arc<str>) -> DownstreamTlsError {
    let listener = Arc::clone(&termination.listener);
    DownstreamTlsError::NoSecret { listener, secret: Arc::clone(secret) }
}

fn materials(
    termination: &TlsTermination,
) -> Result<Vec<&CertificateMaterial>, DownstreamTlsError> {
    let sources = termination.settings.certificates.iter().zip(&termination.certificates);
    sources
        .map(|(source, secret)| match (source, secret) {
            (CertificateSource::Given(material), _) => Ok(material),
            (CertificateSource::Secret(_), Some(material)) => Ok(&**material),
            (CertificateSource::Secret(name), None) => Err(no_secret(termination, name)),
        })
        .collect()
}

fn validation(
    termination: &TlsTermination,
) -> Result<Option<ValidationContext>, DownstreamTlsError> {
    let secret = |name| termination.validation.as_ref().ok_or_else(|| no_secret(termination, name));
    Ok(match &termination.settings.validation {
        None => None,
        Some(ValidationSource::Inline(context)) => Some(ValidationContext::clone(context)),
        Some(ValidationSource::Secret(name)) => Some(ValidationContext::clone(secret(name)?)),
        Some(ValidationSource::Combined { default, secret: name }) => {
            Some(secret(name)?.on_top_of(default))
        }
    })
}

fn files(termination: &TlsTermination) -> Vec<PathBuf> {
    let materials = materials(termination).unwrap_or_default().into_iter();
    let mut files: Vec<_> = materials.flat_map(material::files_of_certificate).collect();
    if let Ok(Some(context)) = validation(termination) {
        files.extend(material::files_of_validation(&context));
    }
    files
}

/// One of a listener's certificates, with the names it is for.
#[derive(Debug)]
struct Presentable {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl Presentable {
    /// As Envoy: DNS names, or without any the subject's common name.
    fn new(certified: Arc<CertifiedKey>) -> Self {
        let leaf = certified.cert.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let mut found: Vec<String> = Vec::new();
        if let Some((_, leaf)) = &leaf {
            found.extend(names::of(leaf).iter().filter_map(|name| match name {
                GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
                _ => None,
            }));
            if found.is_empty() {
                let common = leaf.subject().iter_common_name().filter_map(|cn| cn.as_str().ok());
                found.extend(common.map(str::to_ascii_lowercase));
            }
        }
        Self { certified, names: found }
    }

    fn is_for(&self, wanted: &str) -> bool {
        self.names.iter().any(|name| name == wanted)
    }
}

/// Picks by SNI, then by what the client can verify.
#[derive(Debug)]
struct Certificates {
    certificates: Vec<Presentable>,
    require_sni: bool,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let wildcard = name.as_deref().and_then(|name| name.split_once('.'));
        let wildcard = wildcard.map(|(_, rest)| format!("*.{rest}"));
        let named = |wanted: &Option<String>| -> Vec<&Presentable> {
            let Some(wanted) = wanted else { return Vec::new() };
            self.certificates.iter().filter(|certificate| certificate.is_for(wanted)).collect()
        };
        let mut fitting = named(&name);
        if fitting.is_empty() {
            fitting = named(&wildcard);
        }
        if fitting.is_empty() {
            if self.require_sni {
                return None;
            }
            fitting = self.certificates.iter().collect();
        }
        let schemes = hello.signature_schemes();
        let usable = |one: &&Presentable| one.certified.key.choose_scheme(schemes).is_some();
        let ecdsa = |one: &&Presentable| one.certified.key.algorithm() == SignatureAlgorithm::ECDSA;
        // As Envoy: ECDSA where the client can.
        let usable: Vec<_> = fitting.into_iter().filter(usable).collect();
        let picked = usable.iter().find(|one| ecdsa(one)).or(usable.first())?;
        Some(Arc::clone(&picked.certified))
    }
}

/// What clients have to prove.
struct ExpectedClient {
    trust: Trust,
    required: bool,
}

impl fmt::Debug for ExpectedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpectedClient").field("required", &self.required).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ExpectedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.verify(end_entity, intermediates, (KeyUsage::client_auth(), now), &[])?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, self.trust.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, self.trust.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests;
