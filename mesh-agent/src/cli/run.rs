//! `mesh-agent run`

use clap::Args;

use super::{CliError, Output, logging};
use crate::{
    app::{self, ExitReason},
    config::{self, settings::RunFlags},
    source::SourceError,
};

const AFTER: &str = "\
A flag wins over its environment variable, that over the key in the --config file.
Durations are written as 500ms, 5s, 1h30m or 24h. SIGTERM and SIGINT drain and stop.

Exit codes:
  0  told to stop, and every connection ended within the drain timeout
  1  failed, or connections were cut at the drain timeout
  2  bad configuration: every fault is listed with where it came from

Examples:
  mesh-agent run --node-name node-1 --config-dir /etc/mesh/xds --pods /etc/mesh/pods.yaml
  MESH_LOG=debug mesh-agent run --config /etc/mesh/agent.yaml";

/// Run the agent of this node
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub(super) struct Run {
    #[command(flatten)]
    flags: RunFlags,
}

impl Run {
    pub(super) fn run(self) -> Result<Output, CliError> {
        let config = config::load(&self.flags.0, &config::process_environment)
            .map_err(|errors| CliError::Usage(errors.to_string()))?;
        let _flush = logging::start(&config.log)?;
        let ended = app::run(config).map_err(|error| match error.is::<SourceError>() {
            true => CliError::Usage(format!("{error:#}")),
            false => CliError::Failed(error),
        })?;
        match ended {
            ExitReason::Drained => Ok(String::new().into()),
            ExitReason::Cut { connections } => {
                tracing::warn!(connections, "live connections were cut at the drain timeout");
                Ok(Output { text: String::new(), code: 1 })
            }
        }
    }
}
