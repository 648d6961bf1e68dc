//! Pods of one node whose traffic wants the agent: it goes through, and never leaves it.

use serde_json::Value;
use tests::{
    Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed,
    control_plane::ControlPlane,
    eventually,
    mesh::{self, SERVER, SERVER_PORT, SERVER6, WEB, WEB_PORT},
    pki::{Pki, Validity},
};

use crate::{
    kernel_news::add_table,
    sds::{certificate, roots},
};

const WEB6: &str = "http://[fd00:96::10]/";
/// By IPv6 all the way.
const ECHO6: &str = "[fd00:96::21]:9000";

/// A client, a web server, and its neighbour that echoes; the kernel path is off.
struct Node {
    client: Pod,
    web: Pod,
    echo: Pod,
    agent: Agent,
    program: Process,
    _nginx: Process,
    bed: Testbed,
}

fn config(client: &Pod, web: &Pod, echo: &Pod) -> MeshConfig {
    mesh::web_config(client, web)
        .service(&Service::tcp("server", SERVER).at(SERVER6).backed_by(echo, SERVER_PORT))
        .service(&Service::tcp("server6", ECHO6).backed_by_ipv6(echo, SERVER_PORT))
        .inbound(
            &Inbound::tcp(echo, SERVER_PORT).allow(Allow::policy("client-may-talk").from(client)),
        )
}

impl Node {
    fn start(name: &str, kind: &str, flags: &[&str]) -> Self {
        let bed = Testbed::two_nodes(name);
        let node = bed.node(1);
        let [client, web, echo] = ["client", "web", "echo"].map(|name| node.pod(name).start());
        let (_nginx, program) = (web.runs_nginx(WEB_PORT), echo.serves(kind, SERVER_PORT));
        config(&client, &web, &echo).write_to(&node.config_dir());
        let agent = node.agent().with_pod(&client).with_pod(&web).with_pod(&echo);
        let agent = agent.flags(&["--kernel-path", "off"]).flags(flags).start();
        Self { client, web, echo, agent, program, _nginx, bed }
    }

    /// How many tunnels have stayed within the agent.
    fn within(&self) -> u64 {
        self.agent.metrics().sum("mesh_tunnels_within_agent_total", &[]) as u64
    }

    /// How many connections the agent has to itself.
    fn by_the_wire(&self) -> u64 {
        self.agent.status()["hbone"]["connections"].as_u64().unwrap()
    }

    /// Until new tunnels stay within.
    fn wait(&self) {
        eventually("tunnels stay within the agent", || {
            let before = self.within();
            self.client.connects(SERVER.parse().unwrap()).echoes("in?");
            if self.within() > before { Ok(()) } else { Err(self.agent.status()) }
        });
    }
}

#[test]
fn http_between_neighbours_is_judged_and_is_on_no_wire() {
    let it = Node::start("within-http", "echo", &[]);
    it.wait();
    let before = it.by_the_wire();
    let (near, far) = (it.client.records(), it.web.records());
    let hello = format!("hello from web, you are {}", it.client.ip());
    it.client.curl(WEB).header("x: a secret").expect_status(200).expect_body(&hello);
    it.client.curl(WEB6).expect_status(200).expect_body(&hello);
    it.client.curl(WEB).http2().expect_status(200);
    it.client.curl(WEB).method("DELETE").expect_status(403);
    it.echo.curl(WEB).expect_status(403);
    assert!(!it.web.nginx_log(WEB_PORT).contains("DELETE"));
    for wire in [near, far] {
        wire.expect_no_trace_of("secret");
        wire.expect_no_trace_of("hello from web");
        assert_eq!(wire.tls_records(), 0, "{wire}");
    }
    assert_eq!(it.by_the_wire(), before);
    for direction in ["\"outbound\"", "\"inbound\""] {
        let entry = it.agent.logs_access(&[direction, "\"response_code\":200", "\"GET\""]);
        assert_eq!(entry["source_identity"], it.client.identity(), "{entry}");
        assert_eq!(entry["destination_identity"], it.web.identity(), "{entry}");
        assert_eq!(entry["connection_security_policy"], "mutual_tls", "{entry}");
        let denied = it.agent.logs_access(&["\"inbound\"", "\"response_code\":403", "DELETE"]);
        assert_eq!(denied["source_identity"], it.client.identity(), "{denied}");
    }
}

