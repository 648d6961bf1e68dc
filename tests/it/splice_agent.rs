//! Sockets of applications and of the agent that hand each other their data past TCP.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    Agent, Allow, Capture, Inbound, MeshConfig, Pod, Process, Service, Testbed,
    conversation::end,
    eventually,
    mesh::{SERVER, SERVER_PORT, SERVER6},
};

/// A pod and an agent on each of two nodes.
struct Pair {
    client: Pod,
    server: Pod,
    /// The client's and the server's.
    agents: [Agent; 2],
    wire: Capture,
    _program: Process,
    _bed: Testbed,
}

fn mesh(client: &Pod, server: &Pod) -> MeshConfig {
    let service = Service::tcp("server", SERVER).at(SERVER6).backed_by(server, SERVER_PORT);
    let inbound = Inbound::tcp(server, SERVER_PORT).allow(Allow::policy("all").from(client));
    MeshConfig::new().service(&service).inbound(&inbound)
}

impl Pair {
    fn start(name: &str, kind: &str) -> Self {
        Self::start_with(name, kind, "on")
    }

    fn start_with(name: &str, kind: &str, mode: &str) -> Self {
        let bed = Testbed::two_nodes(name);
        let client = bed.node(1).pod("client").start();
        let server = bed.node(2).pod("server").start();
        let program = server.serves(kind, SERVER_PORT);
        let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
            let node = bed.node(number);
            mesh(&client, &server).write_to(&node.config_dir());
            node.agent().with_pod(pod).flags(&["--splice", mode]).start()
        });
        let wire = bed.wire().capture();
        let this = Self { client, server, agents, wire, _program: program, _bed: bed };
        for agent in &this.agents {
            eventually("the kernel is tested and the result acted on", || {
                let status = agent.status();
                let waits = &status["kernel_path"]["splice"]["agent_off"];
                let tested = !status["self_test"].is_null();
                if tested && (waits.is_null() || mode != "on") { Ok(()) } else { Err(status) }
            });
        }
        if mode == "on" {
            this.wait_until_spliced();
        }
        this
    }

    /// What was tested is acted on a little later.
    fn wait_until_spliced(&self) {
        eventually("both ends are spliced", || {
            let before = self.entered();
            self.client.run_peer(&["asks", SERVER]).expect_success();
            let after = self.entered();
            if [0, 1].iter().all(|end| after[*end] > before[*end]) { Ok(()) } else { Err(after) }
        });
    }

    /// Waits until no connection is left that could still be counted.
    fn is_quiet(&self) {
        for agent in &self.agents {
            eventually("earlier connections have ended", || {
                let live = agent.connections();
                if live.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(live) }
            });
        }
    }

    fn talk(&self) -> tests::conversation::Conversation {
        self.client.connects(SERVER.parse().unwrap())
    }

    /// A verdict's count at the client's and at the server's agent.
    fn verdicts(&self, name: &str) -> [u64; 2] {
        self.agents.each_ref().map(|agent| verdict(agent, name))
    }

    fn entered(&self) -> [u64; 2] {
        self.verdicts("splice_agent_entered")
    }

    /// How many directions were spliced, or stay on TCP although they could be.
    fn directions(&self) -> [u64; 2] {
        let (begun, left) = (self.verdicts("splice_begun"), self.verdicts("splice_left"));
        [begun[0] + left[0], begun[1] + left[1]]
    }

    /// Waits until nothing of a connection is left in any map.
    fn is_empty(&self) {
        for agent in &self.agents {
            eventually("nothing is left behind", || {
                let left = ["SPLICED", "LEGS", "GRANTS"].map(|map| entries(agent, map));
                if left == [0; 3] { Ok(()) } else { Err(left) }
            });
        }
    }

    fn was_never_in_the_clear(&self, secret: &str) {
        self.wire.expect_only_tls();
        self.wire.expect_no_trace_of(secret);
    }
}

fn verdict(agent: &Agent, name: &str) -> u64 {
    agent.metrics().sum("mesh_bpf_verdicts_total", &[&format!("verdict=\"{name}\"")]) as u64
}

fn entries(agent: &Agent, name: &str) -> u64 {
    let status = agent.status();
    let maps = status["maps"].as_array().expect("maps");
    let map = maps.iter().find(|map| map["map"] == name).expect("that map");
    map["entries"].as_u64().expect("a number")
}

