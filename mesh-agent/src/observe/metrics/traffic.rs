//! Handles to one pair of workloads' series: looked up once, then only atomics.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::{
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family},
    registry::Registry,
};

use super::labels::{HttpSeries, TcpSeries, TraceId, TrafficLabels};
use crate::observe::flags::ResponseFlags;

/// The most pairs of workloads that have series of their own.
pub(super) const MAX_LABEL_SETS: usize = 4096;

/// The most (status, flags) of one pair; further statuses count as `x00`.
const MAX_OUTCOMES: usize = 48;

/// A pair that nobody holds and that was quiet for this long may be forgotten
/// when room is needed.
const IDLE: Duration = Duration::from_secs(3600);

/// How often at most to look for such pairs.
const SWEEP: Duration = Duration::from_secs(60);

/// Envoy's own buckets, in milliseconds.
const DURATION_BUCKETS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Each bucket with the trace of a request that fell into it.
type Durations = HistogramWithExemplars<TraceId>;

/// A request that ended.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    pub duration: Duration,
    /// Of the trace that collectors are told of.
    pub trace_id: Option<u128>,
}

/// The families of `istio_*`.
#[derive(Debug, Clone)]
pub(super) struct Families {
    opened: Family<TcpSeries, Counter>,
    closed: Family<TcpSeries, Counter>,
    sent: Family<TcpSeries, Counter>,
    received: Family<TcpSeries, Counter>,
    requests: Family<HttpSeries, Counter>,
    durations: Family<HttpSeries, Durations>,
}

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self {
            opened: Family::default(),
            closed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(|| {
                Durations::new(DURATION_BUCKETS_MS.into_iter())
            }),
        };
        for (name, help, family) in [
            ("istio_tcp_connections_opened", "Opened TCP connections", &families.opened),
            ("istio_tcp_connections_closed", "Closed TCP connections", &families.closed),
            ("istio_tcp_sent_bytes", "Bytes sent to the downstream", &families.sent),
            ("istio_tcp_received_bytes", "Bytes received from the downstream", &families.received),
        ] {
            registry.register(name, help, family.clone());
        }
        registry.register("istio_requests", "HTTP requests", families.requests.clone());
        registry.register(
            "istio_request_duration_milliseconds",
            "Time from a request's first byte to its response's last",
            families.durations.clone(),
        );
        families
    }
}

/// The TCP series of one pair of workloads. Cheap to clone.
#[derive(Clone)]
pub struct TcpMetrics(Arc<Tcp>);

struct Tcp {
    labels: Arc<TrafficLabels>,
    families: Families,
    opened: Counter,
    sent: Counter,
    received: Counter,
    /// The flags that `closed` has series for.
    closed: Mutex<Vec<(ResponseFlags, Counter)>>,
}

impl TcpMetrics {
    /// A connection was accepted.
    pub fn opened(&self) {
        self.0.opened.inc();
    }

    /// Bytes went by since the last call.
    pub fn moved(&self, sent_bytes: u64, received_bytes: u64) {
        self.0.sent.inc_by(sent_bytes);
        self.0.received.inc_by(received_bytes);
    }

    /// A connection ended.
    pub fn closed(&self, flags: ResponseFlags) {
        let mut closed = self.0.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = closed.iter().find(|(known, _)| *known == flags) {
            counter.inc();
            return;
        }
        let counter = self.0.families.closed.get_or_create_owned(&self.0.series(flags));
        counter.inc();
        closed.push((flags, counter));
    }
}

impl fmt::Debug for TcpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpMetrics").field(&self.0.labels).finish()
    }
}

impl Tcp {
    fn series(&self, response_flags: ResponseFlags) -> TcpSeries {
        TcpSeries { traffic: Arc::clone(&self.labels), response_flags }
    }
}

/// The HTTP series of one pair of workloads. Cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics(Arc<Http>);

struct Http {
    labels: Arc<TrafficLabels>,
    families: Families,
    outcomes: RwLock<Vec<Outcome>>,
}

struct Outcome {
    key: (u16, ResponseFlags),
    requests: Counter,
    durations: Durations,
}

impl HttpMetrics {
    /// A request ended: `response_code` 0 where no response was sent.
    pub fn observe(&self, response_code: u16, flags: ResponseFlags, observed: Observed) {
        let key = (response_code, flags);
        {
            let outcomes = self.0.outcomes.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(outcome) = outcomes.iter().find(|outcome| outcome.key == key) {
                return outcome.observe(observed);
            }
        }
        self.0.observe_first(key, observed);
    }
}

impl fmt::Debug for HttpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpMetrics").field(&self.0.labels).finish()
    }
}

impl Outcome {
    fn observe(&self, Observed { duration, trace_id }: Observed) {
        self.requests.inc();
        let trace = trace_id.map(TraceId);
        let now = trace.is_some().then(SystemTime::now);
        self.durations.observe(duration.as_secs_f64() * 1_000.0, trace, now);
    }
}

