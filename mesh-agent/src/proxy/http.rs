//! One captured connection through an HTTP connection manager, request by request.
//!
//! Bytes come from `capture` or an accepted HBONE stream by way of the pipelines; each
//! request is checked, judged by policy, routed, and sent on a pooled upstream
//! connection that [`Upstreams`] opened. Bodies stream both ways and are never
//! gathered: a slow reader slows the writer down, whatever protocols lie between.
//!
//! ```text
//! HeadGuard → hyper → head checks → match_route → Chain of filters → decide_request
//!           → HttpPool (Upstreams) → forward → filters in reverse → ResponseBody → hyper
//! ```
//!
//! Every request ends in exactly one [`RequestRecord`].

mod access_log;
mod answer;
mod attempts;
mod body;
mod breakers;
mod call;
mod client_certificate;
mod cookies;
mod copy;
mod descriptors;
mod exchange;
mod filter;
mod forward;
mod forwarding;
mod fuzz;
mod grpc;
mod headers;
mod held;
mod lookups;
mod mirror;
mod mutations;
mod normalize;
mod outliers;
mod record;
mod redirect;
mod refusals;
mod replay;
mod reply;
mod request;
mod reset;
mod rewrites;
mod spans;
mod stages;
mod stalled;
mod standing;
mod switch;
#[cfg(test)]
mod tests;
mod timing;
mod tunnel;

use std::{
    fmt,
    future::Future,
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, header::CONNECTION, uri::Authority};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::oneshot,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::filter::local_rate_limit::Limiter;
#[doc(hidden)]
pub use self::fuzz::fuzz_http2;
pub(super) use self::mutations::mutate_literally;
pub use self::{
    body::{RequestBody, RequestBodyError},
    breakers::Breakers,
    filter::memory::FilterMemory,
    record::{RequestObserver, RequestRecord},
    spans::export::{Exporter, SpanSource, Spans},
};
use self::{
    stalled::{Watching, watched},
    tunnel::Tunnel,
};
use crate::{
    codec::{
        detect::{Detected, HTTP2_PREFACE, detect},
        guard::{GuardLimits, GuardShared, HeadGuard},
    },
    model::{
        filter::LocalRateLimit,
        listener::{CodecType, HttpConnectionManager},
    },
    observe::{
        Protocol,
        access_log::Lines,
        flags::ResponseFlag,
        metrics::{ClusterMetrics, GrpcMetrics, RouteMetrics},
    },
    policy::{OutboundPolicy, Permit},
    proxy::{Origination, on_demand::OnDemand},
    route::{Balancers, Destination},
    snapshot::{RouteTable, SnapshotCell},
    transport::{
        http_pool::{BoxedIo, HttpPool, HttpProtocol},
        http2_frames::PREFACE_BYTES,
        paced::Paced,
        replayed::Replayed,
    },
};

/// How long a request's head may take where the listener does not say.
const REQUEST_HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// How many headers hyper takes where it is not told.
const HEADERS_COUNT: u32 = 100;
/// Envoy takes heads up to this size at most.
const HEADERS_MAX_KIB: u32 = 8192;
/// What one HTTP/1 connection buffers each way, at most, beyond a head.
const HTTP1_BUFFER_MIN_BYTES: usize = 64 * 1024;

const HTTP2_SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Streams a client reset before they were served, per connection: rapid reset.
const HTTP2_PENDING_RESETS_MAX: usize = 20;
/// Streams that were reset for the client's errors, per connection.
const HTTP2_LOCAL_RESETS_MAX: usize = 256;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(60);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// From GOAWAY to the end of a connection without requests.
const HTTP2_IDLE_GRACE: Duration = Duration::from_secs(5);

/// Why no connection to an upstream could be made.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConnectFailure {
    /// [`ResponseFlag::UpstreamConnectionFailure`], or what is more precise.
    pub flag: ResponseFlag,
    /// Names address and identity.
    pub message: String,
    /// In Envoy's words, what the transport said.
    pub transport: Option<String>,
}

/// Opens connections to upstreams. Implemented by the pipelines over `transport`.
pub trait Upstreams: Send + Sync {
    /// A new connection to `destination` on behalf of `permit`'s flow: from the pod's
    /// network namespace, inbound with the client's source address, by HBONE where the
    /// destination says so, with the TLS that was made for it. Dropping the future gives
    /// up.
    fn connect<'a>(
        &'a self,
        permit: &'a Permit,
        destination: &'a Destination,
        tls: Option<&'a Origination>,
    ) -> BoxFuture<'a, Result<BoxedIo, ConnectFailure>>;

    /// The TLS that such a connection takes for a request to `authority`; `None`: none.
    ///
    /// # Errors
    /// It takes TLS, and a certificate or what the server has to prove is not there.
    fn originate(
        &self,
        destination: &Destination,
        protocol: HttpProtocol,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Result<Option<Origination>, ConnectFailure>;
}

