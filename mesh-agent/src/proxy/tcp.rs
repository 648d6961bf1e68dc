//! Opaque connections: pick, dial, relay, and judge again while they live.

use std::time::Instant;

use super::{Dataplane, Failure, Upstream, failure, rejudge, session::Session};
use crate::{
    model::listener::TcpProxy,
    observe::{flags::ResponseFlag, metrics::AttemptFailure},
    policy::Permit,
    route::{self, Destination, NoDestination, Outcome},
    snapshot::Snapshot,
    transport::relay::{Abort, EndedBy, RelayOutcome, Side, relay},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Decides where the connection goes and dials it. `tcp` is `None` for passthrough.
pub(super) async fn open(
    dataplane: &Dataplane,
    session: &mut Session,
    snapshot: &Snapshot,
    permit: &Permit,
    tcp: Option<&TcpProxy>,
) -> Result<(Upstream, Destination), Failure> {
    let destination = match tcp {
        Some(tcp) => {
            let random = &mut |below| rand::random_range(0..below);
            let decided = route::decide_tcp(
                permit,
                tcp,
                snapshot,
                &dataplane.balancers,
                random,
                Instant::now(),
            );
            decided.inspect_err(|error| {
                session.stranded(error);
                if let NoDestination::DropOverload { category, .. } = error {
                    dataplane.metrics.drop_overload(category);
                }
            })?
        }
        None => route::decide_passthrough(permit, snapshot)?,
    };
    session.destined(&destination);
    let upstream = dataplane.connector.connect(permit.flow(), &destination).await;
    let outcome = if upstream.is_ok() { Outcome::Opened } else { Outcome::Failed };
    let random = &mut |below| rand::random_range(0..below);
    destination.reporter().report(outcome, Instant::now(), random);
    if let (Some(cluster), Err(_)) = (destination.cluster(), &upstream) {
        dataplane.http.clusters.of(cluster).failed(AttemptFailure::Connect);
    }
    let upstream = upstream?;
    session.connected(&upstream);
    Ok((upstream, destination))
}

/// Relays until both ways have ended, or policy no longer lets the connection live.
/// `permit` was made of snapshot `version`.
pub(super) async fn run<D>(
    dataplane: &Dataplane,
    session: &Session,
    (permit, version): (Permit, u64),
    tcp: Option<&TcpProxy>,
    downstream: D,
    (upstream, destination): (Upstream, Destination),
) -> Option<Failure>
where
    D: AsyncRead + AsyncWrite + Abort + Unpin,
{
    session.count_tcp(dataplane);
    let cluster = destination.cluster();
    let _counted = cluster.map(|cluster| dataplane.http.clusters.of(cluster).connected());
    let _load = destination.into_load();
    let idle = tcp.and_then(|tcp| tcp.idle_timeout);
    let cancel = session.guard.cancelled();
    let relayed = relay(downstream, upstream, idle, session.guard.counters(), cancel);
    let mut relayed = std::pin::pin!(relayed);
    tokio::select! {
        outcome = &mut relayed => explain(outcome),
        ended = rejudge::ended(dataplane, permit, version, |_, _| ()) => {
            cancel.cancel();
            relayed.await;
            Some(ended)
        }
    }
}

fn explain(outcome: RelayOutcome) -> Option<Failure> {
    let RelayOutcome { ended_by, error } = outcome;
    let (flag, reason) = match (ended_by, &error) {
        (EndedBy::Side(_), None) => return None,
        (EndedBy::Cancelled, _) => return Some(failure::cut()),
        (EndedBy::Side(Side::Downstream), Some(_)) => {
            (ResponseFlag::DownstreamConnectionTermination, "downstream_reset")
        }
        (EndedBy::Side(Side::Upstream), Some(_)) => {
            (ResponseFlag::UpstreamConnectionTermination, "upstream_reset")
        }
        (EndedBy::Idle, _) => (ResponseFlag::StreamIdleTimeout, "idle"),
    };
    let detail = match error {
        Some(error) => failure::story(&error),
        None => "idle timeout".to_owned(),
    };
    Some(Failure { flag, reason, policy: None, detail, transport: None })
}
