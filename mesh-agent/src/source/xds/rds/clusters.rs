//! Clusters and their weights, of routes and of `tcp_proxy`.
//!
//! Spec: `envoy.config.route.v3.WeightedCluster`.

use envoy_types::pb::envoy::config::route::v3::{
    WeightedCluster as PbWeightedCluster,
    weighted_cluster::{ClusterWeight, RandomValueSpecifier, cluster_weight::HostRewriteSpecifier},
};

use super::super::{balancing, filters, header_mutation, matchers, reject::Decoder};
use crate::model::{
    cluster::ClusterName,
    listener::WeightedCluster,
    route::{RouteCluster, RouteClusterName, WeightedClusters},
};

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
) -> Option<WeightedClusters> {
    let PbWeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } =
        value;
    let random_header = match random_value_specifier {
        None => Some(None),
        Some(RandomValueSpecifier::HeaderName(name)) => {
            d.field("header_name", |d| matchers::header_name(d, &name)).map(Some)
        }
        Some(RandomValueSpecifier::UseHashPolicy(_)) => d.not_supported("use_hash_policy"),
    };
    let entries = d.all("clusters", clusters, cluster_weight)?;
    let sum = check_sum(d, entries.iter().map(|entry| entry.weight))?;
    // Envoy: if it is given, it has to be the sum.
    if let Some(total) = total_weight.map(|total| total.value)
        && total != 0
        && total != sum
    {
        let reason = format!("is {total}, but the weights add up to {sum}");
        return d.field("total_weight", |d| d.refused(reason));
    }
    let runtime_key_prefix = Some(runtime_key_prefix).filter(|prefix| !prefix.is_empty());
    Some(WeightedClusters { entries, runtime_key_prefix, random_header: random_header? })
}

fn cluster_weight(d: &mut Decoder, value: ClusterWeight) -> Option<RouteCluster> {
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
    let headers = header_mutation::Fields {
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
    };
    let headers = header_mutation::mutations(d, headers);
    let per_filter = filters::per_filter_without_on_demand(d, typed_per_filter_config);
    let weight = match weight {
        Some(weight) => Some(weight.value),
        None => d.field("weight", |d| d.refused("is missing")),
    };
    let cluster = match (name.is_empty(), cluster_header.is_empty()) {
        (false, true) => Some(RouteClusterName::Cluster(ClusterName(name.into()))),
        (true, false) => d
            .field("cluster_header", |d| matchers::header_name(d, &cluster_header))
            .map(RouteClusterName::Header),
        (true, true) => d.field("name", |d| d.refused("is missing")),
        (false, false) => d.field("cluster_header", |d| d.refused("can't go with a name")),
    };
    let host_rewrite = match host_rewrite_specifier {
        None => Some(None),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            d.field("host_rewrite_literal", |d| authority(d, host)).map(Some)
        }
    };
    Some(RouteCluster {
        cluster: cluster?,
        weight: weight?,
        host_rewrite: host_rewrite?,
        headers: headers?,
        per_filter: per_filter?,
        metadata_match: balancing::metadata_match(metadata_match),
    })
}

/// What may stand for a request's host.
pub(in super::super) fn authority(d: &mut Decoder, host: String) -> Option<String> {
    match host.parse::<http::uri::Authority>() {
        Ok(_) => Some(host),
        Err(error) => d.refused(format!("`{host}` is not an authority: {error}")),
    }
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
    check_sum(d, clusters.iter().map(|cluster| cluster.weight))
}

fn check_sum(d: &mut Decoder, weights: impl Iterator<Item = u32>) -> Option<u32> {
    let sum: u64 = weights.map(u64::from).sum();
    match u32::try_from(sum) {
        Ok(0) => d.refused("has no weight above zero"),
        Ok(sum) => Some(sum),
        Err(_) => d.refused(format!("has weights that add up to {sum}, more than {}", u32::MAX)),
    }
}
