//! The agent's listeners inside a pod: sockets → `model::captured`.
#![forbid(unsafe_code)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use mesh_common::abi::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{
    netns::{PodNetns, socket_netns_cookie},
    orig_dst::OriginalDestinations,
};
use crate::{
    model::{
        captured::{CapturedInbound, CapturedOutbound, InboundPeer, Pod},
        listener_filter::Inspected,
    },
    observe::log_limit::LogLimit,
};

/// Whatever runs in a pod can provoke these lines.
static REFUSALS: LogLimit = LogLimit::new();

/// Connections that may wait for accept; the pod's `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// One port on IPv4 and, where the pod has it, IPv6.
#[derive(Debug)]
pub(super) struct DualListener {
    v4: TcpListener,
    v6: Option<TcpListener>,
}

impl DualListener {
    /// Opens both inside the pod. The caller is in a tokio runtime.
    ///
    /// `interface` binds the listeners, and what they accept, to the only interface
    /// that outside connections can come by. `inherited` has what an earlier agent listened
    /// on there.
    pub(super) fn open(
        netns: &PodNetns,
        v4: SocketAddr,
        v6: SocketAddr,
        interface: Option<NonZeroU32>,
        inherited: &dyn Fn(SocketAddr) -> Option<std::net::TcpListener>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let open = |address: SocketAddr| match inherited(address) {
            Some(socket) if is_in(netns, &socket) => adopt(socket, interface),
            // Closed, if there was one: it would be in the way.
            _ => netns.run(|| listen(address, interface)).and_then(|listener| listener),
        };
        let v4 = open(v4).map_err(|error| (v4, error))?;
        let v6 = match open(v6) {
            Ok(listener) => Some(listener),
            // The pod has no IPv6: nothing can come by it either.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
                ) =>
            {
                None
            }
            Err(error) => return Err((v6, error)),
        };
        Ok(Self { v4, v6 })
    }

    pub(super) fn has_v6(&self) -> bool {
        self.v6.is_some()
    }

    /// Each socket, with whether it is IPv6's.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (bool, BorrowedFd<'_>)> {
        let v6 = self.v6.iter().map(|listener| (true, listener.as_fd()));
        std::iter::once((false, self.v4.as_fd())).chain(v6)
    }

    /// The next connection of either family. Cancel safe.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = match &self.v6 {
            Some(v6) => tokio::select! {
                accepted = self.v4.accept() => accepted?,
                accepted = v6.accept() => accepted?,
            },
            None => self.v4.accept().await?,
        };
        stream.set_nodelay(true)?;
        Ok((stream, canonical(peer)))
    }
}

/// `127.0.0.1:port` and `[::1]:port`.
pub(super) const fn loopback(port: u16) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
    )
}

/// `0.0.0.0:port` and `[::]:port`.
pub(super) const fn any(port: u16) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    )
}

