//! `mesh-agent doctor`

use clap::Args;

use super::{
    CliError, Output,
    output::{self, OutputFormat, Table},
};
use crate::{
    app::capture_options,
    capture::{self, Check, CheckStatus},
    config::{self, settings::CaptureFlags},
};

/// Check whether this machine can run the agent
#[derive(Debug, Args)]
#[command(after_help = "\
Checks the kernel's version and BTF, that each BPF program loads, the cgroup-v2 root,
cgroup programs of others, sysctls, what the kernel path needs, and tries how sockets
behave when spliced. Needs root, and no agent.

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

impl Doctor {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let config = config::load_capture(&self.flags.0, &config::process_environment)
            .map_err(|errors| CliError::Usage(errors.to_string()))?;
        let checks = capture::doctor(&capture_options(config));
        let failed = checks.iter().any(|check| check.status == CheckStatus::Fail);
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
        let outcome = match check.status {
            CheckStatus::Ok => "ok",
            CheckStatus::Warn => "WARNING",
            CheckStatus::Fail => "FAILED",
        };
        table.row([outcome.to_owned(), check.name.clone(), check.detail.clone()]);
    }
    table.render()
}
