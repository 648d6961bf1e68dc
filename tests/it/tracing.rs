//! Traces through the mesh: a span for each agent that a request passes, told to a collector
//! that is not ours.

use std::{fs, path::PathBuf, process::Command};

use serde_json::{Value, json};
use tests::{Mesh, MeshConfig, Pod, Process, Testbed, control_plane, eventually, mesh};

const GRPC: u16 = 4317;
const HTTP: u16 = 4318;
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A pod that the mesh knows nothing of, and what it is told.
pub(crate) struct Collector {
    pod: Pod,
    process: Option<Process>,
    file: PathBuf,
}

impl Collector {
    pub(crate) fn start(pod: Pod) -> Self {
        let file = pod.node().directory().join("collected.jsonl");
        let mut this = Self { pod, process: None, file };
        this.run();
        this
    }

    fn run(&mut self) {
        let mut command = Command::new(control_plane::PYTHON);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/programs/collector.py"));
        command.args([self.pod.ip().to_string(), GRPC.to_string(), HTTP.to_string()]);
        command.arg(&self.file);
        self.process = Some(self.pod.starts_listening("collector", command, &[GRPC, HTTP]));
    }

    pub(crate) fn spans(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The client's and the server's span of the request for `path`.
    pub(crate) fn pair(&self, path: &str) -> (Value, Value) {
        let ends = |span: &&Value| {
            let url = span["tags"]["http.url"].as_str().unwrap_or_default();
            url.ends_with(path)
        };
        eventually(&format!("both spans of {path} are told"), || {
            let all = self.spans();
            let of = |kind: u64| all.iter().filter(ends).find(|span| span["kind"] == kind).cloned();
            let count = all.iter().filter(ends).count();
            match (of(3), of(2)) {
                (Some(client), Some(server)) if count == 2 => Ok((client, server)),
                _ => Err(format!("{all:#?}")),
            }
        })
    }

    fn cluster(&self, name: &str, port: u16) -> Value {
        let address = json!({ "address": self.pod.ip(), "port_value": port });
        let endpoint = json!({ "endpoint": { "address": { "socket_address": address } } });
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
        });
        if port == GRPC {
            cluster["typed_extension_protocol_options"] = json!({ OPTIONS: {
                "@type": format!("type.googleapis.com/{OPTIONS}"),
                "explicit_http_config": { "http2_protocol_options": {} },
            } });
        }
        cluster
    }

    /// Tells it of requests; in such a way, and so many percent of them.
    pub(crate) fn traces(&self, config: MeshConfig, export: Value, percent: u32) -> MeshConfig {
        let mut provider = export;
        provider["@type"] = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig".into();
        provider["service_name"] = "shop".into();
        let provider = json!({ "name": "envoy.tracers.opentelemetry", "typed_config": provider });
        let tracing = json!({ "provider": provider, "random_sampling": { "value": percent } });
        config
            .raw_cluster(self.cluster("by-grpc", GRPC))
            .raw_cluster(self.cluster("by-http", HTTP))
            .managers(&json!({ "tracing": tracing }))
    }
}

pub(crate) fn by_grpc() -> Value {
    json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "by-grpc" }, "timeout": "1s" } })
}

fn by_http() -> Value {
    json!({ "http_service": { "http_uri": {
        "uri": "http://collector/v1/traces", "cluster": "by-http", "timeout": "1s",
    } } })
}

pub(crate) fn traced(name: &str, percent: u32) -> (Mesh, Collector) {
    let bed = Testbed::two_nodes(name);
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = web.runs_nginx(mesh::WEB_PORT);
    let collector = Collector::start(bed.node(1).pod("collector").start());
    let config = collector.traces(mesh::web_config(&client, &web), by_grpc(), percent);
    (Mesh::start(bed, client, web, program, config), collector)
}

