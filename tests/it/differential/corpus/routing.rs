//! Routes: what matches, and what becomes of the request.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, routes, to};

fn answers(status: u16, body: &str) -> Value {
    json!({ "status": status, "body": { "inline_string": body } })
}

/// Requests that match are answered 201, all others 202.
fn only(name: &'static str, matches: &Value) -> Case {
    let mut first = matches.clone();
    if !["prefix", "path", "safe_regex", "path_separated_prefix", "path_match_policy"]
        .iter()
        .any(|kind| first.get(kind).is_some())
    {
        first["prefix"] = "/".into();
    }
    case(
        name,
        routes(json!([
            { "match": first, "direct_response": answers(201, "matched") },
            { "match": { "prefix": "/" }, "direct_response": answers(202, "not matched") },
        ])),
    )
}

fn header(matcher: &Value) -> Value {
    let mut matcher = matcher.clone();
    matcher["name"] = "x-a".into();
    json!({ "headers": [matcher] })
}

fn query(matcher: &Value) -> Value {
    let mut matcher = matcher.clone();
    matcher["name"] = "q".into();
    json!({ "query_parameters": [matcher] })
}

fn with_a(value: &str) -> Ask {
    get("/").with("x-a", value)
}

fn redirects(name: &'static str, redirect: &Value) -> Case {
    case(name, routes(json!([{ "match": { "prefix": "/" }, "redirect": redirect }])))
}

fn rewrites(name: &'static str, prefix: &str, route: &Value) -> Case {
    let mut route = route.clone();
    route["cluster"] = "one".into();
    case(name, routes(json!([{ "match": { "prefix": prefix }, "route": route }])))
}

