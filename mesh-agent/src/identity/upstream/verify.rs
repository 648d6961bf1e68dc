//! Whether a server is who a cluster's validation context says.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use aws_lc_rs::digest;
use rustls::{
    CertificateError, OtherError,
    client::danger::{ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::names;
use crate::{
    identity::{
        material::{self, Unusable},
        refusal::{find_tls_error, shown},
    },
    model::{
        identity::TrustDomain,
        tls::{SanMatcher, ValidationContext},
    },
};

/// How many of a server's names are told.
const NAMES_TOLD: usize = 8;

/// Why a server was refused. What it presents is a mere claim, except in
/// [`RefusedServer::OtherName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedServer {
    #[error("the peer's certificate is malformed: {reason}")]
    Malformed { reason: String },
    /// None of the trusted roots vouches for it, or not any more.
    #[error("the peer's certificate ({presented}) is not trusted: {reason}")]
    Untrusted { presented: String, reason: String },
    #[error("the peer's certificate ({presented}) is for none of the names expected")]
    OtherName { presented: String },
    #[error("the peer's certificate ({presented}) is not for `{host}`")]
    OtherHost { presented: String, host: String },
    #[error("the peer's certificate ({presented}) has none of the hashes expected")]
    OtherHash { presented: String },
}

impl From<RefusedServer> for rustls::Error {
    fn from(refused: RefusedServer) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// Why this side refused the server, if that is what ended the handshake.
pub fn refused_server(error: &io::Error) -> Option<RefusedServer> {
    match find_tls_error(error)? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            cause.downcast_ref::<RefusedServer>().cloned()
        }
        _ => None,
    }
}

