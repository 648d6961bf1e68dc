//! Who gets copies of requests.
//!
//! Spec: `envoy.config.route.v3.RouteAction.RequestMirrorPolicy`.

use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use super::{
    super::{
        common, filters, matchers,
        reject::{Decoder, unsupported},
    },
    clusters::authority,
};
use crate::model::{
    cluster::ClusterName,
    route::{MirrorHost, MirrorPolicy, RouteClusterName},
};

/// `request_mirror_policies` of routes, virtual hosts and route configurations.
pub(super) fn policies(
    d: &mut Decoder,
    values: Vec<RequestMirrorPolicy>,
) -> Option<Vec<MirrorPolicy>> {
    d.all("request_mirror_policies", values, policy)
}

fn policy(d: &mut Decoder, value: RequestMirrorPolicy) -> Option<MirrorPolicy> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    unsupported!(d; trace_sampled);
    let cluster = match (cluster.is_empty(), cluster_header.is_empty()) {
        (false, true) => Some(RouteClusterName::Cluster(ClusterName(cluster.into()))),
        (true, false) => d
            .field("cluster_header", |d| matchers::header_name(d, &cluster_header))
            .map(RouteClusterName::Header),
        (true, true) => d.field("cluster", |d| d.refused("is missing")),
        (false, false) => d.field("cluster_header", |d| d.refused("can't go with a cluster")),
    };
    let fraction = match runtime_fraction {
        None => Some(None),
        Some(value) => {
            d.field("runtime_fraction", |d| common::runtime_fraction(d, value)).map(Some)
        }
    };
    let host = match (host_rewrite_literal.is_empty(), disable_shadow_host_suffix_append) {
        (false, _) => d
            .field("host_rewrite_literal", |d| authority(d, host_rewrite_literal))
            .map(MirrorHost::Literal),
        (true, true) => Some(MirrorHost::Same),
        (true, false) => Some(MirrorHost::Suffixed),
    };
    let headers =
        filters::header_mutations(d, "request_headers_mutations", request_headers_mutations);
    Some(MirrorPolicy { cluster: cluster?, fraction: fraction?, host: host?, headers: headers? })
}
