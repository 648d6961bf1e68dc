//! Rate limits that a server counts.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, routes, to, typed};

const LIMIT: &str = "extensions.filters.http.ratelimit.v3.RateLimit";
const PER_ROUTE: &str = "extensions.filters.http.ratelimit.v3.RateLimitPerRoute";

/// What the server is to do: an entry of the only descriptor.
fn how() -> Value {
    json!({ "actions": [{ "request_headers": { "header_name": "x-authority", "descriptor_key": "how", "skip_if_absent": true } },
                        { "generic_key": { "descriptor_value": "all" } }] })
}

fn says(how: &str) -> Ask {
    get("/a").with("x-authority", how)
}

fn config(cluster: &str, fields: Value) -> Value {
    let service = json!({ "envoy_grpc": { "cluster_name": cluster } });
    let mut config = json!({
        "domain": "d", "timeout": "2s",
        "rate_limit_service": { "transport_api_version": "V3", "grpc_service": service },
    });
    super::merge(&mut config, fields);
    config
}

/// Everything to `one`, counted at that cluster.
fn counted_at(name: &'static str, cluster: &str, fields: Value) -> Case {
    let routes = routes(
        json!([{ "match": { "prefix": "/" }, "route": { "cluster": "one", "rate_limits": [how()] } }]),
    );
    case(name, routes).filter("rl", LIMIT, config(cluster, fields))
}

fn counted(name: &'static str, fields: Value) -> Case {
    counted_at(name, "grpc-authority", fields)
}

fn key(value: &str) -> Value {
    json!({ "actions": [{ "generic_key": { "descriptor_value": value } }] })
}

