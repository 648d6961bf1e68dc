//! What is logged of requests.

use serde_json::{Value, json};
use tests::corpus::Ask;

use super::{Case, case, get, hosts, routes, to, typed};

const STDOUT: &str = "extensions.access_loggers.stream.v3.StdoutAccessLog";
const FILE: &str = "extensions.access_loggers.file.v3.FileAccessLog";

fn log(kind: &str, config: Value) -> Value {
    json!({ "name": "log", "typed_config": typed(kind, config) })
}

/// What Istio logs where its mesh configuration says nothing else.
const ISTIO: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%",
);

/// The same by name, without what is another at each time.
fn istio_json() -> Value {
    json!({
        "authority": "%REQ(:AUTHORITY)%", "bytes_received": "%BYTES_RECEIVED%", "bytes_sent": "%BYTES_SENT%",
        "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
        "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%", "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "method": "%REQ(:METHOD)%", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "protocol": "%PROTOCOL%",
        "requested_server_name": "%REQUESTED_SERVER_NAME%", "response_code": "%RESPONSE_CODE%",
        "response_code_details": "%RESPONSE_CODE_DETAILS%", "response_flags": "%RESPONSE_FLAGS%", "route_name": "%ROUTE_NAME%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%", "upstream_host": "%UPSTREAM_HOST%",
        "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
        "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "user_agent": "%REQ(USER-AGENT)%", "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    })
}

pub(super) fn text(format: &str) -> Value {
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

const CONNECTION: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% [%UPSTREAM_TRANSPORT_FAILURE_REASON%] %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS% %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME% %PROTOCOL% %REQ(:METHOD)% %FILTER_CHAIN_NAME% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%";

/// A log of connections: they have no header to be known by.
fn of_connection(name: &str, who: &str) -> Value {
    let source = json!({ "inline_string": format!("@{name}#0|{who} {CONNECTION}\n") });
    log(STDOUT, json!({ "log_format": { "text_format_source": source } }))
}

/// A connection that `tcp_proxy` takes to `cluster`, behind other filters.
pub(super) fn connection(name: &'static str, cluster: &str, mut filters: Vec<Value>) -> Case {
    let proxy = json!({ "stat_prefix": name, "cluster": cluster, "access_log": [of_connection(name, "proxy")] });
    filters.push(json!({ "name": "tcp", "typed_config": typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy) }));
    let chain = json!({ "name": "chain", "filters": filters });
    case(name, json!({})).listener(
        json!({ "filter_chains": [chain], "access_log": [of_connection(name, "listener")] }),
    )
}

pub(super) fn network_rbac(action: &str, port: u32) -> Value {
    let policies = json!({ "no entry": { "permissions": [{ "destination_port": port }], "principals": [{ "any": true }] } });
    let config =
        json!({ "stat_prefix": "rbac", "rules": { "action": action, "policies": policies } });
    json!({ "name": "rbac", "typed_config": typed("extensions.filters.network.rbac.v3.RBAC", config) })
}