#[rustfmt::skip]
fn matches() -> Vec<Case> {
    vec![
        only("match-prefix", &json!({ "prefix": "/a" }))
            .asks(get("/a").is(201)).asks(get("/ab").is(201)).asks(get("/A").is(202))
            .asks(get("/").is(202)).asks(get("/a?q").is(201)).asks(get("//a").is(202))
            .asks(get("/%61").is(202)),
        only("match-prefix-any-case", &json!({ "prefix": "/a", "case_sensitive": false }))
            .asks(get("/A/b").is(201)).asks(get("/b").is(202)),
        only("match-path", &json!({ "path": "/a" }))
            .asks(get("/a").is(201)).asks(get("/a/").is(202)).asks(get("/a?b=c").is(201))
            .asks(get("/a#f").is(400)).asks(get("/a;v=1").is(202)).asks(get("/A").is(202)),
        only("match-path-any-case", &json!({ "path": "/a", "case_sensitive": false }))
            .asks(get("/A").is(201)).asks(get("/A?x").is(201)).asks(get("/Ab").is(202)),
        only("match-regex", &json!({ "safe_regex": { "regex": "/[a-c]+/\\d{2,3}" } }))
            .asks(get("/abc/12").is(201)).asks(get("/abc/1").is(202)).asks(get("/abc/1234").is(202))
            .asks(get("/abc/12?x=y").is(201)).asks(get("/x/abc/12").is(202)),
        only("match-separated", &json!({ "path_separated_prefix": "/a/b" }))
            .asks(get("/a/b").is(201)).asks(get("/a/b/c").is(201)).asks(get("/a/bc").is(202))
            .asks(get("/a/b?c").is(201)).asks(get("/a/b/").is(201)),
        only("match-header-present", &header(&json!({ "present_match": true })))
            .asks(with_a("").is(201)).asks(with_a("x").is(201)).asks(get("/").is(202)),
        only("match-header-absent", &header(&json!({ "present_match": false })))
            .asks(with_a("x").is(202)).asks(get("/").is(201)),
        only("match-header-exact", &header(&json!({ "string_match": { "exact": "b" } })))
            .asks(with_a("b").is(201)).asks(with_a("B").is(202)).asks(with_a(" b ").is(201))
            .asks(get("/").is(202)).asks(with_a("b").with("x-a", "c").is(201)),
        only("match-header-any-case", &header(&json!({ "string_match": { "exact": "b", "ignore_case": true } })))
            .asks(with_a("B").is(201)).asks(with_a("c").is(202)),
        only("match-header-prefix", &header(&json!({ "string_match": { "prefix": "ab" } })))
            .asks(with_a("abc").is(201)).asks(with_a("ac").is(202)),
        only("match-header-suffix", &header(&json!({ "string_match": { "suffix": "bc" } })))
            .asks(with_a("abc").is(201)).asks(with_a("bcd").is(202)),
        only("match-header-contains", &header(&json!({ "string_match": { "contains": "b" } })))
            .asks(with_a("abc").is(201)).asks(with_a("ac").is(202)),
        only("match-header-regex", &header(&json!({ "string_match": { "safe_regex": { "regex": "a+" } } })))
            .asks(with_a("aa").is(201)).asks(with_a("aab").is(202)),
        only("match-header-range", &header(&json!({ "range_match": { "start": -2, "end": 10 } })))
            .asks(with_a("-2").is(201)).asks(with_a("9").is(201)).asks(with_a("10").is(202))
            .asks(with_a("x").is(202)).asks(with_a("5x").is(202)).asks(with_a("").is(202)).asks(get("/").is(202)),
        only("match-header-inverted", &header(&json!({ "string_match": { "exact": "b" }, "invert_match": true })))
            .asks(with_a("b").is(202)).asks(with_a("c").is(201)).asks(get("/").is(202)),
        only("match-header-missing-is-empty", &header(&json!({
            "string_match": { "exact": "b" }, "invert_match": true, "treat_missing_header_as_empty": true,
        })))
            .asks(with_a("b").is(202)).asks(get("/").is(201)),
        only("match-method", &json!({ "headers": [{ "name": ":method", "string_match": { "exact": "POST" } }] }))
            .asks(Ask::new("POST", "/").body("").is(201)).asks(get("/").is(202))
            .asks(Ask::new("POST", "/").body("").http2().is(201)),
        only("match-authority", &json!({ "headers": [{ "name": ":authority", "string_match": { "exact": "a.test" } }] }))
            .asks(get("/").host("a.test").is(201)).asks(get("/").host("b.test").is(202))
            .asks(get("/").host("a.test").http2().is(201)).asks(get("/").host("A.test").is(202)),
        only("match-query-present", &query(&json!({ "present_match": true })))
            .asks(get("/?q").is(201)).asks(get("/?q=").is(201)).asks(get("/?p=q").is(202))
            .asks(get("/?p&q=1").is(201)).asks(get("/?Q=1").is(202)),
        only("match-query-exact", &query(&json!({ "string_match": { "exact": "a b" } })))
            .asks(get("/?q=a%20b").is(202)).asks(get("/?q=a+b").is(202)).asks(get("/?q=x&q=y").is(202)),
        only("match-query-value", &query(&json!({ "string_match": { "exact": "v" } })))
            .asks(get("/?q=v").is(201)).asks(get("/?q=v&q=w").is(201)).asks(get("/?q=w&q=v").is(202))
            .asks(get("/?q=%76").is(202)).asks(get("/?q").is(202)),
        only("match-grpc", &json!({ "grpc": {} }))
            .asks(Ask::new("POST", "/a").with("content-type", "application/grpc").http2().is(200).body(""))
            .asks(Ask::new("POST", "/a").with("content-type", "application/json").body("").is(202)),
        only("match-all-of", &json!({
            "prefix": "/a",
            "headers": [{ "name": "x-a", "present_match": true }, { "name": "x-b", "string_match": { "exact": "2" } }],
            "query_parameters": [{ "name": "q", "present_match": true }],
        }))
            .asks(with_a("1").with("x-b", "2").is(202))
            .asks(get("/a?q").with("x-a", "1").with("x-b", "2").is(201))
            .asks(get("/a?q").with("x-a", "1").is(202)),
        case("match-first-wins", routes(json!([
            { "match": { "prefix": "/a" }, "direct_response": { "status": 201 } },
            { "match": { "path": "/a" }, "direct_response": { "status": 202 } },
        ])))
            .asks(get("/a").is(201)).asks(get("/b").is(404)),
        case("hosts", hosts(json!([
            { "name": "exact", "domains": ["a.test", "port.test:81"], "routes": [{ "match": { "prefix": "/" }, "direct_response": answers(200, "exact") }] },
            { "name": "suffix", "domains": ["*.a.test"], "routes": [{ "match": { "prefix": "/" }, "direct_response": answers(200, "suffix") }] },
            { "name": "longer", "domains": ["*.b.a.test"], "routes": [{ "match": { "prefix": "/" }, "direct_response": answers(200, "longer") }] },
            { "name": "prefix", "domains": ["a.*"], "routes": [{ "match": { "prefix": "/" }, "direct_response": answers(200, "prefix") }] },
        ])))
            .asks(get("/").host("a.test")).asks(get("/").host("A.Test")).asks(get("/").host("x.a.test"))
            .asks(get("/").host("x.b.a.test")).asks(get("/").host("a.other")).asks(get("/").host("other").is(404))
            .asks(get("/").host("a.test:80").is(200)).asks(get("/").host("port.test:81")).asks(get("/").host("port.test").is(404))
            .asks(get("/").host("a.test").http2()).asks(get("/").host("a.test.").is(200)).asks(get("/").host(".a.test").is(404)),
        case("hosts-without-ports", {
            let mut all = hosts(json!([
                { "name": "exact", "domains": ["a.test"], "routes": [{ "match": { "prefix": "/" }, "direct_response": answers(200, "exact") }] },
            ]));
            all["ignore_port_in_host_matching"] = true.into();
            all
        })
            .asks(get("/").host("a.test:8080")).asks(get("/").host("a.test")).asks(get("/").host("b.test:1").is(404)),
    ]
}

