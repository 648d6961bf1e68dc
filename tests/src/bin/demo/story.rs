//! What the demo shows, in order.

use std::{net::TcpStream, time::Duration};

use serde_json::Value;
use tests::{Agent, Capture, Mesh, Pod, mesh, process::agent_binary};

use crate::figure;

/// How long a dial that gets no answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

fn heading(text: &str) {
    println!("\n── {text}");
}

fn note(text: &str) {
    println!("    {text}");
}

fn good(text: &str) {
    println!("  ✓ {text}");
}

/// Plays everything; panics at the first thing that does not hold.
pub(crate) fn tell(keep: bool) {
    heading("two nodes (network namespaces joined by a wire), a pod on each, an agent on each");
    let mesh = mesh::web_and_client("demo");
    for pod in [&mesh.client, &mesh.server] {
        let (node, name) = (pod.node().name(), pod.name());
        good(&format!(
            "{node}: pod `{name}` at {} and {}, {}",
            pod.ip(),
            pod.ip6(),
            pod.identity()
        ));
    }
    for agent in &mesh.agents {
        let name = agent.node().name();
        good(&format!("{name}: agent ready (pid {}), its pods:", agent.process().pid()));
        indent(agent.cli(&["pods"]).expect_success().stdout());
    }

    let wire = mesh.bed.wire().capture();
    allowed(&mesh);
    denied(&mesh);
    let intruder = wrong_identity(&mesh);
    on_the_wire(&wire);
    let file = mesh.bed.directory().join("wire.pcap");
    wire.write_pcap(&file);
    drop(wire);

    let outsider = plaintext(&mesh);
    past_the_hooks(&mesh);
    captured(&mesh);
    figure::show(&mesh);
    if keep {
        mesh.bed.keep();
        hand_over(&mesh, &[&intruder, &outsider], &file.display().to_string());
    }
}

fn allowed(mesh: &Mesh) {
    heading("allowed: unmodified curl to unmodified nginx, through the service's address");
    let response = mesh.client.curl(mesh::WEB).expect_status(200).expect_body("hello from web");
    good(&format!("GET {} → 200: {}", mesh::WEB, response.body().trim()));
    let source_kept = format!("you are {}", mesh.client.ip());
    assert!(response.body().contains(&source_kept), "nginx must see the client's own address");
    good(&format!("nginx saw the client's own address, {}", mesh.client.ip()));

    let near = mesh.near().logs_access(&["outbound", &mesh.client.identity(), "GET"]);
    let far = mesh.far().logs_access(&["inbound", &mesh.client.identity(), "GET"]);
    for (agent, entry) in [(mesh.near(), &near), (mesh.far(), &far)] {
        assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
        assert_eq!(entry["destination_identity"], mesh.server.identity(), "{entry}");
        good(&format!("{} logged both identities:", agent.node().name()));
        fields(
            entry,
            &[
                "direction",
                "source_address",
                "source_identity",
                "original_destination",
                "destination_identity",
                "upstream_host",
                "policy",
                "connection_security_policy",
            ],
        );
    }
    assert_eq!(far["policy"], "client-may-read", "{far}");
    mesh.client.curl(mesh::WEB6).expect_status(200);
    good(&format!("GET {} → 200: the same over IPv6", mesh::WEB6));
}

fn denied(mesh: &Mesh) {
    heading("denied: L7 policy lets this caller read, not write");
    let url = format!("{}orders/7", mesh::WEB);
    mesh.client.curl(&url).method("DELETE").expect_status(403);
    good(&format!("DELETE {url} → 403"));
    let entry = mesh.far().logs_access(&["DELETE", "/orders/7", &mesh.client.identity()]);
    good("node2 logged the method, the path and the caller:");
    fields(&entry, &["method", "path", "source_identity", "response_code", "denied_reason"]);
    assert!(!mesh.server.nginx_log(mesh::WEB_PORT).contains("DELETE"), "nginx saw the request");
    good("nginx never saw it");
}

fn wrong_identity(mesh: &Mesh) -> Pod {
    heading("denied: the right request from the wrong identity");
    let intruder = mesh.enrolled_pod("intruder");
    good(&format!("node1: enrolled pod `intruder` while it ran, {}", intruder.identity()));
    intruder.curl(mesh::WEB).expect_status(403);
    good(&format!("GET {} → 403", mesh::WEB));
    let entry = mesh.far().logs_access(&[&intruder.identity(), "403"]);
    fields(&entry, &["method", "path", "source_identity", "response_code", "denied_reason"]);
    intruder
}

fn on_the_wire(wire: &Capture) {
    heading("the wire, all the while");
    wire.expect_only_tls();
    for secret in ["hello from web", "/orders/7", "GET /", "client-may-read"] {
        wire.expect_no_trace_of(secret);
    }
    good(&format!("{} TLS records, and nothing that is not TLS", wire.tls_records()));
    for stream in wire.streams() {
        let start: Vec<String> = stream.bytes.iter().take(12).map(|b| format!("{b:02x}")).collect();
        let length = stream.bytes.len();
        note(&format!("{} → {}: {length} bytes: {} …", stream.from, stream.to, start.join(" ")));
    }
}

