//! `sock_diag(7)`: what sockets of a namespace have moved, and their end by force.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use mesh_common::abi::LOOPBACK_IFINDEX;

use super::netlink::{
    self, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attribute, converse,
    i32_at, u32_at,
};
use crate::model::kernel_path::KernelTraffic;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;

/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// Where the socket's cookie is in an `inet_diag_msg`.
const COOKIE: usize = 44;

/// The same of the interface that it is bound to.
const INTERFACE: usize = 40;

const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;

/// How often a socket is looked for that is bound to ever another interface.
const TRIES: u32 = 64;

/// Every TCP state but LISTEN and TIME_WAIT, which have no traffic of their own.
const CONNECTED: u32 = !(1 << LISTEN | 1 << TIME_WAIT);

/// Ends a socket: its application sees an error, its peer a reset. `false` where there is no
/// such socket any more. The calling thread is in the socket's network namespace.
///
/// The cookie must match, or the kernel might find a listener instead. A socket that is bound
/// to an interface is only found by it: `interfaces` are tried first, then all are listed.
/// Whoever holds the socket may bind it to another meanwhile; `lives` says whether to go on.
pub(super) fn destroy(
    own: SocketAddr,
    peer: SocketAddr,
    cookie: u64,
    interfaces: &[u32],
    lives: impl Fn() -> bool,
) -> io::Result<bool> {
    for interface in places(interfaces) {
        if destroy_at(own, peer, cookie, interface)? {
            return Ok(true);
        }
    }
    for _ in 0..TRIES {
        if !lives() {
            break;
        }
        if let Some(interface) = interface_of(own, peer, cookie)?
            && destroy_at(own, peer, cookie, interface)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As [`destroy`], for the one socket that is connected like this, whatever its cookie.
pub(super) fn destroy_connected(
    own: SocketAddr,
    peer: SocketAddr,
    interfaces: &[u32],
) -> io::Result<bool> {
    let mut asks = Asks::open()?;
    for interface in places(interfaces) {
        let Some(Found { state, cookie, .. }) = asks.of(own, peer, interface)? else { continue };
        if !matches!(state, LISTEN | TIME_WAIT) {
            return destroy_at(own, peer, cookie, interface);
        }
    }
    Ok(false)
}

/// Where a socket may be bound: nowhere, or to one of these.
fn places(interfaces: &[u32]) -> impl Iterator<Item = u32> {
    // A pod may have thousands.
    const MOST: usize = 8;
    [0, LOOPBACK_IFINDEX].into_iter().chain(interfaces.iter().copied().take(MOST))
}

fn destroy_at(own: SocketAddr, peer: SocketAddr, cookie: u64, interface: u32) -> io::Result<bool> {
    let request = one(own, peer, cookie, interface);
    let mut answered = None;
    converse(
        NETLINK_SOCK_DIAG,
        SOCK_DESTROY,
        NLM_F_REQUEST | NLM_F_ACK,
        &request,
        |kind, body| {
            if kind == NLMSG_ERROR {
                answered = i32_at(body, 0).map(|errno| -errno);
            }
            true
        },
    )?;
    match answered {
        Some(0) => Ok(true),
        Some(libc::ENOENT) => Ok(false),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The interface that a socket is bound to, 0 for none; `None` where there is no such socket.
fn interface_of(own: SocketAddr, peer: SocketAddr, cookie: u64) -> io::Result<Option<u32>> {
    let mut found = None;
    // One that dials a mapped address is listed as of IPv6.
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = all_of(family);
        request[8..10].copy_from_slice(&own.port().to_be_bytes());
        request[10..12].copy_from_slice(&peer.port().to_be_bytes());
        list(&request, |body| {
            if cookie_of(body) == Some(cookie) {
                found = u32_at(body, INTERFACE);
            }
        })?;
    }
    Ok(found)
}

/// A request about one socket. Without a cookie it is `u64::MAX`, and not bound to an
/// interface 0.
fn one(own: SocketAddr, peer: SocketAddr, cookie: u64, interface: u32) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = family(own);
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[8..10].copy_from_slice(&own.port().to_be_bytes());
    request[10..12].copy_from_slice(&peer.port().to_be_bytes());
    write_address(&mut request[12..28], own.ip());
    write_address(&mut request[28..44], peer.ip());
    request[44..48].copy_from_slice(&interface.to_ne_bytes());
    request[48..56].copy_from_slice(&split(cookie));
    request
}

/// A request about all sockets of a family that are connected, or about to be.
fn all_of(family: i32) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = family as u8;
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&CONNECTED.to_ne_bytes());
    request
}

/// Hands over what is told of each socket.
fn list(request: &[u8; REQUEST], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut failed = None;
    converse(
        NETLINK_SOCK_DIAG,
        SOCK_DIAG_BY_FAMILY,
        NLM_F_REQUEST | NLM_F_DUMP,
        request,
        |kind, body| {
            match kind {
                NLMSG_DONE => return true,
                NLMSG_ERROR => {
                    failed = i32_at(body, 0);
                    return true;
                }
                SOCK_DIAG_BY_FAMILY => each(body),
                _ => {}
            }
            false
        },
    )?;
    match failed {
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Ok(()),
    }
}

