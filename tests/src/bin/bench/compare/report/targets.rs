//! What the project set out to reach, and whether it does.
//!
//! A ratio of rates is a demand on CPU: where everything that runs has the machine to
//! itself, a rate of `r` of no mesh's leaves the mesh `c (1/r - 1)` of CPU a request, `c` being
//! what one costs without a mesh. The goals were set beside a baseline of 33 242 requests/s;
//! a faster one makes the same ratio a harder demand. Both are shown, and neither changes a
//! verdict.

use serde::Serialize;

use super::{Figure, Row, Table};

/// One goal.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) goal: String,
    /// NaN where it was not measured, which JSON writes as null.
    pub(crate) seen: f64,
    /// The same of Envoy's sidecars, where there is one.
    pub(crate) envoy: f64,
    pub(crate) reached: Option<bool>,
    /// Rounds that what was seen stands on, of loads.
    pub(crate) rounds: Option<usize>,
    /// Whether others disturbed them.
    pub(crate) disturbed: bool,
    /// What a ratio amounts to.
    pub(crate) as_cpu: Option<AsCpu>,
}

/// A ratio as CPU of the mesh, in µs for each request or MiB.
#[derive(Debug, Serialize)]
pub(crate) struct AsCpu {
    /// Where the goals were set.
    pub(crate) goal_there: f64,
    /// By this run's own rate without a mesh.
    pub(crate) goal_here: f64,
    /// What the mesh took.
    pub(crate) seen: f64,
    pub(crate) envoy: f64,
}

/// For who reads the table.
pub(super) const AS_CPU_TOLD: &str = "A rate of r of no mesh's leaves the mesh c (1/r - 1) of CPU \
    for each request or MiB, where c is what one costs without a mesh and the CPUs are as busy. \
    \"There\" is where the goals were set: 33 242 HTTP/1.1 requests/s without a mesh, and, by the \
    peers' rates and CPU there, c = 43.5 µs for one; of other loads c is that in proportion to \
    their rates. \"Here\" is c of this run. Verdicts go by the goal as it was set.";

impl Target {
    /// What to think of beside the verdict: an end of its text.
    pub(super) fn doubt(&self) -> &'static str {
        match (self.disturbed, self.rounds) {
            (true, Some(1)) => ", by one disturbed round",
            (true, _) => ", by disturbed rounds",
            (false, Some(1)) => ", by a single round",
            (false, _) => "",
        }
    }

    /// The goal there and here, what was seen, and Envoy's, as they are written.
    pub(super) fn cpu_columns(&self) -> [String; 4] {
        let Some(cpu) = &self.as_cpu else { return ["", "", "", ""].map(str::to_owned) };
        [cpu.goal_there, cpu.goal_here, cpu.seen, cpu.envoy].map(super::shown)
    }
}

/// Rates without a mesh where the goals were set, in requests or MiB (of 7.4 Gbit/s) a second.
const THERE: &[(&str, f64)] = &[
    ("http1-16", 33_242.0),
    ("http2", 37_748.0),
    ("connections", 5_696.0),
    ("stream-up-1", 882.0),
];

/// CPUs in use there, without a mesh and with one: 46.0 s, 15.0 s and 13.3 s of mesh CPU for
/// 100 000 requests at 0.086, 0.225 and 0.247 of the rate are, by the relation above, 43.3,
/// 43.5 and 43.6 µs for a request without a mesh, 33 242 times a second.
const CPUS_THERE: f64 = 1.446;

