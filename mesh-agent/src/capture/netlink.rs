//! Netlink, as far as `rtnetlink` does not go: one request and its answers.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

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
    const NETLINK_NETFILTER: i32 = 12;
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
    const NFT_MSG_GETTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
    let mut found = false;
    // `struct nfgenmsg`: tables of every family.
    let request = [0; 4];
    converse(
        NETLINK_NETFILTER,
        NFT_MSG_GETTABLE,
        NLM_F_REQUEST | NLM_F_DUMP,
        &request,
        |kind, _| {
            found |= kind == NFT_MSG_NEWTABLE;
            // An error: the kernel has no such thing.
            kind == NLMSG_DONE || kind == NLMSG_ERROR
        },
    )?;
    Ok(found)
}

/// Sends one request and hands over the messages that answer it until `is_last` says so.
pub(super) fn converse(
    protocol: i32,
    kind: u16,
    flags: u16,
    request: &[u8],
    mut is_last: impl FnMut(u16, &[u8]) -> bool,
) -> io::Result<()> {
    let domain = Domain::from(libc::AF_NETLINK);
    let mut socket = Socket::new(domain, Type::DGRAM, Some(Protocol::from(protocol)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let length = u32::try_from(HEADER + request.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(request);
    socket.send(&message)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = socket.read(&mut buffer)?;
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
