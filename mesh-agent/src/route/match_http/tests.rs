use super::*;
use crate::{
    model::{
        authz::{StringMatcher, StringPattern},
        filter::PerFilter,
        header_mutation::HeaderMutations,
        route::{
            Clusters, DirectResponse, ForwardAction, HeaderMatchKind, Redirect, RequireTls,
            RouteAction,
        },
        runtime::{Fraction, RuntimeFraction, RuntimeLayer, RuntimeValue},
    },
    policy::fixtures::{cluster_name, exact, header, header_is, request},
};

/// Without a runtime.
fn match_route<'a>(
    configuration: &'a RouteConfiguration,
    head: &Parts,
) -> Result<Matched<'a>, NoRoute> {
    super::match_route(configuration, head, &Runtime::default(), 0)
}

fn route(name: &str, path: PathMatch) -> Route {
    let clusters = Clusters::One(cluster_name("c"));
    let action = RouteAction::Forward(Box::new(ForwardAction::to(clusters)));
    let matches = RouteMatch::path(path);
    Route {
        name: name.into(),
        matches,
        action,
        headers: HeaderMutations::default(),
        on_demand: None,
        stat_prefix: None,
        tracing: None,
        per_filter: PerFilter::default(),
    }
}

fn starts(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn is(path: &str) -> PathMatch {
    PathMatch::Exact(path.to_owned())
}

fn host(name: &str, domains: &[Domain], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: name.into(),
        domains: domains.to_vec(),
        routes,
        require_tls: None,
        headers: HeaderMutations::default(),
        per_filter: PerFilter::default(),
        mirrors: Vec::new(),
        virtual_clusters: Vec::new(),
    }
}

fn configuration(virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration {
        name: "rc".into(),
        virtual_hosts: virtual_hosts.into_iter().map(Arc::new).collect(),
        ..RouteConfiguration::default()
    }
}

fn domain(pattern: &str) -> Domain {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => Domain::Any,
        (Some(suffix), _) => Domain::Suffix(suffix.to_owned()),
        (None, Some(prefix)) => Domain::Prefix(prefix.to_owned()),
        (None, None) => Domain::Exact(pattern.to_owned()),
    }
}

#[test]
fn a_virtual_host_is_found_in_envoys_order() {
    let all = [
        "*",
        "web.*",
        "web.shop.*",
        "*.com",
        "*.shop.com",
        "*-bar.shop.com",
        "web.shop.com",
        "web.shop.com:8080",
        "[fd00::1]:80",
    ];
    let hosts = || all.map(|d| host(d, &[domain(d)], vec![route("r", starts("/"))]));
    let forward = configuration(hosts().to_vec());
    let backward = configuration(hosts().into_iter().rev().collect());
    for (authority, expected) in [
        ("web.shop.com", "web.shop.com"),
        ("WEB.Shop.com", "web.shop.com"),
        ("web.shop.com:8080", "web.shop.com:8080"),
        // Another port is another host: only the prefixes are left.
        ("web.shop.com:81", "web.shop.*"),
        ("x.shop.com", "*.shop.com"),
        ("X.SHOP.COM", "*.shop.com"),
        ("baz-bar.shop.com", "*-bar.shop.com"),
        // A wildcard is not empty.
        ("-bar.shop.com", "*.shop.com"),
        (".shop.com", "*.com"),
        (".com", "*"),
        ("web.shop.", "web.*"),
        ("web.", "*"),
        // Suffixes go before prefixes.
        ("web.x.com", "*.com"),
        ("web.shop.org", "web.shop.*"),
        ("web.org", "web.*"),
        ("other", "*"),
        ("[FD00::1]:80", "[fd00::1]:80"),
        ("web.shop.com.", "web.shop.*"),
    ] {
        let head = request("GET", "/", &[("host", authority)]);
        for configuration in [&forward, &backward] {
            let matched = match_route(configuration, &head).unwrap();
            assert_eq!(&*matched.virtual_host.name, expected, "{authority}");
        }
    }
    let none = request("GET", "/", &[]);
    assert_eq!(&*match_route(&forward, &none).unwrap().virtual_host.name, "*");
}

