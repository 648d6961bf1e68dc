//! Connections that local pods open. Read this page first.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::{
    Dataplane, Failure, failure,
    half_open::{CROWDED_OUT, HalfOpen},
    listener_filters::{self, Stopped},
    session::{Facts, Session},
};
use crate::{
    model::captured::CapturedOutbound,
    observe::log_limit::LogLimit,
    policy::{self, Flow},
    snapshot::Snapshot,
    transport::{leg::Leg, relay::Abort, replayed::Replayed},
};

/// A pod can provoke these lines.
static CROWDED: LogLimit = LogLimit::new();

/// Serves one captured connection to its end.
pub async fn serve(
    dataplane: Arc<Dataplane>,
    half_open: &HalfOpen,
    downstream: TcpStream,
    mut captured: CapturedOutbound,
) {
    let mut session = Session::begin(&dataplane, Facts::from(&captured));
    let mut downstream = match Leg::of(downstream, &*captured.pod.sockets) {
        Ok(downstream) => downstream,
        Err(error) => return session.end(&dataplane, Some(failure::unknown_leg(&error))),
    };
    let cut = session.guard.cancelled();
    let inspected = tokio::select! {
        biased;
        inspected = inspect(&dataplane, half_open, &mut captured, &mut downstream) => inspected,
        () = cut.cancelled() => Err(failure::cut()),
    };
    let (snapshot, sniffed) = match inspected {
        Ok(inspected) => inspected,
        Err(failure) => {
            downstream.abort();
            return session.end(&dataplane, Some(failure));
        }
    };
    let mut downstream = Replayed { io: downstream, sniffed };
    let flow = Flow::outbound(captured, &snapshot, dataplane.options.outbound_policy);
    let permit = match session.admit(&dataplane, flow, &snapshot) {
        Ok(permit) => permit,
        Err(failure) => {
            session.hold_back().await;
            downstream.abort();
            return session.end(&dataplane, Some(failure));
        }
    };
    super::serve(&dataplane, session, &snapshot, permit, downstream).await;
}

/// Runs the listener's filters. What is in force once they are done, which they have looked
/// for, and what was read.
async fn inspect(
    dataplane: &Dataplane,
    half_open: &HalfOpen,
    captured: &mut CapturedOutbound,
    downstream: &mut Leg,
) -> Result<(Arc<Snapshot>, Bytes), Failure> {
    let snapshot = dataplane.snapshot.load();
    let listener = policy::outbound_listener(captured, &snapshot);
    if !listener.is_some_and(|listener| listener.listener_filters.wait()) {
        return Ok((snapshot, Bytes::new()));
    }
    let mut bytes = BytesMut::new();
    let entering = half_open.enter();
    let running = listener_filters::run(
        &dataplane.snapshot,
        |snapshot| policy::outbound_listener(captured, snapshot),
        &entering,
        downstream,
        &mut bytes,
    );
    let found = tokio::select! {
        found = running => found,
        () = entering.crowded_out() => {
            if let Some(suppressed) = CROWDED.allows() {
                let (pod, to) = (&captured.pod.workload.uid, captured.original_destination);
                tracing::warn!(%pod, %to, suppressed, "connection refused: {CROWDED_OUT}");
            }
            Err(Stopped::Refused(CROWDED_OUT))
        }
    };
    let (snapshot, found) = found.map_err(failure::not_inspected)?;
    captured.inspected = found.inspected;
    Ok((snapshot, bytes.freeze()))
}
