//! Listeners that bind a socket of the node: gateway mode.
//!
//! Spec: `envoy/config/listener/v3/listener.proto`.

use serde::Serialize;

/// How a gateway listener's socket is opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// Connections that may wait to be accepted; `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// Whether the address need not be the node's own (yet).
    pub freebind: bool,
}
