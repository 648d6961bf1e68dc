//! `cargo xtask bench`: the comparison, a part of it, and a measurement of its own.
//!
//! Absolute figures are this machine's; ratios to the round without a mesh beside each
//! one are what to read, and CPU per request before rates where others use the CPUs.

mod compare;
mod xds;

use std::{
    panic,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Compares no mesh, Envoy sidecars and the node agent, and writes a report.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench --", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pods of one node: no mesh, kernel path, its accelerators, proxied.
    Kernel {
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
    /// Up to 10 000 clusters with 100 000 endpoints from a control plane, and how fast the
    /// data path follows a change of one endpoint.
    Xds,
}

fn main() -> ExitCode {
    let Arguments { command, compare } = Arguments::parse();
    thread::spawn(clean_up_when_interrupted);
    match command {
        None => compare::run(&compare),
        Some(Command::Kernel { rounds, seconds }) => {
            compare::show(&compare::Options::of_the_kernel_path(rounds, seconds))
        }
        Some(Command::Xds) => {
            xds::show();
            ExitCode::SUCCESS
        }
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Does not return once the run is being ended: what fails then tells nothing.
fn wait_for_the_end_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
}

/// Ctrl-C and SIGTERM leave no namespace, program or file behind but the samples. What is
/// killed cannot tidy up: the next run does it.
fn clean_up_when_interrupted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("make a runtime").block_on(async {
        let mut asked = signal(SignalKind::terminate()).expect("hear SIGTERM");
        tokio::select! {
            _ = tokio::signal::ctrl_c() => (),
            _ = asked.recv() => (),
        }
    });
    INTERRUPTED.store(true, Ordering::Relaxed);
    panic::set_hook(Box::new(|_| wait_for_the_end_if_interrupted()));
    eprintln!("interrupted: the samples taken so far are kept");
    for problem in tests::run::remove_own() {
        eprintln!("not removed: {problem}");
    }
    std::process::exit(130);
}
