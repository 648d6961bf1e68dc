//! One quick figure: the demo's path against no mesh, interleaved.

use std::{fs, time::Duration};

use tests::{Mesh, Pod, mesh};

use crate::story::cpu;

const ROUNDS: usize = 3;
const CONNECTIONS: &str = "16";
const SECONDS: &str = "2";

/// One round of load.
struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Whole machine, kernel included, in µs a request.
    machine_us: f64,
    /// The two agents alone, in µs a request.
    agents_us: f64,
}

/// Measures and prints.
pub(crate) fn show(mesh: &Mesh) {
    println!(
        "\n── a quick figure, not a benchmark: {CONNECTIONS} connections, HTTP/1.1 keep-alive"
    );
    let client = mesh.bed.node(1).pod("plain-client").start();
    let server = mesh.bed.node(2).pod("plain-web").start();
    let _nginx = server.runs_nginx(mesh::WEB_PORT);
    let direct = server.at(mesh::WEB_PORT).to_string();
    let (mut plain, mut meshed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(round(mesh, &client, &direct));
        meshed.push(round(mesh, &mesh.client, "10.96.0.10:80"));
    }
    println!("                requests/s   p50 µs   p99 µs   CPU µs/request   of it the agents");
    for (name, rounds) in [("no mesh", &plain), ("mesh, L7 mTLS", &meshed)] {
        println!(
            "  {name:<14}{:>10.0}{:>9.0}{:>9.0}{:>17.1}{:>19.1}",
            median(rounds, |r| r.per_second),
            median(rounds, |r| r.p50_us),
            median(rounds, |r| r.p99_us),
            median(rounds, |r| r.machine_us),
            median(rounds, |r| r.agents_us),
        );
    }
    let pairs: Vec<(&Round, &Round)> = meshed.iter().zip(&plain).collect();
    println!(
        "  median of {ROUNDS} interleaved ratios: requests/s ×{:.3}, CPU per request ×{:.2} \
         ({}; load generator and nginx on the same CPUs)",
        median(&pairs, |(m, p)| m.per_second / p.per_second),
        median(&pairs, |(m, p)| m.machine_us / p.machine_us),
        // The agent is built along with this program.
        if cfg!(debug_assertions) { "DEVELOPMENT build of the agent" } else { "release build" },
    );
}

fn round(mesh: &Mesh, client: &Pod, address: &str) -> Round {
    let (machine, agents) = (machine_busy(), cpu(&mesh.agents));
    let ran = client.run_peer(&["load", address, "web", CONNECTIONS, SECONDS]).expect_success();
    let (machine, agents) = (machine_busy() - machine, cpu(&mesh.agents) - agents);
    let result = ran.json();
    let number = |key: &str| result[key].as_f64().unwrap_or_default();
    let requests = number("requests").max(1.0);
    let per_request = |time: Duration| time.as_secs_f64() * 1e6 / requests;
    Round {
        per_second: requests / number("seconds"),
        p50_us: number("p50_us"),
        p99_us: number("p99_us"),
        machine_us: per_request(machine),
        agents_us: per_request(agents),
    }
}

/// CPU time the whole machine has spent on anything but idling.
fn machine_busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: not idle, not iowait, not steal.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&i| ticks.get(i)).sum();
    Duration::from_millis(busy * 10)
}

fn median<T>(of: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = of.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