/// Upstream connections of this engine.
pub type UpstreamPool = HttpPool<RequestBody>;

/// What all connections share.
#[derive(Clone)]
pub struct HttpServices {
    pub snapshots: Arc<SnapshotCell>,
    pub breakers: Arc<Breakers>,
    pub filters: Arc<FilterMemory>,
    /// What the node's cluster is called, which health checks are told.
    pub node_cluster: HeaderValue,
    pub balancers: Arc<Balancers>,
    pub outbound_policy: OutboundPolicy,
    pub upstreams: Arc<dyn Upstreams>,
    pub pool: Arc<UpstreamPool>,
    pub on_demand: Arc<OnDemand>,
    /// Where configured access logs are written.
    pub lines: Lines,
    /// Where spans go.
    pub spans: Spans,
    pub clusters: ClusterMetrics,
    pub routes: RouteMetrics,
    pub grpc: GrpcMetrics,
    /// How long a connection that is to end, and has no request in hand, waits for the one
    /// that may be on its way.
    pub last_request: Duration,
}

impl fmt::Debug for HttpServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServices").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// One permitted connection whose chain ends in an HTTP connection manager.
pub struct HttpConnection {
    services: HttpServices,
    http: Arc<HttpConnectionManager>,
    /// By the snapshot that was in force when last looked.
    judged: ArcSwap<Judged>,
    observer: Arc<dyn RequestObserver>,
    drain: CancellationToken,
    /// Cancelled when the connection's listener or filter chain is gone or another one.
    retiring: CancellationToken,
    requests: AtomicU64,
    /// HTTP/2: requests that have not ended.
    active: AtomicU64,
    /// HTTP/1: where it goes on when its protocol has changed.
    tunnel: Mutex<Option<oneshot::Sender<Tunnel>>>,
    /// Its own buckets, of the first local limit that asked for some, as in Envoy.
    limiter: OnceLock<Arc<Limiter>>,
}

/// A permit, and the version of the snapshot it was made of.
struct Judged {
    version: u64,
    permit: Permit,
    /// The connection manager's, kept for requests that come when it is gone.
    routes: Option<RouteTable>,
}

impl HttpConnection {
    /// A connection that `permit`, made of snapshot `version`, lets in.
    ///
    /// `http` is the terminal filter of the permit's chain; its codec, limits and
    /// timeouts hold for the connection's life, its filters and routes are taken anew
    /// from the snapshot in force for each request. Once `drain` is cancelled the
    /// connection ends after the requests in hand.
    pub fn new(
        permit: Permit,
        version: u64,
        http: Arc<HttpConnectionManager>,
        services: HttpServices,
        observer: Arc<dyn RequestObserver>,
        drain: CancellationToken,
    ) -> Self {
        let routes = services.snapshots.load().routes(&http.routes);
        let judged = ArcSwap::from_pointee(Judged { version, permit, routes });
        let retiring = CancellationToken::new();
        let (requests, active) = (AtomicU64::new(0), AtomicU64::new(0));
        let (tunnel, limiter) = (Mutex::new(None), OnceLock::new());
        Self {
            services,
            http,
            judged,
            observer,
            drain,
            retiring,
            requests,
            active,
            tunnel,
            limiter,
        }
    }

    /// Where the tunnel comes out that a request leaves behind.
    fn tunnels(&self) -> oneshot::Receiver<Tunnel> {
        let (sender, receiver) = oneshot::channel();
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Goes on with `tunnel`, unless nobody serves the connection any more.
    fn carry(&self, tunnel: Tunnel) {
        let sender = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            drop(sender.send(tunnel));
        }
    }

    fn limiter(&self, config: &LocalRateLimit, now: std::time::Instant) -> Arc<Limiter> {
        Arc::clone(self.limiter.get_or_init(|| Arc::new(Limiter::new(config, now))))
    }

    fn head_max_bytes(&self) -> usize {
        let kib = self.http.max_request_headers_kib.clamp(1, HEADERS_MAX_KIB);
        usize::try_from(kib).unwrap_or(usize::MAX).saturating_mul(1024)
    }

    fn headers_timeout(&self) -> Duration {
        self.http.request_headers_timeout.unwrap_or(REQUEST_HEADERS_TIMEOUT)
    }
}

