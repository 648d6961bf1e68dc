//! What a route makes of a request's host and path.

use std::time::Duration;

use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::{headers, reply::Reply};
use crate::{
    model::route::{ForwardAction, HostRewrite, PathMatch, PathRewrite, RouteCluster},
    policy::matcher::{first_value, url_path},
    route::Destination,
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
            // Not known before there is a connection, see `Renaming`.
            Some(HostRewrite::Endpoint) | None => None,
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

/// The host of the endpoint that a request goes to, in place of the one that it had.
///
/// Spec: `envoy.config.route.v3.RouteAction.auto_host_rewrite`.
#[derive(Debug)]
pub(super) struct Renaming {
    host: Authority,
    value: HeaderValue,
    append: bool,
}

impl Renaming {
    /// `None`: the route does not want it, or the endpoint has no name.
    pub(super) fn of(
        action: &ForwardAction,
        destination: &Destination,
    ) -> Result<Option<Self>, Reply> {
        let (Some(HostRewrite::Endpoint), Some(name)) =
            (&action.host_rewrite, destination.hostname())
        else {
            return Ok(None);
        };
        let host = Authority::try_from(&**name).ok();
        let host = host.and_then(|host| Some((HeaderValue::from_str(host.as_str()).ok()?, host)));
        let (value, host) =
            host.ok_or_else(|| misconfigured("the endpoint's hostname is no valid host"))?;
        Ok(Some(Self { host, value, append: action.append_x_forwarded_host }))
    }

    /// Changes the host of a request that is made up for its upstream.
    pub(super) fn apply<B>(&self, request: Request<B>) -> Request<B> {
        let (mut head, body) = request.into_parts();
        let before = match (head.headers.get(HOST), head.uri.authority()) {
            (Some(host), _) => Some(host.clone()),
            (None, Some(authority)) => HeaderValue::from_str(authority.as_str()).ok(),
            (None, None) => None,
        };
        if let Some(before) = before {
            headers::original_host(&mut head.headers, before, self.append);
        }
        if head.headers.contains_key(HOST) {
            head.headers.insert(HOST, self.value.clone());
        }
        if head.uri.authority().is_some() {
            let mut uri = std::mem::take(&mut head.uri).into_parts();
            uri.authority = Some(self.host.clone());
            head.uri = Uri::from_parts(uri).expect("one authority in place of another");
        }
        Request::from_parts(head, body)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_stands_wherever_the_old_one_did() {
        let (host, value) = (Authority::from_static("b.test"), HeaderValue::from_static("b.test"));
        let mut renaming = Renaming { host, value, append: true };
        for (uri, host, renamed) in [
            ("/a?b", Some("a.test:80"), "/a?b"),
            ("http://a.test:80/a?b", None, "http://b.test/a?b"),
            ("a.test:80", Some("a.test:80"), "b.test"),
            ("a.test:80", None, "b.test"),
        ] {
            let mut request = Request::builder().uri(uri).header("x-a", "1");
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            let request = renaming.apply(request.body(7).unwrap());
            assert_eq!((request.uri().to_string().as_str(), *request.body()), (renamed, 7));
            assert_eq!(request.headers().get(HOST).is_some(), host.is_some(), "{uri}");
            assert!(request.headers().get_all(HOST).iter().all(|host| host == "b.test"), "{uri}");
            assert_eq!(request.headers()["x-envoy-original-host"], "a.test:80");
            assert_eq!(request.headers()["x-forwarded-host"], "a.test:80");
        }
        renaming.append = false;
        let request = Request::builder().uri("/").header(HOST, "a.test").body(()).unwrap();
        let request = renaming.apply(request);
        assert_eq!(request.headers()[HOST], "b.test");
        assert!(!request.headers().contains_key("x-forwarded-host"));
    }
}
