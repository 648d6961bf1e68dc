//! Clusters and their endpoints.
//!
//! Spec: `envoy/config/cluster/v3/cluster.proto`, `envoy/config/endpoint/v3/endpoint.proto`.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use super::{identity::Identity, tls::UpstreamTls, workload::WorkloadUid};

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
    /// Envoy's default: 5 s.
    pub connect_timeout: Duration,
    pub upstream_protocol: UpstreamProtocol,
    /// TLS to endpoints that are not reached by HBONE; `None`: in the clear.
    pub tls: Option<Arc<UpstreamTls>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// Endpoints are part of the cluster.
    Static(Arc<LoadAssignment>),
    /// Endpoints arrive under this name (`service_name`, or the cluster's own).
    Eds { service_name: Arc<str> },
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
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoadAssignment {
    pub endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub tunnel: Tunnel,
    /// Relative; at least 1. The locality's weight is already multiplied in.
    pub weight: u32,
    pub health: Health,
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
    /// most of the cluster's endpoints are so.
    Unhealthy,
}
