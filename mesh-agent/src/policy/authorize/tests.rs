use super::*;
use crate::{
    model::{
        authz::{Permission, Principal, RbacAction::*, RbacPolicy},
        extension::{DiscoveredFilter, ExtensionConfig},
        filter::{
            ChainFilter, HeaderMutationFilter, HttpFilter, Levels, PerFilter, RouteFilter,
            RouteFilterConfig,
        },
        listener::{Direction, FilterChain, FilterChainMatch, HttpConnectionManager},
        metadata::{DynamicMetadata, MetadataMatcher, ValueMatcher},
        workload::MtlsMode,
    },
    policy::fixtures::{
        self, chain, chain_filter, exact, header_is, http_terminal, inbound, is_identity, listener,
        manager, outbound_permit, outbound_to, permit_for, policy, prefix, rbac, regex, request,
        snapshot, with_filters,
    },
    snapshot::{Resources, SnapshotCell},
};

fn any(name: &str) -> RbacPolicy {
    policy(name, vec![Permission::Any], vec![Principal::Any])
}

fn only(name: &str, caller: &str) -> RbacPolicy {
    policy(name, vec![Permission::Any], vec![is_identity(caller)])
}

fn path(name: &str, path: crate::model::authz::StringMatcher) -> RbacPolicy {
    policy(name, vec![Permission::UrlPath(path)], vec![Principal::Any])
}

fn with_chain(chain: FilterChain) -> Arc<Snapshot> {
    snapshot(vec![listener(Direction::Inbound, "10.1.0.2:8080", vec![chain], None)], vec![])
}

fn with_network_filters(filters: Vec<Rbac>) -> Arc<Snapshot> {
    with_chain(with_filters(chain("c", FilterChainMatch::default()), filters))
}

fn connect(caller: &str, snapshot: &Snapshot) -> Result<Permit, Denied> {
    let captured = inbound(Some(caller), MtlsMode::Strict, "10.1.0.2:8080");
    authorize(Flow::inbound(captured, snapshot).unwrap())
}

/// Where every filter has its configuration in place.
fn authorize_request(
    permit: &Permit,
    http: &HttpConnectionManager,
    head: &Parts,
) -> Result<RequestPermit, Denied> {
    fixtures::authorize_request(permit, http, &Snapshot::default(), head)
}

#[test]
fn network_filters_are_asked_in_order() {
    let allow = |policies| rbac(Allow, policies);
    let deny = |policies| rbac(Deny, policies);
    for (filters, expected) in [
        (vec![], Ok(None)),
        (vec![allow(vec![])], Err((None, DenyReason::NoPolicyMatched))),
        (vec![allow(vec![any("a")])], Ok(Some("a"))),
        (vec![allow(vec![only("a", "client")])], Ok(Some("a"))),
        (vec![allow(vec![only("a", "other")])], Err((None, DenyReason::NoPolicyMatched))),
        (vec![deny(vec![])], Ok(None)),
        (vec![deny(vec![only("d", "other")]), allow(vec![any("a")])], Ok(Some("a"))),
        (vec![allow(vec![any("a")]), deny(vec![only("d", "other")])], Ok(Some("a"))),
        (
            vec![allow(vec![any("a")]), deny(vec![only("d", "client")])],
            Err((Some("d"), DenyReason::PolicyMatched)),
        ),
        (vec![deny(vec![any("d")]), allow(vec![])], Err((Some("d"), DenyReason::PolicyMatched))),
        (vec![allow(vec![any("a")]), allow(vec![any("b")])], Ok(Some("b"))),
        (vec![allow(vec![any("a")]), allow(vec![])], Err((None, DenyReason::NoPolicyMatched))),
        (vec![deny(vec![path("d", exact("/"))])], Err((Some("d"), DenyReason::Unenforceable))),
        (vec![allow(vec![path("a", exact("/"))])], Err((None, DenyReason::NoPolicyMatched))),
        (vec![rbac(Log, vec![any("l")])], Ok(None)),
    ] {
        let result = connect("client", &with_network_filters(filters.clone()));
        let result = match &result {
            Ok(permit) => Ok(permit.policy()),
            Err(denied) => Err((denied.policy(), denied.reason())),
        };
        assert_eq!(result, expected, "{filters:?}");
    }
}

