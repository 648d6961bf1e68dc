//! `cargo xtask bench`: the comparison, a part of it, and a measurement of its own.
//!
//! Absolute figures are this machine's; ratios to the round without a mesh beside each
//! one are what to read, and CPU per request before rates where others use the CPUs.

mod compare;
mod xds;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
