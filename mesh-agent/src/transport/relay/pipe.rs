//! Bulk between two sockets by splice(2): its pages go by way of a pipe and are never
//! copied to user space.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

use super::Operation;

/// What a pipe holds; the kernel may give less.
const CAPACITY: usize = 256 << 10;

/// Pipes of all relays together; a relay that gets none copies.
const MAX_PIPES: usize = 512;

/// Empty ones that wait for the next relay.
const MAX_POOLED: usize = 64;

static PIPES: AtomicUsize = AtomicUsize::new(0);
static POOL: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

fn pool() -> MutexGuard<'static, Vec<Pipe>> {
    // Each change stands for itself.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counted among [`PIPES`].
#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn take() -> Option<Self> {
        if let Some(pooled) = pool().pop() {
            return Some(pooled);
        }
        if PIPES.fetch_add(1, Ordering::Relaxed) >= MAX_PIPES {
            PIPES.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let Ok((out, into)) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) else {
            PIPES.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        // A smaller one does as well.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32));
        Some(Self { out, into })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One way of a relay by splice(2). Holds a pipe only while there is something to move.
#[derive(Debug, Default)]
pub(super) struct Conduit {
    pipe: Option<Pipe>,
    /// In the pipe.
    held: usize,
}

/// What one step came to.
#[derive(Debug)]
pub(super) enum Step {
    /// So many bytes were written.
    Moved(usize),
    /// The source has ended, and everything is written.
    End,
    /// Not for these sockets, or there is no pipe: copy, first of all these bytes.
    Unsupported(Bytes),
}

impl Conduit {
    /// Moves some bytes; an error says what was being done.
    pub(super) fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<Step, (Operation, io::Error)>> {
        let Some(pipe) = self.pipe.take().or_else(Pipe::take) else {
            return Poll::Ready(Ok(Step::Unsupported(Bytes::new())));
        };
        if self.held == 0 {
            let filled = poll_io(cx, from, Interest::READABLE, || {
                splice(from, None, &pipe.into, None, CAPACITY, FLAGS)
            });
            match filled {
                Poll::Pending => {
                    give_back(pipe);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    give_back(pipe);
                    return Poll::Ready(Ok(Step::End));
                }
                Poll::Ready(Ok(read)) => self.held = read,
                Poll::Ready(Err(error)) if is_unsupported(&error) => {
                    give_back(pipe);
                    return Poll::Ready(Ok(Step::Unsupported(Bytes::new())));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err((Operation::Reading, error))),
            }
        }
        let (pipe, held) = (self.pipe.insert(pipe), self.held);
        let written = ready!(poll_io(cx, to, Interest::WRITABLE, || {
            splice(&pipe.out, None, to, None, held, FLAGS)
        }));
        match written {
            Ok(0) => Poll::Ready(Err((Operation::Writing, io::ErrorKind::WriteZero.into()))),
            Ok(written) => {
                self.held -= written;
                Poll::Ready(Ok(Step::Moved(written)))
            }
            Err(error) if is_unsupported(&error) => {
                let rest = self.take_back().map_err(|error| (Operation::Writing, error));
                Poll::Ready(rest.map(Step::Unsupported))
            }
            Err(error) => Poll::Ready(Err((Operation::Writing, error))),
        }
    }

    #[cfg(test)]
    pub(super) fn holds_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    /// What is in the pipe.
    pub(super) fn take_back(&mut self) -> io::Result<Bytes> {
        let mut bytes = vec![0; std::mem::take(&mut self.held)];
        if let Some(pipe) = &self.pipe {
            std::fs::File::from(pipe.out.try_clone()?).read_exact(&mut bytes)?;
        }
        Ok(bytes.into())
    }
}

impl Drop for Conduit {
    fn drop(&mut self) {
        // One with bytes in it is no use to anybody.
        if let Some(pipe) = self.pipe.take().filter(|_| self.held == 0) {
            give_back(pipe);
        }
    }
}

fn give_back(pipe: Pipe) {
    let mut pool = pool();
    if pool.len() < MAX_POOLED {
        pool.push(pipe);
    }
}

/// Without `SPLICE_F_MORE`, which would hold the last bytes back.
const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

fn poll_io(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    interest: Interest,
    mut work: impl FnMut() -> Result<usize, Errno>,
) -> Poll<io::Result<usize>> {
    loop {
        let ready = if interest.is_readable() {
            socket.poll_read_ready(cx)
        } else {
            socket.poll_write_ready(cx)
        };
        ready!(ready)?;
        match socket.try_io(interest, || Ok(work()?)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}
