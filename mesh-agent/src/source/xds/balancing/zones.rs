//! Zone-aware routing, in either of the two forms.

use envoy_types::pb::{
    envoy::{
        config::cluster::v3::cluster::common_lb_config::ZoneAwareLbConfig,
        extensions::load_balancing_policies::common::v3::locality_lb_config::{
            ZoneAwareLbConfig as TypedZoneAware,
            zone_aware_lb_config::{ForceLocalZone, LocalityBasis},
        },
        r#type::v3::Percent,
    },
    google::protobuf::UInt64Value,
};

use super::super::reject::Decoder;
use crate::model::cluster::{Balancing, ZoneAware};

/// As for a zone with any endpoint at all.
const FORCE_DEFAULT: u32 = 1;

pub(super) fn common(d: &mut Decoder, value: ZoneAwareLbConfig, balancing: &mut Balancing) {
    let ZoneAwareLbConfig { routing_enabled, min_cluster_size, fail_traffic_on_panic } = value;
    both(d, (routing_enabled, min_cluster_size), &mut balancing.zone_aware);
    balancing.fail_traffic_on_panic = fail_traffic_on_panic;
}

#[expect(deprecated, reason = "Envoy still reads the field of before")]
pub(super) fn typed(d: &mut Decoder, value: TypedZoneAware, balancing: &mut Balancing) {
    let TypedZoneAware {
        routing_enabled,
        min_cluster_size,
        fail_traffic_on_panic,
        force_locality_direct_routing,
        force_local_zone,
        locality_basis,
    } = value;
    let zones = &mut balancing.zone_aware;
    both(d, (routing_enabled, min_cluster_size), zones);
    zones.force_local_zone = match force_local_zone {
        Some(ForceLocalZone { min_size }) => {
            Some(min_size.map_or(FORCE_DEFAULT, |size| size.value))
        }
        None => force_locality_direct_routing.then_some(FORCE_DEFAULT),
    };
    match LocalityBasis::try_from(locality_basis) {
        Ok(basis) => zones.by_weight = basis == LocalityBasis::HealthyHostsWeight,
        Err(_) => d.refuse_field("locality_basis", format!("{locality_basis} is unknown")),
    }
    balancing.fail_traffic_on_panic = fail_traffic_on_panic;
}

fn both(
    d: &mut Decoder,
    (enabled, min_cluster_size): (Option<Percent>, Option<UInt64Value>),
    zones: &mut ZoneAware,
) {
    match enabled {
        None => {}
        // Whole percents, as Envoy's.
        Some(Percent { value: percent @ 0.0..=100.0 }) => {
            zones.routing_enabled = percent.round() as u8;
        }
        Some(Percent { value }) => {
            d.refuse_field("routing_enabled", format!("{value} is not a percentage"));
        }
    }
    if let Some(UInt64Value { value }) = min_cluster_size {
        zones.min_cluster_size = value;
    }
}
