//! Connections that arrive for local pods: as plaintext, or as HBONE streams whose
//! TLS handshake proved the peer.

use std::{error::Error, io, net::SocketAddr, pin::pin, sync::Arc};

use futures_util::future::BoxFuture;
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use super::{
    Dataplane, Failure, failure,
    neighbours::Meeting,
    session::{Facts, Session},
    tcp,
};
use crate::{
    identity,
    model::{
        captured::{CapturedInbound, InboundPeer, Pod},
        listener::{Direction, TerminalFilter},
    },
    observe::{flags::ResponseFlag, log_limit::LogLimit},
    policy::Flow,
    transport::{
        hbone::{ConnectRequest, HboneServer, HboneStream, TlsAcceptError, accept_tls},
        memory::{MemoryRequest, MemoryStream},
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
                let captured = CapturedInbound {
                    pod: Arc::clone(&pod),
                    source,
                    original_destination: request.authority(),
                    peer: InboundPeer::Mtls(peer.clone()),
                };
                dataplane.tasks.spawn(serve_stream(Arc::clone(&dataplane), captured, request));
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
    let io_error = Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    let (reason, story) = match io_error {
        Some(error) => failure::handshake(error),
        None => ("tls", failure::story(error)),
    };
    dataplane.metrics.handshake_failed(Direction::Inbound, reason);
    if let Some(suppressed) = REFUSALS.allows() {
        tracing::warn!(%source, %workload, reason, suppressed, "HBONE handshake failed: {story}");
    }
}

/// Serves one tunnel that stays within the agent. Boxed: what it does may open another.
pub(super) fn serve_neighbour(
    dataplane: Arc<Dataplane>,
    meeting: Meeting,
    ends: (SocketAddr, SocketAddr),
    request: MemoryRequest,
) -> BoxFuture<'static, ()> {
    Box::pin(run_neighbour(dataplane, meeting, ends, request))
}

async fn run_neighbour(
    dataplane: Arc<Dataplane>,
    meeting: Meeting,
    (source, original_destination): (SocketAddr, SocketAddr),
    request: MemoryRequest,
) {
    let Meeting { destination, standing } = meeting;
    let captured = CapturedInbound {
        pod: destination,
        source,
        original_destination,
        peer: InboundPeer::Mtls(standing.source().clone()),
    };
    let session = Session::begin(&dataplane, Facts::from(&captured));
    let cut = session.guard.cancelled().clone();
    let draining = dataplane.draining.child_token();
    let leaving = standing.leaving();
    let mut leaving = pin!(leaving);
    let mut unproven = pin!(standing.unproven());
    let served = serve_tunnel(&dataplane, session, captured, draining.clone(), request);
    let mut served = pin!(served);
    loop {
        tokio::select! {
            () = &mut served => return,
            () = &mut leaving, if !draining.is_cancelled() => draining.cancel(),
            fallen = &mut unproven, if !cut.is_cancelled() => {
                dataplane.metrics.handshake_failed(Direction::Inbound, "untrusted");
                tracing::warn!(%source, identity = %fallen, "a tunnel is cut after a change of trust");
                cut.cancel();
            }
        }
    }
}

/// Serves one CONNECT.
async fn serve_stream(
    dataplane: Arc<Dataplane>,
    captured: CapturedInbound,
    request: ConnectRequest,
) {
    let session = Session::begin(&dataplane, Facts::from(&captured));
    let draining = dataplane.draining.child_token();
    serve_tunnel(&dataplane, session, captured, draining, request).await;
}

/// A peer's wish to be connected, however it came. Dropped, it is refused.
trait Wish: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static;

    /// Says yes; the peer may have gone.
    fn accept(self) -> Result<Self::Stream, Box<dyn Error + Send + Sync>>;

    fn refuse(self, status: StatusCode, reason: &'static str);

    /// Resolves when the peer has given up waiting.
    fn cancelled(&mut self) -> impl Future<Output = ()> + Send;
}

impl Wish for ConnectRequest {
    type Stream = HboneStream;

    fn accept(self) -> Result<HboneStream, Box<dyn Error + Send + Sync>> {
        Ok(ConnectRequest::accept(self)?)
    }

    fn refuse(self, status: StatusCode, reason: &'static str) {
        ConnectRequest::refuse(self, status, reason);
    }

    fn cancelled(&mut self) -> impl Future<Output = ()> + Send {
        ConnectRequest::cancelled(self)
    }
}

impl Wish for MemoryRequest {
    type Stream = MemoryStream;

    fn accept(self) -> Result<MemoryStream, Box<dyn Error + Send + Sync>> {
        Ok(MemoryRequest::accept(self)?)
    }

    fn refuse(self, status: StatusCode, reason: &'static str) {
        MemoryRequest::refuse(self, status, reason);
    }

    fn cancelled(&mut self) -> impl Future<Output = ()> + Send {
        MemoryRequest::cancelled(self)
    }
}

/// Policy is asked, then the application dialled, then yes is said.
async fn serve_tunnel<W: Wish>(
    dataplane: &Arc<Dataplane>,
    mut session: Session,
    captured: CapturedInbound,
    draining: CancellationToken,
    mut request: W,
) {
    let snapshot = dataplane.snapshot.load();
    let flow = Flow::inbound(captured, &snapshot);
    let permit = match session.admit(dataplane, flow, &snapshot) {
        Ok(permit) => permit,
        Err(failure) => {
            session.hold_back().await;
            refuse(request, &failure);
            return session.end(dataplane, Some(failure));
        }
    };
    match permit.flow().terminal().cloned() {
        Some(TerminalFilter::Http(http)) => match request.accept() {
            Ok(stream) => {
                let judged = (permit, snapshot.version);
                super::http_session::serve(dataplane, session, judged, http, draining, stream).await
            }
            Err(error) => session.end(dataplane, Some(downstream_gone(&*error))),
        },
        terminal => {
            let tcp = super::opaque(terminal.as_ref());
            let opened = tokio::select! {
                opened = tcp::open(dataplane, &mut session, &snapshot, &permit, tcp) => opened,
                () = request.cancelled() => {
                    let gone = io::Error::from(io::ErrorKind::ConnectionReset);
                    return session.end(dataplane, Some(downstream_gone(&gone)));
                }
            };
            let failure = match opened {
                Ok(upstream) => match request.accept() {
                    Ok(downstream) => {
                        let judged = (permit, snapshot.version);
                        tcp::run(dataplane, &session, judged, tcp, downstream, upstream).await
                    }
                    Err(error) => Some(downstream_gone(&*error)),
                },
                Err(failure) => {
                    refuse(request, &failure);
                    Some(failure)
                }
            };
            session.end(dataplane, failure);
        }
    }
}

/// The peer learns the class of the failure, not our addresses and policies.
fn refuse(request: impl Wish, failure: &Failure) {
    let status = match failure.flag {
        ResponseFlag::Denied => StatusCode::FORBIDDEN,
        ResponseFlag::NoRouteFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    request.refuse(status, failure.reason);
}

fn downstream_gone(error: &(dyn Error + 'static)) -> Failure {
    Failure {
        flag: ResponseFlag::DownstreamConnectionTermination,
        reason: "downstream_gone",
        policy: None,
        detail: format!("the peer gave the stream up: {}", failure::story(error)),
        transport: None,
    }
}
