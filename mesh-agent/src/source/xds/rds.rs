//! Route configurations.
//!
//! Spec: `envoy/config/route/v3/{route,route_components}.proto`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, data_source},
            route::v3::{
                DirectResponseAction, Route as PbRoute, RouteAction as PbRouteAction,
                RouteConfiguration as PbRouteConfiguration, RouteMatch as PbRouteMatch, Vhds,
                VirtualHost as PbVirtualHost, WeightedCluster as PbWeightedCluster,
                route::Action,
                route_action::{ClusterSpecifier, HostRewriteSpecifier},
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::http::on_demand::v3::{OnDemandCds, PerRouteConfig},
    },
    google::protobuf::Any,
};

use super::{
    ResourceType, common, config_source, matchers,
    options::Origin,
    reject::{Decoder, unsupported},
};
use crate::model::{
    cluster::ClusterName,
    listener::WeightedCluster,
    route::{
        DirectResponse, Domain, ForwardAction, OnDemandClusters, OnDemandRoute, PathMatch, Route,
        RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    },
};

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// How long a request waits for a cluster that it has asked for, if nothing is said.
const ON_DEMAND_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The filter that a route may tell something.
const ON_DEMAND: &str = "envoy.filters.http.on_demand";

/// Envoy's default for `max_direct_response_body_size_bytes`.
const DIRECT_RESPONSE_MAX_BYTES: u32 = 4096;

pub(super) fn configuration(
    d: &mut Decoder,
    value: PbRouteConfiguration,
) -> Option<RouteConfiguration> {
    let PbRouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        validate_clusters,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        route_specifiers,
    } = value;
    unsupported!(
        d;
        internal_only_headers, response_headers_to_add, response_headers_to_remove,
        request_headers_to_add, request_headers_to_remove, most_specific_header_mutations_wins,
        cluster_specifier_plugins, request_mirror_policies, ignore_port_in_host_matching,
        vhost_header, ignore_path_parameters_in_path_matching, route_specifiers,
    );
    d.unsupported_entries("typed_per_filter_config", &typed_per_filter_config);
    let vhds = match vhds {
        None => false,
        Some(Vhds { config_source }) => {
            d.field("vhds", |d| match config_source {
                None => d.refuse_field("config_source", "is missing"),
                source => {
                    let kind = ResourceType::VirtualHost;
                    config_source::reference(d, "config_source", source, kind, &name);
                }
            });
            true
        }
    };
    let body_max =
        max_direct_response_body_size_bytes.map_or(DIRECT_RESPONSE_MAX_BYTES, |max| max.value);

    let mut seen = Seen::default();
    let mut whole = Some(Vec::new());
    for (i, host) in virtual_hosts.into_iter().enumerate() {
        let index = if host.name.is_empty() { i.to_string() } else { host.name.clone() };
        let host = d.item("virtual_hosts", index, |d| virtual_host(d, host, &mut seen, body_max));
        match (&mut whole, host) {
            (Some(list), Some(host)) => list.push(Arc::new(host)),
            _ => whole = None,
        }
    }
    Some(RouteConfiguration {
        name: name.into(),
        virtual_hosts: whole?,
        vhds,
        discovered: Vec::new(),
        validate_clusters: validate_clusters.map(|validate| validate.value),
    })
}

/// A route configuration that is part of another resource.
pub(super) fn inline(d: &mut Decoder, value: PbRouteConfiguration) -> Option<RouteConfiguration> {
    let routes = configuration(d, value)?;
    if routes.vhds {
        d.refuse_field("vhds", "is for a route configuration that comes by RDS");
    }
    Some(routes)
}

/// A virtual host that arrives by itself. What has to be unique within its route
/// configuration is for `snapshot` to check.
pub(super) fn discovered_host(d: &mut Decoder, value: PbVirtualHost) -> Option<VirtualHost> {
    virtual_host(d, value, &mut Seen::default(), DIRECT_RESPONSE_MAX_BYTES)
}

