//! Upstream HTTP connections, kept for reuse by whom they may be shared.
//!
//! A connection is opened and kept for one [`HttpKey`]: who asks, whom, how. HTTP/1.1
//! connections carry one request at a time and are driven by the task of that request:
//! no task of their own, nothing to hand over between threads. HTTP/2 connections
//! carry many and have a task each.
//!
//! The room below `proxy`: it must not know policy, routes or what a body is.

mod body;
mod held;
mod http1;
mod http2;
#[cfg(test)]
mod tests;
mod torn;

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::Instant,
};

pub use self::{body::LeasedBody, held::Held};
use self::{http1::Http1, http2::Http2};
use super::{tls::TlsStream, worker::PerWorker};
use crate::model::{cluster::ConnectionLimits, identity::Identity, workload::WorkloadUid};

/// A connection's bytes, whatever carries them: a socket or an HBONE stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket; `None` where it is not this connection's alone.
    fn socket(&self) -> Option<&TcpStream>;

    /// The socket's own end.
    fn local_address(&self) -> Option<SocketAddr> {
        self.socket()?.local_addr().ok()
    }
}

impl Io for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Io for TlsStream {
    fn socket(&self) -> Option<&TcpStream> {
        self.get_ref().0.socket()
    }
}

/// What a connector returns.
pub type BoxedIo = Box<dyn Io>;

/// Boxed errors of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of requests that go upstream.
pub trait UpstreamBody: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static {}
impl<T: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static> UpstreamBody for T {}

/// What HTTP speaks on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpProtocol {
    Http1,
    Http2,
}

/// Who may share a connection: requests with equal keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpKey {
    /// The endpoint.
    pub address: SocketAddr,
    /// The identity the endpoint must prove; `None` in the clear.
    pub destination_identity: Option<Identity>,
    pub destination_workload: Option<WorkloadUid>,
    /// The local pod: connections are made in its namespace and of its identity.
    pub pod: WorkloadUid,
    /// On whose behalf, as proven.
    pub source_identity: Option<Identity>,
    /// Inbound, the client's address: the application sees it as its peer.
    pub client: Option<IpAddr>,
    /// TLS to the endpoint itself; `None` in the clear, and by HBONE.
    pub tls: Option<TlsKey>,
    /// As the cluster wants it.
    pub limits: ConnectionLimits,
    pub protocol: HttpProtocol,
}

/// Which TLS a connection speaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsKey {
    /// One version of certificates, keys and what the server has to prove.
    pub context: u64,
    /// The name that was asked for, where requests decide.
    pub host: Option<Arc<str>>,
    /// The same, where the endpoint's own decides.
    pub endpoint: Option<Arc<str>>,
}

/// Bounds of a pool.
#[derive(Debug, Clone)]
pub struct HttpPoolOptions {
    /// Threads that have connections of their own, see [`crate::transport::worker`]; what
    /// follows holds for each.
    pub workers: usize,
    /// Idle HTTP/1.1 connections per key.
    pub idle_max: usize,
    /// Idle connections of both kinds are closed after this long, unless their cluster says
    /// otherwise. Shorter than the
    /// usual keep-alive of servers, so that it is rarely they who close.
    pub idle_timeout: Duration,
    /// HTTP/2 connections per key; requests beyond wait within the least loaded one.
    pub http2_connections_max: usize,
    /// Requests at a time per HTTP/2 connection, before another is opened.
    pub http2_streams_max: usize,
    /// The largest response header block.
    pub response_head_max_bytes: u32,
}

impl Default for HttpPoolOptions {
    fn default() -> Self {
        Self {
            workers: 0,
            idle_max: 256,
            idle_timeout: Duration::from_secs(60),
            http2_connections_max: 8,
            http2_streams_max: 100,
            response_head_max_bytes: 60 * 1024,
        }
    }
}

