//! How control planes are reached, and what becomes of it where they can't be.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Node, Service, Testbed,
    bootstrap::Bootstrap,
    control_plane::{ControlPlane, Port, is_up},
    eventually_within,
    pki::{Pki, Validity},
};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// Longer than any pause between tries in these tests.
const PATIENCE: Duration = Duration::from_secs(40);

/// A configuration that is told from others by the port of its one service.
fn config(port: u16) -> MeshConfig {
    let address = format!("10.96.0.10:{port}");
    MeshConfig::new()
        .service(&Service::tcp("web", &address).backed_by_plain("10.244.2.10:80".parse().unwrap()))
}

fn start(node: &Node, name: &str, bootstrap: &Bootstrap) -> Agent {
    let file = bootstrap.write(node, name);
    node.agent().flags(&["--bootstrap", file.to_str().unwrap()]).start_unready()
}

/// What `status` says of the control plane; an error while the agent is not there yet.
fn xds(agent: &Agent) -> Result<Value, String> {
    let ran = agent.cli(&["status", "--output", "json"]);
    if ran.code() != Some(0) {
        return Err(format!("{ran}\n{}", agent.log()));
    }
    Ok(ran.json()["xds"].clone())
}

/// Waits until there is a stream to a server that ends in `server`.
fn is_connected(agent: &Agent, server: &str) {
    eventually_within(PATIENCE, &format!("connected to {server}"), || {
        let xds = xds(agent)?;
        let at = xds["server"].as_str().is_some_and(|at| at.ends_with(server));
        if at && is_up(&xds) { Ok(()) } else { Err(xds.to_string()) }
    });
}

/// Waits until the stream's state is `state`.
fn is(agent: &Agent, state: &str) -> Value {
    eventually_within(PATIENCE, &format!("state {state}"), || {
        let xds = xds(agent)?;
        if xds["state"] == state { Ok(xds) } else { Err(xds.to_string()) }
    })
}

/// Waits until a connection has ended with this.
fn fails(agent: &Agent, reason: &str) {
    eventually_within(PATIENCE, &format!("a connection fails with {reason:?}"), || {
        let xds = xds(agent)?;
        let found = xds["last_error"].as_str().is_some_and(|error| error.contains(reason));
        if found { Ok(()) } else { Err(xds.to_string()) }
    });
}

/// Waits until the service of that port is in force.
fn serves(agent: &Agent, port: u16) {
    let address = format!("10.96.0.10:{port}");
    eventually_within(PATIENCE, &format!("{address} is in force"), || {
        let ran = agent.cli(&["config", "dump", "--output", "json"]);
        if ran.stdout().contains(&address) {
            Ok(())
        } else {
            Err(format!("{ran}\n{}", agent.log()))
        }
    });
}

/// A certificate on disk.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

fn issue(node: &Node, pki: &Pki, name: &str) -> Files {
    let credentials = pki.issue(&[name], Validity::Now);
    let at = |what: &str| node.directory().join(format!("{name}-{what}.pem"));
    let files = Files { cert: at("cert"), key: at("key"), ca: at("ca") };
    fs::write(&files.cert, &credentials.certificate_pem).unwrap();
    fs::write(&files.key, &credentials.key_pem).unwrap();
    fs::write(&files.ca, pki.root_pem()).unwrap();
    files
}

/// The transport socket of a server that is verified as `sni` by `ca`, and is shown `own`.
fn tls(sni: &str, ca: &Path, own: Option<&Files>) -> Value {
    let certificates: Vec<_> = own
        .iter()
        .map(|own| {
            json!({
                "certificate_chain": { "filename": own.cert },
                "private_key": { "filename": own.key },
            })
        })
        .collect();
    json!({ "transport_socket": {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "sni": sni,
            "common_tls_context": {
                "tls_certificates": certificates,
                "validation_context": { "trusted_ca": { "filename": ca } },
            },
        },
    } })
}

