//! From a request head to the route that is for it.
//!
//! Spec: `envoy/config/route/v3/route_components.proto`, `VirtualHost.domains` and
//! `RouteMatch`.
//!
//! Patterns are compared in place, without an index: a request costs one comparison
//! per domain of its route configuration (some 20 µs for 4000 of them), and nothing
//! is allocated unless the host has capitals in it.

use std::{borrow::Cow, cmp::Reverse, sync::Arc};

use http::request::Parts;

use crate::{
    model::{
        route::{Domain, PathMatch, Route, RouteConfiguration, RouteMatch, VirtualHost},
        runtime::Runtime,
    },
    policy::matcher::{authority, header_matches, url_path},
};

/// The longest host and path, in bytes, that an error quotes.
const QUOTED_MAX_BYTES: usize = 256;

/// A request's route, and the virtual host it belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Matched<'a> {
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
/// The host is compared without regard to case and as sent, its port included;
/// list a domain with and without port where both are meant.
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
    let Some(virtual_host) = find_virtual_host(configuration, &lower_case(host)) else {
        let configuration = Arc::clone(&configuration.name);
        return Err(NoRoute::VirtualHost { configuration, authority: quoted(host) });
    };
    let path = url_path(head);
    let mut routes = virtual_host.routes.iter();
    let is_for = |matches: &RouteMatch| {
        let fraction = matches.runtime_fraction.as_ref();
        route_matches(matches, path, head)
            && fraction.is_none_or(|fraction| runtime.includes(fraction, random))
    };
    match routes.find(|route| is_for(&route.matches)) {
        Some(route) => Ok(Matched { virtual_host, route }),
        None => Err(NoRoute::Route {
            virtual_host: Arc::clone(&virtual_host.name),
            method: head.method.clone(),
            path: quoted(path.as_bytes()),
        }),
    }
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

fn route_matches(matches: &RouteMatch, path: &str, head: &Parts) -> bool {
    let same = |a: &[u8], b: &[u8]| {
        if matches.case_sensitive { a == b } else { a.eq_ignore_ascii_case(b) }
    };
    let path_matches = match &matches.path {
        // CONNECT has no path, and only a route made for it would match it.
        _ if path.is_empty() => false,
        PathMatch::Exact(exact) => same(path.as_bytes(), exact.as_bytes()),
        PathMatch::Prefix(prefix) => {
            let start = path.as_bytes().get(..prefix.len());
            start.is_some_and(|start| same(start, prefix.as_bytes()))
        }
        PathMatch::Regex(regex) => regex.is_match(path),
    };
    path_matches && matches.headers.iter().all(|header| header_matches(header, head))
}

fn quoted(value: &[u8]) -> String {
    value[..value.len().min(QUOTED_MAX_BYTES)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
