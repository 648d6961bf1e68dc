//! What the kernel path does while no agent is there.

use serde::{Deserialize, Serialize};

/// Whether the kernel goes on opening connections by the verdicts last compiled. An
/// agent's choice, or one workload's; both ends of a connection have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentDown {
    /// New connections are refused.
    #[default]
    Refuse,
    /// They go on, until the certificate of either end expires; what no verdict is for
    /// is refused.
    Keep,
}
