//! Connections that clients make to the node's own gateway listeners: who they are and
//! what they ask for, then the same pipeline as for what pods open.
//!
//! Upstream the gateway is a workload of the mesh like any other, with an identity of its
//! own; it dials from the agent's network namespace.

mod half_open;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::server::Acceptor;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

pub use half_open::HalfOpen;

use super::{
    Dataplane, failure,
    listener_filters::{self, Found, Stopped},
    session::{Facts, Session},
};
use crate::{
    codec::proxy_protocol::Addresses,
    identity::{downstream::DownstreamTlsError, refused_by_peer, upstream::refused_server},
    model::{
        captured::{AcceptedByGateway, GatewayPeer, Pod},
        identity::Identity,
        listener::{Direction, GatewayTls},
        listener_filter::{Inspected, ListenerFilters},
        secret::SecretKind,
        socket::PodSockets,
        tls::{CertificateSource, TlsTermination},
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    observe::log_limit::LogLimit,
    policy::{self, Flow},
    snapshot::Snapshot,
    transport::{relay::Abort, replayed::Replayed},
};

/// Whoever reaches the port can provoke these lines.
static REFUSALS: LogLimit = LogLimit::new();

/// The gateway as a workload of this node. Its sockets are the agent's own namespace's.
pub fn workload(identity: Identity) -> Arc<Pod> {
    let workload = Workload {
        // No pod's: their UIDs are file names.
        uid: WorkloadUid("(gateway)".into()),
        name: "gateway".to_owned(),
        identity,
        addresses: Vec::new(),
        labels: BTreeMap::new(),
        mtls: MtlsMode::Strict,
    };
    Arc::new(Pod { workload, sockets: Arc::new(NodeSockets) })
}

/// Sockets of the node itself, which nothing captures.
#[derive(Debug)]
struct NodeSockets;

impl PodSockets for NodeSockets {
    fn tcp(&self, destination: SocketAddr) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        Socket::new(Domain::for_address(destination), kind, Some(Protocol::TCP))
    }

    fn tcp_from(&self, _: SocketAddr, _: SocketAddr) -> io::Result<Socket> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a gateway dials from its own address"))
    }
}

/// Serves one connection that a gateway's socket took, to its end.
pub async fn serve(
    dataplane: Arc<Dataplane>,
    pod: Arc<Pod>,
    half_open: &HalfOpen,
    stream: TcpStream,
    source: SocketAddr,
) {
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    let (Ok(bound), source) = (stream.local_addr().map(canonical), canonical(source)) else {
        return;
    };
    let snapshot = dataplane.snapshot.load();
    let listener = snapshot.listeners.select(Direction::Gateway, bound);
    let Some(filters) = listener.map(|listener| &listener.listener_filters) else {
        // It went while the connection waited to be accepted.
        return abort(stream);
    };
    let accepted = AcceptedByGateway {
        pod,
        bound,
        direct_source: source,
        source,
        original_destination: bound,
        inspected: Inspected::default(),
        peer: GatewayPeer::Plaintext,
    };
    let (mut seen, crowded) = (accepted.clone(), half_open.enter());
    let entered = tokio::select! {
        entered = enter(&dataplane, &snapshot, filters, &mut seen, stream) => entered,
        () = crowded.cancelled() => Err(Refused {
            reason: "crowded_out",
            why: "others were on their way in, and it was for the longest".to_owned(),
        }),
    };
    match entered {
        Ok(Entered::Plain(stream)) => go_on(dataplane, snapshot, seen, stream).await,
        Ok(Entered::Tls(stream)) => go_on(dataplane, snapshot, seen, stream).await,
        Ok(Entered::Gone) => {}
        Err(Refused { reason, why }) => refused(&dataplane, &accepted, reason, &why),
    }
}

/// What a client is once its listener's filters and handshake are done.
enum Entered {
    Plain(Replayed<TcpStream>),
    Tls(Box<TlsStream<Replayed<TcpStream>>>),
    /// It closed the connection.
    Gone,
}

/// Why a client is turned away; its connection is closed.
struct Refused {
    /// For metrics: one of a few, snake_case.
    reason: &'static str,
    why: String,
}

