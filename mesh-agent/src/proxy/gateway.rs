//! Connections that clients make to the node's own gateway listeners: who they are and
//! what they ask for, then the same pipeline as for what pods open.
//!
//! Upstream the gateway is a workload of the mesh like any other, with an identity of its
//! own; it dials from the agent's network namespace.

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

use super::{
    Dataplane, failure,
    half_open::{CROWDED_OUT, Entering, HalfOpen},
    listener_filters::{self, Found, Stopped},
    session::{Facts, Session},
};
use crate::{
    codec::proxy_protocol::Addresses,
    identity::{
        downstream::{DownstreamContext, DownstreamTlsError, Handshake},
        refused_by_peer,
        upstream::refused_server,
    },
    model::{
        captured::{AcceptedByGateway, GatewayPeer, Pod},
        identity::Identity,
        listener::{Direction, GatewayTls},
        listener_filter::Inspected,
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
    let accepted = AcceptedByGateway {
        pod,
        bound,
        direct_source: source,
        source,
        original_destination: bound,
        inspected: Inspected::default(),
        peer: GatewayPeer::Plaintext,
    };
    let mut seen = accepted.clone();
    let entered = {
        let entering = half_open.enter();
        tokio::select! {
            entered = enter(&dataplane, &entering, &mut seen, stream) => entered,
            () = entering.crowded_out() => {
                Err(Refused { reason: "crowded_out", why: CROWDED_OUT.to_owned() })
            }
        }
    };
    match entered {
        Ok(Entered::Plain(snapshot, stream)) => go_on(dataplane, snapshot, seen, stream).await,
        Ok(Entered::Tls(snapshot, stream)) => go_on(dataplane, snapshot, seen, stream).await,
        Ok(Entered::Gone) => {}
        Err(Refused { reason, why }) => refused(&dataplane, &accepted, reason, &why),
    }
}

/// What a client is once its listener's filters and handshake are done, and what is in force
/// by then.
enum Entered {
    Plain(Arc<Snapshot>, Replayed<TcpStream>),
    Tls(Arc<Snapshot>, Box<TlsStream<Replayed<TcpStream>>>),
    /// It closed the connection.
    Gone,
}

/// The TLS of a chain, and how long a handshake may take where that is configured.
type ChainTls = (Arc<DownstreamContext>, Option<Duration>);

/// Why a client is turned away; its connection is closed.
struct Refused {
    /// For metrics: one of a few, snake_case.
    reason: &'static str,
    why: String,
}

/// Listener filters, then the TLS of the chain they lead to. `accepted` learns of both.
async fn enter(
    dataplane: &Dataplane,
    entering: &Entering<'_>,
    accepted: &mut AcceptedByGateway,
    mut stream: TcpStream,
) -> Result<Entered, Refused> {
    let (current, mut sniffed) = (&dataplane.snapshot, BytesMut::new());
    let bound = accepted.bound;
    let found = listener_filters::run(
        current,
        |snapshot| policy::gateway_listener(bound, snapshot),
        entering,
        &mut stream,
        &mut sniffed,
    )
    .await;
    let snapshot = match found {
        Ok((snapshot, Found { addresses, inspected })) => {
            if let Some(Addresses { source, destination }) = addresses {
                (accepted.source, accepted.original_destination) = (source, destination);
            }
            accepted.inspected = inspected;
            snapshot
        }
        Err(Stopped::Gone) => return Ok(Entered::Gone),
        Err(Stopped::Refused(why)) => {
            stream.abort();
            return Err(Refused { reason: "listener_filter", why: why.to_owned() });
        }
    };
    let stream = Replayed { io: stream, sniffed: sniffed.freeze() };
    let Some((context, timeout)) = tls_context(dataplane, accepted, &snapshot)? else {
        // Also where no chain is for it, which the access log tells.
        return Ok(Entered::Plain(snapshot, stream));
    };
    let timeout = timeout.unwrap_or(dataplane.options.tls_handshake_timeout);
    let (begun, stream) = handshake(&context, timeout, stream).await?;
    // A client may take its time: what is in force after the handshake counts.
    let snapshot = dataplane.snapshot.load();
    let connection = stream.get_ref().1;
    accepted.peer = match tls_context(dataplane, accepted, &snapshot)? {
        Some((now, _)) if !Arc::ptr_eq(&now, &context) => {
            now.judge_again(connection).map_err(|e| not_shaken(&io::Error::other(e)))?;
            now.peer(&begun, connection)
        }
        // Where there is none any more, the connection has no chain either.
        _ => context.peer(&begun, connection),
    };
    Ok(Entered::Tls(snapshot, Box::new(stream)))
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

/// The TLS of the chain that is for a client; `None` where that has none, or there is no chain.
fn tls_context(
    dataplane: &Dataplane,
    accepted: &AcceptedByGateway,
    snapshot: &Snapshot,
) -> Result<Option<ChainTls>, Refused> {
    let Ok((listener, chain)) = policy::gateway_chain(accepted, snapshot) else { return Ok(None) };
    let Some(tls) = &chain.tls else { return Ok(None) };
    let context = dataplane.downstream_tls.context(&termination(&listener.name, tls, snapshot));
    let context = context.map_err(|error| {
        let reason = match &error {
            DownstreamTlsError::NoSecret { .. } => "no_secret",
            _ => "no_tls",
        };
        Refused { reason, why: failure::story(&error) }
    })?;
    Ok(Some((context, tls.timeout)))
}

async fn handshake(
    context: &DownstreamContext,
    timeout: Duration,
    stream: Replayed<TcpStream>,
) -> Result<(Handshake, TlsStream<Replayed<TcpStream>>), Refused> {
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let begun = context.handshake(&start.client_hello());
        let stream = start.into_stream(Arc::clone(&begun.config)).await?;
        Ok((begun, stream))
    };
    match time::timeout(timeout, handshake).await {
        Ok(shaken) => shaken.map_err(|error| not_shaken(&error)),
        Err(_) => {
            Err(Refused { reason: "timeout", why: format!("no TLS handshake within {timeout:?}") })
        }
    }
}

fn not_shaken(error: &io::Error) -> Refused {
    let (reason, why) = match (refused_server(error), refused_by_peer(error)) {
        (Some(refused), _) => ("client_refused", refused.to_string()),
        (None, Some(alert)) => ("refused_by_peer", alert.to_string()),
        (None, None) => ("tls", failure::story(error)),
    };
    Refused { reason, why }
}

fn refused(dataplane: &Dataplane, accepted: &AcceptedByGateway, reason: &'static str, why: &str) {
    dataplane.metrics.handshake_failed(Direction::Gateway, reason);
    if let Some(suppressed) = REFUSALS.allows() {
        let AcceptedByGateway { direct_source, bound, .. } = accepted;
        tracing::warn!(%direct_source, %bound, reason, suppressed, "connection refused: {why}");
    }
}
