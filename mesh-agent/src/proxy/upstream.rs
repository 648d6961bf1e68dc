//! From a destination to a connected byte stream.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, uri::Authority};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time,
};

use super::{
    Dataplane, Failure, Origination, failure,
    http::{ConnectFailure, Upstreams},
    inbound,
    neighbours::{Meeting, Neighbours},
};
use crate::{
    identity::{IdentityManager, upstream::UpstreamContexts},
    model::listener::Direction,
    observe::metrics::Metrics,
    policy::{Flow, Permit},
    route::{Destination, Target},
    transport::{
        dial,
        hbone::{HBONE_PORT, HboneError, HboneFailure, HbonePool, HboneStream, HboneTarget},
        http_pool::{BoxedIo, HttpProtocol, Io},
        leg::Leg,
        memory::{self, MemoryStream},
        relay::{Abort, ReadBuffer},
        tls::TlsStream,
    },
};

/// A connection to where a flow goes.
pub enum Upstream {
    /// In the clear, on this node or to where the application asked.
    Tcp(Leg),
    /// By TLS that a cluster wants.
    Tls(Box<TlsStream>),
    /// Through a tunnel that proved the destination's identity.
    Hbone(HboneStream),
    /// The same, where the destination is this agent's as well.
    Within(MemoryStream),
}

/// Makes connections for the pipelines.
pub struct Connector {
    pub identities: Arc<IdentityManager>,
    pub tls: Arc<UpstreamContexts>,
    pub hbone: HbonePool,
    /// Who need not be dialled.
    pub neighbours: Neighbours,
    /// Whose inbound side serves those.
    pub dataplane: Weak<Dataplane>,
    pub metrics: Metrics,
}

impl Connector {
    /// Dials from inside the pod's namespace.
    ///
    /// # Errors
    /// The pod has no valid certificate, or the destination can't be reached.
    pub async fn connect(
        &self,
        flow: &Flow,
        destination: &Destination,
    ) -> Result<Upstream, Failure> {
        // Before anything is dialled: without its certificates nothing is.
        let tls = Origination::opaque(&self.tls, destination)?;
        self.connect_by(flow, destination, tls.as_ref()).await
    }

    /// As [`Connector::connect`], with the TLS that goes with `destination`.
    async fn connect_by(
        &self,
        flow: &Flow,
        destination: &Destination,
        tls: Option<&Origination>,
    ) -> Result<Upstream, Failure> {
        let timeout = destination.connect_timeout();
        let keepalive = destination.connection_limits().keepalive;
        let pod = flow.pod();
        let sockets = &*pod.sockets;
        let plaintext = tls.is_none() && destination.tls().is_none();
        let dialled = match destination.target() {
            // The application sees its real client.
            Target::OriginalDestination { address }
                if flow.direction() == Direction::Inbound && plaintext =>
            {
                let (source, to) = (flow.source(), *address);
                let leg =
                    dial::connect_application(sockets, source, to, keepalive, timeout).await?;
                return Ok(Upstream::Tcp(leg));
            }
            Target::OriginalDestination { address } if flow.direction() == Direction::Inbound => {
                dial::connect_from(sockets, flow.source(), *address, keepalive, timeout).await
            }
            Target::OriginalDestination { address } => {
                dial::connect(sockets, *address, keepalive, timeout).await
            }
            Target::Direct { endpoint } => {
                dial::connect(sockets, endpoint.address, keepalive, timeout).await
            }
            Target::Hbone { endpoint, identity, workload } => {
                let tls = self
                    .identities
                    .client_config(&pod.workload.identity, identity)
                    .map_err(|error| Failure::no_certificate(&error))?;
                let mut tunnel = endpoint.address;
                tunnel.set_port(HBONE_PORT);
                let target = HboneTarget {
                    pod: Arc::clone(pod),
                    tunnel,
                    authority: endpoint.address,
                    identity: identity.clone(),
                    workload: workload.clone(),
                };
                if let Some(meeting) = self.neighbours.meeting(pod, &target, &self.identities)
                    && let Some(dataplane) = self.dataplane.upgrade()
                    && let Some(source) = source_of(flow, endpoint.address)
                {
                    let tunnel = meet(dataplane, meeting, source, &target, timeout).await;
                    return Ok(Upstream::Within(tunnel?));
                }
                let tunnel = self.hbone.connect(&target, &tls, timeout).await;
                let tunnel = tunnel.inspect_err(|error| self.note(&target, error))?;
                return Ok(Upstream::Hbone(tunnel));
            }
        };
        match (tls, destination.tls()) {
            (Some(tls), _) => {
                let stream = tls.run(dialled?, destination, timeout).await;
                Ok(Upstream::Tls(Box::new(stream.inspect_err(|failure| {
                    self.metrics.handshake_failed(Direction::Outbound, failure.reason);
                    let workload = &pod.workload.uid;
                    tracing::warn!(%workload, reason = failure.reason, "{}", failure.detail);
                })?)))
            }
            (None, None) => Ok(Upstream::Tcp(dialled?.into())),
            (None, Some(settings)) => Err(Failure::no_tls(&settings.cluster)),
        }
    }
}

