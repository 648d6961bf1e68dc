//! Spec: `envoy.extensions.filters.http.ext_authz.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::ApiVersion,
        extensions::filters::http::ext_authz::v3::{
            AuthorizationRequest, AuthorizationResponse, BufferSettings, CheckSettings,
            ExtAuthz as PbExtAuthz, ExtAuthzPerRoute, HttpService, check_settings::ServiceOverride,
            ext_authz::Services, ext_authz_per_route::Override,
        },
        r#type::matcher::v3::ListStringMatcher,
    },
    google::protobuf::Any,
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
    services,
};
use crate::model::{
    authz::StringMatcher,
    ext_authz::{AuthzBody, AuthzPerRoute, AuthzService, ExtAuthz, HttpAuthz},
    filter::{HttpFilter, RouteFilterConfig},
};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbExtAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        // Always: what an answer may not say is never done.
        validate_mutations: _,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        // Statistics.
        stat_prefix: _,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats: _,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        // Spans.
        emit_client_span: _,
        services,
    } = common::unpack(d, any)?;
    unsupported!(
        d; typed_metadata_context_namespaces, route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces, deny_at_disable, include_peer_certificate,
        bootstrap_metadata_labels_key, include_tls_session, encode_raw_headers,
        decoder_header_mutation_rules, filter_metadata, emit_filter_state_stats,
        enforce_response_header_limits, shadow_mode,
    );
    if transport_api_version != ApiVersion::V3 as i32 {
        d.refuse_field("transport_api_version", "only V3 is supported");
    }
    let service = match services {
        Some(Services::GrpcService(value)) => {
            d.field("grpc_service", |d| services::grpc_service(d, value)).map(AuthzService::Grpc)
        }
        Some(Services::HttpService(value)) => {
            d.field("http_service", |d| http(d, value)).map(|h| AuthzService::Http(Box::new(h)))
        }
        None => d.refused("has neither grpc_service nor http_service"),
    };
    let body = optional(d, "with_request_body", with_request_body, body);
    let enabled = optional(d, "filter_enabled", filter_enabled, common::runtime_fraction);
    let enabled_metadata =
        optional(d, "filter_enabled_metadata", filter_enabled_metadata, matchers::metadata);
    let allowed_headers = optional(d, "allowed_headers", allowed_headers, list);
    let disallowed_headers = optional(d, "disallowed_headers", disallowed_headers, list);
    let status_on_error = match status_on_error.map(|status| u16::try_from(status.code)) {
        None => Some(403),
        Some(Ok(status @ 200..=599)) => Some(status),
        Some(_) => d.field("status_on_error", |d| d.refused("is not within 200 to 599")),
    };
    Some(HttpFilter::ExtAuthz(Arc::new(ExtAuthz {
        service: service?,
        failure_mode_allow,
        failure_mode_allow_header_add,
        body: body?,
        clear_route_cache,
        status_on_error: status_on_error?,
        metadata_namespaces: metadata_context_namespaces,
        enabled: enabled?,
        enabled_metadata: enabled_metadata?,
        allowed_headers: allowed_headers?,
        disallowed_headers: disallowed_headers?.unwrap_or_default(),
        takes_metadata: enable_dynamic_metadata_ingestion.is_none_or(|takes| takes.value),
        denied_body_max_bytes: match max_denied_response_body_bytes {
            0 => None,
            bytes => usize::try_from(bytes).ok(),
        },
    })))
}

/// The outer `None` says it was refused.
fn optional<P, T>(
    d: &mut Decoder,
    field: &str,
    value: Option<P>,
    decode: impl FnOnce(&mut Decoder, P) -> Option<T>,
) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => d.field(field, |d| decode(d, value)).map(Some),
    }
}

fn list(d: &mut Decoder, value: ListStringMatcher) -> Option<Vec<StringMatcher>> {
    d.all("patterns", value.patterns, matchers::string)
}

