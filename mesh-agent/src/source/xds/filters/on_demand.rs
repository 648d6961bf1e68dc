//! Spec: `envoy.extensions.filters.http.on_demand.v3`.

use std::time::Duration;

use envoy_types::pb::{
    envoy::extensions::filters::http::on_demand::v3::{
        OnDemand as PbOnDemand, OnDemandCds, PerRouteConfig,
    },
    google::protobuf::Any,
};

use super::super::{common, config_source, options::Origin, reject::Decoder};
use crate::model::{
    filter::{HttpFilter, RouteFilterConfig},
    listener::OnDemand,
    route::{OnDemandClusters, OnDemandRoute},
};

/// How long a request waits for a cluster that it has asked for, if nothing is said.
const ON_DEMAND_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbOnDemand { odcds } = common::unpack(d, any)?;
    Some(HttpFilter::OnDemand(OnDemand { clusters: clusters(d, odcds) }))
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let PerRouteConfig { odcds } = common::unpack(d, any)?;
    Some(RouteFilterConfig::OnDemand(OnDemandRoute { clusters: clusters(d, odcds) }))
}

/// Spec: `envoy.extensions.filters.http.on_demand.v3.OnDemandCds`.
fn clusters(d: &mut Decoder, value: Option<OnDemandCds>) -> Option<OnDemandClusters> {
    let OnDemandCds { source, resources_locator, timeout } = value?;
    d.field("odcds", |d| {
        if let Some(source) = source {
            d.field("source", |d| match config_source::decode(d, source) {
                Some((None | Some(Origin::Ads), _)) | None => {}
                Some((Some(_), _)) => d.refuse("is not supported: clusters come from one source"),
            });
        }
        if !resources_locator.is_empty() {
            d.refuse_field("resources_locator", "xdstp locators are not supported");
        }
        let timeout = match timeout {
            None => ON_DEMAND_TIMEOUT_DEFAULT,
            Some(value) => common::duration(d, "timeout", value)?,
        };
        Some(OnDemandClusters { timeout })
    })
}
