//! Spec: `envoy.extensions.filters.http.ratelimit.v3`, `envoy/config/ratelimit/v3/rls.proto`.

use std::sync::Arc;

use serde::Serialize;

use crate::model::{
    ext_authz::GrpcService,
    header_mutation::HeaderMutation,
    rate_limit::{HostRateLimits, RateLimit},
    runtime::RuntimeFraction,
};

/// Spec: `RateLimit`.
#[derive(Debug, Clone, Serialize)]
pub struct GlobalRateLimit {
    /// Who counts; its timeout is the filter's.
    pub service: GrpcService,
    pub domain: String,
    pub stage: u32,
    pub requests: RequestType,
    /// How many requests are counted.
    pub enabled: RuntimeFraction,
    /// How many of those over the limit are answered here.
    pub enforced: RuntimeFraction,
    /// Whether a request is refused where there is no answer.
    pub deny_on_failure: bool,
    /// In place of that: how many are.
    pub deny_on_failure_fraction: Option<RuntimeFraction>,
    /// What requests over the limit are answered.
    pub status: u16,
    pub status_on_error: u16,
    /// Whether gRPC clients are told `RESOURCE_EXHAUSTED`.
    pub resource_exhausted: bool,
    /// Of answers to requests over the limit.
    pub response: Arc<HeaderMutation>,
    /// Whether responses tell what is left.
    pub x_ratelimit: bool,
    /// Whether responses to requests over the limit say `x-envoy-ratelimited`.
    pub x_envoy_ratelimited: bool,
    pub retry_after: bool,
    /// What requests are counted under; empty: what their routes say.
    pub rate_limits: Vec<RateLimit>,
    /// Where what the server notes is noted.
    pub metadata_namespace: String,
}

/// Of which requests a filter takes note: `x-envoy-internal` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestType {
    Both,
    Internal,
    External,
}

/// What a route says: `RateLimitPerRoute`.
#[derive(Debug, Clone, Serialize)]
pub struct RateLimitPerRoute {
    pub host: HostRateLimits,
    /// In place of all others, unless empty.
    pub rate_limits: Vec<RateLimit>,
    /// In place of the filter's.
    pub domain: Option<String>,
}
