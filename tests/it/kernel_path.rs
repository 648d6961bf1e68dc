//! Pods of one node: opaque TCP goes from socket to socket, and policy holds.

use std::time::Duration;

use tests::{
    Agent, Allow, Inbound, MeshConfig, Pod, PodBuilder, Process, Service, Testbed,
    conversation::end,
    eventually,
    mesh::{SERVER, SERVER_PORT, SERVER6},
};

/// Two enrolled pods of one node, and its agent.
pub(crate) struct Neighbours {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) agent: Agent,
    pub(crate) program: Process,
    pub(crate) bed: Testbed,
}

pub(crate) fn config(client: &Pod, server: &Pod) -> MeshConfig {
    let service = Service::tcp("server", SERVER).backed_by(server, SERVER_PORT);
    let service6 = Service::tcp("server6", SERVER6).backed_by_ipv6(server, SERVER_PORT);
    let inbound =
        Inbound::tcp(server, SERVER_PORT).allow(Allow::policy("client-may-talk").from(client));
    MeshConfig::new().service(&service).service(&service6).inbound(&inbound)
}

impl Neighbours {
    pub(crate) fn start(name: &str, kind: &str) -> Self {
        Self::start_with(name, kind, &[])
    }

    pub(crate) fn start_with(name: &str, kind: &str, flags: &[&str]) -> Self {
        Self::of(name, kind, flags, |pod| pod)
    }

    /// With pods that differ from the usual ones.
    pub(crate) fn of(
        name: &str,
        kind: &str,
        flags: &[&str],
        pod: impl Fn(PodBuilder) -> PodBuilder,
    ) -> Self {
        let bed = Testbed::two_nodes(name);
        let node = bed.node(1);
        let (client, server) = (pod(node.pod("client")).start(), pod(node.pod("server")).start());
        let program = server.serves(kind, SERVER_PORT);
        config(&client, &server).write_to(&node.config_dir());
        let agent = node.agent().with_pod(&client).with_pod(&server).flags(flags).start();
        let this = Self { client, server, agent, program, bed };
        if flags.is_empty() {
            this.wait_for_services(2);
        }
        this
    }

    pub(crate) fn wait_for_services(&self, expected: u64) {
        eventually(&format!("{expected} services are on the kernel path"), || {
            let status = self.agent.status();
            let services = status["kernel_path"]["services"].as_u64();
            if services == Some(expected) { Ok(()) } else { Err(status) }
        });
    }

    pub(crate) fn is_off_the_kernel_path(&self, why: &str) {
        eventually(&format!("a pod is off the kernel path: {why}"), || {
            let status = self.agent.status();
            let told = status["off_kernel_path"].to_string();
            if told.contains(why) { Ok(()) } else { Err(status) }
        });
    }

    pub(crate) fn verdict(&self, name: &str) -> u64 {
        let label = format!("verdict=\"{name}\"");
        self.agent.metrics().sum("mesh_bpf_verdicts_total", &[&label]) as u64
    }

    /// How many connections the kernel has vouched for, and the agent has seen.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.verdict("authorized"), self.verdict("outbound_captured"))
    }

    pub(crate) fn talk(&self) -> tests::conversation::Conversation {
        self.client.connects(SERVER.parse().unwrap())
    }
}

#[test]
fn a_service_of_the_same_node_is_reached_without_the_agent() {
    let it = Neighbours::start("kernel-echo", "echo");
    let mut talk = it.talk();
    talk.echoes("plain words").echoes("and more");
    eventually("the connection is listed", || {
        let live = it.agent.connections();
        let of_kernel = live
            .as_array()
            .map_or(0, |live| live.iter().filter(|row| row["path"] == "kernel").count());
        if of_kernel == 2 { Ok(()) } else { Err(live) }
    });
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    assert_eq!(it.counts(), (1, 0));
    for direction in ["outbound", "inbound"] {
        let entry = it.agent.logs_access(&[&format!("\"{direction}\"")]);
        assert_eq!(entry["path"], "kernel", "{entry}");
        assert_eq!(entry["source_identity"], it.client.identity(), "{entry}");
        assert_eq!(entry["destination_identity"], it.server.identity(), "{entry}");
        assert_eq!(entry["bytes_received"], 19, "{entry}");
        assert_eq!(entry["bytes_sent"], 19, "{entry}");
        assert_eq!(entry["response_flags"], "-", "{entry}");
    }
    let entry = it.agent.logs_access(&["\"inbound\""]);
    assert_eq!(entry["policy"], "client-may-talk", "{entry}");
    let metrics = it.agent.metrics();
    for (name, expected) in [
        ("istio_tcp_connections_opened_total", 2.0),
        ("istio_tcp_connections_closed_total", 2.0),
        ("istio_tcp_received_bytes_total", 38.0),
        ("mesh_captured_connections_total", 0.0),
    ] {
        assert!((metrics.sum(name, &[]) - expected).abs() < 0.5, "{name}: {}", metrics.text());
    }
}