/// What has to be unique within one configuration.
#[derive(Default)]
struct Seen {
    hosts: HashSet<String>,
    domains: HashSet<Domain>,
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn virtual_host(
    d: &mut Decoder,
    value: PbVirtualHost,
    seen: &mut Seen,
    body_max: u32,
) -> Option<VirtualHost> {
    let PbVirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        route_specifiers,
    } = value;
    unsupported!(
        d;
        matcher, require_tls, virtual_clusters, rate_limits, request_headers_to_add,
        request_headers_to_remove, response_headers_to_add, response_headers_to_remove, cors,
        include_request_attempt_count, include_attempt_count_in_response, retry_policy,
        retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header,
        per_request_buffer_limit_bytes, request_body_buffer_limit, request_mirror_policies,
        route_specifiers,
    );
    let on_demand = per_filter(d, typed_per_filter_config);
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    } else if !seen.hosts.insert(name.clone()) {
        d.refuse_field("name", "is given twice");
    }
    if domains.is_empty() {
        d.refuse_field("domains", "is empty");
    }
    let domains = d.all("domains", domains, |d, text| {
        let domain = domain(d, &text)?;
        if !seen.domains.insert(domain.clone()) {
            return d.refused(format!("`{text}` is given twice in this route configuration"));
        }
        Some(domain)
    });
    let routes = d.all("routes", routes, |d, value| {
        let mut route = route(d, value, body_max)?;
        // The most specific one counts.
        route.on_demand = route.on_demand.or(on_demand);
        Some(route)
    });
    Some(VirtualHost { name: name.into(), domains: domains?, routes: routes? })
}

/// Spec: `envoy.config.route.v3.VirtualHost.domains`. A `*` stands at one end only.
fn domain(d: &mut Decoder, text: &str) -> Option<Domain> {
    let text = text.to_ascii_lowercase();
    let literal = |s: &str| (!s.is_empty() && !s.contains('*')).then(|| s.to_owned());
    let domain = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => Some(Domain::Any),
        (Some(suffix), _) => literal(suffix).map(Domain::Suffix),
        (None, Some(prefix)) => literal(prefix).map(Domain::Prefix),
        (None, None) => literal(&text).map(Domain::Exact),
    };
    if domain.is_none() {
        d.refuse(format!("`{text}` is not a domain: `*` may stand first or last, once"));
    }
    domain
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn route(d: &mut Decoder, value: PbRoute, body_max: u32) -> Option<Route> {
    let PbRoute {
        name,
        r#match,
        // Notes of the control plane: nothing that reads them is supported.
        metadata: _,
        decorator,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        // A name in statistics.
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = value;
    unsupported!(
        d;
        decorator, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
        response_headers_to_remove, tracing, per_request_buffer_limit_bytes,
        request_body_buffer_limit, route_specifiers,
    );
    let on_demand = per_filter(d, typed_per_filter_config);
    let matches = d.field("match", |d| match r#match {
        Some(value) => route_match(d, value),
        None => d.refused("is missing"),
    });
    let action = match action {
        Some(Action::Route(value)) => {
            d.field("route", |d| forward(d, value)).map(RouteAction::Forward)
        }
        Some(Action::DirectResponse(value)) => d
            .field("direct_response", |d| direct_response(d, value, body_max))
            .map(RouteAction::DirectResponse),
        Some(Action::Redirect(_)) => d.not_supported("redirect"),
        Some(Action::FilterAction(_)) => d.not_supported("filter_action"),
        Some(Action::NonForwardingAction(_)) => d.not_supported("non_forwarding_action"),
        None => d.refused("has no action: route or direct_response"),
    };
    Some(Route { name: name.into(), matches: matches?, action: action?, on_demand })
}