#[test]
fn policy_that_changes_is_in_force_for_streams_that_run() {
    let it = Node::start("within-policy", "echo", &[]);
    it.wait();
    let mut talk = it.client.connects(SERVER.parse().unwrap());
    talk.echoes("allowed");
    let denied = mesh::web_config(&it.web, &it.web)
        .service(&Service::tcp("server", SERVER).at(SERVER6).backed_by(&it.echo, SERVER_PORT))
        .inbound(
            &Inbound::tcp(&it.echo, SERVER_PORT).allow(Allow::policy("web-only").from(&it.web)),
        );
    it.agent.configure(&denied);
    talk.expect_cut_off();
    it.client.connects(SERVER.parse().unwrap()).expect_cut_off();
    it.client.curl(WEB).expect_status(403);
    it.web.connects(SERVER.parse().unwrap()).echoes("another may");
}

#[test]
fn opaque_bytes_arrive_whole_and_a_reset_is_a_reset() {
    let it = Node::start("within-bulk", "digest", &[]);
    let bytes = (64_u32 << 20).to_string();
    eventually("tunnels stay within the agent", || {
        it.client.run_peer(&["transfer", SERVER, "1000", "1000", "1"]).expect_success();
        if it.within() > 0 { Ok(()) } else { Err(it.agent.status()) }
    });
    let before = it.by_the_wire();
    it.client.run_peer(&["transfer", SERVER, &bytes, &bytes, "2"]).expect_success();
    it.client.run_peer(&["transfer", SERVER6, "10000", "10000", "200"]).expect_success();
    assert_eq!(it.by_the_wire(), before);
    let mut talk = it.client.connects(SERVER.parse().unwrap());
    talk.says("half of what was promised");
    it.agent.unenroll(&it.echo).expect_success();
    talk.expect_reset();
}

#[test]
fn rules_that_appear_take_tunnels_to_the_wire_and_lose_no_request() {
    let it = Node::start("within-rules", "echo", &[]);
    it.wait();
    let by_the_wire = it.by_the_wire();
    let mut talk = it.client.connects(SERVER.parse().unwrap());
    talk.echoes("before");
    std::thread::scope(|scope| {
        let it = &it;
        let load = ["load", "10.96.0.10:80", "web", "4", "4"];
        let load = scope.spawn(move || it.client.run_peer(&load).expect_success());
        eventually("there is load", || {
            if it.web.nginx_log(WEB_PORT).is_empty() { Err(()) } else { Ok(()) }
        });
        add_table(it.bed.node(1).netns());
        load.join().unwrap();
    });
    talk.echoes("what runs goes on");
    eventually("HTTP has gone to the wire", || {
        it.client.curl(WEB).expect_status(200);
        if it.by_the_wire() > by_the_wire { Ok(()) } else { Err(it.agent.status()) }
    });
    let before = it.within();
    let wire = it.client.records();
    it.client.curl(WEB).header("x: a secret").expect_status(200);
    it.client.connects(SERVER.parse().unwrap()).echoes("a secret");
    assert_eq!(it.within(), before);
    wire.expect_no_trace_of("secret");
    assert!(wire.tls_records() > 0, "{wire}");
}

#[test]
fn where_the_node_wants_to_see_packets_there_are_some() {
    let it = Node::start("within-off", "echo", &["--redirect-peer", "off"]);
    let wire = it.client.records();
    it.client.curl(WEB).header("x: a secret").expect_status(200);
    it.client.connects(SERVER.parse().unwrap()).echoes("a secret");
    assert_eq!(it.within(), 0);
    wire.expect_only_tls();
    wire.expect_no_trace_of("secret");
}

