//! The seam behind which certificates come from: the development CA and SDS here;
//! Istio's CA is a further implementation of the same trait.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use rustls::{pki_types::CertificateDer, sign::SigningKey};
use tokio::sync::watch;

use super::{ca::CaError, clock::Timestamp, refusal::RefusedPeer, trust::TrustBundles};
use crate::model::identity::Identity;

/// The future of [`CertificateSource::fetch`].
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Issued, SourceError>> + Send + 'a>>;

/// Issues workload certificates and knows whom to trust.
pub trait CertificateSource: Send + Sync {
    /// A new certificate for `identity`. Dropping the future abandons the attempt.
    fn fetch<'a>(&'a self, identity: &'a Identity) -> Fetch<'a>;

    /// The trust bundles, now and whenever they change: a new value applies to the
    /// next handshake.
    fn trust_bundles(&self) -> watch::Receiver<Arc<TrustBundles>>;

    /// Whether certificates come unasked, now or later.
    fn pushes(&self) -> bool {
        false
    }

    /// Where certificates come unasked: begins to follow that of `identity`, until what
    /// is returned is dropped. `None`: a new one is fetched when the old one grows old.
    fn follow(&self, identity: &Identity) -> Option<Box<dyn Following>> {
        let _ = identity;
        None
    }
}

/// One identity's certificate, at a source that pushes.
pub trait Following: Send {
    /// Completes when [`CertificateSource::fetch`] may have something else to give than
    /// when this was called last. Cancel safe.
    fn changed<'a>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// A certificate fresh from its source.
pub struct Issued {
    /// Leaf first, then the intermediates up to, without, the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<dyn SigningKey>,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Why a source has no certificate to give, or one that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The development CA failed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A source of another kind failed.
    #[error("{source_name}: {cause}")]
    Source {
        source_name: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// SDS has not delivered what it was asked for, or no longer has it.
    #[error("there is no secret `{secret}` ({what})")]
    NoSecret { secret: Arc<str>, what: &'static str },
    /// SDS delivered it, but it is something else.
    #[error("secret `{secret}` is no {expected}")]
    OtherSecret { secret: Arc<str>, expected: &'static str },
    /// No answer in time.
    #[error("no certificate within {}", humantime(*after))]
    Timeout { after: Duration },
    /// It gave no certificate, or none that can be read.
    #[error("issued certificate is malformed: {reason}")]
    Malformed { reason: String },
    /// Key and certificate are not a pair.
    #[error("issued key does not belong to the issued certificate")]
    KeyMismatch,
    /// It is somebody else's.
    #[error("issued certificate is for {issued}")]
    OtherIdentity { issued: Identity },
    /// It was dead on arrival.
    #[error("issued certificate expired at {not_after}")]
    Expired { not_after: Timestamp },
    /// Peers with the same trust bundle would refuse it.
    #[error("issued certificate does not verify against the trust bundle: {0}")]
    Untrusted(#[source] RefusedPeer),
}

/// A duration for a log line: `11h 59m`, `42s`.
pub(super) fn humantime(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s}s"),
        (h, m, _) => format!("{h}h {m}m"),
    }
}
