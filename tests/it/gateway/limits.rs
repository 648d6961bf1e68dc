//! Network filters of gateways' chains, what access logs say of connections, and floods.

use std::{io::Write as _, net::TcpStream};

use super::*;

const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";

/// A network filter `name`, of this type.
fn filter(name: &str, type_: &str, mut config: Value) -> Value {
    config["@type"] = format!("{NETWORK}.{type_}").into();
    json!({ "name": name, "typed_config": config })
}

fn limit(config: Value) -> Value {
    filter("limit", "connection_limit.v3.ConnectionLimit", config)
}

fn of_file(path: &std::path::Path, format: &str) -> Value {
    json!([{
        "name": "log",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": { "text_format_source": { "inline_string": format } },
        },
    }])
}

/// The same everywhere: what a `denied` counter says.
fn expect_denied(gateway: &Gateway, reason: &str, at_least: f64) {
    let labels = [r#"direction="gateway""#, &format!("reason=\"{reason}\"")];
    eventually(reason, || {
        let metrics = gateway.agent().metrics();
        let denied = metrics.sum("mesh_denied_total", &labels);
        if denied >= at_least { Ok(()) } else { Err(metrics.text().to_owned()) }
    });
}

#[test]
fn gateway_takes_so_many_connections_at_once_and_no_more() {
    let gateway = Gateway::start("gateway-limits", |address| {
        let limits = json!({ "stat_prefix": "l", "max_connections": 1 });
        let mut delayed = limits.clone();
        delayed["delay"] = "1s".into();
        let rate = json!({
            "stat_prefix": "r",
            "token_bucket": { "max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "3600s" },
        });
        let rate = filter("rate", "local_ratelimit.v3.LocalRateLimit", rate);
        let chain = |first: Value| json!([{ "filters": [first, http_to("web")] }]);
        vec![
            listener("edge", (address, 8000), chain(limit(limits))),
            listener("delayed", (address, 8001), chain(limit(delayed))),
            listener("rate", (address, 8002), chain(rate)),
        ]
    });
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for port in [8000, 8001] {
        let mut first = gateway.outside.connects(gateway.at(port));
        first.says(get).hears("hello from web");
        // The second one gets nothing; the first is none the worse.
        let (heard, how) = gateway.outside.connects(gateway.at(port)).rest();
        assert_eq!((heard.as_str(), how), ("", end::RESET), "{port}");
        first.says(get).hears("hello from web");
        drop(first);
        // Its place is free again.
        eventually("there is room", || {
            let status = gateway.outside.curl(&gateway.url("http", port)).send().status();
            if status == Some(200) { Ok(()) } else { Err(status) }
        });
    }
    expect_denied(&gateway, "connection_limit", 2.0);

    for expected in [Some(200), Some(200), None] {
        let status = gateway.outside.curl(&gateway.url("http", 8002)).send().status();
        assert_eq!(status, expected);
    }
    expect_denied(&gateway, "local_ratelimit", 1.0);
    gateway.agent().logs_access(&["\"gateway\"", "local_ratelimit"]);
}

#[test]
fn gateway_leads_to_the_cluster_that_the_client_names() {
    let pki = Pki::foreign();
    let inner = pki.issue(&["raw"], Validity::Now);
    let gateway = Gateway::start("gateway-sni-cluster", |_| Vec::new());
    let _server = gateway.mesh.server.runs_tls_nginx(9443, &inner, pki.root_pem());
    let principal = json!({ "authenticated": { "principal_name": { "exact": IDENTITY } } });
    let inside = Inbound::tcp(&gateway.mesh.server, 9443)
        .allow(Allow::policy("gateways").principal(principal));
    let raw = Service::tcp("raw", "10.96.0.11:443").backed_by(&gateway.mesh.server, 9443);
    let config = gateway.mesh.config.clone().service(&raw).inbound(&inside);
    gateway.mesh.far().configure(&config);
    let address = gateway.mesh.bed.node(1).gateway().to_string();
    let log = gateway.mesh.bed.directory().join("connections.log");
    let mut proxy = tcp_to("web");
    proxy["typed_config"]["access_log"] =
        of_file(&log, "tcp %REQUESTED_SERVER_NAME% %UPSTREAM_CLUSTER% %RESPONSE_FLAGS%\n");
    let sni = filter("sni", "sni_cluster.v3.SniCluster", json!({}));
    let mut edge = listener(
        "edge",
        (&address, 8443),
        json!([{
            "filter_chain_match": { "transport_protocol": "tls" },
            "filters": [sni, proxy],
        }]),
    );
    edge["listener_filters"] = super::inspected();
    edge["access_log"] = of_file(&log, "listener %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%\n");
    edge["access_log"][0]["filter"] = json!({ "response_flag_filter": { "flags": ["NR"] } });
    gateway.serve_with(config, vec![edge]);

    let client = pki.issue(&["client.example"], Validity::Now);
    let files = gateway.client_files(pki.root_pem(), Some(&client));
    gateway.https("raw", 8443, &files).expect_status(200).expect_body("sni=raw");
    // One that is not there; and one that no chain is for.
    let ran = gateway.https("other", 8443, &files).send();
    assert_eq!(ran.ran().code(), Some(35), "{ran:?}");
    gateway.outside.connects(gateway.at(8443)).says("GET / HTTP/1.1\r\n\r\n").rest();
    for line in ["tcp raw raw -", "tcp other - NC", "listener filter_chain_not_found NR"] {
        eventually(line, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.lines().any(|one| one == line) { Ok(()) } else { Err(text) }
        });
    }
}

#[test]
fn gateway_survives_a_flood_of_clients_that_say_nothing() {
    let pki = Pki::foreign();
    let own = pki.issue(&["edge.example"], Validity::Now);
    let gateway = Gateway::start("gateway-flood", |address| {
        let context = json!({ "common_tls_context": { "tls_certificates": [certificate(&own)] } });
        let mut listener =
            listener("edge", (address, 8443), json!([terminated(context, http_to("web"))]));
        listener["listener_filters"] = inspected();
        vec![listener]
    });
    let trust = gateway.client_files(pki.root_pem(), None);
    let flood: Vec<_> = gateway.outside.netns().enter(|| {
        let open = |n: usize| {
            let mut stream = TcpStream::connect(gateway.at(8443)).unwrap();
            // Some begin a handshake, as large as they come.
            if n.is_multiple_of(2) {
                stream.write_all(&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3]).unwrap();
            }
            stream
        };
        (0..400).map(open).collect()
    });
    for _ in 0..3 {
        gateway.https("edge.example", 8443, &trust).expect_status(200);
    }
    drop(flood);
    gateway.https("edge.example", 8443, &trust).expect_status(200);
}
