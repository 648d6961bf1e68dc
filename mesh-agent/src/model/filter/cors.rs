//! Spec: `envoy.extensions.filters.http.cors.v3.CorsPolicy`, and the `CorsPolicy` of
//! `envoy/config/route/v3/route_components.proto` that says the same.

use http::HeaderValue;
use serde::{Serialize, Serializer};

use crate::model::{authz::StringMatcher, runtime::RuntimeFraction};

/// What one level says; what it leaves open is for the next less specific one.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CorsPolicy {
    /// For how many requests it is in force; `None`: all.
    pub enabled: Option<RuntimeFraction>,
    /// Of how many others the origin is looked at, and told what comes of it.
    pub shadow: Option<RuntimeFraction>,
    /// Empty: as the next level says.
    pub allow_origins: Vec<StringMatcher>,
    /// `*`: what was asked for.
    #[serde(serialize_with = "text")]
    pub allow_methods: Option<HeaderValue>,
    /// `*`: what was asked for.
    #[serde(serialize_with = "text")]
    pub allow_headers: Option<HeaderValue>,
    #[serde(serialize_with = "text")]
    pub expose_headers: Option<HeaderValue>,
    #[serde(serialize_with = "text")]
    pub max_age: Option<HeaderValue>,
    pub allow_credentials: Option<bool>,
    pub allow_private_network_access: Option<bool>,
    pub forward_not_matching_preflights: Option<bool>,
}

fn text<S: Serializer>(value: &Option<HeaderValue>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => s.serialize_some(&String::from_utf8_lossy(value.as_bytes())),
        None => s.serialize_none(),
    }
}
