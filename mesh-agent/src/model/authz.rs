//! Authorization rules as data; `policy` evaluates them.
//!
//! Spec: `envoy/config/rbac/v3/rbac.proto`, `envoy/type/matcher/v3/string.proto`.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::{metadata::MetadataMatcher, regex::WholeRegex, route::HeaderMatcher};

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
    /// HTTP only. On a TCP connection it can't be judged: it then helps no `Allow`
    /// policy to match and keeps no `Deny` policy from matching.
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
    /// HTTP only: what filters before this one have noted.
    Metadata(MetadataMatcher),
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
    /// HTTP only: what filters before this one have noted.
    Metadata(MetadataMatcher),
}

/// Spec: `envoy.type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    /// Not for regexes.
    pub ignore_case: bool,
}

impl StringMatcher {
    /// Whether `value` matches. Allocates only for a regex on what is not UTF-8.
    ///
    /// A regex sees bytes that are not UTF-8 as U+FFFD, so that `.*` still spans them.
    pub fn matches(&self, value: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| {
            if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
        };
        match &self.pattern {
            StringPattern::Exact(exact) => same(value, exact.as_bytes()),
            StringPattern::Prefix(prefix) => {
                value.get(..prefix.len()).is_some_and(|head| same(head, prefix.as_bytes()))
            }
            StringPattern::Suffix(suffix) => {
                let start = value.len().checked_sub(suffix.len());
                start.is_some_and(|start| same(&value[start..], suffix.as_bytes()))
            }
            StringPattern::Contains(part) => {
                let part = part.as_bytes();
                // `windows` refuses a width of nought; every value contains nothing.
                part.is_empty() || value.windows(part.len()).any(|window| same(window, part))
            }
            StringPattern::Regex(regex) => regex.is_match(&String::from_utf8_lossy(value)),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// The whole value must match.
    Regex(WholeRegex),
}
