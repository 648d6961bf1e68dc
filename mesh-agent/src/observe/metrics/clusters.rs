//! What became of requests to each cluster: handles that are looked up without a lock, then
//! only atomics.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use http::StatusCode;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    cluster_states::{ClusterStates, States},
    labels::{ByCluster, ByClusterAnd},
};
use crate::model::cluster::ClusterName;

/// The most clusters that have series of their own.
pub(super) const CLUSTERS_MAX: usize = 1024;
/// All others.
pub(super) const OVERFLOW: &str = "overflow";

pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why an attempt had no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// There was no connection, or none in time.
    Connect,
    /// The connection or the stream ended.
    Reset,
    Timeout,
    /// A circuit breaker was open.
    Overflow,
}

impl AttemptFailure {
    const ALL: [Self; 4] = [Self::Connect, Self::Reset, Self::Timeout, Self::Overflow];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Overflow => "overflow",
        }
    }
}

/// Of every cluster that requests or connections went to. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClusterMetrics(Arc<Clusters>);

#[derive(Default)]
struct Clusters {
    families: Families,
    known: ArcSwap<HashMap<Arc<str>, Arc<OfCluster>>>,
    /// Who changes what is known.
    writing: Mutex<()>,
    states: OnceLock<ClusterStates>,
}

#[derive(Clone, Default)]
struct Families {
    responses: Family<ByClusterAnd, Counter>,
    failures: Family<ByClusterAnd, Counter>,
    retries: Family<ByCluster, Counter>,
    retry_overflow: Family<ByCluster, Counter>,
    connections: Family<ByCluster, Counter>,
}

/// Of one cluster, or of all that are too many.
#[derive(Debug)]
pub struct OfCluster {
    responses: [Counter; CLASSES.len()],
    failures: [Counter; AttemptFailure::ALL.len()],
    retries: Counter,
    retry_overflow: Counter,
    connections: Counter,
    /// Connections that are open.
    active: AtomicU64,
}

/// Counts a connection to a cluster for as long as it lives.
#[derive(Debug)]
pub struct OpenConnection(Arc<OfCluster>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl OfCluster {
    /// An attempt was answered.
    pub fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.responses.get(class) {
            counter.inc();
        }
    }

    /// An attempt was not.
    pub fn failed(&self, failure: AttemptFailure) {
        let index = AttemptFailure::ALL.iter().position(|known| *known == failure);
        if let Some(counter) = index.and_then(|index| self.failures.get(index)) {
            counter.inc();
        }
    }

    /// A request is sent once more.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// A request is not sent once more, since too many are already.
    pub fn retry_refused(&self) {
        self.retry_overflow.inc();
    }

    /// There is a connection, until what is returned is dropped.
    pub fn connected(self: &Arc<Self>) -> OpenConnection {
        self.connections.inc();
        self.active.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }
}

impl fmt::Debug for ClusterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterMetrics").finish_non_exhaustive()
    }
}

impl ClusterMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let Families { responses, failures, retries, retry_overflow, connections } =
            self.0.families.clone();
        r.register("mesh_cluster_responses", "Attempts that were answered, by class", responses);
        r.register("mesh_cluster_failures", "Attempts without a response, by reason", failures);
        r.register("mesh_cluster_retries", "Attempts that are not a request's first", retries);
        r.register(
            "mesh_cluster_retry_overflow",
            "Requests that were not sent again because too many were",
            retry_overflow,
        );
        r.register(
            "mesh_cluster_connections",
            "Connections opened, HTTP and TCP, to endpoints",
            connections,
        );
        r.register_collector(Box::new(States(self.clone())));
    }

    /// Where the exposition finds how clusters are. The first one stays.
    pub fn show(&self, states: ClusterStates) {
        if self.0.states.set(states).is_err() {
            tracing::error!("how clusters are is shown already");
        }
    }

    pub(super) fn states(&self) -> Option<&ClusterStates> {
        self.0.states.get()
    }

    /// The connections that are open, by cluster.
    pub(super) fn open_connections(&self) -> Vec<(Arc<str>, u64)> {
        let known = self.0.known.load();
        let open = |of: &OfCluster| of.active.load(Ordering::Relaxed);
        known.iter().map(|(name, of)| (Arc::clone(name), open(of))).collect()
    }

    /// Where a cluster is counted; keep it for as long as more is to be counted.
    pub fn of(&self, cluster: &ClusterName) -> Arc<OfCluster> {
        let known = self.0.known.load();
        let of_all_others = || {
            let full = known.len() >= CLUSTERS_MAX;
            full.then(|| known.get(OVERFLOW)).flatten()
        };
        match known.get(&*cluster.0).or_else(of_all_others) {
            Some(known) => Arc::clone(known),
            None => self.enter(cluster),
        }
    }

    /// A cluster's first time, or the first of all that are too many.
    fn enter(&self, cluster: &ClusterName) -> Arc<OfCluster> {
        let writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.0.known.load();
        let own = known.contains_key(&*cluster.0) || known.len() < CLUSTERS_MAX;
        let name = if own { Arc::clone(&cluster.0) } else { OVERFLOW.into() };
        // Who comes second has the same counters.
        if let Some(of) = known.get(&name) {
            return Arc::clone(of);
        }
        let new = Arc::new(self.0.families.of(&name));
        let mut more = HashMap::clone(&known);
        more.insert(name, Arc::clone(&new));
        self.0.known.store(Arc::new(more));
        drop(writing);
        new
    }

    /// Takes those out of the exposition that `keep` does not want and nothing is counted of
    /// any more: their places are others'.
    pub fn retain(&self, keep: impl Fn(&ClusterName) -> bool) {
        let writing = self.0.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.0.known.load();
        let stays = |name: &Arc<str>, of: &Arc<OfCluster>| {
            &**name == OVERFLOW || Arc::strong_count(of) > 1 || keep(&ClusterName(Arc::clone(name)))
        };
        let gone: Vec<_> = known.iter().filter(|(name, of)| !stays(name, of)).collect();
        if !gone.is_empty() {
            let names: HashSet<_> = gone.iter().map(|(name, _)| *name).collect();
            let rest = known.iter().filter(|(name, _)| !names.contains(name));
            let rest = rest.map(|(name, of)| (Arc::clone(name), Arc::clone(of))).collect();
            names.iter().for_each(|name| self.0.families.forget(name));
            self.0.known.store(Arc::new(rest));
        }
        drop(writing);
    }
}

