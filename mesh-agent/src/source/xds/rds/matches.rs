//! What a request has to be for a route to take it.
//!
//! Spec: `envoy.config.route.v3.RouteMatch`.

use envoy_types::pb::envoy::{
    config::{
        core::v3::TypedExtensionConfig,
        route::v3::{
            CookieMatcher as PbCookieMatcher, QueryParameterMatcher as PbQueryParameterMatcher,
            RouteMatch as PbRouteMatch,
            query_parameter_matcher::QueryParameterMatchSpecifier,
            route_match::{ConnectMatcher, GrpcRouteMatchOptions, PathSpecifier},
        },
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::{
    rewrite::UriTemplate,
    route::{CookieMatcher, PathMatch, QueryParameterMatcher, RouteMatch},
};

pub(in crate::source::xds) fn matches(d: &mut Decoder, value: PbRouteMatch) -> Option<RouteMatch> {
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
    unsupported!(d; tls_context, dynamic_metadata, filter_state);
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
        Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})) => Some(PathMatch::Connect),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            d.field("path_separated_prefix", |d| separated_prefix(d, prefix))
        }
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            d.field("path_match_policy", |d| match_policy(d, policy)).map(PathMatch::Template)
        }
        None => d.refused("has no path: prefix, path, path_separated_prefix or safe_regex"),
    };
    let headers = d.all("headers", headers, matchers::header);
    let query_parameters = d.all("query_parameters", query_parameters, query_parameter);
    let cookies = d.all("cookies", cookies, cookie);
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
        query_parameters: query_parameters?,
        cookies: cookies?,
        grpc: matches!(grpc, Some(GrpcRouteMatchOptions {})),
        runtime_fraction: runtime_fraction?,
    })
}

fn separated_prefix(d: &mut Decoder, prefix: String) -> Option<PathMatch> {
    // Envoy's own condition; the slash is what is looked for behind it.
    let valid = prefix.len() > 1 && !prefix.contains(['?', '#']) && !prefix.ends_with('/');
    match valid {
        true => Some(PathMatch::SeparatedPrefix(prefix)),
        false => d.refused(format!("`{prefix}` is empty, or has a query, or ends with `/`")),
    }
}

fn match_policy(d: &mut Decoder, value: TypedExtensionConfig) -> Option<UriTemplate> {
    let TypedExtensionConfig { name, typed_config } = value;
    let type_name = typed_config.as_ref().map(common::type_name).unwrap_or_default();
    let Some(any) = typed_config.filter(common::is::<UriTemplateMatchConfig>) else {
        common::refuse_extension(d, &name, &type_name);
        return None;
    };
    let UriTemplateMatchConfig { path_template } = common::unpack(d, &any)?;
    d.field("path_template", |d| match path_template.parse() {
        Ok(template) => Some(template),
        Err(error) => d.refused(format!("`{path_template}`: {error}")),
    })
}

fn query_parameter(
    d: &mut Decoder,
    value: PbQueryParameterMatcher,
) -> Option<QueryParameterMatcher> {
    let PbQueryParameterMatcher { name, query_parameter_match_specifier } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let (value, present) = match query_parameter_match_specifier {
        None => (None, true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (None, present),
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            (Some(d.field("string_match", |d| matchers::string(d, matcher))?), true)
        }
    };
    Some(QueryParameterMatcher { name, value, present })
}

fn cookie(d: &mut Decoder, value: PbCookieMatcher) -> Option<CookieMatcher> {
    let PbCookieMatcher { name, string_match, invert_match } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let value = d.field("string_match", |d| match string_match {
        Some(matcher) => matchers::string(d, matcher),
        None => d.refused("is missing"),
    });
    Some(CookieMatcher { name, value: value?, invert: invert_match })
}
