//! Verifies a peer's X509-SVID: whose it is, who vouches for it, and for how long.
//!
//! Spec: X509-SVID (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>), §5.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, X509Error},
};

use super::{
    refusal::{RefusedPeer, shown},
    trust::TrustBundles,
};
use crate::model::identity::Identity;

/// The tag of `uniformResourceIdentifier` in a GeneralName. Spec: RFC 5280 §4.2.1.6.
const URI_TAG: u32 = 6;

/// Which side of the handshake the certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

/// The identity that a certificate names, without any judgement of the certificate.
pub(super) fn read_identity(leaf: &CertificateDer<'_>) -> Result<Identity, RefusedPeer> {
    identity_of(&parse(leaf)?)
}

/// Verifies a chain against the bundle of the trust domain that its leaf names.
pub(super) fn verify_chain(
    trust: &TrustBundles,
    algorithms: &WebPkiSupportedAlgorithms,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<Identity, RefusedPeer> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(malformed)?;
    let parsed = parse(leaf)?;
    let presented = identity_of(&parsed)?;
    let Some(roots) = trust.roots(presented.trust_domain()) else {
        let trusted = trust.trust_domains().cloned().collect();
        return Err(RefusedPeer::ForeignTrustDomain { presented, trusted });
    };
    check_leaf_usage(&parsed, &presented, role)?;
    let usage = match role {
        Role::Server => KeyUsage::server_auth(),
        Role::Client => KeyUsage::client_auth(),
    };
    let path = end_entity
        .verify_for_usage(algorithms.all, roots, intermediates, now, usage, None, None)
        .map_err(|error| chain_refusal(error, presented.clone(), role))?;
    for intermediate in path.intermediate_certificates() {
        check_may_sign(&intermediate.der(), &presented)?;
    }
    Ok(presented)
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, RefusedPeer> {
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(RefusedPeer::Malformed { reason: "trailing bytes".to_owned() }),
        Err(error) => Err(malformed(error)),
    }
}

/// Spec: X509-SVID §2: exactly one URI SAN; other kinds of SAN do not matter.
fn identity_of(certificate: &X509Certificate<'_>) -> Result<Identity, RefusedPeer> {
    let sans = certificate.subject_alternative_name().map_err(malformed)?;
    let names = sans.map_or(&[][..], |san| &san.value.general_names);
    let mut uri = None;
    let mut count = 0_usize;
    for name in names {
        match name {
            GeneralName::URI(text) => uri = Some(*text),
            GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => {}
            GeneralName::Invalid(..) => {
                let reason = "a subject alternative name cannot be read".to_owned();
                return Err(RefusedPeer::Malformed { reason });
            }
            _ => continue,
        }
        count += 1;
    }
    if count > 1 {
        return Err(RefusedPeer::SeveralUriSans { count });
    }
    match uri.map(|uri| (uri, uri.parse())) {
        Some((_, Ok(identity))) => Ok(identity),
        Some((uri, Err(_))) => Err(RefusedPeer::NoSpiffeId { uri: Some(uri.to_owned()) }),
        None => Err(RefusedPeer::NoSpiffeId { uri: None }),
    }
}

/// Spec: X509-SVID §4.3: a leaf signs handshakes, never certificates or CRLs. (That
/// `cA` is not set is webpki's check.)
fn check_leaf_usage(
    certificate: &X509Certificate<'_>,
    presented: &Identity,
    role: Role,
) -> Result<(), RefusedPeer> {
    let Some(usage) = certificate.key_usage().map_err(malformed)? else {
        return Ok(());
    };
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(RefusedPeer::NotALeaf { presented: presented.clone() });
    }
    if !usage.value.digital_signature() {
        return Err(wrong_purpose(presented.clone(), role));
    }
    Ok(())
}

/// Spec: RFC 5280 §6.1.4 (n); webpki leaves it out.
fn check_may_sign(issuer: &CertificateDer<'_>, presented: &Identity) -> Result<(), RefusedPeer> {
    match parse(issuer)?.key_usage().map_err(malformed)? {
        Some(usage) if !usage.value.key_cert_sign() => Err(RefusedPeer::InvalidChain {
            presented: presented.clone(),
            reason: "an intermediate is not allowed to sign certificates".to_owned(),
        }),
        _ => Ok(()),
    }
}

fn chain_refusal(error: webpki::Error, presented: Identity, role: Role) -> RefusedPeer {
    use webpki::Error;
    match error {
        Error::CertExpired { time, not_after } => {
            RefusedPeer::Expired { presented, not_after: not_after.into(), now: time.into() }
        }
        Error::CertNotValidYet { time, not_before } => {
            RefusedPeer::NotYetValid { presented, not_before: not_before.into(), now: time.into() }
        }
        // A root of the issuer's name, but another key: not the issuer.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => {
            RefusedPeer::UnknownIssuer { presented }
        }
        Error::CaUsedAsEndEntity => RefusedPeer::NotALeaf { presented },
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            wrong_purpose(presented, role)
        }
        Error::BadDer | Error::BadDerTime | Error::TrailingData(_) => malformed(error),
        other => RefusedPeer::InvalidChain { presented, reason: other.to_string() },
    }
}

const fn wrong_purpose(presented: Identity, role: Role) -> RefusedPeer {
    let role = match role {
        Role::Server => "server",
        Role::Client => "client",
    };
    RefusedPeer::WrongPurpose { presented, role }
}

trait ParseError: fmt::Display {}
impl ParseError for webpki::Error {}
impl ParseError for X509Error {}
impl ParseError for x509_parser::nom::Err<X509Error> {}

fn malformed(error: impl ParseError) -> RefusedPeer {
    RefusedPeer::Malformed { reason: shown(&error.to_string()) }
}

/// The verifier of one side: on the client of the one server it expects, on the
/// server of every client that a bundle vouches for (what it may do is for policy).
pub(super) struct SvidVerifier {
    trust: watch::Receiver<Arc<TrustBundles>>,
    expected: Option<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl SvidVerifier {
    pub(super) fn new(
        trust: watch::Receiver<Arc<TrustBundles>>,
        expected: Option<Identity>,
        provider: &CryptoProvider,
    ) -> Arc<Self> {
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { trust, expected, algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), RefusedPeer> {
        let trust = Arc::clone(&self.trust.borrow());
        let presented = verify_chain(&trust, &self.algorithms, leaf, intermediates, role, now)?;
        match &self.expected {
            Some(expected) if *expected != presented => {
                Err(RefusedPeer::UnexpectedIdentity { expected: expected.clone(), presented })
            }
            _ => Ok(()),
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadSignature))
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

/// TLS 1.2 is not enabled: its signatures are never asked about.
const fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SvidVerifier {
    /// No hints: the bundles change, and a workload has one certificate to offer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
