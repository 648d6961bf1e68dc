//! Netlink, as far as `rtnetlink` does not go: one request and its answers.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Messages of one look: a pod that floods does not keep the task.
const MOST_NEWS: usize = 256;

/// How long the kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the calling thread's namespace calls another one; `None` where it has no
/// number for it, and thus no link into it either.
pub(super) fn nsid(netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    const NETLINK_ROUTE: i32 = 0;
    const RTM_NEWNSID: u16 = 88;
    const RTM_GETNSID: u16 = 90;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    // `struct rtgenmsg`, padded; then one attribute.
    let mut request = vec![0; 4];
    request.extend(8_u16.to_ne_bytes());
    request.extend(NETNSA_FD.to_ne_bytes());
    request.extend(netns.as_raw_fd().to_ne_bytes());
    let mut answer = None;
    let mut failed = None;
    converse(NETLINK_ROUTE, RTM_GETNSID, NLM_F_REQUEST, &request, |kind, body| {
        match kind {
            RTM_NEWNSID => {
                let id = body.get(4..).and_then(|rest| attribute(rest, NETNSA_NSID));
                answer = id.and_then(|id| i32_at(id, 0));
            }
            NLMSG_ERROR => failed = i32_at(body, 0),
            _ => return false,
        }
        true
    })?;
    match failed {
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Ok(answer.filter(|id| *id >= 0)),
    }
}

/// Whether the calling thread's namespace has nftables, those of iptables-nft among them.
pub(super) fn has_nftables() -> io::Result<bool> {
    has_tables(libc::NETLINK_NETFILTER, libc::NFPROTO_UNSPEC)
}

/// Whether it has nftables for what crosses a bridge.
pub(super) fn has_bridge_nftables() -> io::Result<bool> {
    has_tables(libc::NETLINK_NETFILTER, libc::NFPROTO_BRIDGE)
}

fn has_tables(protocol: i32, family: i32) -> io::Result<bool> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
    const NFT_MSG_GETTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
    let mut found = false;
    // `struct nfgenmsg`: tables of that family, or of all.
    let request = [u8::try_from(family).unwrap_or_default(), 0, 0, 0];
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let listed = converse(protocol, NFT_MSG_GETTABLE, flags, &request, |kind, _| {
        found |= kind == NFT_MSG_NEWTABLE;
        // An error: the kernel has no such thing.
        kind == NLMSG_DONE || kind == NLMSG_ERROR
    });
    match listed {
        // Nor has it netfilter's netlink: its module was never asked for.
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(false),
        listed => listed.map(|()| found),
    }
}

/// What the kernel tells everybody of one network namespace.
#[derive(Debug)]
pub struct Multicast(AsyncFd<OwnedFd>);

impl Multicast {
    /// Interfaces that come, go or change.
    pub(super) fn links() -> io::Result<Self> {
        Self::join(SockProtocol::NetlinkRoute, libc::RTMGRP_LINK.cast_unsigned())
    }

    /// Links, routes and routing rules.
    pub(super) fn roads() -> io::Result<Self> {
        const RTNLGRP_IPV6_RULE: u32 = 19;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV4_RULE
            | libc::RTMGRP_IPV6_ROUTE;
        Self::join(
            SockProtocol::NetlinkRoute,
            groups.cast_unsigned() | 1 << (RTNLGRP_IPV6_RULE - 1),
        )
    }

    /// Changes of nftables, those of iptables-nft among them.
    pub(super) fn nftables() -> io::Result<Self> {
        Self::join(SockProtocol::NetlinkNetFilter, 1 << (libc::NFNLGRP_NFTABLES - 1))
    }

    #[expect(deprecated, reason = "sound for an `OwnedFd`; what replaces it is unsafe code")]
    /// Of the namespace that the calling thread is in. The caller is in a tokio runtime.
    fn join(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(AsyncFd::with_interest(socket, Interest::READABLE)?))
    }

    /// Waits until there is news, and takes what there is of it. Lost news is news.
    /// Cancel safe.
    ///
    /// # Errors
    /// What recv(2) said.
    pub async fn news(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // What it says is not read: it may be out of date.
        let mut buffer = [0; 64];
        for _ in 0..MOST_NEWS {
            let told = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
            match told {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Sends one request and hands over the messages that answer it until `is_last` says so.
pub(super) fn converse(
    protocol: i32,
    kind: u16,
    flags: u16,
    request: &[u8],
    mut is_last: impl FnMut(u16, &[u8]) -> bool,
) -> io::Result<()> {
    exchange(&mut open(protocol)?, &mut vec![0; 64 << 10], kind, flags, request, &mut is_last)
}

/// A socket to ask the kernel by, in the calling thread's namespace for ever.
pub(super) fn open(protocol: i32) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::from(protocol)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// As [`converse`], by a socket that is there, with room for one message.
pub(super) fn exchange(
    socket: &mut Socket,
    buffer: &mut [u8],
    kind: u16,
    flags: u16,
    request: &[u8],
    mut is_last: impl FnMut(u16, &[u8]) -> bool,
) -> io::Result<()> {
    let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    socket.send(&message)?;
    loop {
        let read = socket.read(buffer)?;
        let mut left = &buffer[..read];
        while let Some(length) = u32_at(left, 0).and_then(|n| usize::try_from(n).ok()) {
            let Some(body) = left.get(HEADER..length) else { break };
            let kind = u16::from_ne_bytes([left[4], left[5]]);
            if is_last(kind, body) {
                return Ok(());
            }
            left = left.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The netlink attribute of that type.
pub(super) fn attribute(mut left: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes([*left.first()?, *left.get(1)?]));
        let kind = u16::from_ne_bytes([*left.get(2)?, *left.get(3)?]);
        let body = left.get(4..length)?;
        if kind == wanted {
            return Some(body);
        }
        left = left.get(length.next_multiple_of(4)..)?;
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    u32_at(bytes, at).map(u32::cast_signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_netfilter_has_no_tables() {
        // The last number that there can be, and that no kernel has given out.
        const NONE: i32 = 31;
        assert!(!has_tables(NONE, libc::NFPROTO_UNSPEC).unwrap());
    }
}
