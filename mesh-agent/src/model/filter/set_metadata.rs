//! Spec: `envoy.extensions.filters.http.set_metadata.v3`.

use serde::Serialize;
use serde_json::{Map, Value};

/// What is noted about a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetMetadata {
    pub namespace: String,
    /// Whether it is added to what is there already; otherwise that stays as it is.
    pub allow_overwrite: bool,
    pub fields: Map<String, Value>,
}
