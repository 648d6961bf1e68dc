//! HTTP on a permitted connection: hands it to the engine in [`super::http`], turns
//! what ends there into metrics and access log, and cuts it when policy changes.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::SystemTime,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{
    Dataplane, Failure, failure,
    http::{HttpConnection, HttpOutcome, RequestObserver, RequestRecord, serve_http},
    rejudge::{self, Standing},
    session::{RequestBase, Session},
};
use crate::{
    model::{cluster::ClusterName, listener::HttpConnectionManager},
    observe::{
        access_log::{AccessLog, HttpRecord},
        counters::Counters,
        flags::ResponseFlag,
        metrics::{HttpMetrics, Metrics, Observed},
    },
    policy::Permit,
    snapshot::Snapshot,
};

/// Serves the connection to its end and ends the session. `permit` was made of
/// snapshot `version`; when `draining` is cancelled, no more requests are taken.
pub(super) async fn serve<D>(
    dataplane: &Arc<Dataplane>,
    session: Session,
    (permit, version): (Permit, u64),
    http: Arc<HttpConnectionManager>,
    draining: CancellationToken,
    downstream: D,
) where
    D: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let observer = Arc::new(Observer {
        metrics: dataplane.metrics.clone(),
        access_log: dataplane.access_log.clone(),
        base: session.request_base(),
        handles: Mutex::default(),
    });
    let downstream = Counted { io: downstream, counters: Arc::clone(session.guard.counters()) };
    let connection = Arc::new(HttpConnection::new(
        permit.clone(),
        version,
        http,
        dataplane.http.clone(),
        observer,
        draining,
    ));
    let judged = Arc::clone(&connection);
    let note = |standing: &Standing, snapshot: &Snapshot| judged.stands(standing, snapshot);
    let failure = tokio::select! {
        outcome = serve_http(downstream, connection) => explain(outcome),
        ended = rejudge::ended(dataplane, permit, version, note) => Some(ended),
        () = session.guard.cancelled().cancelled() => Some(failure::cut()),
    };
    match failure {
        Some(failure) => session.end(dataplane, Some(failure)),
        // Every request has its own line.
        None => session.end_of_requests(dataplane),
    }
}

/// Only a connection that broke off before its first request has a line of its own.
fn explain(outcome: HttpOutcome) -> Option<Failure> {
    let error = outcome.error.filter(|_| outcome.requests == 0)?;
    Some(Failure {
        flag: ResponseFlag::DownstreamProtocolError,
        reason: "http_protocol_error",
        policy: None,
        detail: failure::story(&error),
        transport: None,
    })
}

/// Tells of the requests of one connection.
struct Observer {
    metrics: Metrics,
    access_log: AccessLog,
    base: RequestBase,
    /// By cluster, so that a request costs no labels.
    handles: Mutex<HashMap<Option<ClusterName>, HttpMetrics>>,
}

impl Observer {
    fn metrics(&self, request: &RequestRecord) -> HttpMetrics {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = handles.get(&request.cluster) {
            return handle.clone();
        }
        let labels = self.base.labels(request.cluster.as_ref(), request.upstream_identity.as_ref());
        let handle = self.metrics.http(&labels);
        handles.insert(request.cluster.clone(), handle.clone());
        handle
    }
}

impl RequestObserver for Observer {
    fn routed(&self, request: &RequestRecord) {
        self.base.show(request);
    }

    fn request(&self, request: RequestRecord) {
        let code = request.response_code.map_or(0, |code| code.as_u16());
        let observed = Observed { duration: request.duration, trace_id: request.trace_id };
        self.metrics(&request).observe(code, request.flags, observed);
        self.base.show(&request);
        if request.flags.contains(ResponseFlag::Denied) {
            self.metrics.denied(self.base.direction(), "http_rbac");
        }
        self.metrics.shadow(self.base.direction(), request.shadow.allowed, request.shadow.denied);
        for (filter, said) in [("csrf", request.origins.csrf), ("cors", request.origins.cors)] {
            if let Some(allowed) = said {
                self.metrics.origin_shadow(self.base.direction(), filter, allowed);
            }
        }
        if let Some(category) = &request.dropped {
            self.metrics.drop_overload(category);
        }
        if !self.access_log.is_on() {
            return;
        }
        let text = |value: Option<&http::HeaderValue>| {
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let authority = text(request.authority.as_ref()).unwrap_or_default();
        let id = text(request.request_id.as_ref());
        let mut http = HttpRecord::new(
            request.method.unwrap_or_default(),
            &authority,
            request.path.as_deref().unwrap_or_default(),
        )
        .with_request_id(id.as_deref());
        http.response_code = code;

        let mut record = self.base.record(request.upstream_identity);
        record.start_time =
            SystemTime::now().checked_sub(request.duration).unwrap_or(record.start_time);
        record.duration = request.duration;
        record.protocol = request.protocol;
        record.upstream_host = request.upstream;
        record.upstream_cluster = request.cluster.map(|cluster| cluster.0);
        record.route_name = request.route.filter(|name| !name.is_empty());
        record.policy = request.policy.or(record.policy);
        record.denied_reason = request.details.map(|details| details.into_owned());
        record.response_flags = request.flags;
        record.bytes_received = request.request_bytes;
        record.bytes_sent = request.response_bytes;
        record.http = Some(http);
        self.access_log.log(record);
    }
}

/// The downstream, its bytes counted as they pass: heads and bodies.
struct Counted<IO> {
    io: IO,
    counters: Arc<Counters>,
}

impl<IO> Counted<IO> {
    fn sent(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(bytes) = written {
            self.counters.add_sent(bytes as u64);
        }
        Poll::Ready(written)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.counters.add_received(buf.filled().len().saturating_sub(before) as u64);
        Poll::Ready(read)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        self.sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
