//! The kernel path between pods of one node, with `redirect_peer` and without.
//!
//! Each road is a node's own: the settings are an agent's.

use std::time::Duration;

use tests::{Agent, Allow, Inbound, MeshConfig, Pod, Process, Service, Testbed, eventually};

const WEB_PORT: u16 = 8080;
const SINK_PORT: u16 = 9000;

/// How a request goes from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Road {
    /// Between pods nobody knows of.
    Plain,
    Kernel,
    Redirected,
}

const ROADS: [Road; 3] = [Road::Plain, Road::Kernel, Road::Redirected];

/// A node's pair of pods, and where the client finds the server.
struct Pair {
    client: Pod,
    web: String,
    sink: String,
}

/// Everything that runs while it is measured.
struct Bed {
    pairs: [Pair; 3],
    _agents: [Agent; 2],
    _programs: Vec<Process>,
    _bed: Testbed,
}

/// The median of each measure, per round: (1 connection's p50 in µs, connections per
/// second, bits per second).
type Round = [f64; 3];

const MEASURES: [(&str, f64); 3] =
    [("GET p50 µs", 1.0), ("connect, GET, close per s", 1.0), ("1 stream Gbit/s", 1e-9)];

impl Bed {
    fn start() -> Self {
        let bed = Testbed::two_nodes("bench-kernel");
        let mut programs = Vec::new();
        let mut pair = |number: u8, suffix: &str| {
            let node = bed.node(number);
            let client = node.pod(&format!("client{suffix}")).start();
            let server = node.pod(&format!("server{suffix}")).start();
            programs.push(server.runs_nginx(WEB_PORT));
            programs.push(server.serves("sink", SINK_PORT));
            (client, server)
        };
        let plain = pair(1, "-plain");
        let kernel = pair(2, "");
        let redirected = pair(1, "");
        let agent = |(client, server): &(Pod, Pod), redirect| {
            let allow = || Allow::policy("client").from(client);
            let node = client.node();
            MeshConfig::new()
                .service(&Service::tcp("web", "10.96.0.20:80").backed_by(server, WEB_PORT))
                .service(&Service::tcp("sink", "10.96.0.20:9000").backed_by(server, SINK_PORT))
                .inbound(&Inbound::tcp(server, WEB_PORT).allow(allow()))
                .inbound(&Inbound::tcp(server, SINK_PORT).allow(allow()))
                .write_to(&node.config_dir());
            let flags = ["--log", "info", "--kernel-path", "on", "--redirect-peer", redirect];
            node.agent().flags(&flags).with_pod(client).with_pod(server).start()
        };
        let agents = [agent(&kernel, "off"), agent(&redirected, "on")];
        for agent in &agents {
            eventually("the services are on the kernel path", || {
                let status = agent.status();
                if status["kernel_path"]["services"] == 2 { Ok(()) } else { Err(status) }
            });
        }
        let of_mesh = |(client, _): (Pod, Pod)| Pair {
            client,
            web: "10.96.0.20:80".to_owned(),
            sink: "10.96.0.20:9000".to_owned(),
        };
        let (client, server) = plain;
        let plain = Pair {
            client,
            web: server.at(WEB_PORT).to_string(),
            sink: server.at(SINK_PORT).to_string(),
        };
        let pairs = [plain, of_mesh(kernel), of_mesh(redirected)];
        Self { pairs, _agents: agents, _programs: programs, _bed: bed }
    }

    fn round(&self, road: Road, seconds: f64) -> Round {
        let pair = &self.pairs[road as usize];
        let seconds = seconds.to_string();
        let run = |arguments: &[&str]| pair.client.run_peer(arguments).expect_success().json();
        let number =
            |result: &serde_json::Value, key: &str| result[key].as_f64().unwrap_or(f64::NAN);
        let kept = run(&["load", &pair.web, "web", "1", &seconds]);
        let fresh = run(&["load", &pair.web, "web", "1", &seconds, "--fresh"]);
        let stream = run(&["blast", &pair.sink, &seconds]);
        [
            number(&kept, "p50_us"),
            number(&fresh, "requests") / number(&fresh, "seconds"),
            number(&stream, "bytes") * 8.0 / number(&stream, "seconds"),
        ]
    }
}

/// Measures in interleaved rounds and prints medians, and those of the ratios to no mesh.
pub(crate) fn show(rounds: usize, seconds: Duration) {
    let bed = Bed::start();
    let seconds = seconds.as_secs_f64();
    println!(
        "── pods of one node, one connection at a time: {rounds} interleaved rounds of {seconds} s"
    );
    for road in ROADS {
        bed.round(road, 0.3);
    }
    let all: Vec<[Round; 3]> =
        (0..rounds).map(|_| ROADS.map(|road| bed.round(road, seconds))).collect();
    print!("  {:<28}", "");
    for (name, _) in MEASURES {
        print!("{name:>28}  ratio");
    }
    println!();
    for road in ROADS {
        let name = match road {
            Road::Plain => "no mesh",
            Road::Kernel => "kernel path",
            Road::Redirected => "kernel path, redirect_peer",
        };
        print!("  {name:<28}");
        for (i, (_, unit)) in MEASURES.iter().enumerate() {
            let of = |round: &[Round; 3]| round[road as usize][i];
            let value = super::median(&all, |round| of(round) * unit);
            let ratio = super::median(&all, |round| of(round) / round[0][i]);
            print!("{value:>28.2}  ×{ratio:.2}");
        }
        println!();
    }
}