/// CPU of the mesh that a rate of `ratio` leaves, where one without it costs `plain`.
fn left_by(ratio: f64, plain: f64) -> f64 {
    plain * (1.0 / ratio - 1.0)
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure of a row, how many rounds it stands on, and whether these were disturbed.
type Measure = fn(&Row) -> (f64, usize, bool);

/// A load's measure of a lane: name, load, lane, the sidecars' lane, measure, goal.
type Goal = (&'static str, &'static str, &'static str, &'static str, Measure, Bound);

const RATIO: Measure = |row| (row.ratio, row.pairs, row.pairs_disturbed);
const CPU_SECONDS_PER_100K: Measure = |row| (row.mesh_us / 10.0, row.pairs, row.pairs_disturbed);
const P50: Measure = |row| (row.p50_us, row.rounds, row.disturbed);
const P99: Measure = |row| (row.p99_us, row.rounds, row.disturbed);

const GOALS: &[Goal] = &[
    (
        "HTTP/1.1 rate, L7, across nodes",
        "http1-16",
        "mesh-l7/across",
        "envoy-http/across",
        RATIO,
        Bound::AtLeast(0.28),
    ),
    (
        "HTTP/1.1 rate, L4, across nodes",
        "http1-16",
        "mesh-l4/across",
        "envoy-tcp/across",
        RATIO,
        Bound::AtLeast(0.35),
    ),
    (
        "HTTP/1.1 rate, L7, same node",
        "http1-16",
        "mesh-l7/same-node",
        "envoy-http/same-node",
        RATIO,
        Bound::AtLeast(0.45),
    ),
    (
        "the same with redirect_peer: within the agent, without TLS",
        "http1-16",
        "mesh-l7-redirect/same-node",
        "envoy-http/same-node",
        RATIO,
        Bound::AtLeast(0.45),
    ),
    (
        "HTTP/1.1 rate, L4, same node, without TLS",
        "http1-16",
        "mesh-l4/same-node",
        "envoy-tcp/same-node",
        RATIO,
        Bound::AtLeast(1.0),
    ),
    (
        "the same with redirect_peer, without TLS",
        "http1-16",
        "mesh-l4-redirect/same-node",
        "envoy-tcp/same-node",
        RATIO,
        Bound::AtLeast(1.1),
    ),
    (
        "mesh CPU s per 100 000 requests, L7",
        "http1-16",
        "mesh-l7/across",
        "envoy-http/across",
        CPU_SECONDS_PER_100K,
        Bound::AtMost(13.0),
    ),
    (
        "mesh CPU s per 100 000 requests, L4",
        "http1-16",
        "mesh-l4/across",
        "envoy-tcp/across",
        CPU_SECONDS_PER_100K,
        Bound::AtMost(8.0),
    ),
    (
        "mesh CPU s per 100 000 requests, L4, same node, without TLS",
        "http1-16",
        "mesh-l4/same-node",
        "envoy-tcp/same-node",
        CPU_SECONDS_PER_100K,
        Bound::AtMost(0.3),
    ),
    (
        "p50 µs at 800 requests/s, L7",
        "http1-rate-800",
        "mesh-l7/across",
        "envoy-http/across",
        P50,
        Bound::AtMost(520.0),
    ),
    (
        "p99 µs at 800 requests/s, L7",
        "http1-rate-800",
        "mesh-l7/across",
        "envoy-http/across",
        P99,
        Bound::AtMost(900.0),
    ),
    (
        "p50 µs at 800 requests/s, L4",
        "http1-rate-800",
        "mesh-l4/across",
        "envoy-tcp/across",
        P50,
        Bound::AtMost(420.0),
    ),
    (
        "p99 µs at 800 requests/s, L4",
        "http1-rate-800",
        "mesh-l4/across",
        "envoy-tcp/across",
        P99,
        Bound::AtMost(780.0),
    ),
    (
        "HTTP/2 rate, L7",
        "http2",
        "mesh-l7/across",
        "envoy-http/across",
        RATIO,
        Bound::AtLeast(0.40),
    ),
    ("HTTP/2 rate, L4", "http2", "mesh-l4/across", "envoy-tcp/across", RATIO, Bound::AtLeast(0.80)),
    (
        "new connections, L4, across nodes",
        "connections",
        "mesh-l4/across",
        "envoy-tcp/across",
        RATIO,
        Bound::AtLeast(0.40),
    ),
    (
        "new connections, L4, same node, without TLS",
        "connections",
        "mesh-l4/same-node",
        "envoy-tcp/same-node",
        RATIO,
        Bound::AtLeast(0.90),
    ),
    (
        "one TCP stream, across nodes",
        "stream-up-1",
        "mesh-l4/across",
        "envoy-tcp/across",
        RATIO,
        Bound::AtLeast(0.50),
    ),
    (
        "one TCP stream, same node, without TLS",
        "stream-up-1",
        "mesh-l4/same-node",
        "envoy-tcp/same-node",
        RATIO,
        Bound::AtLeast(1.0),
    ),
];

const MEMORY_MIB: f64 = 15.0;
const MEMORY_PODS: u64 = 100;

pub(super) fn all(tables: &[Table], figures: &[Figure]) -> Vec<Target> {
    let row = |load: &str, lane: &str| {
        let table = tables.iter().find(|table| table.load == load)?;
        table.rows.iter().find(|row| row.lane == lane)
    };
    let of = |row: Option<&Row>, value: fn(&Row) -> f64| row.map_or(f64::NAN, value);
    let mut targets: Vec<Target> = GOALS
        .iter()
        .map(|&(what, load, lane, envoy, measure, bound)| {
            let place = lane.split_once('/').map_or("", |(_, place)| place);
            let (ours, envoy) = (row(load, lane), row(load, envoy));
            let plain = of(row(load, &format!("no-mesh/{place}")), |row| row.cpu_us);
            let (seen, rounds, disturbed) = ours.map_or((f64::NAN, 0, false), measure);
            let theirs = envoy.map_or(f64::NAN, |row| measure(row).0);
            let there = THERE.iter().find(|(name, _)| *name == load);
            let as_cpu = match (bound, there) {
                (Bound::AtLeast(ratio), Some((_, rate))) => Some(AsCpu {
                    goal_there: left_by(ratio, CPUS_THERE * 1e6 / rate),
                    goal_here: left_by(ratio, plain),
                    seen: of(ours, |row| row.mesh_us),
                    envoy: of(envoy, |row| row.mesh_us),
                }),
                _ => None,
            };
            let rounds = seen.is_finite().then_some(rounds);
            Target { as_cpu, rounds, disturbed, ..target(what, bound, seen, theirs) }
        })
        .collect();
    let memory = |lane: &str| {
        let of = |f: &&Figure| f.figure == "memory" && f.lane == lane && f.at == MEMORY_PODS;
        figures.iter().find(of).map_or(f64::NAN, |figure| figure.value)
    };
    targets.push(target(
        "MiB of the processes' anonymous memory, without BPF maps, of one node with 100 pods",
        Bound::AtMost(MEMORY_MIB),
        memory("mesh"),
        memory("envoy sidecars"),
    ));
    targets
}

fn target(what: &'static str, bound: Bound, seen: f64, envoy: f64) -> Target {
    let (goal, reached) = match bound {
        Bound::AtLeast(least) => (format!("≥ {least}"), seen >= least),
        Bound::AtMost(most) => (format!("≤ {most}"), seen <= most),
    };
    let reached = seen.is_finite().then_some(reached);
    Target { what, goal, seen, envoy, reached, rounds: None, disturbed: false, as_cpu: None }
}
