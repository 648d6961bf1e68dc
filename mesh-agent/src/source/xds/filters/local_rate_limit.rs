//! Spec: `envoy.extensions.filters.http.local_ratelimit.v3`.

use std::{collections::HashSet, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{HeaderValueOption, RuntimeFractionalPercent},
        extensions::{
            common::ratelimit::v3::{
                LocalRateLimitDescriptor, XRateLimitHeadersRfcVersion, rate_limit_descriptor::Entry,
            },
            filters::http::local_ratelimit::v3::LocalRateLimit as PbLocalRateLimit,
        },
        r#type::v3::{HttpStatus, TokenBucket as PbTokenBucket},
    },
    google::protobuf::Any,
};

use super::super::{
    common, header_mutation, rate_limits,
    reject::{Decoder, unsupported},
};
use crate::model::{
    filter::{HttpFilter, LocalDescriptor, LocalRateLimit, RouteFilterConfig, TokenBucket},
    header_mutation::HeaderMutation,
    runtime::RuntimeFraction,
};

const STATUS_DEFAULT: u16 = 429;
const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);
const ADDITIONS_MAX: usize = 10;
const MAX_DYNAMIC_DEFAULT: u32 = 20;
/// Each is a bucket that is kept.
const MAX_DYNAMIC_MAX: u32 = 100_000;

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    limit(d, any).map(HttpFilter::LocalRateLimit)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let limit = limit(d, any)?;
    if limit.bucket.is_none() {
        return d.field("token_bucket", |d| d.refused("is missing: routes must have one"));
    }
    Some(RouteFilterConfig::LocalRateLimit(limit))
}

fn limit(d: &mut Decoder, any: &Any) -> Option<Arc<LocalRateLimit>> {
    let PbLocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
        enable_retry_after_header,
    } = common::unpack(d, any)?;
    unsupported!(d; local_cluster_rate_limit, enable_retry_after_header);
    if stat_prefix.is_empty() {
        d.refuse_field("stat_prefix", "is missing");
    }
    let status = self::status(d, status);
    let bucket = match token_bucket {
        None => Some(None),
        Some(value) => d.field("token_bucket", |d| self::bucket(d, value)).map(Some),
    };
    let enabled = fraction(d, "filter_enabled", filter_enabled);
    let enforced = fraction(d, "filter_enforced", filter_enforced);
    let request = additions(
        d,
        "request_headers_to_add_when_not_enforced",
        request_headers_to_add_when_not_enforced,
    );
    let response = additions(d, "response_headers_to_add", response_headers_to_add);
    let mut seen = HashSet::new();
    let descriptors = d.all("descriptors", descriptors, |d, value| {
        let descriptor = descriptor(d, value)?;
        if !seen.insert(descriptor.entries.clone()) {
            return d.refused("is given twice");
        }
        Some(descriptor)
    });
    let stage = rate_limits::stage(d, stage);
    let host = rate_limits::host_option(d, vh_rate_limits);
    let rate_limits = rate_limits::of_filter(d, rate_limits);
    let x_ratelimit = match XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
        Ok(version) => Some(version == XRateLimitHeadersRfcVersion::DraftVersion03),
        Err(_) => d.field("enable_x_ratelimit_headers", |d| {
            d.refused(format!("{enable_x_ratelimit_headers} is unknown"))
        }),
    };
    let max_dynamic = match max_dynamic_descriptors.map_or(MAX_DYNAMIC_DEFAULT, |max| max.value) {
        max @ 1..=MAX_DYNAMIC_MAX => usize::try_from(max).ok(),
        max => {
            let reason = format!("{max} is not within 1 to {MAX_DYNAMIC_MAX}");
            d.field("max_dynamic_descriptors", |d| d.refused(reason))
        }
    };
    Some(Arc::new(LocalRateLimit {
        status: status?,
        resource_exhausted: rate_limited_as_resource_exhausted,
        bucket: bucket?,
        enabled: enabled?,
        enforced: enforced?,
        request: request?,
        response: response?,
        descriptors: descriptors?,
        rate_limits: rate_limits?,
        stage: stage?,
        host: host?,
        always_consume: always_consume_default_token_bucket.is_none_or(|always| always.value),
        max_dynamic: max_dynamic?,
        per_connection: local_rate_limit_per_downstream_connection,
        x_ratelimit: x_ratelimit?,
    }))
}

/// As Envoy: what is no error is its own.
fn status(d: &mut Decoder, value: Option<HttpStatus>) -> Option<u16> {
    match value.map(|HttpStatus { code }| code) {
        None => Some(STATUS_DEFAULT),
        Some(code) => match u16::try_from(code) {
            Ok(100..400) => Some(STATUS_DEFAULT),
            Ok(status @ 400..600) => Some(status),
            _ => d.field("status", |d| {
                d.field("code", |d| d.refused(format!("{code} is not a status")))
            }),
        },
    }
}

pub(in crate::source::xds) fn bucket(d: &mut Decoder, value: PbTokenBucket) -> Option<TokenBucket> {
    let PbTokenBucket { max_tokens, tokens_per_fill, fill_interval } = value;
    let tokens_per_fill = match tokens_per_fill.map_or(1, |tokens| tokens.value) {
        0 => d.field("tokens_per_fill", |d| d.refused("must be above zero")),
        tokens => Some(tokens),
    };
    let fill_interval = match fill_interval {
        None => return d.field("fill_interval", |d| d.refused("is missing")),
        Some(value) => common::duration(d, "fill_interval", value)?,
    };
    if fill_interval.is_zero() || (max_tokens > 0 && fill_interval < FILL_INTERVAL_MIN) {
        return d.field("fill_interval", |d| d.refused("is less than 50 ms"));
    }
    Some(TokenBucket { max_tokens, tokens_per_fill: tokens_per_fill?, fill_interval })
}

fn fraction(
    d: &mut Decoder,
    field: &str,
    value: Option<RuntimeFractionalPercent>,
) -> Option<Option<RuntimeFraction>> {
    match value {
        None => Some(None),
        Some(value) => d.field(field, |d| common::runtime_fraction(d, value)).map(Some),
    }
}

fn additions(
    d: &mut Decoder,
    field: &str,
    values: Vec<HeaderValueOption>,
) -> Option<Arc<HeaderMutation>> {
    if values.len() > ADDITIONS_MAX {
        return d.field(field, |d| d.refused(format!("has more than {ADDITIONS_MAX}")));
    }
    let add = d.all(field, values, header_mutation::addition)?;
    Some(Arc::new(HeaderMutation { remove: Vec::new(), add }))
}

fn descriptor(d: &mut Decoder, value: LocalRateLimitDescriptor) -> Option<LocalDescriptor> {
    let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = value;
    unsupported!(d; shadow_mode);
    if entries.is_empty() {
        d.refuse_field("entries", "is empty");
    }
    let entries = d.all("entries", entries, |d, Entry { key, value }| match key.is_empty() {
        true => d.field("key", |d| d.refused("is missing")),
        false => Some((key, value)),
    });
    let bucket = d.field("token_bucket", |d| match token_bucket {
        None => d.refused("is missing"),
        Some(value) => bucket(d, value),
    });
    Some(LocalDescriptor { entries: entries?, bucket: bucket? })
}
