use super::*;
use crate::model::filter::PerFilter;
use crate::model::route::{
    Clusters, ForwardAction, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost,
};

fn addition(name: &'static str, action: AppendAction) -> HeaderAddition {
    HeaderAddition {
        name: HeaderName::from_static(name),
        value: "new".parse().unwrap(),
        action,
        keep_empty: false,
    }
}

#[test]
fn each_action_sets_its_own() {
    use AppendAction as A;
    for (action, absent, present) in [
        (A::AppendIfExistsOrAdd, &["new"][..], &["old", "new"][..]),
        (A::AddIfAbsent, &["new"], &["old"]),
        (A::OverwriteIfExistsOrAdd, &["new"], &["new"]),
        (A::OverwriteIfExists, &[], &["new"]),
    ] {
        for (there, expected) in [(false, absent), (true, present)] {
            let mut headers = HeaderMap::new();
            if there {
                headers.insert("x-a", HeaderValue::from_static("old"));
            }
            set(&mut headers, &addition("x-a", action), b"new");
            let values: Vec<_> = headers.get_all("x-a").iter().collect();
            assert_eq!(values, expected, "{action:?}");
        }
    }
}

#[test]
fn what_envoy_keeps_as_one_value_stays_one() {
    let mut headers = HeaderMap::new();
    headers.insert(USER_AGENT, HeaderValue::from_static("a"));
    set(&mut headers, &addition("user-agent", AppendAction::AppendIfExistsOrAdd), b"b");
    assert_eq!(headers.get_all(USER_AGENT).iter().collect::<Vec<_>>(), ["a,b"]);
}

#[test]
fn empty_and_impossible_values_are_left_out() {
    let mut headers = HeaderMap::new();
    let mut empty = addition("x-a", AppendAction::OverwriteIfExistsOrAdd);
    set(&mut headers, &empty, b"");
    set(&mut headers, &empty, b"a\nb: c");
    assert!(headers.is_empty(), "{headers:?}");
    empty.keep_empty = true;
    set(&mut headers, &empty, b"");
    assert_eq!(headers["x-a"], "");
}

#[test]
fn the_least_specific_level_is_last_unless_asked_otherwise() {
    let level = |name: &'static str| HeaderMutations {
        request: Some(Arc::new(HeaderMutation {
            remove: Vec::new(),
            add: vec![addition(name, AppendAction::AddIfAbsent)],
        })),
        response: None,
    };
    let route = Route {
        name: "r".into(),
        matches: RouteMatch::path(PathMatch::Prefix("/".into())),
        action: RouteAction::Forward(Box::new(ForwardAction::to(Clusters::Header("x".into())))),
        headers: level("route"),
        on_demand: None,
        stat_prefix: None,
        tracing: None,
        per_filter: PerFilter::default(),
    };
    let virtual_host = VirtualHost {
        name: "h".into(),
        domains: vec![],
        routes: vec![],
        require_tls: None,
        headers: level("host"),
        per_filter: PerFilter::default(),
        mirrors: Vec::new(),
        virtual_clusters: Vec::new(),
    };
    for (most_specific_header_mutations_wins, expected) in [
        (false, ["entry", "route", "host", "configuration"]),
        (true, ["entry", "configuration", "host", "route"]),
    ] {
        let configuration = RouteConfiguration {
            headers: level("configuration"),
            most_specific_header_mutations_wins,
            ..RouteConfiguration::default()
        };
        let matched =
            Matched { configuration: &configuration, virtual_host: &virtual_host, route: &route };
        let entry = level("entry");
        let order = levels(&matched, Some(&entry))
            .map(|level| level.unwrap().request.as_ref().unwrap().add[0].name.clone());
        assert_eq!(order, expected);
    }
}