#[test]
fn servers_are_verified_and_shown_who_asks() {
    let bed = Testbed::two_nodes("xds-tls");
    let node = bed.node(1);
    let (pki, foreign) = (Pki::foreign(), Pki::foreign());
    let server = issue(node, &pki, "cp.internal");
    let own = issue(node, &pki, "agent.internal");
    let other = issue(node, &foreign, "other.internal");
    let ports = [
        Port::tls("127.0.0.1:18001", &server.cert, &server.key, None),
        Port::tls("127.0.0.1:18002", &server.cert, &server.key, Some(&server.ca)),
        Port::plain("127.0.0.1:18003"),
    ];
    let control_plane = ControlPlane::start_at(node, "control-plane", &config(81), &ports);
    let agent_of = |name: &str, port: u16, tls: Value| {
        let bootstrap =
            Bootstrap::ads("GRPC", &["xds"]).server_with("xds", &format!("127.0.0.1:{port}"), tls);
        start(node, name, &bootstrap)
    };

    let agent = agent_of("wrong-ca", 18001, tls("cp.internal", &other.ca, None));
    fails(&agent, "invalid peer certificate");
    drop(agent);
    let agent = agent_of("wrong-name", 18001, tls("elsewhere.internal", &server.ca, None));
    fails(&agent, "not valid for name");
    drop(agent);
    let agent = agent_of("no-certificate", 18002, tls("cp.internal", &server.ca, None));
    fails(&agent, "error");
    drop(agent);
    let foreign = tls("cp.internal", &server.ca, Some(&other));
    let agent = agent_of("foreign-certificate", 18002, foreign);
    fails(&agent, "error");
    drop(agent);
    let agent = agent_of("tls-to-plain", 18003, tls("cp.internal", &server.ca, None));
    fails(&agent, "error");
    drop(agent);
    let agent = agent_of("plain-to-tls", 18001, json!({}));
    fails(&agent, "error");
    drop(agent);
    assert!(control_plane.requests().is_empty(), "{:?}", control_plane.requests());

    let agent = agent_of("tls", 18001, tls("cp.internal", &server.ca, None));
    is_connected(&agent, "https://127.0.0.1:18001");
    serves(&agent, 81);
    drop(agent);
    let agent = agent_of("mtls", 18002, tls("cp.internal", &server.ca, Some(&own)));
    is_connected(&agent, "https://127.0.0.1:18002");
    drop(agent);
    let requests = control_plane.requests();
    let said =
        |identity: &str| requests.iter().any(|r| r["identity"].to_string().contains(identity));
    assert!(said("agent.internal") && !said("other.internal"), "{requests:?}");
    assert!(requests.iter().any(|request| request["region"] == "here"), "{requests:?}");
    control_plane.expect_no_violations();
}

#[test]
fn servers_are_tried_in_order_and_the_first_is_gone_back_to() {
    let bed = Testbed::two_nodes("xds-failover");
    let node = bed.node(1);
    let (one, two) = (Pki::foreign(), Pki::foreign());
    let (first_files, second_files) =
        (issue(node, &one, "a.internal"), issue(node, &two, "b.internal"));
    let port = |address: &str, files: &Files| [Port::tls(address, &files.cert, &files.key, None)];
    let ports = port("127.0.0.1:18001", &first_files);
    let mut first = ControlPlane::prepare(node, "first", &config(81), &ports);
    let ports = port("127.0.0.1:18002", &second_files);
    let mut second = ControlPlane::start_at(node, "second", &config(82), &ports);
    // Each is verified by its own authority.
    let bootstrap = Bootstrap::ads("DELTA_GRPC", &["first", "second"])
        .server_with("first", "127.0.0.1:18001", tls("a.internal", &first_files.ca, None))
        .server_with("second", "127.0.0.1:18002", tls("b.internal", &second_files.ca, None));
    let agent = start(node, "agent", &bootstrap);
    is_connected(&agent, ":18002");
    serves(&agent, 82);
    first.run();
    is_connected(&agent, ":18001");
    serves(&agent, 81);
    agent.logs(&["a server that comes before it is back"]);
    first.dies();
    is_connected(&agent, ":18002");
    serves(&agent, 82);
    // Nobody: what was said last stays, and status says since when.
    second.dies();
    agent_is_alone(&agent);
    serves(&agent, 82);
    assert!(agent.metrics().text().contains("mesh_xds_connected 0"));
    first.run();
    is_connected(&agent, ":18001");
    serves(&agent, 81);
    first.expect_no_violations();
    second.expect_no_violations();
}

