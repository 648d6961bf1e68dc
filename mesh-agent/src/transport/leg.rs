//! A connection between the agent and a pod's application, whose bytes may go past TCP.
//!
//! TCP holds nobody up then. What the agent has sent and the application has not read is
//! asked of the kernel every [`LOOK_BYTES`]; above [`BACKLOG_BYTES`] the agent waits. What
//! the application may send ahead is granted as the agent reads; beyond that the programs
//! leave it to TCP. Each message is memory of the kernel's as well, which nobody is charged
//! for: their number is bounded besides, both ways.

use std::{
    future::Future,
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{http_pool::Io, relay::Abort};
use crate::model::socket::{PodSockets, SplicedLeg};

/// How much may be sent between two looks at what was not read.
const LOOK_BYTES: u64 = 256 << 10;

/// With so much not read nothing more is sent.
const BACKLOG_BYTES: u64 = 512 << 10;

/// What a message costs that is shorter.
const LEAST_BYTES: u64 = 1 << 10;

/// After so many messages, none of them seen to be read, they are sent one in
/// [`LAST_PAUSE`]: what comes meanwhile goes with the next. Not held up for ever: who reads
/// may want more before it does.
const BACKLOG_MESSAGES: u32 = 2048;

/// How often may be read without the application's being told.
const GRANT_READS: u32 = 64;

/// Until the next look at an application that does not read; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// The agent's end.
#[derive(Debug)]
pub struct Leg {
    stream: TcpStream,
    /// `None` where the bytes are TCP's.
    account: Option<Box<Account>>,
}

#[derive(Debug)]
struct Account {
    leg: Box<dyn SplicedLeg>,
    read: u64,
    /// How often, since it was granted more.
    reads: u32,
    granted: u64,
    sent: u64,
    /// What `sent` was when `messages` began.
    mark: u64,
    /// How many were sent since.
    messages: u32,
    /// What may be sent until the next look.
    room: u64,
    pause: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Leg {
    /// Asks whether a connected socket of the pod's is spliced.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of(mut stream: TcpStream, sockets: &dyn PodSockets) -> io::Result<Self> {
        let spliced = sockets.spliced(stream.as_fd()).inspect_err(|_| stream.abort())?;
        Ok(Self { stream, account: spliced.map(|leg| Box::new(Account::new(leg))) })
    }
}

impl From<TcpStream> for Leg {
    /// One that nobody has offered.
    fn from(stream: TcpStream) -> Self {
        Self { stream, account: None }
    }
}

impl Io for Leg {
    fn socket(&self) -> Option<&TcpStream> {
        Some(&self.stream)
    }
}

impl Account {
    fn new(leg: Box<dyn SplicedLeg>) -> Self {
        let granted = leg.ahead_bytes();
        Self {
            leg,
            read: 0,
            reads: 0,
            granted,
            sent: 0,
            mark: 0,
            messages: 0,
            room: LOOK_BYTES,
            pause: FIRST_PAUSE,
            waiting: None,
        }
    }

    fn has_read(&mut self, bytes: usize) {
        let ahead = self.leg.ahead_bytes();
        self.read = self.read.saturating_add(bytes as u64);
        self.reads += 1;
        let may = self.read.saturating_add(ahead);
        if may.saturating_sub(self.granted) >= ahead / 8 || self.reads >= GRANT_READS {
            (self.granted, self.reads) = (may, 0);
            self.leg.grant(may);
        }
    }

    fn has_sent(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.sent = self.sent.saturating_add(bytes);
        self.messages = self.messages.saturating_add(1);
        self.room = self.room.saturating_sub(bytes.max(LEAST_BYTES));
        if self.messages < BACKLOG_MESSAGES {
            self.pause = FIRST_PAUSE;
        }
    }

    fn wait(&mut self) {
        self.room = 0;
        self.waiting = Some(Box::pin(sleep(self.pause)));
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }

    /// Where the kernel has no memory left, it says so at once, or EAGAIN, with no event to
    /// follow: what is spliced is not TCP's to send later. Nothing was taken then.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        send: impl Fn(SockRef<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_room(cx, stream))?;
            match send(SockRef::from(stream)) {
                Ok(sent) => {
                    self.has_sent(sent);
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                Err(error) if error.kind() == io::ErrorKind::OutOfMemory => self.wait(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, stream: &TcpStream) -> Poll<io::Result<()>> {
        while self.room == 0 {
            let mut waited = false;
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                (self.waiting, waited) = (None, self.pause == LAST_PAUSE);
            }
            let backlog = self.leg.backlog(stream.as_fd())?;
            if self.sent.saturating_sub(backlog) >= self.mark {
                (self.mark, self.messages) = (self.sent, 0);
            }
            if backlog >= BACKLOG_BYTES || (self.messages >= BACKLOG_MESSAGES && !waited) {
                self.wait();
            } else if self.messages >= BACKLOG_MESSAGES {
                self.room = 1;
            } else {
                self.room = LOOK_BYTES;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Abort for Leg {
    fn abort(&mut self) {
        self.stream.abort();
    }

    /// Not where it is spliced: splice(2) does not see such bytes.
    fn tcp(&self) -> Option<&TcpStream> {
        self.account.is_none().then_some(&self.stream)
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, account } = self.get_mut();
        let Some(account) = account else { return Pin::new(stream).poll_read(cx, buf) };
        loop {
            ready!(stream.poll_read_ready(cx))?;
            // Less than was asked for is no sign that nothing is left: what was spliced and
            // what TCP has are two queues, and one call takes from one of them. tokio's own
            // reading would wait for an event that has been.
            let read = stream.try_read(buf.initialize_unfilled());
            match read {
                Ok(n) => {
                    buf.advance(n);
                    account.has_read(n);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, account } = self.get_mut();
        let Some(account) = account else { return Pin::new(stream).poll_write(cx, buf) };
        account.poll_send(cx, stream, |socket| socket.send_with_flags(buf, libc::MSG_NOSIGNAL))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, account } = self.get_mut();
        let Some(account) = account else {
            return Pin::new(stream).poll_write_vectored(cx, bufs);
        };
        account.poll_send(cx, stream, |socket| {
            socket.send_vectored_with_flags(bufs, libc::MSG_NOSIGNAL)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
