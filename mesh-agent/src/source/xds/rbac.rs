//! Authorization rules: the language both RBAC filters share.
//!
//! Spec: `envoy/config/rbac/v3/rbac.proto`.

use envoy_types::pb::envoy::{
    config::rbac::v3::{
        MetadataSource, Permission as PbPermission, Policy, Principal as PbPrincipal,
        Rbac as PbRbac, SourcedMetadata,
        permission::Rule,
        principal::{Authenticated, Identifier},
        rbac::Action,
    },
    r#type::v3::Int32Range,
};

use super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::model::{
    authz::{Permission, Principal, Rbac, RbacAction, RbacPolicy},
    metadata::MetadataMatcher,
};

/// Which filter the rules stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// `envoy.filters.network.rbac`: there is no request to look at. Envoy lets rules
    /// about headers and paths in and never matches them, which turns a DENY policy
    /// into none at all; here they are refused.
    Network,
    /// `envoy.filters.http.rbac`
    Http,
}

pub(super) fn rbac(
    d: &mut Decoder,
    place: Place,
    stat_prefix: String,
    value: PbRbac,
) -> Option<Rbac> {
    let PbRbac { action, policies, audit_logging_options } = value;
    unsupported!(d; audit_logging_options);
    let action = match Action::try_from(action) {
        Ok(Action::Allow) => Some(RbacAction::Allow),
        Ok(Action::Deny) => Some(RbacAction::Deny),
        Ok(Action::Log) => Some(RbacAction::Log),
        Err(_) => d.field("action", |d| d.refused(format!("{action} is unknown"))),
    };
    let mut policies: Vec<_> = policies.into_iter().collect();
    policies.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut whole = Some(Vec::new());
    for (name, value) in policies {
        let decoded = d.item("policies", &name, |d| policy(d, place, &name, value));
        match (&mut whole, decoded) {
            (Some(list), Some(policy)) => list.push(policy),
            _ => whole = None,
        }
    }
    Some(Rbac { stat_prefix, action: action?, policies: whole? })
}

fn policy(d: &mut Decoder, place: Place, name: &str, value: Policy) -> Option<RbacPolicy> {
    let Policy { permissions, principals, condition, checked_condition, cel_config } = value;
    unsupported!(d; condition, checked_condition, cel_config);
    let permissions = some(d, "permissions", permissions, |d, p| permission(d, place, p));
    let principals = some(d, "principals", principals, |d, p| principal(d, place, p));
    Some(RbacPolicy { name: name.into(), permissions: permissions?, principals: principals? })
}

/// At least one of them, as Envoy wants: an empty list reads as "all" to one operator
/// and as "none" to the next.
fn some<P, T>(
    d: &mut Decoder,
    field: &str,
    items: Vec<P>,
    decode: impl FnMut(&mut Decoder, P) -> Option<T>,
) -> Option<Vec<T>> {
    if items.is_empty() {
        return d.field(field, |d| d.refused("is empty; say `any: true` for everything"));
    }
    d.all(field, items, decode)
}

fn is_true(d: &mut Decoder, any: bool) -> Option<()> {
    match any {
        true => Some(()),
        false => d.field("any", |d| d.refused("can only be true")),
    }
}

/// Goes into an HTTP-only matcher, or refuses it.
fn http_only<T>(
    d: &mut Decoder,
    place: Place,
    field: &str,
    decode: impl FnOnce(&mut Decoder) -> Option<T>,
) -> Option<T> {
    d.field(field, |d| match place {
        Place::Http => decode(d),
        Place::Network => d.refused(
            "is not supported in envoy.filters.network.rbac, where it never matches; \
             use envoy.filters.http.rbac",
        ),
    })
}

