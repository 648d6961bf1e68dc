//! Routes that lead to a cluster.
//!
//! Spec: `envoy.config.route.v3.RouteAction`.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TypedExtensionConfig,
            route::v3::{
                RouteAction as PbRouteAction,
                route_action::{
                    ClusterNotFoundResponseCode as NotFound, ClusterSpecifier,
                    HostRewriteSpecifier, MaxStreamDuration as PbMaxStreamDuration,
                },
            },
        },
        extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig,
    },
    google::protobuf::{BoolValue, Duration as PbDuration},
};

use super::{
    super::{
        balancing, circuit_breakers, common, filters, matchers, rate_limits,
        reject::{Decoder, unsupported},
        upgrades,
    },
    clusters::{authority, weighted_clusters},
    hash_policy, mirror, retry,
};
use crate::model::{
    cluster::ClusterName,
    retry::Attempts,
    rewrite::TemplateRewrite,
    route::{
        Clusters, ForwardAction, GrpcTimeout, HostRewrite, IdleTimeout, MaxStreamDuration,
        PathMatch, PathRewrite,
    },
};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn forward(
    d: &mut Decoder,
    value: PbRouteAction,
    matched: Option<&PathMatch>,
) -> Option<ForwardAction> {
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
        path_rewrite, flush_timeout, early_data_policy, internal_redirect_policy, internal_redirect_action, max_internal_redirects, hedge_policy,
    );
    let mirrors = mirror::policies(d, request_mirror_policies);
    let metadata_match = balancing::metadata_match(metadata_match);
    let hash_policy = hash_policy::policies(d, hash_policy);
    let upgrades = upgrades::of_route(d, upgrade_configs);
    let cors = filters::cors(d, cors);
    let rate_limits = rate_limits::of_route(d, rate_limits, include_vh_rate_limits);
    let high_priority = circuit_breakers::is_high(d, priority);
    let retry = retry::policy(d, retry_policy, retry_policy_typed_config);
    let clusters = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => {
            d.field("cluster", |d| d.refused("is missing"))
        }
        Some(ClusterSpecifier::Cluster(name)) => Some(Clusters::One(ClusterName(name.into()))),
        Some(ClusterSpecifier::WeightedClusters(value)) => {
            let weighted = d.field("weighted_clusters", |d| weighted_clusters(d, value));
            weighted.map(|mut weighted| {
                weighted.ask_besides(metadata_match.as_deref());
                Clusters::Weighted(weighted)
            })
        }
        Some(ClusterSpecifier::ClusterHeader(name)) => {
            d.field("cluster_header", |d| matchers::header_name(d, &name)).map(Clusters::Header)
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => {
            d.not_supported("cluster_specifier_plugin")
        }
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => {
            d.not_supported("inline_cluster_specifier_plugin")
        }
        None => d.refused("names no cluster: cluster or weighted_clusters"),
    };
    let cluster_not_found_status = match NotFound::try_from(cluster_not_found_response_code) {
        Ok(NotFound::ServiceUnavailable) => Some(503),
        Ok(NotFound::NotFound) => Some(404),
        Ok(NotFound::InternalServerError) => Some(500),
        Err(_) => d.field("cluster_not_found_response_code", |d| {
            d.refused(format!("{cluster_not_found_response_code} is unknown"))
        }),
    };
    let host_rewrite = match host_rewrite_specifier {
        None => Some(None),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => d
            .field("host_rewrite_literal", |d| authority(d, host))
            .map(|host| Some(HostRewrite::Literal(host))),
        Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: false })) => Some(None),
        Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true })) => {
            Some(Some(HostRewrite::Endpoint))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => d
            .field("host_rewrite_header", |d| matchers::header_name(d, &name))
            .map(|name| Some(HostRewrite::Header(name))),
        Some(HostRewriteSpecifier::HostRewritePathRegex(value)) => d
            .field("host_rewrite_path_regex", |d| matchers::regex_rewrite(d, value))
            .map(|rewrite| Some(HostRewrite::PathRegex(rewrite))),
        Some(HostRewriteSpecifier::HostRewrite(_)) => d.not_supported("host_rewrite"),
    };
    let rewrites =
        [!prefix_rewrite.is_empty(), regex_rewrite.is_some(), path_rewrite_policy.is_some()];
    let path_rewrite = match (regex_rewrite, path_rewrite_policy) {
        _ if rewrites.iter().filter(|there| **there).count() > 1 => {
            d.refused("has more than one of prefix_rewrite, regex_rewrite and path_rewrite_policy")
        }
        (Some(value), _) => d
            .field("regex_rewrite", |d| matchers::regex_rewrite(d, value))
            .map(|rewrite| Some(PathRewrite::Regex(rewrite))),
        (None, Some(policy)) => d
            .field("path_rewrite_policy", |d| rewrite_policy(d, policy, matched))
            .map(|rewrite| Some(PathRewrite::Template(rewrite))),
        (None, None) if prefix_rewrite.is_empty() => Some(None),
        (None, None) => d.field("prefix_rewrite", |d| match matched {
            Some(PathMatch::Template(_)) => d.refused("can't go with path_match_policy"),
            _ => path(d, prefix_rewrite).map(|path| Some(PathRewrite::Prefix(path))),
        }),
    };
    let timeout = common::timeout(d, "timeout", timeout, Some(TIMEOUT_DEFAULT));
    let idle_timeout = match idle_timeout {
        None => Some(None),
        value => common::timeout(d, "idle_timeout", value, None)
            .map(|limit| Some(limit.map_or(IdleTimeout::Never, IdleTimeout::After))),
    };
    let grpc =
        [("max_grpc_timeout", max_grpc_timeout), ("grpc_timeout_offset", grpc_timeout_offset)];
    let grpc_timeout = grpc_timeout(d, grpc);
    let max_stream_duration = match max_stream_duration {
        None => Some(None),
        Some(value) => d.field("max_stream_duration", |d| stream_duration(d, value)).map(Some),
    };
    let (upgrades, terminates_connect) = upgrades?;
    Some(ForwardAction {
        clusters: clusters?,
        cluster_not_found_status: cluster_not_found_status?,
        timeout: timeout?,
        grpc_timeout: grpc_timeout?,
        max_stream_duration: max_stream_duration?,
        idle_timeout: idle_timeout?,
        path_rewrite: path_rewrite?,
        host_rewrite: host_rewrite?,
        append_x_forwarded_host,
        high_priority: high_priority?,
        hash_policy: hash_policy?,
        metadata_match,
        cors: cors?.into_iter().collect(),
        upgrades,
        terminates_connect,
        rate_limits: rate_limits?,
        mirrors: mirrors?,
        attempts: Attempts { retry: retry?, ..Attempts::default() },
    })
}

