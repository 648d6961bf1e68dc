//! Spec: `envoy.extensions.filters.http.rbac.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::rbac::v3::Rbac as PbRbac,
        extensions::filters::http::rbac::v3::{Rbac as PbHttpRbac, RbacPerRoute},
    },
    google::protobuf::Any,
};

use super::super::{
    common,
    rbac::{self, Place},
    reject::{Decoder, unsupported},
};
use crate::model::{
    authz::Rbac,
    filter::{HttpFilter, HttpRbac, RouteFilterConfig},
};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let value = common::unpack(d, any)?;
    rules(d, value).map(HttpFilter::Rbac)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let RbacPerRoute { rbac } = common::unpack(d, any)?;
    let Some(rbac) = rbac else { return Some(RouteFilterConfig::Rbac(HttpRbac::default())) };
    d.field("rbac", |d| rules(d, rbac)).map(RouteFilterConfig::Rbac)
}

fn rules(d: &mut Decoder, value: PbHttpRbac) -> Option<HttpRbac> {
    let PbHttpRbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = value;
    unsupported!(d; matcher, shadow_matcher, track_per_rule_stats);
    let rules = of_field(d, "rules", rules_stat_prefix, rules);
    let shadow = of_field(d, "shadow_rules", shadow_rules_stat_prefix, shadow_rules);
    Some(HttpRbac { rules: rules?, shadow: shadow? })
}

fn of_field(
    d: &mut Decoder,
    field: &str,
    prefix: String,
    value: Option<PbRbac>,
) -> Option<Option<Arc<Rbac>>> {
    let Some(value) = value else { return Some(None) };
    let rbac = d.field(field, |d| rbac::rbac(d, Place::Http, prefix, value))?;
    Some(Some(Arc::new(rbac)))
}
