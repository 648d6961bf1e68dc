//! The strict scanner in front of hyper: one HTTP/1 connection's bytes, checked.
//!
//! A head reaches hyper only once it is complete and found unambiguous. In place of one
//! that is refused hyper reads [`REFUSED_HEAD`], so that the refusal is answered in its
//! turn, after the requests pipelined before it, and is logged like any other request;
//! after it nothing more is read. The usual head arrives in one piece and is scanned
//! where hyper will parse it: nothing is copied, nothing is allocated.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::http::{Refusal, RequestScanner, Scanned};

/// What hyper reads in place of a refused head; its service asks
/// [`GuardShared::refusal`] before it believes any head.
pub const REFUSED_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// How long a closing connection may go on reading what the client still sends, so that
/// the response is not lost to a RST.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX_BYTES: usize = 1 << 20;
/// What a client may say before its offer to change the protocol is answered.
const EARLY_MAX_BYTES: usize = 64 << 10;

/// Bounds on what a client may make a connection wait for.
#[derive(Debug, Clone, Copy)]
pub struct GuardLimits {
    pub head_max_bytes: usize,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// Between requests; `None` never ends.
    pub idle_timeout: Option<Duration>,
}

/// What guard and service know of each other.
#[derive(Debug, Default)]
pub struct GuardShared {
    /// The refused request's number, from 0, and why.
    refusal: OnceLock<(u64, Refusal)>,
    served: AtomicU64,
    outstanding: AtomicUsize,
}

impl GuardShared {
    /// To be called by the service exactly once per request, in order: why this one is
    /// refused, if it is.
    pub fn next_request(&self) -> Option<Refusal> {
        let number = self.served.fetch_add(1, Ordering::Relaxed);
        self.refusal.get().and_then(|(refused, why)| (*refused == number).then_some(*why))
    }

    /// To be called once per request, when its response has ended.
    pub fn finished(&self) {
        // Never below zero: a request is only served after its head was let through.
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP/1 server's side of a connection, guarded.
#[derive(Debug)]
pub struct HeadGuard<IO> {
    io: IO,
    scanner: RequestScanner,
    limits: GuardLimits,
    shared: Arc<GuardShared>,
    heads: u64,
    /// The beginning of a head that is not complete yet, or whatever comes after an offer.
    held: BytesMut,
    /// Scanned, and not yet taken.
    passed: BytesMut,
    input: Input,
    waiting: Waiting,
    /// The last request offers to change the protocol and is not answered yet: nothing of
    /// what follows is looked at.
    offered: bool,
    timer: Option<Pin<Box<Sleep>>>,
    linger: Option<Linger>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
    /// A head was refused: nothing more is read.
    Refused,
    /// A body was: hyper is told.
    Broken(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// On the service, or on a body: their timeouts are not the guard's.
    Nothing,
    Idle {
        after: u64,
        until: Option<Instant>,
    },
    Head {
        until: Instant,
    },
}

#[derive(Debug)]
struct Linger {
    until: Pin<Box<Sleep>>,
    left: usize,
}

impl<IO> HeadGuard<IO> {
    /// Guards `io`, whose first bytes, `sniffed`, have been read already.
    pub fn new(io: IO, sniffed: BytesMut, limits: GuardLimits) -> (Self, Arc<GuardShared>) {
        let shared = Arc::<GuardShared>::default();
        let mut guard = Self {
            io,
            scanner: RequestScanner::new(limits.head_max_bytes),
            limits,
            shared: Arc::clone(&shared),
            heads: 0,
            held: BytesMut::new(),
            passed: BytesMut::new(),
            input: Input::Open,
            waiting: Waiting::Nothing,
            offered: false,
            timer: None,
            linger: None,
        };
        guard.held = sniffed;
        guard.scan_held(0);
        (guard, shared)
    }

    /// Scans bytes that hyper may see at once: how many of them, and whether the rest
    /// is the beginning of a head.
    fn scan(&mut self, bytes: &[u8]) -> usize {
        let (mut at, mut passes) = (0, 0);
        // What passes if the request whose head ended last turns out to be refused.
        let mut without_last = None;
        while at < bytes.len() {
            match self.scanner.scan(&bytes[at..]) {
                Ok((n, scanned)) => {
                    at += n;
                    if scanned == Scanned::HeadEnd {
                        without_last = Some(passes);
                        self.heads += 1;
                        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
                    }
                    if scanned != Scanned::HeadPart {
                        passes = at;
                    }
                    if scanned == Scanned::HeadEnd && self.scanner.offers_upgrade() {
                        self.offered = true;
                        return passes;
                    }
                }
                // Its head is still here: nobody has seen the request.
                Err(Refusal::Chunk) if let Some(before) = without_last => {
                    self.heads -= 1;
                    self.shared.outstanding.fetch_sub(1, Ordering::Relaxed);
                    self.refuse(Refusal::Chunk);
                    return before;
                }
                Err(Refusal::Chunk) => {
                    self.input = Input::Broken(Refusal::Chunk);
                    return passes;
                }
                Err(refusal) => {
                    self.refuse(refusal);
                    return passes;
                }
            }
        }
        passes
    }

    /// Scans what was held from `scanned` on and lets pass what may.
    fn scan_held(&mut self, scanned: usize) {
        let mut held = std::mem::take(&mut self.held);
        let passes = self.scan(&held[scanned..]);
        let passes = if passes == 0 { 0 } else { scanned + passes };
        self.passed.unsplit(held.split_to(passes));
        match self.input {
            Input::Refused => self.passed.extend_from_slice(REFUSED_HEAD),
            Input::Open => self.held = held,
            Input::Ended | Input::Broken(_) => {}
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.input = Input::Refused;
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        // Set once: nothing is scanned after a refusal.
        let _ = self.shared.refusal.set((self.heads, refusal));
    }

    /// The connection itself, when its protocol has changed, and what was read of it and not
    /// taken.
    pub fn into_raw(self) -> (IO, BytesMut) {
        let mut unread = self.passed;
        unread.unsplit(self.held);
        (self.io, unread)
    }

    /// Called when nothing can be read: what the connection waits for, and whether it
    /// has waited too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        let busy = self.shared.outstanding.load(Ordering::Relaxed) > 0;
        let waiting = match self.waiting {
            _ if busy => Waiting::Nothing,
            Waiting::Head { .. } if self.scanner.in_head() => self.waiting,
            _ if self.scanner.in_head() => {
                Waiting::Head { until: Instant::now() + self.limits.head_timeout }
            }
            Waiting::Idle { after, .. } if after == self.heads => self.waiting,
            _ if self.scanner.at_start() => {
                let until = self.limits.idle_timeout.map(|timeout| Instant::now() + timeout);
                Waiting::Idle { after: self.heads, until }
            }
            _ => Waiting::Nothing,
        };
        self.waiting = waiting;
        let until = match waiting {
            Waiting::Nothing | Waiting::Idle { until: None, .. } => return Poll::Pending,
            Waiting::Idle { until: Some(until), .. } | Waiting::Head { until } => until,
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        // A deadline mostly moves later: the timer is left to find out when it fires.
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(waiting);
            }
            timer.as_mut().reset(until);
        }
    }
}

impl<IO: AsyncRead + Unpin> HeadGuard<IO> {
    fn poll_input(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            if !self.passed.is_empty() {
                let n = self.passed.len().min(buf.remaining());
                buf.put_slice(&self.passed[..n]);
                self.passed.advance(n);
                return Poll::Ready(Ok(()));
            }
            match self.input {
                Input::Open => {}
                Input::Ended => return Poll::Ready(Ok(())),
                // The refusal's answer ends the connection; an EOF would end it before.
                Input::Refused => return Poll::Pending,
                Input::Broken(refusal) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
                }
            }
            if self.offered {
                if self.shared.outstanding.load(Ordering::Relaxed) > 0 {
                    ready!(self.poll_early(cx))?;
                } else {
                    // The answer was no.
                    self.offered = false;
                    self.scan_held(0);
                }
            } else if self.held.is_empty() {
                ready!(self.poll_in_place(cx, buf))?;
                if buf.filled().len() > before {
                    return Poll::Ready(Ok(()));
                }
            } else {
                ready!(self.poll_held(cx))?;
            }
        }
    }