#[test]
fn both_applications_see_true_addresses() {
    let it = Neighbours::start("kernel-addresses", "who");
    let heard = it.talk().expect_closed();
    assert!(heard.contains(&format!("you are {} ", it.client.ip())), "{heard}");
    assert!(heard.contains(&format!("I am {} {SERVER_PORT}", it.server.ip())), "{heard}");
    let asked = it.client.run_peer(&["asks", SERVER]).expect_success();
    assert!(asked.stdout().contains(&format!("peer {SERVER}")), "getpeername: {asked}");
    let heard = it.client.connects(SERVER6.parse().unwrap()).expect_closed();
    assert!(heard.contains(&format!("you are {} ", it.client.ip6())), "{heard}");
    let heard = it.client.connects_mapped(SERVER.parse().unwrap()).expect_closed();
    assert!(heard.contains(&format!("you are {} ", it.client.ip())), "{heard}");
    assert_eq!(it.counts(), (4, 0));
}

#[test]
fn who_policy_does_not_let_in_stays_out() {
    let it = Neighbours::start("kernel-deny", "greet");
    let stranger = it.bed.node(1).pod("stranger").start();
    it.agent.enroll(&stranger);
    // Enrolled, but of another identity: through the agent, and denied there.
    stranger.connects(SERVER.parse().unwrap()).expect_cut_off();
    let entry = it.agent.logs_access(&[&stranger.identity(), "\"inbound\""]);
    assert_eq!(entry["response_flags"], "UAEX", "{entry}");
    // Straight to the pod: nobody vouches for it.
    stranger.connects(it.server.at(SERVER_PORT)).expect_cut_off();
    // Not enrolled at all: plaintext, refused.
    let outsider = it.bed.node(1).pod("outsider").start();
    outsider.connects(it.server.at(SERVER_PORT)).expect_cut_off();
    assert_eq!(it.counts().0, 0);
    it.talk().hears("220 ready");
    assert_eq!(it.counts().0, 1);
}

#[test]
fn a_change_of_policy_cuts_a_live_connection() {
    let it = Neighbours::start("kernel-revoke", "echo");
    let stranger = it.bed.node(1).pod("stranger").start();
    let mut talk = it.talk();
    talk.echoes("allowed");
    // What does not concern it leaves it alone.
    let other = Service::tcp("other", "10.96.0.21:9000").backed_by(&it.server, SERVER_PORT);
    it.agent.configure(&config(&it.client, &it.server).service(&other));
    it.wait_for_services(3);
    talk.echoes("still allowed");
    it.agent.configure(&config(&stranger, &it.server));
    let begun = std::time::Instant::now();
    let (_, how) = talk.rest();
    eprintln!("cut {:?} after the configuration was in force", begun.elapsed());
    assert_eq!(how, end::RESET);
    let entry = it.agent.logs_access(&["\"inbound\"", "after a change of configuration"]);
    assert_eq!(entry["path"], "kernel", "{entry}");
    assert_eq!(entry["response_flags"], "UAEX", "{entry}");
    it.talk().expect_cut_off();
    it.agent.configure(&config(&it.client, &it.server));
    it.wait_for_services(2);
    it.talk().echoes("again");
}

#[test]
fn without_the_agent_old_connections_live_and_new_ones_are_refused() {
    let mut it = Neighbours::start("kernel-dead", "echo");
    let mut talk = it.talk();
    talk.echoes("before");
    it.agent.kill_9();
    talk.echoes("during");
    it.talk().expect_refused();
    it.agent.restart();
    talk.echoes("after");
    it.wait_for_services(2);
    it.talk().echoes("new");
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    // The new agent has taken the old connection over.
    let entry = it.agent.logs_access(&["\"inbound\"", "\"bytes_received\":17"]);
    assert_eq!(entry["path"], "kernel", "{entry}");
}

