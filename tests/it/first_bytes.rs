//! What pods open goes where its first bytes say: TLS by its name without an end to it, HTTP
//! by its request line, and who waits for the server to speak.

use std::{fs, process::Command, time::Duration};

use serde_json::{Value, json};
use tests::{
    Allow, Inbound, Mesh, MeshConfig, Pod, Process, Service, Testbed,
    config::TCP_PROXY,
    conversation::end,
    eventually, eventually_within,
    pki::{Pki, Validity},
};

use crate::gateway::http_to;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.listener";
const VIP: &str = "10.96.0.20";
/// Where each service is in the server's pod.
const TLS_PORT: u16 = 9443;
const GREET_PORT: u16 = 9000;
const ECHO_PORT: u16 = 9001;
const WEB_PORT: u16 = 8080;
/// Listeners: who waits goes on, is closed, or waits for ever.
const PATIENT: u16 = 443;
const IMPATIENT: u16 = 444;
const ENDLESS: u16 = 445;

fn tcp_to(cluster: &str, matches: Value) -> Value {
    json!({ "filter_chain_match": matches, "filters": [{
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": TCP_PROXY, "stat_prefix": cluster, "cluster": cluster },
    }] })
}

fn listener(port: u16, timeout: &str, goes_on: bool, chains: Value) -> Value {
    let filters = [
        "original_dst.v3.OriginalDst",
        "tls_inspector.v3.TlsInspector",
        "http_inspector.v3.HttpInspector",
    ]
    .map(|kind| json!({ "name": kind, "typed_config": { "@type": format!("{FILTERS}.{kind}") } }));
    json!({
        "name": format!("first-{port}"),
        "traffic_direction": "OUTBOUND",
        "address": { "socket_address": { "address": VIP, "port_value": port } },
        "listener_filters": filters,
        "listener_filters_timeout": timeout,
        "continue_on_listener_filters_timeout": goes_on,
        "filter_chains": chains,
    })
}

fn chains(raw: &str) -> Value {
    let http = json!({ "transport_protocol": "raw_buffer", "application_protocols": ["http/1.1"] });
    json!([
        tcp_to("secure", json!({ "server_names": ["*.raw.example"] })),
        { "filter_chain_match": http, "filters": [http_to("web")] },
        tcp_to(raw, json!({ "transport_protocol": "raw_buffer" })),
    ])
}

fn config(client: &Pod, server: &Pod, raw: &str) -> MeshConfig {
    without_endless(client, server, raw).raw_listener(listener(ENDLESS, "0s", false, chains(raw)))
}

fn without_endless(client: &Pod, server: &Pod, raw: &str) -> MeshConfig {
    let allowed = || Allow::policy("client-may-talk").from(client);
    let services = [("secure", TLS_PORT), ("greet", GREET_PORT), ("echo", ECHO_PORT)];
    let config = services.into_iter().zip(30..).fold(MeshConfig::new(), |config, (service, n)| {
        let (name, port) = service;
        let service = Service::tcp(name, &format!("10.96.0.{n}:1")).backed_by(server, port);
        config.service(&service).inbound(&Inbound::tcp(server, port).allow(allowed()))
    });
    config
        .service(&Service::http("web", "10.96.0.10:80").backed_by(server, WEB_PORT))
        .inbound(&Inbound::http(server, WEB_PORT).allow(allowed()))
        .raw_listener(listener(PATIENT, "1s", true, chains(raw)))
        .raw_listener(listener(IMPATIENT, "1s", false, chains(raw)))
}

/// With what runs in the server's pod.
fn start(name: &str) -> (Mesh, Pki, Vec<Process>) {
    let bed = Testbed::two_nodes(name);
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("server").start());
    let pki = Pki::foreign();
    let own = pki.issue(&["a.raw.example"], Validity::Now);
    let programs = vec![
        server.runs_tls_nginx(TLS_PORT, &own, pki.root_pem()),
        server.serves("greet", GREET_PORT),
        server.serves("echo", ECHO_PORT),
    ];
    let web = server.runs_nginx(WEB_PORT);
    let config = config(&client, &server, "greet");
    (Mesh::start(bed, client, server, web, config), pki, programs)
}

