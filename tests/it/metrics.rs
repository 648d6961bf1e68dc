//! Metrics as Prometheus reads them, of real traffic; and what else tells of it: spans of
//! gateways and copies, access logs of the kernel path.

use serde_json::{Value, json};
use tests::{
    Allow, Inbound, Mesh, MeshConfig, Service, Testbed, eventually, mesh,
    mesh::{SERVER, SERVER_PORT, WEB, WEB_PORT},
    scrape::{
        Format::{OpenMetrics, Text},
        Scrape,
    },
};

use crate::{
    gateway::{self, Gateway},
    tracing::{self, Collector},
};

const STDOUT: &str =
    "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";

/// Waits until a sample has that value.
#[track_caller]
fn expect(agent: &tests::Agent, name: &str, labels: &[(&str, &str)], expected: f64) {
    eventually(&format!("{name}{labels:?} is {expected}"), || {
        let scrape = Scrape::of(agent, OpenMetrics);
        let now = scrape.sum(name, labels);
        if now == Some(expected) { Ok(()) } else { Err(now) }
    });
}

#[test]
fn what_agents_expose_is_read_by_prometheus_and_nothing_of_it_is_a_strangers() {
    let (mesh, collector) = tracing::traced("metrics-read", 100);
    let get = |path: &str| mesh.client.curl(&format!("{WEB}{path}"));
    for _ in 0..3 {
        get("").expect_status(200);
    }
    get("secretpath").header("host: evil\"host\\n.test").send();
    get("secretpath?a=%22%0a").header("user-agent: evil\"agent").expect_status(200);
    get("").method("EVILMETHOD").send();
    get("").method("DELETE").expect_status(403);
    collector.pair("/secretpath?a=%22%0a");

    for agent in &mesh.agents {
        let text = Scrape::of(agent, Text);
        let scrape = Scrape::of(agent, OpenMetrics);
        for page in [&text.page, &scrape.page] {
            let page = page.to_ascii_lowercase();
            assert!(!page.contains("evil") && !page.contains("secretpath"), "{page}");
        }
        let names = |scrape: &Scrape| {
            let names = scrape.samples.iter().map(|sample| sample.name.clone());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&text), names(&scrape));
        // Labels are of a fixed few names, and of no length that a peer decides.
        for sample in &scrape.samples {
            assert!(sample.labels.len() <= 13, "{sample:?}");
            assert!(sample.labels.values().all(|value| value.len() < 256), "{sample:?}");
        }
    }

    let denied = [("response_code", "403"), ("response_flags", "UAEX")];
    expect(mesh.far(), "istio_requests_total", &denied, 1.0);
    let near = Scrape::of(mesh.near(), OpenMetrics);
    let answered = |class| {
        let labels = [("cluster", "web"), ("response_class", class)];
        near.sum("mesh_cluster_responses_total", &labels)
    };
    assert!(answered("2xx") >= Some(4.0), "{}", near.page);
    assert_eq!(answered("4xx").map(|count| count >= 1.0), Some(true), "{}", near.page);
    assert_eq!(answered("5xx"), Some(0.0));
    let of_web = [("cluster", "web")];
    assert_eq!(near.sum("mesh_cluster_failures_total", &of_web), Some(0.0));
    let healthy = [("cluster", "web"), ("health", "healthy")];
    assert_eq!(near.sum("mesh_cluster_endpoints", &healthy), Some(1.0));
    assert_eq!(near.sum("mesh_cluster_endpoints", &of_web), Some(1.0));
    assert_eq!(near.sum("mesh_cluster_panic", &of_web), Some(0.0));
    assert!(near.sum("mesh_cluster_connections_total", &of_web) >= Some(1.0));
    let requests = [("cluster", "web"), ("priority", "default"), ("resource", "requests")];
    assert_eq!(near.sum("mesh_cluster_circuit_breaker_open", &requests), Some(0.0));
    assert!(near.sum("mesh_cluster_circuit_breaker_remaining", &requests) >= Some(1.0));

    // An exemplar leads to a trace that the collector has.
    let traces: Vec<_> = collector.spans().into_iter().map(|span| span["trace"].clone()).collect();
    let name = "istio_request_duration_milliseconds_bucket";
    let exemplars: Vec<_> =
        near.of_name(name, &[]).filter_map(|sample| sample.exemplar.clone()).collect();
    assert!(!exemplars.is_empty(), "{}", near.page);
    for exemplar in exemplars {
        let trace = Value::from(exemplar["trace_id"].as_str());
        assert!(traces.contains(&trace), "{exemplar:?} {traces:?}");
    }
}

