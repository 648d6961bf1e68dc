//! Upstreams that are gone without a word: no RST, no FIN, nobody who says so.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use tests::{Pod, Process, Service, eventually_within, mesh, process::peer};

/// Where the server is.
const PORT: u16 = 9200;
const URL: &str = "http://10.96.0.40/";
/// For how long a server may acknowledge nothing, and how much later that may show.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(50);
const PATIENCE: Duration = Duration::from_secs(25);

fn asks(client: &Pod, label: &str, protocol: &str) -> Process {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "120", "-o", "/dev/null", "-w", "status=%{http_code}\n"]);
    command.args(["--noproxy", "*", protocol, URL]);
    client.starts(label, command)
}

#[test]
fn an_http2_server_that_vanishes_is_given_up_and_found_again() {
    let mut mesh = mesh::web_and_client("vanished");
    let server = mesh.bed.node(2).pod("http2").start();
    let mut command = Command::new(peer());
    command.args(["witness", &PORT.to_string(), "http2"]);
    let _witness = server.starts_listening("witness", command, &[PORT]);
    let web = mesh::web_config(&mesh.client, &mesh.server);
    // No limit but TCP's own.
    let routes = json!([{ "match": { "prefix": "/" },
        "route": { "cluster": "http2", "timeout": "0s" } }]);
    let service = Service::http("http2", "10.96.0.40:80").backed_by_plain(server.at(PORT));
    mesh.reconfigure(web.service(&service.speaks_http2().routes(routes)));
    let near = mesh.near();
    let connections =
        || near.metrics().sum("mesh_cluster_connections_total", &["cluster=\"http2\""]) as u64;
    for _ in 0..3 {
        mesh.client.curl(URL).expect_status(200);
    }
    assert_eq!(connections(), 1, "it is kept");

    mesh.bed.wire().cut();
    let start = Instant::now();
    let asking = [
        asks(&mesh.client, "first", "--http1.1"),
        asks(&mesh.client, "second", "--http2-prior-knowledge"),
    ];
    eventually_within(UNACKNOWLEDGED_MAX + PATIENCE, "what was asked is answered", || {
        if asking.iter().all(|asking| asking.ended().is_some()) { Ok(()) } else { Err("waits") }
    });
    let took = start.elapsed();
    for asking in &asking {
        assert!(asking.log().contains("status=503"), "{}", asking.log());
    }
    assert!(took > Duration::from_secs(20), "it is given up after {took:?} already");
    for protocol in ["HTTP/1.1", "HTTP/2"] {
        let entry = near.logs_access(&["http2", protocol, "\"response_code\":503"]);
        let flags = entry["response_flags"].as_str().unwrap_or_default();
        assert!(["UC", "UF", "UC,UF", "UF,UC"].contains(&flags), "{entry}");
    }
    // Nobody is sent into the dead connection any more.
    mesh.bed.wire().mend();
    mesh.client.curl(URL).expect_status(200);
    mesh.client.curl(URL).expect_status(200);
    assert_eq!(connections(), 2, "on a fresh one");
    mesh.client.curl(mesh::WEB).expect_status(200);
}