fn permission(d: &mut Decoder, place: Place, value: PbPermission) -> Option<Permission> {
    let Some(rule) = value.rule else { return d.refused("has no rule") };
    #[expect(deprecated, reason = "a deprecated rule that is set is read too")]
    match rule {
        Rule::Any(any) => is_true(d, any).map(|()| Permission::Any),
        Rule::AndRules(set) => d.field("and_rules", |d| {
            some(d, "rules", set.rules, |d, p| permission(d, place, p)).map(Permission::And)
        }),
        Rule::OrRules(set) => d.field("or_rules", |d| {
            some(d, "rules", set.rules, |d, p| permission(d, place, p)).map(Permission::Or)
        }),
        Rule::NotRule(rule) => d.field("not_rule", |d| {
            permission(d, place, *rule).map(|rule| Permission::Not(Box::new(rule)))
        }),
        Rule::Header(h) => {
            http_only(d, place, "header", |d| matchers::header(d, h)).map(Permission::Header)
        }
        Rule::UrlPath(p) => {
            http_only(d, place, "url_path", |d| matchers::path(d, p)).map(Permission::UrlPath)
        }
        Rule::DestinationIp(range) => {
            d.field("destination_ip", |d| common::cidr(d, range)).map(Permission::DestinationIp)
        }
        Rule::DestinationPort(port) => {
            d.field("destination_port", |d| common::port(d, port)).map(Permission::DestinationPort)
        }
        Rule::DestinationPortRange(range) => {
            d.field("destination_port_range", |d| port_range(d, range))
        }
        Rule::Metadata(m) => {
            http_only(d, place, "metadata", |d| matchers::metadata(d, m)).map(Permission::Metadata)
        }
        Rule::SourcedMetadata(m) => {
            http_only(d, place, "sourced_metadata", |d| dynamic(d, m)).map(Permission::Metadata)
        }
        Rule::RequestedServerName(_) => d.not_supported("requested_server_name"),
        Rule::Matcher(_) => d.not_supported("matcher"),
        Rule::UriTemplate(_) => d.not_supported("uri_template"),
    }
}

/// Metadata that filters have noted, as opposed to a route's own.
fn dynamic(d: &mut Decoder, value: SourcedMetadata) -> Option<MetadataMatcher> {
    let SourcedMetadata { metadata_matcher, metadata_source } = value;
    if metadata_source != MetadataSource::Dynamic as i32 {
        d.refuse_field("metadata_source", "only DYNAMIC is supported");
    }
    d.field("metadata_matcher", |d| match metadata_matcher {
        Some(matcher) => matchers::metadata(d, matcher),
        None => d.refused("is missing"),
    })
}

fn port_range(d: &mut Decoder, range: Int32Range) -> Option<Permission> {
    let Int32Range { start, end } = range;
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) if start < end && end <= 65536 => {
            Some(Permission::DestinationPortRange { start, end })
        }
        _ => d.refused(format!("{start} up to but not {end} is not a range of ports")),
    }
}

fn principal(d: &mut Decoder, place: Place, value: PbPrincipal) -> Option<Principal> {
    let Some(identifier) = value.identifier else { return d.refused("has no identifier") };
    #[expect(deprecated, reason = "source_ip and metadata are still sent")]
    match identifier {
        Identifier::Any(any) => is_true(d, any).map(|()| Principal::Any),
        Identifier::AndIds(set) => d.field("and_ids", |d| {
            some(d, "ids", set.ids, |d, p| principal(d, place, p)).map(Principal::And)
        }),
        Identifier::OrIds(set) => d.field("or_ids", |d| {
            some(d, "ids", set.ids, |d, p| principal(d, place, p)).map(Principal::Or)
        }),
        Identifier::NotId(id) => {
            d.field("not_id", |d| principal(d, place, *id).map(|id| Principal::Not(Box::new(id))))
        }
        Identifier::Authenticated(Authenticated { principal_name }) => {
            d.field("authenticated", |d| match principal_name {
                None => Some(Principal::Authenticated(None)),
                Some(name) => d
                    .field("principal_name", |d| matchers::string(d, name))
                    .map(|name| Principal::Authenticated(Some(name))),
            })
        }
        Identifier::SourceIp(range) => {
            d.field("source_ip", |d| common::cidr(d, range)).map(Principal::DirectRemoteIp)
        }
        Identifier::DirectRemoteIp(range) => {
            d.field("direct_remote_ip", |d| common::cidr(d, range)).map(Principal::DirectRemoteIp)
        }
        Identifier::RemoteIp(range) => {
            d.field("remote_ip", |d| common::cidr(d, range)).map(Principal::RemoteIp)
        }
        Identifier::Header(h) => {
            http_only(d, place, "header", |d| matchers::header(d, h)).map(Principal::Header)
        }
        Identifier::UrlPath(p) => {
            http_only(d, place, "url_path", |d| matchers::path(d, p)).map(Principal::UrlPath)
        }
        Identifier::Metadata(m) => {
            http_only(d, place, "metadata", |d| matchers::metadata(d, m)).map(Principal::Metadata)
        }
        Identifier::SourcedMetadata(m) => {
            http_only(d, place, "sourced_metadata", |d| dynamic(d, m)).map(Principal::Metadata)
        }
        Identifier::FilterState(_) => d.not_supported("filter_state"),
        Identifier::Custom(_) => d.not_supported("custom"),
    }
}
