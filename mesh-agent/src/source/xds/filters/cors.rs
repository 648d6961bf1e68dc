//! Spec: `envoy.extensions.filters.http.cors.v3`; `cors` of routes and virtual hosts.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{CorsPolicy as PbOldPolicy, cors_policy::EnabledSpecifier},
        extensions::filters::http::cors::v3::{Cors, CorsPolicy as PbCorsPolicy},
    },
    google::protobuf::{Any, BoolValue},
};
use http::HeaderValue;

use super::super::{common, matchers, reject::Decoder};
use crate::model::filter::{CorsPolicy, HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let Cors {} = common::unpack(d, any)?;
    Some(HttpFilter::Cors)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let value = common::unpack(d, any)?;
    policy(d, value).map(RouteFilterConfig::Cors)
}

/// `cors` of a route's action or a virtual host; in force where nothing is said by
/// `typed_per_filter_config`.
pub(in crate::source::xds) fn of_level(
    d: &mut Decoder,
    value: Option<PbOldPolicy>,
) -> Option<Option<Arc<CorsPolicy>>> {
    let Some(value) = value else { return Some(None) };
    let PbOldPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value;
    let value = PbCorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled: enabled_specifier.map(|EnabledSpecifier::FilterEnabled(value)| value),
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    };
    d.field("cors", |d| policy(d, value)).map(Some)
}

fn policy(d: &mut Decoder, value: PbCorsPolicy) -> Option<Arc<CorsPolicy>> {
    let PbCorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = value;
    let enabled = match filter_enabled {
        None => Some(None),
        Some(value) => d.field("filter_enabled", |d| common::runtime_fraction(d, value)).map(Some),
    };
    let shadow = match shadow_enabled {
        None => Some(None),
        Some(value) => d.field("shadow_enabled", |d| common::runtime_fraction(d, value)).map(Some),
    };
    let allow_origins =
        d.all("allow_origin_string_match", allow_origin_string_match, matchers::string);
    let allow_methods = header_value(d, "allow_methods", &allow_methods);
    let allow_headers = header_value(d, "allow_headers", &allow_headers);
    let expose_headers = header_value(d, "expose_headers", &expose_headers);
    let max_age = header_value(d, "max_age", &max_age);
    let flag = |value: Option<BoolValue>| value.map(|value| value.value);
    Some(Arc::new(CorsPolicy {
        enabled: enabled?,
        shadow: shadow?,
        allow_origins: allow_origins?,
        allow_methods: allow_methods?,
        allow_headers: allow_headers?,
        expose_headers: expose_headers?,
        max_age: max_age?,
        allow_credentials: flag(allow_credentials),
        allow_private_network_access: flag(allow_private_network_access),
        forward_not_matching_preflights: flag(forward_not_matching_preflights),
    }))
}

/// A header's value; the inner `None`: there is none.
fn header_value(d: &mut Decoder, field: &str, text: &str) -> Option<Option<HeaderValue>> {
    match HeaderValue::from_str(text) {
        _ if text.is_empty() => Some(None),
        Ok(value) => Some(Some(value)),
        Err(_) => d.field(field, |d| d.refused("is not a header's value")),
    }
}
