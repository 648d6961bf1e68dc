//! Connections that local pods open. Read this page first.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::{
    Dataplane, Failure, failure, listener_filters,
    session::{Facts, Session},
};
use crate::{
    model::{captured::CapturedOutbound, listener_filter::ListenerFilters},
    policy::{self, Flow},
    snapshot::Snapshot,
    transport::{leg::Leg, relay::Abort, replayed::Replayed},
};

/// Serves one captured connection to its end.
pub async fn serve(
    dataplane: Arc<Dataplane>,
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
        inspected = inspect(&dataplane, &mut captured, &mut downstream) => inspected,
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
    captured: &mut CapturedOutbound,
    downstream: &mut Leg,
) -> Result<(Arc<Snapshot>, Bytes), Failure> {
    let mut bytes = BytesMut::new();
    let mut done: Option<ListenerFilters> = None;
    loop {
        let snapshot = dataplane.snapshot.load();
        let listener = policy::outbound_listener(captured, &snapshot);
        let filters = listener.map(|listener| &listener.listener_filters);
        match filters.filter(|filters| filters.wait() && done.as_ref() != Some(*filters)) {
            None => return Ok((snapshot, bytes.freeze())),
            Some(filters) => {
                let found = listener_filters::run(filters, downstream, &mut bytes).await;
                captured.inspected = found.map_err(failure::not_inspected)?.inspected;
                done = Some(filters.clone());
            }
        }
    }
}
