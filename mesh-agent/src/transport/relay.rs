//! Copies bytes both ways between two streams until both ways have ended.
//!
//! Half-closes are passed on; an error on either side, a cancelled relay and an idle
//! one reset both sides, so that nobody takes a broken stream for a finished one.
//! An idle relay holds no buffers.

mod buffer;
mod pipe;

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use buffer::ReadBuffer;
use pipe::{Conduit, Step};

use crate::observe::counters::Counters;

/// After so many bytes one way, what follows is taken for bulk.
const BULK_BYTES: u64 = 512 << 10;

/// A byte stream that can end with a reset instead of a FIN.
///
/// The two provided methods are how the relay reads and writes; streams that have
/// their bytes in buffers of their own replace them to save a copy.
pub trait Abort {
    /// Makes the peer see a reset, now or when the stream is dropped. Does nothing
    /// where the stream has ended already.
    fn abort(&mut self);

    /// The socket, where its bytes are the stream's own as they are: not TLS's, and
    /// none is buffered before it.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// The next bytes; empty at the end of the stream.
    ///
    /// # Errors
    /// What reading said.
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuffer,
    ) -> Poll<io::Result<Bytes>>
    where
        Self: AsyncRead + Unpin + Sized,
    {
        buffer.poll_read(self, cx)
    }

    /// Takes some bytes off the front of `chunk`, which is not empty; how many.
    ///
    /// # Errors
    /// What writing said.
    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<usize>>
    where
        Self: AsyncWrite + Unpin + Sized,
    {
        let taken = ready!(Pin::new(self).poll_write(cx, chunk))?;
        if taken == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        chunk.advance(taken);
        Poll::Ready(Ok(taken))
    }
}

impl Abort for TcpStream {
    /// RST when the socket is closed.
    fn abort(&mut self) {
        // Fails only where the socket is dead already.
        let _ = self.set_zero_linger();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Abort for tokio::io::DuplexStream {
    /// In memory, dropping is all there is.
    fn abort(&mut self) {}
}

/// One of the two streams of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Towards the initiator.
    Downstream,
    /// Towards the destination.
    Upstream,
}

/// Who ended a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// It was the first to finish, or it failed.
    Side(Side),
    /// Nothing was said for the idle timeout.
    Idle,
    /// The relay was cancelled.
    Cancelled,
}

/// What failed on one side.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {side}")]
pub struct RelayError {
    pub side: Side,
    pub operation: Operation,
    #[source]
    pub source: io::Error,
}

/// What a side was asked to do when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Reading,
    Writing,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading => "reading from",
            Self::Writing => "writing to",
        })
    }
}

/// How a relay ended.
#[derive(Debug)]
pub struct RelayOutcome {
    pub ended_by: EndedBy,
    /// Absent where both ways ended with a FIN, or nothing failed but time or patience.
    pub error: Option<RelayError>,
}

impl RelayOutcome {
    /// Whether both ways ended with a FIN.
    pub fn is_clean(&self) -> bool {
        self.error.is_none() && matches!(self.ended_by, EndedBy::Side(_))
    }
}

/// Copies until both ways have ended, one side fails, nothing was said for `idle`, or
/// `cancel` fires; all but the first reset both sides. So does dropping the future,
/// polled or not.
pub fn relay<A, B>(
    downstream: A,
    upstream: B,
    idle: Option<Duration>,
    counters: &Counters,
    cancel: &CancellationToken,
) -> impl Future<Output = RelayOutcome>
where
    A: AsyncRead + AsyncWrite + Abort + Unpin,
    B: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let relay = Relay {
        downstream,
        upstream,
        up: Direction::new(Side::Downstream, Side::Upstream),
        down: Direction::new(Side::Upstream, Side::Downstream),
        first: None,
        clean: false,
    };
    run(relay, idle, counters, cancel)
}

async fn run<A, B>(
    mut relay: Relay<A, B>,
    idle: Option<Duration>,
    counters: &Counters,
    cancel: &CancellationToken,
) -> RelayOutcome
where
    A: AsyncRead + AsyncWrite + Abort + Unpin,
    B: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let mut cancelled = pin!(cancel.cancelled());
    let mut timer = pin!(sleep_until(Instant::now() + idle.unwrap_or_default()));
    let mut last_moved = Instant::now();
    poll_fn(|cx| {
        let moved = (relay.up.moved, relay.down.moved);
        let result = relay.poll_copy(cx, counters);
        if let Poll::Ready(outcome) = result {
            return Poll::Ready(outcome);
        }
        if cancelled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(RelayOutcome { ended_by: EndedBy::Cancelled, error: None });
        }
        let Some(idle) = idle else { return Poll::Pending };
        if moved != (relay.up.moved, relay.down.moved) {
            last_moved = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            if last_moved.elapsed() >= idle {
                return Poll::Ready(RelayOutcome { ended_by: EndedBy::Idle, error: None });
            }
            timer.as_mut().reset(last_moved + idle);
        }
        Poll::Pending
    })
    .await
}

