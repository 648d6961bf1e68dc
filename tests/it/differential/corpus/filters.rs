//! HTTP filters, and what routes say for them.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, routes, to, typed};

const CORS: &str = "extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: &str = "extensions.filters.http.cors.v3.CorsPolicy";
const FAULT: &str = "extensions.filters.http.fault.v3.HTTPFault";
const LIMIT: &str = "extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const MUTATION: &str = "extensions.filters.http.header_mutation.v3.HeaderMutation";
const MUTATION_PER_ROUTE: &str =
    "extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute";
const BUFFER: &str = "extensions.filters.http.buffer.v3.Buffer";
const BUFFER_PER_ROUTE: &str = "extensions.filters.http.buffer.v3.BufferPerRoute";
const HEALTH: &str = "extensions.filters.http.health_check.v3.HealthCheck";
const SET_METADATA: &str = "extensions.filters.http.set_metadata.v3.Config";
const RBAC: &str = "extensions.filters.http.rbac.v3.RBAC";
const RBAC_PER_ROUTE: &str = "extensions.filters.http.rbac.v3.RBACPerRoute";
const FILTER_CONFIG: &str = "config.route.v3.FilterConfig";

/// Everything to `one`; the route says this for the filter of that name.
fn said(filter: &str, type_: &str, config: Value) -> Value {
    all(&json!({ filter: typed(type_, config) }))
}

/// Everything to `one` by a route with this `typed_per_filter_config`.
fn all(per_filter: &Value) -> Value {
    routes(json!([{
        "match": { "prefix": "/" }, "route": { "cluster": "one" },
        "typed_per_filter_config": per_filter,
    }]))
}

fn cors(name: &'static str, policy: Value) -> Case {
    case(name, said("cors", CORS_POLICY, policy)).filter("cors", CORS, json!({}))
}

fn preflight(origin: &str) -> Ask {
    Ask::new("OPTIONS", "/")
        .with("origin", origin)
        .with("access-control-request-method", "PUT")
        .with("access-control-request-headers", "x-a,x-b")
}

fn from(origin: &str) -> Ask {
    get("/").with("origin", origin)
}

fn append(name: &str, value: &str, action: &str) -> Value {
    json!({ "append": { "header": { "key": name, "value": value }, "append_action": action } })
}

fn rbac(action: &str, path: &str) -> Value {
    json!({ "rules": { "action": action, "policies": { "p": {
        "permissions": [{ "url_path": { "path": { "prefix": path } } }],
        "principals": [{ "any": true }],
    } } } })
}

