//! What a route or virtual host says for single filters.
//!
//! Spec: `typed_per_filter_config` of `envoy/config/route/v3/{route,route_components}.proto`.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::{
    envoy::extensions::filters::http::on_demand::v3::{OnDemandCds, PerRouteConfig},
    google::protobuf::Any,
};

use super::super::{common, config_source, options::Origin, reject::Decoder};
use crate::model::route::{OnDemandClusters, OnDemandRoute};

/// How long a request waits for a cluster that it has asked for, if nothing is said.
const ON_DEMAND_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The filter that a route may tell something.
const ON_DEMAND: &str = "envoy.filters.http.on_demand";

/// `on_demand` alone can be told.
pub(super) fn configs(d: &mut Decoder, mut configs: HashMap<String, Any>) -> Option<OnDemandRoute> {
    let on_demand = configs.remove(ON_DEMAND).and_then(|any| {
        d.item("typed_per_filter_config", ON_DEMAND, |d| {
            if !common::is::<PerRouteConfig>(&any) {
                common::refuse_extension(d, "", &common::type_name(&any));
                return None;
            }
            let PerRouteConfig { odcds } = common::unpack(d, &any)?;
            Some(OnDemandRoute { clusters: on_demand_clusters(d, odcds) })
        })
    });
    d.unsupported_entries("typed_per_filter_config", &configs);
    on_demand
}

/// Spec: `envoy.extensions.filters.http.on_demand.v3.OnDemandCds`.
pub(in super::super) fn on_demand_clusters(
    d: &mut Decoder,
    value: Option<OnDemandCds>,
) -> Option<OnDemandClusters> {
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