impl Http {
    fn observe_first(&self, (code, flags): (u16, ResponseFlags), observed: Observed) {
        let mut outcomes = self.outcomes.write().unwrap_or_else(PoisonError::into_inner);
        // An upstream that makes up statuses must not make up series.
        let code = if outcomes.len() < MAX_OUTCOMES { code } else { code / 100 * 100 };
        let key = (code, flags);
        if let Some(outcome) = outcomes.iter().find(|outcome| outcome.key == key) {
            return outcome.observe(observed);
        }
        let series = self.series(key);
        let outcome = Outcome {
            key,
            requests: self.families.requests.get_or_create_owned(&series),
            durations: self.families.durations.get_or_create_owned(&series),
        };
        outcome.observe(observed);
        outcomes.push(outcome);
    }

    fn series(&self, (response_code, response_flags): (u16, ResponseFlags)) -> HttpSeries {
        HttpSeries { traffic: Arc::clone(&self.labels), response_code, response_flags }
    }
}

/// What [`Handles`] keeps.
pub(super) trait Handle: Clone {
    fn create(labels: Arc<TrafficLabels>, families: &Families) -> Self;
    /// Whether anything but the cache holds it.
    fn is_held(&self) -> bool;
    /// Takes its series out of the exposition.
    fn forget(&self);
}

impl Handle for TcpMetrics {
    fn create(labels: Arc<TrafficLabels>, families: &Families) -> Self {
        let series =
            TcpSeries { traffic: Arc::clone(&labels), response_flags: ResponseFlags::NONE };
        Self(Arc::new(Tcp {
            labels,
            opened: families.opened.get_or_create_owned(&series),
            sent: families.sent.get_or_create_owned(&series),
            received: families.received.get_or_create_owned(&series),
            closed: Mutex::default(),
            families: families.clone(),
        }))
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn forget(&self) {
        let families = &self.0.families;
        let series = self.0.series(ResponseFlags::NONE);
        families.opened.remove(&series);
        families.sent.remove(&series);
        families.received.remove(&series);
        for (flags, _) in self.0.closed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            families.closed.remove(&self.0.series(*flags));
        }
    }
}

impl Handle for HttpMetrics {
    fn create(labels: Arc<TrafficLabels>, families: &Families) -> Self {
        Self(Arc::new(Http { labels, families: families.clone(), outcomes: RwLock::default() }))
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn forget(&self) {
        let outcomes = self.0.outcomes.read().unwrap_or_else(PoisonError::into_inner);
        for outcome in outcomes.iter() {
            let series = self.0.series(outcome.key);
            self.0.families.requests.remove(&series);
            self.0.families.durations.remove(&series);
        }
    }
}

/// Handles by labels, at most [`MAX_LABEL_SETS`].
#[derive(Debug)]
pub(super) struct Handles<H> {
    started: Instant,
    limit: usize,
    /// When idle entries were last looked for, in seconds after `started`.
    swept: AtomicU64,
    entries: RwLock<HashMap<Arc<TrafficLabels>, Entry<H>>>,
}

#[derive(Debug)]
struct Entry<H> {
    handle: H,
    /// Seconds after `started`.
    used: AtomicU64,
}

impl<H: Handle> Handles<H> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            started: Instant::now(),
            limit,
            swept: AtomicU64::new(0),
            entries: RwLock::default(),
        }
    }

    /// The handle for `labels`; allocates only the first time. `overflowed` is
    /// called where the labels had to be folded into one.
    pub(super) fn of(
        &self,
        labels: &TrafficLabels,
        families: &Families,
        overflowed: impl FnOnce(),
    ) -> H {
        let now = self.started.elapsed().as_secs();
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = entries.get(labels) {
                entry.used.store(now, Ordering::Relaxed);
                return entry.handle.clone();
            }
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let swept = self.swept.load(Ordering::Relaxed);
        if entries.len() >= self.limit && now.saturating_sub(swept) >= SWEEP.as_secs() {
            self.swept.store(now, Ordering::Relaxed);
            entries.retain(|_, entry| {
                let idle = now.saturating_sub(entry.used.load(Ordering::Relaxed));
                let keep = entry.handle.is_held() || idle < IDLE.as_secs();
                if !keep {
                    entry.handle.forget();
                }
                keep
            });
        }
        let labels = if entries.len() >= self.limit {
            overflowed();
            TrafficLabels::overflow(labels.reporter, labels.request_protocol)
        } else {
            labels.clone()
        };
        if let Some(entry) = entries.get(&labels) {
            return entry.handle.clone();
        }
        let labels = Arc::new(labels);
        let handle = H::create(Arc::clone(&labels), families);
        entries.insert(labels, Entry { handle: handle.clone(), used: AtomicU64::new(now) });
        handle
    }
}
