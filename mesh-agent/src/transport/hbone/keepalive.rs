//! Pings that notice a peer which vanished without closing the connection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Sends a ping each interval; done when one stays unanswered for the timeout.
#[derive(Debug)]
pub(super) struct Keepalive {
    pings: Option<PingPong>,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Keepalive {
    pub(super) fn new(pings: Option<PingPong>, interval: Duration, timeout: Duration) -> Self {
        Self { pings, interval, timeout, timer: Box::pin(sleep(interval)), waiting: false }
    }

    /// Ready once the peer is known to be gone. Poll beside the connection itself.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            if self.waiting {
                match pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    // The connection is closing and reports that by itself.
                    Poll::Ready(Err(_)) => {
                        self.pings = None;
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
            }
            match self.timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if self.waiting => return Poll::Ready(()),
                Poll::Ready(()) => {
                    self.waiting = pings.send_ping(Ping::opaque()).is_ok();
                    let next = if self.waiting { self.timeout } else { self.interval };
                    self.timer.as_mut().reset(Instant::now() + next);
                }
            }
        }
    }
}
