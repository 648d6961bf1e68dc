//! Sockets inside a pod's namespace, marked as the agent's own.
#![forbid(unsafe_code)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{Map, MapData, SkStorage};
use mesh_common::{
    abi::{APPLICATION_MARK, LOOPBACK_IFINDEX, UPSTREAM_MARK, map},
    value::vouched,
};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

use super::{error::CaptureError, legs::Legs, netns::PodNetns};
use crate::model::socket::{PodSockets, SplicedLeg};

/// Dials of one pod.
#[derive(Debug)]
pub(super) struct NetnsSockets {
    pub(super) netns: Arc<PodNetns>,
    /// The pod's own addresses.
    pub(super) own: Vec<IpAddr>,
    pub(super) vouched: Vouched,
    pub(super) legs: Arc<Legs>,
}

/// Tells the programs which sockets are the agent's: a mark alone could be anyone's.
#[derive(Debug)]
pub(super) struct Vouched(Mutex<SkStorage<MapData, u32>>);

impl Vouched {
    /// Opens the pinned map anew, so that pods do not share a lock.
    pub(super) fn open(directory: &Path) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError::Map { map: map::VOUCHED, source };
        let data = MapData::from_pin(directory.join(map::VOUCHED)).map_err(failed)?;
        let map = Map::from_map_data(data).and_then(SkStorage::try_from).map_err(failed)?;
        Ok(Self(Mutex::new(map)))
    }

    /// A listener vouches for what it accepts from then on.
    pub(super) fn add(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.say(socket, vouched::AGENT)
    }

    /// And for a socket that it carries plaintext to an application.
    pub(super) fn add_plaintext(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.say(socket, vouched::PLAINTEXT_TO_APPLICATION)
    }

    fn say(&self, socket: BorrowedFd<'_>, what: u32) -> io::Result<()> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(&socket, what, 0).map_err(io::Error::other)
    }
}

impl NetnsSockets {
    fn socket(&self, family: IpAddr, mark: u32) -> io::Result<Socket> {
        let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = self.netns.run(|| Socket::new(domain, kind, Some(Protocol::TCP)))??;
        socket.set_mark(mark)?;
        self.vouched.add(socket.as_fd())?;
        Ok(socket)
    }
}

impl PodSockets for NetnsSockets {
    fn tcp(&self, destination: SocketAddr) -> io::Result<Socket> {
        self.socket(destination.ip(), UPSTREAM_MARK)
    }

    fn tcp_from(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
        let source = source.ip().to_canonical();
        let family = destination.ip();
        if source.is_ipv4() != family.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("cannot dial {destination} from {source}: not one address family"),
            ));
        }
        let socket = self.socket(family, APPLICATION_MARK)?;
        // The port is chosen at connect, so that it only has to be unique for
        // this destination. Works on IPv6 sockets too.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        if source.is_loopback() || self.own.contains(&source) {
            // The pod calls itself: both ends are local, replies come home as they are.
            socket.bind(&SocketAddr::new(source, 0).into())?;
            return Ok(socket);
        }
        // Bound to `lo`, the dial is routed by the mark's table and arrives "from lo";
        // by the local table it would arrive as from the interface that has the
        // address, which is where connections are steered.
        let lo = NonZeroU32::new(LOOPBACK_IFINDEX);
        if source.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
            socket.bind_device_by_index_v4(lo)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
            socket.bind_device_by_index_v6(lo)?;
        }
        socket.bind(&SocketAddr::new(source, 0).into())?;
        Ok(socket)
    }

    fn offer_splice(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.legs.offer(&self.vouched, socket)
    }

    fn spliced(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Box<dyn SplicedLeg>>> {
        self.legs.of(socket)
    }
}