fn added(before: [u64; 2], after: [u64; 2]) -> [u64; 2] {
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn bytes_arrive_whole_and_are_told_at_both_agents() {
    let it = Pair::start("splice-agent-bulk", "digest");
    for bytes in [64_u32 << 10, 1 << 20, 16 << 20, 64 << 20] {
        it.is_quiet();
        let before = (it.entered(), it.directions());
        let bytes = bytes.to_string();
        it.client.run_peer(&["transfer", SERVER, &bytes, &bytes, "1"]).expect_success();
        assert_eq!(added(before.0, it.entered()), [2, 2], "each node has two ends");
        assert_eq!(added(before.1, it.directions()), [2, 2], "and two directions");
    }
    // Whoever accepts is always there when it sends; who dials may send first.
    let begun = it.verdicts("splice_begun");
    assert!(begun[0] >= 4 && begun[1] >= 4, "{begun:?}");
    for agent in &it.agents {
        let entry = agent.logs_access(&[&((64_u32 << 20) + 16).to_string()]);
        assert_eq!(entry["bytes_sent"], (64 << 20) + 32, "{entry}");
    }
    it.is_empty();
    it.wire.expect_only_tls();
}

#[test]
fn a_half_close_is_passed_on_and_answered() {
    let it = Pair::start("splice-agent-half", "echo");
    it.is_quiet();
    let before = it.directions();
    let mut talk = it.talk();
    talk.echoes("a secret").echoes("and more of the secret");
    assert_eq!(added(before, it.directions()), [2, 2]);
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    for agent in &it.agents {
        let entry = agent.logs_access(&["\"bytes_received\":30"]);
        assert_eq!(entry["response_flags"], "-", "{entry}");
        assert_eq!(entry["bytes_sent"], 30, "{entry}");
    }
    // Data of both ways in flight when one ends.
    let whole = ["echoed", SERVER, "1048576", "4", "--again"];
    it.client.run_peer(&whole).expect_success();
    it.is_empty();
    it.was_never_in_the_clear("secret");
}

#[test]
fn a_socket_that_connects_again_talks_to_nobody_of_before() {
    let it = Pair::start("splice-agent-again", "once");
    it.is_quiet();
    let before = it.directions();
    it.client.run_peer(&["parts", "200", SERVER]).expect_success();
    let after = it.directions();
    assert_eq!(after[0] - before[0], 400, "{before:?} {after:?}");
    assert_eq!(it.verdicts("splice_refused"), [0, 0]);
    it.is_quiet();
    it.wire.expect_only_tls();
}

#[test]
fn over_every_address_family() {
    let it = Pair::start("splice-agent-families", "echo");
    it.is_quiet();
    let before = it.directions();
    it.client.connects(SERVER6.parse().unwrap()).echoes("a secret over IPv6");
    it.client.connects_mapped(SERVER.parse().unwrap()).echoes("a secret by a mapped address");
    assert_eq!(added(before, it.directions()), [4, 4]);
    it.is_empty();
    it.was_never_in_the_clear("secret");
}

#[test]
fn a_reset_is_passed_on_either_way() {
    let it = Pair::start("splice-agent-reset", "echo");
    let mut talk = it.talk();
    talk.echoes("allowed");
    let nobody = MeshConfig::new()
        .service(&Service::tcp("server", SERVER).backed_by(&it.server, SERVER_PORT))
        .inbound(&Inbound::tcp(&it.server, SERVER_PORT));
    it.agents[1].configure(&nobody);
    assert_eq!(talk.rest().1, end::RESET);
    it.talk().expect_cut_off();
    it.is_empty();
    it.was_never_in_the_clear("allowed");
}

#[test]
fn two_hundred_and_fifty_connections_at_once() {
    let it = Pair::start("splice-agent-many", "digest");
    it.is_quiet();
    let before = it.entered();
    it.client.run_peer(&["transfer", SERVER, "100000", "100000", "250"]).expect_success();
    assert_eq!(added(before, it.entered()), [500, 500]);
    assert_eq!(it.verdicts("splice_refused"), [0, 0]);
    it.is_empty();
    it.wire.expect_only_tls();
}

/// What may be between a sender and a reader that does not read, over both nodes: the
/// sockets' own buffers, HTTP/2's windows, and what the agents let wait.
const BETWEEN: u64 = 48 << 20;

/// The most bytes that a connection has moved each way, as an agent counts them.
fn moved(agent: &Agent) -> (u64, u64) {
    let live = agent.connections();
    let rows = live.as_array().cloned().unwrap_or_default();
    let most = |name: &str| rows.iter().filter_map(|row| row[name].as_u64()).max();
    (most("bytes_received").unwrap_or_default(), most("bytes_sent").unwrap_or_default())
}

#[test]
fn who_does_not_read_holds_up_who_writes() {
    let it = Pair::start("splice-agent-mute", "mute");
    let talk = format!(
        "head -c 2000000000 /dev/zero | {} talk {SERVER}",
        tests::process::peer().display()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &talk]);
    let before = it.verdicts("splice_overdrawn");
    let _writer = it.client.starts("writer", command);
    eventually("the writer is left to TCP, which holds it up", || {
        let overdrawn = it.verdicts("splice_overdrawn");
        if overdrawn[0] > before[0] { Ok(()) } else { Err((overdrawn, moved(&it.agents[0]))) }
    });
    for _ in 0..20 {
        let (up, down) = (moved(&it.agents[0]), moved(&it.agents[1]));
        assert!(up.0 < BETWEEN && down.0 < BETWEEN, "{up:?} {down:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    it.wire.expect_only_tls();
}

/// Each message is memory of the kernel's that no socket is charged for.
#[test]
fn short_messages_that_nobody_reads_are_left_to_tcp() {
    let it = Pair::start("splice-agent-crumbs", "echo");
    it.is_quiet();
    let before = it.verdicts("splice_overdrawn");
    let server = it.agents[1].process();
    server.signal(Signal::SIGSTOP);
    let mut command = std::process::Command::new(tests::process::peer());
    command.args(["crumbs", SERVER, "20000"]);
    let crumbs = it.client.starts("crumbs", command);
    eventually("the client is left to TCP", || {
        let overdrawn = verdict(&it.agents[0], "splice_overdrawn");
        if overdrawn > before[0] { Ok(()) } else { Err(overdrawn) }
    });
    server.signal(Signal::SIGCONT);
    // Maybe too late for its timeouts.
    crumbs.wait();
    it.is_quiet();
    it.client.run_peer(&["crumbs", SERVER, "20000"]).expect_success();
    it.is_empty();
    it.wire.expect_only_tls();
}

#[test]
fn the_agent_waits_for_an_application_that_does_not_read() {
    let it = Pair::start("splice-agent-source", "source");
    let talk =
        format!("sleep 1000 | {} talk {SERVER} | sleep 1000", tests::process::peer().display());
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &talk]);
    let before = it.verdicts("splice_overdrawn");
    let _reader = it.client.starts("reader", command);
    eventually("the server's program is left to TCP, which holds it up", || {
        let overdrawn = it.verdicts("splice_overdrawn");
        if overdrawn[1] > before[1] { Ok(()) } else { Err((overdrawn, moved(&it.agents[1]))) }
    });
    for _ in 0..20 {
        let (up, down) = (moved(&it.agents[0]), moved(&it.agents[1]));
        assert!(up.1 < BETWEEN && down.1 < BETWEEN, "{up:?} {down:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    it.wire.expect_only_tls();
}

#[test]
fn a_dead_agent_takes_its_connections_along_and_nothing_leaks() {
    for end in [0, 1] {
        let name = format!("splice-agent-dead-{end}");
        let mut it = Pair::start(&name, "echo");
        let mut talk = it.talk();
        talk.echoes("a secret before");
        it.agents[end].kill_9();
        talk.says("a secret into the void");
        assert!(matches!(talk.rest().1, end::CLOSED | end::RESET));
        if end == 0 {
            it.talk().expect_refused();
        }
        it.agents[end].restart();
        it.wait_until_spliced();
        it.talk().echoes("a secret afterwards");
        it.was_never_in_the_clear("secret");
    }
}

#[test]
fn auto_splices_the_agent_only_where_every_check_passes() {
    let it = Pair::start_with("splice-agent-auto", "echo", "auto");
    let mut failed = Vec::new();
    eventually("the result is acted on", || {
        let status = it.agents[0].status();
        let checks = status["self_test"]["checks"].as_array().cloned().unwrap_or_default();
        let fails = |check: &&Value| check["kind"] != "feature" && check["passed"] == false;
        failed = checks.iter().filter(fails).cloned().collect();
        let off = status["kernel_path"]["splice"]["agent_off"].to_string();
        let told = failed.iter().all(|check| off.contains(check["name"].as_str().unwrap()));
        if !checks.is_empty() && told { Ok(()) } else { Err(status) }
    });
    it.talk().echoes("one").echoes("two");
    if failed.is_empty() {
        it.wait_until_spliced();
    } else {
        assert_eq!((it.entered(), it.verdicts("splice_begun")), ([0, 0], [0, 0]));
    }
}

#[test]
fn a_workload_may_want_it_or_not() {
    let bed = Testbed::two_nodes("splice-agent-workload");
    let node = bed.node(1);
    let (wants, not) = (node.pod("wants").splice("on").start(), node.pod("not").start());
    let server = bed.node(2).pod("server").start();
    let _echo = server.serves("echo", SERVER_PORT);
    let service = Service::tcp("server", SERVER).backed_by(&server, SERVER_PORT);
    let allow = Allow::policy("both").from(&wants).from(&not);
    let inbound = Inbound::tcp(&server, SERVER_PORT).allow(allow);
    let config = MeshConfig::new().service(&service).inbound(&inbound);
    let agents = [(1, vec![&wants, &not]), (2, vec![&server])].map(|(number, pods)| {
        let node = bed.node(number);
        config.write_to(&node.config_dir());
        let agent = node.agent().flags(&["--splice", "auto"]);
        pods.into_iter().fold(agent, |agent, pod| agent.with_pod(pod)).start()
    });
    let to: std::net::SocketAddr = SERVER.parse().unwrap();
    eventually("the one that wants it is spliced", || {
        wants.connects(to).echoes("yes");
        let entered = verdict(&agents[0], "splice_agent_entered");
        if entered > 0 { Ok(()) } else { Err(entered) }
    });
    let fails = agents[0].status()["kernel_path"]["splice"]["agent_off"] != json!(null);
    if fails {
        let before = verdict(&agents[0], "splice_agent_entered");
        not.connects(to).echoes("no");
        assert_eq!(verdict(&agents[0], "splice_agent_entered"), before);
        assert_eq!(verdict(&agents[1], "splice_agent_entered"), 0);
    }
}

#[test]
fn requests_go_past_tcp_at_both_ends() {
    let bed = Testbed::two_nodes("splice-agent-http");
    let client = bed.node(1).pod("client").start();
    let server = bed.node(2).pod("server").start();
    let _nginx = server.runs_nginx(8080);
    let service = Service::http("web", "10.96.0.60:80").backed_by(&server, 8080);
    let inbound = Inbound::http(&server, 8080).allow(Allow::policy("all").from(&client));
    let config = MeshConfig::new().service(&service).inbound(&inbound);
    let agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let node = bed.node(number);
        config.write_to(&node.config_dir());
        node.agent().with_pod(pod).flags(&["--splice", "on"]).start()
    });
    let wire = bed.wire().capture();
    let get = || {
        let curl = client.curl("http://10.96.0.60/").header("x-words: a secret");
        curl.expect_status(200);
    };
    eventually("both ends are spliced", || {
        get();
        let entered = agents.each_ref().map(|agent| verdict(agent, "splice_agent_entered"));
        if entered.iter().all(|entered| *entered > 0) { Ok(()) } else { Err(entered) }
    });
    for _ in 0..20 {
        get();
    }
    wire.expect_only_tls();
    wire.expect_no_trace_of("secret");
}

