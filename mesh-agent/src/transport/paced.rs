//! Reads of HTTP/2 that let others have their turn.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2_frames::Frames;

/// What is read in one go. What the codec makes of it waits until those that it is for have their
/// turn: of frames of 30 bytes it makes ten times as much.
const TURN_BYTES: usize = 64 << 10;

/// `IO`, of which little is read at a time, however much there is, and in few frames.
#[derive(Debug)]
pub(crate) struct Paced<IO> {
    io: IO,
    frames: Frames,
    read: usize,
}

impl<IO> Paced<IO> {
    /// `preface_bytes` come before the first frame.
    pub(crate) fn new(io: IO, preface_bytes: usize) -> Self {
        Self { io, frames: Frames::new(preface_bytes), read: 0 }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Paced<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read >= TURN_BYTES {
            this.read = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if polled.is_pending() {
            this.read = 0;
        }
        ready!(polled)?;
        let chunk = &mut buf.filled_mut()[before..];
        this.read += chunk.len();
        let becomes = this.frames.put_together(chunk);
        buf.set_filled(before + becomes);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Paced<IO> {
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
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_and_nothing_is_lost() {
        let (mut write, read) = duplex(1 << 20);
        write.write_all(&vec![7; 1 << 20]).await.unwrap();
        drop(write);
        let mut paced = Paced::new(read, 1 << 20);
        let (mut all, mut turns) = (0, 0);
        poll_fn(|cx| {
            let mut bytes = [0; 8192];
            let mut buf = ReadBuf::new(&mut bytes);
            // As a codec that reads as long as there is something.
            loop {
                buf.clear();
                match Pin::new(&mut paced).poll_read(cx, &mut buf) {
                    Poll::Pending => break,
                    Poll::Ready(read) => read.unwrap(),
                }
                match buf.filled() {
                    [] => return Poll::Ready(()),
                    read => all += read.len(),
                }
            }
            turns += 1;
            Poll::Pending
        })
        .await;
        assert_eq!(all, 1 << 20);
        assert!(turns >= all / TURN_BYTES, "{turns} turns");
        assert_eq!(paced.read(&mut [0]).await.unwrap(), 0);
    }
}