#[test]
fn a_virtual_hosts_best_domain_counts() {
    let routes = || vec![route("r", starts("/"))];
    let configuration = configuration(vec![
        host("a", &[domain("*"), domain("web")], routes()),
        host("b", &[domain("w*")], routes()),
    ]);
    let at = |authority| {
        let head = request("GET", "/", &[("host", authority)]);
        match_route(&configuration, &head).unwrap().virtual_host.name.to_string()
    };
    assert_eq!(at("web"), "a");
    assert_eq!(at("web2"), "b");
    assert_eq!(at("x"), "a");
}

#[test]
fn the_first_route_that_matches_wins() {
    let mut loose = route("loose", is("/Loose"));
    loose.matches.case_sensitive = false;
    let mut loose_prefix = route("loose-prefix", starts("/LP/"));
    loose_prefix.matches.case_sensitive = false;
    let mut beta = route("beta", starts("/"));
    beta.matches.headers =
        vec![header_is("x-beta", "yes"), header(":method", HeaderMatchKind::String(exact("GET")))];
    let mut teapot = route("teapot", is("/teapot"));
    teapot.action =
        RouteAction::DirectResponse(DirectResponse { status: 418, body: "short".into() });
    let configuration = configuration(vec![host(
        "any",
        &[Domain::Any],
        vec![
            beta,
            route("exact", is("/a")),
            route("regex", PathMatch::Regex("/r/[0-9]+|/r".parse().unwrap())),
            route("prefix", starts("/a")),
            route("late", is("/a/late")),
            loose,
            loose_prefix,
            teapot,
        ],
    )]);
    for (method, uri, headers, expected) in [
        ("GET", "/a", &[][..], Some("exact")),
        ("GET", "/a?b=c", &[], Some("exact")),
        ("GET", "/a/", &[], Some("prefix")),
        ("GET", "/ab", &[], Some("prefix")),
        ("GET", "/a/late", &[], Some("prefix")),
        ("GET", "/r/12", &[], Some("regex")),
        ("GET", "/r/12?x", &[], Some("regex")),
        ("GET", "/r/12x", &[], None),
        ("GET", "/x/r/12", &[], None),
        ("GET", "/A", &[], None),
        ("GET", "/lOOSE", &[], Some("loose")),
        ("GET", "/lp/x", &[], Some("loose-prefix")),
        ("GET", "/lp", &[], None),
        ("GET", "/teapot", &[], Some("teapot")),
        ("GET", "/teapot", &[("x-beta", "yes")], Some("beta")),
        ("POST", "/teapot", &[("x-beta", "yes")], Some("teapot")),
        ("GET", "/teapot", &[("x-beta", "no")], Some("teapot")),
        ("GET", "/%61", &[], None),
        ("GET", "/./a", &[], None),
        ("OPTIONS", "*", &[], None),
        ("GET", "http://h", &[], None),
        ("CONNECT", "h:443", &[], None),
    ] {
        let matched = match_route(&configuration, &request(method, uri, headers));
        let name = matched.as_ref().map(|matched| &*matched.route.name);
        assert_eq!(name.ok(), expected, "{method} {uri} {headers:?}");
    }
}

#[test]
fn a_connect_request_matches_no_pattern_for_paths() {
    let everything = PathMatch::Regex(".*".parse().unwrap());
    let configuration =
        configuration(vec![host("any", &[Domain::Any], vec![route("r", everything)])]);
    assert!(match_route(&configuration, &request("CONNECT", "h:443", &[])).is_err());
    assert!(match_route(&configuration, &request("GET", "http://h", &[])).is_ok());
}

#[test]
fn no_route_says_what_is_missing() {
    let web = host("web", &[domain("web")], vec![route("r", starts("/api"))]);
    let configuration = configuration(vec![web]);
    let error = |authority: &str, uri: &str| {
        let head = request("GET", uri, &[("host", authority)]);
        match_route(&configuration, &head).unwrap_err().to_string()
    };
    assert_eq!(error("shop", "/"), "route configuration `rc` has no virtual host for `shop`");
    assert_eq!(error("web", "/x?y"), "virtual host `web` has no route for GET /x");
    assert!(error(&"a".repeat(9000), "/").len() < 400);
    assert!(error("web", &format!("/{}", "a".repeat(9000))).len() < 400);
}

