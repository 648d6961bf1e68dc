//! The features, in the order in which a connection meets them.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tests::{
    Agent, Allow, Inbound, Mesh, Pod, Process, Service, Testbed, eventually, mesh,
    process::agent_binary,
};

use crate::{
    Shortfall::{self, Failed, Off},
    show,
};

/// A TCP service on the client's own node.
const NEAR: &str = "10.96.0.30:9000";
const NEAR_PORT: u16 = 9000;

/// Looks at all of them; `false` if one failed.
pub(crate) fn all() -> bool {
    let checks = doctor();
    let loads = show("BPF programs load", || programs_load(&checks));
    self_test(&checks);
    match unsupported(&checks) {
        Some(reason) => show("the agent runs", || Err(Off(reason))) && loads,
        None => on_a_mesh() && loads,
    }
}

/// One line for each check of the self-test. Those that fail tell of the kernel, which
/// the agent does without: none of them is a failure of ours.
fn self_test(checks: &[Value]) {
    for check in checks.iter().filter(|check| text(&check["name"]).starts_with("self-test ")) {
        show(text(&check["name"]), || match check["status"] == "ok" {
            true => Ok(()),
            false => Err(Off(text(&check["detail"]).to_owned())),
        });
    }
}

fn doctor() -> Vec<Value> {
    let ran = Command::new(agent_binary()).args(["doctor", "-o", "json"]).output();
    let ran = ran.expect("run `mesh-agent doctor`");
    let checks: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| {
        panic!("doctor: {error}: {}", String::from_utf8_lossy(&ran.stderr))
    });
    let checks = checks.as_array().cloned().unwrap_or_default();
    for check in &checks {
        println!("doctor: {} {}: {}", check["status"], check["name"], check["detail"]);
    }
    checks
}

/// Why the agent cannot serve on this kernel.
fn unsupported(checks: &[Value]) -> Option<String> {
    let failed = checks.iter().find(|check| check["status"] == "fail")?;
    Some(told(failed))
}

