//! What the project set out to reach, and whether it does.

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
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

type Measure = fn(&Row) -> f64;

/// A load's measure of a lane: name, load, lane, the sidecars' lane, measure, goal.
type Goal = (&'static str, &'static str, &'static str, &'static str, Measure, Bound);

const RATIO: Measure = |row| row.ratio;
const CPU_SECONDS_PER_100K: Measure = |row| row.mesh_us / 10.0;
const P50: Measure = |row| row.p50_us;
const P99: Measure = |row| row.p99_us;

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
        "HTTP/1.1 rate, L4, same node",
        "http1-16",
        "mesh-l4/same-node",
        "envoy-tcp/same-node",
        RATIO,
        Bound::AtLeast(1.0),
    ),
    (
        "the same with redirect_peer",
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
        "mesh CPU s per 100 000 requests, L4, same node",
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
        "new connections, L4, same node",
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
        "one TCP stream, same node",
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
    let measured = |load: &str, lane: &str, measure: Measure| {
        let table = tables.iter().find(|table| table.load == load);
        let row = table.and_then(|table| table.rows.iter().find(|row| row.lane == lane));
        row.map_or(f64::NAN, measure)
    };
    let mut targets: Vec<Target> = GOALS
        .iter()
        .map(|&(what, load, lane, envoy, measure, bound)| {
            let (seen, envoy) = (measured(load, lane, measure), measured(load, envoy, measure));
            target(what, bound, seen, envoy)
        })
        .collect();
    let memory = |lane: &str| {
        let of = |f: &&Figure| f.figure == "memory" && f.lane == lane && f.at == MEMORY_PODS;
        figures.iter().find(of).map_or(f64::NAN, |figure| figure.value)
    };
    targets.push(target(
        "MiB of their own, of one node with 100 pods",
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
    Target { what, goal, seen, envoy, reached: seen.is_finite().then_some(reached) }
}
