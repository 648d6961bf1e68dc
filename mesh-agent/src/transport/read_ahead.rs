//! Large reads for who reads in small ones.
//!
//! rustls asks for 4 to 18 KiB at a time, so that bulk costs a system call for each TLS
//! record or two. Where a read was filled to the brim, what follows is read in one large
//! piece and handed out from there; where little comes, it goes past, uncopied.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read at once, and held at most: 256 KiB.
const AHEAD_BYTES: usize = 256 << 10;
/// Less than this is no bulk.
const BULK_BYTES: usize = 16 << 10;

/// `IO`, read ahead. Holds no memory while little or nothing comes.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    ahead: BytesMut,
    bulk: bool,
}

impl<IO> ReadAhead<IO> {
    pub(super) fn new(io: IO) -> Self {
        Self { io, ahead: BytesMut::new(), bulk: false }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            if !this.bulk {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
                this.bulk = buf.remaining() == 0 && buf.filled().len() > before;
                return Poll::Ready(Ok(()));
            }
            this.ahead.reserve(AHEAD_BYTES);
            let read = poll_read_buf(Pin::new(&mut this.io), cx, &mut this.ahead);
            this.bulk = matches!(read, Poll::Ready(Ok(read)) if read >= BULK_BYTES);
            if this.ahead.is_empty() {
                this.ahead = BytesMut::new();
            }
            ready!(read)?;
        }
        let taken = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..taken]);
        this.ahead.advance(taken);
        if this.ahead.is_empty() && !this.bulk {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
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
        bufs: &[io::IoSlice<'_>],
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::{AHEAD_BYTES, ReadAhead};

    #[tokio::test]
    async fn bulk_is_read_ahead_in_order_and_the_memory_is_given_back() {
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let (mut writer, reader) = duplex(AHEAD_BYTES);
        let mut reader = ReadAhead::new(reader);
        let (mut got, mut most) = (Vec::new(), 0);
        let (written, ()) = tokio::join!(
            async {
                writer.write_all(&sent).await.unwrap();
                writer
            },
            async {
                let mut piece = [0; 4096];
                while got.len() < sent.len() {
                    let read = reader.read(&mut piece).await.unwrap();
                    assert!(read > 0, "ended early");
                    got.extend_from_slice(&piece[..read]);
                    most = most.max(reader.ahead.capacity());
                }
            }
        );
        assert!(got == sent);
        assert!((1..=2 * AHEAD_BYTES).contains(&most), "{most}");
        let mut writer = written;
        for message in [b"one".as_slice(), b"two"] {
            writer.write_all(message).await.unwrap();
            let mut piece = [0; 4096];
            let read = reader.read(&mut piece).await.unwrap();
            assert_eq!(&piece[..read], message);
        }
        assert_eq!(reader.ahead.capacity(), 0, "nothing is held for small messages");
        drop(writer);
        assert_eq!(reader.read(&mut [0; 16]).await.unwrap(), 0);
    }
}
