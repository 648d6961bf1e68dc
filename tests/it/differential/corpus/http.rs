//! The protocols: heads, bodies, trailers, connections, HTTP/1 and HTTP/2 on either side.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, to, typed};

const WORDS: &str = "the agent says what it is that is wrong";

/// Without `enable_trailers`, Envoy takes none from HTTP/1.
const TRAILERS: &str = "the agent passes trailers of HTTP/1 on";

fn trailer_of_http1(cluster: &str) -> Ask {
    let ask = post("t").trailer("x-trailer", "1");
    if cluster == "h2" { ask.differs("upstream trailer x-trailer", TRAILERS) } else { ask }
}

fn trailer_to_http2(cluster: &str) -> Ask {
    let answer = json!({ "body": "b", "trailers": [["x-t", "1"]] });
    let ask = get("/").answered(&answer).http2();
    if cluster == "one" { ask.differs("trailer x-t", TRAILERS) } else { ask }
}

fn te(cluster: &str, ask: Ask) -> Ask {
    let why = "RFC 9110 §10.1.4: who sends TE names it in Connection";
    if cluster == "one" { ask.differs("upstream header connection", why) } else { ask }
}

fn cookies() -> Ask {
    get("/").with("cookie", "a=1").with("cookie", "b=2").http2()
}

/// What is sent no second time: the agent asks again where a kept connection ends under a
/// GET, as RFC 9112 §9.3.1 lets it, and Envoy does not.
fn cut() -> Ask {
    post("x").answered(&json!({ "cut": true })).is(503)
}

fn post(body: &str) -> Ask {
    Ask::new("POST", "/post").body(body)
}

/// HEAD, answered with this `content-length`, which nothing is framed by.
fn told(length: &str) -> Ask {
    let bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    Ask::new("HEAD", "/").answered(&json!({ "bytes": bytes }))
}

/// A gRPC message of that text, as one frame.
fn message(text: &str) -> String {
    let length = u8::try_from(text.len()).expect("a short message");
    format!("\0\0\0\0{}{text}", char::from(length))
}

fn call(answer: &Value) -> Ask {
    Ask::new("POST", "/a.Service/Call")
        .http2()
        .with("content-type", "application/grpc")
        .with("te", "trailers")
        .body(&message("hello"))
        .answered(answer)
}

fn grpc_ok() -> Value {
    json!({
        "headers": [["content-type", "application/grpc"]],
        "body": message("hello"),
        "trailers": [["grpc-status", "0"]],
    })
}

/// Every status of a hundred.
fn statuses(name: &'static str, hundred: u16) -> Case {
    let answered = |status: u16| get("/").answered(&json!({ "status": status })).is(status);
    (hundred..hundred + 100).fold(case(name, to("one")), |case, status| case.asks(answered(status)))
}

/// With a log of why.
fn logged(case: Case) -> Case {
    let source = json!({ "inline_string": "@%REQ(X-CASE)%|%RESPONSE_CODE% %RESPONSE_FLAGS%\n" });
    let text = json!({ "log_format": { "text_format_source": source } });
    let stdout = typed("extensions.access_loggers.stream.v3.StdoutAccessLog", text);
    case.manager(json!({ "access_log": [{ "name": "log", "typed_config": stdout }] }))
}

/// Answered by these bytes, behind which the connection is closed.
fn torn(bytes: &str) -> Ask {
    get("/").answered(&json!({ "bytes": bytes })).is(502)
}

/// Answered by a change of protocols, with these lines, and these bytes behind the head.
fn switched(lines: &str, rest: &str) -> Ask {
    torn(&format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n{rest}")).is(101).differs(
        "status",
        "502: who has no common protocol with the upstream is told nothing that it might take for an answer",
    )
}

fn offer(ask: Ask) -> Ask {
    ask.with("connection", "Upgrade").with("upgrade", "websocket")
}

