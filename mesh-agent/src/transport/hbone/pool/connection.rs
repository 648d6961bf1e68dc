//! One pooled connection: its load, its age, and the loop that drives it.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{HbonePoolOptions, PooledConnectionStatus};
use crate::transport::hbone::{batch::Batch, client::ClientConnection, keepalive::Keepalive};

/// One HTTP/2 connection. It ends, with GOAWAY, when it is retired and its last
/// stream has ended.
#[derive(Debug)]
pub(super) struct PooledConnection {
    /// None once retired: HTTP/2 closes when nobody can send requests any more.
    sender: Mutex<Option<SendRequest<Bytes>>>,
    streams: AtomicUsize,
    /// Lowered where the peer refuses streams.
    limit: AtomicUsize,
    opened: Instant,
    idle_since: Mutex<Instant>,
}

impl PooledConnection {
    pub(super) fn new(sender: SendRequest<Bytes>) -> Self {
        let now = Instant::now();
        Self {
            sender: Mutex::new(Some(sender)),
            streams: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            opened: now,
            idle_since: Mutex::new(now),
        }
    }

    pub(super) fn sender(&self) -> Option<SendRequest<Bytes>> {
        lock(&self.sender).clone()
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.sender).is_some()
    }

    /// Takes no more streams.
    pub(super) fn retire(&self) {
        // Dropped after the lock is let go.
        let _sender = lock(&self.sender).take();
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn has_room(&self, limit: usize) -> bool {
        let peers = lock(&self.sender).as_ref().map_or(0, SendRequest::current_max_send_streams);
        self.streams() < limit.min(self.limit.load(Ordering::Relaxed)).min(peers)
    }

    /// The peer refused a stream that is still counted: carry fewer, or none.
    pub(super) fn stream_refused(&self) {
        match self.streams().saturating_sub(1) {
            0 => self.retire(),
            others => self.limit.store(others, Ordering::Relaxed),
        }
    }

    pub(super) fn status(&self) -> PooledConnectionStatus {
        PooledConnectionStatus { streams: self.streams(), age: self.opened.elapsed() }
    }

    /// Moves the bytes of all streams until the connection ends, is cut, or the peer
    /// has vanished; retires it when it is idle or old.
    pub(super) async fn drive(
        &self,
        mut http2: ClientConnection,
        options: &HbonePoolOptions,
        cut: &CancellationToken,
    ) {
        let mut keepalive = Keepalive::new(
            http2.ping_pong(),
            options.keepalive_interval,
            options.keepalive_timeout,
        );
        let old = self.opened + options.max_age;
        let mut batch = Batch::default();
        loop {
            let idle = self.idle_deadline(options);
            tokio::select! {
                result = poll_fn(|cx| batch.poll(&mut http2, cx)) => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "HBONE connection ended");
                    }
                    break;
                }
                () = poll_fn(|cx| keepalive.poll_gone(cx)) => {
                    tracing::debug!("HBONE peer vanished: it does not answer pings");
                    break;
                }
                () = cut.cancelled() => break,
                () = sleep_until(idle.min(old)), if self.is_open() => {
                    let now = Instant::now();
                    if now >= old || now >= self.idle_deadline(options) {
                        self.retire();
                    }
                }
            }
        }
        self.retire();
    }

    /// When the connection will have been idle for long enough, as it looks now.
    fn idle_deadline(&self, options: &HbonePoolOptions) -> Instant {
        let since = match self.streams() {
            0 => *lock(&self.idle_since),
            _ => Instant::now(),
        };
        since + options.idle_timeout
    }
}

/// Counts one stream on its connection for as long as it is held.
#[derive(Debug)]
pub(in crate::transport::hbone) struct StreamLease(Arc<PooledConnection>);

impl StreamLease {
    pub(super) fn new(connection: &Arc<PooledConnection>) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }

    pub(super) fn connection(&self) -> &Arc<PooledConnection> {
        &self.0
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Nothing behind these locks is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
