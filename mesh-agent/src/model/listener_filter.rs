//! What looks at a connection's first bytes before a filter chain is chosen.
//!
//! Spec: `envoy/config/listener/v3/listener.proto`,
//! `envoy/extensions/filters/listener/{tls_inspector,http_inspector,proxy_protocol}/v3/*.proto`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::listener::TransportProtocol;

/// The listener filters of one listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ListenerFilters {
    /// Gateways only. Comes before the others, as its header does.
    pub proxy_protocol: Option<ProxyProtocol>,
    pub tls_inspector: Option<TlsInspector>,
    pub http_inspector: bool,
    /// For all of them together; `None`: for ever.
    pub timeout: Option<Duration>,
    /// Whether a connection goes on when that is over, as whatever it has shown itself to be
    /// by then; it is closed otherwise.
    pub continue_on_timeout: bool,
}

impl ListenerFilters {
    /// Whether a connection has to say something before its chain is chosen.
    pub fn wait(&self) -> bool {
        self.proxy_protocol.is_some() || self.tls_inspector.is_some() || self.http_inspector
    }

    /// Whether all that chains are chosen by here has been looked for.
    pub fn are_done(&self, inspected: &Inspected) -> bool {
        (inspected.for_tls || self.tls_inspector.is_none())
            && (inspected.for_http || !self.http_inspector)
    }
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

/// What a connection's first bytes have shown, as far as anybody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    pub for_tls: bool,
    pub for_http: bool,
    pub transport: TransportProtocol,
    /// The SNI, in lower case.
    pub server_name: Option<Arc<str>>,
    /// The ALPN that the client offered, or the protocol that it speaks in the clear.
    pub application_protocols: Vec<Arc<str>>,
}

impl Default for Inspected {
    fn default() -> Self {
        Self {
            for_tls: false,
            for_http: false,
            transport: TransportProtocol::RawBuffer,
            server_name: None,
            application_protocols: Vec::new(),
        }
    }
}
