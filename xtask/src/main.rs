//! The project's commands: `cargo xtask setup | ebpf | demo | down | test | bench |
//! instructions | vm | tidy | ci | deny`.
//!
//! This crate must build on a machine that has nothing but a compiler: it depends on
//! nothing that `setup` has yet to install.

mod build;
mod ebpf;
mod instructions;
mod setup;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's commands, run as `cargo xtask <COMMAND>`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install and mount what is missing (as root); quick when nothing is.
    Setup,
    /// Build the BPF object that the agent embeds.
    Ebpf,
    /// Build the agent as for production and show the mesh at work between two nodes
    /// made of namespaces.
    Demo {
        /// Leave everything up, and print how to enter the pods and query the agents.
        #[arg(long)]
        keep: bool,
        /// Remove what an earlier `--keep` left up.
        #[arg(long, conflicts_with = "keep")]
        down: bool,
    },
    /// The same as `demo --down`.
    Down,
    /// Set up, build and run all tests: fuzz seeds, unit, integration over real namespaces.
    Test {
        /// Run only the tests whose names contain this.
        filter: Option<String>,
    },
    /// Build for release, and compare with no mesh and with Envoy sidecars: `--quick` takes
    /// three minutes, `--help` after `--` says what else there is.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Count the instructions of the hot path by callgrind, and keep them beside the
    /// benchmark (`cargo bench -p mesh-agent` tells times).
    Instructions,
    /// Boot stock Debian kernels under QEMU, and show what works on each.
    Vm {
        /// 5.10, 6.1, 6.12, 6.18, 7.3 or all; several with commas.
        #[arg(long, value_delimiter = ',', default_value = "all")]
        kernel: Vec<String>,
    },
    /// Check the house rules: layers, file sizes, module docs, leftovers.
    Tidy,
    /// What CI runs: fmt, clippy, tidy, test, and deny where cargo-deny is installed.
    Ci,
    /// Check licences, advisories and bans with cargo-deny, installing it if needed (long).
    Deny,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup => setup::run(),
        Command::Ebpf => {
            setup::run()?;
            println!("built {}", ebpf::build()?.display());
            Ok(())
        }
        Command::Demo { down: true, .. } | Command::Down => build::demo_down(),
        Command::Demo { keep, .. } => build::demo(keep),
        Command::Test { filter } => build::test(filter.as_deref()),
        Command::Bench { arguments } => build::bench(&arguments),
        Command::Instructions => instructions::run(),
        Command::Vm { kernel } => vm::run(&kernel),
        Command::Tidy => tidy::run(&build::workspace()),
        Command::Ci => build::ci(),
        Command::Deny => build::deny(),
    }
}