/// Listener filters, then the TLS of the chain they lead to. `accepted` learns of both.
async fn enter(
    dataplane: &Dataplane,
    snapshot: &Snapshot,
    filters: &ListenerFilters,
    accepted: &mut AcceptedByGateway,
    mut stream: TcpStream,
) -> Result<Entered, Refused> {
    let mut sniffed = BytesMut::new();
    match listener_filters::run(filters, &mut stream, &mut sniffed).await {
        Ok(Found { addresses, inspected }) => {
            if let Some(Addresses { source, destination }) = addresses {
                (accepted.source, accepted.original_destination) = (source, destination);
            }
            accepted.inspected = inspected;
        }
        Err(Stopped::Gone) => return Ok(Entered::Gone),
        Err(Stopped::Refused(why)) => {
            abort(stream);
            return Err(Refused { reason: "listener_filter", why: why.to_owned() });
        }
    }
    let stream = Replayed { io: stream, sniffed: sniffed.freeze() };
    let tls = policy::gateway_chain(accepted, snapshot);
    let tls = tls.ok().and_then(|(listener, chain)| Some((listener, chain.tls.clone()?)));
    let Some((listener, tls)) = tls else {
        // Also where no chain is for it, which the access log tells.
        return Ok(Entered::Plain(stream));
    };
    let termination = termination(&listener.name, &tls, snapshot);
    let (peer, stream) = terminate(dataplane, &termination, tls.timeout, stream).await?;
    accepted.peer = peer;
    Ok(Entered::Tls(Box::new(stream)))
}

fn abort(mut stream: TcpStream) {
    stream.abort();
}

/// The connection is what it is: policy, then the chain's terminal filter.
async fn go_on<D>(
    dataplane: Arc<Dataplane>,
    snapshot: Arc<Snapshot>,
    accepted: AcceptedByGateway,
    mut downstream: D,
) where
    D: AsyncRead + AsyncWrite + Abort + Unpin + Send + 'static,
{
    let mut session = Session::begin(&dataplane, Facts::from(&accepted));
    let flow = Flow::gateway(Arc::new(accepted), &snapshot);
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

/// A chain's TLS with the secrets of this snapshot.
fn termination(listener: &Arc<str>, tls: &GatewayTls, snapshot: &Snapshot) -> TlsTermination {
    let settings = Arc::clone(&tls.settings);
    let secret = |name: &Arc<str>| snapshot.secrets.get(name).map(|secret| &secret.kind);
    let certificate = |source: &CertificateSource| match secret(source.secret_name()?)? {
        SecretKind::TlsCertificate(material) => Some(Arc::clone(material)),
        SecretKind::ValidationContext(_) => None,
    };
    let certificates = settings.certificates.iter().map(certificate).collect();
    let validation = settings.validation.as_ref().and_then(|source| source.secret_name());
    let validation = validation.and_then(secret).and_then(|kind| match kind {
        SecretKind::ValidationContext(context) => Some(Arc::clone(context)),
        SecretKind::TlsCertificate(_) => None,
    });
    TlsTermination { listener: Arc::clone(listener), settings, certificates, validation }
}

/// The handshake; who the client is, and the stream inside.
async fn terminate(
    dataplane: &Dataplane,
    termination: &TlsTermination,
    timeout: Option<Duration>,
    stream: Replayed<TcpStream>,
) -> Result<(GatewayPeer, TlsStream<Replayed<TcpStream>>), Refused> {
    let context = dataplane.downstream_tls.context(termination).map_err(|error| {
        let reason = match &error {
            DownstreamTlsError::NoSecret { .. } => "no_secret",
            _ => "no_tls",
        };
        Refused { reason, why: failure::story(&error) }
    })?;
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let handshake = context.handshake(&start.client_hello());
        let stream = start.into_stream(Arc::clone(&handshake.config)).await?;
        io::Result::Ok((context.peer(&handshake, stream.get_ref().1), stream))
    };
    let timeout = timeout.unwrap_or(dataplane.options.tls_handshake_timeout);
    match time::timeout(timeout, handshake).await {
        Ok(Ok(terminated)) => Ok(terminated),
        Ok(Err(error)) => {
            let (reason, why) = match (refused_server(&error), refused_by_peer(&error)) {
                (Some(refused), _) => ("client_refused", refused.to_string()),
                (None, Some(alert)) => ("refused_by_peer", alert.to_string()),
                (None, None) => ("tls", failure::story(&error)),
            };
            Err(Refused { reason, why })
        }
        Err(_) => {
            Err(Refused { reason: "timeout", why: format!("no TLS handshake within {timeout:?}") })
        }
    }
}

fn refused(dataplane: &Dataplane, accepted: &AcceptedByGateway, reason: &'static str, why: &str) {
    dataplane.metrics.handshake_failed(Direction::Gateway, reason);
    if let Some(suppressed) = REFUSALS.allows() {
        let AcceptedByGateway { direct_source, bound, .. } = accepted;
        tracing::warn!(%direct_source, %bound, reason, suppressed, "connection refused: {why}");
    }
}
