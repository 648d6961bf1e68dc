//! Active health checks: what endpoints are asked, how often, and how many answers it takes.
//!
//! Spec: `envoy/config/core/v3/health_check.proto`.

use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Method;
use serde::{Serialize, Serializer};

use crate::model::{authz::StringMatcher, header_mutation::HeaderMutation};

#[derive(Debug, Clone, Serialize)]
pub struct HealthCheck {
    /// Of one check, the connection included; more than zero, as every interval is.
    pub timeout: Duration,
    pub interval: Duration,
    /// Before the first check.
    pub initial_jitter: Duration,
    pub interval_jitter: Duration,
    /// Of the interval.
    pub interval_jitter_percent: u32,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub reuse_connection: bool,
    /// While the cluster has never had traffic.
    pub no_traffic_interval: Duration,
    /// And the endpoint is healthy.
    pub no_traffic_healthy_interval: Duration,
    pub unhealthy_interval: Duration,
    /// Before it is as unhealthy as it takes.
    pub unhealthy_edge_interval: Duration,
    pub healthy_edge_interval: Duration,
    pub log_failures: bool,
    pub log_successes: bool,
    pub probe: Probe,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    Http(Box<HttpProbe>),
    Tcp(TcpProbe),
    Grpc(GrpcProbe),
}

/// Spec: `envoy.config.core.v3.HealthCheck.HttpHealthCheck`.
#[derive(Debug, Clone, Serialize)]
pub struct HttpProbe {
    /// Without it, the cluster's name.
    pub host: Option<Arc<str>>,
    pub path: Arc<str>,
    #[serde(serialize_with = "shown")]
    pub method: Method,
    pub http2: bool,
    /// The request's body.
    #[serde(skip)]
    pub send: Bytes,
    /// What the response has to have, in this order.
    #[serde(skip)]
    pub receive: Vec<Bytes>,
    /// How much of the response is looked at.
    pub response_buffer_bytes: usize,
    /// Values are literal.
    pub headers: HeaderMutation,
    /// Statuses of an endpoint that is well.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count towards `unhealthy_threshold`; others are the end of it.
    pub retriable: Vec<Range<u16>>,
    /// What `x-envoy-upstream-healthchecked-cluster` has to say.
    pub service_name: Option<StringMatcher>,
}

/// Spec: `envoy.config.core.v3.HealthCheck.TcpHealthCheck`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TcpProbe {
    #[serde(skip)]
    pub send: Bytes,
    /// What has to come back, in this order; with nothing, a connection is enough.
    #[serde(skip)]
    pub receive: Vec<Bytes>,
}

/// Spec: `envoy.config.core.v3.HealthCheck.GrpcHealthCheck`.
#[derive(Debug, Clone, Serialize)]
pub struct GrpcProbe {
    pub service_name: String,
    /// Without it, the cluster's name.
    pub authority: Option<Arc<str>>,
    /// Values are literal.
    pub headers: HeaderMutation,
}

/// What an endpoint says of its checks.
///
/// Spec: `envoy.config.endpoint.v3.Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EndpointCheck {
    /// Where it is asked, if not where traffic goes.
    pub address: Option<SocketAddr>,
    /// For which host.
    pub hostname: Option<Arc<str>>,
    pub disabled: bool,
}

fn shown<S: Serializer>(method: &Method, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(method.as_str())
}