#[test]
fn a_route_for_a_fraction_of_the_requests_is_passed_over_by_the_others() {
    let half = Fraction { numerator: 5_000, denominator: 10_000 };
    let mut canary = route("canary", starts("/"));
    canary.matches.runtime_fraction = Some(RuntimeFraction { key: "canary".into(), default: half });
    let mut never_second = canary.clone();
    never_second.name = "never".into();
    let routes = vec![canary, never_second, route("stable", starts("/"))];
    let configuration = configuration(vec![host("any", &[Domain::Any], routes)]);
    let runtime = |value: RuntimeValue| {
        let layer = RuntimeLayer { values: [("canary".to_owned(), value)].into() };
        Runtime { layers: vec![("l".into(), Arc::new(layer))] }
    };
    let million = Fraction { numerator: 1, denominator: 1_000_000 };
    for (runtime, random, expected) in [
        (Runtime::default(), 4_999, "canary"),
        (Runtime::default(), 5_000, "stable"),
        (Runtime::default(), 10_000, "canary"),
        (runtime(RuntimeValue::Number(0.0)), 0, "stable"),
        (runtime(RuntimeValue::Number(1.0)), 4_900, "canary"),
        (runtime(RuntimeValue::Number(1.0)), 4_999, "stable"),
        (runtime(RuntimeValue::Number(100.0)), u64::MAX, "canary"),
        (runtime(RuntimeValue::Number(1e12)), u64::MAX, "canary"),
        (runtime(RuntimeValue::Fraction(million)), 2_000_000, "canary"),
        (runtime(RuntimeValue::Fraction(million)), 2_000_001, "stable"),
        // What is no fraction leaves the route's own.
        (runtime(RuntimeValue::Text("all".into())), 5_000, "stable"),
        (runtime(RuntimeValue::Flag(true)), 5_000, "stable"),
    ] {
        let head = request("GET", "/", &[]);
        let matched = super::match_route(&configuration, &head, &runtime, random).unwrap();
        assert_eq!(&*matched.route.name, expected, "{runtime:?} {random}");
    }
    let only = RouteConfiguration {
        virtual_hosts: vec![Arc::new(host(
            "any",
            &[Domain::Any],
            vec![configuration.virtual_hosts[0].routes[0].clone()],
        ))],
        ..configuration
    };
    let missed = super::match_route(&only, &request("GET", "/", &[]), &Runtime::default(), 5_000);
    assert!(matches!(missed, Err(NoRoute::Route { .. })), "{missed:?}");
}

fn string(pattern: StringPattern) -> StringMatcher {
    StringMatcher { pattern, ignore_case: false }
}

/// A path, headers, and whether the route takes it.
type Asked<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

