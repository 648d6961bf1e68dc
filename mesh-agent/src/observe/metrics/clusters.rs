//! What became of requests to each cluster: handles that are looked up without a lock, then
//! only atomics.

use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use http::StatusCode;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::labels::{ByCluster, ByClusterAnd};
use crate::model::cluster::ClusterName;

/// The most clusters that have series of their own.
const CLUSTERS_MAX: usize = 1024;
/// All others.
const OVERFLOW: &str = "overflow";

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why an attempt had no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFailure {
    /// There was no connection.
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

/// Of every cluster that requests went to. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClusterMetrics(Arc<Clusters>);

#[derive(Default)]
struct Clusters {
    families: Families,
    known: ArcSwap<HashMap<Arc<str>, Arc<OfCluster>>>,
}

#[derive(Clone, Default)]
struct Families {
    responses: Family<ByClusterAnd, Counter>,
    failures: Family<ByClusterAnd, Counter>,
    retries: Family<ByCluster, Counter>,
}

/// Of one cluster.
#[derive(Debug)]
pub struct OfCluster {
    responses: [Counter; CLASSES.len()],
    failures: [Counter; AttemptFailure::ALL.len()],
    retries: Counter,
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
}

impl fmt::Debug for ClusterMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterMetrics").finish_non_exhaustive()
    }
}

impl ClusterMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let Families { responses, failures, retries } = self.0.families.clone();
        r.register("mesh_cluster_responses", "Attempts that were answered, by class", responses);
        r.register("mesh_cluster_failures", "Attempts without a response, by reason", failures);
        r.register("mesh_cluster_retries", "Attempts that are not a request's first", retries);
    }

    /// Counts something of a cluster.
    pub fn count(&self, cluster: &ClusterName, what: impl Fn(&OfCluster)) {
        let known = self.0.known.load();
        let of_all_others = || {
            let full = known.len() >= CLUSTERS_MAX;
            full.then(|| known.get(OVERFLOW)).flatten()
        };
        match known.get(&*cluster.0).or_else(of_all_others) {
            Some(known) => what(known),
            None => what(&self.enter(cluster, known.len())),
        }
    }

    /// A cluster's first time, or the first of all that are too many.
    fn enter(&self, cluster: &ClusterName, known: usize) -> Arc<OfCluster> {
        let own = known < CLUSTERS_MAX;
        let name = if own { cluster.clone() } else { ClusterName(OVERFLOW.into()) };
        let new = Arc::new(self.0.families.of(&name));
        // Who comes second has the same counters.
        self.0.known.rcu(|known| {
            let mut more = HashMap::clone(known);
            more.entry(Arc::clone(&name.0)).or_insert_with(|| Arc::clone(&new));
            more
        });
        new
    }
}

impl Families {
    fn of(&self, cluster: &ClusterName) -> OfCluster {
        let cluster = || Arc::clone(&cluster.0);
        let series = |and| ByClusterAnd { cluster: cluster(), and };
        OfCluster {
            responses: CLASSES.map(|class| {
                self.responses.get_or_create_owned(&series(("response_class", class)))
            }),
            failures: AttemptFailure::ALL.map(|failure| {
                self.failures.get_or_create_owned(&series(("reason", failure.as_str())))
            }),
            retries: self.retries.get_or_create_owned(&ByCluster(cluster())),
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
            metrics.count(&name(n), OfCluster::retried);
        }
        metrics.count(&name(1), |of| of.answered(StatusCode::NOT_FOUND));
        metrics.count(&name(1), |of| of.answered(StatusCode::from_u16(999).unwrap()));
        metrics.count(&name(1), |of| of.failed(AttemptFailure::Timeout));
        let known = metrics.0.known.load_full();
        metrics.count(&name(CLUSTERS_MAX + 7), OfCluster::retried);
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
}
