//! Authorization rules as data; `policy` evaluates them.
//!
//! Spec: `envoy/config/rbac/v3/rbac.proto`, `envoy/type/matcher/v3/string.proto`.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::route::{HeaderMatcher, regex_source};

/// Spec: `envoy.config.rbac.v3.RBAC`.
#[derive(Debug, Clone, Serialize)]
pub struct Rbac {
    pub stat_prefix: String,
    pub action: RbacAction,
    /// In order of name, so that the policy that decides is always the same one.
    pub policies: Vec<RbacPolicy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RbacAction {
    /// Denied unless a policy matches.
    Allow,
    /// Allowed unless a policy matches.
    Deny,
    /// Never denies; a match is put into the access log.
    Log,
}

#[derive(Debug, Clone, Serialize)]
pub struct RbacPolicy {
    pub name: Arc<str>,
    /// Matches if any does.
    pub permissions: Vec<Permission>,
    /// Matches if any does.
    pub principals: Vec<Principal>,
}

/// What is asked for.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Any,
    /// HTTP only; never matches a TCP connection.
    Header(HeaderMatcher),
    /// HTTP only: the path without query and fragment.
    UrlPath(StringMatcher),
    DestinationIp(IpNet),
    DestinationPort(u16),
    /// Inclusive start, exclusive end.
    DestinationPortRange {
        start: u32,
        end: u32,
    },
}

/// Who asks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    Any,
    /// The identity that mTLS proved; `None` matches any proven identity.
    Authenticated(Option<StringMatcher>),
    /// The address of the TCP peer.
    DirectRemoteIp(IpNet),
    /// The same here as [`Principal::DirectRemoteIp`]: no header is trusted for it.
    RemoteIp(IpNet),
    /// HTTP only.
    Header(HeaderMatcher),
    /// HTTP only.
    UrlPath(StringMatcher),
}

/// Spec: `envoy.type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    /// Not for regexes.
    pub ignore_case: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// The whole value must match.
    Regex(#[serde(serialize_with = "regex_source")] regex::Regex),
}
