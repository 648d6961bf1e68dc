//! Reads more from a socket than TLS asks for.
//!
//! rustls reads 4 KiB at a time: a bulk transfer would cost four system calls for each
//! record. Small messages are read where TLS wants them and cost nothing; only a read
//! that was filled to the brim, so that more is likely there, makes the next ones
//! large, until the socket runs dry.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read at once, and held at most: four TLS records.
const AHEAD_BYTES: usize = 64 << 10;

/// A stream whose reads are large while it is busy. Nothing is held while it is idle.
#[derive(Debug)]
pub struct ReadAhead<T> {
    io: T,
    ahead: BytesMut,
    busy: bool,
}

impl<T> ReadAhead<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, ahead: BytesMut::new(), busy: false }
    }
}

impl<T: AsyncRead + Unpin> ReadAhead<T> {
    /// Reads into `ahead`; how much.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.ahead.reserve(AHEAD_BYTES);
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.ahead);
        if !matches!(read, Poll::Ready(Ok(read)) if read > 0) {
            self.ahead = BytesMut::new();
            self.busy = false;
        }
        read
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if !this.busy {
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                this.busy = buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_ahead(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let taken = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..taken]);
        this.ahead.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::{AHEAD_BYTES, ReadAhead};

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        let (mut near, far) = duplex(100_000);
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            for piece in sent.chunks(70_001) {
                near.write_all(piece).await.unwrap();
            }
        });
        let mut far = ReadAhead::new(far);
        let (mut received, mut space) = (Vec::new(), [0; 4096]);
        loop {
            let read = far.read(&mut space).await.unwrap();
            assert!(far.ahead.len() <= AHEAD_BYTES);
            if read == 0 {
                break;
            }
            received.extend_from_slice(&space[..read]);
        }
        sender.await.unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn an_idle_stream_holds_no_memory() {
        let (mut near, far) = duplex(100_000);
        let mut far = ReadAhead::new(far);
        near.write_all(&[1; 50_000]).await.unwrap();
        let mut space = [0; 4096];
        let mut left = 50_000;
        while left > 0 {
            left -= far.read(&mut space).await.unwrap();
        }
        assert!(far.read(&mut space).now_or_never().is_none());
        assert_eq!(far.ahead.capacity(), 0);
        near.write_all(b"end").await.unwrap();
        drop(near);
        assert_eq!(far.read(&mut space).await.unwrap(), 3);
        assert_eq!(far.read(&mut space).await.unwrap(), 0);
    }
}
