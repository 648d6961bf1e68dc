//! What the filters of a chain do, on the way in and on the way out.
//!
//! Those that judge are asked by `policy`'s chain; the ways out are taken in reverse, and by
//! the agent's own replies too, whichever filter they come from.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, request::Parts};

use super::{mutations, record::RequestLog, reply::Reply};
use crate::{
    model::{
        filter::{FilterMutations, HeaderMutationFilter, HttpFilter, Levels, RouteFilterConfig},
        header_mutation::{AppendAction, HeaderMutation},
        listener::HttpConnectionManager,
        route::RouteCluster,
    },
    policy::{Permit, Place, resolve},
    route::Matched,
    snapshot::Snapshot,
};

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

/// What a filter sees of a request beside its head.
#[derive(Clone, Copy)]
pub(super) struct Filtering<'a> {
    pub(super) permit: &'a Permit,
    /// What the route says for filters.
    pub(super) levels: Levels<'a>,
}

/// What becomes of a request that a filter does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next filter's turn.
    Continue,
    /// The same, by the route that is matched anew.
    #[expect(dead_code, reason = "for filters that clear the route")]
    Reroute,
}

/// A filter's way in.
///
/// # Errors
/// It answers the request.
pub(super) async fn run(
    Place { name, filter, .. }: Place<'_>,
    Filtering { permit, levels }: Filtering<'_>,
    log: &mut RequestLog,
    head: &mut Parts,
) -> Result<Next, Reply> {
    match filter {
        HttpFilter::HeaderMutation(filter) => {
            let all = header_mutations(filter, name, levels);
            for mutation in all.flat_map(|mutations| &mutations.request) {
                mutations::mutate_head(mutation, log, permit.flow(), head);
            }
            Ok(Next::Continue)
        }
        // Policy's chain has judged, and found what was to be discovered; what is asked for
        // on demand begins the request anew.
        HttpFilter::Rbac(_) | HttpFilter::Discovered(_) | HttpFilter::OnDemand(_) => {
            Ok(Next::Continue)
        }
    }
}

/// What a filter keeps of a request for its response.
#[derive(Debug)]
pub(super) enum State {
    /// Headers that it has been told of.
    #[expect(dead_code, reason = "for filters that ask somebody else")]
    Headers(Vec<(HeaderName, HeaderValue, AppendAction)>),
}

/// What filters keep of a request, by their places in the chain.
pub(super) type States = Vec<(usize, State)>;

/// What one filter does to a response.
#[derive(Debug)]
pub(super) enum OnResponse {
    Mutation(Arc<HeaderMutation>),
    /// What the filter in that place has kept.
    #[expect(dead_code, reason = "for filters that ask somebody else")]
    Kept(usize),
}

/// What the chain's filters do to a response's headers, in order.
pub(super) fn on_response<'a>(
    http: &'a HttpConnectionManager,
    snapshot: &'a Snapshot,
    levels: Levels<'a>,
) -> impl Iterator<Item = OnResponse> {
    let places = http.http_filters.iter().rev();
    let running = places.filter(move |filter| levels.runs(filter));
    let mutations = running.filter_map(move |place| match resolve(place, snapshot)? {
        HttpFilter::HeaderMutation(filter) => Some(header_mutations(filter, &place.name, levels)),
        _ => None,
    });
    let mutations = mutations.flatten().flat_map(|mutations| &mutations.response);
    mutations.map(|mutation| OnResponse::Mutation(Arc::clone(mutation)))
}
