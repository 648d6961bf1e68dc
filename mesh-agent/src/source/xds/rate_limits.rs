//! `rate_limits` of routes, virtual hosts and filters.
//!
//! Spec: `RateLimit` of `envoy/config/route/v3/route_components.proto`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RateLimit as PbRateLimit,
            rate_limit::{
                Action, HitsAddend, XRateLimitOption,
                action::{
                    ActionSpecifier, GenericKey, HeaderValueMatch, MaskedRemoteAddress,
                    RequestHeaders,
                },
            },
        },
        extensions::common::ratelimit::v3::VhRateLimitsOptions,
    },
    google::protobuf::{BoolValue, UInt32Value},
};

use super::{
    matchers,
    reject::{Decoder, unsupported},
};
use crate::model::rate_limit::{HostRateLimits, RateLimit, RateLimitAction, RouteRateLimits};

/// The latest stage there is.
pub(super) const STAGE_MAX: u32 = 10;
const HITS_MAX: u64 = 1_000_000_000;

/// Those of a route; its virtual host's come later.
pub(super) fn of_route(
    d: &mut Decoder,
    values: Vec<PbRateLimit>,
    include_host: Option<BoolValue>,
) -> Option<RouteRateLimits> {
    let own = all(d, values)?;
    let include_host = include_host.is_some_and(|include| include.value);
    Some(RouteRateLimits { own, include_host, host: Arc::default() })
}

pub(super) fn all(d: &mut Decoder, values: Vec<PbRateLimit>) -> Option<Vec<RateLimit>> {
    d.all("rate_limits", values, rate_limit)
}

/// Those of a filter itself: they are of its stage, and nothing switches them off.
pub(super) fn of_filter(d: &mut Decoder, values: Vec<PbRateLimit>) -> Option<Vec<RateLimit>> {
    d.all("rate_limits", values, |d, value| {
        d.unsupported("stage", &value.stage);
        d.unsupported("disable_key", &value.disable_key);
        rate_limit(d, value)
    })
}

/// What a filter makes of those of virtual hosts.
pub(super) fn host_option(d: &mut Decoder, value: i32) -> Option<HostRateLimits> {
    match VhRateLimitsOptions::try_from(value) {
        Ok(VhRateLimitsOptions::Override) => Some(HostRateLimits::Override),
        Ok(VhRateLimitsOptions::Include) => Some(HostRateLimits::Include),
        Ok(VhRateLimitsOptions::Ignore) => Some(HostRateLimits::Ignore),
        Err(_) => d.field("vh_rate_limits", |d| d.refused(format!("{value} is unknown"))),
    }
}

pub(super) fn stage(d: &mut Decoder, value: u32) -> Option<u32> {
    if value > STAGE_MAX {
        return d.field("stage", |d| d.refused(format!("{value} is not within 0 to {STAGE_MAX}")));
    }
    Some(value)
}

fn rate_limit(d: &mut Decoder, value: PbRateLimit) -> Option<RateLimit> {
    let PbRateLimit {
        stage,
        disable_key,
        actions,
        limit,
        hits_addend,
        apply_on_stream_done,
        x_ratelimit_option,
    } = value;
    unsupported!(d; limit, apply_on_stream_done);
    let stage = self::stage(d, stage.map_or(0, |stage| stage.value));
    if actions.is_empty() {
        d.refuse_field("actions", "is empty");
    }
    let actions = d.all("actions", actions, action);
    let hits = match hits_addend {
        None => Some(None),
        Some(value) => d.field("hits_addend", |d| hits(d, value)),
    };
    let x_ratelimit = match XRateLimitOption::try_from(x_ratelimit_option) {
        Ok(XRateLimitOption::Unspecified) => Some(None),
        Ok(XRateLimitOption::Off) => Some(Some(false)),
        Ok(XRateLimitOption::DraftVersion03) => Some(Some(true)),
        Err(_) => {
            d.field("x_ratelimit_option", |d| d.refused(format!("{x_ratelimit_option} is unknown")))
        }
    };
    Some(RateLimit {
        stage: stage?,
        disable_key,
        actions: actions?,
        hits: hits?,
        x_ratelimit: x_ratelimit?,
    })
}

fn hits(d: &mut Decoder, value: HitsAddend) -> Option<Option<u64>> {
    let HitsAddend { number, format, is_negative_hits } = value;
    unsupported!(d; format, is_negative_hits);
    match number.map(|number| number.value) {
        Some(hits) if hits > HITS_MAX => {
            d.field("number", |d| d.refused(format!("{hits} is more than {HITS_MAX}")))
        }
        hits => Some(hits),
    }
}