fn plaintext(mesh: &Mesh) -> Pod {
    heading("refused: plaintext straight at the pod, from a pod outside the mesh");
    let outsider = mesh.plain_pod("outsider");
    let url = format!("http://{}/", mesh.server.at(mesh::WEB_PORT));
    let response = outsider.curl(&url).expect_refused();
    good(&format!("GET {url} → {}", response.ran().stderr().trim()));
    assert!(
        !mesh.server.nginx_log(mesh::WEB_PORT).contains(&outsider.ip().to_string()),
        "nginx saw the outsider"
    );
    good("nginx never saw it: the port takes mutual TLS only");
    let entry = mesh.far().logs_access(&["plaintext from", &outsider.ip().to_string()]);
    fields(&entry, &["denied_reason", "response_flags"]);
    outsider
}

fn past_the_hooks(mesh: &Mesh) {
    heading("refused: plaintext out of a pod, from a process that no hook sees");
    let to = mesh.server.at(mesh::WEB_PORT);
    // In the pod's namespace, but in this program's own cgroup.
    let dialled = mesh.client.netns().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let error = dialled.expect_err("it must not get through");
    good(&format!("connect to {to} → {error}: the guard on the pod's interface dropped it"));
}

fn captured(mesh: &Mesh) {
    heading("how it was captured: no iptables, no proxy in the pods");
    for agent in &mesh.agents {
        let status = agent.status();
        good(&format!("{}: what its eBPF programs decided:", agent.node().name()));
        let verdicts = status["bpf"].as_array().cloned().unwrap_or_default();
        let counted: Vec<&Value> = verdicts.iter().filter(|v| v["count"] != 0).collect();
        assert!(!counted.is_empty(), "no program counted anything: {status}");
        for verdict in counted {
            let name = verdict["verdict"].as_str().unwrap_or("?");
            note(&format!("{:>8}  {name:<22} {}", verdict["count"], meaning(name)));
        }
    }
    let verdicts = |agent: &Agent, name: &str| {
        let status = agent.status();
        let all = status["bpf"].as_array().cloned().unwrap_or_default();
        all.iter().find(|v| v["verdict"] == name).map_or(0, |v| v["count"].as_u64().unwrap_or(0))
    };
    assert!(verdicts(mesh.near(), "guard_uncaptured") > 0, "the guard counted nothing on node1");
    assert!(verdicts(mesh.near(), "outbound_captured") > 0, "nothing was captured on node1");
    assert!(verdicts(mesh.far(), "inbound_steered") > 0, "the plaintext was not steered on node2");
}

/// What the commonest verdicts are about.
fn meaning(verdict: &str) -> &'static str {
    match verdict {
        "outbound_captured" => "connect(): sent to the agent, which listens inside the pod",
        "outbound_not_enrolled" => "connect(): by who is not in the mesh, left alone",
        "outbound_agent" => "connect(): the agent's own, left alone",
        "published" => "sock_ops: original destination told to the agent, before the SYN",
        "peer_name_restored" => "getpeername(): the application sees the address it asked for",
        "inbound_hbone" => "sk_lookup: mutual TLS from another node, to the agent",
        "inbound_steered" => "sk_lookup: plaintext from outside, to the agent, which refuses",
        "guard_uncaptured" => "guard: dropped, a connection opened past the connect hook",
        "inbound_loopback" => "sk_lookup: from inside the pod, to the application",
        _ => "",
    }
}

fn hand_over(mesh: &Mesh, others: &[&Pod], pcap: &str) {
    heading("everything stays up");
    let agent = agent_binary();
    let agent = agent.display();
    for pod in [&mesh.client, &mesh.server].into_iter().chain(others.iter().copied()) {
        note(&format!("enter `{}` on {}:", pod.name(), pod.node().name()));
        note(&format!("  {}", pod.how_to_enter()));
    }
    for each in &mesh.agents {
        let socket = each.node().socket();
        note(&format!("ask the agent of {}:", each.node().name()));
        note(&format!("  {agent} status --socket {}", socket.display()));
        note(&format!("  {agent} connections --socket {}", socket.display()));
        note(&format!("  curl --unix-socket {} http://agent/metrics", socket.display()));
    }
    note(&format!("configuration and logs: {}", mesh.bed.directory().display()));
    note(&format!("the capture of the wire: tcpdump -r {pcap}"));
    note("remove everything: cargo xtask demo --down");
}

fn indent(text: &str) {
    text.lines().for_each(note);
}

fn fields(entry: &Value, names: &[&str]) {
    for name in names {
        let value = match &entry[*name] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        note(&format!("{name:<27}{value}"));
    }
}

/// What an agent has used of the CPU so far.
pub(crate) fn cpu(agents: &[Agent]) -> std::time::Duration {
    agents.iter().map(|agent| agent.process().cpu_time()).sum()
}
