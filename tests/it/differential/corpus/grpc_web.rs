//! gRPC-Web clients before gRPC servers, and calls that are counted.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, routes};

const STATS: &str = "extensions.filters.http.grpc_stats.v3.FilterConfig";
const WEB: &str = "extensions.filters.http.grpc_web.v3.GrpcWeb";
/// A frame with the message `abc`, and its base64.
const FRAME: &str = "\0\0\0\0\u{3}abc";
const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "AAAAAANhYmM=";

fn web(name: &'static str) -> Case {
    let config = routes(json!([
        { "match": { "prefix": "/none" }, "direct_response": { "status": 403, "body": { "inline_string": "no entry" } } },
        { "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
        { "match": { "prefix": "/svc" }, "route": { "cluster": "h2" } },
        { "match": { "prefix": "/one" }, "route": { "cluster": "one" } },
    ]));
    case(name, config).filter("envoy.filters.http.grpc_web", WEB, json!({}))
}

fn ask(path: &str, kind: &str, accept: &str, body: &str) -> Ask {
    Ask::new("POST", path).with("content-type", kind).with("accept", accept).body(body)
}

fn binary(body: &str) -> Ask {
    ask("/svc/Call", BINARY, BINARY, body)
}

fn by_http1(kind: &str, body: &str) -> Ask {
    let why = "RFC 9110 §10.1.4: who sends TE names it in Connection";
    ask("/one/Call", kind, kind, body).differs("upstream header connection", why)
}

fn trailed(ask: Ask) -> Ask {
    ask.differs("body", "the agent passes trailers of HTTP/1 on")
}

fn text(body: &str) -> Ask {
    ask("/svc/Call", "application/grpc-web-text", "application/grpc-web-text", body)
}

/// What a gRPC server answers.
fn answer(body: &str, trailers: &[(&str, &str)]) -> Value {
    json!({ "headers": [["content-type", "application/grpc"]], "body": body, "trailers": trailers })
}

fn counted(name: &'static str, config: Value) -> Case {
    web(name).filter("envoy.filters.http.grpc_stats", STATS, config)
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let ok = [("grpc-status", "0"), ("grpc-message", "fine")];
    let one = answer("\0\0\0\0\u{2}hi", &ok);
    let two = answer("\0\0\0\0\u{2}hi\0\0\0\0\u{4}more\0\0\0\0\0", &ok);
    let only = json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "5"], ["grpc-message", "not there"]], "body": "" });
    let plain = |status: u16| json!({ "status": status, "headers": [["content-type", "text/plain"], ["x-a", "1"]], "body": "not % a frame\n" });
    let call = |body: &str| ask("/svc/Call", "application/grpc", "*/*", body);
    vec![
        // What is counted of them changes nothing.
        counted("grpc-stats", json!({ "stats_for_all_methods": true, "emit_filter_state": true }))
            .asks(call(FRAME).answered(&one).http2()).asks(call(FRAME).answered(&two)).asks(call("").answered(&two).http2()).asks(call("???").answered(&only).http2()).asks(call(FRAME).answered(&plain(503)).is(503))
            .asks(ask("/none", "application/grpc", "*/*", FRAME)).asks(ask("/dead", "application/grpc", "*/*", "").http2()).asks(ask("/svc/Call", "text/plain", "*/*", "x")),
        counted("grpc-stats-of-some", json!({ "individual_method_stats_allowlist": { "services": [{ "name": "svc", "method_names": ["Call"] }] }, "replace_dots_in_grpc_service_name": true }))
            .asks(call(FRAME).answered(&one).http2()),
        counted("grpc-stats-of-upstreams", json!({ "enable_upstream_stats": true })).refused(".enable_upstream_stats: is not supported"),
        web("web-binary").asks(binary(FRAME).answered(&one)).asks(binary(FRAME).answered(&one).http2()).asks(binary("").answered(&two)).asks(binary(FRAME).answered(&two).http2())
            .asks(ask("/svc/Call", "application/grpc-web", "*/*", FRAME).answered(&one)),
        web("web-text").asks(text(TEXT).answered(&one)).asks(text(TEXT).answered(&two)).asks(text(TEXT).answered(&two).http2()).asks(text("").answered(&one))
            .asks(ask("/svc/Call", "application/grpc-web-text+proto", "application/grpc-web-text+proto", TEXT).answered(&one))
            .asks(ask("/svc/Call", "application/grpc-web-text", "application/grpc-web", TEXT).answered(&two)).asks(ask("/svc/Call", "application/grpc-web", "application/grpc-web-text", FRAME).answered(&two)),
        web("web-broken").asks(text("AAA").answered(&one).is(400)).asks(text("????").answered(&one).is(400)).asks(text("AAAAAAN").answered(&one).http2().is(400)).asks(text("YQ==YQ==").answered(&one).is(400)),
        web("web-trailers-only").asks(binary(FRAME).answered(&only)).asks(text(TEXT).answered(&only).http2()),
        web("web-plain").asks(binary(FRAME).answered(&plain(503)).is(503)).asks(text(TEXT).answered(&plain(404)).http2().is(404)).asks(binary(FRAME).answered(&plain(200))).asks(binary(FRAME).answered(&json!({ "status": 403, "body": "" })).is(403)),
        web("web-own").asks(ask("/none", "application/grpc-web", "*/*", FRAME).is(403)).asks(ask("/dead", "application/grpc-web-text", "application/grpc-web-text", "").is(503)).asks(ask("/nowhere", "application/grpc-web", "*/*", FRAME).http2().is(404)),
        web("web-http1").asks(trailed(by_http1(BINARY, FRAME).answered(&one))).asks(trailed(by_http1(BINARY, FRAME).answered(&two).http2())).asks(trailed(by_http1(BINARY, "").answered(&one)))
            .asks(ask("/one/Call", "application/grpc-web-text", "application/grpc-web-text", TEXT).answered(&two).is(0).differs("status", "Envoy waits for ever for trailers that it does not take"))
            .asks(by_http1(BINARY, FRAME).answered(&only)).asks(by_http1("application/grpc-web-text", TEXT).answered(&only).http2().differs("header content-length", "the agent passes on that there is no body"))
            .asks(by_http1(BINARY, FRAME).answered(&plain(503)).is(503)).asks(by_http1(BINARY, FRAME).answered(&plain(200)).http2()),
        web("web-others").asks(ask("/svc/Call", "application/grpc", "*/*", FRAME).answered(&one).http2()).asks(ask("/svc/Call", "text/plain", "application/grpc-web-text", "x"))
            .asks(ask("/svc/Call", "application/grpc-web+json", "*/*", "x")).asks(ask("/svc/Call", "application/grpc-web; charset=utf-8", "*/*", "x")).asks(ask("/svc/Call", "APPLICATION/grpc-web", "*/*", "x")),
    ]
}
