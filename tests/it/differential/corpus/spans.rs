//! Traces: what upstreams and collectors are told of them.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{Pod, Process, control_plane, corpus::Ask, twins::ADDRESSES};

use super::{COLLECTOR_GRPC, COLLECTOR_HTTP, Case, Parts, case, get, merge, routes, typed};

/// Headers that tell of a trace.
pub(super) const PROPAGATION: [&str; 8] = [
    "b3",
    "traceparent",
    "tracestate",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
];

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SHORT: &str = "8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const PARENT: &str = "05e3ac9a4f6e3b90";

/// Envoy sends what it has every five seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// Ids that nobody can know, which those of questions are not.
pub(super) fn unnamed(value: &str) -> String {
    let known = [TRACE, SHORT, SPAN, PARENT, "0000000000000000", "0000000000000123"];
    let mut out = String::new();
    let mut rest = value;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let (run, after) = rest.split_at(digits);
        match run.len() {
            16 | 32 if !known.contains(&run.to_ascii_lowercase().as_str()) => {
                out.push_str(&format!("<{}>", run.len()));
            }
            _ => out.push_str(run),
        }
        let other = after.find(|c: char| c.is_ascii_hexdigit()).unwrap_or(after.len());
        out.push_str(&after[..other]);
        rest = &after[other..];
    }
    out
}

/// Who is told of spans.
pub(super) struct Collector {
    _process: Process,
    file: PathBuf,
}

impl Collector {
    pub(super) fn start(pod: &Pod) -> Self {
        let file = pod.node().directory().join("spans.jsonl");
        let mut command = Command::new(control_plane::PYTHON);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/collector.py"));
        command.args([pod.ip().to_string(), COLLECTOR_GRPC.to_string()]);
        command.arg(COLLECTOR_HTTP.to_string()).arg(&file);
        let ports = [COLLECTOR_GRPC, COLLECTOR_HTTP];
        Self { _process: pod.starts_listening("collector", command, &ports), file }
    }

