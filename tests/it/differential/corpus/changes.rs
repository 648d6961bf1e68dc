//! Headers that routes change, and requests that are sent again.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes};

/// Everything to `one`, by a route with these fields beside its action.
fn changed(name: &'static str, fields: Value) -> Case {
    let mut route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "one" } });
    super::merge(&mut route, fields);
    case(name, routes(json!([route])))
}

fn add(name: &str, value: &str, action: &str) -> Value {
    json!({ "header": { "key": name, "value": value }, "append_action": action })
}

/// To a cluster of its own: of one that rows share, others may have all the retries.
fn retried(name: &'static str, policy: &Value) -> Case {
    changed(name, json!({ "route": { "cluster": name, "retry_policy": policy } })).cluster(
        name,
        "one",
        super::many_retries(),
    )
}

/// The first attempt is answered so, the next one as usual.
fn first(how: &Value) -> Ask {
    get("/").answered(&json!({ "attempts": [how, {}] }))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (request, response, action) in [
        ("request-append", "response-append", "APPEND_IF_EXISTS_OR_ADD"), ("request-add", "response-add", "ADD_IF_ABSENT"),
        ("request-overwrite", "response-overwrite", "OVERWRITE_IF_EXISTS"), ("request-set", "response-set", "OVERWRITE_IF_EXISTS_OR_ADD"),
    ] {
        cases.push(changed(request, json!({ "request_headers_to_add": [add("x-a", "ours", action)] }))
            .asks(get("/")).asks(get("/").with("x-a", "theirs")).asks(get("/").with("x-a", "1").with("x-a", "2").http2()));
        cases.push(changed(response, json!({ "response_headers_to_add": [add("x-a", "ours", action)] }))
            .asks(get("/")).asks(get("/").answered(&json!({ "headers": [["x-a", "theirs"]] })))
            .asks(get("/").answered(&json!({ "status": 500, "headers": [["x-a", "1"], ["x-a", "2"]] })).is(500)));
    }
    cases.extend([
        changed("request-remove", json!({ "request_headers_to_remove": ["x-a", "user-agent"] }))
            .asks(get("/").with("x-a", "1").with("X-A", "2").with("user-agent", "me").with("x-b", "3")),
        changed("response-remove", json!({ "response_headers_to_remove": ["x-a"] }))
            .asks(get("/").answered(&json!({ "headers": [["x-a", "1"], ["x-b", "2"]] }))),
        changed("request-formats", json!({ "request_headers_to_add": [
            add("x-path", "%REQ(:PATH)%", "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-other", "%REQ(x-no?x-b)%", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-protocol", "%PROTOCOL%", "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-percent", "100%%", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-none", "%REQ(x-no)%", "OVERWRITE_IF_EXISTS_OR_ADD"),
        ] })).asks(get("/p?q=1").with("x-b", "b")).asks(get("/").http2()),
        retried("retry-5xx", &json!({ "retry_on": "5xx", "num_retries": 1 }))
            .asks(first(&json!({ "status": 503 }))).asks(first(&json!({ "status": 404 })).is(404))
            .asks(get("/").answered(&json!({ "status": 500 })).is(500)),
        retried("retry-gateway-error", &json!({ "retry_on": "gateway-error", "num_retries": 2 }))
            .asks(first(&json!({ "status": 502 }))).asks(first(&json!({ "status": 500 })).is(500)),
        retried("retry-4xx", &json!({ "retry_on": "retriable-4xx" }))
            .asks(first(&json!({ "status": 409 }))).asks(first(&json!({ "status": 404 })).is(404)),
        retried("retry-codes", &json!({ "retry_on": "retriable-status-codes", "retriable_status_codes": [418] }))
            .asks(first(&json!({ "status": 418 }))).asks(first(&json!({ "status": 419 })).is(419)),
        retried("retry-body", &json!({ "retry_on": "5xx" }))
            .asks(Ask::new("POST", "/").body("again").answered(&json!({ "attempts": [{ "status": 503 }, {}] }))),
        retried("retry-per-try", &json!({ "retry_on": "5xx", "per_try_timeout": "0.3s" }))
            .asks(first(&json!({ "delay_ms": 900 }))),
    ]);
    cases
}