fn action(d: &mut Decoder, value: Action) -> Option<RateLimitAction> {
    let Action { action_specifier } = value;
    #[expect(deprecated, reason = "a deprecated action that is set is refused too")]
    match action_specifier {
        Some(ActionSpecifier::DestinationCluster(_)) => Some(RateLimitAction::DestinationCluster),
        Some(ActionSpecifier::RemoteAddress(_)) => Some(RateLimitAction::RemoteAddress),
        Some(ActionSpecifier::RequestHeaders(value)) => {
            d.field("request_headers", |d| request_header(d, value))
        }
        Some(ActionSpecifier::GenericKey(value)) => {
            let GenericKey { descriptor_value, default_value, descriptor_key } = value;
            d.field("generic_key", |d| {
                unsupported!(d; default_value);
                let value = literal(d, descriptor_value)?;
                Some(RateLimitAction::GenericKey { key: or(descriptor_key, "generic_key"), value })
            })
        }
        Some(ActionSpecifier::HeaderValueMatch(value)) => {
            d.field("header_value_match", |d| header_value_match(d, value))
        }
        Some(ActionSpecifier::MaskedRemoteAddress(value)) => {
            let MaskedRemoteAddress { v4_prefix_mask_len, v6_prefix_mask_len } = value;
            d.field("masked_remote_address", |d| {
                let v4 = mask(d, "v4_prefix_mask_len", v4_prefix_mask_len, 32);
                let v6 = mask(d, "v6_prefix_mask_len", v6_prefix_mask_len, 128);
                Some(RateLimitAction::MaskedRemoteAddress { v4: v4?, v6: v6? })
            })
        }
        Some(ActionSpecifier::SourceCluster(_)) => d.not_supported("source_cluster"),
        Some(ActionSpecifier::QueryParameters(_)) => d.not_supported("query_parameters"),
        Some(ActionSpecifier::DynamicMetadata(_)) => d.not_supported("dynamic_metadata"),
        Some(ActionSpecifier::Metadata(_)) => d.not_supported("metadata"),
        Some(ActionSpecifier::Extension(_)) => d.not_supported("extension"),
        Some(ActionSpecifier::QueryParameterValueMatch(_)) => {
            d.not_supported("query_parameter_value_match")
        }
        Some(ActionSpecifier::RemoteAddressMatch(_)) => d.not_supported("remote_address_match"),
        None => d.refused("says nothing"),
    }
}

fn request_header(d: &mut Decoder, value: RequestHeaders) -> Option<RateLimitAction> {
    let RequestHeaders { header_name, descriptor_key, skip_if_absent } = value;
    let name = d.field("header_name", |d| matchers::header_name(d, &header_name));
    if descriptor_key.is_empty() {
        return d.field("descriptor_key", |d| d.refused("is missing"));
    }
    Some(RateLimitAction::RequestHeader { name: name?, key: descriptor_key, skip_if_absent })
}

fn header_value_match(d: &mut Decoder, value: HeaderValueMatch) -> Option<RateLimitAction> {
    let HeaderValueMatch { descriptor_value, default_value, descriptor_key, expect_match, headers } =
        value;
    unsupported!(d; default_value);
    let value = literal(d, descriptor_value);
    if headers.is_empty() {
        d.refuse_field("headers", "is empty");
    }
    let headers = d.all("headers", headers, matchers::header);
    Some(RateLimitAction::HeaderValueMatch {
        key: or(descriptor_key, "header_match"),
        value: value?,
        expect: expect_match.is_none_or(|expect| expect.value),
        headers: headers?,
    })
}

/// A value without command operators.
fn literal(d: &mut Decoder, value: String) -> Option<String> {
    d.field("descriptor_value", |d| match value.as_str() {
        "" => d.refused("is missing"),
        text if text.contains('%') => d.refused("command operators are not supported"),
        _ => Some(value),
    })
}

fn or(said: String, default: &str) -> String {
    if said.is_empty() { default.to_owned() } else { said }
}

fn mask(d: &mut Decoder, field: &str, value: Option<UInt32Value>, max: u8) -> Option<u8> {
    let value = value.map_or(max.into(), |value| value.value);
    match u8::try_from(value) {
        Ok(length) if length <= max => Some(length),
        _ => d.field(field, |d| d.refused(format!("{value} is more than {max}"))),
    }
}