#[test]
fn gauges_follow_what_is_open_and_come_back_to_nothing() {
    let mut mesh = mesh::server_and_client("metrics-gauges", "echo");
    let both = [(mesh.near(), "server", "outbound"), (mesh.far(), "application", "inbound")];
    let mut talks: Vec<_> = (0..5).map(|_| mesh.client.connects(SERVER.parse().unwrap())).collect();
    for talk in &mut talks {
        talk.echoes("still here");
    }
    for (agent, cluster, direction) in both {
        expect(agent, "mesh_cluster_active_connections", &[("cluster", cluster)], 5.0);
        expect(agent, "mesh_open_connections", &[("direction", direction)], 5.0);
    }
    for mut talk in talks {
        talk.half_closes();
        talk.expect_closed();
    }
    // A load of many more, all of which end.
    mesh.client.run_peer(&["echoed", SERVER, "1000", "200"]).expect_success();
    for (agent, cluster, direction) in both {
        expect(agent, "mesh_cluster_active_connections", &[("cluster", cluster)], 0.0);
        expect(agent, "mesh_open_connections", &[("direction", direction)], 0.0);
        let scrape = Scrape::of(agent, Text);
        let of_cluster = [("cluster", cluster)];
        assert_eq!(scrape.sum("mesh_cluster_connections_total", &of_cluster), Some(205.0));
        let opened = scrape.sum("istio_tcp_connections_opened_total", &[]).unwrap();
        // A connection is off the table a moment before it counts as closed.
        expect(agent, "istio_tcp_connections_closed_total", &[], opened);
    }

    // Of a cluster that is gone nothing is told any more.
    mesh.reconfigure(
        MeshConfig::new().service(
            &Service::tcp("other", "10.96.0.21:9000").backed_by(&mesh.server, SERVER_PORT),
        ),
    );
    eventually("the cluster is forgotten", || {
        let scrape = Scrape::of(mesh.near(), Text);
        let left: Vec<_> =
            scrape.samples.into_iter().filter(|one| one.has(&[("cluster", "server")])).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Sends three messages to a method, and expects them back.
const CALLER: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
same = lambda message: message
call = channel.stream_stream("/shop.Cart/Add", request_serializer=same, response_deserializer=same)
assert list(call(iter([b"a", b"bc", b""]))) == [b"a", b"bc", b""]
"#;

#[test]
fn calls_routes_and_virtual_clusters_are_counted() {
    const PORT: u16 = 50051;
    let bed = Testbed::two_nodes("metrics-calls");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let program = server.serves("grpc", PORT);
    let typed = |name: &str, config: Value| {
        let mut config = config;
        config["@type"] =
            format!("type.googleapis.com/envoy.extensions.filters.http.{name}").into();
        json!({ "name": name, "typed_config": config })
    };
    let host = json!({
        "name": "shop",
        "domains": ["*"],
        "virtual_clusters": [{
            "name": "cart",
            "headers": [{ "name": ":path", "string_match": { "prefix": "/shop.Cart/" } }],
        }],
        "routes": [
            { "match": { "prefix": "/shop." }, "stat_prefix": "calls", "route": { "cluster": "shop" } },
            { "match": { "prefix": "/" }, "route": { "cluster": "shop" } },
        ],
    });
    let manager = json!({
        "route_config": { "name": "shop", "virtual_hosts": [host] },
        "http_filters": [
            typed("grpc_stats.v3.FilterConfig", json!({ "stats_for_all_methods": true })),
            typed("router.v3.Router", json!({})),
        ],
    });
    let service = Service::http("shop", "10.96.0.10:80").backed_by(&server, PORT).speaks_http2();
    let config = MeshConfig::new()
        .service(&service)
        .managers(&manager)
        .inbound(&Inbound::http2(&server, PORT).open());
    let mesh = Mesh::start(bed, client, server, program, config);
    let arguments = [tests::control_plane::PYTHON, "-c", CALLER, "10.96.0.10:80"];
    mesh.client.run(&arguments).expect_success();

    let method = [("cluster", "shop"), ("grpc_service", "shop.Cart"), ("grpc_method", "Add")];
    // What is counted last.
    expect(mesh.near(), "mesh_grpc_response_messages_total", &method, 3.0);
    let scrape = Scrape::of(mesh.near(), OpenMetrics);
    assert_eq!(scrape.sum("mesh_grpc_request_messages_total", &method), Some(3.0));
    let calls: Vec<_> = scrape.of_name("mesh_grpc_calls_total", &method).collect();
    assert!(calls.len() == 1 && calls[0].has(&[("grpc_status", "0")]), "{calls:?}");
    let of_route = [("virtual_host", "shop"), ("route", "calls"), ("response_class", "2xx")];
    assert_eq!(scrape.sum("mesh_route_requests_total", &of_route), Some(1.0));
    let of_cart =
        [("virtual_host", "shop"), ("virtual_cluster", "cart"), ("response_class", "2xx")];
    assert_eq!(scrape.sum("mesh_virtual_cluster_requests_total", &of_cart), Some(1.0));
    assert_eq!(scrape.sum("mesh_virtual_cluster_requests_total", &[]), Some(1.0));
    // The other agent was not asked to.
    assert_eq!(Scrape::of(mesh.far(), OpenMetrics).sum("mesh_grpc_calls_total", &[]), None);
}

#[test]
fn a_cluster_in_trouble_is_seen_as_such() {
    let bed = Testbed::two_nodes("metrics-trouble");
    let (client, web) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let program = web.runs_nginx(WEB_PORT);
    let (ip, nobody) = (client.ip().to_string(), 9);
    let endpoint = json!({ "endpoint": { "address": { "socket_address": {
        "address": ip, "port_value": nobody,
    } } } });
    // Nobody listens there, which is noticed at once, and nobody else is to be asked.
    let dead = json!({
        "name": "dead",
        "type": "STATIC",
        "connect_timeout": "1s",
        "outlier_detection": {
            "consecutive_5xx": 1, "max_ejection_percent": 100, "base_ejection_time": "3600s",
            "max_ejection_time": "3600s",
        },
        "load_assignment": { "cluster_name": "dead", "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    let routes = json!([
        { "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "web" } },
    ]);
    let service = Service::http("web", "10.96.0.10:80").routes(routes).backed_by(&web, WEB_PORT);
    let config = MeshConfig::new()
        .service(&service)
        .inbound(&Inbound::http(&web, WEB_PORT).allow(Allow::policy("all").from(&client)))
        .raw_cluster(dead);
    let mesh = Mesh::start(bed, client, web, program, config);
    mesh.client.curl(WEB).expect_status(200);
    mesh.client.curl(&format!("{WEB}dead")).expect_status(503);

    let of = [("cluster", "dead")];
    expect(mesh.near(), "mesh_cluster_ejected_endpoints", &of, 1.0);
    let scrape = Scrape::of(mesh.near(), OpenMetrics);
    let sum = |name: &str, and: (&str, &str)| scrape.sum(name, &[("cluster", "dead"), and]);
    let ejections = "mesh_cluster_ejections_total";
    assert_eq!(sum(ejections, ("reason", "consecutive_5xx")), Some(1.0), "{}", scrape.page);
    assert_eq!(scrape.sum(ejections, &of), Some(1.0));
    assert_eq!(scrape.sum(ejections, &[("cluster", "web")]), None, "nobody is ever ejected");
    assert_eq!(sum("mesh_cluster_failures_total", ("reason", "connect")), Some(1.0));
    assert_eq!(sum("mesh_cluster_endpoints", ("health", "unhealthy")), Some(1.0));
    assert_eq!(sum("mesh_cluster_endpoints", ("health", "healthy")), Some(0.0));
    assert_eq!(scrape.sum("mesh_cluster_panic", &of), Some(1.0));
    assert_eq!(scrape.sum("mesh_cluster_active_requests", &of), Some(0.0));
    assert_eq!(scrape.sum("mesh_cluster_active_connections", &of), Some(0.0));
}

#[test]
fn gateways_have_spans_and_so_have_copies() {
    let gateway = Gateway::start("metrics-gateway", |_| Vec::new());
    let mesh = &gateway.mesh;
    let collector = Collector::start(mesh.bed.node(1).pod("collector").start());
    let mut manager = gateway::http_to("web");
    let host = &mut manager["typed_config"]["route_config"]["virtual_hosts"][0];
    host["request_mirror_policies"] = json!([{ "cluster": "copies" }]);
    let copies = json!({ "name": "copies", "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": { "cluster_name": "copies", "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": { "socket_address": {
                "address": gateway.outside.ip(), "port_value": WEB_PORT } } } },
        ] }] } });
    let _copies = gateway.outside.runs_nginx(WEB_PORT);
    let address = mesh.bed.node(1).gateway().to_string();
    let edge = gateway::listener("edge", (&address, 8000), json!([{ "filters": [manager] }]));
    let config = mesh.config.clone().raw_listener(edge).raw_cluster(copies);
    let config = collector.traces(config, tracing::by_grpc(), 100);
    mesh.far().configure(&config);
    gateway.agent().configure(&config);
    let url = gateway.url("http", 8000);
    eventually("the gateway is there", || {
        let status = gateway.outside.curl(&format!("{url}first")).send().status();
        if status == Some(200) { Ok(()) } else { Err(status) }
    });
    gateway.outside.curl(&format!("{url}copied")).expect_status(200);
    let spans = eventually("three spans are told", || {
        let all = collector.spans();
        let ends = |span: &&Value| {
            span["tags"]["http.url"].as_str().is_some_and(|url| url.ends_with("/copied"))
        };
        let Some(trace) = all.iter().find(ends).map(|span| span["trace"].clone()) else {
            return Err(all);
        };
        let of_trace: Vec<_> = all.iter().filter(|span| span["trace"] == trace).cloned().collect();
        if of_trace.len() == 3 { Ok(of_trace) } else { Err(of_trace) }
    });
    let one = |tag: &str, value: &str| {
        let found = spans.iter().find(|span| span["tags"][tag] == value);
        found.unwrap_or_else(|| panic!("no {tag}={value} in {spans:#?}"))
    };
    let of_gateway = one("upstream_cluster", "web");
    assert_eq!(of_gateway["tags"]["node_id"], "node1");
    assert_eq!(of_gateway["parent"], "");
    let copy = one("upstream_cluster", "copies");
    assert_eq!((&copy["name"], &copy["parent"]), (&json!("mirror"), &of_gateway["id"]));
    assert_eq!(copy["tags"]["http.status_code"], "200", "{copy}");
    let of_web = one("node_id", "node2");
    assert_eq!(of_web["parent"], of_gateway["id"]);
    // Copies count where they go.
    let copied = [("cluster", "copies"), ("response_class", "2xx")];
    eventually("copies are counted", || {
        let scrape = Scrape::of(gateway.agent(), OpenMetrics);
        let count = scrape.sum("mesh_cluster_responses_total", &copied);
        if count >= Some(2.0) { Ok(()) } else { Err(count) }
    });
}