#[rustfmt::skip]
fn of_connections() -> Vec<Case> {
    let filtered = |name: &'static str, filter: Value| {
        let mut of = of_connection(name, "some");
        of["filter"] = filter;
        connection(name, "one", vec![]).listener(json!({ "access_log": [of, of_connection(name, "all")] })).asks(get("/"))
    };
    let status = json!({ "comparison": { "op": "EQ", "value": { "default_value": 0, "runtime_key": "none" } } });
    // How many bytes are told by numbers that each side says in its own.
    let http = |name: &'static str| {
        let source = json!({ "inline_string": format!("@{name}#0|%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% %ROUTE_NAME% %REQ(:PATH)%\n") });
        case(name, to("one")).listener(json!({ "access_log": [log(STDOUT, json!({ "log_format": { "text_format_source": source } }))] }))
    };
    let elsewhere = json!([{ "filter_chain_match": { "source_prefix_ranges": [{ "address_prefix": "192.0.2.0", "prefix_len": 24 }] }, "filters": [] }]);
    let mut unmatched = connection("log-unmatched", "one", vec![]);
    let filters = unmatched.listener["filter_chains"][0]["filters"].clone();
    unmatched.listener["filter_chains"] = elsewhere;
    unmatched.listener["filter_chains"][0]["filters"] = filters;
    vec![
        connection("log-tcp", "one", vec![]).asks(Ask::bytes("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-case: CASE\r\n\r\n")),
        connection("log-tcp-dead", "dead", vec![]).asks(get("/").is(0)),
        connection("log-tcp-named", "log-tcp-named", vec![]).cluster("log-tcp-named", "one", json!({ "hostnames": ["a.test:81"] })).asks(Ask::bytes("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-case: CASE\r\n\r\n")),
        connection("log-tcp-named-dead", "log-tcp-named-dead", vec![]).cluster("log-tcp-named-dead", "dead", json!({ "hostnames": ["a.test"] })).asks(get("/").is(0)),
        connection("log-tcp-empty", "empty", vec![]).asks(get("/").is(0)),
        connection("log-tcp-nowhere", "nowhere", vec![]).asks(get("/").is(0)),
        connection("log-tcp-denied", "one", vec![network_rbac("ALLOW", 1)]).asks(get("/").is(0).may_differ("log", "nothing is connected before policy was asked")),
        connection("log-tcp-allowed", "one", vec![network_rbac("DENY", 1)]).asks(get("/")),
        http("log-listener-http").asks(get("/")),
        http("log-listener-http2").asks(get("/").http2()),
        unmatched.asks(get("/").is(0)),
        filtered("log-tcp-flags", json!({ "response_flag_filter": { "flags": ["NR"] } })),
        filtered("log-tcp-status", json!({ "status_code_filter": status })),
        connection("log-tcp-header", "one", vec![]).listener(json!({ "access_log": [{ "name": "log", "filter": { "grpc_status_filter": {} }, "typed_config": typed(STDOUT, json!({})) }] }))
            .refused(".access_log[0].filter: looks at requests"),
    ]
}

/// Why answers are what they are, in words.
#[rustfmt::skip]
fn detailed() -> Case {
    let path = json!({ "url_path": { "path": { "exact": "/denied" } } });
    let denied = json!({ "action": "DENY", "policies": { "no entry": { "permissions": [path], "principals": [{ "any": true }] } } });
    let config = routes(json!([
        { "match": { "path": "/cut" }, "route": { "cluster": "one" } },
        { "match": { "path": "/h2" }, "route": { "cluster": "h2" } },
        { "match": { "prefix": "/nowhere" }, "route": { "cluster_header": "x-none" } },
        { "match": { "path": "/redirect" }, "redirect": { "path_redirect": "/" } },
        { "match": { "path": "/direct" }, "direct_response": { "status": 418 } },
        { "match": { "path": "/full" }, "route": { "cluster": "full" } },
        { "match": { "path": "/again" }, "route": { "cluster": "dead", "retry_policy": { "retry_on": "5xx" } } },
        { "match": { "path": "/per-try" }, "route": { "cluster": "one", "retry_policy": { "retry_on": "reset", "per_try_timeout": "0.2s" } } },
        { "match": { "path": "/" }, "route": { "cluster": "one" } },
    ]));
    case("log-details", config)
        .manager(json!({ "access_log": [text("%RESPONSE_CODE_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %RESPONSE_FLAGS%")] }))
        .filter("rbac", "extensions.filters.http.rbac.v3.RBAC", json!({ "rules": denied }))
        .cluster("full", "one", json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } }))
}

