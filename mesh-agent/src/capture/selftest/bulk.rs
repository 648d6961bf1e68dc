//! Data in quantities, both ways, to its end.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use mesh_common::key::SpliceSide;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    PATIENCE, Seen,
    splicer::{Wiring, said},
};

/// What one side may send while the other does not read. Both have buffers of 64 KiB.
const BOUND: usize = 4 << 20;

/// What a chunk at `offset` of a stream holds: no chunk is like its neighbours.
pub(super) fn pattern(offset: usize, chunk: &mut [u8]) {
    for (i, byte) in chunk.iter_mut().enumerate() {
        let at = offset + i;
        *byte = (at ^ (at >> 8) ^ (at >> 16)) as u8;
    }
}

pub(super) fn wait_for(
    socket: &TcpStream,
    what: PollFlags,
    patience: Duration,
) -> Result<bool, String> {
    let mut fds = [PollFd::new(socket.as_fd(), what)];
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    poll(&mut fds, timeout).map(|ready| ready > 0).map_err(said("poll"))
}

/// Sends `total` bytes of the pattern. Polls, for blocking calls are another check.
pub(super) fn send(mut socket: &TcpStream, total: usize) -> Result<(), String> {
    let mut chunk = [0; 64 << 10];
    let mut sent = 0;
    while sent < total {
        let length = chunk.len().min(total - sent);
        let chunk = &mut chunk[..length];
        pattern(sent, chunk);
        let mut done = 0;
        while done < length {
            match socket.write(&chunk[done..]) {
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait_for(socket, PollFlags::POLLOUT, PATIENCE)? {
                        return Err(format!("no more can be sent after {} bytes", sent + done));
                    }
                }
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        sent += length;
    }
    Ok(())
}

/// Receives the pattern from `offset` until `total` bytes of the stream were there.
pub(super) fn receive(mut socket: &TcpStream, offset: usize, total: usize) -> Result<(), String> {
    let (mut chunk, mut expected) = ([0; 64 << 10], [0; 64 << 10]);
    let mut received = offset;
    while received < total {
        match socket.read(&mut chunk[..(64 << 10).min(total - received)]) {
            Ok(0) => return Err(format!("the end after {received} of {total} bytes")),
            Ok(n) => {
                pattern(received, &mut expected[..n]);
                if chunk[..n] != expected[..n] {
                    return Err(format!("wrong or misplaced data after {received} bytes"));
                }
                received += n;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for(socket, PollFlags::POLLIN, PATIENCE)? {
                    return Err(format!("nothing more came after {received} of {total} bytes"));
                }
            }
            Err(error) => return Err(format!("recv: {error}")),
        }
    }
    Ok(())
}

pub(super) fn receive_end(mut socket: &TcpStream) -> Result<(), String> {
    wait_for(socket, PollFlags::POLLIN, PATIENCE)?;
    match socket.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("data after the end".to_owned()),
        Err(error) => Err(format!("recv of the end of the stream: {error}")),
    }
}

fn nonblocking(sockets: [&TcpStream; 2]) -> Result<(), String> {
    sockets.into_iter().try_for_each(|s| s.set_nonblocking(true)).map_err(said("O_NONBLOCK"))
}

/// A request, its end, and an answer into the half that is left.
pub(super) fn half_close(wiring: &Wiring) -> Seen {
    const ANSWER: usize = 256 << 10;
    let pair = wiring.pair()?;
    nonblocking([&pair.client, &pair.server])?;
    send(&pair.client, 1000)?;
    pair.client.shutdown(Shutdown::Write).map_err(said("shutdown"))?;
    receive(&pair.server, 0, 1000)?;
    receive_end(&pair.server)?;
    both(|| send(&pair.server, ANSWER), || receive(&pair.client, 0, ANSWER))?;
    pair.server.shutdown(Shutdown::Write).map_err(said("shutdown"))?;
    receive_end(&pair.client)?;
    pair.expect_spliced(1000, ANSWER as u64)?;
    Ok("the answer came after the half-close, then its end".to_owned())
}

/// Data that nobody has read yet when its sender closes.
pub(super) fn close_after_write(wiring: &Wiring) -> Seen {
    const BYTES: usize = 32 << 10;
    let pair = wiring.pair()?;
    nonblocking([&pair.client, &pair.server])?;
    send(&pair.client, BYTES)?;
    pair.expect_spliced(BYTES as u64, 0)?;
    drop(pair.client);
    receive(&pair.server, 0, BYTES)?;
    receive_end(&pair.server)?;
    Ok("all of it came, then the end".to_owned())
}

/// A writer against a reader that does not read.
pub(super) fn bounded(wiring: &Wiring) -> Seen {
    let pair = wiring.pair()?;
    nonblocking([&pair.client, &pair.server])?;
    for socket in [&pair.client, &pair.server] {
        let socket = socket2::SockRef::from(socket);
        socket.set_send_buffer_size(64 << 10).map_err(said("SO_SNDBUF"))?;
        socket.set_recv_buffer_size(64 << 10).map_err(said("SO_RCVBUF"))?;
    }
    let chunk = [7; 64 << 10];
    let mut queued = 0;
    while queued < BOUND {
        match (&pair.client).write(&chunk) {
            Ok(n) => queued += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait_for(&pair.client, PollFlags::POLLOUT, PATIENCE / 4)? {
                    pair.expect_spliced(queued as u64, 0)?;
                    return Ok(format!("the writer waits after {} KiB", queued >> 10));
                }
            }
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    Err(format!("{} MiB were queued for a reader that does not read", queued >> 20))
}

/// Much data both ways at once.
pub(super) fn large_writes(wiring: &Wiring) -> Seen {
    const BYTES: usize = 2 << 20;
    let pair = wiring.pair()?;
    nonblocking([&pair.client, &pair.server])?;
    let begun = Instant::now();
    both(
        || both(|| send(&pair.client, BYTES), || receive(&pair.server, 0, BYTES)),
        || both(|| send(&pair.server, BYTES), || receive(&pair.client, 0, BYTES)),
    )?;
    pair.expect_spliced(BYTES as u64, BYTES as u64)?;
    Ok(format!("{} MiB each way in {} ms", BYTES >> 20, begun.elapsed().as_millis()))
}

/// What was sent before the peer could be found stays ahead of what follows.
pub(super) fn early_data(wiring: &Wiring) -> Seen {
    const EARLY: usize = 1000;
    let pair = wiring.pair_on_tcp()?;
    nonblocking([&pair.client, &pair.server])?;
    // Before anything: the server will find it although it becomes spliced meanwhile.
    pair.enter(SpliceSide::Client)?;
    send(&pair.client, EARLY)?;
    pair.enter(SpliceSide::Server)?;
    receive(&pair.server, 0, EARLY)?;
    // The other way begins when both are there; this one stays on TCP.
    both(|| send(&pair.server, EARLY), || receive(&pair.client, 0, EARLY))?;
    for _ in 0..3 {
        send(&pair.client, EARLY)?;
    }
    for _ in 0..3 {
        receive(&pair.server, 0, EARLY)?;
    }
    pair.expect_spliced(0, EARLY as u64)?;
    Ok("in order; its direction stays on TCP".to_owned())
}

/// Two things at once, on threads that end with this.
fn both(
    a: impl FnOnce() -> Result<(), String> + Send,
    b: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    thread::scope(|scope| {
        let a = scope.spawn(a);
        let b = b();
        a.join().unwrap_or_else(|_| Err("a thread fell over".to_owned())).and(b)
    })
}