fn listen(address: SocketAddr, interface: Option<NonZeroU32>) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // A restarted agent must not wait for the TIME_WAIT of its predecessor.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if interface.is_some() {
        // After bind, which would look for the loopback address on the interface.
        if address.is_ipv4() {
            socket.bind_device_by_index_v4(interface)?;
        } else {
            socket.bind_device_by_index_v6(interface)?;
        }
    }
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Goes on with an earlier agent's listener, and what waits in it.
fn adopt(socket: std::net::TcpListener, interface: Option<NonZeroU32>) -> io::Result<TcpListener> {
    let bound = SockRef::from(&socket);
    if socket.local_addr()?.is_ipv4() {
        bound.bind_device_by_index_v4(interface)?;
    } else {
        bound.bind_device_by_index_v6(interface)?;
    }
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

fn is_in(netns: &PodNetns, socket: &std::net::TcpListener) -> bool {
    let there = socket_netns_cookie(socket.as_fd()).is_ok_and(|cookie| cookie == netns.cookie());
    if !there {
        tracing::warn!(
            netns = %netns.path().display(),
            "a listener that was handed over is in another namespace: closed"
        );
    }
    there
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Refuses a connection that was accepted: the peer sees a reset.
fn reset(stream: &TcpStream) {
    // Failing here only means that the peer sees an orderly close instead.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// What the pod's application dials.
#[derive(Debug)]
pub struct OutboundListener {
    pub(super) listener: Arc<DualListener>,
    pub(super) pod: Arc<Pod>,
    pub(super) destinations: OriginalDestinations,
}

impl OutboundListener {
    pub(super) const ADDRESSES: (SocketAddr, SocketAddr) = loopback(OUTBOUND_PORT);

    /// The next captured connection. Connections that nobody captured (someone found
    /// the port) are reset and skipped. Cancel safe.
    ///
    /// # Errors
    /// What accept(2) said; the listener stays usable.
    pub async fn accept(&self) -> io::Result<(TcpStream, CapturedOutbound)> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            match self.destinations.take(peer) {
                Ok(Some(original_destination)) => {
                    let source = self.source(peer, original_destination);
                    let pod = Arc::clone(&self.pod);
                    let inspected = Inspected::default();
                    return Ok((
                        stream,
                        CapturedOutbound { pod, source, original_destination, inspected },
                    ));
                }
                Ok(None) => {
                    if let Some(suppressed) = REFUSALS.allows() {
                        tracing::warn!(
                            pod = %self.pod.workload.uid, %peer, suppressed,
                            "refused a connection to the outbound port that was not captured"
                        );
                    }
                }
                Err(error) => tracing::error!(
                    pod = %self.pod.workload.uid, %peer, %error,
                    "refused a connection: its original destination cannot be read"
                ),
            }
            reset(&stream);
        }
    }

    /// The rewritten connection comes from loopback; without capture it would have
    /// come from the pod's address of that family.
    fn source(&self, peer: SocketAddr, destination: SocketAddr) -> SocketAddr {
        if !peer.ip().is_loopback() {
            return peer;
        }
        let addresses = &self.pod.workload.addresses;
        let own = addresses.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
        SocketAddr::new(own.copied().unwrap_or_else(|| peer.ip()), peer.port())
    }
}

/// What arrives in plaintext from outside the pod, on any port.
#[derive(Debug)]
pub struct InboundListener {
    pub(super) listener: Arc<DualListener>,
    pub(super) pod: Arc<Pod>,
}

impl InboundListener {
    pub(super) const ADDRESSES: (SocketAddr, SocketAddr) = loopback(INBOUND_PORT);

    /// The next steered connection. Cancel safe.
    ///
    /// # Errors
    /// What accept(2) said; the listener stays usable.
    pub async fn accept(&self) -> io::Result<(TcpStream, CapturedInbound)> {
        loop {
            let (stream, source) = self.listener.accept().await?;
            // A steered connection keeps the address it was sent to.
            let original_destination = canonical(stream.local_addr()?);
            if original_destination.ip().is_loopback() {
                if let Some(suppressed) = REFUSALS.allows() {
                    tracing::warn!(
                        pod = %self.pod.workload.uid, %source, suppressed,
                        "refused a connection to the inbound port that was not steered"
                    );
                }
                reset(&stream);
                continue;
            }
            let pod = Arc::clone(&self.pod);
            let peer = InboundPeer::Plaintext;
            return Ok((stream, CapturedInbound { pod, source, original_destination, peer }));
        }
    }
}

/// TLS connections of other nodes' agents.
#[derive(Debug)]
pub struct HboneListener {
    pub(super) listener: Arc<DualListener>,
}

impl HboneListener {
    pub(super) const ADDRESSES: (SocketAddr, SocketAddr) = any(HBONE_PORT);

    /// The next connection and its peer's address. Cancel safe.
    ///
    /// # Errors
    /// What accept(2) said; the listener stays usable.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }
}
