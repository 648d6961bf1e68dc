//! What is logged of requests.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes, to, typed};

const STDOUT: &str = "extensions.access_loggers.stream.v3.StdoutAccessLog";
const FILE: &str = "extensions.access_loggers.file.v3.FileAccessLog";

fn log(kind: &str, config: Value) -> Value {
    json!({ "name": "log", "typed_config": typed(kind, config) })
}

fn text(format: &str) -> Value {
    let source = json!({ "inline_string": format!("@%REQ(X-CASE)%|{format}\n") });
    log(STDOUT, json!({ "log_format": { "text_format_source": source } }))
}

fn json_of(mut fields: Value, omit: bool) -> Value {
    fields["@"] = "%REQ(X-CASE)%".into();
    log(STDOUT, json!({ "log_format": { "json_format": fields, "omit_empty_values": omit } }))
}

/// A line for what `filter` lets through, and one for every request.
fn filtered(name: &'static str, filter: Value) -> Case {
    let mut some = text("filtered %RESPONSE_CODE%");
    some["filter"] = filter;
    logging(name, json!([some, text("all %RESPONSE_CODE%")]))
}

fn logging(name: &'static str, logs: Value) -> Case {
    let config = routes(json!([
        { "match": { "prefix": "/direct" }, "name": "direct", "direct_response": { "status": 418, "body": { "inline_string": "short" } } },
        { "match": { "prefix": "/dead" }, "name": "dead", "route": { "cluster": "dead" } },
        { "match": { "prefix": "/none" }, "route": { "cluster": "empty" } },
        { "match": { "prefix": "/late" }, "route": { "cluster": "one", "timeout": "0.2s" } },
        { "match": { "prefix": "/h2" }, "route": { "cluster": "h2", "prefix_rewrite": "/new", "host_rewrite_literal": "new.test" } },
        { "match": { "prefix": "/" }, "name": "rest", "route": { "cluster": "one" } },
    ]));
    case(name, config).manager(json!({ "access_log": logs }))
}

