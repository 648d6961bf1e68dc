//! What a virtual host or route says of requests that failed.
//!
//! Spec: `envoy.config.route.v3.RetryPolicy`,
//! `envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RetryPolicy as PbRetryPolicy,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeader as PbResetHeader, ResetHeaderFormat,
                RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType,
            },
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
    google::protobuf::{Any, UInt32Value, UInt64Value},
};

use super::super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::{
    retry::{
        Attempts, BackOff, RateLimitedBackOff, ResetFormat, ResetHeader, RetryOn, RetryPolicy,
    },
    route::{Route, RouteAction},
};

const NUM_RETRIES_DEFAULT: u32 = 1;

/// Envoy's default for `rate_limited_retry_back_off.max_interval`.
const RATE_LIMITED_MAX_DEFAULT: Duration = Duration::from_secs(300);

/// More attempts to find another endpoint than this add nothing but time.
const HOST_SELECTION_MAX: i64 = 64;

/// The policy, if there is one. The outer `None` says it was refused.
#[expect(clippy::option_option, reason = "refused is not absent")]
pub(super) fn policy(
    d: &mut Decoder,
    retry_policy: Option<PbRetryPolicy>,
    retry_policy_typed_config: Option<Any>,
) -> Option<Option<Arc<RetryPolicy>>> {
    unsupported!(d; retry_policy_typed_config);
    match retry_policy {
        None => Some(None),
        Some(value) => {
            d.field("retry_policy", |d| decode(d, value)).map(|policy| Some(Arc::new(policy)))
        }
    }
}

/// How much of a request's body is kept. The outer `None` says it was refused.
#[expect(clippy::option_option, reason = "refused is not absent")]
pub(super) fn buffer_limit(
    d: &mut Decoder,
    per_request_buffer_limit_bytes: Option<UInt32Value>,
    request_body_buffer_limit: Option<UInt64Value>,
) -> Option<Option<u64>> {
    if per_request_buffer_limit_bytes.is_some() && request_body_buffer_limit.is_some() {
        let reason = "means nothing beside request_body_buffer_limit";
        return d.field("per_request_buffer_limit_bytes", |d| d.refused(reason));
    }
    let per_request = per_request_buffer_limit_bytes.map(|limit| u64::from(limit.value));
    Some(request_body_buffer_limit.map(|limit| limit.value).or(per_request))
}

/// A virtual host's word on routes that say nothing themselves; counting is its own.
pub(super) fn inherit(routes: &mut [Route], host: &Attempts) {
    for route in routes {
        let RouteAction::Forward(action) = &mut route.action else { continue };
        let own = std::mem::take(&mut action.attempts);
        action.attempts = Attempts {
            retry: own.retry.or_else(|| host.retry.clone()),
            buffer_max_bytes: own.buffer_max_bytes.or(host.buffer_max_bytes),
            ..host.clone()
        };
    }
}

fn decode(d: &mut Decoder, value: PbRetryPolicy) -> Option<RetryPolicy> {
    let PbRetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    unsupported!(d; retry_priority, retry_options_predicates, refresh_cluster_on_retry);
    let retry_on = d.field("retry_on", |d| conditions(d, &retry_on));
    let per_try_timeout = common::timeout(d, "per_try_timeout", per_try_timeout, None);
    let per_try_idle_timeout =
        common::timeout(d, "per_try_idle_timeout", per_try_idle_timeout, None);
    let predicates = d.all("retry_host_predicate", retry_host_predicate, host_predicate);
    let host_selection_attempts = match host_selection_retry_max_attempts {
        0 => Some(1),
        attempts @ 1..=HOST_SELECTION_MAX => u32::try_from(attempts).ok(),
        _ => d.field("host_selection_retry_max_attempts", |d| {
            d.refused(format!("must be between 1 and {HOST_SELECTION_MAX}"))
        }),
    };
    let retriable_status_codes =
        d.all("retriable_status_codes", retriable_status_codes, |d, code| {
            match u16::try_from(code) {
                Ok(code @ 100..=599) => Some(code),
                _ => d.refused(format!("{code} is not a status code")),
            }
        });
    let back_off = match retry_back_off {
        None => Some(BackOff::default()),
        Some(value) => d.field("retry_back_off", |d| back_off(d, value)),
    };
    let rate_limited_back_off = match rate_limited_retry_back_off {
        None => Some(None),
        Some(value) => d.field("rate_limited_retry_back_off", |d| rate_limited(d, value)).map(Some),
    };
    let retriable_headers = d.all("retriable_headers", retriable_headers, matchers::header);
    let retriable_request_headers =
        d.all("retriable_request_headers", retriable_request_headers, matchers::header);
    Some(RetryPolicy {
        retry_on: retry_on?,
        num_retries: num_retries.map_or(NUM_RETRIES_DEFAULT, |retries| retries.value),
        per_try_timeout: per_try_timeout?,
        per_try_idle_timeout: per_try_idle_timeout?,
        back_off: back_off?,
        rate_limited_back_off: rate_limited_back_off?,
        retriable_status_codes: retriable_status_codes?,
        retriable_headers: retriable_headers?,
        retriable_request_headers: retriable_request_headers?,
        avoid_previous_hosts: !predicates?.is_empty(),
        host_selection_attempts: host_selection_attempts?,
    })
}