    /// What each of them has told, once both have told as much as they should, or time is up.
    pub(super) fn told(&self, clients: [&str; 2], cases: &[&Case]) -> [Vec<Value>; 2] {
        let begin = Instant::now();
        loop {
            let text = fs::read_to_string(&self.file).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let all: Vec<Value> = lines.collect();
            let of = |client: &str| {
                all.iter().filter(|span| span["peer"] == client).cloned().collect::<Vec<_>>()
            };
            let told = clients.map(of);
            let whole = cases.iter().all(|case| count(case, [&told[0], &told[1]]).is_none());
            if whole || begin.elapsed() > PATIENCE {
                return told;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The question that a span is of.
fn case_of(span: &Value) -> &str {
    span["tags"]["case"].as_str().unwrap_or_default()
}

/// What is wrong with how many there are.
pub(super) fn count(case: &Case, spans: [&Vec<Value>; 2]) -> Option<String> {
    let of = |span: &&Value| case_of(span).split('#').next() == Some(case.name);
    let counts = spans.map(|spans| spans.iter().filter(of).count());
    let said = |who: &str, count| {
        format!("{}: {who} tells of {count} spans, not {}", case.name, case.spans)
    };
    match counts {
        [envoy, _] if envoy != case.spans => Some(said("Envoy", envoy)),
        [_, agent] if agent != case.spans => Some(said("the agent", agent)),
        _ => None,
    }
}

/// Each span of a question under a part of its own.
pub(super) fn parts(spans: &[Value], case: &str, client: &str, parts: &mut Parts) {
    let mut own: Vec<&Value> = spans.iter().filter(|span| case_of(span) == case).collect();
    // A retry comes after what it is one of, and the request's own span first.
    own.sort_by_key(|span| {
        let tags = &span["tags"];
        (
            tags["http.url"].is_null(),
            tags["retry.count"].to_string(),
            tags["upstream_address"].to_string(),
        )
    });
    let ids: Vec<String> = own.iter().map(|span| span["id"].to_string()).collect();
    for (index, span) in own.iter().enumerate() {
        let mut put = |part: &str, value: String| {
            parts.insert(format!("span {index} {part}"), value.replace(client, "CLIENT"));
        };
        let field = |names: [&str; 2]| {
            let value = names.iter().map(|name| &span[*name]).find(|value| !value.is_null());
            value.cloned().unwrap_or_default()
        };
        let parent = field(["parent", "parentId"]).to_string();
        let of_own = ids.iter().position(|id| *id == parent);
        put("parent", of_own.map_or_else(|| unnamed(&parent), |index| format!("span {index}")));
        put("trace", unnamed(&field(["trace", "traceId"]).to_string()));
        for name in ["by", "name", "kind", "status", "state", "shared", "scope_is_told"] {
            put(name, span[name].to_string());
        }
        for (name, value) in span["tags"].as_object().into_iter().flatten() {
            let value = match name.as_str() {
                // By what name the control plane knows it.
                "node_id" => continue,
                "guid:x-request-id" => format!("an id of {} bytes", value.to_string().len() - 2),
                // As both listen on an address of their pods.
                "peer.address" => value.to_string().replace(ADDRESSES[0], client),
                _ => value.to_string(),
            };
            put(&format!("tag {name}"), value);
        }
        for (name, value) in span["resource"].as_object().into_iter().flatten() {
            // Who made it.
            if !name.starts_with("telemetry.sdk.") {
                put(&format!("resource {name}"), value.to_string());
            }
        }
        if let Some(local) = span["localEndpoint"].as_object() {
            // Both are called as the control plane has them.
            put(
                "service",
                local["serviceName"].as_str().is_some_and(|name| !name.is_empty()).to_string(),
            );
        }
        let headers = &span["headers"];
        for name in ["content-type", "x-token", "host"] {
            if !headers[name].is_null() {
                put(&format!("header {name}"), headers[name].to_string());
            }
        }
    }
}

fn provider(name: &str, type_: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": typed(type_, config) })
}

fn otel(more: Value) -> Value {
    let mut config = json!({
        "grpc_service": { "envoy_grpc": { "cluster_name": "grpc-collector" }, "timeout": "5s" },
        "service_name": "shop",
    });
    merge(&mut config, more);
    provider("envoy.tracers.opentelemetry", "config.trace.v3.OpenTelemetryConfig", config)
}

fn zipkin(more: Value) -> Value {
    let mut config = json!({
        "collector_cluster": "http-collector",
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
    });
    merge(&mut config, more);
    provider("envoy.tracers.zipkin", "config.trace.v3.ZipkinConfig", config)
}

fn plain_routes() -> Value {
    let retry = json!({ "retry_on": "5xx", "num_retries": 1 });
    routes(json!([
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 204 } },
        { "match": { "prefix": "/named" }, "route": { "cluster": "one" }, "decorator": { "operation": "of route" } },
        { "match": { "prefix": "/unsaid" }, "route": { "cluster": "one" }, "decorator": { "operation": "of route", "propagate": false } },
        { "match": { "prefix": "/retry" }, "route": { "cluster": "one", "retry_policy": retry } },
        { "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
        { "match": { "prefix": "/none" }, "route": { "cluster": "empty" } },
        { "match": { "prefix": "/late" }, "route": { "cluster": "one", "timeout": "0.3s" } },
        { "match": { "prefix": "/new" }, "route": { "cluster": "one", "prefix_rewrite": "/other", "host_rewrite_literal": "other.test" } },
        { "match": { "prefix": "/h2" }, "route": { "cluster": "h2" } },
        { "match": { "prefix": "/untraced" }, "route": { "cluster": "one" }, "tracing": { "random_sampling": { "numerator": 0 } } },
        { "match": { "prefix": "/tags" }, "route": { "cluster": "one" }, "tracing": { "custom_tags": [
            { "tag": "a", "literal": { "value": "of route" } }, { "tag": "r", "value": "%RESPONSE_CODE%" },
        ], "operation": "route %REQ(:method)%", "upstream_operation": "up %REQ(:path)%" } },
        { "match": { "prefix": "/copied" }, "route": { "cluster": "one", "request_mirror_policies": [{ "cluster": "two" }] } },
        { "match": { "prefix": "/" }, "route": { "cluster": "one" } },
    ]))
}

/// A connection manager that traces so. Spans say which question they are of.
fn traced(name: &'static str, provider: Value, more: Value) -> Case {
    let case_tag = json!({ "tag": "case", "request_header": { "name": "x-case" } });
    let mut tracing = json!({ "provider": provider, "custom_tags": [] });
    merge(&mut tracing, more);
    tracing["custom_tags"].as_array_mut().expect("tags").push(case_tag);
    case(name, plain_routes()).manager(json!({ "tracing": tracing }))
}

fn answers(status: u16) -> Value {
    json!({ "status": status })
}

fn follows(flags: &str) -> Ask {
    get("/").with("traceparent", &format!("00-{TRACE}-{SPAN}-{flags}"))
}

#[rustfmt::skip]
pub(super) fn cases() -> Vec<Case> {
    let none = || json!({ "random_sampling": { "value": 0 } });
    let spawn = || json!({ "spawn_upstream_span": true });
    let by_http = json!({
        "grpc_service": null,
        "http_service": {
            "http_uri": { "uri": "http://collector.test/v1/traces", "cluster": "http-collector", "timeout": "5s" },
            "request_headers_to_add": [{ "header": { "key": "x-token", "value": "abc" } }],
        },
        "resource_detectors": [{ "name": "static", "typed_config": typed(
            "extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig",
            json!({ "attributes": { "team": "blue" } }),
        ) }],
    });
    let always = json!({ "sampler": { "name": "always", "typed_config": typed("extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig", json!({})) } });
    let tags = json!([
        { "tag": "a", "literal": { "value": "v" } }, { "tag": "a", "literal": { "value": "second" } },
        { "tag": "none", "environment": { "name": "NOT_THERE" } }, { "tag": "env", "environment": { "name": "NOT_THERE", "default_value": "d" } },
        { "tag": "header", "request_header": { "name": "X-H" } }, { "tag": "or", "request_header": { "name": "x-h", "default_value": "d" } },
        { "tag": "text", "value": "%REQ(:method)% %RESPONSE_CODE% %REQ(x-none)%|" },
        { "tag": "http.method", "literal": { "value": "mine" } },
        { "tag": "noted", "metadata": { "kind": { "request": {} }, "metadata_key": { "key": "notes", "path": [{ "key": "n" }] } } },
        { "tag": "unnoted", "metadata": { "kind": { "request": {} }, "metadata_key": { "key": "notes", "path": [{ "key": "x" }] }, "default_value": "d" } },
    ]);
    let b3 = |value: &str| get("/").with("b3", value);
    let multi = |trace: &str, span: &str| get("/").with("x-b3-traceid", trace).with("x-b3-spanid", span);
    vec![
        traced("spans", otel(json!({})), json!({}))
            .asks(get("/a?b=c")).asks(get("/direct").is(204)).asks(get("/").http2()).asks(get("/dead").is(503)).asks(get("/none").is(503))
            .asks(get("/").answered(&answers(404)).is(404)).asks(get("/").answered(&answers(500)).is(500)).asks(get("/retry").answered(&answers(503)).is(503))
            .asks(get("/new/path?q")).asks(get("/h2")).asks(Ask::new("POST", "/").body("five!").with("user-agent", "me/1"))
            .asks(get("/").with("x-client-trace-id", "mine")).asks(get(&format!("/{}", "long".repeat(100))))
            .spans(13),
        traced("spans-of-attempts", otel(json!({})), spawn())
            .asks(get("/a?b=c")).asks(get("/direct").is(204)).asks(get("/dead").is(503)).asks(get("/retry").answered(&answers(503)).is(503))
            .asks(get("/").answered(&answers(404)).is(404)).asks(get("/h2").http2())
            .spans(12),
        traced("spans-denied", otel(json!({})), spawn())
            .filter("rbac", "extensions.filters.http.rbac.v3.RBAC", json!({ "rules": { "action": "DENY", "policies": { "no": { "permissions": [{ "url_path": { "path": { "prefix": "/no" } } }], "principals": [{ "any": true }] } } } }))
            .asks(get("/no").is(403)).asks(get("/no").http2().is(403)).asks(get("/")).spans(4),
        traced("spans-hostname", otel(json!({})), spawn())
            .manager(json!({ "route_config": routes(json!([{ "match": { "prefix": "/" }, "route": {
                "cluster": "spans-hostname", "auto_host_rewrite": true, "retry_policy": { "retry_on": "5xx", "num_retries": 1 },
            } }])) })).cluster("spans-hostname", "one", json!({ "hostnames": ["a.test"] }))
            .asks(get("/a?b=c")).asks(get("/").http2()).asks(get("/").answered(&answers(503)).is(503))
            .asks(Ask::new("POST", "/pkg.S/M").with("content-type", "application/grpc").http2().answered(&json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "5"]] })))
            .spans(9),
        traced("spans-by-http", otel(by_http), json!({})).asks(get("/")).asks(follows("01")).spans(2),
        traced("spans-name", otel(json!({})), json!({}))
            .asks(get("/named")).asks(get("/unsaid")).asks(get("/named").with("x-envoy-decorator-operation", "theirs"))
            .asks(get("/").with("x-envoy-decorator-operation", "theirs"))
            .asks(get("/named").answered(&json!({ "headers": [["x-envoy-decorator-operation", "of upstream"]] })))
            .spans(5),
        traced("spans-operation", otel(json!({})), json!({ "operation": "op %REQ(:path)% %RESPONSE_CODE%", "upstream_operation": "up %REQ(:method)%", "spawn_upstream_span": true }))
            .asks(get("/")).asks(get("/named").with("x-envoy-decorator-operation", "theirs"))
            .asks(get("/named").answered(&json!({ "headers": [["x-envoy-decorator-operation", "of upstream"]] })))
            .asks(get("/tags"))
            .spans(8),
        traced("spans-tags", otel(json!({})), json!({ "custom_tags": tags, "max_path_tag_length": 5, "spawn_upstream_span": true }))
            .filter("note", "extensions.filters.http.set_metadata.v3.Config", json!({ "metadata": [{ "metadata_namespace": "notes", "value": { "n": { "list": [1, "x"] } } }] }))
            .asks(get("/").with("x-h", "h")).asks(get("/quite/long?x")).asks(get("/tags"))
            .spans(6),
        traced("spans-grpc", otel(json!({})), json!({}))
            .asks(Ask::new("POST", "/pkg.S/M").with("content-type", "application/grpc").with("grpc-timeout", "1S").http2()
                .answered(&json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "13"], ["grpc-message", "m"]] })))
            .asks(Ask::new("POST", "/pkg.S/M").with("content-type", "application/grpc")
                .answered(&json!({ "headers": [["content-type", "application/grpc"], ["grpc-status", "5"]] })))
            .spans(2),
        traced("trace-context", otel(json!({})), json!({}))
            .asks(follows("01")).asks(follows("00")).asks(follows("03")).asks(follows("01").with("tracestate", "a=b").with("tracestate", "c=d"))
            .asks(get("/").with("traceparent", "junk").with("tracestate", "a=b")).asks(get("/").with("tracestate", "a=b"))
            .asks(get("/").with("traceparent", &format!("ff-{TRACE}-{SPAN}-01"))).asks(get("/").with("traceparent", &format!("00-{TRACE}-{SPAN}-01-x")))
            .asks(get("/").with("traceparent", &format!("00-{}-{SPAN}-01", "0".repeat(32)))).asks(get("/").with("traceparent", &format!("00-{TRACE}-{}-01", "0".repeat(16))))
            .asks(get("/").with("traceparent", &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()))).asks(follows("01").with("traceparent", &format!("00-{TRACE}-{SPAN}-00")))
            .asks(get("/").with("traceparent", &format!("00-{TRACE}-{SPAN}-0g"))).asks(get("/").with("b3", &format!("{TRACE}-{SPAN}-1")))
            .spans(8),
        traced("trace-context-of-attempts", otel(json!({})), spawn()).asks(follows("01")).asks(follows("00")).asks(get("/retry").answered(&answers(503)).is(503)).spans(5),
        traced("trace-without-provider", json!(null), json!({})).asks(get("/")).asks(follows("01")).asks(get("/named")),
        traced("trace-sampling", otel(json!({})), none())
            .asks(get("/")).asks(follows("01")).asks(get("/").with("x-client-trace-id", "mine")).asks(get("/").with("x-envoy-force-trace", "1"))
            .asks(get("/").with("x-request-id", "12345678-1234-9234-8234-123456789012")).asks(get("/").with("x-request-id", "12345678-1234-4234-8234-123456789012"))
            .spans(2),
        traced("trace-by-id", otel(json!({})), json!({ "random_sampling": { "value": 50 } }))
            // 0x00000001 is 1 of 10 000, 0x0000270f the last.
            .asks(get("/").with("x-request-id", "00000001-1234-4234-8234-123456789012")).asks(get("/").with("x-request-id", "0000270f-1234-4234-8234-123456789012"))
            .asks(get("/").with("x-request-id", "short")).asks(get("/").with("x-request-id", "00000001zzz")).asks(get("/untraced")).asks(get("/untraced").with("x-client-trace-id", "1"))
            .spans(3),
        traced("trace-overall", otel(json!({})), json!({ "overall_sampling": { "value": 0 } })).asks(get("/")).asks(get("/").with("x-request-id", "12345678-1234-9234-8234-123456789012")),
        traced("trace-edge", otel(json!({})), none())
            .manager(json!({ "use_remote_address": true, "preserve_external_request_id": true }))
            .asks(get("/").with("x-request-id", "12345678-1234-9234-8234-123456789012")).asks(get("/").with("x-client-trace-id", "1")).asks(get("/").with("x-request-id", "12345678-1234-9234-8234-123456789012").with("x-client-trace-id", "1"))
            .spans(2),
        traced("trace-id-untouched", otel(json!({})), none())
            .manager(json!({ "request_id_extension": { "typed_config": typed("extensions.request_id.uuid.v3.UuidRequestIdConfig", json!({ "pack_trace_reason": false, "use_request_id_for_trace_sampling": false })) } }))
            .asks(get("/")).spans(1),
        traced("trace-without-id", otel(json!({})), json!({})).manager(json!({ "generate_request_id": false })).asks(get("/")).asks(follows("01")),
        traced("trace-always", otel(always), json!({})).asks(get("/")).asks(follows("00")).spans(2),
        traced("zipkin", zipkin(json!({})), json!({})).asks(get("/")).asks(get("/named")).asks(get("/dead").is(503)).asks(multi(TRACE, SPAN).with("x-b3-sampled", "1")).spans(4),
        traced("zipkin-of-attempts", zipkin(json!({ "trace_id_128bit": true, "trace_context_option": "USE_B3_WITH_W3C_PROPAGATION" })), spawn())
            .asks(get("/")).asks(follows("01")).asks(multi(TRACE, SPAN)).asks(b3(&format!("{TRACE}-{SPAN}-1"))).asks(get("/retry").answered(&answers(503)).is(503))
            .spans(11),
        traced("zipkin-unshared", zipkin(json!({ "shared_span_context": false })), spawn()).asks(multi(TRACE, SPAN)).spans(2),
        traced("b3", zipkin(json!({})), json!({}))
            .asks(multi(TRACE, SPAN)).asks(multi(TRACE, SPAN).with("x-b3-sampled", "0")).asks(multi(SHORT, SPAN).with("x-b3-parentspanid", PARENT).with("x-b3-sampled", "true"))
            .asks(multi(SHORT, SPAN).with("x-b3-flags", "1")).asks(get("/").with("x-b3-sampled", "0")).asks(get("/").with("x-b3-traceid", SHORT)).asks(get("/").with("x-b3-spanid", SPAN))
            .asks(multi("zz", SPAN)).asks(multi("123", SPAN)).asks(multi(SHORT, SPAN).with("x-b3-parentspanid", "zz")).asks(multi(SHORT, SPAN).with("x-b3-sampled", "x"))
            .spans(6),
        traced("b3-single", zipkin(json!({})), none())
            .asks(b3(&format!("{TRACE}-{SPAN}-1-{PARENT}"))).asks(b3(&format!("{TRACE}-{SPAN}"))).asks(b3(&format!("{SHORT}-{SPAN}-d"))).asks(b3("0")).asks(b3("1")).asks(b3("d")).asks(b3("true"))
            .asks(b3(&format!("{SHORT}-{SPAN}-x"))).asks(b3(&format!("{SHORT}-{SPAN}-1-"))).asks(b3(&format!("{SHORT}-{SPAN}-1-{PARENT}-more"))).asks(b3(&format!("{SHORT}-{SPAN}-{PARENT}")))
            .asks(b3(&format!("{SHORT}-{SPAN}-0")).with("x-b3-traceid", TRACE).with("x-b3-spanid", SPAN))
            .spans(4),
        traced("spans-verbose", otel(json!({})), json!({ "verbose": true })).refused(".tracing.verbose: is not supported"),
        traced("spans-of-route-metadata", otel(json!({})), json!({ "custom_tags": [{ "tag": "m", "metadata": { "kind": { "route": {} }, "metadata_key": { "key": "k", "path": [{ "key": "a" }] } } }] }))
            .refused(".tracing.custom_tags[0].metadata.kind.route: is not supported"),
    ]
}
