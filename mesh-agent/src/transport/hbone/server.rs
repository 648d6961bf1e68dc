//! The accepting side: one mutually authenticated HTTP/2 connection that asks for
//! inner destinations. Whether it may have them is for policy to say.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{self, Sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    ALPN_H2, AuthorityError, CONNECTION_WINDOW_BYTES, DATA_FRAME_BUDGET_BYTES, HboneStream,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_FRAME_BYTES, MAX_HEADER_LIST_BYTES,
    MAX_LOCAL_ERROR_RESETS, MAX_PENDING_RESETS, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES,
    UNSENT_TLS_BYTES, batch::Batch, keepalive::Keepalive, parse_authority,
};

use crate::transport::read_ahead::ReadAhead;

/// What is left for the last GOAWAY to get out once draining is over.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a TLS connection was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TlsAcceptError {
    /// The handshake failed; `identity` can tell why the peer was refused.
    #[error("TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The peer did not finish the handshake in time.
    #[error("the peer did not finish the TLS handshake within {0:?}")]
    TimedOut(Duration),
    /// The peer speaks TLS but did not ask for HTTP/2.
    #[error("the peer did not agree on ALPN h2")]
    Alpn,
}

/// The server's side of the TLS handshake, bounded in time.
///
/// # Errors
/// See [`TlsAcceptError`].
pub async fn accept_tls<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    config: Arc<rustls::ServerConfig>,
    timeout: Duration,
) -> Result<TlsStream<ReadAhead<T>>, TlsAcceptError> {
    let handshake = TlsAcceptor::from(config).accept_with(ReadAhead::new(stream), |tls| {
        tls.set_buffer_limit(Some(UNSENT_TLS_BYTES));
    });
    let stream = time::timeout(timeout, handshake)
        .await
        .map_err(|_| TlsAcceptError::TimedOut(timeout))?
        .map_err(TlsAcceptError::Handshake)?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
        return Err(TlsAcceptError::Alpn);
    }
    Ok(stream)
}

/// Limits of one accepted connection.
#[derive(Debug, Clone)]
pub struct HboneServerOptions {
    /// Streams that the peer may have open; more are refused with REFUSED_STREAM.
    pub max_concurrent_streams: u32,
    /// For the peer's HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Between keepalive pings.
    pub keepalive_interval: Duration,
    /// For the answer to one.
    pub keepalive_timeout: Duration,
    /// How long running streams may take after [`HboneServer::graceful_shutdown`].
    pub drain_timeout: Duration,
}

impl Default for HboneServerOptions {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            handshake_timeout: Duration::from_secs(5),
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Why an accepted connection ended.
#[derive(Debug, thiserror::Error)]
pub enum HboneServerError {
    /// The peer did not send its HTTP/2 preface in time.
    #[error("the peer sent no HTTP/2 preface within {0:?}")]
    HandshakeTimedOut(Duration),
    /// The peer broke HTTP/2, or the connection broke.
    #[error("HTTP/2 connection failed")]
    Http2(#[source] h2::Error),
    /// The peer vanished.
    #[error("the peer did not answer a ping within {0:?}")]
    KeepaliveTimedOut(Duration),
}

/// One accepted connection. Nothing moves, on any of its streams, unless
/// [`HboneServer::next`] is being polled: loop on it until it gives `None`.
pub struct HboneServer<T> {
    connection: Connection<T, Bytes>,
    options: HboneServerOptions,
    keepalive: Keepalive,
    batch: Batch,
    /// Runs out when running streams have had their time, then when GOAWAY has.
    drain: Option<Pin<Box<Sleep>>>,
    cut: bool,
    done: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> HboneServer<T> {
    /// Reads the peer's preface and sends our settings.
    ///
    /// # Errors
    /// See [`HboneServerError`].
    pub async fn handshake(io: T, options: HboneServerOptions) -> Result<Self, HboneServerError> {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .data_frame_budget(DATA_FRAME_BUDGET_BYTES)
            .max_concurrent_streams(options.max_concurrent_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESETS));
        let mut connection = time::timeout(options.handshake_timeout, builder.handshake(io))
            .await
            .map_err(|_| HboneServerError::HandshakeTimedOut(options.handshake_timeout))?
            .map_err(HboneServerError::Http2)?;
        let keepalive = Keepalive::new(
            connection.ping_pong(),
            options.keepalive_interval,
            options.keepalive_timeout,
        );
        let batch = Batch::default();
        Ok(Self { connection, options, keepalive, batch, drain: None, cut: false, done: false })
    }

