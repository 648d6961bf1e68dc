//! What becomes of requests that fail, and of those that are too many.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, many_retries, routes};

/// Everything goes to `cluster` by this retry policy; both ends are told how often.
fn retried(cluster: &str, policy: Value) -> Value {
    hosts(json!([{
        "name": "all", "domains": ["*"],
        "include_request_attempt_count": true, "include_attempt_count_in_response": true,
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "retry_policy": policy } }],
    }]))
}

fn patient(name: &'static str, like: &str, policy: Value) -> Case {
    case(name, retried(name, policy)).cluster(name, like, many_retries())
}

fn on(conditions: &str) -> Value {
    json!({ "retry_on": conditions, "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } })
}

fn with(mut policy: Value, field: &str, value: Value) -> Value {
    policy[field] = value;
    policy
}

fn answers(status: u16) -> Value {
    json!({ "status": status, "body": "theirs" })
}

/// A listener's or cluster's field.
fn small(bytes: u32) -> Value {
    json!({ "per_connection_buffer_limit_bytes": bytes })
}

/// Much more than what is small, both ways.
fn large() -> Ask {
    Ask::new("POST", "/")
        .body(&"up".repeat(20_000))
        .answered(&json!({ "body": "down", "times": 20_000 }))
}

fn post(answer: &Value) -> Ask {
    Ask::new("POST", "/").body("five!").answered(answer)
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let limited = json!({ "status": 503, "headers": [["x-envoy-ratelimited", "true"]] });
    let mut cases = Vec::new();
    for (name, cluster) in [("retries-to-http1", "one"), ("retries-to-http2", "h2")] {
        cases.push(patient(name, cluster, on("5xx"))
            .asks(get("/")).asks(get("/").answered(&answers(503)).is(503)).asks(get("/").answered(&answers(500)).is(500))
            .asks(get("/").answered(&answers(409)).is(409)).asks(get("/").answered(&answers(503)).http2().is(503))
            .asks(post(&answers(503)).is(503)).asks(post(&answers(503)).http2().is(503)).asks(post(&answers(200)))
            .asks(get("/").answered(&limited).is(503)));
    }
    cases.extend([
        patient("retries-gateway-error", "one", on("gateway-error"))
            .asks(get("/").answered(&answers(502)).is(502)).asks(get("/").answered(&answers(504)).is(504)).asks(get("/").answered(&answers(500)).is(500)),
        patient("retries-4xx", "one", on("retriable-4xx")).asks(get("/").answered(&answers(409)).is(409)).asks(get("/").answered(&answers(404)).is(404)),
        patient("retries-codes", "one", with(on("retriable-status-codes"), "retriable_status_codes", json!([418])))
            .asks(get("/").answered(&answers(418)).is(418)).asks(get("/").answered(&answers(503)).is(503)),
        patient("retries-headers", "one", with(on("retriable-headers"), "retriable_headers", json!([{ "name": "x-again" }])))
            .asks(get("/").answered(&json!({ "headers": [["x-again", "1"]] }))).asks(get("/").answered(&answers(503)).is(503)),
        patient("retries-request-headers", "one", with(on("5xx"), "retriable_request_headers", json!([{ "name": "x-please" }])))
            .asks(get("/").with("x-please", "1").answered(&answers(503)).is(503)).asks(get("/").answered(&answers(503)).is(503)),
        patient("retries-grpc", "one", on("unavailable,internal"))
            .asks(get("/").answered(&json!({ "headers": [["grpc-status", "14"]] }))).asks(get("/").answered(&json!({ "headers": [["grpc-status", "13"]] })))
            .asks(get("/").answered(&json!({ "headers": [["grpc-status", "8"]] }))),
        patient("retries-limited", "one", on("envoy-ratelimited,5xx")).asks(get("/").answered(&limited).is(503)),
        patient("retries-none-named", "one", json!({ "num_retries": 3 })).asks(get("/").answered(&answers(503)).is(503)).asks(get("/").with("x-envoy-retry-on", "5xx").answered(&answers(503)).is(503)),
        case("retries-dead", retried("dead", on("connect-failure"))).asks(get("/").is(503)),
        case("retries-empty", retried("empty", on("5xx"))).asks(get("/").is(503)),
        patient("retries-per-try", "one", with(on("5xx"), "per_try_timeout", "0.2s".into())).asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)),
        case("retries-too-large", {
            let mut config = retried("kept", on("5xx"));
            config["virtual_hosts"][0]["request_body_buffer_limit"] = 3.into();
            config
        }).cluster("kept", "one", many_retries()).asks(post(&answers(503)).is(503)),
        // Of HTTP/1; HTTP/2 has its windows.
        patient("retries-buffer", "one", on("5xx")).listener(small(3))
            .asks(post(&answers(503)).is(503)).asks(Ask::new("POST", "/").body("two").answered(&answers(503)).is(503)).asks(post(&answers(503)).http2().is(503)).asks(get("/").answered(&answers(503)).is(503)),
        case("retries-buffer-within", {
            let mut config = retried("within", on("5xx"));
            config["virtual_hosts"][0]["per_request_buffer_limit_bytes"] = 1000.into();
            config
        }).cluster("within", "one", many_retries()).listener(small(3)).asks(post(&answers(503)).is(503)).asks(post(&answers(503)).http2().is(503)),
        case("retries-buffer-exactly", {
            let mut config = retried("exactly", on("5xx"));
            config["virtual_hosts"][0]["request_body_buffer_limit"] = 1000.into();
            config
        }).cluster("exactly", "one", many_retries()).listener(small(3)).asks(post(&answers(503)).is(503)).asks(post(&answers(503)).http2().is(503)),
        case("buffers-small", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "narrow" } }])))
            .cluster("narrow", "one", small(1)).listener(small(1)).asks(large()),
        case("buffers-small-h2", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "narrow-h2" } }])))
            .cluster("narrow-h2", "h2", small(16_384)).listener(small(1)).asks(large()),
        case("breakers-requests", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "full" } }])))
            .cluster("full", "one", json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } })).asks(get("/").is(503)),
        case("breakers-priority", routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "low", "priority": "HIGH" } }])))
            .cluster("low", "one", json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } })).asks(get("/")),
        case("breakers-retries", retried("never", on("5xx")))
            .cluster("never", "one", json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 0 }] } })).asks(get("/").answered(&answers(503)).is(503)),
    ]);
    cases
}
