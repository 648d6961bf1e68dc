//! Listeners, filter chains and their filters.
//!
//! Spec: `envoy/config/listener/v3/listener.proto`, `listener_components.proto`,
//! read for a node agent as README's "Configuration" says: an outbound listener is
//! chosen by original destination, an inbound one by the workload's address and port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    access_log::AccessLog,
    authz::Rbac,
    cluster::ClusterName,
    filter::ChainFilter,
    http_options::HttpOptions,
    local_reply::LocalReply,
    route::{OnDemandClusters, RouteConfiguration},
    scope::ScopedRoutes,
};

/// Spec: `envoy.config.core.v3.TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    pub name: Arc<str>,
    pub direction: Direction,
    /// Outbound: the original destination this listener is for, `0.0.0.0` or `::`
    /// for every address with that port. Inbound: the workload's address and port,
    /// where an unspecified address means every enrolled workload.
    pub address: SocketAddr,
    /// Tried most specific first; see [`FilterChainMatch`].
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Taken where no chain matches; without it the connection is closed.
    pub default_filter_chain: Option<Arc<FilterChain>>,
}

/// Spec: `envoy.config.listener.v3.FilterChainMatch`; empty lists match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    /// Matched against the original destination.
    pub prefix_ranges: Vec<IpNet>,
    pub source_prefix_ranges: Vec<IpNet>,
    pub source_ports: Vec<u16>,
    /// Inbound only: the chain is for mTLS (`"tls"`) or for plaintext
    /// (`"raw_buffer"`) alone.
    pub transport_protocol: Option<TransportProtocol>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportProtocol {
    Tls,
    RawBuffer,
}

#[derive(Debug, Clone, Serialize)]
pub struct FilterChain {
    /// Empty where the configuration gives none.
    pub name: Arc<str>,
    pub matches: FilterChainMatch,
    /// Run in order before the terminal filter; the first that denies closes the
    /// connection.
    pub filters: Vec<NetworkFilter>,
    pub terminal: TerminalFilter,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkFilter {
    /// `envoy.extensions.filters.network.rbac.v3.RBAC`
    Rbac(Arc<Rbac>),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalFilter {
    TcpProxy(Arc<TcpProxy>),
    Http(Arc<HttpConnectionManager>),
}

impl TerminalFilter {
    /// Whether a connection that began with this lives on under `new` as if it had begun
    /// with that. What is asked for anew with every request makes no difference.
    pub fn carries_over_to(&self, new: &Self) -> bool {
        match (self, new) {
            (Self::TcpProxy(old), Self::TcpProxy(new)) => {
                let used = |entry: &&WeightedCluster| entry.weight > 0;
                let known = |name: &ClusterName| {
                    new.clusters.iter().filter(used).any(|new| new.cluster == *name)
                };
                old.idle_timeout == new.idle_timeout
                    && old.clusters.iter().filter(used).all(|old| known(&old.cluster))
            }
            (Self::Http(old), Self::Http(new)) => {
                let lasting = |http: &HttpConnectionManager| {
                    let limits = (http.max_request_headers_kib, http.request_headers_timeout);
                    let life = (http.max_connection_duration, http.max_requests_per_connection);
                    (http.codec, http.idle_timeout, limits, life, http.max_headers_count)
                };
                lasting(old) == lasting(new)
            }
            _ => false,
        }
    }
}

/// Spec: `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
#[derive(Debug, Clone, Serialize)]
pub struct TcpProxy {
    pub stat_prefix: String,
    /// One entry for a plain `cluster`. Weights are relative; their sum is not zero.
    pub clusters: Vec<WeightedCluster>,
    /// Closes the connection after this long without a byte either way; `None` never.
    pub idle_timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightedCluster {
    pub cluster: ClusterName,
    pub weight: u32,
}

/// Spec: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.CodecType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CodecType {
    #[default]
    Auto,
    Http1,
    Http2,
}

/// Spec: `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
#[derive(Debug, Clone, Serialize)]
pub struct HttpConnectionManager {
    pub stat_prefix: String,
    pub codec: CodecType,
    pub routes: RouteSource,
    /// In order, without the `router` that ends the chain.
    pub http_filters: Vec<ChainFilter>,
    /// Beside the agent's own.
    pub access_logs: Arc<[AccessLog]>,
    pub local_reply: Option<Arc<LocalReply>>,
    pub options: Arc<HttpOptions>,
    /// Closes an idle downstream connection. Envoy's default: 1 hour; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Bounds one request's stream without activity. Envoy's default: 5 minutes; `None` never.
    pub stream_idle_timeout: Option<Duration>,
    /// How long a client may take to send a request's headers; `None` for no limit
    /// beyond the agent's own.
    pub request_headers_timeout: Option<Duration>,
    /// How long a request may take to come to its end; `None` for ever.
    pub request_timeout: Option<Duration>,
    /// How long request and response may take together; `None` for ever.
    pub max_stream_duration: Option<Duration>,
    /// A connection of that age takes no more requests; `None` never.
    pub max_connection_duration: Option<Duration>,
    /// Nor one that had as many; `None`: any number.
    pub max_requests_per_connection: Option<u32>,
    /// How many headers a request may have. Envoy's default: 100.
    pub max_headers_count: u32,
    /// The largest request header block, in KiB. Envoy's default: 60.
    pub max_request_headers_kib: u32,
}

/// Virtual hosts of a configuration with VHDS are asked for wherever the filter is.
///
/// Spec: `envoy.extensions.filters.http.on_demand.v3.OnDemand`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnDemand {
    pub clusters: Option<OnDemandClusters>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteSource {
    Inline(Arc<RouteConfiguration>),
    /// The name of a `RouteConfiguration` delivered by RDS.
    Rds(Arc<str>),
    /// Each request finds its own.
    Scoped(Arc<ScopedRoutes>),
}
