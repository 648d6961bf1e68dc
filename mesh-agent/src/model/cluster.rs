//! Clusters and their endpoints.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto`, `envoy/config/endpoint/v3/endpoint.proto`.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    identity::Identity,
    runtime::RuntimeDouble,
    socket_match::{SocketLabels, TransportSocketMatch},
    tls::UpstreamTls,
    workload::WorkloadUid,
};

mod dns;
mod hash_table;
mod health_check;
mod outlier;
mod subsets;
mod zones;

pub use self::{
    dns::{Dns, DnsFamily, DnsName},
    hash_table::{
        HASH_TABLES, HASH_TABLES_MAX_BYTES, MAGLEV_PLACE_BYTES, RING_POINT_BYTES, TableSpace,
    },
    health_check::{EndpointCheck, GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe},
    outlier::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate},
    subsets::{FALLBACK_LIST, SelectorFallback, SubsetFallback, SubsetSelector, Subsets},
    zones::{LocalCluster, ZoneAware},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ClusterName(pub Arc<str>);

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Cluster {
    pub name: ClusterName,
    pub discovery: Discovery,
    pub lb_policy: LbPolicy,
    pub balancing: Balancing,
    /// For its table, where the policy goes by hash.
    #[serde(skip)]
    pub table_space: Option<Arc<TableSpace>>,
    /// Envoy's default: 5 s.
    pub connect_timeout: Duration,
    pub upstream_protocol: UpstreamProtocol,
    pub connection_limits: ConnectionLimits,
    pub circuit_breakers: Arc<CircuitBreakers>,
    /// TLS to endpoints that are not reached by HBONE; `None`: in the clear.
    pub tls: Option<Arc<UpstreamTls>>,
    pub monitoring: Monitoring,
    /// In place of `tls`: the first that an endpoint's labels match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub socket_matches: Vec<TransportSocketMatch>,
}

/// How long HTTP connections to endpoints are used; of each `None` is as the agent has it.
///
/// Spec: `envoy.config.core.v3.HttpProtocolOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub struct ConnectionLimits {
    /// Closed when nothing has been asked for so long; [`Duration::MAX`]: never.
    pub idle_timeout: Option<Duration>,
    /// Nothing is asked on one that is older.
    pub max_duration: Option<Duration>,
    /// At least 1.
    pub max_requests: Option<u32>,
    /// By HTTP/2. `None`: a silent peer is asked nothing, since gRPC servers hang up on who asks
    /// more often than they like; TCP's own probes tell whether it is there.
    pub pings: Option<Pings>,
    pub keepalive: Keepalive,
}

/// TCP's own probes on connections that are made to endpoints, opaque ones as well.
///
/// Spec: `envoy.config.core.v3.TcpKeepalive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keepalive {
    /// The agent's own.
    #[default]
    Usual,
    /// None are sent.
    Off,
    /// Of each, what is not said is the kernel's.
    Probes { probes: Option<u8>, time_s: Option<u16>, interval_s: Option<u16> },
}

/// Spec: `envoy.config.core.v3.KeepaliveSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Pings {
    /// Of silence, until the peer is asked.
    pub interval: Duration,
    /// For its answer.
    pub timeout: Duration,
}

/// How the agent tells by itself which endpoints are well.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Monitoring {
    /// By what comes of connections and requests.
    pub outlier_detection: Option<Arc<OutlierDetection>>,
    /// By asking them.
    pub health_check: Option<Arc<HealthCheck>>,
}