/// Hides from whoever asks for sockets by their addresses alone, and never reads.
const HIDES: &str = "
import socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if sys.argv[2] == 'listener':
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')
listener.bind(('0.0.0.0', int(sys.argv[1])))
listener.listen(64)
held = []
while True:
    s, _ = listener.accept()
    if sys.argv[2] == 'later':
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
    held.append(s)
";

#[test]
fn an_application_that_hides_its_socket_gets_no_more_than_others() {
    for how in ["listener", "later"] {
        let it = Pair::start(&format!("splice-agent-hides-{how}"), "echo");
        it.is_quiet();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", HIDES, &SERVER_PORT.to_string(), how]);
        it._program.kill_9();
        let _hides = it.server.starts("hides", command);
        eventually("it listens", || {
            let ports = it.server.netns().listening_ports();
            if ports.contains(&SERVER_PORT) { Ok(()) } else { Err(ports) }
        });
        let talk = format!(
            "head -c 2000000000 /dev/zero | {} talk {SERVER}",
            tests::process::peer().display()
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &talk]);
        let writer = it.client.starts("writer", command);
        // It is cut, or goes on and is held up.
        let mut most = 0;
        for _ in 0..60 {
            let (up, down) = (moved(&it.agents[0]), moved(&it.agents[1]));
            most = most.max(up.0).max(down.0);
            assert!(most < BETWEEN, "{how}: {up:?} {down:?}");
            if writer.ended().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        it.wire.expect_only_tls();
    }
}