#[test]
fn a_log_filter_is_remembered() {
    let filters = vec![rbac(Log, vec![any("l")]), rbac(Allow, vec![any("a")]), rbac(Log, vec![])];
    let permit = connect("client", &with_network_filters(filters)).unwrap();
    assert_eq!((permit.logged_policy(), permit.policy()), (Some("l"), Some("a")));
}

#[test]
fn a_denial_says_who_what_and_why() {
    let mut allow = rbac(Allow, vec![only("a", "other")]);
    allow.stat_prefix = "l4".to_owned();
    let denied = connect("client", &with_network_filters(vec![allow])).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "spiffe://cluster.local/ns/shop/sa/client at 10.2.0.7:50000 may not connect to \
         10.1.0.2:8080: no policy allows it (filter `l4`)"
    );
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);

    let http = manager(vec![rbac(Deny, vec![path("no-admin", prefix("/admin"))])]);
    let head = request("DELETE", "/admin/x?token=secret", &[("host", "web")]);
    let denied = authorize_request(&permit_for(None), &http, &head).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "unauthenticated peer at 10.2.0.7:50000 may not DELETE /admin/x on 10.1.0.2:8080: \
         policy `no-admin` denies it"
    );
    assert_eq!(denied.identity(), None);

    let long = format!("/admin/{}", "x".repeat(5000));
    let denied = authorize_request(&permit_for(None), &http, &request("GET", &long, &[]));
    assert!(denied.unwrap_err().to_string().len() < 600);
}

#[test]
fn requests_are_judged_by_method_path_and_caller() {
    let read = policy(
        "read",
        vec![Permission::And(vec![
            Permission::Header(header_is(":method", "GET")),
            Permission::UrlPath(prefix("/api/")),
        ])],
        vec![is_identity("client")],
    );
    let http = manager(vec![rbac(Allow, vec![read])]);
    for (caller, method, uri, expected) in [
        (Some("client"), "GET", "/api/x", Ok(Some("read"))),
        (Some("client"), "GET", "/api/x?y=z#f", Ok(Some("read"))),
        (Some("client"), "POST", "/api/x", Err(403)),
        (Some("client"), "GET", "/admin", Err(403)),
        (Some("client"), "GET", "/API/x", Err(403)),
        (Some("other"), "GET", "/api/x", Err(403)),
        (None, "GET", "/api/x", Err(403)),
        (Some("client"), "GET", "/api/../admin", Err(400)),
        (Some("client"), "GET", "/api/%2e%2e/admin", Err(400)),
        (Some("client"), "GET", "/api/..%2fadmin", Err(400)),
        (Some("client"), "GET", "//api/x", Err(400)),
        // It has no path, so that nothing allows it.
        (Some("client"), "CONNECT", "10.1.0.2:8080", Err(403)),
    ] {
        let result = authorize_request(&permit_for(caller), &http, &request(method, uri, &[]));
        let result = match &result {
            Ok(permit) => Ok(permit.policy()),
            Err(denied) => Err(denied.status().as_u16()),
        };
        assert_eq!(result, expected, "{caller:?} {method} {uri}");
    }
}

#[test]
fn no_spelling_of_a_path_leads_around_a_denial() {
    let plain = path("d", exact("/admin"));
    let starts = path("d", prefix("/admin"));
    let whole = policy(
        "d",
        vec![Permission::Header(crate::policy::fixtures::header(
            ":path",
            crate::model::route::HeaderMatchKind::String(regex("/admin(/.*)?")),
        ))],
        vec![Principal::Any],
    );
    for rule in [plain, starts, whole] {
        let http = manager(vec![rbac(Deny, vec![rule.clone()])]);
        for uri in [
            "/admin",
            "/./admin",
            "//admin",
            "/x/../admin",
            "/%61dmin",
            "/x/%2E%2e/admin",
            "/%2fadmin",
            "\\admin",
            "/admin;x=1",
            "/admin;",
            "HTTP://h/admin",
            "/admin#x",
        ] {
            let Ok(uri) = uri.parse::<http::Uri>() else { continue };
            let head = request("GET", &uri.to_string(), &[]);
            let result = authorize_request(&permit_for(None), &http, &head);
            assert!(result.is_err(), "{rule:?} let {uri} through");
        }
        for uri in ["/", "/public", "/public?next=/admin", "/public/a%20b;v=1"] {
            let result = authorize_request(&permit_for(None), &http, &request("GET", uri, &[]));
            assert!(result.is_ok(), "{rule:?}: {}", result.unwrap_err());
        }
    }
}

