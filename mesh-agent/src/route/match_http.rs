//! From a request head to the route that is for it.
//!
//! Spec: `envoy/config/route/v3/route_components.proto`, `VirtualHost.domains` and
//! `RouteMatch`.
//!
//! Patterns are compared in place, without an index: a request costs one comparison
//! per domain of its route configuration (some 20 µs for 4000 of them), and nothing
//! is allocated unless the host has capitals in it.

use std::{borrow::Cow, cmp::Reverse, sync::Arc};

use http::{
    HeaderValue, Method,
    header::{CONTENT_TYPE, COOKIE},
    request::Parts,
};

use crate::{
    model::{
        route::{
            CookieMatcher, Domain, PathMatch, QueryParameterMatcher, Route, RouteConfiguration,
            RouteMatch, VirtualHost,
        },
        runtime::Runtime,
    },
    policy::matcher::{authority, first_value, header_matches, url_path},
};

/// The longest host and path, in bytes, that an error quotes.
const QUOTED_MAX_BYTES: usize = 256;

/// A request's route, and what it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
    pub configuration: &'a RouteConfiguration,
    pub virtual_host: &'a VirtualHost,
    pub route: &'a Route,
}

/// No route is for a request: it is answered 404. Envoy's response flag: NR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No virtual host has a domain for it.
    #[error("route configuration `{configuration}` has no virtual host for `{authority}`")]
    VirtualHost { configuration: Arc<str>, authority: String },
    /// The virtual host has no route for it.
    #[error("virtual host `{virtual_host}` has no route for {method} {path}")]
    Route { virtual_host: Arc<str>, method: http::Method, path: String },
}

/// Finds the virtual host by `:authority`, then its first route that matches.
///
/// The host is compared without regard to case and as sent, its port included unless the
/// configuration says otherwise; list a domain with and without port where both are meant.
///
/// `random` is uniform over all values, and one for the whole request, as in Envoy: of two
/// routes for the same half of the requests, the second never gets one.
///
/// # Errors
/// [`NoRoute`]. A virtual host that was found is the only one that is asked.
pub fn match_route<'a>(
    configuration: &'a RouteConfiguration,
    head: &Parts,
    runtime: &Runtime,
    random: u64,
) -> Result<Matched<'a>, NoRoute> {
    let host = authority(head).unwrap_or_default();
    let sought = match configuration.ignore_port_in_host_matching {
        true => without_port(host),
        false => host,
    };
    let Some(virtual_host) = find_virtual_host(configuration, &lower_case(sought)) else {
        let configuration = Arc::clone(&configuration.name);
        return Err(NoRoute::VirtualHost { configuration, authority: quoted(host) });
    };
    if let Some(tls) = &virtual_host.require_tls
        && first_value("x-forwarded-proto", head).is_none_or(|proto| proto != b"https")
        && !(tls.external_only
            && first_value("x-envoy-internal", head).is_some_and(|internal| internal == b"true"))
    {
        return Ok(Matched { configuration, virtual_host, route: &tls.redirect });
    }
    let request = Request::new(head, configuration.ignore_path_parameters);
    let mut routes = virtual_host.routes.iter();
    match routes.find(|route| request.is_for(&route.matches, runtime, random)) {
        Some(route) => Ok(Matched { configuration, virtual_host, route }),
        None => Err(NoRoute::Route {
            virtual_host: Arc::clone(&virtual_host.name),
            method: head.method.clone(),
            path: quoted(request.path.as_bytes()),
        }),
    }
}

/// Whether a request is what a filter's rule is for. `random` as for [`match_route`].
pub fn route_matches(matches: &RouteMatch, head: &Parts, runtime: &Runtime, random: u64) -> bool {
    Request::new(head, false).is_for(matches, runtime, random)
}

/// As Envoy, which looks behind the last colon, and takes no part of an IPv6 address for
/// a port.
fn without_port(host: &[u8]) -> &[u8] {
    let Some(colon) = host.iter().rposition(|b| *b == b':') else { return host };
    let port = &host[colon + 1..];
    let within_brackets = host.contains(&b']') && host[..colon].last() != Some(&b']');
    if within_brackets || port.is_empty() || !port.iter().all(u8::is_ascii_digit) {
        return host;
    }
    &host[..colon]
}

/// Nearly every client sends it in lower case already.
fn lower_case(host: &[u8]) -> Cow<'_, [u8]> {
    match host.iter().any(u8::is_ascii_uppercase) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}

fn find_virtual_host<'a>(
    configuration: &'a RouteConfiguration,
    host: &[u8],
) -> Option<&'a VirtualHost> {
    let mut best: Option<(Rank, &VirtualHost)> = None;
    for virtual_host in configuration.hosts() {
        for domain in &virtual_host.domains {
            match rank(domain, host) {
                Some(EXACT) => return Some(virtual_host),
                Some(rank) if best.is_none_or(|(best, _)| rank < best) => {
                    best = Some((rank, virtual_host));
                }
                _ => {}
            }
        }
    }
    best.map(|(_, virtual_host)| virtual_host)
}