fn staged(stage: u32, value: &str) -> Value {
    let mut limit = key(value);
    limit["stage"] = stage.into();
    limit
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let half = |percent: u32| json!({ "default_value": { "numerator": percent } });
    let grpc = |ask: Ask| ask.with("content-type", "application/grpc").http2();
    let post = Ask::new("POST", "/a").body("0123456789");
    let hits = |number: u64| json!({ "actions": [{ "generic_key": { "descriptor_value": "h" } }], "hits_addend": { "number": number } });
    let by_routes = |name: &'static str, fields: Value, host: Value, all: Value| {
        case(name, hosts(json!([{ "name": "all", "domains": ["*"], "rate_limits": host, "routes": all }]))).filter("rl", LIMIT, config("grpc-authority", fields))
    };
    let route = |prefix: &str, more: Value, per_route: Value| {
        let mut route = json!({ "match": { "prefix": prefix }, "route": { "cluster": "one" } });
        super::merge(&mut route["route"], more);
        if !per_route.is_null() { route["typed_per_filter_config"] = json!({ "rl": typed(PER_ROUTE, per_route) }); }
        route
    };
    let own = json!({ "rate_limits": [key("route")] });
    vec![
        counted("rls: answers", json!({}))
            .asks(get("/a")).asks(get("/").http2()).asks(says("over").is(429)).asks(says("over").http2().is(429)).asks(says("over-bare").is(429))
            .asks(says("over-typed").is(429)).asks(grpc(says("over"))).asks(grpc(says("over-bare"))).asks(says("error")).asks(says("slow"))
            .asks(post.clone()).asks(post.http2().with("x-authority", "over").is(429)).asks(says("over-unlimited").is(429))
            .asks(says("unknown").differs("upstream header x-asked", "an answer that says neither yes nor no is none").differs("header x-for-client", "the same")),
        counted("rls: failures are denied", json!({ "failure_mode_deny": true })).asks(get("/a")).asks(says("error").is(500)).asks(says("slow").is(500)).asks(grpc(says("error"))),
        counted("rls: some failures are denied", json!({ "failure_mode_deny": true, "failure_mode_deny_percent": half(0) })).asks(says("error")),
        counted("rls: all failures are denied", json!({ "failure_mode_deny_percent": half(100), "status_on_error": { "code": "ServiceUnavailable" } })).asks(says("error").is(503)),
        counted_at("rls: nobody there", "dead", json!({ "failure_mode_deny": true })).asks(get("/").is(500)),
        counted_at("rls: no cluster", "nowhere", json!({ "failure_mode_deny": true })).asks(get("/").is(500)),
        counted_at("rls: no cluster, let pass", "nowhere", json!({})).asks(get("/")),
        counted("rls: what clients are told", json!({
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03", "rate_limited_status": { "code": "ServiceUnavailable" }, "rate_limited_as_resource_exhausted": true,
            "disable_x_envoy_ratelimited_header": true, "response_headers_to_add": [{ "header": { "key": "x-over", "value": "%REQ(x-authority)%" } }],
        }))
            .asks(get("/a")).asks(says("over").is(503)).asks(grpc(says("over"))).asks(says("unlimited")).asks(says("over-unlimited").is(503)),
        counted("rls: a status that is none", json!({ "rate_limited_status": { "code": "OK" } })).asks(says("over").is(429)),
        counted("rls: not enforced", json!({ "filter_enforced": half(0), "enable_x_ratelimit_headers": "DRAFT_VERSION_03" })).asks(says("over")).asks(get("/")),
        counted("rls: not enabled", json!({ "filter_enabled": half(0) })).asks(says("over")),
        counted("rls: internal requests", json!({ "request_type": "internal" })).asks(says("over")).asks(says("over").with("x-envoy-internal", "true")),
        counted("rls: external requests", json!({ "request_type": "external" })).asks(says("over").is(429)),
        counted("rls: metadata", json!({}))
            .filter("told", "extensions.filters.http.header_mutation.v3.HeaderMutation", json!({ "mutations": { "request_mutations": [
                { "append": { "header": { "key": "x-user", "value": "%DYNAMIC_METADATA(envoy.filters.http.ratelimit:user)% %DYNAMIC_METADATA(envoy.filters.http.ratelimit:level)%" } } }] } }))
            .asks(get("/")),
        counted("rls: own limits", json!({ "rate_limits": [key("own"), hits(3), hits(0)] })).asks(get("/")).asks(says("over")),
        by_routes("rls: stages and hosts", json!({ "stage": 1 }), json!([key("host-0"), staged(1, "host-1")]), json!([
            route("/own", json!({ "rate_limits": [staged(1, "route-1"), key("route-0")] }), Value::Null),
            route("/other", json!({ "rate_limits": [key("route-0")] }), Value::Null),
            route("/", json!({}), Value::Null),
        ])).asks(get("/own")).asks(get("/other")).asks(get("/")),
        by_routes("rls: per route", json!({ "rate_limits": [] }), json!([key("host")]), json!([
            route("/override", own.clone(), json!({})), route("/include", own.clone(), json!({ "vh_rate_limits": "INCLUDE" })),
            route("/ignore", json!({}), json!({ "vh_rate_limits": "IGNORE" })), route("/with", json!({ "include_vh_rate_limits": true, "rate_limits": [key("route")] }), json!({ "vh_rate_limits": "IGNORE" })),
            route("/domain", own.clone(), json!({ "domain": "other" })), route("/own", own.clone(), json!({ "rate_limits": [key("per-route")] })),
            { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } },
            { "match": { "prefix": "/nowhere" }, "route": { "cluster_header": "x-cluster" } },
            route("/", json!({}), Value::Null),
        ])).asks(get("/override")).asks(get("/include")).asks(get("/ignore")).asks(get("/with")).asks(get("/domain")).asks(get("/own")).asks(get("/direct")).asks(get("/")).asks(get("/nowhere").is(503)),
        by_routes("rls: own limits and routes", json!({ "rate_limits": [key("own")] }), json!([key("host")]), json!([
            route("/a", own, json!({ "rate_limits": [key("per-route")] })), { "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } }, route("/", json!({}), Value::Null),
        ])).asks(get("/a")).asks(get("/")).asks(get("/direct")),
        by_routes("rls: units", json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" }), json!([]), json!([
            route("/", json!({ "rate_limits": [key("a"), key("b"), key("c"), key("d"), key("e"), key("f")] }), Value::Null),
        ])).asks(get("/")),
        by_routes("rls: hits", json!({}), json!([]), json!([route("/", json!({ "rate_limits": [hits(5), key("a")] }), Value::Null)])).asks(get("/")),
        counted("rls: no domain", json!({ "domain": "" })).refused_by_both(".domain: is missing", "at least 1"),
        counted("rls: another stage", json!({ "stage": 11 })).refused_by_both(".stage: 11 is not within", "less than or equal to 10"),
        counted("rls: stages of own limits", json!({ "rate_limits": [staged(1, "x")] })).refused_by_both(".rate_limits[0].stage: is not supported", "stage"),
        case("rls: another version", to("one")).filter("rl", LIMIT, config("grpc-authority", json!({ "rate_limit_service": { "transport_api_version": "AUTO" } })))
            .refused(".transport_api_version: only V3 is supported"),
    ]
}
