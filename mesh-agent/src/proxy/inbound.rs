//! Connections that arrive for local pods: as plaintext, or as HBONE streams whose
//! TLS handshake proved the peer.

use std::{io, net::SocketAddr, sync::Arc};

use http::StatusCode;
use tokio::net::TcpStream;

use super::{
    Dataplane, Failure, failure,
    session::{Facts, Session},
    tcp,
};
use crate::{
    identity,
    model::{
        captured::{CapturedInbound, InboundPeer, Pod},
        identity::Identity,
        listener::{Direction, TerminalFilter},
    },
    observe::{flags::ResponseFlag, log_limit::LogLimit},
    policy::Flow,
    transport::{
        hbone::{ConnectRequest, HboneServer, TlsAcceptError, accept_tls},
        relay::Abort,
    },
};

/// Whoever reaches the port can provoke these lines.
static REFUSALS: LogLimit = LogLimit::new();

/// Serves one connection that came in the clear.
pub async fn serve_plaintext(
    dataplane: Arc<Dataplane>,
    mut downstream: TcpStream,
    captured: CapturedInbound,
) {
    let mut session = Session::begin(&dataplane, Facts::from(&captured));
    let snapshot = dataplane.snapshot.load();
    let flow = Flow::inbound(captured, &snapshot);
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

/// Serves one connection to a pod's HBONE port: the handshake, then every stream.
pub async fn serve_hbone(
    dataplane: Arc<Dataplane>,
    pod: Arc<Pod>,
    mut stream: TcpStream,
    source: SocketAddr,
) {
    let local = &pod.workload.identity;
    let config = match dataplane.identities.server_config(local) {
        Ok(config) => config,
        Err(error) => {
            dataplane.metrics.handshake_failed(Direction::Inbound, "no_certificate");
            tracing::error!(%source, workload = %pod.workload.uid, "HBONE refused: {}", failure::story(&error));
            return stream.abort();
        }
    };
    // From before the handshake, so that no change is missed.
    let mut trust = dataplane.identities.trust();
    trust.mark_unchanged();
    let let_in = dataplane.identities.now();
    let timeout = dataplane.options.tls_handshake_timeout;
    let tls = match accept_tls(stream, config, timeout).await {
        Ok(tls) => tls,
        Err(error) => return handshake_failed(&dataplane, &pod, source, &error),
    };
    let peer = match identity::peer_identity(tls.get_ref().1) {
        Ok(peer) => peer,
        Err(refused) => {
            dataplane.metrics.handshake_failed(Direction::Inbound, refused.reason());
            if let Some(suppressed) = REFUSALS.allows() {
                let workload = &pod.workload.uid;
                tracing::warn!(%source, %workload, suppressed, "HBONE refused: {refused}");
            }
            return;
        }
    };
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let options = dataplane.options.hbone_server.clone();
    let mut server = match HboneServer::handshake(tls, options).await {
        Ok(server) => server,
        Err(error) => {
            let error = failure::story(&error);
            tracing::info!(%source, %peer, workload = %pod.workload.uid, "HBONE ended: {error}");
            return;
        }
    };
    let mut draining = false;
    loop {
        let request = tokio::select! {
            request = server.next() => request,
            Ok(()) = trust.changed() => {
                // Its streams end with it.
                if let Err(refused) = dataplane.identities.judge_client(&chain, let_in) {
                    dataplane.metrics.handshake_failed(Direction::Inbound, refused.reason());
                    let workload = &pod.workload.uid;
                    tracing::warn!(%source, %workload, "HBONE cut after a change of trust: {refused}");
                    return;
                }
                continue;
            }
            () = dataplane.draining.cancelled(), if !draining => {
                draining = true;
                server.graceful_shutdown();
                continue;
            }
        };
        match request {
            Some(Ok(request)) => {
                let stream = serve_stream(
                    Arc::clone(&dataplane),
                    Arc::clone(&pod),
                    request,
                    source,
                    peer.clone(),
                );
                dataplane.tasks.spawn(stream);
            }
            Some(Err(error)) => {
                let error = failure::story(&error);
                tracing::info!(%source, %peer, workload = %pod.workload.uid, "HBONE ended: {error}");
            }
            None => return,
        }
    }
}

fn handshake_failed(dataplane: &Dataplane, pod: &Pod, source: SocketAddr, error: &TlsAcceptError) {
    let workload = &pod.workload.uid;
    let io_error = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    let (reason, story) = match io_error {
        Some(error) => failure::handshake(error),
        None => ("tls", failure::story(error)),
    };
    dataplane.metrics.handshake_failed(Direction::Inbound, reason);
    if let Some(suppressed) = REFUSALS.allows() {
        tracing::warn!(%source, %workload, reason, suppressed, "HBONE handshake failed: {story}");
    }
}

/// One CONNECT: policy is asked, then the application dialled, then 200 is answered.
async fn serve_stream(
    dataplane: Arc<Dataplane>,
    pod: Arc<Pod>,
    mut request: ConnectRequest,
    source: SocketAddr,
    peer: Identity,
) {
    let captured = CapturedInbound {
        pod,
        source,
        original_destination: request.authority(),
        peer: InboundPeer::Mtls(peer),
    };
    let mut session = Session::begin(&dataplane, Facts::from(&captured));
    let snapshot = dataplane.snapshot.load();
    let flow = Flow::inbound(captured, &snapshot);
    let permit = match session.admit(&dataplane, flow, &snapshot) {
        Ok(permit) => permit,
        Err(failure) => {
            session.hold_back().await;
            refuse(request, &failure);
            return session.end(&dataplane, Some(failure));
        }
    };
    match permit.flow().terminal().cloned() {
        Some(TerminalFilter::Http(http)) => match request.accept() {
            Ok(stream) => {
                let judged = (permit, snapshot.version);
                super::http_session::serve(&dataplane, session, judged, http, stream).await
            }
            Err(error) => session.end(&dataplane, Some(downstream_gone(&error))),
        },
        terminal => {
            let tcp = super::opaque(terminal.as_ref());
            let opened = tokio::select! {
                opened = tcp::open(&dataplane, &mut session, &snapshot, &permit, tcp) => opened,
                () = request.cancelled() => {
                    let gone = io::Error::from(io::ErrorKind::ConnectionReset);
                    return session.end(&dataplane, Some(downstream_gone(&gone)));
                }
            };
            let failure = match opened {
                Ok(upstream) => match request.accept() {
                    Ok(downstream) => {
                        let judged = (permit, snapshot.version);
                        tcp::run(&dataplane, &session, judged, tcp, downstream, upstream).await
                    }
                    Err(error) => Some(downstream_gone(&error)),
                },
                Err(failure) => {
                    refuse(request, &failure);
                    Some(failure)
                }
            };
            session.end(&dataplane, failure);
        }
    }
}

/// The peer learns the class of the failure, not our addresses and policies.
fn refuse(request: ConnectRequest, failure: &Failure) {
    let status = match failure.flag {
        ResponseFlag::Denied => StatusCode::FORBIDDEN,
        ResponseFlag::NoRouteFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    request.refuse(status, failure.reason);
}

fn downstream_gone(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure {
        flag: ResponseFlag::DownstreamConnectionTermination,
        reason: "downstream_gone",
        policy: None,
        detail: format!("the peer gave the stream up: {}", failure::story(error)),
        transport: None,
    }
}
