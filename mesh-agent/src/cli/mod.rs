//! One file per command.
//!
//! A command returns what to print and how to exit; [`main`] does both. Commands
//! that ask a running agent go through [`client`].

#![forbid(unsafe_code)]

mod ca;
mod client;
mod completions;
mod config;
mod connections;
mod doctor;
mod enroll;
mod logging;
mod output;
mod pods;
mod run;
mod status;
mod unenroll;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; doctor: nothing is wrong; run: stopped, every connection ended in time
  1  failed; doctor: a check failed; run: failed, or cut connections to stop
  2  wrong usage or bad configuration
  3  no agent answers on the control socket
  4  the agent refused

Examples:
  mesh-agent ca init --dir /var/lib/mesh/ca --trust-domain cluster.local
  mesh-agent run --node-name node-1 --config-dir /etc/mesh/xds
  mesh-agent enroll web-1 --namespace shop --service-account web --netns /run/netns/web-1
  mesh-agent connections
  mesh-agent config dump --output json | jq .listeners";

/// Node agent of a sidecarless service mesh: captures the traffic of enrolled pods
/// with eBPF and gives it mutual TLS, policy, routing and telemetry.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Enroll(Box<enroll::Enroll>),
    Unenroll(unenroll::Unenroll),
    Pods(pods::Pods),
    Status(status::Status),
    #[command(subcommand)]
    Config(config::Config),
    Connections(connections::Connections),
    #[command(subcommand)]
    Ca(ca::Ca),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
}

/// What a command prints on standard output, and how it exits.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    text: String,
    code: u8,
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        Self { text, code: 0 }
    }
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// It was tried and failed: exit code 1.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    /// The arguments or the configuration are wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers on the control socket: exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The agent said no: exit code 4.
    #[error("the agent refused: {0}")]
    Refused(String),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(_) => 4,
        }
    }
}

/// Runs the command line and says how to exit.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; a closed standard output is no fault.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let code = match dispatch(cli.command) {
        Ok(output) => match print(&output.text) {
            Ok(()) => output.code,
            Err(error) => {
                eprintln!("error: standard output can't be written: {error}");
                1
            }
        },
        Err(error) => {
            eprintln!("error: {error}");
            error.code()
        }
    };
    ExitCode::from(code)
}

/// A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

fn dispatch(command: Command) -> Result<Output, CliError> {
    match command {
        Command::Run(command) => command.run(),
        Command::Enroll(command) => command.run(),
        Command::Unenroll(command) => command.run(),
        Command::Pods(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Connections(command) => command.run(),
        Command::Ca(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions(command) => Ok(command.run()),
    }
}

#[cfg(test)]
mod tests;
