//! Spec: `envoy.extensions.filters.http.ratelimit.v3`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{ApiVersion, HeaderValueOption, RuntimeFractionalPercent},
            ratelimit::v3::RateLimitServiceConfig,
        },
        extensions::filters::http::ratelimit::v3::{
            RateLimit as PbRateLimit, RateLimitPerRoute as PbRateLimitPerRoute,
            rate_limit::XRateLimitHeadersRfcVersion,
        },
        r#type::v3::HttpStatus,
    },
    google::protobuf::Any,
};

use super::super::{
    common, header_mutation, rate_limits,
    reject::{Decoder, unsupported},
    services,
};
use crate::model::{
    ext_authz::GrpcService,
    filter::{GlobalRateLimit, HttpFilter, RateLimitPerRoute, RequestType, RouteFilterConfig},
    header_mutation::HeaderMutation,
    runtime::{Fraction, RuntimeFraction},
};

/// How long the server has where nothing is said.
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(20);
const ADDITIONS_MAX: usize = 10;
const NAMESPACE_DEFAULT: &str = "envoy.filters.http.ratelimit";
const ENABLED: &str = "ratelimit.http_filter_enabled";
const ENFORCING: &str = "ratelimit.http_filter_enforcing";

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbRateLimit {
        domain,
        stage,
        request_type,
        timeout,
        failure_mode_deny,
        rate_limited_as_resource_exhausted,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        // Statistics.
        stat_prefix: _,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits,
        metadata_namespace,
        enable_retry_after_header,
    } = common::unpack(d, any)?;
    if domain.is_empty() {
        d.refuse_field("domain", "is missing");
    }
    let stage = rate_limits::stage(d, stage);
    let requests = match request_type.as_str() {
        "" | "both" => Some(RequestType::Both),
        "internal" => Some(RequestType::Internal),
        "external" => Some(RequestType::External),
        other => d.field("request_type", |d| d.refused(format!("`{other}` is unknown"))),
    };
    let timeout = common::timeout(d, "timeout", timeout, Some(TIMEOUT_DEFAULT));
    let service = d.field("rate_limit_service", |d| match rate_limit_service {
        Some(value) => service(d, value),
        None => d.refused("is missing"),
    });
    let enabled = fraction(d, "filter_enabled", filter_enabled, ENABLED);
    let enforced = fraction(d, "filter_enforced", filter_enforced, ENFORCING);
    let deny_on_failure_fraction = match failure_mode_deny_percent {
        None => Some(None),
        Some(value) => {
            d.field("failure_mode_deny_percent", |d| common::runtime_fraction(d, value)).map(Some)
        }
    };
    let status = status(d, "rate_limited_status", rate_limited_status, 400, 429);
    let status_on_error = self::status(d, "status_on_error", status_on_error, 200, 500);
    let response = additions(d, response_headers_to_add);
    let x_ratelimit = match XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
        Ok(version) => Some(version == XRateLimitHeadersRfcVersion::DraftVersion03),
        Err(_) => d.field("enable_x_ratelimit_headers", |d| {
            d.refused(format!("{enable_x_ratelimit_headers} is unknown"))
        }),
    };
    let rate_limits = rate_limits::of_filter(d, rate_limits);
    Some(HttpFilter::GlobalRateLimit(Arc::new(GlobalRateLimit {
        service: GrpcService { timeout: timeout?, ..service? },
        domain,
        stage: stage?,
        requests: requests?,
        enabled: enabled?,
        enforced: enforced?,
        deny_on_failure: failure_mode_deny,
        deny_on_failure_fraction: deny_on_failure_fraction?,
        status: status?,
        status_on_error: status_on_error?,
        resource_exhausted: rate_limited_as_resource_exhausted,
        response: response?,
        x_ratelimit: x_ratelimit?,
        x_envoy_ratelimited: !disable_x_envoy_ratelimited_header,
        retry_after: enable_retry_after_header,
        rate_limits: rate_limits?,
        metadata_namespace: match metadata_namespace.is_empty() {
            true => NAMESPACE_DEFAULT.to_owned(),
            false => metadata_namespace,
        },
    })))
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let PbRateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } =
        common::unpack(d, any)?;
    unsupported!(d; override_option);
    let host = rate_limits::host_option(d, vh_rate_limits);
    let rate_limits = rate_limits::of_filter(d, rate_limits);
    Some(RouteFilterConfig::GlobalRateLimit(Arc::new(RateLimitPerRoute {
        host: host?,
        rate_limits: rate_limits?,
        domain: Some(domain).filter(|domain| !domain.is_empty()),
    })))
}

fn service(d: &mut Decoder, value: RateLimitServiceConfig) -> Option<GrpcService> {
    let RateLimitServiceConfig { grpc_service, transport_api_version } = value;
    if transport_api_version != ApiVersion::V3 as i32 {
        d.refuse_field("transport_api_version", "only V3 is supported");
    }
    d.field("grpc_service", |d| match grpc_service {
        Some(value) => services::grpc_service(d, value),
        None => d.refused("is missing"),
    })
}

/// All, unless said otherwise here or by the runtime.
fn fraction(
    d: &mut Decoder,
    field: &str,
    value: Option<RuntimeFractionalPercent>,
    key: &str,
) -> Option<RuntimeFraction> {
    match value {
        None => Some(RuntimeFraction { key: key.to_owned(), default: Fraction::percent(100) }),
        Some(value) => d.field(field, |d| common::runtime_fraction(d, value)),
    }
}

/// As Envoy: what is below the least is the default.
fn status(
    d: &mut Decoder,
    field: &str,
    value: Option<HttpStatus>,
    least: u16,
    default: u16,
) -> Option<u16> {
    match value.map(|HttpStatus { code }| code) {
        None => Some(default),
        Some(code) => match u16::try_from(code) {
            Ok(100..200) => Some(default),
            Ok(status @ 200..600) => Some(if status < least { default } else { status }),
            _ => d.field(field, |d| {
                d.field("code", |d| d.refused(format!("{code} is not a status")))
            }),
        },
    }
}

fn additions(d: &mut Decoder, values: Vec<HeaderValueOption>) -> Option<Arc<HeaderMutation>> {
    const FIELD: &str = "response_headers_to_add";
    if values.len() > ADDITIONS_MAX {
        return d.field(FIELD, |d| d.refused(format!("has more than {ADDITIONS_MAX}")));
    }
    let add = d.all(FIELD, values, header_mutation::addition)?;
    Some(Arc::new(HeaderMutation { remove: Vec::new(), add }))
}
