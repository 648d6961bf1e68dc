//! Why a tunnel was not opened.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{model::identity::Identity, transport::dial::DialError};

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

/// Why [`super::HbonePool::connect`] gave no stream. Cheap to clone: everyone who
/// waited for one failed connection gets the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HboneError {
    /// TCP to the tunnel's address failed; often a NetworkPolicy without port 15008.
    #[error("HBONE to {tunnel} ({identity}): no TCP connection")]
    Dial {
        tunnel: SocketAddr,
        identity: Identity,
        #[source]
        source: Arc<DialError>,
    },
    /// TLS failed: the peer is not who we expect, or does not accept who we are. The
    /// latter shows only after our side of the handshake is done.
    #[error("HBONE to {tunnel} ({identity}): TLS handshake failed")]
    Handshake {
        tunnel: SocketAddr,
        identity: Identity,
        #[source]
        source: Arc<io::Error>,
    },
    /// The peer speaks TLS but not HTTP/2 on it.
    #[error("HBONE to {tunnel} ({identity}): the peer did not agree on ALPN h2")]
    Alpn { tunnel: SocketAddr, identity: Identity },
    /// The peer's agent answered, but not with 200.
    #[error("HBONE to {tunnel} ({identity}): CONNECT {authority} was answered {status}{}", Why(.reason))]
    Refused {
        tunnel: SocketAddr,
        identity: Identity,
        authority: SocketAddr,
        status: StatusCode,
        /// The peer's `proxy-status`, as it said it. Spec: RFC 9209.
        reason: Option<String>,
    },
    /// The caller's time was up.
    #[error("HBONE to {tunnel} ({identity}): waited {after:?} for {phase}")]
    Timeout { tunnel: SocketAddr, identity: Identity, phase: Phase, after: Duration },
    /// The peer did not process the CONNECT (GOAWAY or REFUSED_STREAM), twice.
    #[error("HBONE to {tunnel} ({identity}): the peer takes no more streams")]
    Unprocessed { tunnel: SocketAddr, identity: Identity },
    /// The connection broke before the CONNECT was answered.
    #[error("HBONE to {tunnel} ({identity}): the connection broke")]
    Lost {
        tunnel: SocketAddr,
        identity: Identity,
        #[source]
        source: Arc<io::Error>,
    },
    /// The peer broke HTTP/2, or reset the CONNECT.
    #[error("HBONE to {tunnel} ({identity}): CONNECT {authority} failed")]
    Protocol {
        tunnel: SocketAddr,
        identity: Identity,
        authority: SocketAddr,
        #[source]
        source: Arc<h2::Error>,
    },
    /// The endpoint was removed while its connection was being made.
    #[error("HBONE to {tunnel} ({identity}): the endpoint was removed meanwhile")]
    Evicted { tunnel: SocketAddr, identity: Identity },
    /// The agent is shutting down.
    #[error("HBONE to {tunnel} ({identity}): the pool is closed")]
    PoolClosed { tunnel: SocketAddr, identity: Identity },
}

impl HboneError {
    /// Whether the same endpoint, or another, may be tried: no byte reached the
    /// inner destination, and the cause may pass.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Dial { .. }
            | Self::Timeout { phase: Phase::Connection, .. }
            | Self::Unprocessed { .. }
            | Self::Evicted { .. }
            | Self::Lost { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Handshake { .. }
            | Self::Alpn { .. }
            | Self::Timeout { phase: Phase::Answer, .. }
            | Self::Protocol { .. }
            | Self::PoolClosed { .. } => false,
        }
    }
}

struct Why<'a>(&'a Option<String>);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
