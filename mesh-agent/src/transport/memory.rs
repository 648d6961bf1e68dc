//! A connection that never leaves the agent: both of its ends are here.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::oneshot,
};

use super::relay::Abort;

/// Bytes that one end may be ahead of the other's reading: as many as one write takes.
const AHEAD_BYTES: usize = 64 << 10;

/// One end. As with a tunnel's stream, `shutdown` half-closes, and an end that is dropped
/// before it was shut down resets the other, which reads what was written and then
/// [`io::ErrorKind::ConnectionReset`].
#[derive(Debug)]
pub struct MemoryStream {
    io: DuplexStream,
    /// Whether this end was aborted, and whether the other was.
    aborted: Arc<AtomicBool>,
    peer_aborted: Arc<AtomicBool>,
    closed: bool,
}

impl MemoryStream {
    fn pair() -> (Self, Self) {
        let (one, other) = tokio::io::duplex(AHEAD_BYTES);
        let aborts: [Arc<AtomicBool>; 2] = Default::default();
        let end = |io, [mine, peers]: [&Arc<AtomicBool>; 2]| Self {
            io,
            aborted: Arc::clone(mine),
            peer_aborted: Arc::clone(peers),
            closed: false,
        };
        (end(one, [&aborts[0], &aborts[1]]), end(other, [&aborts[1], &aborts[0]]))
    }
}

/// The wish of one end to be connected. Dropped, it is refused without a word.
#[derive(Debug)]
pub struct MemoryRequest {
    stream: MemoryStream,
    answer: oneshot::Sender<Result<(), Refused>>,
}

/// What the other end said instead of yes, as HBONE would.
#[derive(Debug)]
pub struct Refused {
    pub status: StatusCode,
    pub reason: &'static str,
}

/// The end that has asked.
#[derive(Debug)]
pub struct MemoryDial {
    stream: MemoryStream,
    answer: oneshot::Receiver<Result<(), Refused>>,
}

/// A connection to be asked for, and who asks.
pub fn request() -> (MemoryDial, MemoryRequest) {
    let (ours, theirs) = MemoryStream::pair();
    let (say, hear) = oneshot::channel();
    (MemoryDial { stream: ours, answer: hear }, MemoryRequest { stream: theirs, answer: say })
}

impl MemoryDial {
    /// Waits for the answer. Dropped meanwhile, the request is over.
    ///
    /// # Errors
    /// The answer, where it is no. `None`: there will be none.
    pub async fn answer(self) -> Result<MemoryStream, Option<Refused>> {
        match self.answer.await {
            Ok(Ok(())) => Ok(self.stream),
            Ok(Err(refused)) => Err(Some(refused)),
            Err(_) => Err(None),
        }
    }
}

impl MemoryRequest {
    /// Says yes; from then on bytes flow.
    ///
    /// # Errors
    /// Who asked has gone.
    pub fn accept(self) -> io::Result<MemoryStream> {
        match self.answer.send(Ok(())) {
            Ok(()) => Ok(self.stream),
            Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Says no, and why.
    pub fn refuse(self, status: StatusCode, reason: &'static str) {
        // Who has gone need not know.
        let _ = self.answer.send(Err(Refused { status, reason }));
    }

    /// Resolves when who asked has gone.
    pub async fn cancelled(&mut self) {
        self.answer.closed().await;
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        if !self.closed {
            self.abort();
        }
    }
}

impl Abort for MemoryStream {
    fn abort(&mut self) {
        self.aborted.store(true, Ordering::Release);
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut stream.io).poll_read(cx, buf))?;
        let ended = buf.filled().len() == before && buf.remaining() > 0;
        if ended && stream.peer_aborted.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MemoryStream {
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
        let stream = self.get_mut();
        ready!(Pin::new(&mut stream.io).poll_shutdown(cx))?;
        stream.closed = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connected() -> (MemoryStream, MemoryStream) {
        let (dial, request) = request();
        let theirs = request.accept().unwrap();
        (dial.answer().await.unwrap(), theirs)
    }

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways() {
        let (mut one, mut other) = connected().await;
        one.write_all(b"ping").await.unwrap();
        one.shutdown().await.unwrap();
        let mut read = Vec::new();
        other.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"ping");
        other.write_all(b"pong").await.unwrap();
        other.shutdown().await.unwrap();
        drop(other);
        read.clear();
        one.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"pong");
    }

    #[tokio::test]
    async fn a_broken_stream_is_never_taken_for_a_finished_one() {
        let (mut one, mut other) = connected().await;
        one.write_all(b"half").await.unwrap();
        drop(one);
        let mut read = Vec::new();
        let error = other.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((error.kind(), &read[..]), (io::ErrorKind::ConnectionReset, &b"half"[..]));
        assert!(other.write_all(b"more").await.is_err());

        let (mut one, mut other) = connected().await;
        one.abort();
        one.shutdown().await.unwrap();
        let error = other.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_does_not_read_is_sent_no_more_than_fits() {
        let (mut one, _other) = connected().await;
        let large = vec![0; AHEAD_BYTES + 1];
        let sent = tokio::time::timeout(std::time::Duration::ZERO, one.write_all(&large)).await;
        assert!(sent.is_err());
    }

    #[tokio::test]
    async fn a_refusal_says_why_and_who_goes_away_is_noticed() {
        let (dial, request_) = request();
        request_.refuse(StatusCode::FORBIDDEN, "denied");
        let refused = dial.answer().await.unwrap_err().unwrap();
        assert_eq!((refused.status, refused.reason), (StatusCode::FORBIDDEN, "denied"));

        let (dial, request_) = request();
        drop(request_);
        assert!(dial.answer().await.unwrap_err().is_none());

        let (dial, mut request_) = request();
        drop(dial);
        request_.cancelled().await;
        assert!(request_.accept().is_err());
    }
}
