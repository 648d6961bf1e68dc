//! `cargo xtask bench`: the two-node path against no mesh, in interleaved rounds.
//!
//! Absolute figures are this machine's; ratios to the round without a mesh beside each
//! one are what to read, and CPU per request before rates where others use the CPUs.

mod bed;
mod kernel;
mod memory;
mod xds;

use std::{process::ExitCode, time::Duration};

use crate::bed::{Bed, Road};

const HELP: &str = "usage: bench [--rounds N] [--seconds S] [WHAT]...
  http          HTTP/1.1 GET over 16 keep-alive connections
  connections   a fresh connection for each GET, 16 at a time
  stream        one TCP stream
  kernel        pods of one node: no mesh, kernel path, its accelerators, proxied
  memory        private memory of an agent with 1 and with 100 idle pods
  xds           up to 10 000 clusters with 100 000 endpoints from a control plane, and how
                fast the data path follows a change of one endpoint
";

const CONNECTIONS: &str = "16";

/// What to run, and how often.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: f64,
    what: Vec<What>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Http,
    Connections,
    Stream,
    Kernel,
    Memory,
    Xds,
}

/// One round of one road.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    /// Requests or bits.
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// All processes of the bed, kernel included, in µs a request or MiB.
    bed_us: f64,
    /// The two agents alone.
    agents_us: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(plan) = parse(&arguments) else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let alone = [What::Kernel, What::Memory, What::Xds];
    let traffic: Vec<What> =
        plan.what.iter().copied().filter(|what| !alone.contains(what)).collect();
    if !traffic.is_empty() {
        let bed = Bed::start();
        for what in traffic {
            measure(&bed, &plan, what);
        }
    }
    if plan.what.contains(&What::Kernel) {
        kernel::show(plan.rounds, Duration::from_secs_f64(plan.seconds));
    }
    if plan.what.contains(&What::Memory) {
        memory::show();
    }
    if plan.what.contains(&What::Xds) {
        xds::show();
    }
    ExitCode::SUCCESS
}

fn parse(arguments: &[String]) -> Option<Plan> {
    let mut plan = Plan { rounds: 5, seconds: 1.5, what: Vec::new() };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => plan.rounds = words.next()?.parse().ok().filter(|n| *n > 0)?,
            "--seconds" => plan.seconds = words.next()?.parse().ok().filter(|s| *s > 0.0)?,
            "http" => plan.what.push(What::Http),
            "connections" => plan.what.push(What::Connections),
            "stream" => plan.what.push(What::Stream),
            "kernel" => plan.what.push(What::Kernel),
            "memory" => plan.what.push(What::Memory),
            "xds" => plan.what.push(What::Xds),
            _ => return None,
        }
    }
    if plan.what.is_empty() {
        let [http, connections, stream] = [What::Http, What::Connections, What::Stream];
        plan.what = vec![http, connections, stream, What::Kernel, What::Memory, What::Xds];
    }
    Some(plan)
}

fn measure(bed: &Bed, plan: &Plan, what: What) {
    let title = match what {
        What::Http => "HTTP/1.1, 16 keep-alive connections",
        What::Connections => "connect, GET, close, 16 at a time",
        What::Stream => "one TCP stream, the client sends",
        What::Kernel | What::Memory | What::Xds => return,
    };
    println!("── {title}: {} interleaved rounds of {} s", plan.rounds, plan.seconds);
    // Tunnels, pools and caches.
    let roads = if what == What::Stream { &Road::ALL[..2] } else { &Road::ALL[..] };
    for &road in roads {
        round(bed, road, what, 0.3);
    }
    let mut rounds = vec![Vec::new(); roads.len()];
    for _ in 0..plan.rounds {
        for (&road, rounds) in roads.iter().zip(&mut rounds) {
            rounds.push(round(bed, road, what, plan.seconds));
        }
    }
    show(what, roads, &rounds);
}

fn show(what: What, roads: &[Road], rounds: &[Vec<Round>]) {
    let (rate, unit) = match what {
        What::Stream => ("Gbit/s", "MiB"),
        _ => ("per s", "request"),
    };
    println!(
        "  {:<9}{rate:>9}  ratio   p50 µs   p99 µs   agents CPU µs/{unit}   all CPU µs/{unit}   mesh's share",
        ""
    );
    let Some(plain) = rounds.first() else { return };
    for (road, rounds) in roads.iter().zip(rounds) {
        let pairs: Vec<(Round, Round)> =
            rounds.iter().copied().zip(plain.iter().copied()).collect();
        let rate = median(rounds, |r| r.per_second);
        let rate = match what {
            What::Stream => format!("{:.2}", rate / 1e9),
            _ => format!("{rate:.0}"),
        };
        println!(
            "  {:<9}{rate:>9}  ×{:.3}{:>9.0}{:>9.0}{:>24.1}{:>21.1}{:>15.1}",
            road.name(),
            median(&pairs, |(r, p)| r.per_second / p.per_second),
            median(rounds, |r| r.p50_us),
            median(rounds, |r| r.p99_us),
            median(rounds, |r| r.agents_us),
            median(rounds, |r| r.bed_us),
            median(&pairs, |(r, p)| r.bed_us - p.bed_us),
        );
    }
}

fn round(bed: &Bed, road: Road, what: What, seconds: f64) -> Round {
    let seconds = seconds.to_string();
    let before = bed.cpu();
    let mut round = Round::default();
    let units = match what {
        What::Http => round.load(bed, road, &[CONNECTIONS, &seconds]),
        What::Connections => round.load(bed, road, &[CONNECTIONS, &seconds, "--fresh"]),
        What::Stream | What::Kernel | What::Memory | What::Xds => round.stream(bed, road, &seconds),
    };
    let after = bed.cpu();
    let per_unit =
        |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() * 1e6 / units;
    round.bed_us = per_unit(before.all, after.all);
    round.agents_us = per_unit(before.agents, after.agents);
    round
}

impl Round {
    /// How many requests were answered.
    fn load(&mut self, bed: &Bed, road: Road, rest: &[&str]) -> f64 {
        let address = bed.web(road);
        let arguments = [&["load", address.as_str(), "web"], rest].concat();
        let result = bed.client(road).run_peer(&arguments).expect_success().json();
        let number = |key: &str| result[key].as_f64().unwrap_or_default();
        let requests = number("requests").max(1.0);
        self.per_second = requests / number("seconds");
        self.p50_us = number("p50_us");
        self.p99_us = number("p99_us");
        requests
    }

    /// How many MiB were received.
    fn stream(&mut self, bed: &Bed, road: Road, seconds: &str) -> f64 {
        let arguments = ["blast", &bed.sink(road), seconds];
        let result = bed.client(road).run_peer(&arguments).expect_success().json();
        let number = |key: &str| result[key].as_f64().unwrap_or_default();
        self.per_second = number("bytes") * 8.0 / number("seconds");
        number("bytes").max(1.0) / f64::from(1 << 20)
    }
}

fn median<T>(of: &[T], value: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = of.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
