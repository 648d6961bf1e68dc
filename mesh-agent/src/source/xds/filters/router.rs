//! Spec: `envoy.extensions.filters.http.router.v3`.

use envoy_types::pb::{
    envoy::extensions::filters::http::router::v3::Router, google::protobuf::Any,
};

use super::super::{
    common,
    reject::{Decoder, unsupported},
};

/// There is nothing to take from it.
#[expect(deprecated, reason = "a deprecated field that is set is refused too")]
pub(super) fn check(d: &mut Decoder, any: &Any) -> Option<()> {
    let Router {
        // Statistics.
        dynamic_stats: _,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = common::unpack(d, any)?;
    unsupported!(
        d;
        start_child_span, upstream_log, upstream_log_options,
        suppress_envoy_headers, strict_check_headers, respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats, upstream_http_filters,
        reject_connect_request_early_data,
    );
    Some(())
}