    /// The next CONNECT with a literal inner destination; what is none is answered
    /// here. `None` once the connection has ended; after an error, `None`.
    ///
    /// Cancellation safe: nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// Each of [`HboneServerError`] ends the connection and all of its streams.
    pub async fn next(&mut self) -> Option<Result<ConnectRequest, HboneServerError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Takes no more streams (GOAWAY); running ones have until the drain timeout. Go
    /// on calling [`HboneServer::next`].
    pub fn graceful_shutdown(&mut self) {
        if self.drain.is_none() {
            self.connection.graceful_shutdown();
            self.drain = Some(Box::pin(time::sleep(self.options.drain_timeout)));
        }
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ConnectRequest, HboneServerError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        ready!(self.batch.poll_turn(cx));
        if self.keepalive.poll_gone(cx).is_ready() {
            self.done = true;
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            let error = HboneServerError::KeepaliveTimedOut(self.options.keepalive_timeout);
            return Poll::Ready(Some(Err(error)));
        }
        if self.poll_drained(cx).is_ready() {
            self.done = true;
            return Poll::Ready(None);
        }
        loop {
            let Poll::Ready(accepted) = self.connection.poll_accept(cx) else {
                return Poll::Pending;
            };
            match accepted {
                Some(Ok((request, respond))) => {
                    if let Some(request) = vet(request, respond) {
                        return Poll::Ready(Some(Ok(request)));
                    }
                }
                Some(Err(error)) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(HboneServerError::Http2(error))));
                }
                None => {
                    self.done = true;
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Ready when nothing is left to wait for after the drain timeout.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(drain) = &mut self.drain else { return Poll::Pending };
        while drain.as_mut().poll(cx).is_ready() {
            if self.cut {
                return Poll::Ready(());
            }
            self.cut = true;
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            drain.as_mut().reset(time::Instant::now() + CLOSE_TIMEOUT);
        }
        Poll::Pending
    }
}

impl<T> fmt::Debug for HboneServer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HboneServer")
            .field("draining", &self.drain.is_some())
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

/// Answers what is not a CONNECT to a literal address; hands on what is.
fn vet(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Option<ConnectRequest> {
    let (head, body) = request.into_parts();
    let verdict = if head.method != Method::CONNECT {
        Err((StatusCode::METHOD_NOT_ALLOWED, "only CONNECT is served here".to_owned()))
    } else if head.extensions.get::<h2::ext::Protocol>().is_some() {
        Err((StatusCode::NOT_IMPLEMENTED, "extended CONNECT is not served here".to_owned()))
    } else {
        inner_destination(&head).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
    };
    match verdict {
        Ok(authority) => Some(ConnectRequest { authority, headers: head.headers, body, respond }),
        Err((status, reason)) => {
            tracing::debug!(%status, reason, "refused a request on an HBONE connection");
            answer(respond, status, &reason);
            None
        }
    }
}

fn inner_destination(head: &http::request::Parts) -> Result<SocketAddr, AuthorityError> {
    let authority = head.uri.authority().ok_or(AuthorityError::Missing)?.as_str();
    // A second name for the destination may not say anything else. Spec: RFC 9113 §8.3.1.
    for host in head.headers.get_all(header::HOST) {
        if host.as_bytes() != authority.as_bytes() {
            let host = host.to_str().unwrap_or_default().chars().take(64).collect();
            return Err(AuthorityError::Address(host));
        }
    }
    parse_authority(authority)
}

/// Spec: RFC 9209 (`proxy-status`).
fn answer(mut respond: SendResponse<Bytes>, status: StatusCode, reason: &str) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let quoted: String =
        reason.chars().filter(|c| (' '..='~').contains(c) && !matches!(c, '"' | '\\')).collect();
    if let Ok(value) = HeaderValue::try_from(format!("mesh-agent; details=\"{quoted}\"")) {
        response.headers_mut().insert("proxy-status", value);
    }
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, "the peer did not wait for its answer");
    }
}

/// A peer's wish to be connected to an inner destination. Dropped, it is reset.
pub struct ConnectRequest {
    authority: SocketAddr,
    headers: HeaderMap,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

impl ConnectRequest {
    /// The inner destination; IPv4-mapped IPv6 is shown as IPv4. Not checked against
    /// the workload's own addresses.
    pub fn authority(&self) -> SocketAddr {
        self.authority
    }

    /// `baggage`, `forwarded`, `traceparent` and the like: what the peer claims, never
    /// to be used for authorization.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Answers 200; from then on bytes flow.
    ///
    /// # Errors
    /// The peer reset the stream meanwhile, or the connection is gone.
    pub fn accept(mut self) -> Result<HboneStream, HboneServerError> {
        let send = self
            .respond
            .send_response(Response::new(()), false)
            .map_err(HboneServerError::Http2)?;
        Ok(HboneStream::new(send, self.body, None))
    }

    /// Answers `status`; `reason` goes to the peer as `proxy-status` details.
    pub fn refuse(self, status: StatusCode, reason: &str) {
        answer(self.respond, status, reason);
    }

    /// Resolves when the peer gives the stream up before it was answered, so that a
    /// dial on its behalf can be dropped.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

impl fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest").field("authority", &self.authority).finish_non_exhaustive()
    }
}
