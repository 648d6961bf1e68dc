//! The HTTP connection manager and its HTTP filters.
//!
//! Spec: `envoy/extensions/filters/network/http_connection_manager/v3/*.proto`,
//! `envoy/extensions/filters/http/{rbac,router}/v3/*.proto`.

mod options;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::extensions::filters::{
        http::{
            on_demand::v3::OnDemand as PbOnDemand, rbac::v3::Rbac as PbHttpRbac, router::v3::Router,
        },
        network::http_connection_manager::v3::{
            HttpConnectionManager as PbHttpConnectionManager, HttpFilter as PbHttpFilter, Rds,
            http_connection_manager::{CodecType as PbCodecType, RouteSpecifier},
            http_filter,
        },
    },
    google::protobuf::{Any, BoolValue},
};
use prost::Name as _;

use super::{
    ResourceType, common, config_source, ecds, http_options,
    rbac::{self, Place},
    rds,
    reject::{Decoder, unsupported},
    scopes,
};
use crate::model::listener::{CodecType, HttpConnectionManager, HttpFilter, OnDemand, RouteSource};

const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);
const STREAM_IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Envoy's default and most for `max_request_headers_kb`.
const REQUEST_HEADERS_DEFAULT_KIB: u32 = 60;
const REQUEST_HEADERS_MAX_KIB: u32 = 8192;

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn connection_manager(
    d: &mut Decoder,
    value: PbHttpConnectionManager,
) -> Option<HttpConnectionManager> {
    let PbHttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = value;
    unsupported!(
        d;
        add_user_agent, tracing, http1_safe_max_connection_duration, http3_protocol_options,
        scheme_header_transformation, stream_flush_timeout, request_timeout, drain_timeout,
        drain_timeout_jitter, delayed_close_timeout, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options, original_ip_detection_extensions,
        early_header_mutation_extensions, internal_address_config, forward_client_cert_details,
        set_current_client_cert_details, forward_client_cert_matcher, proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, request_id_extension,
        local_reply_config, stream_error_on_invalid_http_message, path_normalization_options,
        proxy_status_config, typed_header_validation_config, append_x_forwarded_port,
        append_local_overload, add_proxy_protocol_connection_state, forward_proto_config,
    );
    let on = |value: Option<BoolValue>, default| value.map_or(default, |value| value.value);
    let options = options::Fields {
        normalize_path: on(normalize_path, false),
        merge_slashes,
        path_with_escaped_slashes_action,
        strip_matching_host_port,
        strip_port_mode,
        strip_trailing_host_dot,
        use_remote_address: on(use_remote_address, false),
        xff_num_trusted_hops,
        skip_xff_append,
        generate_request_id: on(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        via,
        server_name,
        server_header_transformation,
    };
    let options = options::options(d, options);
    common::refuse_access_logs(d, &access_log);
    for (i, upgrade) in upgrade_configs.iter().enumerate() {
        let reason = format!("{} is not supported", upgrade.upgrade_type);
        d.item("upgrade_configs", i, |d| d.refuse(reason));
    }
    if let Some(options) = http_protocol_options {
        d.field("http_protocol_options", |d| http_options::http1(d, options));
    }
    if let Some(options) = http2_protocol_options {
        d.field("http2_protocol_options", |d| http_options::http2(d, options));
    }

    let codec = match PbCodecType::try_from(codec_type) {
        Ok(PbCodecType::Auto) => Some(CodecType::Auto),
        Ok(PbCodecType::Http1) => Some(CodecType::Http1),
        Ok(PbCodecType::Http2) => Some(CodecType::Http2),
        Ok(PbCodecType::Http3) => d.field("codec_type", |d| d.refused("HTTP3 is not supported")),
        Err(_) => d.field("codec_type", |d| d.refused(format!("{codec_type} is unknown"))),
    };
    let routes = routes(d, route_specifier);
    let http_filters = http_filters_of(d, http_filters);
    let idle_timeout = d.field("common_http_protocol_options", |d| {
        let value = common_http_protocol_options.and_then(|value| http_options::common(d, value));
        common::timeout(d, "idle_timeout", value, Some(IDLE_TIMEOUT_DEFAULT))
    });
    let stream_idle_timeout = common::timeout(
        d,
        "stream_idle_timeout",
        stream_idle_timeout,
        Some(STREAM_IDLE_TIMEOUT_DEFAULT),
    );
    let request_headers_timeout =
        common::timeout(d, "request_headers_timeout", request_headers_timeout, None);
    let max_request_headers_kib = match max_request_headers_kb.map(|max| max.value) {
        None => Some(REQUEST_HEADERS_DEFAULT_KIB),
        Some(max @ 1..=REQUEST_HEADERS_MAX_KIB) => Some(max),
        Some(max) => d.field("max_request_headers_kb", |d| {
            d.refused(format!("{max} is not within 1 to {REQUEST_HEADERS_MAX_KIB}"))
        }),
    };
    let (http_filters, on_demand) = http_filters?;
    Some(HttpConnectionManager {
        stat_prefix,
        codec: codec?,
        routes: routes?,
        http_filters,
        options: Arc::new(options?),
        on_demand,
        idle_timeout: idle_timeout?,
        stream_idle_timeout: stream_idle_timeout?,
        request_headers_timeout: request_headers_timeout?,
        max_request_headers_kib: max_request_headers_kib?,
    })
}

fn routes(d: &mut Decoder, value: Option<RouteSpecifier>) -> Option<RouteSource> {
    match value {
        Some(RouteSpecifier::RouteConfig(value)) => d
            .field("route_config", |d| rds::inline(d, value))
            .map(|routes| RouteSource::Inline(Arc::new(routes))),
        Some(RouteSpecifier::Rds(Rds { config_source, route_config_name })) => {
            d.field("rds", |d| {
                let (kind, name) = (ResourceType::Routes, route_config_name.as_str());
                config_source::reference(d, "config_source", config_source, kind, name);
                if route_config_name.is_empty() {
                    return d.field("route_config_name", |d| d.refused("is missing"));
                }
                Some(RouteSource::Rds(route_config_name.into()))
            })
        }
        Some(RouteSpecifier::ScopedRoutes(value)) => {
            let scoped = d.field("scoped_routes", |d| scopes::scoped_routes(d, value));
            scoped.map(|scoped| RouteSource::Scoped(Arc::new(scoped)))
        }
        None => d.refused("has no routes: route_config, rds or scoped_routes"),
    }
}

/// One decoded HTTP filter.
enum Decoded {
    Filter(HttpFilter),
    /// It never does anything, and so it is left out: an RBAC filter without `rules`,
    /// for which Envoy enforces nothing; one that is disabled; or one that is optional
    /// and not known.
    Nothing,
    OnDemand(OnDemand),
    Router,
}

/// The chain without its router, and the `on_demand` filter, whose place in the chain makes
/// no difference: policy is asked before any route is looked for.
fn http_filters_of(
    d: &mut Decoder,
    values: Vec<PbHttpFilter>,
) -> Option<(Vec<HttpFilter>, Option<OnDemand>)> {
    let count = values.len();
    if count == 0 {
        return d.field("http_filters", |d| d.refused("is empty; it must end with the router"));
    }
    let mut at = 0;
    let decoded = d.all("http_filters", values, |d, value| {
        at += 1;
        let decoded = http_filter(d, value)?;
        match (&decoded, at == count) {
            (Decoded::Router, false) => d.refused("the router must be the last filter"),
            (Decoded::Filter(_) | Decoded::Nothing | Decoded::OnDemand(_), true) => {
                d.refused("can't be the last filter: that is the router's place")
            }
            _ => Some(decoded),
        }
    })?;
    let on_demand = decoded.iter().find_map(|decoded| match decoded {
        Decoded::OnDemand(on_demand) => Some(*on_demand),
        Decoded::Filter(_) | Decoded::Nothing | Decoded::Router => None,
    });
    let filters = decoded.into_iter().filter_map(|decoded| match decoded {
        Decoded::Filter(filter) => Some(filter),
        Decoded::Nothing | Decoded::OnDemand(_) | Decoded::Router => None,
    });
    Some((filters.collect(), on_demand))
}

fn http_filter(d: &mut Decoder, value: PbHttpFilter) -> Option<Decoded> {
    let PbHttpFilter { name, is_optional, disabled, config_type } = value;
    let decoded = match config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => {
            // Whoever marks a filter so says that a client that doesn't know it may do
            // without.
            if is_optional && !is_known(&common::type_name(&any)) {
                return Some(Decoded::Nothing);
            }
            typed_filter(d, &name, &any)?
        }
        Some(http_filter::ConfigType::ConfigDiscovery(source)) => {
            let filter = ecds::discovered(d, &name, source)?;
            Decoded::Filter(HttpFilter::Discovered(Arc::new(filter)))
        }
        None => {
            common::refuse_extension(d, &name, "");
            return None;
        }
    };
    match decoded {
        decoded if !disabled => Some(decoded),
        Decoded::Router => d.field("disabled", |d| d.refused("the router can't be disabled")),
        // It runs where a route enables it, and no route can here.
        Decoded::Filter(_) | Decoded::OnDemand(_) | Decoded::Nothing => Some(Decoded::Nothing),
    }
}