#[rustfmt::skip]
fn cors_cases() -> Vec<Case> {
    let a = json!([{ "exact": "http://a" }]);
    let full = json!({
        "allow_origin_string_match": a, "allow_methods": "GET,PUT", "allow_headers": "x-c", "expose_headers": "x-d",
        "max_age": "60", "allow_credentials": true, "allow_private_network_access": true,
    });
    let expose = |value: &str| json!({ "expose_headers": value });
    vec![
        cors("cors-plain", full.clone())
            .asks(get("/")).asks(from("http://a")).asks(from("http://a").http2()).asks(from("http://b")).asks(from(""))
            .asks(from("http://A")).asks(from("http://a").with("origin", "http://b").differs("upstream header origin", "values go on as they came"))
            .asks(from("http://a").answered(&json!({ "headers": [["access-control-allow-origin", "x"], ["access-control-expose-headers", "y"]] })))
            .asks(preflight("http://a")).asks(preflight("http://a").http2()).asks(preflight("http://b"))
            .asks(preflight("http://a").with("access-control-request-private-network", "true"))
            .asks(preflight("http://a").with("access-control-request-private-network", "1"))
            .asks(preflight("http://a").with("content-type", "application/grpc"))
            .asks(Ask::new("OPTIONS", "/").with("origin", "http://a"))
            .asks(Ask::new("PUT", "/").with("origin", "http://a").with("access-control-request-method", "PUT")),
        cors("cors-star", json!({ "allow_origin_string_match": [{ "exact": "*" }], "allow_methods": "*", "allow_headers": "*" }))
            .asks(from("http://b")).asks(preflight("http://b"))
            .asks(Ask::new("OPTIONS", "/").with("origin", "http://b").with("access-control-request-method", "A").with("access-control-request-method", "B")),
        cors("cors-regex", json!({ "allow_origin_string_match": [{ "safe_regex": { "regex": "http://[a-c]" } }, { "prefix": "https://" }] }))
            .asks(from("http://b")).asks(from("http://d")).asks(from("https://d")).asks(preflight("http://d")),
        cors("cors-answered-here", json!({ "allow_origin_string_match": a, "forward_not_matching_preflights": false, "allow_credentials": true, "max_age": "1" }))
            .asks(preflight("http://b")).asks(preflight("http://a")).asks(from("http://b")),
        cors("cors-off", json!({ "allow_origin_string_match": a, "filter_enabled": { "default_value": {} } }))
            .asks(from("http://a")).asks(preflight("http://a")),
        cors("cors-shadow", json!({ "allow_origin_string_match": a, "filter_enabled": { "default_value": {} }, "shadow_enabled": { "default_value": { "numerator": 100 } } }))
            .asks(from("http://a")).asks(preflight("http://a")).asks(preflight("http://b")),
        cors("cors-nobody", json!({ "allow_methods": "GET" })).asks(from("http://a")).asks(preflight("http://a")),
        case("cors-levels", json!({ "name": "routes",
            "typed_per_filter_config": { "cors": typed(CORS_POLICY, json!({ "max_age": "3", "allow_methods": "C", "allow_credentials": true })) },
            "virtual_hosts": [{ "name": "all", "domains": ["*"],
                "typed_per_filter_config": { "cors": typed(CORS_POLICY, json!({ "allow_origin_string_match": a, "allow_methods": "B", "allow_headers": "b" })) },
                "routes": [
                    { "match": { "prefix": "/off" }, "route": { "cluster": "one" },
                      "typed_per_filter_config": { "cors": typed(FILTER_CONFIG, json!({ "disabled": true })) } },
                    { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } },
                    { "match": { "prefix": "/bare" }, "route": { "cluster": "one" } },
                    { "match": { "prefix": "/" }, "route": { "cluster": "one" },
                      "typed_per_filter_config": { "cors": typed(CORS_POLICY, json!({ "allow_headers": "a", "allow_credentials": false })) } },
                ] }] })).filter("cors", CORS, json!({}))
            .asks(preflight("http://a")).asks(from("http://a")).asks(Ask { target: "/bare".into(), ..preflight("http://a") })
            .asks(Ask { target: "/off".into(), ..preflight("http://a") }).asks(Ask { target: "/direct".into(), ..preflight("http://a") })
            .asks(get("/direct").with("origin", "http://a")),
        case("cors-fields", hosts(json!([{ "name": "all", "domains": ["*"], "cors": full, "routes": [
                { "match": { "prefix": "/own" }, "route": { "cluster": "one", "cors": { "allow_headers": "own", "max_age": "5" } } },
                { "match": { "prefix": "/said" }, "route": { "cluster": "one", "cors": { "max_age": "5" } },
                  "typed_per_filter_config": { "cors": typed(CORS_POLICY, json!({ "max_age": "6" })) } },
                { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
            ] }]))).filter("cors", CORS, json!({}))
            .asks(preflight("http://a")).asks(Ask { target: "/own".into(), ..preflight("http://a") }).asks(from("http://a"))
            .asks(Ask { target: "/said".into(), ..preflight("http://a") }),
        case("cors-order", said("cors", CORS_POLICY, json!({ "allow_origin_string_match": a })))
            .filter("first", MUTATION, json!({ "mutations": { "response_mutations": [append("access-control-allow-origin", "first", "APPEND_IF_EXISTS_OR_ADD")] } }))
            .filter("cors", CORS, json!({}))
            .filter("last", MUTATION, json!({ "mutations": { "response_mutations": [append("access-control-allow-origin", "last", "APPEND_IF_EXISTS_OR_ADD")] } }))
            .filter("rbac", RBAC, rbac("DENY", "/no"))
            .asks(from("http://a")).asks(from("http://b")).asks(Ask { target: "/no".into(), ..from("http://a") }.is(403)).asks(preflight("http://a")),
        case("cors-filter-absent", said("cors", CORS_POLICY, expose("x"))).asks(from("http://a")),
    ]
}

