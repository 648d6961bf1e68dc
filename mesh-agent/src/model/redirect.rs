//! Whether packets between pods of one node take the short way.

use serde::{Deserialize, Serialize};

/// Whether packets of the kernel path are handed straight into their pod, past what
/// is on the interfaces between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectMode {
    /// Where nothing else is there to see them.
    #[default]
    Auto,
    On,
    Off,
}
