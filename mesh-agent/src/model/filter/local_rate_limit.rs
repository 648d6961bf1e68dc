//! Spec: `envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit`,
//! `envoy/type/v3/token_bucket.proto`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::model::{
    header_mutation::HeaderMutation,
    rate_limit::{HostRateLimits, RateLimit},
    runtime::RuntimeFraction,
};

#[derive(Debug, Clone, Serialize)]
pub struct LocalRateLimit {
    /// What requests over the limit are answered.
    pub status: u16,
    /// Whether gRPC clients are told `RESOURCE_EXHAUSTED`.
    pub resource_exhausted: bool,
    /// `None`: only descriptors have limits.
    pub bucket: Option<TokenBucket>,
    /// How many requests are counted; `None`: none.
    pub enabled: Option<RuntimeFraction>,
    /// How many of those over the limit are answered here; `None`: none.
    pub enforced: Option<RuntimeFraction>,
    /// Of requests over the limit that go on.
    pub request: Arc<HeaderMutation>,
    /// Of the filter's own answers.
    pub response: Arc<HeaderMutation>,
    pub descriptors: Vec<LocalDescriptor>,
    /// What requests are counted under; empty: what their routes say.
    pub rate_limits: Vec<RateLimit>,
    pub stage: u32,
    pub host: HostRateLimits,
    /// Whether the filter's bucket counts where a descriptor's does.
    pub always_consume: bool,
    /// How many buckets a descriptor with a value left open may have.
    pub max_dynamic: usize,
    /// Each downstream connection has its own buckets.
    pub per_connection: bool,
    /// Whether responses tell what is left.
    pub x_ratelimit: bool,
}

/// Spec: `envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor`.
#[derive(Debug, Clone, Serialize)]
pub struct LocalDescriptor {
    /// Keys and values in order; where a value is empty each one has a bucket of its own.
    pub entries: Vec<(String, String)>,
    pub bucket: TokenBucket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct TokenBucket {
    /// Zero: there is never one.
    pub max_tokens: u32,
    pub tokens_per_fill: u32,
    /// At least 50 ms, unless there are no tokens.
    pub fill_interval: Duration,
}
