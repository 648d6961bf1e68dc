//! `mesh-agent doctor`

use clap::Args;
use serde::Serialize;

use super::{
    CliError, Output,
    output::{self, OutputFormat, Table},
};
use crate::config::{self, CaptureConfig, settings::CaptureFlags};

/// Check whether this machine can run the agent
#[derive(Debug, Args)]
#[command(after_help = "\
Checks the kernel's version and BTF, that each BPF program loads, the cgroup-v2 root,
cgroup programs of others, and sysctls. Needs root.

Exit codes:
  0  nothing is wrong; there may be warnings
  1  a check failed
  2  bad configuration")]
pub(super) struct Doctor {
    #[command(flatten)]
    flags: CaptureFlags,

    /// How to show the result
    #[arg(long, short, value_enum, default_value_t)]
    output: OutputFormat,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    outcome: Outcome,
    /// What was found, and what to do about it.
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    #[expect(dead_code, reason = "made where capture's checks are taken over")]
    Ok,
    #[expect(dead_code, reason = "made where capture's checks are taken over")]
    Warning,
    Failed,
}

impl Doctor {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let config = config::load_capture(&self.flags.0, &config::process_environment)
            .map_err(|errors| CliError::Usage(errors.to_string()))?;
        let checks = checks(&config);
        let failed = checks.iter().any(|check| check.outcome == Outcome::Failed);
        let text = match self.output {
            OutputFormat::Json => output::json(&checks)?,
            OutputFormat::Table => table(&checks),
        };
        Ok(Output { text, code: u8::from(failed) })
    }
}

fn table(checks: &[Check]) -> String {
    let mut table = Table::new(["", "CHECK", "DETAIL"]);
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "WARNING",
            Outcome::Failed => "FAILED",
        };
        table.row([outcome.to_owned(), check.name.clone(), check.detail.clone()]);
    }
    table.render()
}

fn checks(config: &CaptureConfig) -> Vec<Check> {
    // WIRE: crate::capture's doctor checks for this configuration
    vec![Check {
        name: "capture".to_owned(),
        outcome: Outcome::Failed,
        detail: format!("this build has no capture to check for instance {}", config.instance),
    }]
}
