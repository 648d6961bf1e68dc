//! What the filters of a chain do, on the way in and on the way out.
//!
//! Those that judge are asked by `policy`'s chain; the ways out are taken in reverse, and by
//! the agent's own replies too, whichever filter they come from.

pub(super) mod compression;
pub(super) mod cors;
pub(super) mod csrf;
mod ext_authz;
pub(super) mod fault;
pub(super) mod grpc_stats;
pub(super) mod grpc_web;
mod jwks;
pub(super) mod jwt_authn;
pub(super) mod local_rate_limit;
pub(super) mod memory;
mod rate_limit;
pub(super) mod run;
pub(super) mod stateful_session;

use std::{borrow::Cow, sync::Arc};

use http::{
    HeaderMap, HeaderName, Uri,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
};

use crate::{
    model::{
        filter::{FilterMutations, HeaderMutationFilter, HttpFilter, Levels, RouteFilterConfig},
        header_mutation::HeaderMutation,
        listener::HttpConnectionManager,
        route::RouteCluster,
    },
    policy::resolve,
    route::Matched,
    snapshot::Snapshot,
};

/// Headers that are not for a server that is asked to say.
const FRAMING: [HeaderName; 6] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE, TE];
/// gRPC's `RESOURCE_EXHAUSTED`.
const RESOURCE_EXHAUSTED: u32 = 8;

/// How much of a request's headers its listener takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    headers: usize,
    bytes: usize,
}

impl Room {
    pub(super) fn of(http: &HttpConnectionManager) -> Self {
        let size = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        let bytes = size(http.max_request_headers_kib).saturating_mul(1024);
        Self { headers: size(http.max_headers_count), bytes }
    }

    /// Whether these are no more than that, and `more` beside them.
    fn has(self, headers: &HeaderMap, more: &HeaderMap) -> bool {
        let all = headers.iter().chain(more);
        let bytes: usize = all.map(|(name, value)| name.as_str().len() + value.len()).sum();
        headers.len() + more.len() <= self.headers && bytes <= self.bytes
    }
}

/// What becomes of a request that a filter does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next filter's turn.
    Continue,
    /// The same, by the route that is matched anew.
    Reroute,
}

/// What the matched route says for filters, and the one of several clusters that was chosen.
pub(super) fn levels<'a>(matched: &Matched<'a>, entry: Option<&'a RouteCluster>) -> Levels<'a> {
    let Matched { configuration, virtual_host, route } = *matched;
    let entry = entry.map(|entry| &entry.per_filter);
    let others = [&route.per_filter, &virtual_host.per_filter, &configuration.per_filter];
    let [route, host, configuration] = others.map(Some);
    Levels([entry, route, host, configuration])
}

/// The mutations of one `header_mutation` filter, in the order they are made.
pub(super) fn header_mutations<'a>(
    filter: &'a HeaderMutationFilter,
    name: &str,
    levels: Levels<'a>,
) -> impl Iterator<Item = &'a FilterMutations> {
    let mut all = [Some(&*filter.mutations), None, None, None, None];
    let of_routes = levels.configs(name).filter_map(|config| match config {
        RouteFilterConfig::HeaderMutation(mutations) => Some(&**mutations),
        _ => None,
    });
    for (place, mutations) in all[1..].iter_mut().zip(of_routes) {
        *place = Some(mutations);
    }
    if filter.most_specific_wins {
        all[1..].reverse();
    }
    all.into_iter().flatten()
}

/// What the chain's `header_mutation` filters do to a response's headers, in order, each with
/// its filter's index.
pub(super) fn response_mutations<'a>(
    http: &'a HttpConnectionManager,
    snapshot: &'a Snapshot,
    levels: Levels<'a>,
) -> impl Iterator<Item = (usize, &'a Arc<HeaderMutation>)> {
    let places = http.http_filters.iter().enumerate().rev();
    let running = places.filter(move |(_, filter)| levels.runs(filter));
    let mutations = running.filter_map(move |(index, place)| match resolve(place, snapshot)? {
        HttpFilter::HeaderMutation(filter) => {
            let all = header_mutations(filter, &place.name, levels);
            let response = all.flat_map(|mutations| &mutations.response);
            Some(response.map(move |mutation| (index, mutation)))
        }
        _ => None,
    });
    mutations.flatten()
}

/// Several values are one, as everywhere in Envoy.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Cow<'a, [u8]> {
    let mut values = headers.get_all(name).iter().map(|value| value.as_bytes());
    match (values.next(), values.next()) {
        (None, _) => Cow::Borrowed(b""),
        (Some(only), None) => Cow::Borrowed(only),
        (Some(first), Some(second)) => {
            let all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
            Cow::Owned(all.join(&b','))
        }
    }
}

/// Percent-decoded; what is no escape stays.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match (first, digits.and_then(hex)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Gives a request this query, of pairs as they are sent; none at all for none.
fn set_query(head: &mut Parts, pairs: &[String]) {
    let path = head.uri.path();
    let path = match pairs.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", pairs.join("&")),
    };
    let mut parts = head.uri.clone().into_parts();
    // Parts of a valid one.
    parts.path_and_query = path.try_into().ok().or(parts.path_and_query);
    if let Ok(uri) = Uri::from_parts(parts) {
        head.uri = uri;
    }
}