#[test]
fn where_verdicts_are_kept_services_outlive_the_agent_and_nothing_else_gets_in() {
    let mut it = Neighbours::start_with("kernel-keep", "echo", &["--agent-down", "keep"]);
    let stranger = it.bed.node(1).pod("stranger").start();
    it.agent.enroll(&stranger);
    let outsider = it.bed.node(1).pod("outsider").start();
    it.wait_for_services(2);
    it.agent.kill_9();
    it.talk().echoes("without the agent");
    it.client.connects(SERVER6.parse().unwrap()).echoes("over IPv6");
    // Denied, no service, no service of a pod's own address, not enrolled.
    stranger.connects(SERVER.parse().unwrap()).expect_refused();
    it.client.connects("10.96.0.99:9000".parse().unwrap()).expect_refused();
    it.client.connects(it.server.at(SERVER_PORT)).expect_refused();
    outsider.connects(it.server.at(SERVER_PORT)).expect_refused();

    // The new agent takes over what was opened meanwhile, and finds it denied by now.
    let mut talk = it.talk();
    talk.echoes("opened without an agent");
    config(&stranger, &it.server).write_to(&it.bed.node(1).config_dir());
    it.agent.restart();
    assert_eq!(talk.rest().1, end::RESET);
    it.wait_for_services(2);
    it.talk().expect_cut_off();
    stranger.connects(SERVER.parse().unwrap()).echoes("allowed now");
    // What the new one has compiled is kept in turn.
    it.agent.kill_9();
    it.talk().expect_refused();
    stranger.connects(SERVER.parse().unwrap()).echoes("still allowed");
}

#[test]
fn verdicts_are_kept_where_both_workloads_say_so_and_no_longer_than_their_agent_likes() {
    let first = std::cell::Cell::new(true);
    let mut it = Neighbours::of("kernel-keep-one", "echo", &[], |pod| {
        // The client's comes first.
        if first.replace(false) { pod.agent_down("keep") } else { pod }
    });
    let willing = it.bed.node(1).pod("willing").agent_down("keep").start();
    let _echo = willing.serves("echo", SERVER_PORT);
    it.agent.enroll(&willing);
    let other = "10.96.0.22:9000";
    let service = Service::tcp("willing", other).backed_by(&willing, SERVER_PORT);
    let inbound = Inbound::tcp(&willing, SERVER_PORT).allow(Allow::policy("p").from(&it.client));
    it.agent.configure(&config(&it.client, &it.server).service(&service).inbound(&inbound));
    it.wait_for_services(3);
    it.agent.kill_9();
    it.client.connects(other.parse().unwrap()).echoes("both of them");
    it.talk().expect_refused();
    // Nothing is kept of what an agent finds that does not use the kernel path.
    it.agent.restart_with(&["--kernel-path", "off"]);
    it.client.connects(other.parse().unwrap()).echoes("by the agent");
    it.agent.kill_9();
    it.client.connects(other.parse().unwrap()).expect_refused();
}

#[test]
fn a_pod_that_is_unenrolled_loses_its_connections_and_its_rights() {
    let it = Neighbours::start("kernel-unenrol", "echo");
    let mut talk = it.talk();
    talk.echoes("before");
    it.agent.unenroll(&it.client);
    assert_eq!(talk.rest().1, end::RESET);
    it.client.connects(it.server.at(SERVER_PORT)).expect_cut_off();
    it.agent.enroll(&it.client);
    it.wait_for_services(2);
    it.talk().echoes("again");
}

#[test]
fn switched_off_everything_goes_through_the_agent() {
    let it = Neighbours::start_with("kernel-off", "echo", &["--kernel-path", "off"]);
    it.talk().echoes("proxied");
    assert_eq!(it.counts(), (0, 1));
    let status = it.agent.status();
    assert_eq!(status["kernel_path"]["off"], "switched off", "{status}");
}

#[test]
fn bulk_bursts_resets_and_refusals_are_plain_tcp() {
    let it = Neighbours::start("kernel-bulk", "digest");
    let bytes = (256_u32 << 20).to_string();
    it.client.run_peer(&["transfer", SERVER, &bytes, &bytes, "1"]).expect_success();
    it.client.run_peer(&["transfer", SERVER, "10000", "10000", "1000"]).expect_success();
    assert_eq!(it.counts(), (1001, 0));
    it.program.kill_9();
    it.talk().expect_refused();
    let entry = it.agent.logs_access(&["\"outbound\"", "\"UF\""]);
    assert_eq!(entry["path"], "kernel", "{entry}");
    eventually("nothing is left behind", || {
        let live = it.agent.connections();
        if live.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(live) }
    });
}

#[test]
fn who_borrows_an_authorized_address_and_port_gets_nowhere() {
    let it = Neighbours::start("kernel-spoof", "echo");
    let thief = it.bed.node(1).pod("thief").start();
    thief.netns().ip(&[&format!("addr add {}/32 dev lo", it.client.ip())]);
    let mut talk = it.talk();
    talk.echoes("mine");
    let seen = it.verdict("inbound_authorized");
    let mut port = String::new();
    eventually("the connection is listed", || {
        let live = it.agent.connections();
        let source = live[0]["source"].as_str().and_then(|source| source.rsplit_once(':'));
        port = source.map(|(_, port)| port.to_owned()).unwrap_or_default();
        if port.is_empty() { Err(live) } else { Ok(()) }
    });
    let steal = || {
        let url = format!("http://{}/", it.server.at(SERVER_PORT));
        let client = it.client.ip().to_string();
        let borrowed = ["--interface", &client, "--local-port", &port, "--connect-timeout", "1"];
        let sent = thief.curl(&url).arguments(&borrowed).send();
        assert_eq!(sent.status(), None, "{}", sent.ran());
        // It did not connect: 7 refused, 28 timed out.
        assert!(matches!(sent.ran().code(), Some(7 | 28)), "{}", sent.ran());
    };
    steal();
    talk.echoes("still mine");
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    steal();
    assert_eq!(it.verdict("inbound_authorized"), seen);
}