/// Requests that are counted together, by name.
#[rustfmt::skip]
fn virtual_clusters() -> Case {
    let header = |name: &str, matched: Value| json!({ "name": name, "string_match": matched });
    let config = hosts(json!([{ "name": "all", "domains": ["*"],
        "virtual_clusters": [
            { "name": "reads of users", "headers": [header(":path", json!({ "prefix": "/users" })), header(":method", json!({ "exact": "GET" }))] },
            { "name": "users", "headers": [header(":path", json!({ "prefix": "/users" }))] },
            { "name": "marked", "headers": [{ "name": "x-mark", "present_match": true }] },
        ],
        "routes": [
            { "match": { "prefix": "/direct" }, "direct_response": { "status": 418 } },
            { "match": { "prefix": "/dead" }, "stat_prefix": "dead", "route": { "cluster": "dead" } },
            { "match": { "prefix": "/users/none" }, "route": { "cluster": "empty" } },
            { "match": { "prefix": "/users" }, "stat_prefix": "users", "route": { "cluster": "one", "prefix_rewrite": "/elsewhere" } },
            { "match": { "prefix": "/rest" }, "route": { "cluster": "one" } },
        ],
    }, { "name": "without", "domains": ["without.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "one" } }] }]));
    case("log-virtual-clusters", config).manager(json!({ "access_log": [text("%VIRTUAL_CLUSTER_NAME% %UPSTREAM_CLUSTER%")] }))
        .asks(get("/users/1")).asks(Ask::new("POST", "/users")).asks(get("/rest").with("x-mark", "1")).asks(get("/rest")).asks(get("/direct").is(418)).asks(get("/dead").with("x-mark", "").is(503))
        .asks(get("/users/none").is(503)).asks(get("/nowhere").with("x-mark", "1").is(404)).asks(get("/users").with("x-mark", "1").http2())
}

/// Of calls, by whatever tells it; of other requests none.
fn grpc_statuses() -> Case {
    let call = |path: &str| Ask::new("POST", path).with("content-type", "application/grpc").http2();
    let trailer = |status: &str| json!({ "body": "b", "trailers": [["grpc-status", status]] });
    let header = |status: &str| json!({ "headers": [["grpc-status", status]] });
    let logs = json!([
        text("%GRPC_STATUS% %GRPC_STATUS_NUMBER% %RESPONSE_CODE%"),
        json_of(json!({ "name": "%GRPC_STATUS%", "number": "%GRPC_STATUS_NUMBER%" }), false),
    ]);
    logging("log-grpc-status", logs)
        .asks(call("/h2").answered(&trailer("5")))
        .asks(call("/h2").answered(&trailer("0")))
        .asks(call("/h2").answered(&trailer("16")))
        .asks(call("/h2").answered(&trailer("77")))
        .asks(call("/h2").answered(&header("1")))
        .asks(call("/direct"))
        .asks(call("/dead"))
        .asks(call("/h2").answered(&json!({ "status": 404 })).is(404))
        .asks(get("/h2").answered(&trailer("5")).http2())
}

/// What is noted of a token, say, ends no line.
#[rustfmt::skip]
fn line_feeds() -> Case {
    let noted = json!({ "lines": "a\r\n@forged|b\u{1b}[2J", "plain": "a\tb\\n\"c", "nested": { "of": "a\nb" } });
    let noted = json!({ "metadata": [{ "metadata_namespace": "n", "value": noted }] });
    let told = |key: &str| text(&format!("{key} [%DYNAMIC_METADATA(n:{key})%]"));
    case("log-line-feeds", to("one"))
        .filter("set", "extensions.filters.http.set_metadata.v3.Config", noted)
        .manager(json!({ "access_log": [told("plain"), told("nested"), told("lines"), text("[%REQ(X-A)%]"), json_of(json!({ "lines": "%DYNAMIC_METADATA(n:lines)%" }), false)] }))
        .asks(get("/").with("x-a", "a\tb").differs("log 2", "a value ends no line"))
        .asks(get("/").with("x-a", "a\tb").http2().differs("log 2", "a value ends no line"))
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
    let mut cases = of_connections();
    cases.extend([
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
        asked(logging("log-istio", json!([text(ISTIO)]))),
        asked(logging("log-istio-json", json!([json_of(istio_json(), false)]))),
        asked(logging("log-addresses", json!([text("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT% %UPSTREAM_REMOTE_ADDRESS%")]))),
        detailed().asks(Ask::new("POST", "/cut").answered(&json!({ "cut": true })).is(503)).asks(Ask::new("POST", "/h2").answered(&json!({ "cut": true })).is(503)).asks(get("/nowhere/at/all").is(503))
            .asks(get("/none").is(404)).asks(get("/redirect").is(301)).asks(get("/denied").is(403)).asks(get("/direct").is(418)).asks(get("/"))
            .asks(get("/full").is(503)).asks(get("/again").is(503)).asks(get("/per-try").answered(&json!({ "delay_ms": 900 })).is(504)),
        virtual_clusters(),
        line_feeds(),
        grpc_statuses(),
        case("log-operator", to("one")).manager(json!({ "access_log": [text("%UPSTREAM_TLS_CIPHER%")] })).refused("%UPSTREAM_TLS_CIPHER% is not supported"),
        case("log-traceable", to("one")).manager(json!({ "access_log": [{ "name": "log", "filter": { "traceable_filter": {} }, "typed_config": typed(STDOUT, json!({})) }] }))
            .refused(".access_log[0].filter.traceable_filter: is not supported"),
    ]);
    cases
}
