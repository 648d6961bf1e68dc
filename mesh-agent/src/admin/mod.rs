//! The agent's own HTTP: health, metrics and dumps on a loopback address, and
//! control over a Unix socket whose file permissions are the only credential.
//!
//! This room must not know how the agent does what it is asked: it speaks to
//! [`AgentControl`], which `app` implements. Nothing that changes the agent is
//! reachable over TCP.

#![forbid(unsafe_code)]

mod api;
mod config_dump;
mod enroll;
mod routes;
mod server;
mod socket;
mod xds;

#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, path::PathBuf};

use futures_util::future::BoxFuture;

use crate::model::workload::WorkloadUid;

pub use api::{
    CertificateView, ConnectionView, ErrorView, HboneView, KernelPathView, MapView, MissingView,
    PodView, Readiness, RejectedConfig, SnapshotView, SpliceView, StatusView, Timestamp,
    VerdictView,
};
pub use config_dump::{ConfigDump, VersionView};
pub use enroll::{EnrollRequest, InvalidEnrollment, NetnsRef, PodsFile, PodsFileError};
pub use server::{bind_tcp, serve_tcp, serve_unix};
pub use socket::{ControlSocket, bind_unix};
pub use xds::{XdsRefusedView, XdsSourceView, XdsTypeView, XdsView, XdsWarmingView};

/// What the admin server asks of the agent. Views are taken at once and copied;
/// only what changes the agent is async.
pub trait AgentControl: Send + Sync + 'static {
    /// Enrols a pod: attach, listen, first certificate, then capture. Once it
    /// answers, the pod's new connections are captured. Cancelling the future
    /// must not leave the pod half enrolled.
    fn enroll(&self, request: EnrollRequest) -> BoxFuture<'_, Result<PodView, ControlError>>;

    /// Gives a pod its plain networking back.
    fn unenroll(&self, uid: WorkloadUid) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Begins to drain, as SIGTERM does; returns at once.
    fn drain(&self);

    /// The enrolled pods, by uid.
    fn pods(&self) -> Vec<PodView>;

    /// The agent in one page.
    fn status(&self) -> StatusView;

    /// The configuration in force.
    fn config_dump(&self) -> ConfigDump;

    /// The live connections, oldest first.
    fn connections(&self) -> Vec<ConnectionView>;

    /// Whether the agent can do its work, and if not, why.
    fn readiness(&self) -> Readiness;

    /// The metrics in OpenMetrics text.
    fn metrics(&self) -> String;
}

/// Why the agent did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The request can't be honoured as it stands (400).
    #[error("{0}")]
    Invalid(String),
    /// No such pod is enrolled (404).
    #[error("no pod with uid `{0}` is enrolled")]
    NotFound(WorkloadUid),
    /// The pod is enrolled already, differently (409).
    #[error("{0}")]
    Conflict(String),
    /// The agent is on its way out (503).
    #[error("the agent is draining and takes no new pods")]
    Draining,
    /// It was tried and failed (500).
    #[error("{0}")]
    Failed(String),
}

/// Why the admin server did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The admin address can't be listened on.
    #[error("admin address {address} can't be listened on")]
    Listen { address: SocketAddr, source: io::Error },
    /// The directory of the control socket can't be made or looked at.
    #[error("directory {path} of the control socket can't be used")]
    Directory { path: PathBuf, source: io::Error },
    /// Something that is not a socket has its name.
    #[error("{path} is not a socket: move it away or choose another --socket")]
    NotASocket { path: PathBuf },
    /// Another agent holds it.
    #[error("another agent serves {path}: stop it or choose another --socket")]
    InUse { path: PathBuf },
    /// The control socket can't be made.
    #[error("control socket {path} can't be made")]
    Socket { path: PathBuf, source: io::Error },
}