#[rustfmt::skip]
fn mutation_cases() -> Vec<Case> {
    let both = |request: Value, response: Value| json!({ "mutations": { "request_mutations": request, "response_mutations": response } });
    let level = |value: &str| both(json!([append("x-level", value, "APPEND_IF_EXISTS_OR_ADD")]), json!([append("x-level", value, "APPEND_IF_EXISTS_OR_ADD")]));
    let leveled = |wins: bool| {
        let mut own = level("filter");
        own["most_specific_header_mutations_wins"] = wins.into();
        let per = |value: &str| json!({ "m": typed(MUTATION_PER_ROUTE, level(value)) });
        let routes = json!({ "name": "routes", "typed_per_filter_config": per("configuration"), "virtual_hosts": [{
            "name": "all", "domains": ["*"], "typed_per_filter_config": per("host"), "routes": [
                { "match": { "prefix": "/w" }, "typed_per_filter_config": per("route"),
                  "route": { "weighted_clusters": { "clusters": [{ "name": "one", "weight": 1, "typed_per_filter_config": per("cluster") }] } } },
                { "match": { "prefix": "/off" }, "route": { "cluster": "one" },
                  "typed_per_filter_config": { "m": typed(FILTER_CONFIG, json!({ "disabled": true })) } },
                { "match": { "prefix": "/direct" }, "direct_response": { "status": 418 }, "typed_per_filter_config": per("route") },
                { "match": { "prefix": "/" }, "route": { "cluster": "one" }, "typed_per_filter_config": per("route") },
            ] }] });
        (routes, own)
    };
    let mut cases = vec![
        case("header-mutation", to("one")).filter("m", MUTATION, both(
            json!([append("x-new", "%REQ(:PATH)% %PROTOCOL%", "OVERWRITE_IF_EXISTS_OR_ADD"), { "remove": "x-gone" },
                append("x-a", "more", "APPEND_IF_EXISTS_OR_ADD"), append("x-b", "absent", "ADD_IF_ABSENT"), append("x-c", "over", "OVERWRITE_IF_EXISTS")]),
            json!([append("x-new", "%RESPONSE_CODE% %REQ(x-new)%", "OVERWRITE_IF_EXISTS_OR_ADD"), { "remove": "x-gone" }, append("x-a", "more", "APPEND_IF_EXISTS_OR_ADD")])))
            .asks(get("/p?q")).asks(get("/").with("x-gone", "1").with("x-a", "1").with("x-b", "1").with("x-c", "1"))
            .asks(get("/").http2().with("x-a", "1").with("x-a", "2"))
            .asks(get("/").answered(&json!({ "status": 500, "headers": [["x-gone", "1"], ["x-a", "1"]] })).is(500)),
        case("header-mutation-before-rbac", to("one"))
            .filter("m", MUTATION, both(json!([append("x-let", "in", "OVERWRITE_IF_EXISTS_OR_ADD"), { "remove": "x-bad" }]), json!([append("x-out", "1", "ADD_IF_ABSENT")])))
            .filter("rbac", RBAC, json!({ "rules": { "action": "DENY", "policies": { "p": {
                "permissions": [{ "header": { "name": "x-bad", "present_match": true } }, { "not_rule": { "header": { "name": "x-let", "string_match": { "exact": "in" } } } }],
                "principals": [{ "any": true }] } } } }))
            .asks(get("/")).asks(get("/").with("x-bad", "1")).asks(get("/").with("x-let", "out")),
        case("header-mutation-no-route", routes(json!([{ "match": { "path": "/a" }, "route": { "cluster": "dead" } }])))
            .filter("m", MUTATION, both(json!([]), json!([append("x-out", "%RESPONSE_CODE%", "ADD_IF_ABSENT")])))
            .asks(get("/b").is(404)).asks(get("/a").is(503)),
    ];
    for (name, wins) in [("header-mutation-levels", false), ("header-mutation-specific-wins", true)] {
        let (routes, own) = leveled(wins);
        cases.push(case(name, routes).filter("m", MUTATION, own)
            .asks(get("/")).asks(get("/w")).asks(get("/off")).asks(get("/direct").is(418)));
    }
    cases
}

#[rustfmt::skip]
fn rbac_cases() -> Vec<Case> {
    let own = |rules: Value| json!({ "rbac": typed(RBAC_PER_ROUTE, json!({ "rbac": rules })) });
    let off = json!({ "rbac": typed(FILTER_CONFIG, json!({ "disabled": true })) });
    let routes = json!([
        { "match": { "prefix": "/own" }, "route": { "cluster": "one" }, "typed_per_filter_config": own(rbac("DENY", "/own/no")) },
        { "match": { "prefix": "/none" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "rbac": typed(RBAC_PER_ROUTE, json!({})) } },
        { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": off },
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 }, "typed_per_filter_config": own(rbac("ALLOW", "/direct/yes")) },
        { "match": { "prefix": "/w" }, "typed_per_filter_config": own(rbac("ALLOW", "/w/route")),
          "route": { "weighted_clusters": { "clusters": [{ "name": "one", "weight": 1, "typed_per_filter_config": own(rbac("ALLOW", "/w/cluster")) }] } } },
        { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
    ]);
    let host = |per: Value| hosts(json!([{ "name": "all", "domains": ["*"], "routes": routes, "typed_per_filter_config": per }]));
    let asked = |case: Case| case.asks(get("/own")).asks(get("/own/no").is(403)).asks(get("/none")).asks(get("/off"))
        .asks(get("/direct").is(403)).asks(get("/direct/yes")).asks(get("/w/route").is(403)).asks(get("/w/cluster"));
    vec![
        asked(case("rbac-per-route", host(json!({}))).filter("rbac", RBAC, rbac("ALLOW", "/yes")))
            .asks(get("/yes")).asks(get("/other").is(403)),
        asked(case("rbac-per-host", host(own(rbac("ALLOW", "/host")))).filter("rbac", RBAC, rbac("ALLOW", "/yes")))
            .asks(get("/yes").is(403)).asks(get("/host")),
        case("rbac-other-name", all(&json!({ "other": typed(RBAC_PER_ROUTE, json!({})) }))).filter("rbac", RBAC, rbac("ALLOW", "/yes"))
            .asks(get("/yes")).asks(get("/other").is(403)),
    ]
}