/// So often ten thousand bytes.
fn long_head(count: usize) -> Ask {
    let value = "y".repeat(10_000);
    (0..count).fold(get("/"), |ask, n| ask.with(&format!("x-{n}"), &value))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let big = "0123456789".repeat(20_000);
    let mut cases = Vec::new();
    for (name, cluster) in [("requests-to-http1", "one"), ("requests-to-http2", "h2")] {
        cases.push(case(name, to(cluster))
            .asks(get("/")).asks(get("/?")).asks(get("/a?b=c&d")).asks(get("/a%2Fb/%zz")).asks(get("/a//b/../c"))
            .asks(get("/").http2()).asks(Ask::new("HEAD", "/").differs("header transfer-encoding", "the agent does not tell how a body would be framed that is not there")).asks(Ask::new("HEAD", "/").http2())
            .asks(Ask::new("OPTIONS", "*").is(404))
            .asks(Ask::new("OPTIONS", "/")).asks(Ask::new("DELETE", "/x"))
            .asks(Ask::new("PATCH", "/x").body("patched")).asks(Ask::new("BREW", "/pot").is(400))
            .asks(get("http://absolute.test/path?q").host("other.test").differs("status", "two hosts that are not the same are refused"))
            .asks(post("five!")).asks(post("")).asks(post(&big)).asks(post("five!").http2()).asks(post(&big).http2())
            .asks(post("chunks").with("transfer-encoding", "chunked")).asks(post("").with("transfer-encoding", "chunked"))
            .asks(get("/").body("a body of a GET")).asks(get("/").body("in chunks").with("transfer-encoding", "chunked")).asks(get("/").body("of no length").http2())
            .asks(Ask::new("HEAD", "/").body("in chunks").with("transfer-encoding", "chunked").differs("header transfer-encoding", "the agent does not tell how a body would be framed that is not there"))
            .asks(trailer_of_http1(cluster)).asks(post("t").trailer("x-trailer", "1").http2())
            .asks(get("/").with("connection", "close")).asks(get("/").with("connection", "x-hop, keep-alive").with("x-hop", "1"))
            .asks(get("/").with("keep-alive", "timeout=5")).asks(get("/").with("proxy-connection", "keep-alive"))
            .asks(te(cluster, get("/").with("te", "trailers"))).asks(te(cluster, get("/").with("te", "gzip, trailers")))
            .asks(te(cluster, get("/").with("te", "trailers").http2()))
            .asks(get("/").with("upgrade", "h2c").with("connection", "upgrade, http2-settings").with("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"))
            .asks(get("/").with("x-many", "1").with("x-many", "2")).asks(get("/").with("x-empty", ""))
            .asks(cookies()).asks(get("/").with("cookie", "a=1; b=2"))
            .asks(get("/").with("user-agent", "me")).asks(get("/").with("accept-encoding", "gzip"))
            .asks(post("hello").with("expect", "100-continue")).asks(get("/").with("expect", "more"))
            .asks(get("/").with("x-latin", "caf\u{e9}"))
            .asks(get("/").with("x_under", "1")).asks(get("/").with("x-odd!#$%&'*+.^_`|~", "1"))
            .asks(get("/").hostless().is(400).differs("body", WORDS).differs("header content-length", WORDS).differs("header content-type", WORDS)).asks(get("/").host("").is(if cluster == "one" { 200 } else { 502 }).differs("status", "an empty host is refused")).asks(get("/").host("bad host").is(400))
            .asks(get("/").host("user@host").differs("status", "a host with a user is refused (RFC 9110 §4.2.4)")).asks(get("/").host("[::1]:80")));
        cases.push(case(if cluster == "one" { "claims-to-http1" } else { "claims-to-http2" }, to(cluster))
            .asks(get("/").with("x-forwarded-for", "192.0.2.1")).asks(get("/").with("x-forwarded-proto", "https"))
            .asks(get("/").with("x-forwarded-host", "h.test")).asks(get("/").with("x-request-id", "mine"))
            .asks(get("/").with("x-request-id", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"))
            .asks(get("/").with("via", "1.1 before")).asks(get("/").with("x-envoy-internal", "true"))
            .asks(get("/").with("x-envoy-external-address", "192.0.2.1")).asks(get("/").with("x-envoy-downstream-service-cluster", "c"))
            .asks(get("/").with("x-envoy-original-path", "/o")).asks(get("/").with("x-envoy-expected-rq-timeout-ms", "77"))
            .asks(get("/").with("x-envoy-attempt-count", "9")).asks(get("/").with("x-envoy-decorator-operation", "op"))
            .asks(get("/").with("forwarded", "for=192.0.2.1")).asks(get("/").with("x-forwarded-client-cert", "Hash=00"))
            .asks(get("/").with("x-client-trace-id", "t")).asks(get("/").with("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
            .asks(get("/").with("x-envoy-upstream-rq-timeout-ms", "250").answered(&json!({ "delay_ms": 800 }))));
        cases.push(case(if cluster == "one" { "responses-of-http1" } else { "responses-of-http2" }, to(cluster))
            .asks(get("/").answered(&json!({ "status": 204 }))  .is(204)).asks(get("/").answered(&json!({ "status": 304, "headers": [["etag", "\"x\""]] })).is(304))
            .asks(get("/").answered(&json!({ "status": 404, "body": "theirs" })).is(404)).asks(get("/").answered(&json!({ "status": 599, "body": "" })).is(599))
            .asks(get("/").answered(&json!({ "headers": [["x-a", "1"], ["x-a", "2"], ["set-cookie", "a=b"], ["set-cookie", "c=d"]] })))
            .asks(get("/").answered(&json!({ "headers": [["server", "theirs"], ["date", "Thu, 01 Jan 1970 00:00:00 GMT"], ["via", "1.1 up"]] })))
            .asks(get("/").answered(&json!({ "headers": [["x-envoy-upstream-service-time", "7"], ["x-envoy-overloaded", "true"]] })))
            .asks(get("/").answered(&json!({ "body": "0123456789", "times": 20_000 })).http2()).asks(get("/").answered(&json!({ "body": "0123456789", "times": 20_000 })))
            .asks(trailer_to_http2(cluster)).asks(get("/").answered(&json!({ "body": "b", "trailers": [["x-t", "1"]] })))
            .asks(cut()).asks(cut().http2()));
    }
    cases.extend([
        case("a-cluster-of-its-own", to("own")).cluster("own", "one", json!({ "lb_policy": "LEAST_REQUEST" })).asks(get("/")),
        statuses("statuses-2xx", 200),
        statuses("statuses-3xx", 300),
        statuses("statuses-4xx", 400),
        statuses("statuses-5xx", 500),
        case("responses-http1-shapes", to("one"))
            .asks(get("/").answered(&json!({ "close": true })))
            .asks(get("/").answered(&json!({ "interim": [103] }))).asks(get("/").answered(&json!({ "interim": [100] })))
            .asks(get("/").answered(&json!({ "headers": [["transfer-encoding", "chunked"]], "body": "in chunks" })))
            .asks(get("/").answered(&json!({ "headers": [["connection", "x-hop"], ["x-hop", "1"], ["keep-alive", "timeout=9"]] }))
                .differs("header x-hop", "RFC 9110 §7.6.1: what Connection names goes no further"))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\n\r\nuntil the end" })))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.0 200 OK\r\n\r\nuntil the end" })))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort" })).is(0))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nlong" })))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nlon" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" })).is(0))
            .asks(get("/").answered(&json!({ "bytes": "nonsense\r\n\r\n" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nab" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" })).is(502))
            .asks(told("+2").is(502)).asks(told("-2").is(502)).asks(told("0x2").is(502)).asks(told("2, 2").is(502)).asks(told("").is(502)).asks(told("18446744073709551616").is(502)).asks(told("0002"))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 204 None\r\ncontent-length: 2\r\n\r\n" })).is(502)).asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 204 None\r\ncontent-length: 0\r\n\r\n" })).is(204))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 204 None\r\ntransfer-encoding: chunked\r\n\r\n" })).is(502))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 304 Same\r\ncontent-length: 42\r\n\r\n" })).is(304))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 99 Low\r\ncontent-length: 0\r\n\r\n" })).is(0).differs("status", "Envoy waits for ever for another response"))
            .asks(get("/").answered(&json!({ "bytes": "HTTP/1.1 200 OK\r\nbad name: 1\r\ncontent-length: 0\r\n\r\n" })).is(502)),
        case("grpc", to("h2"))
            .asks(call(&grpc_ok()))
            .asks(call(&json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "7"], ["grpc-message", "no"]], "body": "" })))
            .asks(call(&json!({ "headers": [["content-type", "application/grpc"]], "body": "", "trailers": [["grpc-status", "13"], ["grpc-message", "a%20b"]] })))
            .asks(call(&json!({ "status": 503, "body": "not gRPC" })).is(503)).asks(call(&json!({ "cut": true })))
            .asks(call(&grpc_ok()).with("grpc-timeout", "100m")),
        case("grpc-errors", super::routes(json!([
            { "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
            { "match": { "prefix": "/slow" }, "route": { "cluster": "h2", "timeout": "0.3s" } },
            { "match": { "prefix": "/teapot" }, "direct_response": { "status": 418, "body": { "inline_string": "a b%" } } },
        ])))
            .asks(Ask::new("POST", "/dead").with("content-type", "application/grpc").body("").http2())
            .asks(Ask::new("POST", "/slow").with("content-type", "application/grpc+proto").body("").http2().answered(&json!({ "delay_ms": 1200 })))
            .asks(Ask::new("POST", "/teapot").with("content-type", "application/grpc").body("").http2())
            .asks(Ask::new("POST", "/nowhere").with("content-type", "application/grpc").body("").http2())
            .asks(Ask::new("POST", "/nowhere").with("content-type", "application/grpc-web").body("").http2().is(404))
            .asks(Ask::new("POST", "/nowhere").with("content-type", "application/grpc").body("")),
        case("http2-limits", to("one")).manager(json!({ "http2_protocol_options": { "max_concurrent_streams": 100, "initial_stream_window_size": 65536, "initial_connection_window_size": 1048576 } }))
            .asks(get("/").http2()).asks(post(&big).http2()),
        case("http2-many-streams", to("one")).manager(json!({ "http2_protocol_options": { "max_concurrent_streams": 4096 } })).refused("max_concurrent_streams: 4096 is not within 1 to 1024"),
        case("http2-wide-window", to("one")).manager(json!({ "http2_protocol_options": { "initial_connection_window_size": 268435456 } })).refused("initial_connection_window_size: 268435456 is not within 65535 to 67108864"),
        case("http2-narrow-window", to("one")).manager(json!({ "http2_protocol_options": { "initial_stream_window_size": 65534 } })).refused_by_both("initial_stream_window_size: 65534 is not within 65535 to 16777216", "InitialStreamWindowSize"),
        logged(case("responses-torn-heads", to("one")))
            .asks(torn("H")).asks(torn("HTTP/1.1 200 OK")).asks(torn("HTTP/1.1 200 OK\r\n")).asks(torn("HTTP/1.1 200 OK\r\ncontent-le")).asks(torn("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"))
            .asks(torn("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r")).asks(torn("HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 2")).asks(torn("HTTP/1.1 200 OK\r\ncontent-le").http2())
            .asks(torn("HTTP/1.1 100 Continue\r\n\r\n").is(503)).asks(torn("HTTP/1.1 103 Early\r\n\r\n").http2().is(503)),
        case("responses-switched-unasked", to("one"))
            .asks(switched("connection: upgrade\r\nupgrade: websocket\r\n", "")).asks(switched("", "")).asks(switched("", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).asks(switched("upgrade: websocket\r\n", "").http2().is(0)),
        case("responses-switched", super::routes(json!([{ "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } }, { "match": { "prefix": "/" }, "route": { "cluster": "one" } }]))).manager(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
            .asks(offer(get("/").tunnels("hello")).is(101).differs("header connection", "Upgrade, not upgrade")).asks(offer(get("/").answered(&json!({ "headers": [["content-length", "4"]] }))).is(502))
            .asks(offer(get("/").answered(&json!({ "headers": [["transfer-encoding", "chunked"]] }))).is(502)).asks(offer(get("/").answered(&json!({ "headers": [["content-length", "0"]] })).tunnels("hello")).is(101).differs("header connection", "Upgrade, not upgrade"))
            .asks(offer(switched("", ""))).asks(offer(get("/dead")).is(503))
            .asks(switched("connection: upgrade\r\nupgrade: websocket\r\n", "")),
        case("header-limit-large", to("one")).manager(json!({ "max_request_headers_kb": 100 }))
            .asks(get("/").with("x-long", &"x".repeat(50_000))).asks(get("/").with("x-long", &"x".repeat(50_000)).http2())
            .asks(long_head(8)).asks(long_head(11).is(431)).asks(long_head(8).http2())
            .asks(long_head(11).http2().is(0).differs("status", "the agent says what it is: 431")),
        case("codec-http1", to("one")).manager(json!({ "codec_type": "HTTP1" })).asks(get("/")),
        case("codec-http2", to("one")).manager(json!({ "codec_type": "HTTP2" })).asks(get("/").http2()),
        case("header-limit", to("one")).manager(json!({ "max_request_headers_kb": 4 }))
            .asks(get("/").with("x-long", &"x".repeat(3000))).asks(get("/").with("x-long", &"x".repeat(5000)).is(431))
            .asks(get("/").with("x-long", &"x".repeat(3000)).http2()),
        case("header-count", to("one"))
            .asks((0..90).fold(get("/"), |ask, n| ask.with(&format!("x-{n}"), "v")))
            .asks((0..120).fold(get("/"), |ask, n| ask.with(&format!("x-{n}"), "v")).is(431)),
    ]);
    cases
}
