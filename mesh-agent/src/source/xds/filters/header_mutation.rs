//! Spec: `envoy.extensions.filters.http.header_mutation.v3`,
//! `envoy/config/common/mutation_rules/v3/mutation_rules.proto`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::common::mutation_rules::v3::{
            HeaderMutation as PbMutation, header_mutation::Action,
        },
        extensions::filters::http::header_mutation::v3::{
            HeaderMutation as PbHeaderMutation, HeaderMutationPerRoute, Mutations,
        },
    },
    google::protobuf::Any,
};

use super::super::{
    common, header_mutation,
    reject::{Decoder, unsupported},
};
use crate::model::{
    filter::{FilterMutations, HeaderMutationFilter, HttpFilter, RouteFilterConfig},
    header_mutation::HeaderMutation,
};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbHeaderMutation { mutations, most_specific_header_mutations_wins } =
        common::unpack(d, any)?;
    let mutations = d.field("mutations", |d| both_ways(d, mutations.unwrap_or_default()))?;
    Some(HttpFilter::HeaderMutation(Arc::new(HeaderMutationFilter {
        mutations: Arc::new(mutations),
        most_specific_wins: most_specific_header_mutations_wins,
    })))
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let HeaderMutationPerRoute { mutations } = common::unpack(d, any)?;
    let mutations = d.field("mutations", |d| both_ways(d, mutations.unwrap_or_default()))?;
    Some(RouteFilterConfig::HeaderMutation(Arc::new(mutations)))
}

fn both_ways(d: &mut Decoder, value: Mutations) -> Option<FilterMutations> {
    let Mutations {
        request_mutations,
        query_parameter_mutations,
        response_mutations,
        response_trailers_mutations,
        request_trailers_mutations,
    } = value;
    unsupported!(
        d; query_parameter_mutations, response_trailers_mutations, request_trailers_mutations,
    );
    let request = mutations(d, "request_mutations", request_mutations);
    let response = mutations(d, "response_mutations", response_mutations);
    Some(FilterMutations { request: request?, response: response? })
}

/// A list of mutations that are done in order.
pub(in super::super) fn mutations(
    d: &mut Decoder,
    field: &str,
    values: Vec<PbMutation>,
) -> Option<Vec<Arc<HeaderMutation>>> {
    d.all(field, values, mutation).map(in_order)
}

fn mutation(d: &mut Decoder, value: PbMutation) -> Option<HeaderMutation> {
    match value.action {
        Some(Action::Remove(name)) => {
            let name = d.field("remove", |d| header_mutation::name(d, &name))?;
            Some(HeaderMutation { remove: vec![name], add: Vec::new() })
        }
        Some(Action::Append(value)) => {
            let addition = d.field("append", |d| header_mutation::addition(d, value))?;
            Some(HeaderMutation { remove: Vec::new(), add: vec![addition] })
        }
        Some(Action::RemoveOnMatch(_)) => d.not_supported("remove_on_match"),
        None => d.refused("has no action: remove or append"),
    }
}

/// As few as keep the order, of which each removes first and adds then.
fn in_order(mutations: Vec<HeaderMutation>) -> Vec<Arc<HeaderMutation>> {
    let mut merged: Vec<HeaderMutation> = Vec::new();
    for next in mutations {
        match merged.last_mut() {
            Some(last) if last.add.is_empty() || next.remove.is_empty() => {
                last.remove.extend(next.remove);
                last.add.extend(next.add);
            }
            _ => merged.push(next),
        }
    }
    merged.into_iter().map(Arc::new).collect()
}