#[test]
fn an_escaped_path_must_be_allowed_in_both_readings() {
    let verb = |action, rule| manager(vec![rbac(action, vec![path("p", rule)])]);
    let suffix = crate::policy::fixtures::string(crate::model::authz::StringPattern::Suffix(
        ":delete".to_owned(),
    ));
    let judge = |http: &HttpConnectionManager, uri| {
        authorize_request(&permit_for(None), http, &request("POST", uri, &[])).is_ok()
    };
    let deny = verb(Deny, suffix.clone());
    assert!(!judge(&deny, "/v1/items/7:delete"));
    assert!(!judge(&deny, "/v1/items/7%3Adelete"));
    assert!(judge(&deny, "/v1/items/7%3Aget"));
    let all_but = Permission::Not(Box::new(Permission::UrlPath(suffix)));
    let all_but =
        manager(vec![rbac(Allow, vec![policy("p", vec![all_but], vec![Principal::Any])])]);
    assert!(!judge(&all_but, "/v1/items/7%3Adelete"));
    assert!(judge(&all_but, "/v1/items/7%3Aget"));
    // A pattern with an escape of its own is about the path as sent.
    assert!(judge(&verb(Allow, exact("/a%20b")), "/a%20b"));
    assert!(judge(&verb(Allow, prefix("/files/")), "/files/a%20b"));
}

#[test]
fn where_no_policy_looks_at_the_path_it_may_be_anything() {
    let http = manager(vec![rbac(Allow, vec![any("a")]), rbac(Log, vec![path("l", exact("/"))])]);
    for uri in ["//x", "/a/../b", "/%61", "/a%2fb"] {
        let result = authorize_request(&permit_for(None), &http, &request("GET", uri, &[]));
        assert_eq!(result.unwrap().policy(), Some("a"), "{uri}");
    }
}

#[test]
fn a_request_for_several_hosts_is_refused_without_any_policy() {
    let http = manager(vec![]);
    let head = request("GET", "/", &[("host", "a"), ("host", "b")]);
    let denied = authorize_request(&permit_for(Some("client")), &http, &head).unwrap_err();
    assert_eq!(denied.reason(), DenyReason::AmbiguousAuthority);
    assert_eq!(denied.status(), StatusCode::BAD_REQUEST);
    let head = request("GET", "/", &[("host", "a")]);
    assert!(authorize_request(&permit_for(Some("client")), &http, &head).is_ok());
}

#[test]
fn a_live_connection_is_judged_by_the_new_snapshot() {
    let open = with_network_filters(vec![rbac(Allow, vec![any("a")])]);
    let permit = connect("client", &open).unwrap();
    let rejudge = |snapshot: &Snapshot| permit.rejudge(snapshot, OutboundPolicy::AllowAny);

    let renamed = with_network_filters(vec![rbac(Allow, vec![only("b", "client")])]);
    assert_eq!(rejudge(&renamed).unwrap().policy(), Some("b"));

    let closed = with_network_filters(vec![rbac(Allow, vec![only("b", "other")])]);
    let Err(Revoked::Denied(denied)) = rejudge(&closed) else { panic!("was not revoked") };
    assert_eq!(denied.reason(), DenyReason::NoPolicyMatched);

    let port = FilterChainMatch { destination_port: Some(1), ..FilterChainMatch::default() };
    let error = rejudge(&with_chain(chain("c", port))).unwrap_err();
    assert!(matches!(error, Revoked::Flow(FlowError::NoFilterChain { .. })), "{error}");

    // No listener for it: mTLS is let in without policy.
    assert_eq!(rejudge(&Snapshot::default()).unwrap().policy(), None);
}

