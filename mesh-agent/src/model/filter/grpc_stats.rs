//! Spec: `envoy.extensions.filters.http.grpc_stats.v3.FilterConfig`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// Which calls of gRPC are counted how.
#[derive(Debug, Clone, Serialize)]
pub struct GrpcStats {
    pub methods: GrpcMethods,
    /// Whether dots of services become underscores.
    pub replace_dots: bool,
}

/// Which methods are counted by themselves.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrpcMethods {
    None,
    All,
    /// Names of methods by service.
    Listed(BTreeMap<String, BTreeSet<String>>),
}