impl Families {
    fn of(&self, cluster: &Arc<str>) -> OfCluster {
        let cluster = || Arc::clone(cluster);
        let series = |and| ByClusterAnd { cluster: cluster(), and };
        OfCluster {
            responses: CLASSES.map(|class| {
                self.responses.get_or_create_owned(&series(("response_class", class)))
            }),
            failures: AttemptFailure::ALL.map(|failure| {
                self.failures.get_or_create_owned(&series(("reason", failure.as_str())))
            }),
            retries: self.retries.get_or_create_owned(&ByCluster(cluster())),
            retry_overflow: self.retry_overflow.get_or_create_owned(&ByCluster(cluster())),
            connections: self.connections.get_or_create_owned(&ByCluster(cluster())),
            active: AtomicU64::new(0),
        }
    }

    fn forget(&self, cluster: &Arc<str>) {
        let series = |and| ByClusterAnd { cluster: Arc::clone(cluster), and };
        for class in CLASSES {
            self.responses.remove(&series(("response_class", class)));
        }
        for failure in AttemptFailure::ALL {
            self.failures.remove(&series(("reason", failure.as_str())));
        }
        for family in [&self.retries, &self.retry_overflow, &self.connections] {
            family.remove(&ByCluster(Arc::clone(cluster)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_beyond_the_limit_are_counted_together() {
        let metrics = ClusterMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let name = |n: usize| ClusterName(format!("c{n}").into());
        for n in 0..CLUSTERS_MAX + 5 {
            metrics.of(&name(n)).retried();
        }
        metrics.of(&name(1)).answered(StatusCode::NOT_FOUND);
        metrics.of(&name(1)).answered(StatusCode::from_u16(999).unwrap());
        metrics.of(&name(1)).failed(AttemptFailure::Timeout);
        let known = metrics.0.known.load_full();
        metrics.of(&name(CLUSTERS_MAX + 7)).retried();
        assert!(
            Arc::ptr_eq(&known, &metrics.0.known.load()),
            "made anew for each that is too many"
        );
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"mesh_cluster_retries_total{cluster="overflow"} 6"#,
            r#"mesh_cluster_retries_total{cluster="c1"} 1"#,
            r#"mesh_cluster_responses_total{cluster="c1",response_class="4xx"} 1"#,
            r#"mesh_cluster_responses_total{cluster="c1",response_class="5xx"} 0"#,
            r#"mesh_cluster_failures_total{cluster="c1",reason="timeout"} 1"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line}");
        }
    }

    #[test]
    fn clusters_that_are_gone_make_room_once_nothing_is_counted_of_them() {
        let metrics = ClusterMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let name = |n: usize| ClusterName(format!("c{n}").into());
        for n in 0..=CLUSTERS_MAX {
            metrics.of(&name(n)).retried();
        }
        let open = metrics.of(&name(0)).connected();
        let shown = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        let kept = |kept: &ClusterName| *kept == name(2);
        metrics.retain(kept);
        let text = shown();
        for line in [
            r#"mesh_cluster_retries_total{cluster="c0"} 1"#,
            r#"mesh_cluster_active_connections{cluster="c0"} 1"#,
            r#"mesh_cluster_retries_total{cluster="c2"} 1"#,
            r#"mesh_cluster_retries_total{cluster="overflow"} 1"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        assert!(!text.contains(r#"cluster="c1""#), "{text}");
        drop(open);
        metrics.retain(kept);
        assert!(!shown().contains(r#"cluster="c0""#));
        metrics.of(&name(CLUSTERS_MAX)).retried();
        let line = format!("mesh_cluster_retries_total{{cluster=\"c{CLUSTERS_MAX}\"}} 1\n");
        assert!(shown().contains(&line), "it has no place of its own");
    }
}
