//! Which endpoints take traffic, by what came of them before.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, merge, routes};

/// A cluster of this name, with this outlier detection and no panic, takes everything but
/// what waits a while for somebody else.
fn outliers(name: &'static str, like: &str, detection: Value) -> Case {
    outliers_by(name, like, detection, json!({}))
}

fn outliers_by(name: &'static str, like: &str, detection: Value, action: Value) -> Case {
    let mut of = json!({ "max_ejection_percent": 100, "base_ejection_time": "60s" });
    merge(&mut of, detection);
    let mut action_of = json!({ "cluster": name });
    merge(&mut action_of, action);
    let config = routes(json!([
        { "match": { "prefix": "/wait" }, "route": { "cluster": "two" } },
        { "match": { "prefix": "/" }, "route": action_of },
    ]));
    let fields = json!({
        "outlier_detection": of,
        "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
    });
    case(name, config).cluster(name, like, fields)
}

/// Somebody else takes this long to answer: Envoy's threads hear of each other.
fn wait(milliseconds: u32) -> Ask {
    get("/wait").answered(&json!({ "delay_ms": milliseconds }))
}

/// A cluster of this name whose endpoints are checked so, without panic.
fn checked(name: &'static str, like: &str, check: Value, fields: Value) -> Case {
    let mut of = json!({
        "timeout": "2s", "interval": "0.3s", "no_traffic_interval": "0.3s",
        "healthy_threshold": 1, "unhealthy_threshold": 1,
    });
    merge(&mut of, check);
    let mut all = json!({
        "health_checks": [of], "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
    });
    merge(&mut all, fields);
    let config = routes(json!([
        { "match": { "prefix": "/wait" }, "route": { "cluster": "two" } },
        { "match": { "prefix": "/" }, "route": { "cluster": name } },
    ]));
    case(name, config).cluster(name, like, all).asks(wait(700))
}

/// Headers of a check, which say how it is answered.
fn answered(how: &Value) -> Value {
    let header = |key, value| json!({ "header": { "key": key, "value": value } });
    json!([header("x-case", "check".to_owned()), header("x-answer", how.to_string())])
}

fn by_http(name: &'static str, how: &Value, check: Value) -> Case {
    let mut http = json!({ "path": "/healthy", "request_headers_to_add": answered(how) });
    merge(&mut http, check);
    checked(name, "one", json!({ "http_health_check": http }), json!({}))
}

/// Everything goes to a cluster of this name that balances so.
fn policy(name: &'static str, fields: Value) -> Case {
    case(name, super::to(name)).cluster(name, "one", fields).asks(get("/")).asks(get("/").http2())
}

/// A cluster of this name whose endpoint is asked of a resolver, if only for an address.
fn named(name: &'static str, fields: Value) -> Case {
    let config = routes(json!([
        { "match": { "prefix": "/wait" }, "route": { "cluster": "two" } },
        { "match": { "prefix": "/" }, "route": { "cluster": name } },
    ]));
    case(name, config).cluster(name, "one", fields).asks(wait(300))
}

/// Everything goes to the subset with these labels of a cluster of this name.
fn subsets(name: &'static str, config: Value, labels: Value) -> Case {
    let mut of = json!({ "subset_selectors": [{ "keys": ["who"] }] });
    merge(&mut of, config);
    let action =
        json!({ "cluster": name, "metadata_match": { "filter_metadata": { "envoy.lb": labels } } });
    let config = routes(json!([{ "match": { "prefix": "/" }, "route": action }]));
    case(name, config).cluster(name, "labelled", json!({ "lb_subset_config": of }))
}

fn policy_of(kind: &str, config: Value) -> Value {
    let config = super::typed(&format!("extensions.load_balancing_policies.{kind}"), config);
    json!({ "typed_extension_config": { "name": "policy", "typed_config": config } })
}

fn typed_policy(name: &'static str, kind: &str, config: Value) -> Case {
    policy(name, json!({ "load_balancing_policy": { "policies": [policy_of(kind, config)] } }))
}

fn answers(status: u16) -> Ask {
    get("/").answered(&json!({ "status": status })).is(status)
}