/// A validation context, ready to judge.
pub(in crate::identity) struct Trust {
    pub(super) roots: Option<Arc<[TrustAnchor<'static>]>>,
    pub(super) trust_domains: BTreeMap<TrustDomain, Arc<[TrustAnchor<'static>]>>,
    pub(super) crls: Option<Arc<[CertRevocationList<'static>]>>,
    pub(super) only_leaf_crl: bool,
    pub(super) certificate_hashes: Vec<[u8; 32]>,
    pub(super) spki_hashes: Vec<[u8; 32]>,
    pub(super) sans: Vec<SanMatcher>,
    pub(super) accept_untrusted: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// What a verifier that judges by its `trust` says of a handshake's own signatures.
macro_rules! signatures_by_trust {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = self.trust.algorithms();
            rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = self.trust.algorithms();
            rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.trust.algorithms().supported_schemes()
        }
    };
}
pub(in crate::identity) use signatures_by_trust;

/// The verifier of one connection.
pub(super) struct Expected {
    trust: Arc<Trust>,
    /// Each of these must be one of the server's names.
    hosts: Vec<String>,
}

impl Expected {
    pub(super) fn new(trust: Arc<Trust>, hosts: Vec<String>) -> Self {
        Self { trust, hosts }
    }
}

impl Trust {
    /// With files read.
    pub(in crate::identity) fn new(
        context: &ValidationContext,
        provider: &CryptoProvider,
    ) -> Result<Self, Unusable> {
        let mut trust_domains = BTreeMap::new();
        for (domain, roots) in &context.trust_domains {
            trust_domains.insert(domain.clone(), material::anchors(roots)?);
        }
        Ok(Self {
            roots: context.roots.as_ref().map(material::anchors).transpose()?,
            trust_domains,
            crls: context.crls.as_ref().map(material::revoked).transpose()?,
            only_leaf_crl: context.only_leaf_crl,
            certificate_hashes: context.certificate_hashes.clone(),
            spki_hashes: context.spki_hashes.clone(),
            sans: context.sans.clone(),
            accept_untrusted: context.accept_untrusted,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// The algorithms that signatures may be of.
    pub(in crate::identity) fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }

    /// Whether a peer has proven the names that its certificate claims.
    pub(in crate::identity) fn proves_names(&self) -> bool {
        !self.accept_untrusted
    }

    /// Whether the peer is who it should be; `hosts` must all be among its names.
    pub(in crate::identity) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        (usage, now): (KeyUsage, UnixTime),
        hosts: &[String],
    ) -> Result<(), RefusedServer> {
        let malformed = |reason: String| RefusedServer::Malformed { reason: shown(&reason) };
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| malformed(error.to_string()))?;
        let names = names::of(&parsed);
        let presented = || presented(&parsed, names);
        if !self.accept_untrusted
            && let Some(roots) = self.roots_for(names).transpose()
        {
            let untrusted = |reason| RefusedServer::Untrusted { presented: presented(), reason };
            let roots = roots.map_err(untrusted)?;
            self.verify_chain(leaf, intermediates, roots, (usage, now)).map_err(|error| {
                let reason = match error {
                    // A root of that name, but another key: not the issuer.
                    webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                        "no trusted root issued it".to_owned()
                    }
                    webpki::Error::UnknownRevocationStatus => {
                        "no revocation list is from its issuer".to_owned()
                    }
                    webpki::Error::CertRevoked => "it has been revoked".to_owned(),
                    webpki::Error::CertExpired { .. } => "it has expired".to_owned(),
                    other => other.to_string(),
                };
                untrusted(reason)
            })?;
        }
        let any = |matcher: &SanMatcher| names.iter().any(|name| names::matches(matcher, name));
        if !self.sans.is_empty() && !self.sans.iter().any(any) {
            return Err(RefusedServer::OtherName { presented: presented() });
        }
        for host in hosts {
            if !names::is_for(names, host) {
                let host = host.clone();
                return Err(RefusedServer::OtherHost { presented: presented(), host });
            }
        }
        self.check_hashes(leaf, &parsed, presented)
    }

    /// The roots that may vouch for a server of these names; `None`: nobody has to.
    fn roots_for(
        &self,
        names: &[GeneralName<'_>],
    ) -> Result<Option<&[TrustAnchor<'static>]>, String> {
        if self.trust_domains.is_empty() {
            return Ok(self.roots.as_deref());
        }
        let mut domains = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            _ => None,
        });
        let domain = match (domains.next(), domains.next()) {
            (Some(one), None) => one.split('/').next().unwrap_or_default(),
            _ => return Err("it does not hold one SPIFFE ID".to_owned()),
        };
        let domain: Result<TrustDomain, _> = domain.parse();
        match domain.ok().and_then(|domain| self.trust_domains.get(&domain)) {
            Some(roots) => Ok(Some(roots)),
            None => Err("its trust domain is not among the trusted ones".to_owned()),
        }
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &[TrustAnchor<'static>],
        (usage, now): (KeyUsage, UnixTime),
    ) -> Result<(), webpki::Error> {
        let lists: Vec<&CertRevocationList<'_>> = self.crls.iter().flat_map(|l| l.iter()).collect();
        let depth = match self.only_leaf_crl {
            true => RevocationCheckDepth::EndEntity,
            false => RevocationCheckDepth::Chain,
        };
        // Without lists, nothing is asked about revocation.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                self.algorithms.all,
                roots,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map(drop)
    }

    /// One of the hashes is enough, of whichever list.
    fn check_hashes(
        &self,
        leaf: &CertificateDer<'_>,
        parsed: &X509Certificate<'_>,
        presented: impl Fn() -> String,
    ) -> Result<(), RefusedServer> {
        if self.certificate_hashes.is_empty() && self.spki_hashes.is_empty() {
            return Ok(());
        }
        let is = |bytes: &[u8], hashes: &[[u8; 32]]| {
            let hash = digest::digest(&digest::SHA256, bytes);
            hashes.iter().any(|expected| expected == hash.as_ref())
        };
        if is(leaf, &self.certificate_hashes) || is(parsed.public_key().raw, &self.spki_hashes) {
            return Ok(());
        }
        Err(RefusedServer::OtherHash { presented: presented() })
    }
}

/// The names a certificate claims, for people.
fn presented(certificate: &X509Certificate<'_>, names: &[GeneralName<'_>]) -> String {
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
            Some(shown(text))
        }
        GeneralName::IPAddress(bytes) => Some(format!("{bytes:?}")),
        _ => None,
    });
    let names: Vec<_> = names.take(NAMES_TOLD).collect();
    match names.is_empty() {
        true => shown(&certificate.subject().to_string()),
        false => names.join(", "),
    }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Expected {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usage = (KeyUsage::server_auth(), now);
        self.trust.verify(end_entity, intermediates, usage, &self.hosts)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_trust!();
}