fn fault(name: &'static str, config: Value) -> Case {
    case(name, to("one")).filter("fault", FAULT, config)
}

#[rustfmt::skip]
fn fault_cases() -> Vec<Case> {
    let all = json!({ "numerator": 100 });
    let abort = |status: u16| json!({ "abort": { "http_status": status, "percentage": all } });
    let grpc = |ask: Ask| ask.with("content-type", "application/grpc");
    let by_header = json!({ "abort": { "header_abort": {}, "percentage": all }, "delay": { "header_delay": {}, "percentage": all } });
    let narrow = |name: &'static str, more: Value| {
        let mut config = abort(418);
        super::merge(&mut config, more);
        fault(name, config)
    };
    let per = |config: Value| json!({ "fault": typed(FAULT, config) });
    vec![
        fault("fault-abort", abort(503)).asks(get("/").is(503)).asks(get("/").http2().is(503)).asks(Ask::new("HEAD", "/").is(503))
            .asks(Ask::new("POST", "/").body("five!").is(503)).asks(Ask::new("POST", "/").body("five!").http2().is(503))
            .asks(grpc(Ask::new("POST", "/")).http2()).asks(grpc(Ask::new("POST", "/"))),
        fault("fault-abort-200", abort(200)).asks(get("/")),
        fault("fault-abort-grpc", json!({ "abort": { "grpc_status": 5, "percentage": all } }))
            .asks(get("/")).asks(grpc(Ask::new("POST", "/")).http2()).asks(grpc(Ask::new("POST", "/"))),
        fault("fault-never", json!({ "abort": { "http_status": 503 }, "delay": { "fixed_delay": "100s", "percentage": {} } })).asks(get("/")),
        fault("fault-delay", json!({ "delay": { "fixed_delay": "0.05s", "percentage": all } })).asks(get("/")).asks(Ask::new("POST", "/").body("five!")),
        fault("fault-delay-abort", json!({ "delay": { "fixed_delay": "0.01s", "percentage": all }, "abort": { "http_status": 500, "percentage": all } })).asks(get("/").is(500)),
        fault("fault-headers", by_header.clone())
            .asks(get("/")).asks(get("/").with("x-envoy-fault-abort-request", "418").is(418)).asks(get("/").with("x-envoy-fault-abort-request", "199"))
            .asks(get("/").with("x-envoy-fault-abort-request", "600")).asks(get("/").with("x-envoy-fault-abort-request", "x"))
            .asks(get("/").with("x-envoy-fault-abort-request", " 418 ").is(418)).asks(get("/").with("x-envoy-fault-abort-request", "+418").is(418))
            .asks(get("/").with("x-envoy-fault-abort-request", "418").with("x-envoy-fault-abort-request", "419").is(418))
            .asks(get("/").with("x-envoy-fault-abort-request", "418").with("x-envoy-fault-abort-request-percentage", "0"))
            .asks(get("/").with("x-envoy-fault-abort-request", "418").with("x-envoy-fault-abort-request-percentage", "1000").is(418))
            .asks(get("/").with("x-envoy-fault-abort-request", "418").with("x-envoy-fault-abort-request-percentage", "-1").is(418))
            .asks(get("/").with("x-envoy-fault-abort-grpc-request", "7")).asks(grpc(Ask::new("POST", "/")).with("x-envoy-fault-abort-grpc-request", "7"))
            .asks(grpc(Ask::new("POST", "/")).with("x-envoy-fault-abort-grpc-request", "777"))
            .asks(get("/").with("x-envoy-fault-abort-grpc-request", "7").with("x-envoy-fault-abort-request", "418").is(418))
            .asks(get("/").with("x-envoy-fault-delay-request", "20")).asks(get("/").with("x-envoy-fault-delay-request", "-20")),
        fault("fault-headers-percentage", json!({ "abort": { "header_abort": {}, "percentage": { "numerator": 0 } } }))
            .asks(get("/").with("x-envoy-fault-abort-request", "418").with("x-envoy-fault-abort-request-percentage", "100")),
        narrow("fault-cluster", json!({ "upstream_cluster": "one" })).asks(get("/").is(418)),
        narrow("fault-other-cluster", json!({ "upstream_cluster": "two" })).asks(get("/")),
        narrow("fault-nodes", json!({ "downstream_nodes": ["a", "b"] })).asks(get("/"))
            .asks(get("/").with("x-envoy-downstream-service-node", "b").is(418)).asks(get("/").with("x-envoy-downstream-service-node", "c")),
        narrow("fault-matched", json!({ "headers": [{ "name": "x-a", "string_match": { "exact": "1" } }, { "name": ":path", "string_match": { "prefix": "/p" } }] }))
            .asks(get("/p")).asks(get("/p").with("x-a", "1").is(418)).asks(get("/").with("x-a", "1")),
        narrow("fault-none-active", json!({ "max_active_faults": 0 })).asks(get("/")),
        fault("fault-idle", json!({ "delay": { "fixed_delay": "5s", "percentage": all } })).manager(json!({ "stream_idle_timeout": "0.2s" })).asks(get("/").is(504)),
        case("fault-per-route", routes(json!([
                { "match": { "prefix": "/own" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(abort(418)) },
                { "match": { "prefix": "/never" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(json!({})) },
                { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 }, "typed_per_filter_config": per(abort(419)) },
                { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
            ]))).filter("fault", FAULT, abort(503))
            .asks(get("/own").is(418)).asks(get("/never")).asks(get("/direct").is(419)).asks(get("/").is(503)),
        fault("fault-bad-status", abort(199)).refused_by_both("http_status: 199 is not within", "FaultAbort"),
    ]
}

/// A limit of so many requests in a thousand seconds, with these fields.
fn limit(tokens: u32, more: Value) -> Value {
    let all = json!({ "default_value": { "numerator": 100 } });
    let bucket = json!({ "max_tokens": tokens, "fill_interval": "1000s" });
    let mut config = json!({
        "stat_prefix": "l", "filter_enabled": all, "filter_enforced": all, "token_bucket": bucket,
    });
    super::merge(&mut config, more);
    config
}

fn limited(name: &'static str, tokens: u32, more: Value) -> Case {
    case(name, to("one")).filter("limit", LIMIT, limit(tokens, more))
}

#[rustfmt::skip]
fn limit_cases() -> Vec<Case> {
    let header = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
    let bucket = |tokens: u32| json!({ "max_tokens": tokens, "fill_interval": "1000s" });
    let entry = |key: &str, value: &str| json!({ "key": key, "value": value });
    let by_header = json!({ "request_headers": { "header_name": "x-a", "descriptor_key": "a" } });
    let generic = |value: &str| json!({ "generic_key": { "descriptor_value": value } });
    let counted = |name: &'static str, own: Value, host: Value, fields: Value, more: Value| {
        let mut route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "one", "rate_limits": own } });
        super::merge(&mut route, fields);
        case(name, hosts(json!([{ "name": "all", "domains": ["*"], "routes": [route], "rate_limits": host }])))
            .filter("limit", LIMIT, limit(100, more))
    };
    let grpc = |ask: Ask| ask.with("content-type", "application/grpc");
    let told = json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" });
    let of_both = json!({ "descriptors": [{ "entries": [entry("generic_key", "own")], "token_bucket": bucket(2) },
        { "entries": [entry("generic_key", "host")], "token_bucket": bucket(1) }], "enable_x_ratelimit_headers": "DRAFT_VERSION_03" });
    let vh = |option: &str| { let mut more = of_both.clone(); more["vh_rate_limits"] = option.into(); more };
    let one = |value: &str| json!([{ "actions": [generic(value)] }]);
    vec![
        limited("limit-plain", 2, json!({})).asks(get("/")).asks(get("/").http2()).asks(get("/").is(429)).asks(get("/").http2().is(429)).asks(grpc(Ask::new("POST", "/"))),
        limited("limit-none", 0, told.clone()).asks(get("/").is(429)),
        limited("limit-status", 0, json!({ "status": { "code": "ServiceUnavailable" }, "response_headers_to_add": [header("x-l", "%RESPONSE_CODE% %REQ(:PATH)%"), header("x-l", "2")] }))
            .asks(get("/p").is(503)).asks(grpc(Ask::new("POST", "/"))),
        limited("limit-no-error", 0, json!({ "status": { "code": "OK" }, "rate_limited_as_resource_exhausted": true }))
            .asks(get("/").is(429)).asks(grpc(Ask::new("POST", "/"))).asks(grpc(Ask::new("POST", "/")).http2()),
        limited("limit-told", 2, told.clone()).asks(get("/")).asks(get("/").answered(&json!({ "headers": [["x-ratelimit-limit", "9"]] }))).asks(get("/").is(429)),
        limited("limit-told-odd", 1, json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "token_bucket": { "fill_interval": "100.9s" } })).asks(get("/")),
        limited("limit-off", 0, json!({ "filter_enabled": { "default_value": { "numerator": 0 } } })).asks(get("/")),
        limited("limit-lenient", 0, json!({ "filter_enforced": { "default_value": { "numerator": 0 } }, "request_headers_to_add_when_not_enforced": [header("x-over", "%REQ(:PATH)%")] }))
            .asks(get("/p")),
        limited("limit-connection", 1, json!({ "local_rate_limit_per_downstream_connection": true })).asks(get("/")).asks(get("/"))
            .asks(Ask::bytes("GET / HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\n\r\n").then("GET / HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\nconnection: close\r\n\r\n")),
        counted("limit-descriptors", json!([{ "actions": [by_header] }]), json!([]), json!({}), json!({
                "descriptors": [{ "entries": [entry("a", "1")], "token_bucket": bucket(1) }, { "entries": [entry("a", "")], "token_bucket": bucket(2) }],
                "enable_x_ratelimit_headers": "DRAFT_VERSION_03" }))
            .asks(get("/")).asks(get("/").with("x-a", "1")).asks(get("/").with("x-a", "1").is(429)).asks(get("/").with("x-a", "2")).asks(get("/").with("x-a", "2"))
            .asks(get("/").with("x-a", "2").is(429)).asks(get("/").with("x-a", "3")).asks(get("/").with("x-a", "1").with("x-a", "3").is(429)),
        counted("limit-actions", json!([
                { "actions": [generic("g"), { "destination_cluster": {} }, { "header_value_match": { "descriptor_value": "m", "headers": [{ "name": "x-m", "present_match": true }] } }] },
                { "actions": [{ "header_value_match": { "descriptor_value": "n", "descriptor_key": "not", "expect_match": false, "headers": [{ "name": "x-m", "present_match": true }] } }, { "masked_remote_address": { "v4_prefix_mask_len": 8 } }] },
                { "actions": [generic("h")], "hits_addend": { "number": 3 } }, { "stage": 1, "actions": [generic("i")] }, { "disable_key": "k", "actions": [generic("i")] },
            ]), json!([]), json!({}), json!({ "descriptors": [
                { "entries": [entry("generic_key", "g"), entry("destination_cluster", "one"), entry("header_match", "m")], "token_bucket": bucket(1) },
                { "entries": [entry("not", "n"), entry("masked_remote_address", "10.0.0.0/8")], "token_bucket": bucket(2) },
                { "entries": [entry("generic_key", "h")], "token_bucket": bucket(12) }, { "entries": [entry("generic_key", "i")], "token_bucket": bucket(0) } ] }))
            .asks(get("/").with("x-m", "1")).asks(get("/").with("x-m", "1").is(429)).asks(get("/")).asks(get("/")).asks(get("/").is(429)),
        // Filters' own limits count it; those of routes do not.
        counted("limit-hits", json!([{ "actions": [generic("h")], "hits_addend": { "number": 6 } }]), json!([]), json!({}), json!({ "descriptors": [{ "entries": [entry("generic_key", "h")], "token_bucket": bucket(10) }] })).asks(get("/")).asks(get("/")).asks(get("/")),
        counted("limit-hits-default", json!([{ "actions": [generic("h")], "hits_addend": { "number": 6 } }]), json!([]), json!({}), json!({ "token_bucket": bucket(10) })).asks(get("/")).asks(get("/")).asks(get("/")),
        limited("limit-hits-own", 100, json!({ "rate_limits": [{ "actions": [generic("h")], "hits_addend": { "number": 6 } }], "descriptors": [{ "entries": [entry("generic_key", "h")], "token_bucket": bucket(10) }] })).asks(get("/")).asks(get("/").is(429)).asks(get("/").is(429)),
        counted("limit-host-override", one("own"), one("host"), json!({}), of_both.clone()).asks(get("/")).asks(get("/")).asks(get("/").is(429)),
        counted("limit-host-override-none", json!([]), one("host"), json!({}), of_both.clone()).asks(get("/")).asks(get("/").is(429)),
        counted("limit-host-include", one("own"), one("host"), json!({}), vh("INCLUDE")).asks(get("/")).asks(get("/").is(429)),
        counted("limit-host-ignore", json!([]), one("host"), json!({}), vh("IGNORE")).asks(get("/")).asks(get("/")),
        counted("limit-host-said", one("own"), one("host"), json!({ "route": { "include_vh_rate_limits": true } }), vh("IGNORE")).asks(get("/")).asks(get("/").is(429)),
        limited("limit-own-actions", 100, json!({ "rate_limits": [{ "actions": [generic("own")] }],
                "descriptors": [{ "entries": [entry("generic_key", "own")], "token_bucket": bucket(1) }] }))
            .asks(get("/")).asks(get("/").is(429)),
        limited("limit-default-spared", 1, json!({ "rate_limits": [{ "actions": [by_header] }], "always_consume_default_token_bucket": false,
                "descriptors": [{ "entries": [entry("a", "1")], "token_bucket": bucket(2) }] }))
            .asks(get("/").with("x-a", "1")).asks(get("/").with("x-a", "1")).asks(get("/").with("x-a", "1").is(429)).asks(get("/")).asks(get("/").is(429)),
        case("limit-per-route", routes(json!([
                { "match": { "prefix": "/own" }, "route": { "cluster": "one" }, "typed_per_filter_config": { "limit": typed(LIMIT, limit(1, json!({}))) } },
                { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 }, "typed_per_filter_config": { "limit": typed(LIMIT, limit(0, json!({}))) } },
                { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
            ]))).filter("limit", LIMIT, json!({ "stat_prefix": "l" }))
            .asks(get("/")).asks(get("/own")).asks(get("/own").is(429)).asks(get("/")).asks(get("/direct").is(429)),
        limited("limit-fast", 1, json!({ "token_bucket": { "fill_interval": "0.01s" } })).refused_by_both("token_bucket.fill_interval: is less than 50 ms", "must be >= 50ms"),
        limited("limit-twice", 1, json!({ "descriptors": [{ "entries": [entry("a", "1")], "token_bucket": bucket(1) }, { "entries": [entry("a", "1")], "token_bucket": bucket(2) }] }))
            .refused_by_both("descriptors[1]: is given twice", "duplicate descriptor"),
        limited("limit-shared", 1, json!({ "local_cluster_rate_limit": {} })).refused_by_both("local_cluster_rate_limit: is not supported", "no local cluster name"),
    ]
}

