//! A connection that never leaves the agent: both of its ends are here.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::PollSender;

use super::relay::{Abort, ReadBuffer};

/// How far one end may be ahead of the other's reading, either way.
const AHEAD_CHUNKS: usize = 2;
/// What one write takes at most.
const CHUNK_BYTES: usize = 64 << 10;

/// One end. As with a tunnel's stream, `shutdown` half-closes, and an end that is dropped
/// before it was shut down resets the other, which reads what was written and then
/// [`io::ErrorKind::ConnectionReset`]. What has been read takes no memory.
#[derive(Debug)]
pub struct MemoryStream {
    send: PollSender<Bytes>,
    recv: mpsc::Receiver<Bytes>,
    /// What is left of the chunk being read.
    unread: Bytes,
    /// Whether this end was aborted, and whether the other was.
    aborted: Arc<AtomicBool>,
    peer_aborted: Arc<AtomicBool>,
    closed: bool,
}

impl MemoryStream {
    fn pair() -> (Self, Self) {
        let aborts: [Arc<AtomicBool>; 2] = Default::default();
        let end = |(send, recv), [mine, peers]: [&Arc<AtomicBool>; 2]| Self {
            send: PollSender::new(send),
            recv,
            unread: Bytes::new(),
            aborted: Arc::clone(mine),
            peer_aborted: Arc::clone(peers),
            closed: false,
        };
        let [(to_other, from_one), (to_one, from_other)] =
            [(); 2].map(|()| mpsc::channel(AHEAD_CHUNKS));
        (
            end((to_other, from_other), [&aborts[0], &aborts[1]]),
            end((to_one, from_one), [&aborts[1], &aborts[0]]),
        )
    }

    /// Makes `unread` non-empty; `Ready(false)` at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_recv(cx)) {
                Some(chunk) => self.unread = chunk,
                None if self.peer_aborted.load(Ordering::Acquire) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => return Poll::Ready(Ok(false)),
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Until there is room for a chunk.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.poll_reserve(cx).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// What there is room for, as [`MemoryStream::poll_room`] has said.
    fn send(&mut self, chunk: Bytes) -> io::Result<()> {
        self.send.send_item(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
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

    /// Hands on the chunk itself.
    fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
        _: &mut ReadBuffer,
    ) -> Poll<io::Result<Bytes>> {
        ready!(self.poll_fill(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.unread)))
    }

    /// Sends the chunk itself.
    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(cx))?;
        let taken = chunk.len().min(CHUNK_BYTES);
        self.send(chunk.split_to(taken))?;
        Poll::Ready(Ok(taken))
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if buf.remaining() == 0 || !ready!(stream.poll_fill(cx))? {
            return Poll::Ready(Ok(()));
        }
        let taken = stream.unread.len().min(buf.remaining());
        buf.put_slice(&stream.unread[..taken]);
        stream.unread.advance(taken);
        if stream.unread.is_empty() {
            // An empty rest would keep the chunk's memory.
            stream.unread = Bytes::new();
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
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let total = bufs.iter().fold(0usize, |sum, buf| sum.saturating_add(buf.len()));
        let taken = total.min(CHUNK_BYTES);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(stream.poll_room(cx))?;
        let mut chunk = BytesMut::with_capacity(taken);
        for buf in bufs {
            let piece = buf.len().min(taken - chunk.len());
            chunk.extend_from_slice(&buf[..piece]);
        }
        stream.send(chunk.freeze())?;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        stream.send.close();
        stream.closed = true;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

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
        let large = vec![0; AHEAD_CHUNKS * CHUNK_BYTES + 1];
        let sent = tokio::time::timeout(std::time::Duration::ZERO, one.write_all(&large)).await;
        assert!(sent.is_err());
    }

    /// Says when nobody holds its bytes any more.
    struct Held(Vec<u8>, Option<oneshot::Sender<()>>);

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.1.take().unwrap().send(()).unwrap();
        }
    }

    /// One that has said much once, and is idle, as many are, costs no more for it.
    #[tokio::test]
    async fn what_has_been_read_takes_no_memory() {
        let (mut one, mut other) = connected().await;
        let (gone, mut is_gone) = oneshot::channel();
        let mut chunk = Bytes::from_owner(Held(vec![7; CHUNK_BYTES], Some(gone)));
        let at = chunk.as_ptr();
        poll_fn(|cx| one.poll_write_chunk(cx, &mut chunk)).await.unwrap();
        drop(chunk);
        let mut buffer = ReadBuffer::default();
        let read = poll_fn(|cx| other.poll_read_chunk(cx, &mut buffer)).await.unwrap();
        assert_eq!((read.as_ptr(), read.len()), (at, CHUNK_BYTES), "the chunk itself");
        assert!(is_gone.try_recv().is_err());
        drop(read);
        is_gone.try_recv().unwrap();

        let (gone, mut is_gone) = oneshot::channel();
        let mut chunk = Bytes::from_owner(Held(vec![7; CHUNK_BYTES], Some(gone)));
        poll_fn(|cx| one.poll_write_chunk(cx, &mut chunk)).await.unwrap();
        drop(chunk);
        other.read_exact(&mut vec![0; CHUNK_BYTES]).await.unwrap();
        is_gone.try_recv().unwrap();
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_however_they_are_cut() {
        let (mut one, mut other) = connected().await;
        let said: Vec<u8> = (0..1_000_003u32).map(|n| n as u8).collect();
        let (front, back) = said.split_at(70_001);
        let write = async {
            let bufs = [IoSlice::new(&front[..3]), IoSlice::new(&[]), IoSlice::new(&front[3..])];
            let taken = one.write_vectored(&bufs).await.unwrap();
            one.write_all(&front[taken..]).await.unwrap();
            let mut rest = Bytes::copy_from_slice(back);
            while !rest.is_empty() {
                poll_fn(|cx| one.poll_write_chunk(cx, &mut rest)).await.unwrap();
            }
            one.shutdown().await.unwrap();
            assert!(one.write_all(b"more").await.is_err(), "after the end");
        };
        let mut heard = Vec::new();
        let (_, read) = tokio::join!(write, other.read_to_end(&mut heard));
        read.unwrap();
        assert!(heard == said);
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