/// Whether a filter's configuration message is one of those honoured here.
fn is_known(type_name: &str) -> bool {
    is_discoverable(type_name)
        || type_name == Router::full_name()
        || type_name == PbOnDemand::full_name()
}

/// Whether a filter of that type may be configured by itself: the router can't, since it
/// ends every chain and has nothing to configure.
pub(super) fn is_discoverable(type_name: &str) -> bool {
    type_name == PbHttpRbac::full_name()
}

/// The configuration of one filter, by its type.
fn typed_filter(d: &mut Decoder, name: &str, any: &Any) -> Option<Decoded> {
    if common::is::<Router>(any) {
        let value = common::unpack(d, any)?;
        router(d, value);
        Some(Decoded::Router)
    } else if common::is::<PbHttpRbac>(any) {
        let value = common::unpack(d, any)?;
        let rbac = http_rbac(d, value)?;
        Some(rbac.map_or(Decoded::Nothing, Decoded::Filter))
    } else if common::is::<PbOnDemand>(any) {
        let PbOnDemand { odcds } = common::unpack(d, any)?;
        Some(Decoded::OnDemand(OnDemand { clusters: rds::on_demand_clusters(d, odcds) }))
    } else {
        common::refuse_extension(d, name, &common::type_name(any));
        None
    }
}