/// Envoy ignores names it doesn't know: a typing error would be a policy that never acts.
fn conditions(d: &mut Decoder, text: &str) -> Option<RetryOn> {
    let mut conditions = Some(RetryOn::default());
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let condition = match (RetryOn::named(name), name) {
            (Some(condition), _) => Some(condition),
            (None, "http3-post-connect-failure") => {
                d.refused("`http3-post-connect-failure`: HTTP/3 is not supported")
            }
            (None, _) => d.refused(format!("`{name}` is unknown")),
        };
        conditions = conditions.zip(condition).map(|(all, one)| all.and(one));
    }
    conditions
}

fn host_predicate(d: &mut Decoder, value: RetryHostPredicate) -> Option<PreviousHostsPredicate> {
    let RetryHostPredicate { name, config_type } = value;
    match config_type {
        Some(ConfigType::TypedConfig(any)) if common::is::<PreviousHostsPredicate>(&any) => {
            d.field("typed_config", |d| common::unpack(d, &any))
        }
        Some(ConfigType::TypedConfig(any)) => {
            common::refuse_extension(d, &name, &common::type_name(&any));
            None
        }
        None => {
            common::refuse_extension(d, &name, "");
            None
        }
    }
}

fn back_off(d: &mut Decoder, value: RetryBackOff) -> Option<BackOff> {
    let RetryBackOff { base_interval, max_interval } = value;
    let base = match base_interval {
        Some(value) => interval(d, "base_interval", value),
        None => d.field("base_interval", |d| d.refused("is missing")),
    }?;
    let max = match max_interval {
        None => base.saturating_mul(10),
        Some(value) => interval(d, "max_interval", value)?,
    };
    if max < base {
        return d.field("max_interval", |d| d.refused("is less than base_interval"));
    }
    Some(BackOff { base, max })
}

/// More than zero; at least a millisecond, as Envoy counts.
fn interval(
    d: &mut Decoder,
    field: &str,
    value: envoy_types::pb::google::protobuf::Duration,
) -> Option<Duration> {
    match common::duration(d, field, value)? {
        Duration::ZERO => d.field(field, |d| d.refused("must be more than zero")),
        interval => Some(interval.max(Duration::from_millis(1))),
    }
}

fn rate_limited(d: &mut Decoder, value: RateLimitedRetryBackOff) -> Option<RateLimitedBackOff> {
    let RateLimitedRetryBackOff { reset_headers, max_interval } = value;
    if reset_headers.is_empty() {
        d.refuse_field("reset_headers", "is empty");
    }
    let headers = d.all("reset_headers", reset_headers, |d, value| {
        let PbResetHeader { name, format } = value;
        let name = d.field("name", |d| matchers::header_name(d, &name));
        let format = match ResetHeaderFormat::try_from(format) {
            Ok(ResetHeaderFormat::Seconds) => Some(ResetFormat::Seconds),
            Ok(ResetHeaderFormat::UnixTimestamp) => Some(ResetFormat::UnixTimestamp),
            Err(_) => d.field("format", |d| d.refused(format!("{format} is unknown"))),
        };
        Some(ResetHeader { name: name?, format: format? })
    });
    let max = match max_interval {
        None => Some(RATE_LIMITED_MAX_DEFAULT),
        Some(value) => interval(d, "max_interval", value),
    };
    Some(RateLimitedBackOff { headers: headers?, max: max? })
}