/// Tells what is noted in that namespace, on both ways.
fn told(case: Case, namespace: &str, keys: &[&str]) -> Case {
    let additions: Vec<Value> = keys
        .iter()
        .map(|key| {
            let value = format!("[%DYNAMIC_METADATA({namespace}:{key})%]");
            append(&format!("x-{}", key.replace([':', '_'], "-")), &value, "ADD_IF_ABSENT")
        })
        .collect();
    let mutations = json!({ "request_mutations": additions, "response_mutations": additions });
    case.filter("told", MUTATION, json!({ "mutations": mutations }))
}

/// Judged by rules in force as well.
fn enforced(ask: Ask) -> Ask {
    let reason = "what rules in force have said is in the access log, not in metadata";
    let upstream = "upstream header x-enforced-engine-result";
    let ask = ask.differs("header x-enforced-engine-result", reason);
    if ask.expected == 200 { ask.differs(upstream, reason) } else { ask }
}

#[rustfmt::skip]
fn metadata_cases() -> Vec<Case> {
    let set = |name: &'static str, entries: Value| case(name, to("one")).filter("set", SET_METADATA, json!({ "metadata": entries }));
    let metadata = |path: &str, value: Value| json!({ "metadata": { "filter": "ns", "path": [{ "key": path }], "value": value } });
    let allow = |case: Case, principal: Value| case.filter("rbac", RBAC, json!({ "rules": { "action": "ALLOW", "policies": { "p": {
        "permissions": [{ "any": true }], "principals": [principal] } } } }));
    let abc = json!({ "a": "x", "n": 7, "f": 1.5, "t": true, "s": { "in": "deep", "l": [1] }, "l": ["p", "q"] });
    let shadowed = |name: &'static str, shadow: Value| told(case(name, to("one")).filter("rbac", RBAC, shadow), "envoy.filters.http.rbac",
        &["shadow_engine_result", "shadow_effective_policy_id", "s_shadow_engine_result", "enforced_engine_result"]);
    let mut both = rbac("DENY", "/no");
    both["shadow_rules"] = rbac("ALLOW", "/yes")["rules"].clone();
    both["shadow_rules_stat_prefix"] = "s_".into();
    let only = |action: &str, path: &str| json!({ "shadow_rules": rbac(action, path)["rules"] });
    vec![
        told(set("metadata-set", json!([{ "metadata_namespace": "ns", "value": abc }])), "ns", &["a", "n", "f", "t", "s:in", "s", "l", "none"]).asks(get("/")),
        told(set("metadata-kept", json!([{ "metadata_namespace": "ns", "value": { "a": "first" } }, { "metadata_namespace": "ns", "value": { "a": "second", "b": "new" } }])), "ns", &["a", "b"]).asks(get("/")),
        told(set("metadata-merged", json!([{ "metadata_namespace": "ns", "value": abc }, { "metadata_namespace": "ns", "allow_overwrite": true,
            "value": { "a": "second", "n": "text", "s": { "l": [2], "more": 1 }, "l": ["r"] } }])), "ns", &["a", "n", "s:in", "s:more", "s:l", "l"]).asks(get("/")),
        allow(set("metadata-rbac", json!([{ "metadata_namespace": "ns", "value": abc }])), metadata("a", json!({ "string_match": { "exact": "x" } }))).asks(get("/")),
        allow(set("metadata-rbac-other", json!([{ "metadata_namespace": "ns", "value": abc }])), metadata("a", json!({ "string_match": { "exact": "y" } }))).asks(get("/").is(403)),
        allow(case("metadata-rbac-absent", to("one")), metadata("a", json!({ "string_match": { "exact": "x" } }))).asks(get("/").is(403)),
        allow(set("metadata-rbac-list", json!([{ "metadata_namespace": "ns", "value": abc }])), metadata("l", json!({ "list_match": { "one_of": { "string_match": { "exact": "q" } } } }))).asks(get("/")),
        shadowed("shadow-only", only("ALLOW", "/yes")).asks(get("/yes")).asks(get("/no")),
        shadowed("shadow-deny", only("DENY", "/no")).asks(get("/yes")).asks(get("/no")),
        shadowed("shadow-log", only("LOG", "/no")).asks(get("/yes")).asks(get("/no")),
        shadowed("shadow-both", both).asks(enforced(get("/yes"))).asks(enforced(get("/no").is(403))).asks(enforced(get("/other"))),
        case("shadow-per-route", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "one" },
                "typed_per_filter_config": { "rbac": typed(RBAC_PER_ROUTE, json!({ "rbac": only("DENY", "/") })) } }])))
            .filter("rbac", RBAC, rbac("DENY", "/")).asks(get("/")),
    ]
}

