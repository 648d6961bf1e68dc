//! A pod's network namespace: open it, work inside it, tell it apart.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    pin::pin,
};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::AddressAttribute,
        link::{
            InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags,
            LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
        },
        route::RouteAttribute,
    },
};
use serde::{Deserialize, Serialize};

/// How an operator names a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsRef {
    /// A file that is bound to the namespace, for example `/run/netns/x`.
    Path(PathBuf),
    /// The namespace of this process, as seen from the agent's PID namespace.
    Pid(u32),
}

impl NetnsRef {
    /// The file to open.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }
}

/// Why a network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file is not there, or may not be read.
    #[error("cannot open network namespace {path}")]
    Open { path: PathBuf, source: io::Error },
    /// `setns(2)` or a socket inside refused; the file may be no network namespace.
    #[error("cannot enter network namespace {path}")]
    Enter { path: PathBuf, source: io::Error },
    /// The kernel does not tell a namespace's cookie (needs Linux 5.14).
    #[error("cannot read the cookie of network namespace {path} (needs Linux 5.14)")]
    Cookie { path: PathBuf, source: io::Error },
    /// Its addresses or interfaces could not be listed.
    #[error("cannot list addresses and interfaces of network namespace {path}")]
    Addresses { path: PathBuf, source: Box<rtnetlink::Error> },
}

/// An interface of a pod.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Whether its frames have Ethernet headers.
    pub(super) ethernet: bool,
    pub(super) veth: bool,
    /// The index of what it is joined to, in another namespace maybe.
    pub(super) peer: Option<u32>,
    /// What this namespace calls the peer's.
    pub(super) peer_netns: Option<i32>,
    /// The bridge or the like that it is a port of.
    pub(super) controller: Option<u32>,
    pub(super) bridge: bool,
    /// A bridge: it tells VLANs apart.
    pub(super) filters_vlans: bool,
    /// A port of a bridge: it reaches only ports that are not so.
    pub(super) isolated: bool,
    pub(super) hardware: Option<[u8; 6]>,
    pub(super) has_xdp: bool,
    pub(super) up: bool,
}

impl Interface {
    fn of(message: LinkMessage) -> Self {
        let mut this = Self {
            index: message.header.index,
            name: String::new(),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            veth: false,
            peer: None,
            peer_netns: None,
            controller: None,
            bridge: false,
            filters_vlans: false,
            isolated: false,
            hardware: None,
            has_xdp: false,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => this.name = name,
                LinkAttribute::Link(index) => this.peer = Some(index),
                LinkAttribute::LinkNetNsId(id) => this.peer_netns = Some(id),
                LinkAttribute::Controller(index) => {
                    this.controller = Some(index).filter(|index| *index != 0);
                }
                LinkAttribute::Address(bytes) => this.hardware = bytes.try_into().ok(),
                LinkAttribute::LinkInfo(infos) => {
                    this.veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    this.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                    infos.iter().for_each(|info| this.take_info(info));
                }
                LinkAttribute::Xdp(xdp) => {
                    let attached = |xdp: &LinkXdp| matches!(xdp, LinkXdp::Attached(mode) if *mode != XdpAttached::None);
                    this.has_xdp = xdp.iter().any(attached);
                }
                _ => {}
            }
        }
        this
    }

    fn take_info(&mut self, info: &LinkInfo) {
        match info {
            LinkInfo::Data(InfoData::Bridge(all)) => {
                self.filters_vlans = all.contains(&InfoBridge::VlanFiltering(true));
            }
            LinkInfo::PortData(InfoPortData::BridgePort(all)) => {
                self.isolated = all.contains(&InfoBridgePort::Isolated(true));
            }
            _ => {}
        }
    }
}

/// An open network namespace, and the way home.
///
/// The namespace lives for as long as this value, even when the pod is gone.
#[derive(Debug)]
pub struct PodNetns {
    path: PathBuf,
    namespace: File,
    home: File,
    cookie: u64,
}

