//! Network filters before the one that a chain ends in.
//!
//! Spec: `envoy/extensions/filters/network/{rbac,connection_limit,local_ratelimit,sni_cluster}/v3`.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::rbac::v3::Rbac as PbRbac,
    extensions::filters::network::{
        connection_limit::v3::ConnectionLimit as PbConnectionLimit,
        local_ratelimit::v3::LocalRateLimit as PbLocalRateLimit, rbac::v3::Rbac as PbNetworkRbac,
    },
};

use crate::{
    model::{
        authz::Rbac,
        listener::{ConnectionLimit, ConnectionRateLimit, NetworkFilter, NetworkRbac},
    },
    source::xds::{
        common,
        filters::token_bucket,
        rbac::{self, Place},
        reject::{Decoder, unsupported},
    },
};

/// A connection over the limit is held for so long at most: it takes up a socket.
const DELAY_MAX: Duration = Duration::from_secs(60);

/// `None` where it has no rules at all: Envoy enforces nothing, and so it is left out.
pub(super) fn rbac(d: &mut Decoder, value: PbNetworkRbac) -> Option<Option<NetworkFilter>> {
    let PbNetworkRbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = value;
    unsupported!(d; matcher, shadow_matcher, enforcement_type, delay_deny);
    let of = |d: &mut Decoder, field: &str, prefix: String, rules: Option<PbRbac>| match rules {
        None => Some(None),
        Some(rules) => {
            let rbac = d.field(field, |d| rbac::rbac(d, Place::Network, prefix, rules))?;
            Some(Some(Arc::<Rbac>::new(rbac)))
        }
    };
    let rules = of(d, "rules", stat_prefix, rules);
    let shadow = of(d, "shadow_rules", shadow_rules_stat_prefix, shadow_rules);
    let rbac = NetworkRbac { rules: rules?, shadow: shadow? };
    let any = rbac.rules.is_some() || rbac.shadow.is_some();
    Some(any.then_some(NetworkFilter::Rbac(rbac)))
}

pub(super) fn connection_limit(d: &mut Decoder, value: PbConnectionLimit) -> Option<NetworkFilter> {
    let PbConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled } = value;
    if stat_prefix.is_empty() {
        d.refuse_field("stat_prefix", "is missing");
    }
    let max = match max_connections {
        None => d.field("max_connections", |d| d.refused("is missing")),
        Some(max) if max.value == 0 => {
            d.field("max_connections", |d| d.refused("must be above zero"))
        }
        Some(max) => Some(max.value),
    };
    let delay = match delay {
        None => Some(None),
        Some(value) => match common::duration(d, "delay", value)? {
            delay if delay > DELAY_MAX => {
                d.field("delay", |d| d.refused(format!("is more than {DELAY_MAX:?}")))
            }
            delay => Some(Some(delay).filter(|delay| !delay.is_zero())),
        },
    };
    let enabled = common::feature_flag(runtime_enabled);
    let limit = ConnectionLimit { max_connections: max?, delay: delay?, enabled };
    Some(NetworkFilter::ConnectionLimit(Arc::new(limit)))
}

pub(super) fn local_rate_limit(d: &mut Decoder, value: PbLocalRateLimit) -> Option<NetworkFilter> {
    let PbLocalRateLimit { stat_prefix, token_bucket: bucket, runtime_enabled, share_key } = value;
    if stat_prefix.is_empty() {
        d.refuse_field("stat_prefix", "is missing");
    }
    let bucket = d.field("token_bucket", |d| match bucket {
        None => d.refused("is missing"),
        Some(value) if value.max_tokens == 0 => {
            d.field("max_tokens", |d| d.refused("must be above zero"))
        }
        Some(value) => token_bucket(d, value),
    });
    let enabled = common::feature_flag(runtime_enabled);
    let limit = ConnectionRateLimit { bucket: bucket?, share_key: share_key.into(), enabled };
    Some(NetworkFilter::LocalRateLimit(Arc::new(limit)))
}
