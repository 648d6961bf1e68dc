//! How the proxy words its own answers.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes};

/// Answers of every kind, worded so.
fn worded(name: &'static str, config: Value) -> Case {
    let config_of = routes(json!([
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 418, "body": { "inline_string": "short" } } },
        { "match": { "prefix": "/bare" }, "direct_response": { "status": 404 } },
        { "match": { "prefix": "/dead" }, "route": { "cluster": "dead", "prefix_rewrite": "/new" } },
        { "match": { "prefix": "/elsewhere" }, "redirect": { "path_redirect": "/there" } },
        { "match": { "prefix": "/app" }, "route": { "cluster": "one" } },
    ]));
    case(name, config_of).manager(json!({ "local_reply_config": config }))
}

fn grpc() -> Ask {
    Ask::new("POST", "/dead").http2().with("content-type", "application/grpc").body("")
}

fn status(op: &str, value: u32) -> Value {
    let value = json!({ "default_value": value, "runtime_key": "none" });
    json!({ "status_code_filter": { "comparison": { "op": op, "value": value } } })
}

fn text(format: &str) -> Value {
    json!({ "text_format_source": { "inline_string": format } })
}

fn add(key: &str, value: &str, action: &str) -> Value {
    json!({ "header": { "key": key, "value": value }, "append_action": action })
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let every = |case: Case, dead: u16, direct: u16| case
        .asks(get("/direct?a=b").is(direct)).asks(get("/bare")).asks(get("/dead/x").is(dead)).asks(get("/nowhere").http2()).asks(get("/elsewhere")).asks(get("/app")).asks(get("/app").answered(&json!({ "status": 503 })).is(503)).asks(grpc()).asks(Ask::new("HEAD", "/dead").is(dead));
    let expected = |mut case: Case, statuses: [u16; 3]| {
        for (index, status) in [(1, statuses[0]), (3, statuses[1]), (4, statuses[2])] {
            case.asks[index].expected = status;
        }
        case
    };
    let plain = [404, 404, 301];
    let all = json!({ "status": "%RESPONSE_CODE%", "body": "%LOCAL_REPLY_BODY%", "path": "%REQ(:PATH)%", "flags": "%RESPONSE_FLAGS%", "none": "%REQ(X-NONE)%" });
    vec![
        expected(every(worded("reply-text", json!({ "body_format": text("%RESPONSE_CODE%|%LOCAL_REPLY_BODY%|%REQ(:PATH)%|%RESPONSE_FLAGS%|%REQ(X-NONE)%") })), 503, 418), plain),
        expected(every(worded("reply-json", json!({ "body_format": { "json_format": all } })), 503, 418), plain),
        expected(every(worded("reply-typed", json!({ "body_format": { "text_format_source": { "inline_string": "<p>%LOCAL_REPLY_BODY%</p>" }, "content_type": "text/html; charset=UTF-8" } })), 503, 418), plain),
        expected(every(worded("reply-mapped", json!({ "mappers": [
            { "filter": status("EQ", 418), "status_code": 200, "body": { "inline_string": "long" } },
            { "filter": { "response_flag_filter": { "flags": ["UF"] } }, "status_code": 502, "headers_to_add": [add("x-why", "%RESPONSE_FLAGS%", "APPEND_IF_EXISTS_OR_ADD"), add("content-type", "text/css", "OVERWRITE_IF_EXISTS_OR_ADD")] },
            { "filter": { "header_filter": { "header": { "name": ":path", "string_match": { "prefix": "/bare" } } } }, "body": { "inline_string": "no longer bare" }, "body_format_override": text("[%LOCAL_REPLY_BODY% %RESPONSE_CODE%]") },
            { "filter": status("GE", 300), "headers_to_add": [add("x-last", "%REQ(:PATH)%", "APPEND_IF_EXISTS_OR_ADD")] },
        ] })), 502, 200), plain),
        expected(every(worded("reply-mapped-and-formatted", json!({ "mappers": [
            { "filter": { "and_filter": { "filters": [status("GE", 500), { "response_flag_filter": {} }] } }, "status_code": 599, "body": { "inline_bytes": "YWJj" } },
        ], "body_format": text("%LOCAL_REPLY_BODY% of %RESPONSE_CODE%") })), 599, 418), plain),
        worded("reply-without-filter", json!({ "mappers": [{ "status_code": 200 }] })).refused_by_both(".local_reply_config.mappers[0].filter: is missing", "reply-without-filter"),
        worded("reply-of-file", json!({ "mappers": [{ "filter": status("GE", 1), "body": { "filename": "/etc/hostname" } }] })).refused(".local_reply_config.mappers[0].body.filename: is not supported"),
    ]
}