impl fmt::Debug for HttpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnection")
            .field("http", &self.http.stat_prefix)
            .finish_non_exhaustive()
    }
}

/// How a connection's life ended.
#[derive(Debug)]
pub struct HttpOutcome {
    /// What it spoke; `None` where it ended before that was known.
    pub protocol: Option<Protocol>,
    /// Requests that were read from it, refused ones included.
    pub requests: u64,
    /// Why it broke off; `None` where either side closed it in order.
    pub error: Option<HttpError>,
}

/// Why a connection broke off.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Before its protocol was known.
    #[error("no request was read")]
    Sniff(#[source] io::Error),
    /// HTTP/1 or HTTP/2 said so: the client broke the protocol or went away mid-request.
    #[error("the HTTP connection broke off")]
    Http(#[source] hyper::Error),
}

/// Serves one connection until it ends.
///
/// Dropping the future cuts it; requests in hand are recorded as ended by downstream.
pub async fn serve_http<IO>(io: IO, connection: Arc<HttpConnection>) -> HttpOutcome
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut io = io;
    let mut sniffed = BytesMut::new();
    let protocol = match sniff(&mut io, &mut sniffed, &connection).await {
        Ok(Some(protocol)) => protocol,
        Ok(None) => return HttpOutcome { protocol: None, requests: 0, error: None },
        Err(error) => {
            let error = Some(HttpError::Sniff(error));
            return HttpOutcome { protocol: None, requests: 0, error };
        }
    };
    let served = match protocol {
        Protocol::Http2 => serve_http2(io, sniffed, &connection).await,
        Protocol::Http1 | Protocol::Tcp => {
            let served = std::pin::pin!(serve_http1(io, sniffed, &connection));
            // A client that takes nothing is sent nothing more.
            watched(served).await.unwrap_or(Ok(()))
        }
    };
    HttpOutcome {
        protocol: Some(protocol),
        requests: connection.requests.load(Ordering::Relaxed),
        error: served.err().map(HttpError::Http),
    }
}

/// Which codec to use; `None` where the client closes or stays silent.
async fn sniff<IO: AsyncRead + Unpin>(
    io: &mut IO,
    sniffed: &mut BytesMut,
    connection: &HttpConnection,
) -> io::Result<Option<Protocol>> {
    match connection.http.codec {
        CodecType::Http1 => return Ok(Some(Protocol::Http1)),
        CodecType::Http2 => return Ok(Some(Protocol::Http2)),
        CodecType::Auto => {}
    }
    // Room for the head that most likely follows.
    sniffed.reserve(4096);
    let mut deadline = connection.http.idle_timeout.map(|timeout| Instant::now() + timeout);
    let gone = async {
        connection.drain.cancelled().await;
        tokio::time::sleep(connection.services.last_request).await;
    };
    let mut gone = std::pin::pin!(gone);
    loop {
        let read = async {
            tokio::select! {
                read = io.read_buf(sniffed) => read,
                () = &mut gone => Ok(0),
            }
        };
        let read = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, read).await,
            None => Ok(read.await),
        };
        match read {
            Ok(Ok(0)) if sniffed.is_empty() => return Ok(None),
            // Whatever is there is hyper's to refuse.
            Ok(Ok(0)) => return Ok(Some(Protocol::Http1)),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(None),
        }
        match detect(sniffed) {
            Detected::Http2 => return Ok(Some(Protocol::Http2)),
            Detected::NeedMore if sniffed.len() < HTTP2_PREFACE.len() => {}
            Detected::NeedMore | Detected::Http1 | Detected::Opaque => {
                return Ok(Some(Protocol::Http1));
            }
        }
        let headers_by = Instant::now() + connection.headers_timeout();
        deadline = Some(deadline.map_or(headers_by, |deadline| deadline.min(headers_by)));
    }
}

