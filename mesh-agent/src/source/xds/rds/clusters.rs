//! Clusters and their weights, of routes and of `tcp_proxy`.
//!
//! Spec: `envoy.config.route.v3.WeightedCluster`.

use envoy_types::pb::envoy::config::route::v3::{
    WeightedCluster as PbWeightedCluster, weighted_cluster::ClusterWeight,
};

use super::super::reject::{Decoder, unsupported};
use crate::model::{cluster::ClusterName, listener::WeightedCluster};

/// A plain `cluster`, as the only one of a weighted list.
pub(in super::super) fn one_cluster(d: &mut Decoder, name: String) -> Option<Vec<WeightedCluster>> {
    if name.is_empty() {
        return d.refused("is missing");
    }
    Some(vec![WeightedCluster { cluster: ClusterName(name.into()), weight: 1 }])
}

#[expect(deprecated, reason = "total_weight is deprecated, and checked")]
pub(super) fn weighted_clusters(
    d: &mut Decoder,
    value: PbWeightedCluster,
) -> Option<Vec<WeightedCluster>> {
    let PbWeightedCluster {
        clusters,
        total_weight,
        // Its taker has it.
        runtime_key_prefix: _,
        random_value_specifier,
    } = value;
    unsupported!(d; random_value_specifier);
    let clusters = d.all("clusters", clusters, |d, value| {
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = value;
        unsupported!(
            d;
            cluster_header, metadata_match, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, host_rewrite_specifier,
        );
        d.unsupported_entries("typed_per_filter_config", &typed_per_filter_config);
        let weight = match weight {
            Some(weight) => Some(weight.value),
            None => d.field("weight", |d| d.refused("is missing")),
        };
        named_weight(d, name, weight?)
    })?;
    let sum = check_weights(d, &clusters)?;
    // Envoy: if it is given, it has to be the sum.
    if let Some(total) = total_weight.map(|total| total.value)
        && total != 0
        && total != sum
    {
        let reason = format!("is {total}, but the weights add up to {sum}");
        return d.field("total_weight", |d| d.refused(reason));
    }
    Some(clusters)
}

pub(in super::super) fn named_weight(
    d: &mut Decoder,
    name: String,
    weight: u32,
) -> Option<WeightedCluster> {
    if name.is_empty() {
        return d.field("name", |d| d.refused("is missing"));
    }
    Some(WeightedCluster { cluster: ClusterName(name.into()), weight })
}

/// The sum of the weights: neither zero nor more than a `u32` holds.
pub(in super::super) fn check_weights(
    d: &mut Decoder,
    clusters: &[WeightedCluster],
) -> Option<u32> {
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    match u32::try_from(sum) {
        Ok(0) => d.refused("has no weight above zero"),
        Ok(sum) => Some(sum),
        Err(_) => d.refused(format!("has weights that add up to {sum}, more than {}", u32::MAX)),
    }
}
