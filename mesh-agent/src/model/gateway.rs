//! Listeners that bind a socket of the node: gateway mode.
//!
//! Spec: `envoy/config/listener/v3/listener.proto`,
//! `envoy/extensions/filters/listener/{tls_inspector,proxy_protocol}/v3/*.proto`.

use std::time::Duration;

use serde::Serialize;

/// How a gateway listener's socket is opened, and what is done before a filter chain is
/// chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// Connections that may wait to be accepted; `net.core.somaxconn` caps it.
    pub backlog: u32,
    /// Whether the address need not be the node's own (yet).
    pub freebind: bool,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub tls_inspector: Option<TlsInspector>,
    /// For the listener filters together; `None`: for ever.
    pub filters_timeout: Option<Duration>,
}

/// Spec: `envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TlsInspector {
    /// The largest ClientHello, with its record headers.
    pub max_client_hello_bytes: usize,
    /// Whether one that can't be read ends the connection, instead of being opaque bytes.
    pub close_on_errors: bool,
}

/// Spec: `envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProxyProtocol {
    /// Whether connections without a header are taken as they are.
    pub optional: bool,
    pub v1: bool,
    pub v2: bool,
}
