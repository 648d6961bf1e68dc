//! A connection whose first bytes have been read already.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::relay::Abort;

/// Reads `sniffed` again before the rest.
#[derive(Debug)]
pub struct Replayed<IO> {
    pub io: IO,
    pub sniffed: Bytes,
}

impl Abort for Box<TlsStream<Replayed<TcpStream>>> {
    /// RST when the socket is closed, with no word of TLS before.
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<IO: Abort> Abort for Replayed<IO> {
    fn abort(&mut self) {
        self.io.abort();
    }

    fn tcp(&self) -> Option<&TcpStream> {
        self.io.tcp().filter(|_| self.sniffed.is_empty())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Replayed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sniffed.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.sniffed.len().min(buf.remaining());
        buf.put_slice(&self.sniffed[..n]);
        self.sniffed.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Replayed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
