//! Spec: `envoy.extensions.filters.http.health_check.v3.HealthCheck`.

use serde::Serialize;

use crate::model::route::HeaderMatcher;

#[derive(Debug, Clone, Serialize)]
pub struct HealthCheck {
    /// Whether the upstream is asked as well.
    pub pass_through: bool,
    /// Which requests are health checks: those that all of these match.
    pub headers: Vec<HeaderMatcher>,
}
