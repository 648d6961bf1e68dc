//! `sock_diag(7)`: what sockets of a namespace have moved, and their end by force.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

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

/// Every TCP state but LISTEN and TIME_WAIT, which have no traffic of their own.
const CONNECTED: u32 = !(1 << 10 | 1 << 6);

/// Ends the client's end of a connection: its application sees an error, its peer a
/// reset. `false` where there is no such socket any more. The calling thread is in
/// the socket's network namespace.
///
/// The cookie must match, or the kernel might find a listener instead.
pub(super) fn destroy(
    source: SocketAddr,
    destination: SocketAddr,
    cookie: u64,
) -> io::Result<bool> {
    let request = one(source, destination, cookie);
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

/// A request about one socket. Without a cookie it is `u64::MAX`.
fn one(own: SocketAddr, peer: SocketAddr, cookie: u64) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[0] = family(own);
    request[1] = libc::IPPROTO_TCP as u8;
    request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    request[8..10].copy_from_slice(&own.port().to_be_bytes());
    request[10..12].copy_from_slice(&peer.port().to_be_bytes());
    write_address(&mut request[12..28], own.ip());
    write_address(&mut request[28..44], peer.ip());
    request[48..56].copy_from_slice(&split(cookie));
    request
}

/// Asks one network namespace what its sockets have not read, again and again.
#[derive(Debug)]
pub(super) struct Backlogs(socket2::Socket);

impl Backlogs {
    /// The calling thread is in the namespace.
    pub(super) fn open() -> io::Result<Self> {
        netlink::open(NETLINK_SOCK_DIAG).map(Self)
    }

    /// How many bytes wait in the socket at `own` that is connected with `peer`, those that
    /// were spliced into it among them (since Linux 6.13; the self-test looks). 0 where there
    /// is no such connection any more.
    pub(super) fn of(&mut self, own: SocketAddr, peer: SocketAddr) -> io::Result<u64> {
        const INET_DIAG_SKMEMINFO: u16 = 7;
        const LISTEN: u8 = 10;
        let mut request = one(own, peer, u64::MAX);
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
                        Some(libc::ENOENT) => Ok(0),
                        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                        None => Err(io::ErrorKind::UnexpectedEof.into()),
                    };
                } else if body.get(1) == Some(&LISTEN) {
                    answer = Ok(0);
                } else {
                    let rest = body.get(MESSAGE..).unwrap_or_default();
                    let memory = attribute(rest, INET_DIAG_SKMEMINFO);
                    if let Some(waiting) = memory.and_then(|memory| u32_at(memory, 0)) {
                        answer = Ok(waiting.into());
                    }
                }
                true
            },
        )?;
        answer
    }
}

/// Whether the kernel can end sockets at all (`CONFIG_INET_DIAG_DESTROY`).
pub(super) fn can_destroy() -> io::Result<()> {
    // No socket has this cookie.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    destroy(nowhere, nowhere, u64::MAX - 1).map(drop)
}

/// What each TCP socket of the calling thread's network namespace has moved, by its
/// cookie.
pub(super) fn traffic() -> io::Result<HashMap<u64, KernelTraffic>> {
    let mut found = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0; REQUEST];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        request[2] = 1 << (INET_DIAG_INFO - 1);
        request[4..8].copy_from_slice(&CONNECTED.to_ne_bytes());
        let mut failed = None;
        converse(
            NETLINK_SOCK_DIAG,
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            &request,
            |kind, body| {
                match kind {
                    NLMSG_DONE => return true,
                    NLMSG_ERROR => {
                        failed = i32_at(body, 0);
                        return true;
                    }
                    SOCK_DIAG_BY_FAMILY => found.extend(socket(body)),
                    _ => {}
                }
                false
            },
        )?;
        if let Some(errno) = failed {
            return Err(io::Error::from_raw_os_error(-errno));
        }
    }
    Ok(found)
}

fn socket(body: &[u8]) -> Option<(u64, KernelTraffic)> {
    let low = u32_at(body, COOKIE)?;
    let high = u32_at(body, COOKIE + 4)?;
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
    Some((u64::from(high) << 32 | u64::from(low), traffic))
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