#[test]
fn an_opaque_connection_does_not_outlive_the_start_of_http_policy() {
    let http = |filters| {
        let mut chain = chain("c", FilterChainMatch::default());
        chain.terminal = http_terminal(filters);
        with_chain(chain)
    };
    let judged = http(vec![rbac(Log, vec![]), rbac(Allow, vec![any("a")])]);
    let unjudged = http(vec![rbac(Log, vec![])]);
    let opaque = connect("client", &with_network_filters(vec![])).unwrap();
    let passed = connect("client", &Snapshot::default()).unwrap();
    for permit in [opaque, passed] {
        assert!(permit.rejudge(&unjudged, OutboundPolicy::AllowAny).is_ok());
        let error = permit.rejudge(&judged, OutboundPolicy::AllowAny).unwrap_err();
        let Revoked::Denied(denied) = error else { panic!("{error}") };
        assert_eq!(denied.reason(), DenyReason::RequestsNotJudged);
    }
    let permit = connect("client", &unjudged).unwrap();
    assert!(permit.rejudge(&judged, OutboundPolicy::AllowAny).is_ok());
}

#[test]
fn passthrough_ends_when_the_registry_closes() {
    let permit = outbound_permit("192.0.2.1:443", &Snapshot::default());
    let empty = Snapshot::default();
    assert!(permit.rejudge(&empty, OutboundPolicy::AllowAny).is_ok());
    let error = permit.rejudge(&empty, OutboundPolicy::RegistryOnly).unwrap_err();
    assert!(matches!(error, Revoked::Flow(FlowError::NoListener { .. })), "{error}");
    let refused =
        Flow::outbound(outbound_to("192.0.2.1:443"), &empty, OutboundPolicy::RegistryOnly);
    assert!(refused.is_err());
}

/// What there is of filters' configurations.
fn with_configs(configs: Vec<ExtensionConfig>) -> Arc<Snapshot> {
    let cell = SnapshotCell::default();
    let resources = Resources { extension_configs: configs, ..Resources::default() };
    cell.replace(resources, "test".to_owned()).unwrap();
    cell.load()
}

fn config(type_name: &str, filter: Option<Rbac>) -> ExtensionConfig {
    let filter = HttpFilter::Rbac(filter.map(Arc::new).into());
    ExtensionConfig { name: "f".into(), type_name: type_name.into(), filter }
}

fn discovered(default_config: Option<ExtensionConfig>) -> ChainFilter {
    let filter = HttpFilter::Discovered(Arc::new(DiscoveredFilter {
        name: "f".into(),
        type_names: vec!["RBAC".into()],
        default_config: default_config.map(Arc::new),
        warms: true,
    }));
    ChainFilter { name: "f".into(), disabled: false, filter }
}

#[test]
fn a_filter_that_is_configured_by_itself_is_as_the_snapshot_has_it() {
    let allows = || Some(config("RBAC", Some(rbac(Allow, vec![any("a")]))));
    let denies = || Some(config("RBAC", Some(rbac(Deny, vec![any("d")]))));
    let other = || Some(config("Lua", Some(rbac(Allow, vec![any("a")]))));
    let head = request("GET", "/", &[("host", "web")]);
    for (delivered, default, expected) in [
        (allows(), None, Ok(())),
        (denies(), None, Err(403)),
        (Some(config("RBAC", None)), None, Ok(())),
        (None, None, Err(500)),
        (None, allows(), Ok(())),
        (None, denies(), Err(403)),
        (denies(), allows(), Err(403)),
        // Of a type that is not taken there.
        (other(), None, Err(500)),
        (other(), denies(), Err(403)),
    ] {
        let snapshot = with_configs(delivered.clone().into_iter().collect());
        let mut http = manager(vec![rbac(Log, vec![])]);
        http.http_filters.push(discovered(default.clone()));
        let result = fixtures::authorize_request(&permit_for(None), &http, &snapshot, &head);
        let result = result.map(drop).map_err(|denied| denied.status().as_u16());
        assert_eq!(result, expected, "{delivered:?} {default:?}");
    }
}

#[test]
fn a_missing_configuration_is_said_and_filters_before_it_go_first() {
    let snapshot = Snapshot::default();
    let head = request("GET", "/", &[("host", "web")]);
    let mut http = manager(vec![]);
    http.http_filters.push(discovered(None));
    let judge = |http: &_| fixtures::authorize_request(&permit_for(None), http, &snapshot, &head);
    let denied = judge(&http).unwrap_err();
    assert_eq!((denied.reason(), denied.flag()), (DenyReason::NoFilterConfig, "NFCF"));
    assert_eq!(
        denied.to_string(),
        "unauthenticated peer at 10.2.0.7:50000 may not GET / on 10.1.0.2:8080: a filter has no \
         configuration: it was asked for and did not come (filter `f`)"
    );
    http.http_filters.insert(0, chain_filter(rbac(Deny, vec![any("d")])));
    assert_eq!(judge(&http).unwrap_err().reason(), DenyReason::PolicyMatched);
}