/// Whom a tunnel of the pod's comes from, in the eyes of who is at `destination`. `None`:
/// only the kernel knows which of its addresses it would take.
fn source_of(flow: &Flow, destination: SocketAddr) -> Option<SocketAddr> {
    let addresses = &flow.pod().workload.addresses;
    let mut family = addresses.iter().filter(|ip| ip.is_ipv4() == destination.is_ipv4());
    let (Some(only), None) = (family.next(), family.next()) else { return None };
    Some((*only, flow.source().port()).into())
}

/// Opens a tunnel that stays within the agent.
async fn meet(
    dataplane: Arc<Dataplane>,
    meeting: Meeting,
    source: SocketAddr,
    target: &HboneTarget,
    timeout: Duration,
) -> Result<MemoryStream, HboneError> {
    dataplane.metrics.tunnel_within();
    let (dial, request) = memory::request();
    let ends = (source, target.authority);
    let serving = inbound::serve_neighbour(Arc::clone(&dataplane), meeting, ends, request);
    dataplane.tasks.spawn(serving);
    match time::timeout(timeout, dial.answer()).await {
        Ok(answer) => answer.map_err(|refused| HboneError::within(target, refused)),
        Err(_) => Err(HboneError::unanswered(target, timeout)),
    }
}

impl Connector {
    /// A peer that is not who it should be is an operator's business.
    fn note(&self, target: &HboneTarget, error: &HboneError) {
        if let HboneFailure::Handshake(error) = error.failure() {
            let (reason, story) = failure::handshake(error);
            self.metrics.handshake_failed(Direction::Outbound, reason);
            let HboneTarget { pod, tunnel, identity, .. } = target;
            tracing::warn!(
                %tunnel, expected = %identity, workload = %pod.workload.uid, reason,
                "HBONE handshake failed: {story}"
            );
        }
    }
}

impl Upstreams for Connector {
    fn connect<'a>(
        &'a self,
        permit: &'a Permit,
        destination: &'a Destination,
        tls: Option<&'a Origination>,
    ) -> BoxFuture<'a, Result<BoxedIo, ConnectFailure>> {
        Box::pin(async move {
            let connected = self.connect_by(permit.flow(), destination, tls).await;
            Ok(Box::new(connected.map_err(refused)?) as BoxedIo)
        })
    }

    fn originate(
        &self,
        destination: &Destination,
        protocol: HttpProtocol,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Result<Option<Origination>, ConnectFailure> {
        Origination::http(&self.tls, destination, protocol, authority, headers).map_err(refused)
    }
}

fn refused(Failure { flag, detail, transport, .. }: Failure) -> ConnectFailure {
    ConnectFailure { flag, message: detail, transport }
}

impl AsyncRead for Upstream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
            Self::Hbone(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Within(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, buf),
            Self::Hbone(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Within(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, bufs),
            Self::Hbone(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Within(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Hbone(stream) => stream.is_write_vectored(),
            Self::Within(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Self::Hbone(stream) => Pin::new(stream).poll_flush(cx),
            Self::Within(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Self::Hbone(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Within(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Io for Upstream {
    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => stream.socket(),
            Self::Tls(stream) => stream.socket(),
            // The tunnel's connection carries others, too.
            Self::Hbone(_) | Self::Within(_) => None,
        }
    }
}

impl Abort for Upstream {
    fn abort(&mut self) {
        match self {
            Self::Tcp(stream) => stream.abort(),
            Self::Tls(stream) => stream.abort(),
            Self::Hbone(stream) => stream.abort(),
            Self::Within(stream) => stream.abort(),
        }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(leg) => leg.tcp(),
            Self::Tls(_) | Self::Hbone(_) | Self::Within(_) => None,
        }
    }

    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuffer,
    ) -> Poll<io::Result<Bytes>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_chunk(cx, buffer),
            Self::Tls(stream) => stream.poll_read_chunk(cx, buffer),
            Self::Hbone(stream) => stream.poll_read_chunk(cx, buffer),
            Self::Within(stream) => stream.poll_read_chunk(cx, buffer),
        }
    }

    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_chunk(cx, chunk),
            Self::Tls(stream) => stream.poll_write_chunk(cx, chunk),
            Self::Hbone(stream) => stream.poll_write_chunk(cx, chunk),
            Self::Within(stream) => stream.poll_write_chunk(cx, chunk),
        }
    }
}
