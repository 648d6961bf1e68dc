//! Cookies that clients get from here.
//!
//! Spec: `envoy.type.http.v3.Cookie`, `envoy.config.route.v3.RouteAction.HashPolicy.Cookie`.

use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnCookie {
    pub name: String,
    /// Of which requests it is; empty: of all.
    pub path: String,
    /// Whole seconds; `None`: as long as the client remembers.
    pub ttl: Option<Duration>,
    /// Names, and values where they have some.
    pub attributes: Vec<(String, String)>,
}
