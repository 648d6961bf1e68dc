//! The pipelines, one screen each: [`outbound`], [`inbound`] and [`gateway`].
//!
//! Both go `Captured → Flow → Permit → Destination → relay`; each arrow is another
//! room's decision, and the private constructors of those types make it impossible
//! to dial what was not authorized. This room must not know where configuration
//! comes from, nor how connections were captured.

#![forbid(unsafe_code)]

mod connection_log;
mod downstream_values;
mod failure;
pub mod gateway;
mod half_open;
pub mod health;
pub mod http;
mod http_session;
pub mod inbound;
pub mod kernel_path;
mod listener_filters;
mod log_filter;
pub mod neighbours;
mod network_filters;
pub mod on_demand;
mod originate;
pub mod outbound;
mod rejudge;
mod session;
mod tcp;
mod token_bucket;
mod upstream;

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use failure::{Failure, story};
pub use half_open::HalfOpen;
pub use originate::Origination;
pub use upstream::{Connector, Upstream};

use self::session::Session;
use crate::{
    identity::{IdentityManager, downstream::DownstreamContexts},
    model::listener::{TcpProxy, TerminalFilter},
    observe::{access_log::AccessLog, connections::Connections, metrics::Metrics},
    policy::{OutboundPolicy, Permit},
    route::Balancers,
    snapshot::{Snapshot, SnapshotCell},
    transport::{hbone::HboneServerOptions, relay::Abort},
};

/// What every connection of the node shares.
pub struct Dataplane {
    pub snapshot: Arc<SnapshotCell>,
    pub identities: Arc<IdentityManager>,
    /// Of gateways' clients.
    pub downstream_tls: Arc<DownstreamContexts>,
    pub balancers: Arc<Balancers>,
    pub connector: Arc<Connector>,
    pub http: http::HttpServices,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    pub connections: Connections,
    pub options: Options,
    /// Cancelled when the agent begins to drain: no new streams and requests are
    /// taken on connections that live on.
    pub draining: CancellationToken,
    /// Every task that serves a connection.
    pub tasks: TaskTracker,
}

/// Settings of the pipelines.
#[derive(Debug, Clone)]
pub struct Options {
    pub outbound_policy: OutboundPolicy,
    /// How long connections live on whose listener or filter chain is gone or another one.
    pub drain_timeout: Duration,
    /// For a peer's TLS handshake on the HBONE port.
    pub tls_handshake_timeout: Duration,
    pub hbone_server: HboneServerOptions,
}

/// Serves a permitted connection by what its filter chain ends in, to its end.
async fn serve<D>(
    dataplane: &Arc<Dataplane>,
    mut session: Session,
    snapshot: &Snapshot,
    permit: Permit,
    mut downstream: D,
) where
    D: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
{
    let terminal = permit.flow().terminal().cloned();
    if let Some(TerminalFilter::Http(http)) = terminal {
        let judged = (permit, snapshot.version);
        let draining = dataplane.draining.child_token();
        return http_session::serve(dataplane, session, judged, http, draining, downstream).await;
    }
    let tcp = opaque(terminal.as_ref());
    let failure = match tcp::open(dataplane, &mut session, snapshot, &permit, tcp).await {
        Ok(upstream) => {
            let judged = (permit, snapshot.version);
            tcp::run(dataplane, &session, judged, tcp, downstream, upstream).await
        }
        Err(failure) => {
            downstream.abort();
            Some(failure)
        }
    };
    session.end(dataplane, failure);
}

/// The settings of an opaque connection; `None` for passthrough.
fn opaque(terminal: Option<&TerminalFilter>) -> Option<&TcpProxy> {
    match terminal {
        Some(TerminalFilter::TcpProxy(tcp)) => Some(tcp),
        Some(TerminalFilter::Http(_)) | None => None,
    }
}