/// Why there is no connection to send a request on.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError<E> {
    /// The connector failed.
    #[error(transparent)]
    Connect(E),
    /// Connected, but the HTTP handshake failed.
    #[error("HTTP handshake with {address} failed")]
    Handshake {
        address: SocketAddr,
        #[source]
        source: hyper::Error,
    },
}

/// Why a request got no response head.
#[derive(Debug, thiserror::Error)]
#[error("no response from upstream")]
pub struct SendFailure<B> {
    #[source]
    pub error: hyper::Error,
    /// The request, where no byte of it was sent: it may be sent elsewhere, whatever
    /// its method.
    pub unsent: Option<Box<Request<B>>>,
    pub heard: Heard,
}

/// What came of a response over HTTP/1.1 before its connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Or nobody looked.
    Nothing,
    /// Interim responses.
    Interim,
    /// Part of a head.
    Torn,
}

/// Connections to upstreams, by key. `B` is the body of requests.
pub struct HttpPool<B: UpstreamBody> {
    options: HttpPoolOptions,
    tables: PerWorker<Mutex<Table<B>>>,
}

struct Table<B: UpstreamBody> {
    slots: HashMap<HttpKey, Slot<B>>,
    closed: bool,
}

struct Slot<B: UpstreamBody> {
    /// Tells a slot from a later one of the same key; shared with leases, so that one
    /// in use is not swept.
    mark: Arc<()>,
    idle: Vec<Idle<B>>,
    http2: Vec<Arc<Http2<B>>>,
    /// HTTP/2: one request at a time opens a connection, the others wait for it.
    connecting: Arc<Semaphore>,
}

struct Idle<B: UpstreamBody> {
    connection: Http1<B>,
    since: Instant,
}

/// What a connection has been used for.
pub(super) struct Use {
    since: Instant,
    requests: AtomicU32,
}

impl Use {
    fn new() -> Self {
        Self { since: Instant::now(), requests: AtomicU32::new(0) }
    }

    fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether another request may be sent.
    fn allows(&self, limits: ConnectionLimits) -> bool {
        let requests = self.requests.load(Ordering::Relaxed);
        limits.max_requests.is_none_or(|most| requests < most)
            && limits.max_duration.is_none_or(|most| self.since.elapsed() < most)
    }
}

/// Where a leased HTTP/1.1 connection goes back to.
pub(super) struct Home<B: UpstreamBody> {
    pool: Arc<HttpPool<B>>,
    key: HttpKey,
    slot: Arc<()>,
}

/// A connection to send one request on.
pub struct Lease<B: UpstreamBody> {
    reused: bool,
    kind: LeaseKind<B>,
}

#[expect(clippy::large_enum_variant, reason = "moved once, to be sent on")]
enum LeaseKind<B: UpstreamBody> {
    Http1(Http1<B>, Home<B>),
    Http2(http2::Stream<B>),
}

