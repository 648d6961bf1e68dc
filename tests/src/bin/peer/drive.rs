//! The load of comparisons: closed loops, a fixed rate, streams; one thread, one JSON line.
//!
//! One thread, since it shares the CPUs with what is measured: what it costs is part of
//! every contender's figure alike. Latencies of the fixed rate count from when a request
//! was meant to leave, not from when it could, so that a stall is not left out
//! ("coordinated omission").

mod grpc;
mod http1;
mod http2;
mod stream;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use nix::sys::{
    timer::{Expiration, TimerSetTimeFlags},
    timerfd::{ClockId, TimerFd, TimerFlags},
};
use serde_json::json;
use tokio::io::unix::AsyncFd;

pub(crate) use self::{grpc::serve as serve_grpc, stream::source};

/// Percentiles of a latency distribution that are told, in percent.
const PERCENTILES: [f64; 14] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0];

/// What is done again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// HTTP/1.1 GET on kept connections.
    Http1,
    /// HTTP/1.1 GET, a connection for each.
    Fresh,
    /// HTTP/2 GET, `--streams` at a time on each connection.
    Http2,
    /// gRPC, one message each way for a call.
    GrpcUnary,
    /// gRPC, messages back and forth on one call for each stream.
    GrpcStream,
    /// TCP, as much as goes from here.
    Up,
    /// TCP, as much as comes to here.
    Down,
}

/// `peer drive`: a load, told as one line of JSON.
#[derive(Debug, Clone, Parser)]
#[command(name = "peer drive")]
struct Plan {
    kind: Kind,
    /// Where to connect to.
    address: std::net::SocketAddr,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// For each connection of HTTP/2.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Requests a second over all connections, evenly spaced; as many as go without it.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value = "bench")]
    host: String,
}

/// What was seen.
#[derive(Debug, Default)]
struct Tally {
    /// In microseconds, one for each request or message.
    latencies: Vec<u32>,
    errors: Vec<String>,
    bytes: u64,
}

impl Tally {
    fn answered(&mut self, since: Instant, bytes: usize) {
        let micros = since.elapsed().as_micros();
        self.latencies.push(u32::try_from(micros).unwrap_or(u32::MAX));
        self.bytes += bytes as u64;
    }

    fn failed(&mut self, error: &dyn std::fmt::Display) {
        self.errors.push(error.to_string());
    }

    fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.errors.extend(other.errors);
        self.bytes += other.bytes;
    }
}

/// Runs what `arguments` say and prints it.
pub(crate) fn run(arguments: &[&str]) -> ExitCode {
    let plan = Plan::parse_from([&["peer drive"], arguments].concat());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (tally, seconds) = runtime.block_on(drive(&plan));
    for error in tally.errors.iter().take(3) {
        eprintln!("{}: {error}", plan.address);
    }
    println!("{}", told(tally, seconds));
    ExitCode::SUCCESS
}

/// What was seen, and in how many seconds.
async fn drive(plan: &Plan) -> (Tally, f64) {
    let mut whole = Tally::default();
    // At a rate, what is told are latencies of kept connections: a sample of a second and less
    // would tell by its 99th percentile how long it took to open them.
    let mut opened = match (plan.rate, plan.kind) {
        (Some(_), Kind::Http1) => http1::open(plan, &mut whole).await,
        _ => Vec::new(),
    };
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(plan.seconds);
    let workers: Vec<_> = (0..plan.connections)
        .map(|worker| {
            let plan = plan.clone();
            let pace = plan.rate.map(|rate| Pace::new(start, rate, worker, plan.connections));
            let opened = opened.pop();
            tokio::spawn(async move {
                match plan.kind {
                    Kind::Http1 => http1::kept(&plan, end, pace, opened).await,
                    Kind::Fresh => http1::fresh(&plan, end, pace).await,
                    Kind::Http2 => http2::get(&plan, end).await,
                    Kind::GrpcUnary => grpc::unary(&plan, end).await,
                    Kind::GrpcStream => grpc::stream(&plan, end).await,
                    Kind::Up => stream::up(&plan, end).await,
                    Kind::Down => stream::down(&plan, end).await,
                }
            })
        })
        .collect();
    for worker in workers {
        match worker.await {
            Ok(tally) => whole.merge(tally),
            Err(error) => whole.failed(&error),
        }
    }
    (whole, start.elapsed().as_secs_f64())
}

/// When one connection's requests are meant to leave.
#[derive(Debug)]
struct Pace {
    next: Instant,
    every: Duration,
    /// The runtime's own timers know milliseconds only.
    timer: TimerFd,
    rings: AsyncFd<OwnedFd>,
}

impl Pace {
    /// `rate` over all `workers`, whose turns are evenly spaced. In a runtime only.
    fn new(start: Instant, rate: f64, worker: usize, workers: usize) -> Self {
        let every = Duration::from_secs_f64(workers as f64 / rate);
        let turn = every.mul_f64(worker as f64 / workers as f64);
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).expect("a timer");
        let same = timer.as_fd().try_clone_to_owned().expect("a descriptor");
        // SAFETY: `same` is owned by what is made of it: it is open, and the same file, for
        // as long as that is registered.
        let rings = unsafe { AsyncFd::register(same) }.expect("watch a timer");
        Self { next: start + turn, every, timer, rings }
    }

    /// Waits for the next turn, if it is still to come, and says when it was meant to be.
    async fn turn(&mut self) -> Instant {
        let meant = self.next;
        self.next += self.every;
        let left = meant.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            let once = Expiration::OneShot(left.into());
            self.timer.set(once, TimerSetTimeFlags::empty()).expect("set a timer");
            let mut ready = self.rings.readable().await.expect("wait for a timer");
            // Reading it makes it unready; what it says is known.
            let _ = self.timer.wait();
            ready.clear_ready();
        }
        meant
    }
}

/// When the next request leaves: at its turn, or now.
async fn turn(pace: &mut Option<Pace>) -> Instant {
    match pace {
        Some(pace) => pace.turn().await,
        None => Instant::now(),
    }
}

fn told(mut tally: Tally, seconds: f64) -> serde_json::Value {
    tally.latencies.sort_unstable();
    let last = tally.latencies.len().saturating_sub(1);
    let at = |percent: f64| {
        // The index is below the length, which is far below 2^52.
        let index = (percent / 100.0 * last as f64).ceil() as usize;
        json!([percent, tally.latencies.get(index.min(last)).copied().unwrap_or(0)])
    };
    json!({
        "requests": tally.latencies.len(),
        "errors": tally.errors.len(),
        "error": tally.errors.first(),
        "bytes": tally.bytes,
        "seconds": seconds,
        "latency_us": PERCENTILES.map(at),
    })
}

fn other(message: impl Into<String>) -> io::Error {
    io::Error::other(message.into())
}