/// A filter whose configuration arrives by itself; the inner `None`: it does nothing.
pub(super) fn discovered_filter(
    d: &mut Decoder,
    name: &str,
    any: &Any,
) -> Option<Option<HttpFilter>> {
    match typed_filter(d, name, any)? {
        Decoded::Filter(filter) => Some(Some(filter)),
        Decoded::Nothing => Some(None),
        Decoded::OnDemand(_) => d.refused("envoy.filters.http.on_demand can't be discovered"),
        Decoded::Router => d.refused("the router can't be discovered: it ends every chain"),
    }
}

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
fn router(d: &mut Decoder, value: Router) {
    let Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = value;
    unsupported!(
        d;
        dynamic_stats, start_child_span, upstream_log, upstream_log_options,
        suppress_envoy_headers, strict_check_headers, respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats, upstream_http_filters,
        reject_connect_request_early_data,
    );
}

fn http_rbac(d: &mut Decoder, value: PbHttpRbac) -> Option<Option<HttpFilter>> {
    let PbHttpRbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = value;
    unsupported!(
        d;
        matcher, shadow_rules, shadow_matcher, shadow_rules_stat_prefix, track_per_rule_stats,
    );
    let Some(rules) = rules else { return Some(None) };
    let rbac = d.field("rules", |d| rbac::rbac(d, Place::Http, rules_stat_prefix, rules))?;
    Some(Some(HttpFilter::Rbac(Arc::new(rbac))))
}