#[test]
fn a_request_has_a_span_at_each_agent() {
    let (mut mesh, collector) = traced("tracing", 100);
    let get = |path: &str, status| {
        mesh.client.curl(&format!("{}{path}", mesh::WEB)).expect_status(status);
    };
    get("first", 200);
    get("", 200);
    let (client, server) = collector.pair("/first");
    assert_eq!(client["parent"], "", "{client}");
    assert_eq!(server["trace"], client["trace"]);
    assert_eq!(server["parent"], client["id"]);
    assert_eq!(
        (&client["name"], &server["name"]),
        (&json!("egress 10.96.0.10"), &json!("ingress"))
    );
    for (span, node) in [(&client, "node1"), (&server, "node2")] {
        let tags = &span["tags"];
        assert_eq!(tags["node_id"], node, "{span}");
        assert_eq!(tags["http.method"], "GET", "{span}");
        assert_eq!(tags["http.status_code"], "200", "{span}");
        assert_eq!(tags["response_flags"], "-", "{span}");
        assert_eq!(tags["component"], "proxy", "{span}");
        assert_eq!(tags["peer.address"], mesh.client.ip().to_string(), "{span}");
        assert_eq!(span["resource"]["service.name"], "shop", "{span}");
        assert!(span["start"].as_u64() <= span["end"].as_u64(), "{span}");
    }
    assert_eq!(client["tags"]["upstream_cluster"], "web");
    let of_both = client["tags"]["guid:x-request-id"].as_str().unwrap_or_default();
    assert_eq!(&of_both[14..15], "9", "it is traced: {of_both}");
    assert_eq!(server["tags"]["guid:x-request-id"], of_both);

    // What policy denies has a span as well.
    let url = format!("{}denied", mesh::WEB);
    mesh.client.curl(&url).method("DELETE").expect_status(403);
    let (client, server) = collector.pair("/denied");
    // A client's fault, and nobody else's.
    assert_eq!((&client["status"], &server["status"]), (&json!(2), &json!(0)));
    // As Envoy, which has no flag for it; our own access log has.
    assert_eq!(server["tags"]["response_flags"], "-", "{server}");
    mesh.far().logs_access(&["/denied", "\"response_flags\":\"UAEX\""]);
    assert_eq!(server["tags"]["upstream_cluster"], "application", "{server}");

    // An application that takes part in a trace of its own.
    let given = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    mesh.client.curl(&format!("{}given", mesh::WEB)).header(given).expect_status(200);
    let (client, server) = collector.pair("/given");
    assert_eq!(client["trace"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(client["parent"], "b7ad6b7169203331");
    assert_eq!(server["parent"], client["id"]);

    let config = mesh::web_config(&mesh.client, &mesh.server);
    mesh.reconfigure(collector.traces(config, by_http(), 100));
    eventually("spans come by HTTP", || {
        mesh.client.curl(&format!("{}by-http", mesh::WEB)).expect_status(200);
        let all = collector.spans();
        let by = |kind: u64| all.iter().any(|span| span["by"] == "http" && span["kind"] == kind);
        if by(2) && by(3) { Ok(()) } else { Err(all.len()) }
    });
    for agent in &mesh.agents {
        let metrics = agent.metrics();
        assert!(metrics.sum("mesh_spans_total", &["result=\"sent\""]) >= 2.0, "{}", metrics.text());
        assert!(!metrics.text().contains("trace_id"), "this format has no exemplars");
    }
}

#[test]
fn without_a_collector_requests_go_on_and_losses_are_counted() {
    let (mesh, mut collector) = traced("tracing-lost", 100);
    let get = || drop(mesh.client.curl(mesh::WEB).expect_status(200));
    drop(collector.process.take());
    eventually("losses are counted", || {
        get();
        let lost = mesh.near().metrics().sum("mesh_spans_total", &["result=\"not_sent\""]);
        if lost >= 2.0 { Ok(()) } else { Err(lost) }
    });
    // Nothing of it was told, and it is told again once somebody listens.
    let before = collector.spans().len();
    collector.run();
    eventually("spans come again", || {
        get();
        let now = collector.spans().len();
        if now > before { Ok(()) } else { Err(now) }
    });
}

#[test]
fn what_is_not_sampled_is_told_to_nobody_but_the_upstream() {
    let (mesh, collector) = traced("tracing-unsampled", 0);
    mesh.client.curl(&format!("{}quiet", mesh::WEB)).expect_status(200);
    // As somebody wants to see it; told after the one before, if that were told.
    let wanted = "x-client-trace-id: me";
    mesh.client.curl(&format!("{}wanted", mesh::WEB)).header(wanted).expect_status(200);
    collector.pair("/wanted");
    let told = collector.spans();
    let quiet = told.iter().filter(|span| span["tags"]["http.url"].to_string().contains("quiet"));
    assert_eq!(quiet.count(), 0, "{told:#?}");
}