fn body(d: &mut Decoder, value: BufferSettings) -> Option<AuthzBody> {
    let BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = value;
    let max_bytes = match usize::try_from(max_request_bytes) {
        Ok(bytes @ 1..) => Some(bytes),
        _ => d.field("max_request_bytes", |d| d.refused("must be more than zero")),
    };
    let (allow_partial, as_bytes) = (allow_partial_message, pack_as_bytes);
    Some(AuthzBody { max_bytes: max_bytes?, allow_partial, as_bytes })
}

fn http(d: &mut Decoder, value: HttpService) -> Option<HttpAuthz> {
    let HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = value;
    unsupported!(d; path_override, retry_policy);
    let uri = d.field("server_uri", |d| match server_uri {
        Some(uri) => services::http_uri(d, uri),
        None => d.refused("is missing"),
    });
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        d.refuse_field("path_prefix", "does not begin with `/`");
    }
    let headers_to_add = d.field("authorization_request", |d| {
        #[expect(deprecated, reason = "refused where it is set")]
        let AuthorizationRequest { allowed_headers, headers_to_add } =
            authorization_request.unwrap_or_default();
        if allowed_headers.is_some() {
            d.refuse_field("allowed_headers", "is not supported: use the filter's");
        }
        d.all("headers_to_add", headers_to_add, services::literal_header)
    });
    let (upstream, upstream_append, client, client_on_success, metadata) =
        d.field("authorization_response", |d| {
            let AuthorizationResponse {
                allowed_upstream_headers,
                allowed_upstream_headers_to_append,
                allowed_client_headers,
                allowed_client_headers_on_success,
                dynamic_metadata_from_headers,
            } = authorization_response.unwrap_or_default();
            let mut of = |field, value| optional(d, field, value, list);
            let upstream = of("allowed_upstream_headers", allowed_upstream_headers);
            let append =
                of("allowed_upstream_headers_to_append", allowed_upstream_headers_to_append);
            let client = of("allowed_client_headers", allowed_client_headers);
            let success =
                of("allowed_client_headers_on_success", allowed_client_headers_on_success);
            let metadata = of("dynamic_metadata_from_headers", dynamic_metadata_from_headers);
            Some((upstream?, append?, client?, success?, metadata?))
        })?;
    Some(HttpAuthz {
        uri: uri?,
        path_prefix,
        headers_to_add: headers_to_add?,
        upstream: upstream.unwrap_or_default(),
        upstream_append: upstream_append.unwrap_or_default(),
        client,
        client_on_success: client_on_success.unwrap_or_default(),
        metadata: metadata.unwrap_or_default(),
    })
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let ExtAuthzPerRoute { r#override } = common::unpack(d, any)?;
    let said = match r#override {
        Some(Override::Disabled(true)) => AuthzPerRoute::Disabled,
        Some(Override::Disabled(false)) => {
            return d.field("disabled", |d| d.refused("can only be true"));
        }
        Some(Override::CheckSettings(value)) => d.field("check_settings", |d| {
            let CheckSettings {
                context_extensions,
                disable_request_body_buffering,
                with_request_body,
                service_override,
                emit_client_span: _,
            } = value;
            let other = match service_override {
                None => None,
                Some(ServiceOverride::GrpcService(_)) => Some("grpc_service"),
                Some(ServiceOverride::HttpService(_)) => Some("http_service"),
            };
            if let Some(field) = other {
                return d.field(field, |d| d.refused("another service is not supported"));
            }
            let body = optional(d, "with_request_body", with_request_body, body)?;
            if disable_request_body_buffering && body.is_some() {
                return d.refused("has both with_request_body and disable_request_body_buffering");
            }
            Some(AuthzPerRoute::Check {
                extensions: context_extensions.into_iter().collect(),
                body: match (disable_request_body_buffering, body) {
                    (true, _) => Some(None),
                    (false, body) => body.map(Some),
                },
            })
        })?,
        None => return d.refused("has neither disabled nor check_settings"),
    };
    Some(RouteFilterConfig::ExtAuthz(Arc::new(said)))
}
