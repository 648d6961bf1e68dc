//! TLS that gateway listeners terminate: what settings, secrets and files make of rustls'
//! configurations. As towards clusters, a bad version of a file leaves the last good one.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{
    DistinguishedName, ServerConfig, SignatureAlgorithm,
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use webpki::KeyUsage;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{
    clock::{Clock, system_clock},
    contexts::{self, Contexts, Make, Recipe},
    material::{self, Unusable},
    subject,
    upstream::{Trust, names, signatures_by_trust},
};
use crate::model::{
    captured::{ClientCertificate, GatewayPeer, TlsSession},
    tls::{CertificateMaterial, TlsTermination, TlsVersion, ValidationContext},
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
pub type DownstreamContexts = Contexts<TlsTermination, Terminator>;

/// Makes the contexts of filter chains.
#[derive(Debug)]
pub struct Terminator {
    clock: Clock,
}

/// TLS for one version of a filter chain.
pub struct DownstreamContext {
    agreeing: Arc<ServerConfig>,
    /// Says nothing of protocols.
    silent: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// What is asked of clients; `None`: nothing.
    expected: Option<Arc<ExpectedClient>>,
}

/// One client's handshake.
pub struct Handshake {
    pub config: Arc<ServerConfig>,
    shown: Arc<Shown>,
}

impl Default for DownstreamContexts {
    fn default() -> Self {
        Self::of(Terminator { clock: system_clock() })
    }
}

impl fmt::Debug for DownstreamContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownstreamContext").finish_non_exhaustive()
    }
}

impl Make<TlsTermination> for Terminator {
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
        let versions = TlsVersion::range(settings.min_version, settings.max_version);
        let builder =
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&self.clock))
                .with_protocol_versions(versions)
                .map_err(refused)?;
        let mut expected = None;
        let builder = match validation(termination)? {
            None => builder.with_no_client_auth(),
            Some(context) => {
                if let Some(flaw) = context.flaw() {
                    let listener = Arc::clone(listener);
                    return Err(DownstreamTlsError::Unsafe { listener, flaw });
                }
                let trust = Trust::new(&context, &provider).map_err(unusable)?;
                let required = settings.require_client_certificate;
                let client = Arc::new(ExpectedClient { trust, required });
                expected = Some(Arc::clone(&client));
                builder.with_client_cert_verifier(client)
            }
        };
        let require_sni = settings.require_sni;
        let certificates = Arc::new(Certificates { certificates, require_sni });
        let mut silent = builder.with_cert_resolver(Shown::of(&certificates));
        silent.ignore_client_order = !settings.prefer_client_ciphers;
        // Every client is judged by what is in force when it comes.
        silent.session_storage = Arc::new(NoServerSessionStorage {});
        silent.send_tls13_tickets = 0;
        let mut agreeing = silent.clone();
        agreeing.alpn_protocols =
            settings.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (agreeing, silent) = (Arc::new(agreeing), Arc::new(silent));
        Ok(DownstreamContext { agreeing, silent, certificates, expected })
    }
}

impl DownstreamContext {
    /// For a client that said this. As with Envoy, who offers none of the protocols is
    /// served without one.
    pub fn handshake(&self, hello: &ClientHello<'_>) -> Handshake {
        let ours = &self.agreeing.alpn_protocols;
        let common = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|name| ours.iter().any(|ours| ours == name)));
        let shared = if common { &self.agreeing } else { &self.silent };
        let shown = Shown::of(&self.certificates);
        let mut config = ServerConfig::clone(shared);
        config.cert_resolver = Arc::<Shown>::clone(&shown);
        Handshake { config: Arc::new(config), shown }
    }

    /// Judges the client of a handshake that another version has finished.
    ///
    /// # Errors
    /// This one would not have let it in.
    pub fn judge_again(&self, connection: &rustls::ServerConnection) -> Result<(), rustls::Error> {
        let Some(expected) = &self.expected else { return Ok(()) };
        match connection.peer_certificates() {
            Some([leaf, intermediates @ ..]) => {
                let now = self.agreeing.time_provider.current_time();
                let now = now.ok_or(rustls::Error::FailedToGetCurrentTime)?;
                expected.verify_client_cert(leaf, intermediates, now).map(|_| ())
            }
            _ if expected.required => Err(rustls::Error::NoCertificatesPresented),
            _ => Ok(()),
        }
    }

    /// Who the client of a finished handshake is.
    pub fn peer(&self, of: &Handshake, connection: &rustls::ServerConnection) -> GatewayPeer {
        let proves_names = self.expected.as_ref().is_some_and(|of| of.trust.proves_names());
        let chain = connection.peer_certificates().filter(|_| proves_names);
        let proven = chain.and_then(proven);
        let (names, certificate) = proven.unzip();
        let names = names.unwrap_or_default();
        let identity = names.iter().find_map(|name| name.parse().ok());
        let server_name = connection.server_name().map(|name| name.to_ascii_lowercase().into());
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        let session = TlsSession {
            version: subject::version(connection.protocol_version()),
            cipher: subject::cipher(suite),
            local_uris: of.shown.uris(),
            certificate: certificate.map(Arc::new),
        };
        GatewayPeer::Tls { names: names.into(), identity, server_name, session }
    }
}

