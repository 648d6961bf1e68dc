//! What a request has to be for a route to take it.
//!
//! Spec: `envoy.config.route.v3.RouteMatch`.

use envoy_types::pb::envoy::config::route::v3::{
    RouteMatch as PbRouteMatch, route_match::PathSpecifier,
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::route::{PathMatch, RouteMatch};

pub(super) fn matches(d: &mut Decoder, value: PbRouteMatch) -> Option<RouteMatch> {
    let PbRouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    unsupported!(
        d;
        query_parameters, cookies, grpc, tls_context, dynamic_metadata, filter_state,
    );
    let case_sensitive = case_sensitive.is_none_or(|sensitive| sensitive.value);
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix)),
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path)),
        Some(PathSpecifier::SafeRegex(regex)) => {
            if !case_sensitive {
                d.refuse_field("case_sensitive", "has no effect on safe_regex; use (?i)");
            }
            d.field("safe_regex", |d| matchers::regex(d, regex)).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => d.not_supported("connect_matcher"),
        Some(PathSpecifier::PathSeparatedPrefix(_)) => d.not_supported("path_separated_prefix"),
        Some(PathSpecifier::PathMatchPolicy(_)) => d.not_supported("path_match_policy"),
        None => d.refused("has no path: prefix, path or safe_regex"),
    };
    let headers = d.all("headers", headers, matchers::header);
    let runtime_fraction = match runtime_fraction {
        None => Some(None),
        Some(value) => {
            d.field("runtime_fraction", |d| common::runtime_fraction(d, value)).map(Some)
        }
    };
    Some(RouteMatch {
        path: path?,
        case_sensitive,
        headers: headers?,
        runtime_fraction: runtime_fraction?,
    })
}
