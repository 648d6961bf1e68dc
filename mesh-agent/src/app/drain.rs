//! The end: nothing new is taken, what runs comes to its end or is cut.

use std::time::Duration;

use tokio::time;

use super::{Agent, CUT_GRACE, ExitReason};

/// For the last spans.
const SPANS_GRACE: Duration = Duration::from_secs(1);

/// Takes nothing new, lets what runs come to its end, cuts the rest. Capture stays attached:
/// new connections of enrolled pods are the next agent's, and are refused until there is one.
///
/// After a hand-over the configuration is followed as before, so that a change of policy
/// cuts what it denies; told to stop as well, the agent cuts at once.
pub(super) async fn drain(agent: &Agent) -> ExitReason {
    let dataplane = &agent.dataplane;
    let timeout = agent.config.traffic.drain_timeout;
    let handed_over = !agent.stop.is_cancelled();
    tracing::info!(connections = dataplane.connections.len(), ?timeout, handed_over, "draining");
    dataplane.draining.cancel();
    agent.pods.stop_accepting();
    dataplane.tasks.close();
    let tunnels = &dataplane.connector.hbone;
    let reason = if handed_over {
        // What was accepted last may still ask for a tunnel.
        let patience = async {
            tokio::select! {
                () = time::sleep(timeout) => {}
                () = agent.stop.cancelled() => {}
            }
        };
        let reason = end(agent, patience).await;
        tunnels.close_all(CUT_GRACE).await;
        reason
    } else {
        // Tunnels of connections that run on stay open until these are cut.
        tokio::join!(end(agent, time::sleep(timeout)), tunnels.close_all(timeout + CUT_GRACE)).0
    };
    dataplane.http.spans.flush(SPANS_GRACE).await;
    dataplane.identities.shutdown().await;
    if handed_over {
        tracing::info!(?reason, "stopped; another agent has taken over");
        return reason;
    }
    if let Err(error) = agent.last_good.flush() {
        tracing::error!(%error, "the last good configuration can't be written");
    }
    tracing::info!(?reason, "stopped; capture stays attached and refuses new connections");
    reason
}

/// Waits for what is served, and cuts it when there is no more patience.
async fn end(agent: &Agent, patience: impl Future<Output = ()>) -> ExitReason {
    let dataplane = &agent.dataplane;
    let reason = tokio::select! {
        () = dataplane.tasks.wait() => ExitReason::Drained,
        () = patience => match dataplane.connections.cancel_all() {
            // Idle keep-alive connections of peers are no loss.
            0 => ExitReason::Drained,
            connections => ExitReason::Cut { connections },
        },
    };
    if time::timeout(CUT_GRACE, dataplane.tasks.wait()).await.is_err() {
        tracing::debug!("connections were dropped, not closed");
    }
    reason
}