/// What a route or virtual host says for single filters: `on_demand` alone can be told.
fn per_filter(d: &mut Decoder, mut configs: HashMap<String, Any>) -> Option<OnDemandRoute> {
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
pub(super) fn on_demand_clusters(
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

fn route_match(d: &mut Decoder, value: PbRouteMatch) -> Option<RouteMatch> {
    let PbRouteMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = value;
    unsupported!(
        d;
        query_parameters, cookies, grpc, tls_context, dynamic_metadata, filter_state,
    );
    let case_sensitive = case_sensitive.is_none_or(|sensitive| sensitive.value);
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatch::Prefix(prefix)),
        Some(PathSpecifier::Path(path)) => Some(PathMatch::Exact(path)),
        Some(PathSpecifier::SafeRegex(regex)) => {
            if !case_sensitive {
                d.refuse_field("case_sensitive", "has no effect on safe_regex; use (?i)");
            }
            d.field("safe_regex", |d| matchers::regex(d, regex)).map(PathMatch::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => d.not_supported("connect_matcher"),
        Some(PathSpecifier::PathSeparatedPrefix(_)) => d.not_supported("path_separated_prefix"),
        Some(PathSpecifier::PathMatchPolicy(_)) => d.not_supported("path_match_policy"),
        None => d.refused("has no path: prefix, path or safe_regex"),
    };
    let headers = d.all("headers", headers, matchers::header);
    let runtime_fraction = match runtime_fraction {
        None => Some(None),
        Some(value) => {
            d.field("runtime_fraction", |d| common::runtime_fraction(d, value)).map(Some)
        }
    };
    Some(RouteMatch {
        path: path?,
        case_sensitive,
        headers: headers?,
        runtime_fraction: runtime_fraction?,
    })
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn forward(d: &mut Decoder, value: PbRouteAction) -> Option<ForwardAction> {
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
        retry_policy, retry_policy_typed_config, request_mirror_policies, priority, rate_limits,
        include_vh_rate_limits, hash_policy, cors, max_grpc_timeout, grpc_timeout_offset,
        upgrade_configs, internal_redirect_policy, internal_redirect_action,
        max_internal_redirects, hedge_policy, max_stream_duration,
    );
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
    })
}

/// A plain `cluster`, as the only one of a weighted list.
pub(super) fn one_cluster(d: &mut Decoder, name: String) -> Option<Vec<WeightedCluster>> {
    if name.is_empty() {
        return d.refused("is missing");
    }
    Some(vec![WeightedCluster { cluster: ClusterName(name.into()), weight: 1 }])
}

#[expect(deprecated, reason = "total_weight is deprecated, and checked")]
fn weighted_clusters(d: &mut Decoder, value: PbWeightedCluster) -> Option<Vec<WeightedCluster>> {
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

pub(super) fn named_weight(d: &mut Decoder, name: String, weight: u32) -> Option<WeightedCluster> {
    if name.is_empty() {
        return d.field("name", |d| d.refused("is missing"));
    }
    Some(WeightedCluster { cluster: ClusterName(name.into()), weight })
}

/// The sum of the weights: neither zero nor more than a `u32` holds.
pub(super) fn check_weights(d: &mut Decoder, clusters: &[WeightedCluster]) -> Option<u32> {
    let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    match u32::try_from(sum) {
        Ok(0) => d.refused("has no weight above zero"),
        Ok(sum) => Some(sum),
        Err(_) => d.refused(format!("has weights that add up to {sum}, more than {}", u32::MAX)),
    }
}

fn direct_response(
    d: &mut Decoder,
    value: DirectResponseAction,
    body_max: u32,
) -> Option<DirectResponse> {
    let DirectResponseAction { status, body, body_format } = value;
    unsupported!(d; body_format);
    let status = match u16::try_from(status) {
        Ok(status @ 200..=599) => Some(status),
        _ => d.field("status", |d| d.refused(format!("{status} is not within 200 to 599"))),
    };
    let body = match body {
        Some(DataSource { watched_directory, specifier }) => d.field("body", |d| {
            unsupported!(d; watched_directory);
            match specifier {
                Some(data_source::Specifier::InlineString(s)) => Some(Bytes::from(s)),
                Some(data_source::Specifier::InlineBytes(b)) => Some(Bytes::from(b)),
                Some(data_source::Specifier::Filename(_)) => {
                    d.field("filename", |d| d.refused("is not supported"))
                }
                Some(data_source::Specifier::EnvironmentVariable(_)) => {
                    d.field("environment_variable", |d| d.refused("is not supported"))
                }
                None => Some(Bytes::new()),
            }
        }),
        None => Some(Bytes::new()),
    }?;
    if u32::try_from(body.len()).is_ok_and(|length| length <= body_max) {
        return Some(DirectResponse { status: status?, body });
    }
    d.field("body", |d| d.refused(format!("{} bytes are more than {body_max}", body.len())))
}
