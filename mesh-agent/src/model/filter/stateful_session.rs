//! Spec: `envoy.extensions.filters.http.stateful_session.v3`,
//! `envoy.extensions.http.stateful_session.{cookie,header}.v3`.

use std::sync::Arc;

use http::HeaderName;
use serde::Serialize;

use crate::model::cookie::OwnCookie;

#[derive(Debug, Clone, Serialize)]
pub struct StatefulSession {
    /// `None`: nobody remembers anything.
    pub state: Option<SessionState>,
    /// Whether a request whose endpoint is gone goes nowhere else.
    pub strict: bool,
    /// What it is answered then.
    pub status_not_found: u16,
}

/// Where the client keeps the address of its endpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    Cookie(OwnCookie),
    Header(#[serde(serialize_with = "text")] HeaderName),
}

fn text<S: serde::Serializer>(name: &HeaderName, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(name.as_str())
}

/// What a route says: `StatefulSessionPerRoute`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionPerRoute {
    Disabled,
    /// In place of the chain's.
    Own(Arc<StatefulSession>),
}