#[test]
fn a_server_that_answers_with_syn_cookies_is_reached_too() {
    let it = Neighbours::start("kernel-cookies", "echo");
    // Always: the handshake's last segment looks the listener up like a SYN.
    it.server.netns().sysctl("net.ipv4.tcp_syncookies", "2");
    let before = it.verdict("inbound_authorized");
    it.talk().echoes("over IPv4");
    it.client.connects(SERVER6.parse().unwrap()).echoes("over IPv6");
    assert_eq!(it.verdict("inbound_authorized"), before + 4);
    let outsider = it.bed.node(1).pod("outsider").start();
    outsider.connects(it.server.at(SERVER_PORT)).expect_cut_off();
}

#[test]
fn a_port_that_is_left_alone_is_reached_too() {
    let it = Neighbours::start("kernel-excluded", "echo");
    it.agent.unenroll(&it.server);
    let open = it.bed.node(1).pod("open").without_inbound_port(SERVER_PORT).start();
    let _echo = open.serves("echo", SERVER_PORT);
    it.agent.enroll(&open);
    it.agent.configure(&config(&it.client, &open));
    it.wait_for_services(2);
    let mut talk = it.talk();
    for words in ["one", "two"] {
        talk.echoes(words);
        // Longer than the agent takes to find fault with it.
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(it.counts(), (1, 0));
}

#[test]
fn a_connection_whose_service_is_removed_drains_and_is_cut_then() {
    let it = Neighbours::start_with("kernel-drain", "echo", &["--drain-timeout", "2s"]);
    it.wait_for_services(2);
    let (mut talk, mut other) = (it.talk(), it.client.connects(SERVER6.parse().unwrap()));
    talk.echoes("before");
    other.echoes("other");
    let service6 = Service::tcp("server6", SERVER6).backed_by_ipv6(&it.server, SERVER_PORT);
    let inbound = Inbound::tcp(&it.server, SERVER_PORT).allow(Allow::policy("p").from(&it.client));
    it.agent.configure(&MeshConfig::new().service(&service6).inbound(&inbound));
    let (_, how) = talk.rest();
    assert_eq!(how, end::RESET);
    let entry = it.agent.logs_access(&["\"outbound\"", "cut at the drain timeout"]);
    assert_eq!((&entry["path"], &entry["response_flags"]), (&"kernel".into(), &"DT".into()));
    other.echoes("still there");
}

#[test]
fn a_syn_that_leaves_late_is_judged_when_it_leaves() {
    let it = Neighbours::start("kernel-late", "echo");
    let dials = || {
        let before = it.verdict("outbound_kernel_path");
        let talk = it.client.connects_late(SERVER.parse().unwrap());
        eventually("the application has dialled", || {
            match it.verdict("outbound_kernel_path") - before {
                0 => Err("not yet"),
                _ => Ok(()),
            }
        });
        talk
    };
    dials().echoes("with the SYN");
    assert_eq!(it.counts(), (1, 0));

    let mut revoked = dials();
    let stranger = it.bed.node(1).pod("stranger").start();
    it.agent.configure(&config(&stranger, &it.server));
    it.wait_for_services(0);
    revoked.says("too late\n").expect_cut_off();
    assert_eq!((it.counts().0, it.verdict("kernel_path_stale")), (1, 1));
    assert!(it.verdict("guard_uncaptured") > 0, "{}", it.agent.status());
    it.agent.configure(&config(&it.client, &it.server));
    it.wait_for_services(2);

    // The pod is gone, and its address leads to another node.
    let mut moved = dials();
    it.agent.unenroll(&it.server);
    let wire = it.bed.wire().capture();
    let (there, _) = it.bed.node(2).wire_addresses();
    it.bed.node(1).netns().ip(&[&format!("route replace {}/32 via {there}", it.server.ip())]);
    moved.says("words for a pod that is gone\n").expect_cut_off();
    wire.expect_no_trace_of("words for a pod");

    let veth = it.server.veth();
    it.bed.node(1).netns().ip(&[&format!("route replace {}/32 dev {veth}", it.server.ip())]);
    it.agent.enroll(&it.server);
    it.wait_for_services(2);
    let mut orphan = dials();
    it.agent.kill_9();
    orphan.says("to an orphan\n").expect_cut_off();
}