#[test]
fn an_application_that_is_down_is_so_for_its_neighbours() {
    let it = Node::start("within-down", "echo", &[]);
    it.wait();
    let before = it.within();
    it.client.connects(ECHO6.parse().unwrap()).echoes("by IPv6");
    assert_eq!(it.within(), before + 1);
    it.program.kill_9();
    for (service, address) in [(SERVER, it.echo.at(SERVER_PORT)), (ECHO6, it.echo.at6(SERVER_PORT))]
    {
        it.client.connects(service.parse().unwrap()).expect_cut_off();
        for direction in ["\"outbound\"", "\"inbound\""] {
            let entry = it.agent.logs_access(&[direction, "\"UF\"", &address.to_string()]);
            // The pod's kernel says so at once.
            assert!(!entry["denied_reason"].to_string().contains("wait"), "{entry}");
        }
    }
}

/// A node whose certificates `pki` has issued, and what trusts whom.
fn certified(
    name: &str,
    pki: &Pki,
    flags: &[&str],
) -> (Node, ControlPlane, impl Fn(&Pki) -> Vec<Value> + use<>) {
    let bed = Testbed::two_nodes(name);
    let node = bed.node(1);
    let [client, web, echo] = ["client", "web", "echo"].map(|name| node.pod(name).start());
    let (_nginx, program) = (web.runs_nginx(WEB_PORT), echo.serves("echo", SERVER_PORT));
    let config = config(&client, &web, &echo);
    let certificates = [&client, &web, &echo].map(Pod::identity).map(|identity| {
        let issued = pki.issue(&[&identity], Validity::Now);
        certificate(&identity, &issued)
    });
    let resources = {
        let config = config.clone();
        move |trusted: &Pki| {
            let mut resources = config.resources();
            resources.push(roots("ROOTCA", &[trusted]));
            resources.extend(certificates.clone());
            resources
        }
    };
    let mut control_plane = ControlPlane::start(node, &config);
    control_plane.serves(resources(pki));
    let uri = control_plane.uri();
    let sds = ["--certificates", "sds", "--xds-server", &uri, "--kernel-path", "off"];
    let agent = node.agent().with_pod(&client).with_pod(&web).with_pod(&echo);
    let agent = agent.flags(&sds).flags(flags).start();
    let it = Node { client, web, echo, agent, program, _nginx, bed };
    it.wait();
    (it, control_plane, resources)
}

#[test]
fn who_is_not_vouched_for_any_more_is_cut_within_the_agent_too() {
    let (it, mut control_plane, resources) = certified("within-trust", &Pki::foreign(), &[]);
    let mut talk = it.client.connects(SERVER.parse().unwrap());
    talk.echoes("vouched for");
    it.client.curl(WEB).expect_status(200);

    control_plane.serves(resources(&Pki::foreign()));
    talk.expect_cut_off();
    it.client.connects(SERVER.parse().unwrap()).expect_cut_off();
    it.client.curl(WEB).expect_status(503);
    it.agent.logs(&["a tunnel is cut after a change of trust"]);
}

#[test]
fn who_is_not_vouched_for_any_more_is_cut_by_an_agent_that_has_handed_over_too() {
    let long = ["--drain-timeout", "1h"];
    let (mut it, mut control_plane, resources) =
        certified("within-trust-old", &Pki::foreign(), &long);
    let mut talk = it.client.connects(SERVER.parse().unwrap());
    talk.echoes("vouched for");
    let old = it.agent.upgrade();
    talk.echoes("by the old one");

    control_plane.serves(resources(&Pki::foreign()));
    talk.expect_cut_off();
    let ended = eventually("the old one has no more to do", || old.ended().ok_or(()));
    assert!(ended.success(), "{ended}");
}