#[rustfmt::skip]
fn actions() -> Vec<Case> {
    vec![
        case("direct-response", routes(json!([
            { "match": { "path": "/empty" }, "direct_response": { "status": 204 } },
            { "match": { "path": "/teapot" }, "direct_response": answers(418, "short and stout") },
            { "match": { "path": "/error" }, "direct_response": answers(503, "by hand") },
        ])))
            .asks(get("/empty").is(204)).asks(get("/teapot").is(418)).asks(get("/error").is(503))
            .asks(Ask::new("HEAD", "/teapot").is(418)).asks(get("/teapot").http2().is(418))
            .asks(Ask::new("POST", "/teapot").body("unread").is(418))
            .asks(Ask::new("POST", "/teapot").with("content-type", "application/grpc").body("").http2()),
        redirects("redirect-host", &json!({ "host_redirect": "other.test" }))
            .asks(get("/a?b=c").is(301)).asks(get("/a").host("test:8080").is(301)).asks(get("/a").http2().is(301)),
        redirects("redirect-path", &json!({ "path_redirect": "/new" }))
            .asks(get("/a?b=c").is(301)).asks(Ask::new("POST", "/a").body("x").is(301)),
        redirects("redirect-path-with-query", &json!({ "path_redirect": "/new?x=1" })).asks(get("/a?b=c").is(301)),
        redirects("redirect-strip-query", &json!({ "path_redirect": "/new", "strip_query": true })).asks(get("/a?b=c").is(301)),
        redirects("redirect-prefix", &json!({ "prefix_rewrite": "/new" })).asks(get("/a?b=c").is(301)).asks(get("/").is(301)),
        redirects("redirect-https", &json!({ "https_redirect": true }))
            .asks(get("/a").is(301)).asks(get("/a").host("test:80").is(301)).asks(get("/a").host("test:8080").is(301)),
        redirects("redirect-scheme", &json!({ "scheme_redirect": "ftp", "port_redirect": 21, "response_code": "SEE_OTHER" })).asks(get("/a").is(303)),
        redirects("redirect-code", &json!({ "host_redirect": "o.test", "response_code": "PERMANENT_REDIRECT" })).asks(get("/").is(308)),
        redirects("redirect-found", &json!({ "host_redirect": "o.test", "response_code": "FOUND" })).asks(get("/").is(302)),
        redirects("redirect-regex", &json!({ "regex_rewrite": { "pattern": { "regex": "^/(.*)/x$" }, "substitution": "/y/\\1" } }))
            .asks(get("/a/x").is(301)).asks(get("/a").is(301)),
        rewrites("rewrite-prefix", "/a", &json!({ "prefix_rewrite": "/b" }))
            .asks(get("/a")).asks(get("/a/c?d")).asks(get("/ab")).asks(get("/a").http2()),
        rewrites("rewrite-prefix-to-root", "/a/", &json!({ "prefix_rewrite": "/" })).asks(get("/a/b")).asks(get("/a/")),
        rewrites("rewrite-regex", "/", &json!({ "regex_rewrite": { "pattern": { "regex": "/v(\\d+)/" }, "substitution": "/\\1/v/" } }))
            .asks(get("/v1/a?x=/v2/")).asks(get("/v1/v2/v3/")).asks(get("/none")),
        rewrites("rewrite-host", "/", &json!({ "host_rewrite_literal": "inner.test" })).asks(get("/")).asks(get("/").http2()),
        rewrites("rewrite-host-by-header", "/", &json!({ "host_rewrite_header": "x-host" }))
            .asks(get("/").with("x-host", "named.test")).asks(get("/")),
        rewrites("rewrite-host-by-path", "/", &json!({ "host_rewrite_path_regex": { "pattern": { "regex": "^/([^/]+)/.*$" }, "substitution": "\\1.test" } }))
            .asks(get("/who/x?y"))
            .asks(get("/").differs("status", "a rewrite that makes no valid host is refused; Envoy sends it")),
        rewrites("rewrite-host-appended", "/", &json!({ "host_rewrite_literal": "inner.test", "append_x_forwarded_host": true }))
            .asks(get("/")).asks(get("/").with("x-forwarded-host", "before.test")),
        case("cluster-header", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster_header": "x-to" } }])))
            .asks(get("/").with("x-to", "one")).asks(get("/").with("x-to", "two")).asks(get("/").with("x-to", "h2"))
            .asks(get("/").is(503)).asks(get("/").with("x-to", "nobody").is(503)),
        case("cluster-missing", routes(json!([
            { "match": { "path": "/404" }, "route": { "cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND" } },
            { "match": { "path": "/500" }, "route": { "cluster": "nowhere", "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR" } },
            { "match": { "path": "/503" }, "route": { "cluster": "nowhere" } },
        ]))).manager(json!({ "route_config": { "validate_clusters": false } }))
            .asks(get("/404").is(404)).asks(get("/500").is(500)).asks(get("/503").is(503)),
        case("cluster-dead", to("dead"))
            .asks(get("/").is(503)).asks(get("/").http2().is(503)),
        case("cluster-empty", to("empty")).asks(get("/").is(503)),
        case("weighted-zero", routes(json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [
            { "name": "one", "weight": 0 }, { "name": "two", "weight": 100 },
        ] } } }]))).asks(get("/")).asks(get("/")).asks(get("/")),
        case("require-tls", hosts(json!([{ "name": "a", "domains": ["*"], "require_tls": "ALL",
            "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }] }])))
            .asks(get("/a?b").is(301)).asks(Ask::new("POST", "/").body("").is(301)),
        case("timeout", routes(json!([
            { "match": { "prefix": "/short" }, "route": { "cluster": "one", "timeout": "0.3s" } },
            { "match": { "prefix": "/none" }, "route": { "cluster": "one", "timeout": "0s" } },
        ])))
            .asks(get("/short").answered(&json!({ "delay_ms": 1500 })).is(504))
            .asks(get("/short").answered(&json!({ "delay_ms": 1500 })).http2().is(504))
            .asks(get("/short")).asks(get("/none").answered(&json!({ "delay_ms": 500 }))),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    [matches(), actions()].concat()
}
