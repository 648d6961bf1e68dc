//! What a route makes of a request's host and path.

use std::time::Duration;

use http::{
    StatusCode, Uri,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::reply::Reply;
use crate::{
    model::route::{ForwardAction, HostRewrite, PathMatch, PathRewrite, RouteCluster},
    policy::matcher::{first_value, url_path},
};

/// The host that goes upstream, and the one that a route's rewrite took the place of.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    pub(super) host: Authority,
    pub(super) original: Option<Authority>,
}

/// What a route makes of host and path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rewrites<'a> {
    pub(super) action: &'a ForwardAction,
    /// The one of several clusters that was chosen.
    pub(super) entry: Option<&'a RouteCluster>,
    pub(super) matched: &'a PathMatch,
    /// Of the whole exchange, for this request.
    pub(super) timeout: Option<Duration>,
}

impl Rewrites<'_> {
    /// The host that goes upstream. What is said for a single cluster goes first, and is what
    /// the route's own rewrite replaces.
    pub(super) fn hosts(&self, head: &Parts, authority: &Authority) -> Result<Hosts, Reply> {
        let invalid = |_| Reply::bad_request("the route makes no valid host of this request");
        let entrys = self.entry.and_then(|entry| entry.host_rewrite.as_deref());
        let before = match entrys {
            Some(host) => Authority::try_from(host).map_err(invalid)?,
            None => authority.clone(),
        };
        let replaced;
        let host = match &self.action.host_rewrite {
            Some(HostRewrite::Literal(host)) => Some(host.as_str()),
            Some(HostRewrite::Header(name)) => {
                let value = first_value(name, head).filter(|value| !value.is_empty());
                let text = value.map(std::str::from_utf8).transpose();
                text.map_err(|_| Reply::bad_request("invalid header for the host"))?
            }
            Some(HostRewrite::PathRegex(rewrite)) => {
                replaced = rewrite.replace_all(url_path(head)).map_err(|_| {
                    Reply::bad_request("the route makes no valid host of this request")
                })?;
                Some(replaced.as_str()).filter(|host| !host.is_empty())
            }
            None => None,
        };
        Ok(match host {
            Some(host) => {
                let host = Authority::try_from(host).map_err(invalid)?;
                Hosts { host, original: Some(before) }
            }
            None => Hosts { host: before, original: None },
        })
    }

    /// The path and query that go upstream, if they are others.
    pub(super) fn path(&self, uri: &Uri) -> Result<Option<PathAndQuery>, Reply> {
        let path = uri.path();
        let invalid = || misconfigured("the route makes no valid path of this request");
        let rewritten = match &self.action.path_rewrite {
            None => return Ok(None),
            // CONNECT has none.
            Some(_) if path.is_empty() => return Ok(None),
            Some(PathRewrite::Prefix(prefix)) => with_prefix(path, self.matched, prefix),
            Some(PathRewrite::Regex(rewrite)) => {
                rewrite.replace_all(path).map_err(|_| invalid())?
            }
            Some(PathRewrite::Template(rewrite)) => {
                let rewritten = rewrite.rewrite(path).map_err(|_| invalid())?;
                rewritten.unwrap_or_else(|| path.to_owned())
            }
        };
        let rewritten = match uri.query() {
            Some(query) => format!("{rewritten}?{query}"),
            None => rewritten,
        };
        if !rewritten.starts_with('/') {
            return Err(invalid());
        }
        PathAndQuery::try_from(rewritten).map(Some).map_err(|_| invalid())
    }
}

/// A path with `prefix` in place of what was matched of it: a prefix, or all of it.
pub(super) fn with_prefix(path: &str, matched: &PathMatch, prefix: &str) -> String {
    let rest = match matched {
        // A route of this prefix has matched, if without regard to case.
        PathMatch::Prefix(matched) | PathMatch::SeparatedPrefix(matched) => {
            path.get(matched.len()..).unwrap_or("")
        }
        PathMatch::Exact(_) | PathMatch::Regex(_) | PathMatch::Connect | PathMatch::Template(_) => {
            ""
        }
    };
    format!("{prefix}{rest}")
}

pub(super) fn misconfigured(details: &'static str) -> Reply {
    Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", None, details)
}
