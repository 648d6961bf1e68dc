//! Listeners, filter chains and their filters.
//!
//! Spec: `envoy/config/listener/v3/listener.proto`, `listener_components.proto`,
//! read for a node agent as README's "Configuration" says: an outbound listener is
//! chosen by original destination, an inbound one by the workload's address and port, and
//! a gateway listener is the node's own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    access_log::AccessLogs,
    authz::Rbac,
    cluster::ClusterName,
    filter::{ChainFilter, TokenBucket},
    gateway::Gateway,
    http_options::HttpOptions,
    listener_filter::ListenerFilters,
    local_reply::LocalReply,
    route::{OnDemandClusters, RouteConfiguration},
    runtime::RuntimeFlag,
    scope::ScopedRoutes,
    tls::DownstreamTls,
    tracing::Tracing,
};

/// Spec: `envoy.config.core.v3.TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Inbound,
    Outbound,
    /// Unspecified: from clients of a gateway, which may be anybody, to wherever it leads.
    Gateway,
}

impl Direction {
    /// In logs, metrics and the command line's output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Gateway => "gateway",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    pub name: Arc<str>,
    pub direction: Direction,
    /// Outbound: the original destination this listener is for, `0.0.0.0` or `::`
    /// for every address with that port. Inbound: the workload's address and port,
    /// where an unspecified address means every enrolled workload. Gateway: what is bound
    /// in the agent's own network namespace.
    pub address: SocketAddr,
    /// Not of gateways: it is, besides, for every original destination of its address's
    /// family that no other listener of its direction is for.
    pub use_original_dst: bool,
    /// Of gateways only.
    pub gateway: Option<Gateway>,
    /// Not of inbound listeners: what is done before a chain is chosen.
    pub listener_filters: ListenerFilters,
    /// Tried most specific first; see [`FilterChainMatch`].
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Taken where no chain matches; without it the connection is closed.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// Of every connection, beside the agent's own.
    pub access_logs: Arc<AccessLogs>,
}

/// Spec: `envoy.config.listener.v3.FilterChainMatch`; empty lists match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FilterChainMatch {
    pub destination_port: Option<u16>,
    /// Matched against the original destination.
    pub prefix_ranges: Vec<IpNet>,
    /// Not of inbound listeners: lower case, `*.` before what more labels may precede.
    pub server_names: Vec<Arc<str>>,
    pub source_prefix_ranges: Vec<IpNet>,
    pub source_ports: Vec<u16>,
    /// The chain is for TLS (`"tls"`; inbound: HBONE's) or for plaintext (`"raw_buffer"`)
    /// alone.
    pub transport_protocol: Option<TransportProtocol>,
    /// Not of inbound listeners: of the client's ALPN, or what it speaks in the clear.
    pub application_protocols: Vec<Arc<str>>,
    /// Not of inbound listeners: the peer itself, whatever the PROXY protocol says.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Not of inbound listeners.
    pub source_type: SourceType,
}

impl FilterChainMatch {
    /// Whether there is something that both ask for with the same words, so that nothing
    /// tells which of the two is meant.
    pub fn overlaps(&self, other: &Self) -> bool {
        fn shared<T: PartialEq>(a: &[T], b: &[T]) -> bool {
            a.is_empty() && b.is_empty() || a.iter().any(|one| b.contains(one))
        }
        self.destination_port == other.destination_port
            && shared(&self.prefix_ranges, &other.prefix_ranges)
            && shared(&self.server_names, &other.server_names)
            && self.transport_protocol == other.transport_protocol
            && shared(&self.application_protocols, &other.application_protocols)
            && shared(&self.direct_source_prefix_ranges, &other.direct_source_prefix_ranges)
            && self.source_type == other.source_type
            && shared(&self.source_prefix_ranges, &other.source_prefix_ranges)
            && shared(&self.source_ports, &other.source_ports)
    }
}

/// Spec: `envoy.config.listener.v3.FilterChainMatch.ConnectionSourceType`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
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
    /// Of gateways only: what is terminated before the filters.
    pub tls: Option<GatewayTls>,
    /// Run in order before the terminal filter; the first that denies closes the
    /// connection.
    pub filters: Vec<NetworkFilter>,
    pub terminal: TerminalFilter,
}

#[derive(Debug, Clone, Serialize)]
pub struct GatewayTls {
    pub settings: Arc<DownstreamTls>,
    /// For the handshake; `None`: the agent's own limit.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkFilter {
    /// `envoy.extensions.filters.network.rbac.v3.RBAC`
    Rbac(NetworkRbac),
    ConnectionLimit(Arc<ConnectionLimit>),
    LocalRateLimit(Arc<ConnectionRateLimit>),
    /// The name that the client asked for is the cluster's.
    ///
    /// Spec: `envoy.extensions.filters.network.sni_cluster.v3.SniCluster`.
    SniCluster,
}

impl NetworkFilter {
    /// Whether it is about one connection by itself, and nobody is told.
    pub fn judges_alone(&self) -> bool {
        match self {
            Self::Rbac(rbac) => rbac.shadow.is_none(),
            Self::ConnectionLimit(_) | Self::LocalRateLimit(_) | Self::SniCluster => false,
        }
    }
}

/// The rules of one `rbac` filter; one of them at least.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkRbac {
    pub rules: Option<Arc<Rbac>>,
    /// Judged and told of, never enforced.
    pub shadow: Option<Arc<Rbac>>,
}

/// Spec: `envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit`.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionLimit {
    /// At once; not zero.
    pub max_connections: u64,
    /// How long one over the limit is held before it is closed.
    pub delay: Option<Duration>,
    pub enabled: RuntimeFlag,
}

/// Spec: `envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit`.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionRateLimit {
    /// A token for each connection.
    pub bucket: TokenBucket,
    /// Filters with the same key and the same bucket share it; empty: none does.
    pub share_key: Arc<str>,
    pub enabled: RuntimeFlag,
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
    /// Beside the agent's own.
    pub access_logs: Arc<AccessLogs>,
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
    pub access_logs: Arc<AccessLogs>,
    pub local_reply: Option<Arc<LocalReply>>,
    pub tracing: Option<Arc<Tracing>>,
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
