//! Spans that have ended, on their way to their collectors.
//!
//! Requests hand a span over and go on; one task gathers them by pod and provider and sends
//! them as the pod, as filters ask their servers. What does not fit, or is not taken, is counted
//! and lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_TYPE, USER_AGENT},
    uri::PathAndQuery,
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::super::{
    HttpServices, Judged,
    call::{CallError, Caller, Limits, Question},
};
use crate::{
    codec::spans::{self as codec, Span},
    model::{
        tracing::{ExportProtocol, SpanExport, TracingProvider},
        workload::WorkloadUid,
    },
    observe::metrics::SpanCounters,
};

/// Spans that wait to be gathered, and all of them together until they are sent.
const QUEUE: usize = 8192;
const WAITING_MAX_BYTES: usize = 32 << 20;
/// Sent together, at most, and after so long.
const BATCH: usize = 512;
const INTERVAL: Duration = Duration::from_secs(1);
/// Pods and providers at once.
const BATCHES_MAX: usize = 4096;
/// Of a collector's answer.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// Who the node is.
#[derive(Debug, Clone, Default)]
pub struct SpanSource {
    pub id: String,
    pub cluster: String,
    pub zone: String,
}

/// Takes spans. Cheap to clone.
#[derive(Clone)]
pub struct Spans(Arc<Shared>);

struct Shared {
    /// `None`: takes none.
    queue: Option<mpsc::Sender<Message>>,
    waiting: AtomicUsize,
    counters: SpanCounters,
    node: SpanSource,
    /// For connection managers that name none.
    provider: Option<Arc<TracingProvider>>,
}

enum Message {
    Span(Finished),
    Flush(oneshot::Sender<()>),
}

struct Finished {
    judged: Arc<Judged>,
    provider: Arc<TracingProvider>,
    span: Span,
}

/// The other end; [`Exporter::run`] it.
pub struct Exporter(mpsc::Receiver<Message>);

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter")
    }
}

impl Spans {
    /// Takes none.
    pub fn off() -> Self {
        Self::with(None, SpanSource::default(), None, SpanCounters::default())
    }

    /// Takes them for [`Exporter`]; `provider` is for connection managers that name none.
    pub fn new(
        node: SpanSource,
        provider: Option<Arc<TracingProvider>>,
        counters: SpanCounters,
    ) -> (Self, Exporter) {
        let (queue, received) = mpsc::channel(QUEUE);
        (Self::with(Some(queue), node, provider, counters), Exporter(received))
    }

    fn with(
        queue: Option<mpsc::Sender<Message>>,
        node: SpanSource,
        provider: Option<Arc<TracingProvider>>,
        counters: SpanCounters,
    ) -> Self {
        let waiting = AtomicUsize::new(0);
        Self(Arc::new(Shared { queue, waiting, counters, node, provider }))
    }

    pub(super) fn provider(&self) -> Option<&Arc<TracingProvider>> {
        self.0.provider.as_ref()
    }

    pub(super) fn node(&self) -> &SpanSource {
        &self.0.node
    }

    /// Hands a span over; never waits.
    pub(super) fn send(&self, judged: &Arc<Judged>, provider: &Arc<TracingProvider>, span: Span) {
        let Some(queue) = &self.0.queue else { return };
        let bytes = span.bytes();
        let before = self.0.waiting.fetch_add(bytes, Ordering::Relaxed);
        let (judged, provider) = (Arc::clone(judged), Arc::clone(provider));
        let finished = Message::Span(Finished { judged, provider, span });
        if before + bytes > WAITING_MAX_BYTES || queue.try_send(finished).is_err() {
            self.done(bytes);
            self.0.counters.overflowed(1);
        }
    }

    fn done(&self, bytes: usize) {
        self.0.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits until what was handed over is sent, but not longer than `patience`.
    pub async fn flush(&self, patience: Duration) {
        let Some(queue) = &self.0.queue else { return };
        let (done, flushed) = oneshot::channel();
        let all = async {
            if queue.send(Message::Flush(done)).await.is_ok() {
                // That it went away is an end, too.
                let _ = flushed.await;
            }
        };
        if timeout(patience, all).await.is_err() {
            tracing::debug!("not all spans were sent");
        }
    }
}

/// Of one pod for one provider.
type Key = (WorkloadUid, usize);

struct Batch {
    judged: Arc<Judged>,
    provider: Arc<TracingProvider>,
    spans: Vec<Span>,
    bytes: usize,
    sending: bool,
}

impl Exporter {
    /// Sends what comes, for as long as `services` are there.
    pub async fn run(mut self, services: HttpServices) {
        let mut gathered = Gathered { services, batches: HashMap::new(), sending: JoinSet::new() };
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = self.0.recv() => match message {
                    None => return,
                    Some(Message::Span(finished)) => gathered.add(finished),
                    Some(Message::Flush(done)) => {
                        gathered.flush().await;
                        let _ = done.send(());
                    }
                },
                Some(sent) = gathered.sending.join_next() => gathered.sent(sent.ok()),
                _ = tick.tick() => gathered.send_all(),
            }
        }
    }
}

struct Gathered {
    services: HttpServices,
    batches: HashMap<Key, Batch>,
    sending: JoinSet<Key>,
}