/// Two fields: the most that is taken, and what is taken off.
fn grpc_timeout(
    d: &mut Decoder,
    [(max_field, max), (offset_field, offset)]: [(&str, Option<PbDuration>); 2],
) -> Option<Option<GrpcTimeout>> {
    let Some(max) = max else {
        return match offset {
            None => Some(None),
            // As Envoy reads it only beside the other, and would say nothing.
            Some(_) => d.field(offset_field, |d| d.refused(format!("needs {max_field}"))),
        };
    };
    let max = common::timeout(d, max_field, Some(max), None);
    let offset = match offset {
        None => Some(Duration::ZERO),
        Some(offset) => common::duration(d, offset_field, offset),
    };
    Some(Some(GrpcTimeout { max: max?, offset: offset? }))
}

fn stream_duration(d: &mut Decoder, value: PbMaxStreamDuration) -> Option<MaxStreamDuration> {
    let PbMaxStreamDuration {
        max_stream_duration,
        grpc_timeout_header_max,
        grpc_timeout_header_offset,
    } = value;
    let own = match max_stream_duration {
        None => Some(None),
        value => common::timeout(d, "max_stream_duration", value, None)
            .map(|limit| Some(limit.map_or(IdleTimeout::Never, IdleTimeout::After))),
    };
    let grpc = [
        ("grpc_timeout_header_max", grpc_timeout_header_max),
        ("grpc_timeout_header_offset", grpc_timeout_header_offset),
    ];
    let grpc = grpc_timeout(d, grpc);
    Some(MaxStreamDuration { own: own?, grpc: grpc? })
}

/// What doesn't start like a path, or holds a query, would make another request of the one
/// that policy has judged.
pub(super) fn path(d: &mut Decoder, path: String) -> Option<String> {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
    match path.starts_with('/') && path.bytes().all(plain) {
        true => Some(path),
        false => d.refused(format!("`{path}` is not a path")),
    }
}

fn rewrite_policy(
    d: &mut Decoder,
    value: TypedExtensionConfig,
    matched: Option<&PathMatch>,
) -> Option<TemplateRewrite> {
    let TypedExtensionConfig { name, typed_config } = value;
    let type_name = typed_config.as_ref().map(common::type_name).unwrap_or_default();
    let Some(any) = typed_config.filter(common::is::<UriTemplateRewriteConfig>) else {
        common::refuse_extension(d, &name, &type_name);
        return None;
    };
    let UriTemplateRewriteConfig { path_template_rewrite } = common::unpack(d, &any)?;
    let Some(PathMatch::Template(matched)) = matched else {
        return d.refused("goes with a path_match_policy of the same kind only");
    };
    d.field("path_template_rewrite", |d| {
        match TemplateRewrite::new(&path_template_rewrite, matched) {
            Ok(rewrite) => Some(rewrite),
            Err(error) => d.refused(format!("`{path_template_rewrite}`: {error}")),
        }
    })
}
