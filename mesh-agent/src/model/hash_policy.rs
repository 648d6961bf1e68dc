//! What of a request says which endpoint it goes to, where a cluster's policy goes by that.
//!
//! Spec: `envoy.config.route.v3.RouteAction.HashPolicy`.

use serde::Serialize;

use super::cookie::OwnCookie;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HashPolicy {
    pub input: HashInput,
    /// Whether what comes after it counts only where this one says nothing.
    pub terminal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashInput {
    /// Lower case.
    Header(String),
    /// By name; the request's own.
    Cookie(String),
    /// One that clients get who have none.
    OwnCookie(Box<OwnCookie>),
    /// By name; the first of several.
    QueryParameter(String),
    /// The client's address.
    SourceIp,
}
