//! Why a tunnel was not opened.

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use super::HboneTarget;
use crate::{
    model::identity::Identity,
    transport::{dial::DialError, memory::Refused},
};

/// What a caller waited for when its time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A connection to the peer: TCP, TLS.
    Connection,
    /// The peer's answer to the CONNECT.
    Answer,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "a connection",
            Self::Answer => "the answer to CONNECT",
        })
    }
}

/// Why [`super::HbonePool::connect`] gave no stream: from whom, and what failed. Cheap
/// to clone: everyone who waited for one failed connection gets the same error.
#[derive(Debug, Clone)]
pub struct HboneError {
    peer: Box<(SocketAddr, Identity)>,
    failure: HboneFailure,
}

/// What failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HboneFailure {
    /// TCP to the tunnel's address failed; often a NetworkPolicy without port 15008.
    #[error("no TCP connection")]
    Dial(#[source] Arc<DialError>),
    /// TLS failed: the peer is not who we expect, or does not accept who we are. The
    /// latter shows only after our side of the handshake is done, as an alert or as
    /// a connection that is closed at once.
    #[error("TLS handshake failed")]
    Handshake(#[source] Arc<io::Error>),
    /// The peer speaks TLS but not HTTP/2 on it.
    #[error("the peer did not agree on ALPN h2")]
    Alpn,
    /// The peer's agent answered, but not with 200.
    #[error("CONNECT was answered {status}{}", Why(.reason))]
    Refused {
        status: StatusCode,
        /// The peer's `proxy-status`, as it said it. Spec: RFC 9209.
        reason: Option<Box<str>>,
    },
    /// The caller's time was up.
    #[error("waited {after:?} for {phase}")]
    Timeout { phase: Phase, after: Duration },
    /// The peer did not process the CONNECT (GOAWAY or REFUSED_STREAM), twice.
    #[error("the peer takes no more streams")]
    Unprocessed,
    /// The connection broke before the CONNECT was answered.
    #[error("the connection broke")]
    Lost(#[source] Arc<io::Error>),
    /// The peer broke HTTP/2, or reset the CONNECT.
    #[error("HTTP/2 CONNECT failed")]
    Protocol(#[source] Arc<h2::Error>),
    /// The endpoint was removed while its connection was being made.
    #[error("the endpoint was removed meanwhile")]
    Evicted,
    /// The agent is shutting down.
    #[error("the pool is closed")]
    PoolClosed,
}

impl HboneError {
    pub(super) fn new(target: &HboneTarget, failure: HboneFailure) -> Self {
        Self { peer: Box::new((target.tunnel, target.identity.clone())), failure }
    }

    /// What became of a tunnel within the agent that was refused, or that nobody answered for.
    pub fn within(target: &HboneTarget, refused: Option<Refused>) -> Self {
        let failure = match refused {
            Some(Refused { status, reason }) => {
                HboneFailure::Refused { status, reason: Some(reason.into()) }
            }
            None => HboneFailure::Lost(Arc::new(io::ErrorKind::ConnectionReset.into())),
        };
        Self::new(target, failure)
    }

    /// What became of one that was not answered in time.
    pub fn unanswered(target: &HboneTarget, after: Duration) -> Self {
        Self::new(target, HboneFailure::Timeout { phase: Phase::Answer, after })
    }

    /// The address that was, or would have been, dialled.
    pub fn tunnel(&self) -> SocketAddr {
        self.peer.0
    }

    /// Whom the peer had to prove to be.
    pub fn identity(&self) -> &Identity {
        &self.peer.1
    }

    /// What failed.
    pub fn failure(&self) -> &HboneFailure {
        &self.failure
    }

    /// Whether the same endpoint, or another, may be tried: no byte reached the
    /// inner destination, and the cause may pass.
    pub fn is_retryable(&self) -> bool {
        match &self.failure {
            HboneFailure::Dial(_)
            | HboneFailure::Timeout { phase: Phase::Connection, .. }
            | HboneFailure::Unprocessed
            | HboneFailure::Evicted
            | HboneFailure::Lost(_) => true,
            HboneFailure::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            HboneFailure::Handshake(_)
            | HboneFailure::Alpn
            | HboneFailure::Timeout { phase: Phase::Answer, .. }
            | HboneFailure::Protocol(_)
            | HboneFailure::PoolClosed => false,
        }
    }
}

impl fmt::Display for HboneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HBONE to {} ({}): {}", self.tunnel(), self.identity(), self.failure)
    }
}

impl Error for HboneError {
    /// The failure's own cause: its text is part of ours.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.failure.source()
    }
}

struct Why<'a>(&'a Option<Box<str>>);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
