//! Spec: `envoy.extensions.filters.http.csrf.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::extensions::filters::http::csrf::v3::CsrfPolicy as PbCsrfPolicy, google::protobuf::Any,
};

use super::super::{common, matchers, reject::Decoder};
use crate::model::filter::{CsrfPolicy, HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    policy(d, any).map(HttpFilter::Csrf)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    policy(d, any).map(RouteFilterConfig::Csrf)
}

fn policy(d: &mut Decoder, any: &Any) -> Option<Arc<CsrfPolicy>> {
    let PbCsrfPolicy { filter_enabled, shadow_enabled, additional_origins } =
        common::unpack(d, any)?;
    let enabled = d.field("filter_enabled", |d| match filter_enabled {
        Some(value) => common::runtime_fraction(d, value),
        None => d.refused("is missing"),
    });
    let shadow = match shadow_enabled {
        None => Some(None),
        Some(value) => d.field("shadow_enabled", |d| common::runtime_fraction(d, value)).map(Some),
    };
    let additional_origins = d.all("additional_origins", additional_origins, matchers::string);
    Some(Arc::new(CsrfPolicy {
        enabled: enabled?,
        shadow: shadow?,
        additional_origins: additional_origins?,
    }))
}