#[test]
fn an_opaque_connection_does_not_outlive_a_filter_that_is_yet_to_be_configured() {
    let opaque = connect("client", &with_network_filters(vec![])).unwrap();
    let mut http = manager(vec![]);
    http.http_filters.push(discovered(None));
    let mut chain = chain("c", FilterChainMatch::default());
    chain.terminal = TerminalFilter::Http(Arc::new(http));
    let error = opaque.rejudge(&with_chain(chain), OutboundPolicy::AllowAny).unwrap_err();
    assert_eq!(error.as_str(), "no_filter_config");
}

#[test]
fn a_route_says_whether_a_filter_runs_and_by_which_rules() {
    let allow = || Some(Arc::new(rbac(Allow, vec![any("a")])));
    let deny = || Some(Arc::new(rbac(Deny, vec![any("d")])));
    let rules =
        |rules: Option<Arc<Rbac>>| RouteFilter::Enabled(RouteFilterConfig::Rbac(rules.into()));
    let other = || {
        let mutations = RouteFilterConfig::HeaderMutation(Arc::default());
        RouteFilter::Enabled(mutations)
    };
    let permit = permit_for(None);
    let head = request("GET", "/", &[("host", "web")]);
    let snapshot = Snapshot::default();
    // The chain's rules and whether it is disabled there; host's word, route's word; outcome.
    for (own, disabled, host, route, expected) in [
        (deny(), false, None, None, false),
        (deny(), true, None, None, true),
        (None, false, None, None, true),
        (None, false, Some(rules(deny())), None, false),
        // What is said by a route enables.
        (None, true, Some(rules(deny())), None, false),
        (deny(), false, Some(RouteFilter::Disabled), None, true),
        (deny(), false, None, Some(RouteFilter::Disabled), true),
        (deny(), false, None, Some(rules(None)), true),
        // The most specific one counts.
        (allow(), false, Some(rules(allow())), Some(rules(deny())), false),
        (deny(), false, Some(RouteFilter::Disabled), Some(rules(deny())), false),
        (deny(), false, Some(rules(deny())), Some(RouteFilter::Disabled), true),
        // Said for another kind of filter: it runs by the rules that are there.
        (deny(), true, None, Some(other()), false),
        (allow(), false, Some(rules(deny())), Some(other()), false),
    ] {
        let mut http = manager(vec![]);
        let filter = HttpFilter::Rbac(own.clone().into());
        http.http_filters.push(ChainFilter { name: "f".into(), disabled, filter });
        let level = |said: &Option<RouteFilter>, name: &str| {
            PerFilter(said.iter().map(|said| (name.into(), said.clone())).collect())
        };
        let walk = |name: &str| {
            let (host, route) = (level(&host, name), level(&route, name));
            let levels = Levels([None, Some(&route), Some(&host), None]);
            let mut chain = Chain::new(&permit, &http, &snapshot, levels, (&head, None)).unwrap();
            matches!(chain.next(&head, &mut DynamicMetadata::default()), Ok(Step::Passed(_)))
        };
        assert_eq!(walk("f"), expected, "{own:?} {disabled} {host:?} {route:?}");
        // What is said for a filter of another name is nothing to this one.
        let denies = own.as_ref().is_some_and(|own| own.action == Deny);
        assert_eq!(walk("g"), disabled || !denies, "{own:?} {disabled}");
    }
}

#[test]
fn no_rules_of_a_route_step_around_the_path_guard() {
    let permit = permit_for(None);
    let snapshot = Snapshot::default();
    let deny = rbac(Deny, vec![path("p", prefix("/secret"))]);
    let mut http = manager(vec![]);
    let filter = HttpFilter::Rbac(None.into());
    http.http_filters.push(ChainFilter { name: "f".into(), disabled: true, filter });
    let said = RouteFilter::Enabled(RouteFilterConfig::Rbac(Some(Arc::new(deny)).into()));
    let level = PerFilter(vec![("f".into(), said)]);
    for (uri, status) in [("/secret", 403), ("/a/../secret", 400), ("/%73ecret", 400)] {
        let head = request("GET", uri, &[("host", "web")]);
        let levels = Levels([None, Some(&level), None, None]);
        let mut chain = Chain::new(&permit, &http, &snapshot, levels, (&head, None)).unwrap();
        assert_eq!(
            chain.next(&head, &mut DynamicMetadata::default()).unwrap_err().status().as_u16(),
            status,
            "{uri}"
        );
    }
}