/// Whether a route with these conditions takes each of the requests. As Envoy 1.40 answered.
#[track_caller]
fn check(matches: RouteMatch, requests: &[Asked<'_>]) {
    let only = Route { matches, ..route("only", starts("/")) };
    let configuration = configuration(vec![host("h", &[Domain::Any], vec![only])]);
    for (path, headers, expected) in requests {
        let head = request("GET", path, headers);
        let matched = match_route(&configuration, &head).is_ok();
        assert_eq!(matched, *expected, "{path} {headers:?}");
    }
}

#[test]
fn a_separated_prefix_ends_with_a_segment() {
    check(
        RouteMatch::path(PathMatch::SeparatedPrefix("/api".to_owned())),
        &[
            ("/api", &[], true),
            ("/api?x", &[], true),
            ("/api/x", &[], true),
            ("/apis", &[], false),
            ("/ap", &[], false),
        ],
    );
}

#[test]
fn query_parameters_match_by_their_first_value() {
    let matcher = |value, present| QueryParameterMatcher { name: "a".into(), value, present };
    let any = || RouteMatch::path(starts("/"));
    let with = |matcher| RouteMatch { query_parameters: vec![matcher], ..any() };
    let one = Some(string(StringPattern::Exact("1".into())));
    check(
        with(matcher(one, true)),
        &[
            ("/?a=1&a=2", &[], true),
            ("/?a=2&a=1", &[], false),
            ("/?b=1", &[], false),
            ("/?a", &[], false),
            ("/", &[], false),
            // Not decoded.
            ("/?%61=1", &[], false),
        ],
    );
    check(with(matcher(None, true)), &[("/?a", &[], true), ("/?b", &[], false)]);
    check(with(matcher(None, false)), &[("/?a", &[], false), ("/?b", &[], true)]);
}

#[test]
fn cookies_match_by_their_first_value_and_missing_ones_inverted() {
    let matcher = |value: &str, invert| CookieMatcher {
        name: "a".into(),
        value: string(StringPattern::Exact(value.into())),
        invert,
    };
    let with = |matcher| RouteMatch { cookies: vec![matcher], ..RouteMatch::path(starts("/")) };
    check(
        with(matcher("1", false)),
        &[
            ("/", &[("cookie", "a=1")], true),
            ("/", &[("cookie", "a=\"1\"")], true),
            ("/", &[("cookie", "b=1"), ("cookie", "a=1")], true),
            ("/", &[("cookie", "a=3; a=1")], false),
            ("/", &[("cookie", "aa=1")], false),
            ("/", &[], false),
        ],
    );
    check(
        with(matcher("2", true)),
        &[("/", &[], true), ("/", &[("cookie", "a=1")], true), ("/", &[("cookie", "a=2")], false)],
    );
}

#[test]
fn grpc_is_matched_by_its_content_type() {
    check(
        RouteMatch { grpc: true, ..RouteMatch::path(starts("/")) },
        &[
            ("/", &[("content-type", "application/grpc")], true),
            ("/", &[("content-type", "application/grpc+proto")], true),
            ("/", &[("content-type", "application/grpc;x")], false),
            ("/", &[("content-type", "application/grpc-web")], false),
            ("/", &[], false),
        ],
    );
}

#[test]
fn a_template_and_path_parameters() {
    let template = "/a/{x}/c".parse().unwrap();
    check(
        RouteMatch::path(PathMatch::Template(template)),
        &[("/a/b/c?q", &[], true), ("/a/b/b", &[], false)],
    );
    let host = host("h", &[Domain::Any], vec![route("only", is("/a"))]);
    let strict = configuration(vec![host]);
    let lax = RouteConfiguration { ignore_path_parameters: true, ..strict.clone() };
    let head = request("GET", "/a;v=1/b", &[]);
    assert!(match_route(&lax, &head).is_ok());
    assert!(match_route(&strict, &head).is_err());
}

#[test]
fn only_a_route_for_it_takes_connect() {
    let routes = vec![route("any", starts("/")), route("connect", PathMatch::Connect)];
    let configuration = configuration(vec![host("h", &[Domain::Any], routes)]);
    let (head, ()) = http::Request::connect("app.test:443").body(()).unwrap().into_parts();
    assert_eq!(&*match_route(&configuration, &head).unwrap().route.name, "connect");
    let get = request("GET", "/", &[]);
    assert_eq!(&*match_route(&configuration, &get).unwrap().route.name, "any");
}

#[test]
fn a_port_may_count_for_nothing() {
    let hosts =
        vec![host("h", &[domain("a.test"), domain("[fd00::1]")], vec![route("r", starts("/"))])];
    let strict = configuration(hosts);
    let lax = RouteConfiguration { ignore_port_in_host_matching: true, ..strict.clone() };
    for (authority, expected) in [
        ("a.test", true),
        ("a.test:80", true),
        ("[fd00::1]:80", true),
        ("[fd00::1]", true),
        ("a.test:", false),
        ("a.test:x", false),
    ] {
        let head = request("GET", "/", &[("host", authority)]);
        assert_eq!(match_route(&lax, &head).is_ok(), expected, "{authority}");
        let exact = ["a.test", "[fd00::1]"].contains(&authority);
        assert_eq!(match_route(&strict, &head).is_ok(), exact, "{authority}");
    }
}

#[test]
fn a_host_may_ask_for_tls() {
    let told = |external_only| {
        let redirect =
            Route { action: RouteAction::Redirect(Redirect::to_tls()), ..route("tls", starts("")) };
        let require_tls = Some(RequireTls { external_only, redirect: Box::new(redirect) });
        let host = host("h", &[Domain::Any], vec![route("r", starts("/"))]);
        configuration(vec![VirtualHost { require_tls, ..host }])
    };
    for (external_only, headers, expected) in [
        (false, &[][..], "tls"),
        (false, &[("x-forwarded-proto", "https")][..], "r"),
        (false, &[("x-envoy-internal", "true")][..], "tls"),
        (true, &[("x-envoy-internal", "true")][..], "r"),
        (true, &[][..], "tls"),
    ] {
        let (told, head) = (told(external_only), request("GET", "/", headers));
        assert_eq!(&*match_route(&told, &head).unwrap().route.name, expected, "{headers:?}");
    }
}