impl Gathered {
    fn add(&mut self, Finished { judged, provider, span }: Finished) {
        let uid = judged.permit.flow().pod().workload.uid.clone();
        // A batch holds its provider: no other one has that address meanwhile.
        let key = (uid, Arc::as_ptr(&provider).addr());
        let bytes = span.bytes();
        let spans = self.services.spans.clone();
        let lost = || {
            spans.done(bytes);
            spans.0.counters.overflowed(1);
        };
        if self.batches.len() >= BATCHES_MAX && !self.batches.contains_key(&key) {
            return lost();
        }
        let batch = self.batches.entry(key.clone()).or_insert_with(|| Batch {
            judged: Arc::clone(&judged),
            provider,
            spans: Vec::new(),
            bytes: 0,
            sending: false,
        });
        if batch.spans.len() >= batch.provider.cache_max() {
            return lost();
        }
        // The one whose pod is as it is now.
        batch.judged = judged;
        batch.spans.push(span);
        batch.bytes += bytes;
        if batch.spans.len() >= BATCH.min(batch.provider.cache_max()) {
            self.send(&key);
        }
    }

    /// One at a time for each: what comes meanwhile is gathered.
    fn send(&mut self, key: &Key) {
        let Some(batch) = self.batches.get_mut(key) else { return };
        if batch.sending || batch.spans.is_empty() {
            return;
        }
        batch.sending = true;
        let (spans, bytes) = (std::mem::take(&mut batch.spans), std::mem::take(&mut batch.bytes));
        let (judged, provider) = (Arc::clone(&batch.judged), Arc::clone(&batch.provider));
        let (services, key) = (self.services.clone(), key.clone());
        self.sending.spawn(async move {
            let count = spans.len() as u64;
            let of = &services.spans;
            match deliver(&services, &judged, &provider, &spans).await {
                Ok(rejected) => of.0.counters.sent(count.saturating_sub(rejected), rejected),
                Err(why) => {
                    tracing::debug!(%why, spans = count, "spans were not sent");
                    of.0.counters.not_sent(count);
                }
            }
            of.done(bytes);
            key
        });
    }

    fn send_all(&mut self) {
        self.batches.retain(|_, batch| batch.sending || !batch.spans.is_empty());
        let keys: Vec<Key> = self.batches.keys().cloned().collect();
        keys.iter().for_each(|key| self.send(key));
    }

    /// `None`: sending it failed in a way that tells nothing, not even whose it was.
    fn sent(&mut self, key: Option<Key>) {
        match key.and_then(|key| self.batches.get_mut(&key)) {
            Some(batch) => batch.sending = false,
            None => self.batches.values_mut().for_each(|batch| batch.sending = false),
        }
    }

    async fn flush(&mut self) {
        // Those that wait for one that is being sent, too.
        for _ in 0..2 {
            self.send_all();
            while let Some(sent) = self.sending.join_next().await {
                self.sent(sent.ok());
            }
        }
    }
}

/// How many the collector did not take.
async fn deliver(
    services: &HttpServices,
    judged: &Judged,
    provider: &TracingProvider,
    spans: &[Span],
) -> Result<u64, Undelivered> {
    let export = provider.export();
    let snapshot = services.snapshots.load();
    let caller = Caller { services, permit: &judged.permit, snapshot: &snapshot };
    let limits = Limits { timeout: Some(export.timeout), answer_max_bytes: ANSWER_MAX_BYTES };
    let mut headers: HeaderMap = export.headers.iter().cloned().collect();
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    match (provider, &export.protocol) {
        (TracingProvider::OpenTelemetry(otel), ExportProtocol::Grpc) => {
            let batch = codec::otlp(spans, &otel.resource, otel.scope);
            let to = (export.authority.clone(), codec::EXPORT);
            let answer: ExportTraceServiceResponse =
                caller.grpc(&export.cluster, to, headers, &batch, limits).await?;
            Ok(codec::rejected(&answer))
        }
        (TracingProvider::OpenTelemetry(otel), ExportProtocol::Http(path)) => {
            const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
            headers.insert(CONTENT_TYPE, PROTOBUF);
            let body = codec::otlp_bytes(spans, &otel.resource, otel.scope);
            let answer = post(caller, export, path, headers, body, limits).await?;
            Ok(codec::rejected_of(&answer))
        }
        (TracingProvider::Zipkin(_), protocol) => {
            const JSON: HeaderValue = HeaderValue::from_static("application/json");
            headers.insert(CONTENT_TYPE, JSON);
            let path = match protocol {
                ExportProtocol::Http(path) => path,
                ExportProtocol::Grpc => return Ok(0),
            };
            let addresses = &judged.permit.flow().pod().workload.addresses;
            let service = &services.spans.node().cluster;
            let body = codec::zipkin(spans, service, addresses.first().copied());
            post(caller, export, path, headers, body, limits).await.map(|_| 0)
        }
    }
}

const AGENT: &str =
    concat!("OTel-OTLP-Exporter-", env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the collector's path is not valid")]
    Path(#[from] http::uri::InvalidUri),
    #[error("the collector answered with HTTP status {0}")]
    Status(http::StatusCode),
}

async fn post(
    caller: Caller<'_>,
    export: &SpanExport,
    path: &str,
    headers: HeaderMap,
    body: Vec<u8>,
    limits: Limits,
) -> Result<Bytes, Undelivered> {
    let question = Question {
        method: Method::POST,
        authority: export.authority.clone(),
        path: PathAndQuery::try_from(path)?,
        headers,
        body: body.into(),
    };
    let answered = caller.http(&export.cluster, question, limits).await?;
    match answered.head.status {
        status if status.is_success() => Ok(answered.body),
        status => Err(Undelivered::Status(status)),
    }
}