/// What is told of one socket.
struct Found {
    state: u8,
    cookie: u64,
    /// Bytes that wait in it; not of one that is no whole socket, or not any more.
    waiting: Option<u32>,
}

/// Asks one network namespace for one socket after the other.
#[derive(Debug)]
struct Asks(socket2::Socket);

impl Asks {
    /// The calling thread is in the namespace.
    fn open() -> io::Result<Self> {
        netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// The socket at `own` that is connected with `peer`, or a listener that would take such
    /// a connection.
    fn of(
        &mut self,
        own: SocketAddr,
        peer: SocketAddr,
        interface: u32,
    ) -> io::Result<Option<Found>> {
        const INET_DIAG_SKMEMINFO: u16 = 7;
        let mut request = one(own, peer, u64::MAX, interface);
        request[2] = 1 << (INET_DIAG_SKMEMINFO - 1);
        let mut answer = Err(io::ErrorKind::UnexpectedEof.into());
        let mut buffer = [0; 1024];
        let Self(socket) = self;
        netlink::exchange(
            socket,
            &mut buffer,
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST,
            &request,
            |kind, body| {
                if kind == NLMSG_ERROR {
                    answer = match i32_at(body, 0).map(i32::wrapping_neg) {
                        Some(libc::ENOENT) => Ok(None),
                        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                        None => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                } else if let (Some(state), Some(cookie)) = (body.get(1), cookie_of(body)) {
                    let rest = body.get(MESSAGE..).unwrap_or_default();
                    let memory = attribute(rest, INET_DIAG_SKMEMINFO);
                    let waiting = memory.and_then(|memory| u32_at(memory, 0));
                    answer = Ok(Some(Found { state: *state, cookie, waiting }));
                }
                true
            },
        )?;
        answer
    }
}

/// Asks one network namespace what its sockets have not read, again and again.
#[derive(Debug)]
pub(super) struct Backlogs(Asks);

impl Backlogs {
    /// The calling thread is in the namespace.
    pub(super) fn open() -> io::Result<Self> {
        Asks::open().map(Self)
    }

    /// How many bytes wait in the socket at `own` that is connected with `peer` over loopback,
    /// those that were spliced into it among them (since Linux 6.13; the self-test looks).
    /// `None` where there is no such socket, or it is bound to another interface.
    pub(super) fn of(&mut self, own: SocketAddr, peer: SocketAddr) -> io::Result<Option<u64>> {
        let Self(asks) = self;
        for interface in places(&[]) {
            match asks.of(own, peer, interface)? {
                Some(Found { state: LISTEN, .. }) | None => {}
                Some(found) => return Ok(found.waiting.map(u64::from)),
            }
        }
        Ok(None)
    }
}

/// Whether the kernel can end sockets at all (`CONFIG_INET_DIAG_DESTROY`).
pub(super) fn can_destroy() -> io::Result<()> {
    // No socket has this cookie.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    destroy_at(nowhere, nowhere, u64::MAX - 1, 0).map(drop)
}

/// What each TCP socket of the calling thread's network namespace has moved, by its
/// cookie.
pub(super) fn traffic() -> io::Result<HashMap<u64, KernelTraffic>> {
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = all_of(family);
        request[2] = 1 << (INET_DIAG_INFO - 1);
        list(&request, |body| found.extend(socket(body)))?;
    }
    Ok(found)
}

fn socket(body: &[u8]) -> Option<(u64, KernelTraffic)> {
    let cookie = cookie_of(body)?;
    let info = attribute(body.get(MESSAGE..)?, INET_DIAG_INFO)?;
    // `struct tcp_info`; each field has kept its place since it was added.
    let idle = u32_at(info, 44)?.min(u32_at(info, 52)?);
    let traffic = KernelTraffic {
        // The SYN is among the acknowledged bytes.
        received_bytes: u64_at(info, 120)?.saturating_sub(1),
        sent_bytes: u64_at(info, 128)?,
        round_trip: Duration::from_micros(u32_at(info, 68)?.into()),
        retransmits: u32_at(info, 100)?,
        idle: Duration::from_millis(idle.into()),
    };
    Some((cookie, traffic))
}

fn cookie_of(body: &[u8]) -> Option<u64> {
    let (low, high) = (u32_at(body, COOKIE)?, u32_at(body, COOKIE + 4)?);
    Some(u64::from(high) << 32 | u64::from(low))
}

fn family(address: SocketAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family as u8
}

fn write_address(into: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => into[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => into.copy_from_slice(&v6.octets()),
    }
}

fn split(cookie: u64) -> [u8; 8] {
    let [low, high] = [cookie as u32, (cookie >> 32) as u32].map(u32::to_ne_bytes);
    [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_lie_about_their_length_are_left_alone() {
        for bytes in [&[][..], &[4], &[0, 0, 2, 0], &[255, 255, 2, 0], &[3, 0, 2, 0, 9]] {
            assert_eq!(attribute(bytes, 2), None, "{bytes:?}");
        }
        let two = [5, 0, 1, 0, 7, 0, 0, 0, 6, 0, 2, 0, 8, 9];
        assert_eq!(attribute(&two, 2), Some(&[8, 9][..]));
        assert_eq!(socket(&[0; 71]), None);
    }
}
