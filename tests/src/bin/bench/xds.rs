//! How the configuration from a control plane scales, and how fast a change of it is.
//!
//! The control plane is the tests' own, in Python: what it needs to make a response, from the
//! change of its state to the response that it hands over, is shown by itself. What is left
//! is from there to the first connection that ends at the new endpoint.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tests::{
    Agent, MeshConfig, Pod, Service, Testbed, control_plane::ControlPlane, eventually_within, http,
};

/// Clusters, of ten endpoints each, each with an opaque outbound listener.
const SIZES: [u64; 3] = [1_000, 3_000, 10_000];
const ENDPOINTS: u64 = 10;
const CHANGES: usize = 60;

const SERVICE: &str = "10.96.0.20:9000";
const PORT: u16 = 9000;
const LONG: Duration = Duration::from_secs(180);

/// Measures and prints.
pub(crate) fn show() {
    println!(
        "── configuration by delta ADS: {ENDPOINTS} endpoints and an outbound listener a cluster"
    );
    println!(
        "  {:>9}{:>14}{:>12}{:>14}{:>26}{:>26}",
        "clusters",
        "in force s",
        "RSS MiB",
        "KiB/cluster",
        "one endpoint ms p50/p99",
        "before it, the server's"
    );
    let mut empty = 0.0;
    for clusters in std::iter::once(0).chain(SIZES) {
        let (loaded, rss, changes) = of(clusters);
        if clusters == 0 {
            empty = rss;
        }
        let each = (rss - empty) * 1024.0 / clusters.max(1) as f64;
        println!(
            "  {clusters:>9}{loaded:>14.2}{rss:>12.1}{each:>14.1}{:>26}{:>26}",
            spread(changes.iter().map(|change| change.agent)),
            spread(changes.iter().map(|change| change.server)),
        );
    }
}

/// One change of one endpoint, in seconds.
struct Change {
    /// From the change of the control plane's state to its response.
    server: f64,
    /// From its response to the first connection that goes to the new endpoint.
    agent: f64,
}

/// Median and 99th percentile, in milliseconds.
fn spread(seconds: impl Iterator<Item = f64>) -> String {
    let mut sorted: Vec<f64> = seconds.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize] * 1e3;
    format!("{:.1} / {:.1}", at(0.5), at(0.99))
}

fn of(clusters: u64) -> (f64, f64, Vec<Change>) {
    let bed = Testbed::two_nodes("xds");
    let (near, far) = (bed.node(1), bed.node(2));
    let client = near.pod("client").start();
    let backends = ["who-a", "who-b"].map(|name| far.pod(name).start());
    let _who = backends.each_ref().map(|pod| pod.serves("who", PORT));
    let mut control_plane = ControlPlane::start(near, &served(&backends[0]));
    let uri = control_plane.uri();
    let flags = ["--xds-server", &uri, "--xds-mode", "delta", "--log", "info"];
    let agent = near.agent().with_pod(&client).flags(&flags).start();

    // Python makes the resources first; then they are there at once.
    let mut journal = Journal::at(&control_plane.journal());
    let many = json!({ "clusters": clusters, "endpoints": ENDPOINTS, "listeners": true });
    let mut loaded = 0.0;
    if clusters > 0 {
        control_plane.behaves("many", many);
        let sent = journal.next("Cluster", control_plane.number());
        let count = |agent: &Agent| {
            let answer = http::get(&agent.node().socket(), "/status").expect("read the status");
            let status: Value = serde_json::from_str(&answer.body).expect("the status is JSON");
            status["snapshot"]["clusters"].as_u64().unwrap_or_default()
        };
        eventually_within(LONG, "all clusters, and the two that were there, are in force", || {
            let now = count(&agent);
            if now >= clusters + 2 { Ok(()) } else { Err(now) }
        });
        loaded = seconds() - sent;
    }
    let rss = resident_mib(&agent);
    let changes = follow(&client, &backends, &mut control_plane, &mut journal);
    (loaded, rss, changes)
}

fn served(backend: &Pod) -> MeshConfig {
    let address: SocketAddr = backend.at(PORT);
    MeshConfig::new().service(&Service::tcp("who", SERVICE).backed_by_plain(address))
}

/// Moves the service from one backend to the other, again and again.
fn follow(
    client: &Pod,
    backends: &[Pod; 2],
    control_plane: &mut ControlPlane,
    journal: &mut Journal,
) -> Vec<Change> {
    let watcher = client.watches(SERVICE);
    let arrived = |pod: &Pod, times: usize| {
        let ip = format!(" I am {} ", pod.ip());
        eventually_within(LONG, "the data path follows", || {
            let log = watcher.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(&ip)).collect();
            match lines.get(times) {
                Some(line) => Ok(line.split(' ').next().and_then(|at| at.parse::<f64>().ok())),
                None => Err(log),
            }
        })
        .expect("a time")
    };
    arrived(&backends[0], 0);
    let mut took = Vec::new();
    for round in 0..CHANGES {
        let to = &backends[(round + 1) % 2];
        let begun = seconds();
        control_plane.serves(served(to).resources());
        let sent = journal.next("ClusterLoadAssignment", control_plane.number());
        // The first backend has been seen once before.
        let agent = arrived(to, round.div_ceil(2)) - sent;
        took.push(Change { server: sent - begun, agent });
    }
    took
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn resident_mib(agent: &Agent) -> f64 {
    let status = format!("/proc/{}/status", agent.process().pid());
    let text = fs::read_to_string(status).unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// When the control plane handed over its responses.
struct Journal {
    path: PathBuf,
    offset: u64,
}

impl Journal {
    /// From here on.
    fn at(path: &Path) -> Self {
        let offset = fs::metadata(path).map_or(0, |file| file.len());
        Self { path: path.to_owned(), offset }
    }

    /// The next response of that type that tells of the state with that number: what was
    /// sent before may still be unread here.
    fn next(&mut self, type_: &str, number: u64) -> f64 {
        let begin = Instant::now();
        loop {
            let mut file = fs::File::open(&self.path).expect("open the journal");
            let mut text = String::new();
            file.seek(SeekFrom::Start(self.offset)).expect("seek in the journal");
            file.read_to_string(&mut text).expect("read the journal");
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            for line in text[..whole].split_inclusive('\n') {
                self.offset += line.len() as u64;
                let line: Value = serde_json::from_str(line).expect("a line of JSON");
                let of = line["type"].as_str().is_some_and(|of| of.ends_with(type_));
                if of && line["sent"].is_string() && line["number"] == number {
                    return line["at"].as_f64().expect("a time");
                }
            }
            assert!(begin.elapsed() < LONG, "no response of {type_}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
