//! One tunnelled TCP stream.

use std::{
    fmt, io,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{MAX_WRITE_BYTES, pool::StreamLease, small_frames::SmallFrames};
use crate::transport::relay::{Abort, ReadBuffer};

/// The bytes of one CONNECT, both ways.
///
/// `shutdown` half-closes (END_STREAM); a reset by the peer is
/// [`io::ErrorKind::ConnectionReset`]. Dropped before both ways have ended, the
/// stream is reset (CANCEL); [`Abort::abort`] resets it with CONNECT_ERROR
/// (Spec: RFC 9113 §8.5). Bytes that nobody reads are bounded by the stream's
/// window; a writer waits for the peer's window instead of buffering.
pub struct HboneStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What is left of the DATA frame being read; its window is not yet released.
    unread: Bytes,
    read_closed: bool,
    write_closed: bool,
    small: SmallFrames,
    /// Counts this stream on its pooled connection; none on the server's side.
    _lease: Option<StreamLease>,
}

impl HboneStream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        lease: Option<StreamLease>,
    ) -> Self {
        Self {
            send,
            recv,
            unread: Bytes::new(),
            read_closed: false,
            write_closed: false,
            small: SmallFrames::default(),
            _lease: lease,
        }
    }

    /// Makes `unread` non-empty; `Ready(false)` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.unread.is_empty() {
            if self.read_closed {
                return Poll::Ready(Ok(false));
            }
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => self.read_closed = true,
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Gives the peer back the window of `bytes` that were consumed.
    fn release(&mut self, bytes: usize) {
        // Fails only when the stream is closed, where there is no window to give.
        let _ = self.recv.flow_control().release_capacity(bytes);
    }

    /// How many of `wanted` bytes may be sent now.
    fn poll_window(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.write_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.small.poll_room(cx));
        let wanted = wanted.min(MAX_WRITE_BYTES);
        self.send.reserve_capacity(wanted);
        let window = match self.send.capacity() {
            0 => match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(window)) => window,
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(self.write_error(cx))),
            },
            window => window,
        };
        Poll::Ready(Ok(window.min(wanted)))
    }

    fn send_data(&mut self, cx: &mut Context<'_>, data: Bytes, end: bool) -> io::Result<()> {
        // An empty frame, END_STREAM, is never held up.
        let data = if data.is_empty() { data } else { self.small.count(data) };
        self.send.send_data(data, end).map_err(|_| self.write_error(cx))
    }

    /// Why the sending side is closed though we did not close it.
    fn write_error(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => io_error(reason.into()),
            Poll::Ready(Err(error)) => io_error(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

/// What an h2 error means to who reads and writes a stream.
fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        return match error.into_io() {
            Some(error) => error,
            None => io::ErrorKind::ConnectionAborted.into(),
        };
    }
    let kind = match error.reason() {
        Some(_) if error.is_go_away() => io::ErrorKind::ConnectionAborted,
        Some(_) => io::ErrorKind::ConnectionReset,
        None => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for HboneStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 || !ready!(this.poll_fill(cx))? {
            return Poll::Ready(Ok(()));
        }
        let taken = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..taken]);
        this.unread.advance(taken);
        this.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(this.poll_window(cx, buf.len()))?;
        this.send_data(cx, Bytes::copy_from_slice(&buf[..taken]), false)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total = bufs.iter().fold(0usize, |sum, buf| sum.saturating_add(buf.len()));
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let taken = ready!(this.poll_window(cx, total))?;
        let mut data = BytesMut::with_capacity(taken);
        for buf in bufs {
            let piece = buf.len().min(taken - data.len());
            data.extend_from_slice(&buf[..piece]);
        }
        this.send_data(cx, data.freeze(), false)?;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The connection's own task flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_closed {
            this.write_closed = true;
            this.send_data(cx, Bytes::new(), true)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Abort for HboneStream {
    fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Hands on the DATA frame itself.
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        _: &mut ReadBuffer,
    ) -> Poll<io::Result<Bytes>> {
        if !ready!(self.poll_fill(cx))? {
            return Poll::Ready(Ok(Bytes::new()));
        }
        let chunk = std::mem::take(&mut self.unread);
        self.release(chunk.len());
        Poll::Ready(Ok(chunk))
    }

    /// Sends the chunk itself.
    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_window(cx, chunk.len()))?;
        self.send_data(cx, chunk.split_to(taken), false)?;
        Poll::Ready(Ok(taken))
    }
}

impl fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HboneStream")
            .field("id", &self.send.stream_id())
            .field("read_closed", &self.read_closed)
            .field("write_closed", &self.write_closed)
            .finish_non_exhaustive()
    }
}