/// URIs, DNS names, then the subject, as Envoy looks for principals; and what is told of it.
fn proven(chain: &[CertificateDer<'_>]) -> Option<(Vec<Arc<str>>, ClientCertificate)> {
    let leaf = chain.first()?;
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let names = names::of(&parsed);
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).into()),
        _ => None,
    });
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some((*host).into()),
        _ => None,
    });
    let told = subject::certificate(leaf, &parsed, chain);
    let subject = Arc::from(&*told.subject);
    Some((uris.chain(hosts).chain([subject]).collect(), told))
}

impl Recipe for TlsTermination {
    /// The address of the settings, which what is kept keeps from being another's.
    type Place = usize;
    type Context = DownstreamContext;
    type Error = DownstreamTlsError;

    fn place(&self) -> usize {
        Arc::as_ptr(&self.settings).addr()
    }

    fn same(&self, other: &Self) -> bool {
        let mut certificates = self.certificates.iter().zip(&other.certificates);
        Arc::ptr_eq(&self.settings, &other.settings)
            && certificates.all(|(ours, theirs)| contexts::is(ours, theirs))
            && contexts::is(&self.validation, &other.validation)
    }

    fn files(&self) -> Vec<PathBuf> {
        let materials = materials(self).unwrap_or_default().into_iter();
        let mut files: Vec<_> = materials.flat_map(material::files_of_certificate).collect();
        if let Ok(Some(context)) = validation(self) {
            files.extend(material::files_of_validation(&context));
        }
        files
    }
}

fn no_secret(termination: &TlsTermination, secret: &Arc<str>) -> DownstreamTlsError {
    let listener = Arc::clone(&termination.listener);
    DownstreamTlsError::NoSecret { listener, secret: Arc::clone(secret) }
}

fn materials(
    termination: &TlsTermination,
) -> Result<Vec<&CertificateMaterial>, DownstreamTlsError> {
    let sources = termination.settings.certificates.iter().zip(&termination.certificates);
    let materials = sources.map(|(source, secret)| source.resolve(secret.as_ref()));
    materials.collect::<Result<_, _>>().map_err(|name| no_secret(termination, name))
}

fn validation(
    termination: &TlsTermination,
) -> Result<Option<ValidationContext>, DownstreamTlsError> {
    let source = termination.settings.validation.as_ref();
    let context = source.map(|source| source.resolve(termination.validation.as_ref()));
    context.transpose().map_err(|name| no_secret(termination, name))
}

/// One of a listener's certificates, with the names it is for.
#[derive(Debug)]
struct Presentable {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    uris: Arc<[Arc<str>]>,
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
        let uris = leaf.iter().flat_map(|(_, leaf)| subject::uris(leaf).map(Arc::from)).collect();
        Self { certified, names: found, uris }
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

impl Certificates {
    fn pick(&self, hello: &ClientHello<'_>) -> Option<&Presentable> {
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
        usable.iter().find(|one| ecdsa(one)).or(usable.first()).copied()
    }
}

/// Remembers which of the certificates a client was shown.
#[derive(Debug)]
struct Shown {
    certificates: Arc<Certificates>,
    picked: OnceLock<Arc<[Arc<str>]>>,
}

impl Shown {
    fn of(certificates: &Arc<Certificates>) -> Arc<Self> {
        Arc::new(Self { certificates: Arc::clone(certificates), picked: OnceLock::new() })
    }

    fn uris(&self) -> Arc<[Arc<str>]> {
        self.picked.get().map(Arc::clone).unwrap_or_default()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let picked = self.certificates.pick(&hello)?;
        // A handshake asks once; were it to ask again, it would be told the same.
        self.picked.get_or_init(|| Arc::clone(&picked.uris));
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

    signatures_by_trust!();
}

#[cfg(test)]
mod tests;
