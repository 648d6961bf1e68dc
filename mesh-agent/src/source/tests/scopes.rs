//! Scoped routes in text.

use super::{
    refused::{ROUTER, http, one},
    *,
};
use crate::model::scope::{Extract, KeyFragment};

const BUILDER: &str = "scope_key_builder: {fragments: [{header_value_extractor: \
    {name: X, index: 0}}]}";
const RDS: &str = "rds_config_source: {ads: {}}";

fn scoped(fields: &str) -> String {
    http(&format!("scoped_routes: {{name: s, {fields}}}, http_filters: [{ROUTER}]"))
}

fn key(key: &str) -> String {
    format!("key: {{fragments: [{{string_key: {key}}}]}}")
}

#[track_caller]
fn refused(fields: &str, expected: &str) {
    let manager = "listeners[web].filter_chains[0].filters[0].scoped_routes";
    one(scoped(fields), manager, expected);
}

#[test]
fn scopes_in_a_listener_are_found_by_name_and_key() {
    let list = format!(
        "{{name: a, route_configuration_name: r, on_demand: true, {}}}, \
         {{name: b, route_configuration: {{name: own}}, {}}}",
        key("x"),
        key("y")
    );
    let builder = "scope_key_builder: {fragments: [{header_value_extractor: {name: X-Scope, \
        element_separator: ';', element: {separator: '=', key: vip}}}]}";
    let yaml = scoped(&format!(
        "{builder}, {RDS}, scoped_route_configurations_list: \
         {{scoped_route_configurations: [{list}]}}"
    ));
    let resources = accepted(&yaml);
    SnapshotCell::default().replace(resources.clone(), String::new()).unwrap();
    let listener = &resources.listeners[0];
    assert_eq!(listener.route_names().count(), 0, "none is needed beforehand");
    let TerminalFilter::Http(http) = &listener.filter_chains[0].terminal else { panic!() };
    let RouteSource::Scoped(scoped) = &http.routes else { panic!() };
    let element = Extract::Element { separator: "=".to_owned(), key: "vip".to_owned() };
    let (header, separator) = ("x-scope".to_owned(), ";".to_owned());
    assert_eq!(scoped.fragments, [KeyFragment { header, separator, extract: element }]);
    let scopes = http.routes.own_scopes().unwrap();
    let found = |key: &str| scopes.find(&vec![key.to_owned()]).map(|scope| scope.name.to_string());
    assert_eq!((found("x"), found("y"), found("z")), (Some("a".into()), Some("b".into()), None));
}

#[test]
fn a_scope_whose_routes_are_not_there_is_refused_unless_they_are_asked_for() {
    let scope = |more: &str| {
        format!(
            "'@type': t/envoy.config.route.v3.ScopedRouteConfiguration\nname: a\n\
             route_configuration_name: r\n{}\n{more}",
            key("x")
        )
    };
    let applied = |more: &str| {
        SnapshotCell::default()
            .replace(accepted(&scope(more)), String::new())
            .map_err(|rejected| rejected.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let reason = "scoped_routes[a].route_configuration_name: there is no RouteConfiguration `r`";
    assert_eq!(applied(""), Err(vec![reason.to_owned()]));
    assert_eq!(applied("on_demand: true"), Ok(1));
}

#[test]
fn scoped_routes_that_make_no_sense_are_refused() {
    let srds = "scoped_rds: {scoped_rds_config_source: {ads: {}}}";
    let list = |scopes: &str| {
        format!(
            "{BUILDER}, {RDS}, scoped_route_configurations_list: \
             {{scoped_route_configurations: [{scopes}]}}"
        )
    };
    let at = ".scoped_route_configurations_list.scoped_route_configurations";
    let (x, y) = (key("x"), key("y"));
    refused(&format!("{RDS}, {srds}"), ".scope_key_builder: has no fragments");
    refused(
        &format!("{BUILDER}, {RDS}"),
        ": has no scopes: scoped_route_configurations_list or scoped_rds",
    );
    refused(
        &format!("{BUILDER}, {RDS}, scoped_rds: {{}}"),
        ".scoped_rds.scoped_rds_config_source: is missing",
    );
    refused(
        &format!("{BUILDER}, {srds}, rds_config_source: {{ads: {{}}, initial_fetch_timeout: 3s}}"),
        ".rds_config_source.initial_fetch_timeout: is not supported with scoped_rds",
    );
    let extractor = ".scope_key_builder.fragments[0].header_value_extractor";
    for (fields, expected) in [
        ("name: x", ": has no index or element"),
        ("name: x, index: 1", ".index: must be 0 without an element_separator"),
        ("name: 'x y', index: 0", ".name: `x y` is not a header's name"),
        ("name: x, element: {key: k}", ".element.separator: is missing"),
        ("name: x, element: {separator: k}", ".element.key: is missing"),
    ] {
        let builder =
            format!("scope_key_builder: {{fragments: [{{header_value_extractor: {{{fields}}}}}]}}");
        refused(&format!("{builder}, {RDS}, {srds}"), &format!("{extractor}{expected}"));
    }
    refused(&list(""), &format!("{at}: is empty"));
    for (scope, expected) in [
        ("name: a, route_configuration_name: r", ".key: has no fragments"),
        (
            &format!("name: a, {x}"),
            ": has no routes: route_configuration_name or route_configuration",
        ),
        (
            &format!("name: a, {x}, route_configuration_name: r, route_configuration: {{name: r}}"),
            ".route_configuration_name: excludes route_configuration",
        ),
        (
            &format!(
                "name: a, {x}, route_configuration: {{name: r, vhds: {{config_source: {{ads: {{}}}}}}}}"
            ),
            ".route_configuration.vhds: is for a route configuration that comes by RDS",
        ),
    ] {
        refused(&list(&format!("{{{scope}}}")), &format!("{at}[0]{expected}"));
    }
    let own = "route_configuration: {name: r}";
    for twins in [
        format!("{{name: a, {x}, {own}}}, {{name: b, {x}, {own}}}"),
        format!("{{name: a, {x}, {own}}}, {{name: a, {y}, {own}}}"),
    ] {
        refused(&list(&twins), &format!("{at}[1]: its name or key is that of scope `a`"));
    }
}
