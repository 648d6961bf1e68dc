//! One HTTP/2 connection with a task of its own, shared by many requests.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::time::Instant;

use super::{BoxedIo, Heard, HttpPoolOptions, LeasedBody, SendFailure, UpstreamBody, Use};
use crate::{
    model::cluster::{ConnectionLimits, Pings},
    transport::paced::Paced,
};

/// A slow reader holds at most this much of its response in the agent.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// And all slow readers of a connection, before they slow down the others.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const SEND_BUFFER_MAX_BYTES: usize = 128 * 1024;
/// For how long a server may acknowledge nothing of what it is sent. Nobody is told that a host
/// or a path to it is gone, and one connection has everybody's requests: by TCP's own patience
/// they would go there, and fail, for a quarter of an hour. A server that reads nothing for as
/// long is no better.
///
/// Linux: tcp(7), `TCP_USER_TIMEOUT`.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(50);

pub(super) struct Http2<B> {
    sender: http2::SendRequest<B>,
    streams: AtomicUsize,
    /// The server's limit, as last told.
    streams_max: Arc<AtomicUsize>,
    /// When the last stream ended.
    idle_since: Mutex<Instant>,
    local: Option<SocketAddr>,
    used: Use,
}

/// A claim on one of the connection's streams.
pub(super) struct Stream<B> {
    sender: http2::SendRequest<B>,
    claim: Claim<B>,
}

/// Counts a stream for as long as it lives.
pub(super) struct Claim<B>(Arc<Http2<B>>);

impl<B> Drop for Claim<B> {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

impl<B> Http2<B> {
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) fn allows(&self, limits: ConnectionLimits) -> bool {
        self.used.allows(limits)
    }

    /// Requests that are on their way.
    pub(super) fn load(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// As many streams as both sides want to have.
    pub(super) fn streams_max(&self, own: usize) -> usize {
        self.streams_max.load(Ordering::Relaxed).clamp(1, own)
    }

    pub(super) fn idle_for(&self, now: Instant, timeout: Duration) -> bool {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        self.load() == 0 && now.duration_since(since) >= timeout
    }

    pub(super) fn stream(self: &Arc<Self>) -> Stream<B> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.used.count();
        Stream { sender: self.sender.clone(), claim: Claim(Arc::clone(self)) }
    }
}

impl<B: UpstreamBody> Http2<B> {
    pub(super) async fn handshake(
        io: BoxedIo,
        options: &HttpPoolOptions,
        pings: Option<Pings>,
    ) -> Result<(Arc<Self>, Stream<B>), hyper::Error> {
        let local = io.local_address();
        if let Some(socket) = io.socket() {
            // Fails only where the socket is dead already.
            let _ = SockRef::from(socket).set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        if let Some(Pings { interval, timeout }) = pings {
            builder
                .keep_alive_interval(interval)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(true);
        }
        let (sender, mut connection) = builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_MAX_BYTES)
            .max_header_list_size(options.response_head_max_bytes)
            .handshake(TokioIo::new(Paced::new(io, 0)))
            .await?;
        // Ends when the last sender is dropped or the peer closes; requests in hand are
        // told its error.
        let streams_max = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        let told = Arc::clone(&streams_max);
        tokio::spawn(std::future::poll_fn(move |cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            told.store(connection.current_max_send_streams(), Ordering::Relaxed);
            polled
        }));
        let idle_since = Mutex::new(Instant::now());
        let streams = AtomicUsize::new(0);
        let used = Use::new();
        let connection = Arc::new(Self { sender, streams, streams_max, idle_since, local, used });
        let stream = connection.stream();
        Ok((connection, stream))
    }
}

impl<B: UpstreamBody> Stream<B> {
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.claim.0.local
    }

    pub(super) async fn send(
        mut self,
        request: Request<B>,
    ) -> Result<Response<LeasedBody<B>>, SendFailure<B>> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|incoming| LeasedBody::http2(incoming, self.claim))),
            Err(mut failed) => Err(SendFailure {
                unsent: failed.take_message().map(Box::new),
                heard: Heard::Nothing,
                error: failed.into_error(),
            }),
        }
    }
}