#[test]
fn connections_of_the_kernel_path_are_in_the_access_logs_that_listeners_want() {
    let bed = Testbed::two_nodes("metrics-kernel-log");
    let node = bed.node(1);
    let (client, server) = (node.pod("client").start(), node.pod("server").start());
    let _program = server.serves("echo", SERVER_PORT);
    let format = "KERNEL %UPSTREAM_CLUSTER% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% \
                  %DOWNSTREAM_LOCAL_ADDRESS% %UPSTREAM_HOST% in=%BYTES_RECEIVED% \
                  out=%BYTES_SENT% flags=%RESPONSE_FLAGS%\n";
    let log = json!([{ "name": "stdout", "typed_config": {
        "@type": STDOUT,
        "log_format": { "text_format_source": { "inline_string": format } },
    } }]);
    let config = mesh::server_config(&client, &server);
    config.tcp_proxies(&json!({ "access_log": log })).write_to(&node.config_dir());
    let agent = node.agent().with_pod(&client).with_pod(&server).start();
    eventually("the service is on the kernel path", || {
        let status = agent.status();
        if status["kernel_path"]["services"] == 1 { Ok(()) } else { Err(status) }
    });
    let mut talk = client.connects(SERVER.parse().unwrap());
    talk.echoes("twelve bytes");
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    let (from, to) = (client.ip(), server.at(SERVER_PORT));
    let rest = "in=12 out=12 flags=-";
    for line in [
        format!("KERNEL server {from} {SERVER} {to} {rest}"),
        format!("KERNEL application {from} {to} {to} {rest}"),
    ] {
        eventually(&line, || {
            let all = agent.stdout();
            if all.lines().any(|known| known == line) { Ok(()) } else { Err(all) }
        });
    }
    let lines = agent.stdout().lines().filter(|line| line.starts_with("KERNEL ")).count();
    assert_eq!(lines, 2, "{}", agent.stdout());
    expect(&agent, "mesh_kernel_path_connections", &[], 0.0);
}