impl Monitoring {
    /// Whether it finds out anything: only who is asked each time can heed it.
    pub fn is_on(&self) -> bool {
        self.outlier_detection.is_some() || self.health_check.is_some()
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// Endpoints are part of the cluster.
    Static(Arc<LoadAssignment>),
    /// Endpoints arrive under this name (`service_name`, or the cluster's own).
    Eds { service_name: Arc<str> },
    /// Endpoints are names, which the agent resolves.
    Dns(Arc<Dns>),
    /// The connection's own original destination is the only endpoint: inbound, the
    /// application itself; outbound, whatever the application asked for, in the clear.
    OriginalDestination,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LbPolicy {
    RoundRobin,
    /// Picks the least loaded of `choice_count` random endpoints.
    LeastRequest {
        choice_count: u32,
    },
    /// The least loaded of all.
    LeastRequestFullScan,
    /// Any endpoint, whatever its weight.
    Random,
    /// By the request's hash, on a ring of as many points as the sizes allow.
    RingHash {
        min_size: u64,
        max_size: u64,
        function: HashFunction,
    },
    /// By the request's hash, in a table of this size: a prime.
    Maglev {
        table_size: u32,
    },
}

/// Spec: `envoy.config.cluster.v3.Cluster.RingHashLbConfig.HashFunction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashFunction {
    XxHash,
    MurmurHash2,
}

impl LbPolicy {
    /// Whether a request's hash says which endpoint it goes to.
    pub fn is_by_hash(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }

    /// Whether what is in flight to an endpoint says so.
    pub fn is_by_load(self) -> bool {
        matches!(self, Self::LeastRequest { .. } | Self::LeastRequestFullScan)
    }
}

/// Which endpoints a cluster's policy chooses from.
///
/// Spec: `envoy.config.cluster.v3.Cluster.CommonLbConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Balancing {
    /// Of a priority's endpoints, in percent: with fewer of them available, all take
    /// traffic. 0: never.
    pub panic_threshold: u8,
    /// In panic no endpoint takes traffic, instead of all.
    pub fail_traffic_on_panic: bool,
    /// Localities share by their weights; else these mean nothing.
    pub locality_weighted: bool,
    /// Where a local cluster is known, and localities don't share by weight.
    pub zone_aware: ZoneAware,
    /// Endpoints whose health is not checked yet don't count for panic and priorities.
    pub ignore_new_hosts: bool,
    /// Round robin and least request.
    pub slow_start: Option<SlowStart>,
    /// Least request, where weights differ: how much what is in flight counts.
    pub active_request_bias: Option<RuntimeDouble>,
    pub subsets: Option<Arc<Subsets>>,
}

/// Endpoints that are new, or well again, take less at first.
///
/// Spec: `envoy.config.cluster.v3.Cluster.SlowStartConfig`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlowStart {
    pub window: Duration,
    /// 1: their share grows evenly; more: faster at first.
    pub aggression: RuntimeDouble,
    /// Of its weight, an endpoint has at least as much; at most 1.
    pub min_weight: f64,
}

impl SlowStart {
    /// What is left of the weight of an endpoint that has been well for this long.
    pub fn factor(&self, well_for: Duration, aggression: f64) -> f64 {
        if well_for >= self.window {
            return 1.0;
        }
        let well_for = well_for.max(Duration::from_millis(1));
        let part = well_for.as_secs_f64() / self.window.as_secs_f64();
        let grown = if aggression > 0.0 { part.powf(1.0 / aggression) } else { part };
        grown.max(self.min_weight)
    }
}

impl Default for Balancing {
    /// Envoy's.
    fn default() -> Self {
        Self {
            panic_threshold: 50,
            fail_traffic_on_panic: false,
            locality_weighted: false,
            zone_aware: ZoneAware::default(),
            ignore_new_hosts: false,
            slow_start: None,
            active_request_bias: None,
            subsets: None,
        }
    }
}

/// How much may be on its way to a cluster at once, for each pod by itself. HTTP only.
///
/// Spec: `envoy.config.cluster.v3.CircuitBreakers`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct CircuitBreakers {
    pub default: Thresholds,
    /// Of routes with priority HIGH.
    pub high: Thresholds,
}

/// Spec: `envoy.config.cluster.v3.CircuitBreakers.Thresholds`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Thresholds {
    /// HTTP/1 connections in use; requests beyond wait.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    pub max_requests: u32,
    /// Requests that are being sent again.
    pub max_retries: u32,
    /// In place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for Thresholds {
    /// Envoy's.
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
        }
    }
}

