//! Calls that block until there is something: the ways in which they must end.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
    time::Instant,
};

use nix::{
    fcntl::{SpliceFFlags, splice},
    unistd::{Pid, gettid, pipe},
};

use super::{
    PATIENCE, Seen,
    splicer::{Wiring, said, stuck},
    sys,
};

/// A reader that waits already, and what it gets.
struct Blocked {
    thread: Pid,
    /// How often it has gone to sleep when it did first.
    slept: u64,
    outcome: mpsc::Receiver<(Instant, io::Result<Vec<u8>>)>,
}

impl Blocked {
    fn start(socket: &TcpStream) -> Result<Self, String> {
        let mut socket = socket.try_clone().map_err(said("dup"))?;
        let (started, its_id) = mpsc::channel();
        let (result, outcome) = mpsc::channel();
        thread::Builder::new()
            .name("mesh-selftest".to_owned())
            .spawn(move || {
                let begun = Instant::now();
                let _ = started.send(gettid());
                let mut buffer = [0; 64];
                let read = socket.read(&mut buffer).map(|n| buffer[..n].to_vec());
                let _ = result.send((begun, read));
            })
            .map_err(said("a thread"))?;
        let id = its_id.recv().map_err(said("a thread"))?;
        if !sys::wait_for_sleep(id) {
            return Err("the reader does not wait".to_owned());
        }
        Ok(Self { thread: id, slept: sys::sleeps(id), outcome })
    }

    /// Lets it see what woke it: it has gone to sleep again, or it has ended.
    fn settle(&self) {
        sys::wait_for(PATIENCE / 3, || sys::sleeps(self.thread) != self.slept);
    }

    fn outcome(self) -> Result<(Instant, io::Result<Vec<u8>>), String> {
        self.outcome.recv_timeout(2 * PATIENCE).map_err(|_| "recv hung".to_owned())
    }
}

/// Half-closes while it waits for the answer, as many clients do.
pub(super) fn recv_after_shutdown(wiring: &Wiring) -> Seen {
    let mut pair = wiring.pair()?;
    pair.client.write_all(b"question").map_err(said("send"))?;
    let mut question = [0; 8];
    let begun = Instant::now();
    pair.server.read_exact(&mut question).map_err(|e| stuck("recv", begun, &e))?;
    let waiting = Blocked::start(&pair.client)?;
    pair.client.shutdown(Shutdown::Write).map_err(said("shutdown"))?;
    let begun = Instant::now();
    match pair.server.read(&mut question) {
        Ok(0) => {}
        Ok(n) => return Err(format!("{n} bytes in place of the end of the stream")),
        Err(error) => return Err(stuck("recv of the end of the stream", begun, &error)),
    }
    // The acknowledgement of the FIN wakes the reader, which has to go on waiting.
    if !sys::wait_for_state(&pair.client, sys::FIN_WAIT2) {
        return Err("the FIN was not acknowledged".to_owned());
    }
    waiting.settle();
    pair.server.write_all(b"answer").map_err(said("send of the answer"))?;
    match waiting.outcome()? {
        (_, Ok(answer)) if answer == b"answer" => {}
        (_, Ok(other)) => return Err(format!("{} bytes in place of the answer", other.len())),
        (begun, Err(error)) => {
            return Err(stuck("a blocking recv after shutdown(SHUT_WR)", begun, &error));
        }
    }
    pair.expect_spliced(8, 6)?;
    Ok("the answer came".to_owned())
}

/// The peer aborts while somebody waits for it.
pub(super) fn reset(wiring: &Wiring) -> Seen {
    let mut pair = wiring.pair()?;
    pair.client.write_all(b"question").map_err(said("send"))?;
    let mut question = [0; 8];
    let begun = Instant::now();
    pair.server.read_exact(&mut question).map_err(|e| stuck("recv", begun, &e))?;
    let waiting = Blocked::start(&pair.client)?;
    pair.expect_spliced(8, 0)?;
    socket2::SockRef::from(&pair.server)
        .set_linger(Some(std::time::Duration::ZERO))
        .map_err(said("SO_LINGER"))?;
    drop(pair);
    match waiting.outcome()? {
        (_, Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            Ok("ECONNRESET".to_owned())
        }
        (_, Ok(bytes)) => Err(format!("{} bytes in place of ECONNRESET", bytes.len())),
        (begun, Err(error)) => {
            Err(stuck("a blocking recv, in place of ECONNRESET,", begun, &error))
        }
    }
}

/// HAProxy and Go's `io.Copy` read that way.
pub(super) fn read_by_splice(wiring: &Wiring) -> Seen {
    const BYTES: usize = 4096;
    let mut pair = wiring.pair()?;
    pair.client.write_all(&[7; BYTES]).map_err(said("send"))?;
    pair.expect_spliced(BYTES as u64, 0)?;
    let (_out, into) = pipe().map_err(said("pipe"))?;
    let mut moved = 0;
    while moved < BYTES {
        let begun = Instant::now();
        match splice(&pair.server, None, &into, None, BYTES - moved, SpliceFFlags::empty()) {
            Ok(0) => return Err(format!("splice(2) found the end after {moved} bytes")),
            Ok(n) => moved += n,
            Err(errno) => return Err(stuck("splice(2) from the socket", begun, &errno.into())),
        }
    }
    Ok(format!("{BYTES} bytes came"))
}
