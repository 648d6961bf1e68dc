//! Connections that local pods open. Read this page first.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    Dataplane, Failure, failure,
    session::{Facts, Session},
};
use crate::{
    model::captured::CapturedOutbound,
    policy::{self, Flow, Permit},
    snapshot::Snapshot,
    transport::{leg::Leg, relay::Abort},
};

/// Serves one captured connection to its end.
pub async fn serve(dataplane: Arc<Dataplane>, downstream: TcpStream, captured: CapturedOutbound) {
    let mut session = Session::begin(&dataplane, Facts::from(&captured));
    let mut downstream = match Leg::of(downstream, &*captured.pod.sockets) {
        Ok(downstream) => downstream,
        Err(error) => return session.end(&dataplane, Some(failure::unknown_leg(&error))),
    };
    let snapshot = dataplane.snapshot.load();
    let permit = match judge(&dataplane, &snapshot, captured) {
        Ok(permit) => permit,
        Err(failure) => {
            downstream.abort();
            return session.end(&dataplane, Some(failure));
        }
    };
    session.permitted(&permit);
    super::serve(&dataplane, session, &snapshot, permit, downstream).await;
}

fn judge(
    dataplane: &Dataplane,
    snapshot: &Snapshot,
    captured: CapturedOutbound,
) -> Result<Permit, Failure> {
    let flow = Flow::outbound(captured, snapshot, dataplane.options.outbound_policy)?;
    Ok(policy::authorize(flow)?)
}
