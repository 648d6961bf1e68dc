//! The sole wiring site: makes every room and connects them.

use crate::config::AgentConfig;

/// How `mesh-agent run` ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Told to stop; every connection ended within the drain timeout.
    Drained,
    /// Told to stop; this many connections were cut at the drain timeout.
    Cut { connections: usize },
}

/// Runs the agent until it is told to stop. Blocks; makes its own runtimes.
///
/// # Errors
/// What kept the agent from starting, or from going on.
pub fn run(config: AgentConfig) -> anyhow::Result<ExitReason> {
    anyhow::bail!("node {}: the agent's rooms are not wired", config.node.name)
}
