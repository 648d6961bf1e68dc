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
            "consecutive_5xx": 0, "interval": "1s", "failure_percentage_minimum_hosts": 1, "failure_percentage_request_volume": 2,
            "failure_percentage_threshold": 60, "enforcing_failure_percentage": 100,
        })).asks(wait(200)).asks(answers(500)).asks(answers(500)).asks(answers(500)).asks(answers(500)).asks(wait(2500)).asks(get("/").is(503)),
        {
            let mut panic = outliers("outlier-panic", "one", json!({ "consecutive_5xx": 1 }));
            panic.clusters[0]["common_lb_config"] = json!({});
            panic.asks(answers(500)).asks(wait(300)).asks(get("/"))
        },
    ]
}