fn asked(case: Case) -> Case {
    let late = json!({ "delay_ms": 900 });
    let trailers = json!({ "body": "b", "trailers": [["x-t", "1"], ["grpc-status", "5"]] });
    let answered =
        json!({ "status": 503, "headers": [["x-a", "1"], ["x-a", "2"], ["grpc-status", "14"]] });
    case.asks(get("/a?b=c"))
        .asks(
            get("/a")
                .with("x-a", "1")
                .with("x-a", "2")
                .with("user-agent", "a \"quoted\" agent")
                .with("x-forwarded-for", "192.0.2.1")
                .http2(),
        )
        .asks(get("/direct").is(418))
        .asks(get("/dead").is(503))
        .asks(get("/none").is(503))
        .asks(get("/late").answered(&late).is(504))
        .asks(Ask::new("POST", "/h2/x").body("five!"))
        .asks(get("/h2").answered(&trailers).http2())
        .asks(get("/").answered(&answered).is(503))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let comparison = |op: &str, value: u32| json!({ "comparison": { "op": op, "value": { "default_value": value, "runtime_key": "none" } } });
    let header = |fields: Value| json!({ "header_filter": { "header": fields } });
    let all = json!({
        "request": "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:AUTHORITY)% %PROTOCOL%",
        "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "route": "%ROUTE_NAME%", "cluster": "%UPSTREAM_CLUSTER%",
        "sizes": ["%BYTES_RECEIVED%", "%BYTES_SENT%", 7, 1.5, true, null], "nested": { "x-a": "%REQ(X-A)%", "cut": "%REQ(USER-AGENT):4%" },
        "answer": "%RESP(X-A)%", "trailer": "%TRAILER(X-T)%", "xff": "%REQ(X-FORWARDED-FOR)%", "host": "%UPSTREAM_HOST%", "text": "100%%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "port": "%DOWNSTREAM_LOCAL_PORT%",
        "virtual": "%VIRTUAL_CLUSTER_NAME%", "ended": "%CONNECTION_TERMINATION_DETAILS%", "bytes": "of %BYTES_SENT%", "none": "%REQ(X-NONE)%", "nones": "a %REQ(X-NONE)% b",
    });
    vec![
        asked(logging("log-text", json!([text("%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQUEST_HEADER(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% [%RESP(X-A)%] [%RESPONSE_TRAILER(X-T)%] %REQ(X-A)% %ROUTE_NAME% %UPSTREAM_HOST% %UPSTREAM_CLUSTER_RAW% %DOWNSTREAM_LOCAL_ADDRESS% \"%REQ(USER-AGENT)%\" %REQ(X-NONE?:AUTHORITY)% %FILTER_CHAIN_NAME%")]))),
        asked(logging("log-json", json!([json_of(all.clone(), false)]))),
        asked(logging("log-json-without", json!([json_of(all, true)]))),
        asked(logging("log-of-file", json!([log(FILE, json!({ "path": "/dev/stdout", "log_format": { "text_format_source": { "inline_string": "@%REQ(X-CASE)%|%RESPONSE_CODE%\n" } } }))]))),
        asked(logging("log-typed-json", json!([log(FILE, json!({ "path": "/dev/stdout", "typed_json_format": { "@": "%REQ(X-CASE)%", "code": "%RESPONSE_CODE%" } }))]))),
        asked(logging("log-old-text", json!([log(FILE, json!({ "path": "/dev/stdout", "format": "@%REQ(X-CASE)%|%RESPONSE_CODE% %RESPONSE_FLAGS%\n" }))]))),
        asked(filtered("log-status", json!({ "status_code_filter": comparison("GE", 500) }))),
        asked(filtered("log-status-not", json!({ "status_code_filter": comparison("NE", 200) }))),
        asked(filtered("log-slow", json!({ "duration_filter": comparison("GE", 150) }))),
        asked(filtered("log-header", header(json!({ "name": "x-a", "string_match": { "exact": "2" } })))),
        asked(filtered("log-path", header(json!({ "name": ":path", "string_match": { "prefix": "/new" } })))),
        asked(filtered("log-flags", json!({ "response_flag_filter": { "flags": ["UF", "UT"] } }))),
        asked(filtered("log-any-flag", json!({ "response_flag_filter": {} }))),
        asked(filtered("log-grpc", json!({ "grpc_status_filter": { "statuses": ["NOT_FOUND", "UNAVAILABLE"] } }))),
        asked(filtered("log-grpc-not", json!({ "grpc_status_filter": { "statuses": ["UNKNOWN"], "exclude": true } }))),
        asked(filtered("log-and", json!({ "and_filter": { "filters": [{ "status_code_filter": comparison("GE", 500) }, { "response_flag_filter": {} }] } }))),
        asked(filtered("log-or", json!({ "or_filter": { "filters": [{ "status_code_filter": comparison("EQ", 418) }, { "response_flag_filter": { "flags": ["UH"] } }] } }))),
        asked(filtered("log-none", json!({ "runtime_filter": { "runtime_key": "none" } }))),
        asked(filtered("log-all", json!({ "runtime_filter": { "runtime_key": "none", "percent_sampled": { "numerator": 100 } } }))),
        case("log-relative", to("one")).manager(json!({ "access_log": [log(FILE, json!({ "path": "log" }))] })).refused(".access_log[0].typed_config.path: `log` is not an absolute path"),
        case("log-operator", to("one")).manager(json!({ "access_log": [text("%UPSTREAM_LOCAL_ADDRESS%")] })).refused("%UPSTREAM_LOCAL_ADDRESS% is not supported"),
        case("log-traceable", to("one")).manager(json!({ "access_log": [{ "name": "log", "filter": { "traceable_filter": {} }, "typed_config": typed(STDOUT, json!({})) }] }))
            .refused(".access_log[0].filter.traceable_filter: is not supported"),
    ]
}
