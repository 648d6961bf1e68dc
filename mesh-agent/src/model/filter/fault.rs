//! Spec: `envoy.extensions.filters.http.fault.v3.HTTPFault`,
//! `envoy/extensions/filters/common/fault/v3/fault.proto`.

use std::time::Duration;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::model::{cluster::ClusterName, route::HeaderMatcher, runtime::Fraction};

/// What is done to requests that come from `downstream_nodes`, go to `upstream_cluster` and
/// have `headers`, where these say anything.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    /// First.
    pub delay: Option<FaultDelay>,
    /// Then.
    pub abort: Option<FaultAbort>,
    pub upstream_cluster: Option<ClusterName>,
    /// All of them.
    pub headers: Vec<HeaderMatcher>,
    pub downstream_nodes: Vec<String>,
    /// How many may be in hand at once; `None`: any number.
    pub max_active: Option<u64>,
    pub keys: FaultKeys,
}

#[derive(Debug, Clone, Serialize)]
pub struct FaultDelay {
    /// `None`: as the request's `x-envoy-fault-delay-request` says, in milliseconds.
    pub fixed: Option<Duration>,
    pub percentage: Fraction,
}

#[derive(Debug, Clone, Serialize)]
pub struct FaultAbort {
    pub by: AbortBy,
    pub percentage: Fraction,
    #[serde(serialize_with = "text")]
    pub body: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortBy {
    HttpStatus(u16),
    GrpcStatus(u32),
    /// As the request's `x-envoy-fault-abort-request` says, or
    /// `x-envoy-fault-abort-grpc-request`.
    Header,
}

/// By which names the runtime may change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultKeys {
    pub delay_percent: String,
    pub delay_duration: String,
    pub abort_percent: String,
    pub abort_http_status: String,
    pub abort_grpc_status: String,
    pub max_active: String,
}

fn text<S: Serializer>(text: &Bytes, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&String::from_utf8_lossy(text))
}
