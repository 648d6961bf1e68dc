//! Scoped routes: how requests find their scope, and the scopes.
//!
//! Spec: `envoy/config/route/v3/scoped_route.proto`, `ScopedRoutes` in
//! `envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto`.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{
        core::v3::ConfigSource,
        route::v3::{
            ScopedRouteConfiguration,
            scoped_route_configuration::{
                Key,
                key::{Fragment, fragment},
            },
        },
    },
    extensions::filters::network::http_connection_manager::v3::{
        ScopedRds, ScopedRouteConfigurationsList, ScopedRoutes as PbScopedRoutes,
        scoped_routes::{
            ConfigSpecifier, ScopeKeyBuilder,
            scope_key_builder::{
                FragmentBuilder,
                fragment_builder::{
                    self, HeaderValueExtractor,
                    header_value_extractor::{ExtractType, KvElement},
                },
            },
        },
    },
};

use super::{ResourceType, config_source, matchers, rds, reject::Decoder};
use crate::model::scope::{
    Extract, KeyFragment, Scope, ScopeKey, ScopeRoutes, ScopeSource, ScopeTable, ScopedRoutes,
};

/// What stands for all that SRDS delivers.
pub(super) const ALL: &str = "*";

pub(super) fn scoped_routes(d: &mut Decoder, value: PbScopedRoutes) -> Option<ScopedRoutes> {
    let PbScopedRoutes { name, scope_key_builder, rds_config_source, config_specifier } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let fragments = d.field("scope_key_builder", |d| match scope_key_builder {
        Some(ScopeKeyBuilder { fragments }) if !fragments.is_empty() => {
            d.all("fragments", fragments, fragment_builder)
        }
        _ => d.refused("has no fragments"),
    });
    let scopes = match config_specifier {
        Some(ConfigSpecifier::ScopedRouteConfigurationsList(list)) => {
            let scopes = d.field("scoped_route_configurations_list", |d| own_scopes(d, list))?;
            refer_to_routes(d, rds_config_source, &scopes);
            Some(ScopeSource::Inline(Arc::new(scopes)))
        }
        Some(ConfigSpecifier::ScopedRds(value)) => {
            let untimed = rds_config_source.as_ref();
            if untimed.is_some_and(|source| source.initial_fetch_timeout.is_some()) {
                // Whose it is, is known only when the scopes are there.
                d.field("rds_config_source", |d| {
                    d.refuse_field("initial_fetch_timeout", "is not supported with scoped_rds");
                });
            }
            let kind = ResourceType::Routes;
            config_source::reference(d, "rds_config_source", rds_config_source, kind, ALL);
            d.field("scoped_rds", |d| scoped_rds(d, value));
            Some(ScopeSource::Srds)
        }
        None => d.refused("has no scopes: scoped_route_configurations_list or scoped_rds"),
    };
    Some(ScopedRoutes { name: name.into(), fragments: fragments?, scopes: scopes? })
}

fn scoped_rds(d: &mut Decoder, value: ScopedRds) {
    let ScopedRds { scoped_rds_config_source, srds_resources_locator } = value;
    d.unsupported("srds_resources_locator", &srds_resources_locator);
    if scoped_rds_config_source.is_none() {
        d.refuse_field("scoped_rds_config_source", "is missing");
    }
    let (field, kind) = ("scoped_rds_config_source", ResourceType::Scope);
    config_source::reference(d, field, scoped_rds_config_source, kind, ALL);
}

/// Where the routes of scopes that are written in the listener come from.
fn refer_to_routes(d: &mut Decoder, source: Option<ConfigSource>, scopes: &ScopeTable) {
    let mut names = scopes.iter().filter_map(|scope| scope.route_name()).peekable();
    if source.is_none() && names.peek().is_some() {
        d.refuse_field("rds_config_source", "is missing: scopes name their routes");
    }
    for name in names {
        let kind = ResourceType::Routes;
        config_source::reference(d, "rds_config_source", source.clone(), kind, name);
    }
}

fn own_scopes(d: &mut Decoder, list: ScopedRouteConfigurationsList) -> Option<ScopeTable> {
    let ScopedRouteConfigurationsList { scoped_route_configurations } = list;
    if scoped_route_configurations.is_empty() {
        d.refuse_field("scoped_route_configurations", "is empty");
    }
    let mut table = ScopeTable::default();
    d.all("scoped_route_configurations", scoped_route_configurations, |d, value| {
        match table.insert(Arc::new(scope(d, value)?)) {
            Ok(()) => Some(()),
            Err(other) => d.refused(format!("its name or key is that of scope `{}`", other.name)),
        }
    })?;
    Some(table)
}

pub(super) fn scope(d: &mut Decoder, value: ScopedRouteConfiguration) -> Option<Scope> {
    let ScopedRouteConfiguration {
        on_demand,
        name,
        route_configuration_name,
        route_configuration,
        key,
    } = value;
    if name.is_empty() {
        d.refuse_field("name", "is missing");
    }
    let key = d.field("key", |d| match key {
        Some(Key { fragments }) if !fragments.is_empty() => {
            d.all("fragments", fragments, key_fragment)
        }
        _ => d.refused("has no fragments"),
    });
    let routes = match (route_configuration, route_configuration_name) {
        (Some(_), name) if !name.is_empty() => {
            d.field("route_configuration_name", |d| d.refused("excludes route_configuration"))
        }
        (Some(routes), _) => d
            .field("route_configuration", |d| rds::inline(d, routes))
            .map(|routes| ScopeRoutes::Inline(Arc::new(routes))),
        (None, name) if name.is_empty() => {
            d.refused("has no routes: route_configuration_name or route_configuration")
        }
        (None, name) => Some(ScopeRoutes::Rds(name.into())),
    };
    let (key, routes): (ScopeKey, _) = (key?, routes?);
    // Routes that are here need not be asked for.
    let on_demand = on_demand && matches!(routes, ScopeRoutes::Rds(_));
    Some(Scope { name: name.into(), key, routes, on_demand })
}

fn key_fragment(d: &mut Decoder, value: Fragment) -> Option<String> {
    match value.r#type {
        Some(fragment::Type::StringKey(text)) => Some(text),
        None => d.refused("has no string_key"),
    }
}

fn fragment_builder(d: &mut Decoder, value: FragmentBuilder) -> Option<KeyFragment> {
    let FragmentBuilder { r#type } = value;
    match r#type {
        Some(fragment_builder::Type::HeaderValueExtractor(value)) => {
            d.field("header_value_extractor", |d| extractor(d, value))
        }
        None => d.refused("has no header_value_extractor"),
    }
}

fn extractor(d: &mut Decoder, value: HeaderValueExtractor) -> Option<KeyFragment> {
    let HeaderValueExtractor { name, element_separator, extract_type } = value;
    let header = d.field("name", |d| matchers::header_name(d, &name));
    let extract = match extract_type {
        Some(ExtractType::Index(at)) if at > 0 && element_separator.is_empty() => {
            d.field("index", |d| d.refused("must be 0 without an element_separator"))
        }
        Some(ExtractType::Index(at)) => Some(Extract::Index(at)),
        Some(ExtractType::Element(KvElement { separator, key })) => d.field("element", |d| {
            if separator.is_empty() {
                d.refuse_field("separator", "is missing");
            }
            if key.is_empty() {
                d.refuse_field("key", "is missing");
            }
            Some(Extract::Element { separator, key })
        }),
        None => d.refused("has no index or element"),
    };
    Some(KeyFragment { header: header?, separator: element_separator, extract: extract? })
}