/// Both streams, reset on drop unless both ways ended well.
struct Relay<A: Abort, B: Abort> {
    downstream: A,
    upstream: B,
    up: Direction,
    down: Direction,
    first: Option<Side>,
    clean: bool,
}

impl<A, B> Relay<A, B>
where
    A: AsyncRead + AsyncWrite + Abort + Unpin,
    B: AsyncRead + AsyncWrite + Abort + Unpin,
{
    fn poll_copy(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<RelayOutcome> {
        let up = self.up.poll(cx, &mut self.downstream, &mut self.upstream, |n| {
            counters.add_received(n);
        });
        if let Poll::Ready(Err(error)) = up {
            return Poll::Ready(self.failed(error));
        }
        let down = self.down.poll(cx, &mut self.upstream, &mut self.downstream, |n| {
            counters.add_sent(n);
        });
        if let Poll::Ready(Err(error)) = down {
            return Poll::Ready(self.failed(error));
        }
        let first = match (up.is_ready(), down.is_ready()) {
            (true, _) => Side::Downstream,
            (_, true) => Side::Upstream,
            _ => return Poll::Pending,
        };
        let first = *self.first.get_or_insert(first);
        if up.is_pending() || down.is_pending() {
            return Poll::Pending;
        }
        self.clean = true;
        Poll::Ready(RelayOutcome { ended_by: EndedBy::Side(first), error: None })
    }

    fn failed(&self, error: RelayError) -> RelayOutcome {
        RelayOutcome { ended_by: EndedBy::Side(error.side), error: Some(error) }
    }
}

impl<A: Abort, B: Abort> Drop for Relay<A, B> {
    fn drop(&mut self) {
        if !self.clean {
            self.downstream.abort();
            self.upstream.abort();
        }
    }
}

/// One way of a relay.
struct Direction {
    from: Side,
    to: Side,
    buffer: ReadBuffer,
    /// Read, but not yet written.
    chunk: Bytes,
    state: State,
    /// From [`BULK_BYTES`] on, between sockets.
    conduit: Conduit,
    /// The sockets, or the kernel, don't do that.
    copies: bool,
    /// Written but not flushed.
    dirty: bool,
    moved: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    Closing,
    Closed,
}

impl Direction {
    fn new(from: Side, to: Side) -> Self {
        Self {
            from,
            to,
            buffer: ReadBuffer::default(),
            chunk: Bytes::new(),
            state: State::Copying,
            conduit: Conduit::default(),
            copies: false,
            dirty: false,
            moved: 0,
        }
    }

    /// Ready when the source's FIN has been passed on.
    fn poll<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: impl Fn(u64),
    ) -> Poll<Result<(), RelayError>>
    where
        F: AsyncRead + Abort + Unpin,
        T: AsyncWrite + Abort + Unpin,
    {
        loop {
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|e| self.writing(e))?;
                    self.state = State::Closed;
                }
                State::Copying if self.chunk.is_empty() && self.is_bulk() => {
                    let (Some(source), Some(sink)) = (from.tcp(), to.tcp()) else {
                        self.copies = true;
                        continue;
                    };
                    self.buffer.release();
                    match ready!(self.conduit.poll_step(cx, source, sink)) {
                        Ok(Step::Moved(bytes)) => {
                            self.moved += bytes as u64;
                            count(bytes as u64);
                        }
                        Ok(Step::End) => self.state = State::Closing,
                        Ok(Step::Unsupported(rest)) => {
                            self.copies = true;
                            self.chunk = rest;
                        }
                        Err((Operation::Writing, source)) => {
                            return Poll::Ready(Err(self.writing(source)));
                        }
                        Err((operation, source)) => {
                            let side = self.from;
                            return Poll::Ready(Err(RelayError { side, operation, source }));
                        }
                    }
                }
                State::Copying if self.chunk.is_empty() => {
                    // What was written is gone, so that its memory can be used again.
                    self.chunk = Bytes::new();
                    match from.poll_read_chunk(cx, &mut self.buffer) {
                        Poll::Ready(Ok(chunk)) if chunk.is_empty() => {
                            self.buffer.release();
                            self.state = State::Closing;
                        }
                        Poll::Ready(Ok(chunk)) => self.chunk = chunk,
                        Poll::Ready(Err(source)) => {
                            let (side, operation) = (self.from, Operation::Reading);
                            return Poll::Ready(Err(RelayError { side, operation, source }));
                        }
                        Poll::Pending => {
                            self.buffer.release();
                            if self.dirty {
                                let flushed = ready!(Pin::new(&mut *to).poll_flush(cx));
                                flushed.map_err(|e| self.writing(e))?;
                                self.dirty = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
                State::Copying => {
                    let written = ready!(to.poll_write_chunk(cx, &mut self.chunk));
                    let written = written.map_err(|e| self.writing(e))? as u64;
                    self.dirty = true;
                    self.moved += written;
                    count(written);
                }
            }
        }
    }

    fn is_bulk(&self) -> bool {
        self.moved >= BULK_BYTES && !self.copies
    }

    fn writing(&self, source: io::Error) -> RelayError {
        RelayError { side: self.to, operation: Operation::Writing, source }
    }
}

#[cfg(test)]
mod tests;