async fn serve_http1<IO>(
    io: IO,
    sniffed: BytesMut,
    connection: &Arc<HttpConnection>,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let head_max_bytes = connection.head_max_bytes();
    let limits = GuardLimits {
        head_max_bytes,
        head_timeout: connection.headers_timeout(),
        idle_timeout: connection.http.idle_timeout,
    };
    let (guarded, shared) = HeadGuard::new(io, sniffed, limits);
    // hyper keeps room for one between requests: a box has it for as long as it is needed.
    let service = service_fn(|head| Box::pin(serve_request(connection, Some(&shared), head)));
    let mut builder = http1::Builder::new();
    // hyper's own bound takes no memory; what is beyond another one the head's checks answer,
    // unless it is far beyond.
    if connection.http.max_headers_count != HEADERS_COUNT {
        let max = usize::try_from(connection.http.max_headers_count).unwrap_or(usize::MAX);
        builder.max_headers(max.saturating_mul(2).saturating_add(64));
    }
    let served = builder
        // The guard's work.
        .header_read_timeout(None)
        .max_buf_size(head_max_bytes.max(HTTP1_BUFFER_MIN_BYTES))
        .serve_connection(TokioIo::new(guarded), service)
        .with_upgrades();
    let mut tunnel = connection.tunnels();
    {
        let mut served = std::pin::pin!(served);
        let ended = tokio::select! {
            served = served.as_mut() => Some(served),
            () = connection.drain.cancelled() => None,
            () = grown_old(connection) => None,
        };
        match ended {
            Some(served) => served?,
            None => {
                // The next response says that it is the last.
                connection.retiring.cancel();
                let patience = connection.services.last_request;
                match tokio::time::timeout(patience, served.as_mut()).await {
                    Ok(served) => served?,
                    Err(_) => {
                        served.as_mut().graceful_shutdown();
                        served.await?;
                    }
                }
            }
        }
    }
    if let Ok(tunnel) = tunnel.try_recv() {
        tunnel.run::<IO>().await;
    }
    Ok(())
}

async fn serve_http2<IO>(
    io: IO,
    sniffed: BytesMut,
    connection: &Arc<HttpConnection>,
) -> Result<(), hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = connection.http.options.http2;
    let service = {
        let connection = Arc::clone(connection);
        service_fn(move |head| {
            let connection = Arc::clone(&connection);
            async move { serve_request(&connection, None, head).await }
        })
    };
    let headers_max_bytes = u32::try_from(connection.head_max_bytes()).unwrap_or(u32::MAX);
    let io = Replayed { io, sniffed: sniffed.freeze() };
    let mut builder = http2::Builder::new(Watching);
    if connection.http.options.extended_connect {
        builder.enable_connect_protocol();
    }
    let served = builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(headers_max_bytes)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_LOCAL_RESETS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .serve_connection(TokioIo::new(Paced::new(io, PREFACE_BYTES)), service);
    let mut served = std::pin::pin!(served);
    let idle = tokio::select! {
        served = served.as_mut() => return served,
        () = connection.drain.cancelled() => false,
        () = connection.retiring.cancelled() => false,
        () = grown_old(connection) => false,
        () = http2_idle(connection) => true,
    };
    // GOAWAY: no new streams, those there are finished.
    served.as_mut().graceful_shutdown();
    if idle {
        // The client only has to acknowledge.
        return tokio::time::timeout(HTTP2_IDLE_GRACE, served).await.unwrap_or(Ok(()));
    }
    served.await
}

/// Returns when the connection has been served for the listener's `max_connection_duration`.
async fn grown_old(connection: &HttpConnection) {
    match connection.http.max_connection_duration {
        Some(age) => tokio::time::sleep(age).await,
        None => std::future::pending().await,
    }
}

/// Returns when no request has been in hand for the listener's `idle_timeout`.
async fn http2_idle(connection: &HttpConnection) {
    let Some(timeout) = connection.http.idle_timeout else { return std::future::pending().await };
    let mut seen = connection.requests.load(Ordering::Relaxed);
    loop {
        // Ends between one and two timeouts after the last request's end.
        tokio::time::sleep(timeout).await;
        let requests = connection.requests.load(Ordering::Relaxed);
        if requests == seen && connection.active.load(Ordering::Relaxed) == 0 {
            return;
        }
        seen = requests;
    }
}

/// hyper's service: the response, or, where the exchange must be cut, an error.
fn serve_request(
    connection: &Arc<HttpConnection>,
    guard: Option<&Arc<GuardShared>>,
    request: http::Request<hyper::body::Incoming>,
) -> impl Future<Output = Result<http::Response<body::ResponseBody>, std::convert::Infallible>>
+ Send
+ use<> {
    let (connection, guard) = (Arc::clone(connection), guard.map(Arc::clone));
    let number = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
    if connection.http.max_requests_per_connection.is_some_and(|max| number >= max.into()) {
        connection.retiring.cancel();
    }
    async move {
        let http1 = guard.is_some();
        let mut response = request::serve(Arc::clone(&connection), guard, request).await;
        // An idle connection is not closed right away: a request may be on its way.
        let last = || connection.retiring.is_cancelled() || connection.drain.is_cancelled();
        if http1 && !response.body().is_switched() && last() {
            response.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}