impl<B: UpstreamBody> std::fmt::Debug for HttpPool<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpPool").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<B: UpstreamBody> HttpPool<B> {
    /// An empty pool.
    pub fn new(options: HttpPoolOptions) -> Self {
        let table = || Mutex::new(Table { slots: HashMap::new(), closed: false });
        Self { tables: PerWorker::new(options.workers, table), options }
    }

    /// A connection for `key`: a kept one unless `fresh`, else one that `connect` makes.
    ///
    /// Cancel safe: nothing is kept of a connection that is not ready.
    ///
    /// # Errors
    /// `connect`'s own, or that of the HTTP handshake.
    pub async fn lease<F, E>(
        self: &Arc<Self>,
        key: &HttpKey,
        fresh: bool,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease<B>, LeaseError<E>>
    where
        F: Future<Output = Result<BoxedIo, E>>,
    {
        match key.protocol {
            HttpProtocol::Http1 => self.lease_http1(key, fresh, connect).await,
            HttpProtocol::Http2 => self.lease_http2(key, fresh, connect).await,
        }
    }

    async fn lease_http1<F, E>(
        self: &Arc<Self>,
        key: &HttpKey,
        fresh: bool,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease<B>, LeaseError<E>>
    where
        F: Future<Output = Result<BoxedIo, E>>,
    {
        let (slot, mut idle) = self.take_idle(key, fresh);
        let home = Home { pool: Arc::clone(self), key: key.clone(), slot };
        loop {
            let Some(Idle { mut connection, since }) = idle else { break };
            let timeout = key.limits.idle_timeout;
            let fresh_enough = timeout.is_none_or(|timeout| since.elapsed() < timeout);
            // Nobody has looked at it since: it may have been closed.
            if fresh_enough && connection.used.allows(key.limits) && connection.is_alive() {
                return Ok(Lease { reused: true, kind: LeaseKind::Http1(connection, home) });
            }
            idle = self.take_idle(key, fresh).1;
        }
        let io = connect().await.map_err(LeaseError::Connect)?;
        let connection = Http1::handshake(io, &self.options)
            .await
            .map_err(|source| LeaseError::Handshake { address: key.address, source })?;
        Ok(Lease { reused: false, kind: LeaseKind::Http1(connection, home) })
    }

    async fn lease_http2<F, E>(
        self: &Arc<Self>,
        key: &HttpKey,
        fresh: bool,
        connect: impl FnOnce() -> F,
    ) -> Result<Lease<B>, LeaseError<E>>
    where
        F: Future<Output = Result<BoxedIo, E>>,
    {
        if !fresh && let Some(lease) = self.take_http2(key, false) {
            return Ok(lease);
        }
        let connecting = Arc::clone(&self.table().slot(key).connecting);
        let turn = connecting.acquire().await;
        // While waiting another may have opened one.
        if !fresh && let Some(lease) = self.take_http2(key, true) {
            return Ok(lease);
        }
        let io = connect().await.map_err(LeaseError::Connect)?;
        let (connection, stream) = Http2::handshake(io, &self.options, key.limits.pings)
            .await
            .map_err(|source| LeaseError::Handshake { address: key.address, source })?;
        let mut table = self.table();
        if !table.closed {
            table.slot(key).http2.push(connection);
        }
        drop(table);
        drop(turn);
        Ok(Lease { reused: false, kind: LeaseKind::Http2(stream) })
    }

    fn take_idle(&self, key: &HttpKey, fresh: bool) -> (Arc<()>, Option<Idle<B>>) {
        let mut table = self.table();
        let slot = table.slot(key);
        // The most recently used: the others may grow old and be closed.
        let idle = if fresh { None } else { slot.idle.pop() };
        (Arc::clone(&slot.mark), idle)
    }

    /// The least loaded connection with room; the least loaded of all where no more may
    /// be opened.
    fn take_http2(&self, key: &HttpKey, waited: bool) -> Option<Lease<B>> {
        let mut table = self.table();
        let slot = table.slot(key);
        let now = Instant::now();
        slot.http2.retain(|connection| {
            let idle = key.limits.idle_timeout.is_some_and(|most| connection.idle_for(now, most));
            !connection.is_closed() && !idle && connection.allows(key.limits)
        });
        let least = slot.http2.iter().min_by_key(|connection| connection.load())?;
        let full = least.load() >= least.streams_max(self.options.http2_streams_max);
        let may_open = slot.http2.len() < self.options.http2_connections_max;
        // Where someone else is opening one, waiting for it is the same as using it.
        if full && may_open && (waited || slot.connecting.available_permits() > 0) {
            return None;
        }
        let stream = least.stream();
        Some(Lease { reused: true, kind: LeaseKind::Http2(stream) })
    }

    /// Closes connections whose key `keep` does not want, the busy ones after their
    /// requests: for endpoints that are gone.
    pub fn retain(&self, mut keep: impl FnMut(&HttpKey) -> bool) {
        for table in self.tables.iter() {
            lock(table).slots.retain(|key, _| keep(key));
        }
    }

    /// Closes what is idle and keeps nothing any more.
    pub fn close_all(&self) {
        for table in self.tables.iter() {
            let mut table = lock(table);
            table.closed = true;
            table.slots.clear();
        }
    }

    /// Closes what has been idle for too long or was closed by its peer. To be called
    /// every few seconds: nobody else watches idle connections.
    pub fn sweep(&self) {
        let idle_timeout = self.options.idle_timeout;
        let now = Instant::now();
        for table in self.tables.iter() {
            lock(table).slots.retain(|key, slot| {
                let idle_timeout = key.limits.idle_timeout.unwrap_or(idle_timeout);
                slot.idle.retain_mut(|idle| {
                    now.duration_since(idle.since) < idle_timeout
                        && idle.connection.used.allows(key.limits)
                        && idle.connection.is_alive()
                });
                slot.http2.retain(|connection| {
                    !connection.is_closed()
                        && !connection.idle_for(now, idle_timeout)
                        && connection.allows(key.limits)
                });
                let in_use =
                    Arc::strong_count(&slot.mark) > 1 || Arc::strong_count(&slot.connecting) > 1;
                in_use || !slot.idle.is_empty() || !slot.http2.is_empty()
            });
        }
    }

    /// How many connections are kept, busy HTTP/1.1 ones not counted.
    pub fn len(&self) -> usize {
        let kept = |table: &Table<B>| {
            table.slots.values().map(|slot| slot.idle.len() + slot.http2.len()).sum::<usize>()
        };
        self.tables.iter().map(|table| kept(&lock(table))).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<B: UpstreamBody> HttpPool<B> {
    /// The worker's own.
    fn table(&self) -> MutexGuard<'_, Table<B>> {
        lock(self.tables.own())
    }
}

fn lock<B: UpstreamBody>(table: &Mutex<Table<B>>) -> MutexGuard<'_, Table<B>> {
    // Every change is a single step: a table is whole even after a panic.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: UpstreamBody> Table<B> {
    fn slot(&mut self, key: &HttpKey) -> &mut Slot<B> {
        self.slots.entry(key.clone()).or_insert_with(|| Slot {
            mark: Arc::new(()),
            idle: Vec::new(),
            http2: Vec::new(),
            connecting: Arc::new(Semaphore::new(1)),
        })
    }
}

impl<B: UpstreamBody> Home<B> {
    /// Keeps an idle connection, unless its slot is gone or full.
    fn keep(self, connection: Http1<B>) {
        let mut table = self.pool.table();
        if table.closed {
            return;
        }
        let Some(slot) = table.slots.get_mut(&self.key) else { return };
        if Arc::ptr_eq(&slot.mark, &self.slot)
            && connection.used.allows(self.key.limits)
            && slot.idle.len() < self.pool.options.idle_max
        {
            slot.idle.push(Idle { connection, since: Instant::now() });
        }
    }
}

impl<B: UpstreamBody> Lease<B> {
    /// Whether the connection has carried a request before: it may have been closed
    /// from the other side while the request was on its way.
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// The connection's own end.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            LeaseKind::Http1(connection, _) => connection.local,
            LeaseKind::Http2(stream) => stream.local_address(),
        }
    }

    /// Sends `request`, in the form its protocol wants, and waits for the response's
    /// head. Dropping the future abandons the request: HTTP/1.1 closes the connection,
    /// HTTP/2 resets the stream.
    ///
    /// # Errors
    /// [`SendFailure`]: no head has come.
    pub async fn send(
        self,
        request: Request<B>,
    ) -> Result<Response<LeasedBody<B>>, SendFailure<B>> {
        match self.kind {
            LeaseKind::Http1(connection, home) => connection.send(request, home).await,
            LeaseKind::Http2(stream) => stream.send(request).await,
        }
    }
}