/// Which kind of domain matched, and how long it is: the least is the one to take.
type Rank = (u8, Reverse<usize>);

/// Nothing goes before it, and there is one at most.
const EXACT: Rank = (0, Reverse(0));

fn rank(domain: &Domain, host: &[u8]) -> Option<Rank> {
    // A wildcard stands for at least one character.
    let (kind, pattern, part) = match domain {
        Domain::Exact(exact) => return (exact.as_bytes() == host).then_some(EXACT),
        Domain::Suffix(suffix) => {
            let start = host.len().checked_sub(suffix.len()).filter(|start| *start > 0);
            (1, suffix, start.map(|start| &host[start..]))
        }
        Domain::Prefix(prefix) => {
            let end = Some(prefix.len()).filter(|end| *end < host.len());
            (2, prefix, end.map(|end| &host[..end]))
        }
        Domain::Any => return Some((3, Reverse(0))),
    };
    (part == Some(pattern.as_bytes())).then_some((kind, Reverse(pattern.len())))
}

/// What of a request is looked at again for each route.
struct Request<'a> {
    head: &'a Parts,
    /// Without query.
    path: &'a str,
    /// Of that what routes are compared with.
    matched_path: &'a str,
}

impl<'a> Request<'a> {
    fn new(head: &'a Parts, ignore_path_parameters: bool) -> Self {
        let path = url_path(head);
        let matched_path = match ignore_path_parameters {
            true => path.split(';').next().unwrap_or_default(),
            false => path,
        };
        Self { head, path, matched_path }
    }

    fn is_for(&self, matches: &RouteMatch, runtime: &Runtime, random: u64) -> bool {
        let fraction = matches.runtime_fraction.as_ref();
        fraction.is_none_or(|fraction| runtime.includes(fraction, random)) && self.matches(matches)
    }
}

impl Request<'_> {
    fn matches(&self, matches: &RouteMatch) -> bool {
        self.path_matches(matches)
            && (!matches.grpc || is_grpc(self.head))
            && matches.headers.iter().all(|header| header_matches(header, self.head))
            && matches.query_parameters.iter().all(|parameter| self.has_parameter(parameter))
            && matches.cookies.iter().all(|cookie| self.has_cookie(cookie))
    }

    fn path_matches(&self, matches: &RouteMatch) -> bool {
        let same = |a: &[u8], b: &[u8]| {
            if matches.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) }
        };
        let path = self.matched_path.as_bytes();
        let starts_with = |prefix: &str| {
            path.get(..prefix.len()).is_some_and(|start| same(start, prefix.as_bytes()))
        };
        match &matches.path {
            PathMatch::Connect => self.head.method == Method::CONNECT,
            // CONNECT has no path, and only a route made for it matches it.
            _ if self.path.is_empty() => false,
            PathMatch::Exact(exact) => same(path, exact.as_bytes()),
            PathMatch::Prefix(prefix) => starts_with(prefix),
            PathMatch::SeparatedPrefix(prefix) => {
                starts_with(prefix) && matches!(path.get(prefix.len()), None | Some(b'/'))
            }
            PathMatch::Regex(regex) => regex.is_match(self.matched_path),
            PathMatch::Template(template) => template.is_match(self.path),
        }
    }

    /// Of a parameter that is there several times the first value counts; nothing is
    /// decoded.
    fn has_parameter(&self, matcher: &QueryParameterMatcher) -> bool {
        let query = self.head.uri.query().unwrap_or_default();
        let mut parameters =
            query.split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
        let value = parameters.find(|(name, _)| *name == matcher.name).map(|(_, value)| value);
        match (&matcher.value, value) {
            (None, value) => value.is_some() == matcher.present,
            (Some(_), None) => false,
            (Some(matcher), Some(value)) => matcher.matches(value.as_bytes()),
        }
    }

    /// Of a cookie that is there several times the first value counts.
    fn has_cookie(&self, matcher: &CookieMatcher) -> bool {
        let matched =
            cookie(self.head, &matcher.name).is_some_and(|value| matcher.value.matches(value));
        matched != matcher.invert
    }
}

/// A cookie's value, without the quotes it may stand in.
pub fn cookie<'a>(head: &'a Parts, name: &str) -> Option<&'a [u8]> {
    let headers = head.headers.get_all(COOKIE).iter();
    let mut pairs = headers.flat_map(|header| header.as_bytes().split(|b| *b == b';'));
    pairs.find_map(|pair| {
        let equals = pair.iter().position(|b| *b == b'=')?;
        let value = pair[equals + 1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        (pair[..equals].trim_ascii() == name.as_bytes()).then_some(value)
    })
}

fn is_grpc(head: &Parts) -> bool {
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

fn quoted(value: &[u8]) -> String {
    value[..value.len().min(QUOTED_MAX_BYTES)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
