//! Connections that local pods open. Read this page first.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::{
    Dataplane, failure,
    session::{Facts, Session},
};
use crate::{
    model::captured::CapturedOutbound,
    policy::Flow,
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
