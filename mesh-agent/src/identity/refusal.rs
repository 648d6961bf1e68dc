//! Why a peer's certificate was refused, in words for the log, and how to get that
//! back out of the error a handshake returns.

use std::{error::Error as StdError, fmt, io, sync::Arc};

use rustls::{AlertDescription, CertificateError, OtherError};

use super::clock::Timestamp;
use crate::model::identity::{Identity, TrustDomain};

/// How much of a peer's own text is shown.
const SHOWN_CHARS: usize = 128;

/// Why this side refused the peer's certificate.
///
/// `presented` is what the certificate says; only [`RefusedPeer::UnexpectedIdentity`]
/// is judged after its chain was verified, everywhere else it is a mere claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedPeer {
    /// The peer sent no certificate at all.
    #[error("peer presented no certificate")]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("peer's certificate is malformed: {reason}")]
    Malformed { reason: String },
    /// No URI SAN, or one that is no workload's SPIFFE ID.
    #[error("peer's certificate holds no SPIFFE ID of a workload: {}", shown_uri(uri.as_deref()))]
    NoSpiffeId { uri: Option<String> },
    /// Spec: X509-SVID §2: an SVID holds exactly one URI SAN.
    #[error("peer's certificate holds {count} URI SANs, an X509-SVID holds exactly one")]
    SeveralUriSans { count: usize },
    /// There is no trust bundle for the trust domain.
    #[error(
        "peer claims {presented}: foreign trust domain `{}`, trusted: {}",
        presented.trust_domain(),
        shown_domains(trusted)
    )]
    ForeignTrustDomain { presented: Identity, trusted: Vec<TrustDomain> },
    /// No root of the trust domain's bundle signed the chain.
    #[error(
        "peer claims {presented}: its certificate was not issued by a trusted root of `{}`",
        presented.trust_domain()
    )]
    UnknownIssuer { presented: Identity },
    /// The certificate, or one of its intermediates, has expired.
    #[error("certificate of {presented} expired at {not_after}, now {now}")]
    Expired { presented: Identity, not_after: Timestamp, now: Timestamp },
    /// The certificate, or one of its intermediates, is not valid yet.
    #[error("certificate of {presented} is not valid before {not_before}, now {now}")]
    NotYetValid { presented: Identity, not_before: Timestamp, now: Timestamp },
    /// A signing certificate. Spec: X509-SVID §4.1, §4.3.
    #[error("peer claims {presented} with a signing (CA) certificate, not a leaf")]
    NotALeaf { presented: Identity },
    /// Its key usages do not allow this side of a TLS handshake.
    #[error("certificate of {presented} is not allowed for TLS {role} authentication")]
    WrongPurpose { presented: Identity, role: &'static str },
    /// The chain breaks another rule, for example a path length constraint.
    #[error("peer claims {presented}: its certificate chain is invalid: {reason}")]
    InvalidChain { presented: Identity, reason: String },
    /// The certificate is in order, but it is somebody else's.
    #[error("expected {expected}, but the peer is {presented}")]
    UnexpectedIdentity { expected: Identity, presented: Identity },
    /// The peer does not hold the certificate's key.
    #[error("peer failed to prove that it holds its certificate's key")]
    BadSignature,
}

impl RefusedPeer {
    /// A short constant name, for a metric's label.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed { .. } => "malformed",
            Self::NoSpiffeId { .. } => "no_spiffe_id",
            Self::SeveralUriSans { .. } => "several_uri_sans",
            Self::ForeignTrustDomain { .. } => "foreign_trust_domain",
            Self::UnknownIssuer { .. } => "unknown_issuer",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::NotALeaf { .. } => "not_a_leaf",
            Self::WrongPurpose { .. } => "wrong_purpose",
            Self::InvalidChain { .. } => "invalid_chain",
            Self::UnexpectedIdentity { .. } => "unexpected_identity",
            Self::BadSignature => "bad_signature",
        }
    }

    /// The identity that the peer's certificate names, if it could be read.
    pub const fn presented(&self) -> Option<&Identity> {
        match self {
            Self::ForeignTrustDomain { presented, .. }
            | Self::UnknownIssuer { presented }
            | Self::Expired { presented, .. }
            | Self::NotYetValid { presented, .. }
            | Self::NotALeaf { presented }
            | Self::WrongPurpose { presented, .. }
            | Self::InvalidChain { presented, .. }
            | Self::UnexpectedIdentity { presented, .. } => Some(presented),
            Self::NoCertificate
            | Self::Malformed { .. }
            | Self::NoSpiffeId { .. }
            | Self::SeveralUriSans { .. }
            | Self::BadSignature => None,
        }
    }
}

