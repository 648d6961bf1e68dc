//! An application's socket, which may block, and one of the agent's, which does not.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use mesh_common::value::Way;
use nix::poll::PollFlags;

use super::{
    PATIENCE, Seen,
    bulk::{pattern, receive, receive_end, send, wait_for},
    splicer::{Wiring, said},
};
use crate::capture::sock_diag::Backlogs;

/// The agent hears of an abort behind what was sent before, and not of an orderly end.
pub(super) fn reset(wiring: &Wiring) -> Seen {
    let pair = wiring.leg(u64::MAX)?;
    send(&pair.client, 1000)?;
    receive(&pair.server, 0, 1000)?;
    let client = socket2::SockRef::from(&pair.client);
    client.set_linger(Some(Duration::ZERO)).map_err(said("SO_LINGER"))?;
    let mut server = pair.server.try_clone().map_err(said("dup"))?;
    drop(pair);
    let until = Instant::now() + PATIENCE;
    loop {
        wait_for(&server, PollFlags::POLLIN, PATIENCE)?;
        match server.read(&mut [0; 64]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Ok("ECONNRESET".to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(error) => return Err(format!("in place of ECONNRESET: {error}")),
            Ok(n) => return Err(format!("{n} bytes in place of ECONNRESET")),
        }
    }
}

/// The kernel says how much an application has not read: nothing else bounds it.
pub(super) fn backlog(wiring: &Wiring) -> Seen {
    const BYTES: usize = 48 << 10;
    let pair = wiring.leg(u64::MAX)?;
    let address = |found: io::Result<_>| found.map_err(said("a socket's address"));
    let own = address(pair.client.local_addr())?;
    let peer = address(pair.client.peer_addr())?;
    let mut backlogs = Backlogs::open().map_err(said("sock_diag"))?;
    let mut asked = || match backlogs.of(own, peer).map_err(said("sock_diag"))? {
        Some(bytes) => Ok(bytes),
        None => Err("a socket is not to be found".to_owned()),
    };
    if asked()? != 0 {
        return Err("bytes wait before any was sent".to_owned());
    }
    pair.client.set_nonblocking(true).map_err(said("O_NONBLOCK"))?;
    let mut sent = 0;
    while sent < BYTES {
        match (&pair.server).write(&[7; 16 << 10][..(16 << 10).min(BYTES - sent)]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    let told = asked()?;
    if told < sent as u64 / 2 {
        return Err(format!("{told} bytes are told where {sent} wait"));
    }
    let mut read = 0;
    while read < sent {
        match (&pair.client).read(&mut [0; 16 << 10]) {
            Ok(0) => return Err("an early end of the stream".to_owned()),
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for(&pair.client, PollFlags::POLLIN, PATIENCE)? {
                    return Err(format!("nothing more came after {read} of {sent} bytes"));
                }
            }
            Err(error) => return Err(format!("recv: {error}")),
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        match asked()? {
            0 => return Ok(format!("{told} bytes are told where {sent} wait")),
            left if Instant::now() >= until => {
                return Err(format!("{left} bytes are told where none wait"));
            }
            _ => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// An application that is too far ahead of the agent goes on by TCP, which holds it up, and
/// nothing is lost or overtaken.
pub(super) fn fallback(wiring: &Wiring) -> Seen {
    const GRANTED: usize = 64 << 10;
    const MOST: usize = 64 << 20;
    let pair = wiring.leg(GRANTED as u64)?;
    pair.client.set_nonblocking(true).map_err(said("O_NONBLOCK"))?;
    for socket in [&pair.client, &pair.server] {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(64 << 10).map_err(said("SO_SNDBUF"))?;
        socket.set_recv_buffer_size(64 << 10).map_err(said("SO_RCVBUF"))?;
    }
    let sent = fill(&pair.client, MOST)?;
    if sent >= MOST {
        return Err(format!("{} MiB were queued for an agent that does not read", sent >> 20));
    }
    if let Some((way, spliced)) = pair.client_way()?
        && (way != Way::Tcp || spliced == 0 || spliced > GRANTED as u64)
    {
        return Err(format!("{spliced} bytes of {GRANTED} were spliced, then {way:?}"));
    }
    receive(&pair.server, 0, sent)?;
    pair.client.shutdown(Shutdown::Write).map_err(said("shutdown"))?;
    receive_end(&pair.server)?;
    Ok(format!("the writer waits after {} KiB, and all of it comes in order", sent >> 10))
}

/// Sends the pattern until the socket takes no more for a while; how much it took.
fn fill(mut socket: &TcpStream, most: usize) -> Result<usize, String> {
    let mut chunk = [0; 16 << 10];
    let mut sent = 0;
    while sent < most {
        pattern(sent, &mut chunk);
        match socket.write(&chunk) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for(socket, PollFlags::POLLOUT, PATIENCE / 4)? {
                    break;
                }
            }
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    Ok(sent)
}