/// Spec: `envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RetryBudget {
    /// Of the requests that are on their way or wait; 0 to 100.
    pub percent: f64,
    /// However few these are.
    pub min_concurrency: u32,
}

impl Default for RetryBudget {
    /// Envoy's.
    fn default() -> Self {
        Self { percent: 20.0, min_concurrency: 3 }
    }
}

/// What HTTP speaks to the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// Envoy's default without `HttpProtocolOptions`.
    Http1,
    Http2,
    /// `use_downstream_protocol_config`.
    SameAsDownstream,
}

/// Spec: `envoy.config.endpoint.v3.ClusterLoadAssignment`.
#[derive(Debug, Clone, Serialize)]
pub struct LoadAssignment {
    /// By priority; each once per priority, and each address once among all.
    pub localities: Vec<Locality>,
    /// How much more than its share the endpoints that are available can bear, in
    /// percent; at least 1. Envoy's default: 140.
    pub overprovisioning_factor: u32,
    /// A priority's health goes by its endpoints' weights, not by their number.
    pub weighted_priority_health: bool,
    /// In order: each drops its share of what those before it left.
    pub drop_overloads: Vec<DropOverload>,
    /// When its endpoints are not to be used any more, unless it is delivered again.
    #[serde(skip)]
    pub stale_at: Option<Instant>,
}

impl Default for LoadAssignment {
    fn default() -> Self {
        Self {
            localities: Vec::new(),
            overprovisioning_factor: 140,
            weighted_priority_health: false,
            drop_overloads: Vec::new(),
            stale_at: None,
        }
    }
}

impl LoadAssignment {
    /// Endpoints of one locality, at the highest priority.
    pub fn of(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let localities = vec![Locality { endpoints, ..Locality::default() }];
        Self { localities, ..Self::default() }
    }

    /// All endpoints, by priority.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.localities.iter().flat_map(|locality| &locality.endpoints)
    }
}

/// Endpoints of one place at one priority.
///
/// Spec: `envoy.config.endpoint.v3.LocalityLbEndpoints`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Locality {
    pub place: Place,
    /// 0 is the highest; at most 128.
    pub priority: u32,
    /// Relative to others of its priority; 0 where none was given: no traffic, where
    /// localities share by weight.
    pub weight: u32,
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Spec: `envoy.config.core.v3.Locality`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

/// Spec: `envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DropOverload {
    pub category: Arc<str>,
    /// Of what is not dropped yet; at most [`DropOverload::ALL`].
    pub per_million: u32,
}

impl DropOverload {
    /// Everything.
    pub const ALL: u32 = 1_000_000;

    /// Whether nothing passes.
    pub fn is_unconditional(&self) -> bool {
        self.per_million >= Self::ALL
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// What it is called: a request's host where routes want that, and a name to ask for by TLS.
    /// A valid authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Arc<str>>,
    pub tunnel: Tunnel,
    /// Relative to others of its locality; at least 1.
    pub weight: u32,
    pub health: Health,
    /// What clusters' `transport_socket_matches` look at; `None`: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Arc<SocketLabels>>,
    /// `None`: it is checked as its cluster says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Arc<EndpointCheck>>,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// In the clear.
    Direct,
    /// By HBONE to port 15008 of the endpoint's address: metadata
    /// `envoy.transport_socket_match: {tunnel: http}`.
    Hbone {
        /// The SAN the peer must prove. From endpoint metadata
        /// `mesh.workload: {identity: spiffe://…}`; a tunnel without it is refused.
        identity: Identity,
        /// From endpoint metadata `mesh.workload: {uid: …}`.
        workload: Option<WorkloadUid>,
    },
}

/// Spec: `envoy.config.core.v3.HealthStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    Healthy,
    Degraded,
    /// UNHEALTHY, TIMEOUT and DRAINING: takes no new connection, except in panic, when
    /// most endpoints of its priority are so.
    Unhealthy,
}