    /// Reads where hyper will parse; what must be held back is taken out again.
    fn poll_in_place(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if Pin::new(&mut self.io).poll_read(cx, buf)?.is_pending() {
            return self.poll_waited(cx);
        }
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            self.input = Input::Ended;
            return Poll::Ready(Ok(()));
        }
        let passes = self.scan(bytes);
        match self.input {
            Input::Open => self.held.extend_from_slice(&bytes[passes..]),
            Input::Refused => self.passed.extend_from_slice(REFUSED_HEAD),
            Input::Ended | Input::Broken(_) => {}
        }
        buf.set_filled(before + passes);
        Poll::Ready(Ok(()))
    }

    /// Reads what comes before an offer is answered, to see whether the client goes away.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        let left = EARLY_MAX_BYTES.saturating_sub(self.held.len()).min(space.len());
        if left == 0 {
            // Whoever answers polls again.
            return Poll::Pending;
        }
        let mut more = ReadBuf::new(&mut space[..left]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
        if more.filled().is_empty() {
            self.input = Input::Ended;
        }
        self.held.extend_from_slice(more.filled());
        Poll::Ready(Ok(()))
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 4096];
        let mut more = ReadBuf::new(&mut space);
        if Pin::new(&mut self.io).poll_read(cx, &mut more)?.is_pending() {
            return self.poll_waited(cx);
        }
        if more.filled().is_empty() {
            // hyper reads the beginning and then the end, and sees that it broke off.
            self.passed = std::mem::take(&mut self.held);
            self.input = Input::Ended;
            return Poll::Ready(Ok(()));
        }
        let scanned = self.held.len();
        self.held.extend_from_slice(more.filled());
        self.scan_held(scanned);
        Poll::Ready(Ok(()))
    }

    fn poll_waited(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_timeout(cx)) {
            Waiting::Head { .. } => {
                self.held.clear();
                self.refuse(Refusal::Timeout);
                self.passed.extend_from_slice(REFUSED_HEAD);
            }
            Waiting::Idle { .. } | Waiting::Nothing => self.input = Input::Ended,
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and drops what the client still sends, within bounds.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            until: Box::pin(tokio::time::sleep(LINGER)),
            left: LINGER_MAX_BYTES,
        });
        let mut space = [0; 4096];
        while linger.left > 0 {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.until.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for HeadGuard<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_input(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeadGuard<IO> {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            let unread = !this.scanner.at_start() || matches!(this.input, Input::Refused);
            if this.input == Input::Ended || !unread {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(this.poll_linger(cx));
        Poll::Ready(Ok(()))
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

#[cfg(test)]
mod tests;
