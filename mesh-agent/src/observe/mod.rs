//! Metrics, access log and live connections: what the data path did, told in the
//! field's names.
//!
//! Nothing here blocks the data path: counters are atomics, log lines go over a
//! bounded channel and are dropped (and counted) when it is full. This room must
//! not know who asks; `admin` reads it, `proxy` and `transport` write it.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod connections;
pub mod counters;
pub mod flags;
pub mod log_limit;
pub mod metrics;
pub mod printable;

use std::fmt;

use serde::Serialize;

/// What a captured connection turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
pub enum Protocol {
    /// Opaque bytes.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HTTP/1.1")]
    Http1,
    #[serde(rename = "HTTP/2")]
    Http2,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// How the connection between the two workloads was protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionSecurity {
    /// Both sides proved their identity.
    MutualTls,
    /// Plaintext.
    #[default]
    None,
}

impl fmt::Display for ConnectionSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MutualTls => "mutual_tls",
            Self::None => "none",
        })
    }
}
