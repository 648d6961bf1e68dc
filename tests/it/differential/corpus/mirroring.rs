//! Requests that somebody else gets a copy of.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, many_retries, merge, routes};

fn mirrors(name: &'static str, policies: Value) -> Case {
    mirrors_by(name, policies, json!({}))
}

/// Everything goes to `one`, and copies to those.
fn mirrors_by(name: &'static str, policies: Value, action: Value) -> Case {
    let mut route = json!({ "cluster": "one", "request_mirror_policies": policies });
    merge(&mut route, action);
    case(name, routes(json!([{ "match": { "prefix": "/" }, "route": route }])))
}

fn post(body: &str) -> Ask {
    Ask::new("POST", "/a?b=c").body(body)
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let two = || json!([{ "cluster": "two" }]);
    let fraction = |numerator: u32| json!([{ "cluster": "two", "runtime_fraction": { "default_value": { "numerator": numerator } } }]);
    let append = |key: &str, value: &str| json!({ "append": { "header": { "key": key, "value": value } } });
    let big = "0123456789".repeat(20_000);
    vec![
        mirrors("mirror", two())
            .asks(get("/a?b=c")).asks(get("/").host("test:8080")).asks(get("/").http2()).asks(Ask::new("HEAD", "/").http2()).asks(Ask::new("DELETE", "/")).asks(post("")).asks(post("five!")).asks(post("five!").http2())
            .asks(post("chunks").with("transfer-encoding", "chunked")).asks(post(&big)).asks(post(&big).http2())
            .asks(get("/").with("x-forwarded-for", "192.0.2.1")).asks(get("/").with("x-envoy-internal", "true")).asks(get("/").with("x-request-id", "mine"))
            .asks(get("/").with("connection", "upgrade").with("upgrade", "websocket").is(403)),
        mirrors_by("mirror-by-http2", json!([{ "cluster": "h2" }]), json!({ "cluster": "two" })).asks(get("/").with("x-forwarded-proto", "https")),
        mirrors_by("mirror-from-http2", two(), json!({ "cluster": "h2" })).asks(post("five!")).asks(post("five!").trailer("x-t", "1").http2()),
        mirrors("mirror-same-host", json!([{ "cluster": "two", "disable_shadow_host_suffix_append": true }])).asks(get("/").host("test:80")),
        mirrors("mirror-other-host", json!([{ "cluster": "two", "host_rewrite_literal": "copy.test" }])).asks(get("/")).asks(get("/").http2()),
        mirrors("mirror-none", fraction(0)).asks(get("/")),
        mirrors("mirror-all", fraction(100)).asks(get("/")),
        mirrors("mirror-header", json!([{ "cluster_header": "x-to" }])).asks(get("/")).asks(get("/").with("x-to", "two")).asks(get("/").with("x-to", "nowhere")),
        mirrors("mirror-mutated", json!([{ "cluster": "two", "request_headers_mutations": [append("x-copy", "of %REQ(:path)%"), { "remove": "x-gone" }] }]))
            .asks(get("/p").with("x-gone", "1").with("x-copy", "0")),
        mirrors("mirror-dead", json!([{ "cluster": "dead" }, { "cluster": "empty" }])).asks(get("/")).asks(post("five!")),
        mirrors("mirror-answers-otherwise", two()).asks(get("/").answered(&json!({ "status": 500 })).is(500)),
        mirrors_by("mirror-rewritten", two(), json!({ "prefix_rewrite": "/new", "host_rewrite_literal": "new.test", "timeout": "3s" })).asks(get("/a?b=c")),
        mirrors_by("mirror-retried", two(), json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "2s" } })).asks(post("five!")),
        // However often the request itself is sent.
        mirrors_by("mirror-once-for-all-attempts", two(), json!({ "cluster": "mirror-repeated", "retry_policy": { "retry_on": "5xx", "num_retries": 3, "retry_back_off": { "base_interval": "0.001s" } } }))
            .cluster("mirror-repeated", "one", many_retries()).asks(post("five!").answered(&json!({ "status": 503 })).is(503)).asks(get("/").answered(&json!({ "status": 503 })).is(503)),
        mirrors_by("mirror-no-timeout", two(), json!({ "timeout": "0s" })).asks(get("/")),
        case("mirror-not-direct", routes(json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 204 } }]))).asks(get("/").is(204)),
        case("mirror-levels", {
            let mut of = hosts(json!([
                { "name": "own", "domains": ["own.test"], "request_mirror_policies": two(), "include_request_attempt_count": true, "routes": [
                    { "match": { "prefix": "/own" }, "route": { "cluster": "one", "request_mirror_policies": [{ "cluster": "two", "host_rewrite_literal": "route.test" }] } },
                    { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
                ] },
                { "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "one" } }] },
            ]));
            of["request_mirror_policies"] = json!([{ "cluster": "two", "host_rewrite_literal": "all.test" }]);
            of
        }).asks(get("/own").host("own.test")).asks(get("/").host("own.test")).asks(get("/")),
        mirrors("mirror-without-cluster", json!([{}])).refused_by_both(".request_mirror_policies[0].cluster: is missing", "Exactly one of cluster"),
        mirrors("mirror-sampled", json!([{ "cluster": "two", "trace_sampled": true }])).refused(".request_mirror_policies[0].trace_sampled: is not supported"),
    ]
}