fn at(port: u16) -> std::net::SocketAddr {
    format!("{VIP}:{port}").parse().unwrap()
}

#[test]
fn what_a_pod_says_first_chooses_its_chain() {
    let (mut mesh, pki, _programs) = start("first-bytes-chains");
    let wire = mesh.bed.wire().capture();
    let mut files = Vec::new();
    let own = pki.issue(&["client.example"], Validity::Now);
    let parts = [("cacert", pki.root_pem()), ("cert", &own.certificate_pem), ("key", &own.key_pem)];
    for (what, text) in parts {
        let path = mesh.bed.directory().join(format!("{what}.pem"));
        fs::write(&path, text).unwrap();
        files.extend([format!("--{what}"), path.display().to_string()]);
    }
    let https = |name: &str| {
        let arguments: Vec<&str> = files.iter().map(String::as_str).collect();
        let resolve = format!("{name}:{PATIENT}:{VIP}");
        let curl = mesh.client.curl(&format!("https://{name}:{PATIENT}/"));
        curl.arguments(&["--resolve", &resolve]).arguments(&arguments)
    };
    // The server itself sees the client's certificate: nobody has ended TLS before.
    https("a.raw.example").expect_status(200).expect_body("sni=a.raw.example");
    // No chain is for that name, and none for TLS.
    let ran = https("other.example").send();
    assert_eq!(ran.ran().code(), Some(35), "{ran:?}");
    let entry = mesh.near().logs_access(&["no filter chain", "first-443"]);
    assert_eq!(entry["response_flags"], "NR", "{entry}");
    // A request line, which goes to the server with all that came with it.
    let web = mesh.client.curl(&format!("http://{VIP}:{PATIENT}/"));
    web.expect_status(200).expect_body("hello from server");
    let entry = mesh.far().logs_access(&["inbound-server-8080", "GET"]);
    assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
    // What is neither, said at once.
    let mut talk = mesh.client.connects(at(PATIENT));
    talk.says("EHLO first.example\r\n").hears("220 ready\r\nEHLO first.example\r\n");
    talk.echoes("and more").half_closes();
    assert_eq!(talk.expect_closed(), "");
    wire.expect_only_tls();

    // What is in force when a client speaks counts, not when it came.
    let mut late = mesh.client.connects(at(ENDLESS));
    eventually("it is on the table", || {
        let live = mesh.near().connections();
        let waits = |of: &Value| of["original_destination"] == format!("{VIP}:{ENDLESS}");
        live.as_array().is_some_and(|live| live.iter().any(waits)).then_some(()).ok_or(live)
    });
    mesh.reconfigure(config(&mesh.client, &mesh.server, "echo"));
    late.says("EHLO late.example\r\n").half_closes();
    assert_eq!(late.expect_closed(), "EHLO late.example\r\n");
}

#[test]
fn a_server_that_speaks_first_is_waited_for_as_configured() {
    let (mesh, _pki, _programs) = start("first-bytes-greet");
    mesh.client.connects(at(PATIENT)).hears("220 ready").echoes("hello");
    for said in ["", "GET / HT"] {
        let (heard, how) = mesh.client.connects(at(IMPATIENT)).says(said).rest();
        assert_eq!((heard.as_str(), how), ("", end::RESET), "{said}");
    }
    let entry = mesh.near().logs_access(&["took too long"]);
    assert_eq!(entry["response_flags"], "DPE", "{entry}");
    assert_eq!(entry["original_destination"], format!("{VIP}:{IMPATIENT}"), "{entry}");
    // Who leaves is not waited for, and what it left unsaid goes nowhere.
    mesh.client.connects(at(ENDLESS)).says("half a line").half_closes().rest();
    let entry = mesh.near().logs_access(&["closed by the client before"]);
    assert_eq!(entry["response_flags"], "DC", "{entry}");
    assert!(entry["upstream_cluster"].is_null(), "{entry}");
}