/// Travels as [`CertificateError::Other`], which keeps who was refused; the peer gets
/// the alert `certificate_unknown` ("some other issue", RFC 8446 §6.2) for all of them.
/// rustls' own variants would send finer alerts, but have no room for an identity.
impl From<RefusedPeer> for rustls::Error {
    fn from(refused: RefusedPeer) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// Why this side refused the peer, if that is what ended the handshake.
pub fn refusal(error: &io::Error) -> Option<RefusedPeer> {
    find_tls_error(error).and_then(tls_refusal)
}

/// As [`refusal`], for rustls' own error.
pub fn tls_refusal(error: &rustls::Error) -> Option<RefusedPeer> {
    match error {
        rustls::Error::NoCertificatesPresented => Some(RefusedPeer::NoCertificate),
        rustls::Error::InvalidCertificate(error) => Some(match error {
            CertificateError::Other(OtherError(cause)) => {
                match cause.downcast_ref::<RefusedPeer>() {
                    Some(refused) => refused.clone(),
                    None => RefusedPeer::Malformed { reason: cause.to_string() },
                }
            }
            CertificateError::BadEncoding => {
                RefusedPeer::Malformed { reason: "bad encoding".to_owned() }
            }
            // Chains are verified here and never yield one of rustls' own variants:
            // what is left is the signature of the handshake.
            _ => RefusedPeer::BadSignature,
        }),
        _ => None,
    }
}

/// The alert by which a peer refused the certificate of this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAlert(pub AlertDescription);

impl fmt::Display for PeerAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0 {
            AlertDescription::AccessDenied => {
                // rustls sends this where a server has nothing to present.
                return f.write_str(
                    "peer denied access: it has no valid certificate of its own, or refuses ours",
                );
            }
            AlertDescription::CertificateRequired => "it wants a certificate and got none",
            AlertDescription::CertificateExpired => "it holds it for expired or not yet valid",
            AlertDescription::UnknownCA => "it does not trust its issuer",
            AlertDescription::CertificateRevoked => "it holds it for revoked",
            _ => "its own log says why",
        };
        write!(f, "peer refused our certificate: {what} (TLS alert {})", u8::from(self.0))
    }
}

/// Whether the peer refused the certificate of this side, and with which alert.
///
/// In TLS 1.3 a client is told only after its own handshake is complete: by the first
/// read from the connection.
pub fn refused_by_peer(error: &io::Error) -> Option<PeerAlert> {
    match find_tls_error(error) {
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => {
            Some(PeerAlert(*alert))
        }
        _ => None,
    }
}

/// Spec: RFC 8446 §6.2.
const fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}

pub(super) fn find_tls_error(error: &io::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn StdError + 'static)> =
        error.get_ref().map(|e| e as &(dyn StdError + 'static));
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(error);
        }
        // An io::Error inside an io::Error hides its payload from `source`.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

fn shown_uri(uri: Option<&str>) -> String {
    match uri {
        Some(uri) => format!("its URI SAN is `{}`", shown(uri)),
        None => "it has no URI SAN".to_owned(),
    }
}

fn shown_domains(domains: &[TrustDomain]) -> String {
    let names: Vec<_> = domains.iter().map(|d| format!("`{d}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Hostile text made fit for a log line: cut short, no control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).flat_map(char::escape_default).collect()
}