#[test]
fn rules_read_what_filters_before_them_have_noted() {
    let permit = permit_for(None);
    let snapshot = Snapshot::default();
    let matcher = MetadataMatcher {
        namespace: "ns".to_owned(),
        path: vec!["admin".to_owned()],
        value: ValueMatcher::Bool(true),
        invert: false,
    };
    let policy = RbacPolicy {
        name: "p".into(),
        permissions: vec![Permission::Any],
        principals: vec![Principal::Metadata(matcher)],
    };
    let mut http = manager(vec![]);
    http.http_filters.push(chain_filter(rbac(Allow, vec![policy])));
    let head = request("GET", "/", &[("host", "web")]);
    let allowed = |admin: serde_json::Value| {
        let mut metadata = DynamicMetadata::default();
        metadata.merge("ns", [("admin".to_owned(), admin)].into_iter().collect());
        let mut chain =
            Chain::new(&permit, &http, &snapshot, Levels::default(), (&head, None)).unwrap();
        chain.next(&head, &mut metadata).is_ok()
    };
    assert!(allowed(true.into()));
    assert!(!allowed(false.into()));
    assert!(!allowed("true".into()));
}

#[test]
fn a_chain_goes_on_by_another_routes_levels() {
    let permit = permit_for(None);
    let snapshot = Snapshot::default();
    let mut http = manager(vec![]);
    for name in ["a", "b"] {
        let filter = HttpFilter::HeaderMutation(Arc::new(HeaderMutationFilter {
            mutations: Arc::default(),
            most_specific_wins: false,
        }));
        http.http_filters.push(ChainFilter { name: name.into(), disabled: false, filter });
    }
    http.http_filters.push(chain_filter(rbac(Deny, vec![])));
    let head = request("GET", "/", &[("host", "web")]);
    let mut none = DynamicMetadata::default();
    let chain = |levels| Chain::new(&permit, &http, &snapshot, levels, (&head, None)).unwrap();
    let mut first = chain(Levels::default());
    let Ok(Step::Run(Place { index: 0, name: "a" }, _)) = first.next(&head, &mut none) else {
        panic!("`a` comes first");
    };
    // The other route has no use for `b`, and `a` is not run again.
    let level = PerFilter(vec![("b".into(), RouteFilter::Disabled)]);
    let levels = Levels([None, Some(&level), None, None]);
    let mut second = chain(levels).at(first.into_progress());
    assert!(matches!(second.next(&head, &mut none), Ok(Step::Passed(_))));
}

#[test]
fn shadow_rules_note_what_they_would_say_and_let_everything_on() {
    let permit = permit_for(None);
    let snapshot = Snapshot::default();
    let shadow = Rbac { stat_prefix: "s_".into(), ..rbac(Deny, vec![path("p", prefix("/no"))]) };
    let filter = HttpRbac { rules: None, shadow: Some(Arc::new(shadow)) };
    let mut http = manager(vec![]);
    let filter = HttpFilter::Rbac(filter);
    http.http_filters.push(ChainFilter { name: "f".into(), disabled: false, filter });
    for (uri, result, policy, shadow) in [
        ("/no", "denied", Some("p"), Shadow { allowed: 0, denied: 1 }),
        ("/yes", "allowed", None, Shadow { allowed: 1, denied: 0 }),
    ] {
        let head = request("GET", uri, &[("host", "web")]);
        let mut chain =
            Chain::new(&permit, &http, &snapshot, Levels::default(), (&head, None)).unwrap();
        let mut metadata = DynamicMetadata::default();
        assert!(matches!(chain.next(&head, &mut metadata), Ok(Step::Passed(_))), "{uri}");
        let said = |key: &str| metadata.get("envoy.filters.http.rbac", &[key]).cloned();
        assert_eq!(said("s_shadow_engine_result"), Some(result.into()), "{uri}");
        assert_eq!(said("s_shadow_effective_policy_id"), policy.map(Into::into), "{uri}");
        assert_eq!(chain.shadow(), shadow, "{uri}");
    }
}