fn cut() -> Ask {
    Ask::new("POST", "/").body("five!").answered(&json!({ "cut": true })).is(503)
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let grpc = || get("/").with("content-type", "application/grpc")
        .answered(&json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "14"]] })).http2();
    vec![
        outliers("outlier-5xx", "one", json!({ "consecutive_5xx": 2 }))
            .asks(answers(500)).asks(answers(200)).asks(answers(503)).asks(answers(501)).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-5xx-http2", "h2", json!({ "consecutive_5xx": 2 }))
            .asks(answers(500)).asks(answers(500)).asks(wait(300)).asks(get("/").is(503)).asks(get("/").http2().is(503)),
        outliers("outlier-not-5xx", "one", json!({ "consecutive_5xx": 2 }))
            .asks(answers(404)).asks(answers(404)).asks(answers(404)).asks(wait(300)).asks(get("/")),
        outliers("outlier-off", "one", json!({ "consecutive_5xx": 0 }))
            .asks(answers(500)).asks(answers(500)).asks(wait(300)).asks(get("/")),
        outliers("outlier-not-enforced", "one", json!({ "consecutive_5xx": 1, "enforcing_consecutive_5xx": 0 }))
            .asks(answers(500)).asks(answers(500)).asks(wait(300)).asks(get("/")),
        outliers("outlier-gateway", "one", json!({ "consecutive_5xx": 0, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100 }))
            .asks(answers(500)).asks(answers(501)).asks(answers(502)).asks(answers(500)).asks(answers(503)).asks(wait(300)).asks(get("/"))
            .asks(answers(504)).asks(answers(502)).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-few", "one", json!({ "consecutive_5xx": 1, "max_ejection_percent": 99 }))
            .asks(answers(500)).asks(wait(300)).asks(get("/")),
        outliers("outlier-one-always", "one", json!({ "consecutive_5xx": 1, "max_ejection_percent": 0, "always_eject_one_host": true }))
            .asks(answers(500)).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-resets", "one", json!({ "consecutive_5xx": 2 }))
            .asks(cut()).asks(cut()).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-split", "one", json!({ "consecutive_5xx": 0, "split_external_local_origin_errors": true, "consecutive_local_origin_failure": 2 }))
            .asks(answers(500)).asks(answers(503)).asks(wait(300)).asks(get("/")),
        outliers("outlier-dead", "dead", json!({ "consecutive_5xx": 2 }))
            .asks(get("/").is(503)).asks(get("/").is(503)).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-dead-split", "dead", json!({ "split_external_local_origin_errors": true, "consecutive_local_origin_failure": 2, "consecutive_5xx": 1 }))
            .asks(get("/").is(503)).asks(wait(300)).asks(get("/").is(503)).asks(wait(300)).asks(get("/").is(503)),
        outliers_by("outlier-timeouts", "one", json!({ "consecutive_5xx": 2 }), json!({ "timeout": "0.2s" }))
            .asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)).asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)).asks(wait(300)).asks(get("/").is(503)),
        outliers_by("outlier-per-try", "one", json!({ "consecutive_5xx": 0, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100 }),
            json!({ "retry_policy": { "retry_on": "reset", "num_retries": 0, "per_try_timeout": "0.2s" } }))
            .asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)).asks(get("/").answered(&json!({ "delay_ms": 900 })).is(504)).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-grpc", "h2", json!({ "consecutive_5xx": 2 }))
            .asks(grpc()).asks(grpc()).asks(wait(300)).asks(get("/").is(503)),
        outliers("outlier-comes-back", "one", json!({ "consecutive_5xx": 1, "interval": "0.3s", "base_ejection_time": "0.3s", "max_ejection_time": "0.3s" }))
            .asks(answers(500)).asks(wait(1500)).asks(get("/")),
        outliers("outlier-percentage", "one", json!({
            "consecutive_5xx": 0, "interval": "8s", "failure_percentage_minimum_hosts": 1, "failure_percentage_request_volume": 2,
            "failure_percentage_threshold": 60, "enforcing_failure_percentage": 100,
        })).asks(wait(200)).asks(answers(500)).asks(answers(500)).asks(answers(500)).asks(answers(500)).asks(wait(4800)).asks(wait(4800)).asks(get("/").is(503)),
        {
            let mut panic = outliers("outlier-panic", "one", json!({ "consecutive_5xx": 1 }));
            panic.clusters[0]["common_lb_config"] = json!({});
            panic.asks(answers(500)).asks(wait(300)).asks(get("/"))
        },
        policy("policy-slow-start", json!({ "round_robin_lb_config": { "slow_start_config": { "slow_start_window": "60s", "aggression": { "default_value": 1.5, "runtime_key": "aggression" } } } })),
        policy("policy-least-request", json!({ "lb_policy": "LEAST_REQUEST", "least_request_lb_config": { "choice_count": 3, "active_request_bias": { "default_value": 0.5, "runtime_key": "bias" } } })),
        typed_policy("policy-full-scan", "least_request.v3.LeastRequest", json!({ "selection_method": "FULL_SCAN" })),
        typed_policy("policy-round-robin", "round_robin.v3.RoundRobin", json!({ "slow_start_config": { "slow_start_window": "60s", "min_weight_percent": { "value": 20 } } })),
        typed_policy("policy-random", "random.v3.Random", json!({})),
        typed_policy("policy-ring-hash", "ring_hash.v3.RingHash", json!({ "minimum_ring_size": 64 })),
        typed_policy("policy-maglev", "maglev.v3.Maglev", json!({ "table_size": 101 })),
        subsets("subset-of-route", json!({}), json!({ "who": "b" })).asks(get("/")).asks(get("/")).asks(get("/").http2()),
        subsets("subset-none", json!({}), json!({ "who": "c" })).asks(get("/").is(503)),
        subsets("subset-other-type", json!({}), json!({ "who": 1 })).asks(get("/").is(503)),
        subsets("subset-two-keys", json!({ "subset_selectors": [{ "keys": ["stage", "who"] }] }), json!({ "stage": "s", "who": "b" })).asks(get("/")).asks(get("/")),
        subsets("subset-too-many-keys", json!({}), json!({ "stage": "s", "who": "b" })).asks(get("/").is(503)),
        subsets("subset-not-asked", json!({}), json!({})).asks(get("/").is(503)),
        subsets("subset-default", json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "who": "b" } }), json!({ "who": "c" })).asks(get("/")).asks(get("/")),
        subsets("subset-default-nobody", json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "who": "x" } }), json!({ "who": "c" })).asks(get("/").is(503)),
        subsets("subset-selector-default", json!({ "default_subset": { "who": "a" }, "subset_selectors": [{ "keys": ["who"], "fallback_policy": "DEFAULT_SUBSET" }] }), json!({ "who": "c" })).asks(get("/")).asks(get("/")),
        subsets("subset-fewer-keys", json!({ "subset_selectors": [{ "keys": ["who"] }, { "keys": ["stage", "who"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["who"] }] }), json!({ "stage": "x", "who": "b" })).asks(get("/")).asks(get("/")),
        subsets("subset-alternatives", json!({ "metadata_fallback_policy": "FALLBACK_LIST" }), json!({ "fallback_list": [{ "who": "x" }, { "who": "b" }] })).asks(get("/")).asks(get("/")),
        case("subset-of-cluster", routes(json!([{ "match": { "prefix": "/" }, "route": {
            "metadata_match": { "filter_metadata": { "envoy.lb": { "who": "a" } } },
            "weighted_clusters": { "clusters": [{ "name": "subset-of-cluster", "weight": 1, "metadata_match": { "filter_metadata": { "envoy.lb": { "who": "b" } } } }] },
        } }]))).cluster("subset-of-cluster", "labelled", json!({ "lb_subset_config": { "subset_selectors": [{ "keys": ["who"] }] } })).asks(get("/")).asks(get("/")),
        named("dns-strict", json!({ "type": "STRICT_DNS" })).asks(get("/")).asks(get("/").http2()),
        named("dns-logical", json!({ "type": "LOGICAL_DNS", "dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "1s" })).asks(get("/")).asks(wait(1200)).asks(get("/")),
        by_http("check-well", &json!({}), json!({})).asks(get("/")),
        by_http("check-ill", &json!({ "status": 503 }), json!({})).asks(get("/").is(503)),
        by_http("check-http2", &json!({}), json!({ "codec_client_type": "HTTP2" })).asks(get("/")),
        by_http("check-expected", &json!({ "status": 503 }), json!({ "expected_statuses": [{ "start": 500, "end": 600 }] })).asks(get("/")),
        by_http("check-not-expected", &json!({}), json!({ "expected_statuses": [{ "start": 500, "end": 600 }] })).asks(get("/").is(503)),
        by_http("check-retriable", &json!({ "status": 503 }), json!({ "retriable_statuses": [{ "start": 500, "end": 600 }] })).asks(get("/").is(503)),
        by_http("check-body", &json!({ "body": "all is well" }), json!({ "receive": [{ "text": "616c6c" }, { "text": "77656c6c" }] })).asks(get("/")),
        by_http("check-other-body", &json!({ "body": "all is ill" }), json!({ "receive": [{ "text": "616c6c" }, { "text": "77656c6c" }] })).asks(get("/").is(503)),
        by_http("check-body-beyond", &json!({ "body": "all is well" }), json!({ "receive": [{ "text": "77656c6c" }], "response_buffer_size": 5 })).asks(get("/").is(503)),
        by_http("check-post", &json!({}), json!({ "method": "POST", "send": { "text": "3f" }, "host": "named.test" })).asks(get("/")),
        by_http("check-service", &json!({ "headers": [["x-envoy-upstream-healthchecked-cluster", "shop-1"]] }), json!({ "service_name_matcher": { "prefix": "shop" } })).asks(get("/")),
        by_http("check-other-service", &json!({}), json!({ "service_name_matcher": { "prefix": "shop" } })).asks(get("/").is(503)),
        by_http("check-degraded", &json!({ "headers": [["x-envoy-degraded", "true"]] }), json!({})).asks(get("/")),
        by_http("check-cut", &json!({ "cut": true }), json!({})).asks(get("/").is(503)),
        checked("check-too-slow", "one", json!({ "timeout": "0.2s", "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({ "delay_ms": 900 })) } }), json!({}))
            .asks(get("/").is(503)),
        checked("check-anew", "one", json!({ "reuse_connection": false, "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({})) } }), json!({}))
            .asks(get("/")).asks(wait(500)).asks(get("/")),
        checked("check-panic", "one", json!({ "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({ "status": 500 })) } }),
            json!({ "common_lb_config": { "healthy_panic_threshold": { "value": 50 } } })).asks(get("/")),
        checked("check-tcp", "one", json!({ "tcp_health_check": {} }), json!({})).asks(get("/")),
        checked("check-tcp-dead", "dead", json!({ "tcp_health_check": {} }), json!({})).asks(get("/").is(503)),
        checked("check-tcp-silent", "one", json!({ "timeout": "0.2s", "tcp_health_check": { "receive": [{ "text": "50" }] } }), json!({})).asks(get("/").is(503)),
        checked("check-grpc", "h2", json!({ "grpc_health_check": { "service_name": "s", "initial_metadata": answered(&json!({
            "headers": [["content-type", "application/grpc"]], "body": "\u{0}\u{0}\u{0}\u{0}\u{2}\u{8}\u{1}", "trailers": [["grpc-status", "0"]],
        })) } }), json!({})).asks(get("/")),
        checked("check-grpc-not-serving", "h2", json!({ "grpc_health_check": { "initial_metadata": answered(&json!({
            "headers": [["content-type", "application/grpc"]], "body": "\u{0}\u{0}\u{0}\u{0}\u{2}\u{8}\u{2}", "trailers": [["grpc-status", "0"]],
        })) } }), json!({})).asks(get("/").is(503)),
        checked("check-grpc-status", "h2", json!({ "grpc_health_check": { "initial_metadata": answered(&json!({
            "headers": [["content-type", "application/grpc"]], "body": "\u{0}\u{0}\u{0}\u{0}\u{2}\u{8}\u{1}", "trailers": [["grpc-status", "12"]],
        })) } }), json!({})).asks(get("/").is(503)),
        checked("check-immediate-fail", "one", json!({ "healthy_threshold": 1000, "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({})) } }), json!({}))
            .asks(get("/").answered(&json!({ "headers": [["x-envoy-immediate-health-check-fail", "true"]] }))).asks(wait(400)).asks(get("/").is(503)),
        checked("check-ends-ejection", "one", json!({ "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({})) } }),
            json!({ "outlier_detection": { "consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "60s" } }))
            .asks(answers(500)).asks(wait(3000)).asks(get("/")),
        checked("check-ends-no-ejection", "one", json!({ "http_health_check": { "path": "/", "request_headers_to_add": answered(&json!({})) } }),
            json!({ "outlier_detection": { "consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "60s", "successful_active_health_check_uneject_host": false } }))
            .asks(answers(500)).asks(wait(1000)).asks(get("/").is(503)),
    ]
}