/// Connections of that listener that are on the table.
fn live(mesh: &Mesh, port: u16) -> usize {
    let live = mesh.near().connections();
    let of = |one: &&Value| one["original_destination"] == format!("{VIP}:{port}");
    live.as_array().map_or(0, |live| live.iter().filter(of).count())
}

#[test]
fn who_waits_while_its_listener_changes_is_not_forgotten() {
    let (mesh, _pki, _programs) = start("first-bytes-changes");
    let wire = mesh.bed.wire().capture();
    let half = "\x16\x03\x01";
    let waiting = || {
        let two = [mesh.client.connects(at(ENDLESS)), mesh.client.connects(at(ENDLESS))];
        eventually("both are waited for", || {
            let live = live(&mesh, ENDLESS);
            if live == 2 { Ok(()) } else { Err(live) }
        });
        let [silent, mut begun] = two;
        begun.says(half);
        [silent, begun]
    };
    let without = without_endless(&mesh.client, &mesh.server, "echo");
    let mut served = waiting();
    // Nobody has to look any more: a server that speaks first does so at once.
    let mut raw = listener(ENDLESS, "0s", false, json!([tcp_to("greet", json!({}))]));
    raw["listener_filters"] = json!([]);
    mesh.near().configure(&without.clone().raw_listener(raw));
    for one in &mut served {
        one.hears("220 ready").echoes("hello");
    }
    drop(served);
    eventually("they are gone", || if live(&mesh, ENDLESS) == 0 { Ok(()) } else { Err(()) });
    mesh.near().configure(&config(&mesh.client, &mesh.server, "echo"));

    // What was begun for a listener never goes on in the clear.
    let mut gone = waiting();
    mesh.near().configure(&without);
    for one in &mut gone {
        assert_eq!(one.rest(), (String::new(), end::RESET));
    }
    let entry = mesh.near().logs_access(&["was removed as its first bytes"]);
    assert!(entry["upstream_cluster"].is_null(), "{entry}");
    wire.expect_only_tls();
}

#[test]
fn silent_connections_of_a_pod_make_room_for_those_that_speak() {
    const ROOM: usize = 4096;
    let (mesh, _pki, _programs) = start("first-bytes-flood");
    let mut first = mesh.client.connects(at(ENDLESS));
    eventually("it is waited for", || if live(&mesh, ENDLESS) == 1 { Ok(()) } else { Err(()) });
    let mut command = Command::new(tests::process::peer());
    command.args(["hold", &at(ENDLESS).to_string(), &(ROOM + 100).to_string()]);
    let holder = mesh.client.starts("hold", command);
    eventually_within(Duration::from_secs(180), "all are open", || {
        if holder.log().contains("open") { Ok(()) } else { Err(holder.log()) }
    });
    assert_eq!(first.rest(), (String::new(), end::RESET));
    mesh.near().logs(&["connection refused", "on their way in"]);
    eventually("the room is full", || {
        let live = live(&mesh, ENDLESS);
        if live == ROOM { Ok(()) } else { Err(live) }
    });
    for _ in 0..20 {
        mesh.client.connects(at(ENDLESS)).says("EHLO a\r\n").hears("220 ready\r\nEHLO a\r\n");
    }
    // Nor do they live longer than the agent, or pass without it.
    mesh.near().kill_9();
    eventually("all are ended", || {
        let left = mesh.client.run(&["ss", "-Htn", "state", "established"]);
        let left = left.expect_success().stdout().lines().count();
        if left == 0 { Ok(()) } else { Err(left) }
    });
}
