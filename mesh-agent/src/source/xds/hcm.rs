//! The HTTP connection manager.
//!
//! Spec: `envoy/extensions/filters/network/http_connection_manager/v3/*.proto`.

mod http2;
mod options;
mod original_ip;

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager as PbHttpConnectionManager, Rds,
        http_connection_manager::{CodecType as PbCodecType, RouteSpecifier},
    },
    google::protobuf::BoolValue,
};

use super::{
    ResourceType, access_log, common, config_source, filters, http_options, local_reply, rds,
    reject::{Decoder, unsupported},
    scopes, traces, upgrades,
};
use crate::model::{
    http_options::{Http2Limits, HttpOptions, RequestIds},
    listener::{CodecType, HttpConnectionManager, RouteSource},
};

const STREAM_IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);

/// Envoy's default and most for `max_request_headers_kb`.
const REQUEST_HEADERS_DEFAULT_KIB: u32 = 60;
const REQUEST_HEADERS_MAX_KIB: u32 = 8192;

#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn connection_manager(
    d: &mut Decoder,
    value: PbHttpConnectionManager,
    buffer_max_bytes: u64,
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
        mut http2_protocol_options,
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
        add_user_agent, http1_safe_max_connection_duration, http3_protocol_options,
        scheme_header_transformation, stream_flush_timeout, drain_timeout,
        drain_timeout_jitter, delayed_close_timeout, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options,
        early_header_mutation_extensions, internal_address_config,
        forward_client_cert_matcher, proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        stream_error_on_invalid_http_message, path_normalization_options,
        proxy_status_config, typed_header_validation_config, append_x_forwarded_port,
        append_local_overload, add_proxy_protocol_connection_state, forward_proto_config,
    );
    let use_remote_address = use_remote_address.is_some_and(|value| value.value);
    let original_ip = d.all(
        "original_ip_detection_extensions",
        original_ip_detection_extensions,
        original_ip::extension,
    );
    if original_ip.as_ref().is_some_and(|all| !all.is_empty()) {
        for (field, set) in [
            ("use_remote_address", use_remote_address),
            ("xff_num_trusted_hops", xff_num_trusted_hops > 0),
        ] {
            if set {
                d.refuse_field(field, "can't go with original_ip_detection_extensions");
            }
        }
    }
    let on = |value: Option<BoolValue>, default| value.map_or(default, |value| value.value);
    let options = options::Fields {
        normalize_path: on(normalize_path, false),
        merge_slashes,
        path_with_escaped_slashes_action,
        strip_matching_host_port,
        strip_port_mode,
        strip_trailing_host_dot,
        use_remote_address,
        xff_num_trusted_hops,
        skip_xff_append,
        generate_request_id: on(generate_request_id, true),
        preserve_external_request_id,
        always_set_request_id_in_response,
        via,
        server_name,
        server_header_transformation,
        forward_client_cert_details,
        set_current_client_cert_details,
    };
    let tracing = match tracing {
        None => Some(None),
        Some(value) => d
            .field("tracing", |d| traces::of_manager(d, value))
            .map(|tracing| Some(Arc::new(tracing))),
    };
    let request_ids = match request_id_extension {
        None => Some(RequestIds::default()),
        Some(value) => d.field("request_id_extension", |d| traces::request_ids(d, value)),
    };
    let upgrades = upgrades::of_manager(d, upgrade_configs);
    let options = options::options(d, options);
    let http2_limits = match &mut http2_protocol_options {
        None => Some(Http2Limits::default()),
        Some(of) => d.field("http2_protocol_options", |d| http2::limits(d, of)),
    };
    let access_logs = access_log::access_logs(d, access_log);
    let local_reply = match local_reply_config {
        None => Some(None),
        Some(value) => d
            .field("local_reply_config", |d| local_reply::local_reply(d, value))
            .map(|reply| Some(Arc::new(reply))),
    };
    if let Some(options) = http_protocol_options {
        d.field("http_protocol_options", |d| http_options::http1(d, options));
    }
    let http2 = http2_protocol_options
        .map(|options| d.field("http2_protocol_options", |d| http_options::http2(d, options)))
        .unwrap_or_default();

    let codec = match PbCodecType::try_from(codec_type) {
        Ok(PbCodecType::Auto) => Some(CodecType::Auto),
        Ok(PbCodecType::Http1) => Some(CodecType::Http1),
        Ok(PbCodecType::Http2) => Some(CodecType::Http2),
        Ok(PbCodecType::Http3) => d.field("codec_type", |d| d.refused("HTTP3 is not supported")),
        Err(_) => d.field("codec_type", |d| d.refused(format!("{codec_type} is unknown"))),
    };
    let routes = routes(d, route_specifier);
    let http_filters = filters::chain(d, http_filters);
    let common_options = d.field("common_http_protocol_options", |d| {
        http_options::common(d, common_http_protocol_options.unwrap_or_default())
    });
    let request_timeout = common::timeout(d, "request_timeout", request_timeout, None);
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
    let common_options = common_options?;
    Some(HttpConnectionManager {
        stat_prefix,
        codec: codec?,
        routes: routes?,
        http_filters: http_filters?,
        access_logs: Arc::new(access_logs?.into()),
        local_reply: local_reply?,
        tracing: tracing?,
        options: Arc::new(HttpOptions {
            http2: http2_limits?,
            upgrades: upgrades?,
            extended_connect: http2.allow_connect,
            buffer_max_bytes,
            underscores: common_options.underscores,
            request_ids: request_ids?,
            original_ip: original_ip?,
            ..options?
        }),
        request_timeout: request_timeout?,
        max_stream_duration: common_options.max_stream_duration,
        max_connection_duration: common_options.max_connection_duration,
        max_requests_per_connection: common_options.max_requests_per_connection,
        max_headers_count: common_options.max_headers_count,
        idle_timeout: common_options.idle_timeout,
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
