//! Spec: `envoy.extensions.filters.http.rbac.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::extensions::filters::http::rbac::v3::{Rbac as PbHttpRbac, RbacPerRoute},
    google::protobuf::Any,
};

use super::super::{
    common,
    rbac::{self, Place},
    reject::{Decoder, unsupported},
};
use crate::model::{
    authz::Rbac,
    filter::{HttpFilter, RouteFilterConfig},
};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let value = common::unpack(d, any)?;
    rules(d, value).map(HttpFilter::Rbac)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let RbacPerRoute { rbac } = common::unpack(d, any)?;
    let Some(rbac) = rbac else { return Some(RouteFilterConfig::Rbac(None)) };
    d.field("rbac", |d| rules(d, rbac)).map(RouteFilterConfig::Rbac)
}

/// The inner `None`: without rules it enforces nothing.
fn rules(d: &mut Decoder, value: PbHttpRbac) -> Option<Option<Arc<Rbac>>> {
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
    Some(Some(Arc::new(rbac)))
}