#[rustfmt::skip]
fn buffer_cases() -> Vec<Case> {
    let per = |config: Value| json!({ "buffer": typed(BUFFER_PER_ROUTE, config) });
    let post = |body: &str| Ask::new("POST", "/").body(body);
    let chunked = |body: &str| post(body).with("transfer-encoding", "chunked");
    vec![
        case("buffer", to("one")).filter("b", BUFFER, json!({ "max_request_bytes": 10 }))
            .asks(get("/")).asks(post("0123456789")).asks(chunked("0123456789")).asks(post("0123456789").http2()).asks(post("").with("transfer-encoding", "chunked"))
            .asks(post("01234567890").is(413)).asks(chunked("01234567890").is(413)).asks(post("01234567890").http2().differs("status", "Envoy lets on what comes in one frame, whatever its length"))
            .asks(post("t").trailer("x-trailer", "1").http2()),
        case("buffer-h2", to("h2")).filter("b", BUFFER, json!({ "max_request_bytes": 10 }))
            .asks(chunked("0123456789")).asks(post("0123456789").http2()).asks(post("t").trailer("x-trailer", "1").http2()),
        case("buffer-per-route", routes(json!([
                { "match": { "prefix": "/off" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(json!({ "disabled": true })) },
                { "match": { "prefix": "/more" }, "route": { "cluster": "one" }, "typed_per_filter_config": per(json!({ "buffer": { "max_request_bytes": 20 } })) },
                { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
            ]))).filter("buffer", BUFFER, json!({ "max_request_bytes": 10 }))
            .asks(Ask::new("POST", "/off").body("01234567890")).asks(Ask::new("POST", "/more").body("01234567890")).asks(post("01234567890").is(413)),
    ]
}

#[rustfmt::skip]
fn health_cases() -> Vec<Case> {
    let named = |ask: Ask| ask.differs("header x-envoy-upstream-healthchecked-cluster", "the two nodes are in clusters of other names");
    let health = |name: &'static str, mut config: Value| {
        config["headers"] = json!([{ "name": ":path", "string_match": { "exact": "/ready" } }]);
        case(name, to("one")).filter("health", HEALTH, config)
    };
    vec![
        health("health-here", json!({ "pass_through_mode": false })).asks(named(get("/ready"))).asks(named(get("/ready").http2())).asks(get("/ready?q")).asks(get("/"))
            .asks(named(Ask::new("POST", "/ready").with("content-type", "application/grpc"))),
        health("health-there", json!({ "pass_through_mode": true })).asks(named(get("/ready"))).asks(named(get("/ready").answered(&json!({ "status": 503 })).is(503))).asks(get("/")),
        health("health-mode", json!({})).refused_by_both("pass_through_mode: is missing", "PassThroughMode"),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    [
        health_cases(),
        metadata_cases(),
        buffer_cases(),
        limit_cases(),
        cors_cases(),
        fault_cases(),
        mutation_cases(),
        rbac_cases(),
    ]
    .concat()
}