/// Takes connections on loopback of a node and does this with each, until it is dropped.
struct Peer {
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

impl Peer {
    fn start(node: &Node, port: u16, behave: fn(TcpStream) -> Option<TcpStream>) -> Self {
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let listener = node.netns().enter(|| TcpListener::bind(("127.0.0.1", port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&taken));
        thread::spawn(move || {
            let mut held = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        held.extend(behave(stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { stop, taken }
    }

    fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn says_garbage(mut stream: TcpStream) -> Option<TcpStream> {
    let _ = stream.write_all(&[0xff; 4096]);
    Some(stream)
}

fn speaks_http1(mut stream: TcpStream) -> Option<TcpStream> {
    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    Some(stream)
}

fn hangs_up(_: TcpStream) -> Option<TcpStream> {
    None
}

fn says_nothing(stream: TcpStream) -> Option<TcpStream> {
    Some(stream)
}

#[test]
fn what_is_no_control_plane_is_left_for_the_next_server() {
    let bed = Testbed::two_nodes("xds-impostors");
    let node = bed.node(1);
    let peers: Vec<_> = [says_garbage, speaks_http1, hangs_up, says_nothing]
        .into_iter()
        .zip(18001..)
        .map(|(behave, port)| Peer::start(node, port, behave))
        .collect();
    let ports = [Port::plain("127.0.0.1:18009")];
    let mut mute =
        ControlPlane::prepare(node, "mute", &config(81), &[Port::plain("127.0.0.1:18005")]);
    mute.behaves("mute", json!(true));
    mute.run();
    let mut control_plane = ControlPlane::prepare(node, "control-plane", &config(82), &ports);
    control_plane.behaves("delay", json!(1));
    control_plane.run();
    let names = ["garbage", "http1", "closed", "silent", "mute", "good"];
    let mut bootstrap = Bootstrap::ads("GRPC", &names);
    for (name, port) in names.iter().zip([18001, 18002, 18003, 18004, 18005, 18009]) {
        bootstrap = bootstrap.server(name, &format!("127.0.0.1:{port}"));
    }
    for config in ["lds_config", "cds_config"] {
        let path = format!("/dynamic_resources/{config}");
        bootstrap = bootstrap.with(&path, "initial_fetch_timeout", json!("3s"));
    }
    let agent = start(node, "agent", &bootstrap);
    serves(&agent, 82);
    is_connected(&agent, ":18009");
    for peer in &peers {
        assert!(peer.taken() >= 1);
    }
    agent.logs(&["18004", "the server did not answer within 3s"]);
    agent.logs(&["18005", "the server did not answer within 3s"]);
    assert!(!mute.requests().is_empty());
    control_plane.expect_no_violations();
}

/// How many descriptors a process holds.
fn descriptors(agent: &Agent) -> usize {
    fs::read_dir(format!("/proc/{}/fd", agent.process().pid())).unwrap().count()
}

#[test]
fn servers_that_hang_up_are_tried_ever_more_slowly_and_nothing_leaks() {
    let bed = Testbed::two_nodes("xds-flapping");
    let node = bed.node(1);
    let peers = [18001, 18002].map(|port| Peer::start(node, port, hangs_up));
    let bootstrap = Bootstrap::ads("GRPC", &["one", "two"])
        .server("one", "127.0.0.1:18001")
        .server("two", "127.0.0.1:18002");
    let begin = Instant::now();
    let agent = start(node, "agent", &bootstrap);
    let tries = |least: u64| {
        eventually_within(PATIENCE, &format!("{least} tries"), || {
            let xds = xds(&agent)?;
            let enough = xds["streams"].as_u64().is_some_and(|tries| tries >= least);
            if enough { Ok(()) } else { Err(xds.to_string()) }
        });
    };
    tries(4);
    let before = descriptors(&agent);
    tries(10);
    // Four pauses of which each is at least half of 0.5, 1, 2 and 4 s.
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(3500), "ten tries within {elapsed:?}");
    eventually_within(PATIENCE, "no descriptor is left behind", || {
        let after = descriptors(&agent);
        // One of them may be under way.
        if after <= before + 2 { Ok(()) } else { Err(format!("{before} -> {after}")) }
    });
    eventually_within(PATIENCE, "they are tried in turn", || {
        // A try takes another connection where the first ended while it was being made.
        let [one, two] = [peers[0].taken(), peers[1].taken()];
        let in_turn = one.min(two) * 2 >= one.max(two);
        if in_turn { Ok(()) } else { Err(format!("{one} and {two}")) }
    });
    assert!(agent.metrics().text().contains("mesh_xds_connected 0"));
    assert!(agent.process().ended().is_none());
}

#[test]
fn a_response_that_is_too_large_is_refused_by_its_size() {
    let bed = Testbed::two_nodes("xds-huge");
    let node = bed.node(1);
    let ports = [Port::plain("127.0.0.1:18001")];
    let mut control_plane = ControlPlane::start_at(node, "control-plane", &config(81), &ports);
    let limit = json!({ "cluster_name": "xds", "max_receive_message_length": 1 << 20 });
    let bootstrap = Bootstrap::ads("DELTA_GRPC", &["xds"]).server("xds", "127.0.0.1:18001").with(
        "/dynamic_resources/ads_config/grpc_services/0",
        "envoy_grpc",
        limit,
    );
    let agent = start(node, "agent", &bootstrap);
    serves(&agent, 81);
    control_plane.behaves("huge", json!(2 << 20));
    control_plane.serves(config(82).resources());
    fails(&agent, "the limit is: 1048576");
    serves(&agent, 81);
    control_plane.behaves("huge", json!(0));
    serves(&agent, 82);
}

/// Cuts the wire to a control plane whose cluster has these fields.
fn a_cut_wire_is_noticed(name: &str, fields: Value) {
    let bed = Testbed::two_nodes(name);
    let (near, far) = (bed.node(1), bed.node(2));
    let address = format!("{}:18001", far.wire_addresses().0);
    let ports = [Port::plain(&address)];
    let mut control_plane = ControlPlane::prepare(far, "control-plane", &config(81), &ports);
    control_plane.behaves("pings", json!(fields["http2_protocol_options"].is_object()));
    control_plane.run();
    let bootstrap = Bootstrap::ads("GRPC", &["xds"]).server_with("xds", &address, fields);
    let agent = start(near, "agent", &bootstrap);
    is_connected(&agent, ":18001");
    serves(&agent, 81);
    bed.wire().cut();
    agent_is_alone(&agent);
    serves(&agent, 81);
    fails(&agent, "could not be reached within 2s");
    control_plane.serves(config(82).resources());
    bed.wire().mend();
    is_connected(&agent, ":18001");
    serves(&agent, 82);
    control_plane.expect_no_violations();
}

#[test]
fn a_wire_that_is_cut_is_noticed_by_pings() {
    let keepalive = json!({ "connection_keepalive": { "interval": "1s", "timeout": "1s" } });
    a_cut_wire_is_noticed("xds-pings", json!({ "http2_protocol_options": keepalive }));
}

#[test]
fn a_wire_that_is_cut_is_noticed_by_tcp() {
    let keepalive = json!({
        "keepalive_time": 1,
        "keepalive_interval": 1,
        "keepalive_probes": 2,
    });
    let options = json!({ "upstream_connection_options": { "tcp_keepalive": keepalive } });
    a_cut_wire_is_noticed("xds-tcp-keepalive", options);
}

fn agent_is_alone(agent: &Agent) {
    eventually_within(PATIENCE, "not connected any more", || {
        let xds = xds(agent)?;
        if is_up(&xds) { Err(xds.to_string()) } else { Ok(()) }
    });
}

#[test]
fn a_server_that_answers_is_told_from_one_that_only_listens() {
    let bed = Testbed::two_nodes("xds-unanswered");
    let node = bed.node(1);
    let ports = [Port::plain("127.0.0.1:18001")];
    let mut control_plane = ControlPlane::prepare(node, "control-plane", &config(81), &ports);
    control_plane.behaves("mute", json!(true));
    let mut bootstrap = Bootstrap::ads("GRPC", &["xds"]).server("xds", "127.0.0.1:18001");
    for config in ["lds_config", "cds_config"] {
        let path = format!("/dynamic_resources/{config}");
        bootstrap = bootstrap.with(&path, "initial_fetch_timeout", json!("0s"));
    }
    let agent = start(node, "agent", &bootstrap);
    is(&agent, "backing_off");
    let not_ready = || agent.status()["readiness"]["reasons"].to_string();
    assert!(not_ready().contains("no control plane can be used"), "{}", not_ready());

    control_plane.run();
    let xds = is(&agent, "connected");
    assert!(xds["sources"][0]["last_answer"].is_null(), "{xds}");
    let text = agent.metrics();
    assert!(text.text().contains("mesh_xds_connected 1"), "{}", text.text());
    assert!(text.text().contains("mesh_xds_synced 0"), "{}", text.text());
    assert!(not_ready().contains("is connected and has not answered"), "{}", not_ready());
    agent.cli(&["status"]).expect_success().expect_output("connected without any answer");

    control_plane.dies();
    control_plane.behaves("mute", json!(false));
    control_plane.run();
    is(&agent, "synced");
    serves(&agent, 81);
    assert!(agent.metrics().text().contains("mesh_xds_synced 1"));

    // One that was heard before, and is not any more.
    control_plane.dies();
    control_plane.behaves("mute", json!(true));
    agent_is_alone(&agent);
    control_plane.run();
    let xds = is(&agent, "connected");
    assert!(xds["sources"][0]["last_answer"].is_string(), "{xds}");
    assert!(agent.metrics().text().contains("mesh_xds_synced 0"));
    serves(&agent, 81);
}
