//! Spec: `envoy.extensions.filters.http.grpc_stats.v3`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{GrpcMethodList, grpc_method_list},
        extensions::filters::http::grpc_stats::v3::{
            FilterConfig, filter_config::PerMethodStatSpecifier as Methods,
        },
    },
    google::protobuf::Any,
};

use super::super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::filter::{GrpcMethods, GrpcStats, HttpFilter, RouteFilterConfig};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let FilterConfig {
        // What would read it, `%FILTER_STATE()%` and others, is refused by its own name.
        emit_filter_state: _,
        enable_upstream_stats,
        replace_dots_in_grpc_service_name: replace_dots,
        per_method_stat_specifier,
    } = common::unpack(d, any)?;
    unsupported!(d; enable_upstream_stats);
    let methods = match per_method_stat_specifier {
        // As Envoy, since 1.16.
        None => GrpcMethods::None,
        Some(Methods::StatsForAllMethods(all)) if all.value => GrpcMethods::All,
        Some(Methods::StatsForAllMethods(_)) => GrpcMethods::None,
        Some(Methods::IndividualMethodStatsAllowlist(list)) => {
            d.field("individual_method_stats_allowlist", |d| listed(d, list))?
        }
    };
    Some(HttpFilter::GrpcStats(Arc::new(GrpcStats { methods, replace_dots })))
}

fn listed(d: &mut Decoder, GrpcMethodList { services }: GrpcMethodList) -> Option<GrpcMethods> {
    let mut by_service: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    d.all("services", services, |d, service| {
        let grpc_method_list::Service { name, method_names } = service;
        if name.is_empty() {
            d.refuse_field("name", "is missing");
        }
        if method_names.is_empty() {
            d.refuse_field("method_names", "is empty");
        }
        by_service.entry(name).or_default().extend(method_names);
        Some(())
    })?;
    Some(GrpcMethods::Listed(by_service))
}

/// As Envoy, which has no such configuration either.
pub(super) fn route(d: &mut Decoder, _: &Any) -> Option<RouteFilterConfig> {
    d.refused("routes can't tell grpc_stats anything")
}
