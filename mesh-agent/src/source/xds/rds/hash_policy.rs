//! What of a request says which endpoint it goes to.
//!
//! Spec: `envoy.config.route.v3.RouteAction.HashPolicy`.

use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy as PbHashPolicy,
    hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    },
};

use super::super::{
    cookies, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::hash_policy::{HashInput, HashPolicy};

pub(super) fn policies(d: &mut Decoder, value: Vec<PbHashPolicy>) -> Option<Vec<HashPolicy>> {
    d.all("hash_policy", value, |d, value| {
        let PbHashPolicy { terminal, policy_specifier } = value;
        let input = match policy_specifier {
            Some(PolicySpecifier::Header(value)) => d.field("header", |d| {
                let Header { header_name, regex_rewrite } = value;
                unsupported!(d; regex_rewrite);
                d.field("header_name", |d| matchers::header_name(d, &header_name))
                    .map(HashInput::Header)
            }),
            Some(PolicySpecifier::Cookie(value)) => d.field("cookie", |d| {
                let Cookie { name, ttl, path, attributes } = value;
                let attributes =
                    attributes.into_iter().map(|CookieAttribute { name, value }| (name, value));
                match ttl {
                    // Nobody is given one: as with Envoy, the rest means nothing.
                    None => named(d, name).map(HashInput::Cookie),
                    Some(_) => cookies::own(d, name, ttl, path, attributes.collect())
                        .map(|cookie| HashInput::OwnCookie(Box::new(cookie))),
                }
            }),
            Some(PolicySpecifier::QueryParameter(value)) => d.field("query_parameter", |d| {
                let QueryParameter { name } = value;
                named(d, name).map(HashInput::QueryParameter)
            }),
            Some(PolicySpecifier::ConnectionProperties(value)) => {
                let ConnectionProperties { source_ip } = value;
                d.field("connection_properties", |d| match source_ip {
                    true => Some(HashInput::SourceIp),
                    false => d.refused("names no property"),
                })
            }
            Some(PolicySpecifier::FilterState(_)) => d.not_supported("filter_state"),
            None => d.refused("says nothing to hash"),
        };
        Some(HashPolicy { input: input?, terminal })
    })
}

fn named(d: &mut Decoder, name: String) -> Option<String> {
    if name.is_empty() { d.field("name", |d| d.refused("is missing")) } else { Some(name) }
}
