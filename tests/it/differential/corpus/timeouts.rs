//! How long requests, streams and connections may take, and how much they may hold.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, routes, to};

fn common(name: &'static str, options: Value) -> Case {
    case(name, to("one")).manager(json!({ "common_http_protocol_options": options }))
}

fn slow() -> Ask {
    get("/").answered(&json!({ "delay_ms": 900 }))
}

/// A request that never comes to its end.
fn endless() -> Ask {
    Ask::bytes("POST / HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\ncontent-length: 10\r\n\r\nhalf")
}

/// Answered for a route whose stream may take so long.
fn of_route(name: &'static str, duration: Value) -> Case {
    let action = json!({ "cluster": "one", "max_stream_duration": duration });
    case(name, routes(json!([{ "match": { "prefix": "/" }, "route": action }])))
        .manager(json!({ "common_http_protocol_options": { "max_stream_duration": "0.2s" } }))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let grpc = |timeout: &str| Ask::new("POST", "/").http2().with("content-type", "application/grpc").with("grpc-timeout", timeout).body("").answered(&json!({ "delay_ms": 900 }));
    let many = |count: usize| (0..count).fold(get("/"), |ask, n| ask.with(&format!("x-{n}"), "1"));
    let next = "GET /2 HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\n\r\n";
    vec![
        case("request-timeout", to("one")).manager(json!({ "request_timeout": "0.3s" })).asks(get("/")).asks(endless().is(408)).asks(slow()),
        common("stream-duration", json!({ "max_stream_duration": "0.3s" })).asks(get("/")).asks(slow().is(504)).asks(slow().http2().is(504)).asks(endless().is(408)),
        of_route("stream-duration-of-route", json!({ "max_stream_duration": "0.4s" })).asks(slow().is(504)),
        of_route("stream-duration-never", json!({ "max_stream_duration": "0s" })).asks(slow()),
        of_route("stream-duration-grpc", json!({ "max_stream_duration": "0s", "grpc_timeout_header_max": "0.4s" })).asks(grpc("200m")).asks(grpc("5S")).asks(slow()),
        of_route("stream-duration-grpc-offset", json!({ "max_stream_duration": "0s", "grpc_timeout_header_max": "0s", "grpc_timeout_header_offset": "4.8s" })).asks(grpc("5S")),
        common("headers-count", json!({ "max_headers_count": 12 })).asks(many(3)).asks(many(20).is(431)).asks(many(3).http2()),
        common("headers-rejected", json!({ "headers_with_underscores_action": "REJECT_REQUEST" })).asks(get("/").with("x-a", "1")).asks(get("/").with("x_a", "1").is(400)),
        common("headers-dropped", json!({ "headers_with_underscores_action": "DROP_HEADER" })).asks(get("/").with("x_a", "1").with("x-a", "2")).asks(get("/").with("x_a", "1").http2()),
        common("requests-per-connection", json!({ "max_requests_per_connection": 2 })).asks(Ask::bytes(&format!("GET /1 HTTP/1.1\r\nhost: test\r\nx-case: CASE\r\n\r\n{next}{next}"))),
        common("one-request-per-connection", json!({ "max_requests_per_connection": 1 })).asks(get("/")).asks(get("/").http2()),
        common("idle-nought", json!({ "idle_timeout": "0s" })).asks(get("/")).asks(get("/").http2()),
        common("stream-nought", json!({ "max_stream_duration": "0s" })).asks(get("/")).asks(get("/").http2()),
        case("request-nought", to("one")).manager(json!({ "request_timeout": "0s" })).asks(get("/")).asks(get("/").http2()),
        case("request-headers-nought", to("one")).manager(json!({ "request_headers_timeout": "0s" })).asks(get("/")).asks(get("/").http2()),
        case("stream-idle-nought", to("one")).manager(json!({ "stream_idle_timeout": "0s" })).asks(get("/")).asks(get("/").http2()),
        common("connection-duration", json!({ "max_connection_duration": "60s" })).asks(get("/")),
    ]
}