impl PodNetns {
    /// Opens the namespace; the calling thread must be in the agent's own.
    ///
    /// # Errors
    /// Any [`NetnsError`] but `Addresses`.
    pub fn open(netns: &NetnsRef) -> Result<Self, NetnsError> {
        let path = netns.path();
        let open = |path: &Path| {
            File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })
        };
        let namespace = open(&path)?;
        let home = open(Path::new("/proc/thread-self/ns/net"))?;
        let mut this = Self { path, namespace, home, cookie: 0 };
        this.cookie = this
            .run(|| socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None))
            .and_then(|socket| socket)
            .map_err(|source| NetnsError::Enter { path: this.path.clone(), source })
            .and_then(|socket| {
                socket_netns_cookie(socket.as_fd())
                    .map_err(|source| NetnsError::Cookie { path: this.path.clone(), source })
            })?;
        Ok(this)
    }

    /// The agent's own namespace.
    ///
    /// # Errors
    /// As [`PodNetns::open`].
    pub fn own() -> Result<Self, NetnsError> {
        Self::open(&NetnsRef::Path(PathBuf::from("/proc/thread-self/ns/net")))
    }

    /// The kernel's number for the namespace: unique until reboot.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The file it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file still leads to this namespace.
    pub(super) fn is_current(&self) -> bool {
        let inode = |metadata: std::io::Result<std::fs::Metadata>| {
            metadata.map(|metadata| (metadata.dev(), metadata.ino())).ok()
        };
        let now = inode(std::fs::metadata(&self.path));
        now.is_some() && now == inode(self.namespace.metadata())
    }

    /// Runs `work` on this thread inside the namespace. `work` must not await or spawn threads.
    ///
    /// Aborts the process if the thread cannot come home: everything it did from
    /// then on would be done in a pod's name.
    ///
    /// # Errors
    /// What `setns(2)` said; `work` has not run then.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
        let _return = Return(self.home.as_fd());
        Ok(work())
    }

    /// A netlink connection into the namespace; its task runs on the current tokio runtime.
    pub(super) fn netlink(&self) -> io::Result<Netlink> {
        let (connection, handle, _) = self.run(rtnetlink::new_connection)??;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }

    /// The interfaces that are up and that connections from outside may come by.
    pub(super) async fn interfaces(&self) -> Result<Vec<Interface>, NetnsError> {
        let links = self.links().await?;
        Ok(links.into_iter().filter(|link| link.up).collect())
    }

    /// The interfaces, loopback left out.
    pub(super) async fn links(&self) -> Result<Vec<Interface>, NetnsError> {
        let netlink = self
            .netlink()
            .map_err(|source| NetnsError::Enter { path: self.path.clone(), source })?;
        let mut stream = netlink.handle.link().get().execute();
        let mut links = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(|source| {
            NetnsError::Addresses { path: self.path.clone(), source: Box::new(source) }
        })? {
            if !message.header.flags.contains(LinkFlags::Loopback) {
                links.push(Interface::of(message));
            }
        }
        Ok(links)
    }

    /// Addresses that peers may dial (not loopback, not link-local), in the kernel's order.
    ///
    /// # Errors
    /// [`NetnsError::Enter`] or [`NetnsError::Addresses`].
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, NetnsError> {
        let netlink = self
            .netlink()
            .map_err(|source| NetnsError::Enter { path: self.path.clone(), source })?;
        let mut stream = netlink.handle.address().get().execute();
        let mut found = Vec::new();
        while let Some(message) = stream.try_next().await.map_err(|source| {
            NetnsError::Addresses { path: self.path.clone(), source: Box::new(source) }
        })? {
            if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
                continue;
            }
            // IPv4 tells its own address in `Local` (`Address` is the peer's on a
            // point-to-point link); IPv6 only has `Address` unless there is a peer.
            let pick = |local: bool| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) if local => Some(*ip),
                    AddressAttribute::Address(ip) if !local => Some(*ip),
                    _ => None,
                })
            };
            if let Some(ip) = pick(true).or_else(|| pick(false))
                && is_dialable(ip)
            {
                found.push(ip);
            }
        }
        Ok(found)
    }
}

impl AsFd for PodNetns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// A netlink connection; dropping it ends its task.
pub(super) struct Netlink {
    pub(super) handle: rtnetlink::Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// The interface that the namespace's routes lead to for `address`, if any.
    pub(super) async fn route_to(&self, address: IpAddr) -> Option<u32> {
        let asked = match address {
            IpAddr::V4(v4) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build()
            }
        };
        let mut answers = pin!(self.handle.route().get(asked).execute());
        // An error is a route that forbids, or none.
        let Ok(Some(route)) = answers.try_next().await else { return None };
        route.attributes.into_iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(index),
            _ => None,
        })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Brings the thread home, also when the work panicked.
struct Return<'a>(BorrowedFd<'a>);

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace: aborting");
            std::process::abort();
        }
    }
}

fn is_dialable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

pub(super) fn socket_netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a u64 and to its size, both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
