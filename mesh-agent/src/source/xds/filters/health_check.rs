//! Spec: `envoy.extensions.filters.http.health_check.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::extensions::filters::http::health_check::v3::HealthCheck as PbHealthCheck,
    google::protobuf::Any,
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::filter::{HealthCheck, HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbHealthCheck { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers } =
        common::unpack(d, any)?;
    unsupported!(d; cache_time, cluster_min_healthy_percentages);
    let Some(pass_through) = pass_through_mode else {
        return d.field("pass_through_mode", |d| d.refused("is missing"));
    };
    let headers = d.all("headers", headers, matchers::header)?;
    let health_check = HealthCheck { pass_through: pass_through.value, headers };
    Some(HttpFilter::HealthCheck(Arc::new(health_check)))
}

/// As Envoy, which has no such configuration either.
pub(super) fn route(d: &mut Decoder, _: &Any) -> Option<RouteFilterConfig> {
    d.refused("routes can't tell health_check anything")
}