fn told(check: &Value) -> String {
    format!("{}: {}", text(&check["name"]), text(&check["detail"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn programs_load(checks: &[Value]) -> Result<(), Shortfall> {
    let of_program = |check: &&Value| text(&check["name"]).starts_with("program");
    let programs: Vec<_> = checks.iter().filter(of_program).collect();
    if programs.is_empty() {
        return Err(Failed("doctor names no program".to_owned()));
    }
    let refused = programs.iter().find(|check| check["status"] != "ok");
    refused.map_or(Ok(()), |check| Err(Off(told(check))))
}

/// A client and a server on node 1, a web server on node 2.
struct Bed {
    mesh: Mesh,
    near: Pod,
    _echo: Process,
    /// On node 1, and not enrolled.
    outsider: Pod,
}

fn start() -> Bed {
    let bed = Testbed::two_nodes("smoke");
    let client = bed.node(1).pod("client").start();
    let near = bed.node(1).pod("near").start();
    let web = bed.node(2).pod("web").start();
    let program = web.runs_nginx(mesh::WEB_PORT);
    let echo = near.serves("echo", NEAR_PORT);
    let may_talk = Allow::policy("client-may-talk").from(&client);
    let config = mesh::web_config(&client, &web)
        .service(&Service::tcp("near", NEAR).backed_by(&near, NEAR_PORT))
        .inbound(&Inbound::tcp(&near, NEAR_PORT).allow(may_talk));
    let mesh = Mesh::start(bed, client, web, program, config);
    mesh.near().enroll(&near);
    let outsider = mesh.plain_pod("outsider");
    Bed { mesh, near, _echo: echo, outsider }
}

fn on_a_mesh() -> bool {
    let mut bed = None;
    let started = show("the agent runs", || {
        bed = Some(start());
        Ok(())
    });
    let Some(mut bed) = bed else { return started };
    // Each is shown, whatever became of those before it.
    let good = [
        show("capture and mTLS between nodes", || across_nodes(&bed)),
        show("the same over IPv6", || {
            bed.mesh.client.curl(mesh::WEB6).expect_status(200);
            Ok(())
        }),
        show("L7 policy", || policy(&bed)),
        show("plaintext to a strict pod is refused", || plaintext(&bed)),
        show("kernel path on one node", || kernel_path(&bed)),
        show("guard on the pods' interfaces", || guard(&bed)),
        show("redirect_peer", || redirect_peer(&bed)),
        show("splice", || splice(&bed)),
        show("fails closed without the agent", || without_the_agent(&bed)),
        show("a new agent takes over", || taken_over(&mut bed)),
    ];
    good.iter().all(|&good| good)
}

fn across_nodes(bed: &Bed) -> Result<(), Shortfall> {
    let Bed { mesh, .. } = bed;
    let wire = mesh.bed.wire().capture();
    let source_kept = format!("you are {}", mesh.client.ip());
    mesh.client.curl(mesh::WEB).expect_status(200).expect_body(&source_kept);
    wire.expect_only_tls();
    wire.expect_no_trace_of("hello from web");
    let entry = mesh.far().logs_access(&["inbound", "GET"]);
    assert_eq!(entry["source_identity"], mesh.client.identity(), "{entry}");
    assert_eq!(entry["destination_identity"], mesh.server.identity(), "{entry}");
    Ok(())
}

fn policy(bed: &Bed) -> Result<(), Shortfall> {
    bed.mesh.client.curl(mesh::WEB).method("DELETE").expect_status(403);
    Ok(())
}

fn plaintext(bed: &Bed) -> Result<(), Shortfall> {
    for (server, port) in [(&bed.mesh.server, mesh::WEB_PORT), (&bed.near, NEAR_PORT)] {
        bed.outsider.curl(&format!("http://{}/", server.at(port))).expect_refused();
    }
    Ok(())
}

fn kernel_path(bed: &Bed) -> Result<(), Shortfall> {
    let agent = bed.mesh.near();
    if let Some(why) = agent.status()["kernel_path"]["off"].as_str() {
        return Err(Off(why.to_owned()));
    }
    eventually("the service is on the kernel path", || {
        let status = agent.status();
        if status["kernel_path"]["services"] == 1 { Ok(()) } else { Err(status) }
    });
    let vouched = || agent.metrics().sum("mesh_bpf_verdicts_total", &["verdict=\"authorized\""]);
    let before = vouched();
    talk(bed).echoes("plain words").half_closes();
    assert!(vouched() > before, "the connection went another way: {}", agent.metrics().text());
    // Nobody but the client may.
    bed.outsider.connects(bed.near.at(NEAR_PORT)).expect_cut_off();
    Ok(())
}

/// What runs in the pod but outside the agent's cgroup root meets no connect hook.
fn guard(bed: &Bed) -> Result<(), Shortfall> {
    let agent = bed.mesh.near();
    if let Some(why) = missing(&agent.status()["unguarded"]) {
        return Err(Off(why));
    }
    let before = verdicts(agent, "guard_uncaptured");
    let wire = bed.mesh.bed.wire().capture();
    let heard = sneaks_out(&bed.mesh.client, bed.mesh.server.at(mesh::WEB_PORT));
    assert!(heard.is_err(), "{heard:?}");
    assert!(verdicts(agent, "guard_uncaptured") > before, "{}", agent.metrics().text());
    wire.expect_no_trace_of("sneaked out");
    Ok(())
}

/// Speaks from the pod's namespace, but outside every cgroup of the node.
fn sneaks_out(pod: &Pod, to: SocketAddr) -> io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    pod.netns().enter(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"sneaked out\n")?;
        let mut heard = [0; 64];
        let length = stream.read(&mut heard)?;
        Ok(String::from_utf8_lossy(&heard[..length]).into_owned())
    })
}

fn redirect_peer(bed: &Bed) -> Result<(), Shortfall> {
    let agent = bed.mesh.near();
    let status = agent.status();
    for why in [&status["kernel_path"]["off"], &status["not_redirected"][0]["why"]] {
        if let Some(why) = why.as_str() {
            return Err(Off(why.to_owned()));
        }
    }
    let before = verdicts(agent, "redirected");
    talk(bed).echoes("straight").half_closes();
    assert!(verdicts(agent, "redirected") > before, "{}", agent.metrics().text());
    Ok(())
}

/// As the agent decides by itself (`auto`).
fn splice(bed: &Bed) -> Result<(), Shortfall> {
    let agent = bed.mesh.near();
    let status = agent.status();
    for why in [&status["kernel_path"]["off"], &status["kernel_path"]["splice"]["off"]] {
        if let Some(why) = why.as_str() {
            return Err(Off(why.to_owned()));
        }
    }
    let before = verdicts(agent, "splice_begun");
    talk(bed).echoes("past TCP").half_closes();
    assert!(verdicts(agent, "splice_begun") > before, "{}", agent.metrics().text());
    Ok(())
}

fn verdicts(agent: &Agent, name: &str) -> u64 {
    let label = format!("verdict=\"{name}\"");
    agent.metrics().sum("mesh_bpf_verdicts_total", &[&label]) as u64
}

/// Why a pod goes without, if one does.
fn missing(pods: &Value) -> Option<String> {
    let first = pods.as_array()?.first()?;
    Some(format!("{}: {}", text(&first["pod"]), text(&first["why"])))
}

fn talk(bed: &Bed) -> tests::conversation::Conversation {
    bed.mesh.client.connects(NEAR.parse().expect("an address"))
}

fn without_the_agent(bed: &Bed) -> Result<(), Shortfall> {
    let Bed { mesh, .. } = bed;
    let wire = mesh.bed.wire().capture();
    mesh.near().kill_9();
    mesh.client.curl(mesh::WEB).expect_refused();
    talk(bed).expect_refused();
    wire.expect_no_trace_of("GET /");
    mesh.far().kill_9();
    plaintext(bed)
}

fn taken_over(bed: &mut Bed) -> Result<(), Shortfall> {
    for agent in &mut bed.mesh.agents {
        agent.restart();
    }
    across_nodes(bed)?;
    talk(bed).echoes("again");
    Ok(())
}
