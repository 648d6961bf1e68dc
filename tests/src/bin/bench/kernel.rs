//! Pods of one node: no mesh, the kernel path, its accelerators, and through the agent.

use std::{fs, time::Duration};

use tests::{Agent, Allow, Inbound, MeshConfig, Node, Pod, Process, Service, Testbed, eventually};

const WEB_PORT: u16 = 8080;
const SINK_PORT: u16 = 9000;

/// How a request goes from pod to pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Road {
    /// Between pods nobody knows of.
    Plain,
    Kernel,
    Redirected,
    Spliced,
    /// Through the agent of another node, whose kernel path is off.
    Proxied,
}

const ROADS: [Road; 5] =
    [Road::Plain, Road::Kernel, Road::Redirected, Road::Spliced, Road::Proxied];

impl Road {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "no mesh",
            Self::Kernel => "kernel path",
            Self::Redirected => "+ redirect_peer",
            Self::Spliced => "+ splice",
            Self::Proxied => "proxied",
        }
    }

    /// The last part of its services' addresses.
    fn service(self) -> String {
        format!("10.96.0.{}", 20 + self as u8)
    }
}

/// A client, and the servers for it.
struct Pair {
    client: Pod,
    server: Pod,
    web: String,
    sink: String,
}

/// Everything that runs while it is measured.
struct Bed {
    pairs: [Pair; 5],
    _agents: [Agent; 2],
    _programs: Vec<Process>,
    bed: Testbed,
}

/// One measure of each, in the order of [`MEASURES`].
type Round = [f64; 5];

/// Names, and what a value is multiplied by for people.
const MEASURES: [(&str, f64); 5] = [
    ("GET p50 µs", 1.0),
    ("p99 µs", 1.0),
    ("CPU µs/GET", 1.0),
    ("connections/s", 1.0),
    ("Gbit/s", 1e-9),
];

impl Pair {
    fn start(node: &Node, road: Road, programs: &mut Vec<Process>) -> Self {
        let named = |name: &str| {
            let builder = node.pod(&format!("{name}{}", road as u8));
            let (redirect, splice) = match road {
                Road::Redirected => ("on", "off"),
                Road::Spliced => ("off", "on"),
                Road::Plain | Road::Kernel | Road::Proxied => ("off", "off"),
            };
            builder.redirect_peer(redirect).splice(splice).start()
        };
        let (client, server) = (named("client"), named("server"));
        programs.push(server.runs_nginx(WEB_PORT));
        programs.push(server.serves("sink", SINK_PORT));
        let (web, sink) = match road {
            Road::Plain => (server.at(WEB_PORT).to_string(), server.at(SINK_PORT).to_string()),
            _ => (format!("{}:80", road.service()), format!("{}:9000", road.service())),
        };
        Self { client, server, web, sink }
    }

    fn configure(&self, config: MeshConfig, road: Road) -> MeshConfig {
        let (web, sink) = (format!("web-{}", road as u8), format!("sink-{}", road as u8));
        let allow = || Allow::policy("client").from(&self.client);
        config
            .service(&Service::tcp(&web, &self.web).backed_by(&self.server, WEB_PORT))
            .service(&Service::tcp(&sink, &self.sink).backed_by(&self.server, SINK_PORT))
            .inbound(&Inbound::tcp(&self.server, WEB_PORT).allow(allow()))
            .inbound(&Inbound::tcp(&self.server, SINK_PORT).allow(allow()))
    }
}

impl Bed {
    fn start() -> Self {
        let bed = Testbed::two_nodes("bench-kernel");
        let mut programs = Vec::new();
        let pairs = ROADS.map(|road| {
            let node = bed.node(if road == Road::Proxied { 2 } else { 1 });
            Pair::start(node, road, &mut programs)
        });
        let agent = |roads: &[Road], kernel_path| {
            let pairs = || roads.iter().map(|&road| (&pairs[road as usize], road));
            let node = bed.node(if roads.contains(&Road::Proxied) { 2 } else { 1 });
            pairs()
                .fold(MeshConfig::new(), |config, (pair, road)| pair.configure(config, road))
                .write_to(&node.config_dir());
            let flags = ["--log", "info", "--kernel-path", kernel_path];
            let agent = node.agent().flags(&flags);
            pairs()
                .fold(agent, |agent, (pair, _)| agent.with_pod(&pair.client).with_pod(&pair.server))
                .start()
        };
        let agents = [agent(&ROADS[1..4], "on"), agent(&ROADS[4..], "off")];
        eventually("the services are on the kernel path", || {
            let status = agents[0].status();
            if status["kernel_path"]["services"] == 6 { Ok(()) } else { Err(status) }
        });
        Self { pairs, _agents: agents, _programs: programs, bed }
    }

    /// CPU time of everything in the bed, kernel included.
    fn cpu(&self) -> Duration {
        let stat = self.bed.run().cgroup().join("cpu.stat");
        let text = fs::read_to_string(stat).unwrap_or_default();
        let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Duration::from_micros(usec.unwrap_or_default())
    }

    fn round(&self, road: Road, seconds: f64) -> Round {
        let pair = &self.pairs[road as usize];
        let seconds = seconds.to_string();
        let run = |arguments: &[&str]| pair.client.run_peer(arguments).expect_success().json();
        let number =
            |result: &serde_json::Value, key: &str| result[key].as_f64().unwrap_or(f64::NAN);
        let before = self.cpu();
        let kept = run(&["load", &pair.web, "web", "1", &seconds]);
        let used = self.cpu().saturating_sub(before).as_secs_f64() * 1e6;
        let fresh = run(&["load", &pair.web, "web", "16", &seconds, "--fresh"]);
        let stream = run(&["blast", &pair.sink, &seconds]);
        [
            number(&kept, "p50_us"),
            number(&kept, "p99_us"),
            used / number(&kept, "requests"),
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
        "── pods of one node: {rounds} interleaved rounds of {seconds} s; GET and its CPU by one \
         connection, connections 16 at a time, one stream"
    );
    for road in ROADS {
        bed.round(road, 0.3);
    }
    let all: Vec<[Round; 5]> =
        (0..rounds).map(|_| ROADS.map(|road| bed.round(road, seconds))).collect();
    print!("  {:<16}", "");
    for (name, _) in MEASURES {
        print!("{name:>16}  ratio");
    }
    println!();
    for road in ROADS {
        print!("  {:<16}", road.name());
        for (i, (_, unit)) in MEASURES.iter().enumerate() {
            let of = |round: &[Round; 5]| round[road as usize][i];
            let value = super::median(&all, |round| of(round) * unit);
            let ratio = super::median(&all, |round| of(round) / round[0][i]);
            print!("{value:>16.2}  ×{ratio:.2}");
        }
        println!();
    }
}
