//! What an event loop asks of a socket.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    PATIENCE, Seen,
    splicer::{Wiring, said},
    sys,
};

/// nginx, Java and .NET size their reads by it.
pub(super) fn fionread(wiring: &Wiring) -> Seen {
    const BYTES: i32 = 1000;
    let mut pair = wiring.pair()?;
    pair.client.write_all(&[7; BYTES as usize]).map_err(said("send"))?;
    pair.expect_spliced(BYTES as u64, 0)?;
    let count = || sys::readable_bytes(&pair.server);
    if sys::wait(|| count().is_ok_and(|found| found == BYTES)) {
        return Ok(format!("{BYTES} bytes are told"));
    }
    match count() {
        Ok(found) => Err(format!("{found} of {BYTES} bytes are told")),
        Err(error) => Err(format!("ioctl: {error}")),
    }
}

/// Looks without taking, then takes.
pub(super) fn peek(wiring: &Wiring) -> Seen {
    let mut pair = wiring.pair()?;
    pair.client.write_all(b"data").map_err(said("send"))?;
    pair.expect_spliced(4, 0)?;
    let mut buffer = [0; 8];
    for _ in 0..2 {
        match pair.server.peek(&mut buffer) {
            Ok(4) if buffer.starts_with(b"data") => {}
            Ok(n) => return Err(format!("peek saw {n} bytes of 4")),
            Err(error) => return Err(format!("peek: {error}")),
        }
    }
    match pair.server.read(&mut buffer) {
        Ok(4) if buffer.starts_with(b"data") => Ok("it is there twice, and then once".to_owned()),
        Ok(n) => Err(format!("recv after peek got {n} bytes of 4")),
        Err(error) => Err(format!("recv after peek: {error}")),
    }
}

/// Who sends without a copy must not touch what he sent before he is told that he may
/// (`MSG_ZEROCOPY`): he waits for it.
pub(super) fn zerocopy(wiring: &Wiring) -> Seen {
    static SENT: [u8; 16 << 10] = [7; 16 << 10];
    let mut pair = wiring.pair()?;
    sys::allow_zerocopy(&pair.client).map_err(said("SO_ZEROCOPY"))?;
    let sent = sys::send_zerocopy(&pair.client, &SENT).map_err(said("send"))?;
    let mut got = vec![0; sent];
    pair.server.read_exact(&mut got).map_err(said("recv"))?;
    if got != SENT[..sent] {
        return Err("other bytes came than were sent".to_owned());
    }
    if sys::wait(|| sys::takes_completion(&pair.client)) {
        Ok("a sender without a copy is told when it is done".to_owned())
    } else {
        Err("a sender without a copy (MSG_ZEROCOPY) is never told that it is done".to_owned())
    }
}

/// One watched socket.
struct Watch(Epoll);

impl Watch {
    fn new(socket: &TcpStream, flags: EpollFlags) -> Result<Self, String> {
        socket.set_nonblocking(true).map_err(said("O_NONBLOCK"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(said("epoll"))?;
        epoll.add(socket, EpollEvent::new(flags, 0)).map_err(said("epoll"))?;
        Ok(Self(epoll))
    }

    /// The events within `patience` milliseconds; none where there were none.
    fn events(&self, patience: u16) -> Result<EpollFlags, String> {
        let mut events = [EpollEvent::empty()];
        let found = self.0.wait(&mut events, EpollTimeout::from(patience));
        match found.map_err(said("epoll_wait"))? {
            0 => Ok(EpollFlags::empty()),
            _ => Ok(events[0].events()),
        }
    }

    fn expect_readable(&self, when: &str) -> Result<(), String> {
        if self.events(PATIENCE.as_millis() as u16)?.contains(EpollFlags::EPOLLIN) {
            return Ok(());
        }
        Err(format!("no event {when}"))
    }
}

/// Takes all there is; how much.
fn drain(socket: &mut TcpStream) -> Result<usize, String> {
    let mut buffer = [0; 512];
    let mut taken = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Err("an early end of the stream".to_owned()),
            Ok(n) => taken += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(format!("recv: {error}")),
        }
    }
}

/// A level-triggered loop hears of data until it has taken it, and of the end.
pub(super) fn epoll_level(wiring: &Wiring) -> Seen {
    let mut pair = wiring.pair()?;
    let watch = Watch::new(&pair.server, EpollFlags::EPOLLIN)?;
    if !watch.events(0)?.is_empty() {
        return Err("an event without data".to_owned());
    }
    pair.client.write_all(&[7; 1000]).map_err(said("send"))?;
    watch.expect_readable("for data")?;
    let mut some = [0; 400];
    pair.server.read_exact(&mut some).map_err(said("recv"))?;
    watch.expect_readable("for the rest of the data")?;
    if drain(&mut pair.server)? != 600 {
        return Err("bytes are missing".to_owned());
    }
    if !watch.events(0)?.is_empty() {
        return Err("an event after all data was taken".to_owned());
    }
    pair.expect_spliced(1000, 0)?;
    drop(pair.client);
    watch.expect_readable("for the end of the stream")?;
    match pair.server.read(&mut some) {
        Ok(0) => Ok("data, rest and end are told".to_owned()),
        Ok(n) => Err(format!("{n} bytes after the end")),
        Err(error) => Err(format!("recv of the end of the stream: {error}")),
    }
}

/// An edge-triggered loop hears of each arrival, also while it has not taken the last.
pub(super) fn epoll_edge(wiring: &Wiring) -> Seen {
    let mut pair = wiring.pair()?;
    let watch = Watch::new(&pair.server, EpollFlags::EPOLLIN | EpollFlags::EPOLLET)?;
    for round in 1..=3 {
        pair.client.write_all(&[7; 100]).map_err(said("send"))?;
        watch.expect_readable("for an arrival")?;
        if drain(&mut pair.server)? != 100 {
            return Err(format!("bytes are missing in round {round}"));
        }
    }
    pair.client.write_all(&[7; 100]).map_err(said("send"))?;
    watch.expect_readable("for an arrival")?;
    pair.client.write_all(&[7; 100]).map_err(said("send"))?;
    watch.expect_readable("for an arrival behind data that was not taken")?;
    if drain(&mut pair.server)? != 200 {
        return Err("bytes are missing".to_owned());
    }
    pair.expect_spliced(500, 0)?;
    drop(pair.client);
    watch.expect_readable("for the end of the stream")?;
    Ok("every arrival and the end are told".to_owned())
}
