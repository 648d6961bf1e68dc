//! What a virtual host or route says of requests that failed.
//!
//! Spec: `envoy.config.route.v3.RetryPolicy`.

use envoy_types::pb::{envoy::config::route::v3::RetryPolicy, google::protobuf::Any};

use super::super::reject::{Decoder, unsupported};

pub(super) fn policy(
    d: &mut Decoder,
    retry_policy: Option<RetryPolicy>,
    retry_policy_typed_config: Option<Any>,
) {
    unsupported!(d; retry_policy, retry_policy_typed_config);
}
