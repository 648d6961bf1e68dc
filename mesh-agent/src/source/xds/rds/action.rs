//! Routes that lead to a cluster.
//!
//! Spec: `envoy.config.route.v3.RouteAction`.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    RouteAction as PbRouteAction,
    route_action::{ClusterSpecifier, HostRewriteSpecifier},
};

use super::{
    super::{
        common, matchers,
        reject::{Decoder, unsupported},
    },
    clusters::{one_cluster, weighted_clusters},
    retry,
};
use crate::model::{retry::Attempts, route::ForwardAction};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn forward(d: &mut Decoder, value: PbRouteAction) -> Option<ForwardAction> {
    let PbRouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    unsupported!(
        d;
        cluster_not_found_response_code, metadata_match, regex_rewrite, path_rewrite_policy,
        path_rewrite, append_x_forwarded_host, idle_timeout, flush_timeout, early_data_policy,
        request_mirror_policies, priority, rate_limits,
        include_vh_rate_limits, hash_policy, cors, max_grpc_timeout, grpc_timeout_offset,
        upgrade_configs, internal_redirect_policy, internal_redirect_action,
        max_internal_redirects, hedge_policy, max_stream_duration,
    );
    let retry = retry::policy(d, retry_policy, retry_policy_typed_config);
    let mut cluster_header = None;
    let mut runtime_key_prefix = None;
    let clusters = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => d.field("cluster", |d| one_cluster(d, name)),
        Some(ClusterSpecifier::WeightedClusters(mut value)) => {
            let prefix = std::mem::take(&mut value.runtime_key_prefix);
            runtime_key_prefix = Some(prefix).filter(|prefix| !prefix.is_empty());
            d.field("weighted_clusters", |d| weighted_clusters(d, value))
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            cluster_header = d.field("cluster_header", |d| matchers::header_name(d, &name));
            cluster_header.as_ref().map(|_| Vec::new())
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            d.not_supported("cluster_specifier_plugin")
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            d.not_supported("inline_cluster_specifier_plugin")
        }
        None => d.refused("names no cluster: cluster or weighted_clusters"),
    };
    let host_rewrite = match host_rewrite_specifier {
        None => Some(None),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            d.field("host_rewrite_literal", |d| match host.parse::<http::uri::Authority>() {
                Ok(_) => Some(Some(host)),
                Err(error) => d.refused(format!("`{host}` is not an authority: {error}")),
            })
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => d.not_supported("auto_host_rewrite"),
        Some(HostRewriteSpecifier::HostRewriteHeader(_)) => d.not_supported("host_rewrite_header"),
        Some(HostRewriteSpecifier::HostRewritePathRegex(_)) => {
            d.not_supported("host_rewrite_path_regex")
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => d.not_supported("host_rewrite"),
    };
    let prefix_rewrite = match prefix_rewrite.as_str() {
        "" => Some(None),
        // What doesn't start like a path, or holds a query, would make another request
        // of the one that policy has judged.
        path if path.starts_with('/')
            && path.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#') =>
        {
            Some(Some(prefix_rewrite))
        }
        path => {
            let reason = format!("`{path}` is not a path");
            d.field("prefix_rewrite", |d| d.refused(reason))
        }
    };
    let timeout = common::timeout(d, "timeout", timeout, Some(TIMEOUT_DEFAULT));
    Some(ForwardAction {
        clusters: clusters?,
        cluster_header,
        runtime_key_prefix,
        timeout: timeout?,
        prefix_rewrite: prefix_rewrite?,
        host_rewrite: host_rewrite?,
        attempts: Attempts { retry: retry?, ..Attempts::default() },
    })
}
