//! Upstreams that never stop: a real agent's memory stays bounded, and others are served.

use std::process::Command;

use serde_json::json;
use tests::{Pod, Process, Service, eventually, mesh};

use crate::upgrades::program;

/// What each server floods its clients with, and whether by HTTP/2.
const KINDS: [(&str, bool); 13] = [
    ("status", false),
    ("headers", false),
    ("hints", false),
    ("chunks", false),
    ("trailers", false),
    ("body", false),
    ("block", true),
    ("empty-block", true),
    ("http2-hints", true),
    ("data", true),
    ("empty-data", true),
    ("http2-trailers", true),
    ("http2-body", true),
];
const FIRST_PORT: u16 = 9600;
/// Of each kind, by HTTP/1.1 and by HTTP/2.
const CLIENTS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];
/// How much an agent may grow meanwhile, in KiB: 4 MiB for each of thirty requests, whose windows
/// and buffers allow that. Without a bound a flood of four seconds is far more.
const GROWTH_KIB: u64 = 120 << 10;

fn python(pod: &Pod, label: &str, file: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("python3");
    command.arg(program(file)).args(arguments);
    pod.starts(label, command)
}

#[test]
fn what_upstreams_flood_an_agent_with_is_not_held() {
    let mut mesh = mesh::web_and_client("hostile-upstreams");
    let server = mesh.bed.node(2).pod("hostile").start();
    let mut config = mesh::web_config(&mesh.client, &mesh.server);
    let mut servers = Vec::new();
    for (port, (kind, http2)) in (FIRST_PORT..).zip(KINDS) {
        let mut command = Command::new("python3");
        command.args([&program("hostile_server.py"), &port.to_string(), kind]);
        servers.push(server.starts_listening(kind, command, &[port]));
        let routes = json!([{ "match": { "prefix": "/" },
            "route": { "cluster": kind, "timeout": "4s" } }]);
        let address = format!("10.96.0.40:{port}");
        let service = Service::http(kind, &address).backed_by_plain(server.at(port)).routes(routes);
        config = config.service(&if http2 { service.speaks_http2() } else { service });
    }
    mesh.reconfigure(config);
    let near = mesh.near();
    // The first request makes what stays: pools, caches.
    mesh.client.curl(mesh::WEB).expect_status(200);
    let before = near.process().resident_kib();
    let mut clients = Vec::new();
    for (port, (kind, _)) in (FIRST_PORT..).zip(KINDS) {
        let address = format!("10.96.0.40:{port}");
        for protocol in CLIENTS {
            let mut command = Command::new("curl");
            command.args([
                "-sS",
                "--max-time",
                "30",
                "-o",
                "/dev/null",
                "--noproxy",
                "*",
                protocol,
            ]);
            command.arg(format!("http://{address}/{kind}"));
            clients.push(mesh.client.starts(&format!("{kind}{protocol}"), command));
        }
        // Nor does this one take anything of it.
        if kind.ends_with("body") {
            for protocol in ["1", "2"] {
                let arguments = [&address, "/silent", protocol, "0", "0.5", "8"];
                let label = format!("{kind}-silent-{protocol}");
                clients.push(python(&mesh.client, &label, "slow_client.py", &arguments));
            }
        }
    }
    let mut most = before;
    eventually("all are given up", || {
        mesh.client.curl(mesh::WEB).expect_status(200);
        most = most.max(near.process().resident_kib());
        let left = clients.iter().filter(|client| client.ended().is_none());
        match left.map(Process::label).collect::<Vec<_>>() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join(" ")),
        }
    });
    println!(
        "{before} KiB grew to {most} KiB, and were {} KiB then",
        near.process().resident_kib()
    );
    assert!(most < before + GROWTH_KIB, "{before} KiB grew to {most} KiB");
    assert!(near.process().ended().is_none(), "{}", near.log());
    assert!(!near.log().contains("panicked"), "{}", near.log());
    for (kind, _) in KINDS {
        let entry = near.logs_access(&["outbound", &format!("/{kind}\"")]);
        assert_ne!(entry["response_flags"], "-", "{entry}");
    }
    drop(servers);
}
