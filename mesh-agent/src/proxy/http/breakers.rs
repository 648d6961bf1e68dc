//! Circuit breakers: how much may be on its way to a cluster at once, and what waits.
//!
//! Each pod has its own, as it had with a proxy of its own: none can take a cluster away
//! from another.
//!
//! Spec: `envoy/config/cluster/v3/circuit_breaker.proto`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwap;
use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::reset::Failure;
use crate::{
    model::{
        cluster::{CircuitBreakers, ClusterName, Thresholds},
        workload::WorkloadUid,
    },
    observe::metrics::{BreakerState, ClusterMetrics, OfCluster},
    transport::http_pool::HttpProtocol,
};

/// Those of one pod, by cluster and whether the priority is high.
type OfPod = HashMap<ClusterName, [Option<Arc<Breaker>>; 2]>;

type Pods = HashMap<WorkloadUid, Arc<OfPod>>;

/// All pods'. Requests read the table without a lock.
#[derive(Debug, Default)]
pub struct Breakers {
    clusters: ClusterMetrics,
    pods: ArcSwap<Pods>,
    /// Who changes the table.
    writing: Mutex<()>,
}

/// What one pod has on its way to one cluster.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Where what becomes of it is counted.
    pub(super) counted: Arc<OfCluster>,
    limits: Thresholds,
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    /// A request by HTTP/1 takes a connection.
    connections: Arc<Semaphore>,
}

/// Counts how an attempt ended.
pub(super) fn count(counted: &OfCluster, ended: Result<StatusCode, &Failure>) {
    match ended {
        Ok(status) => counted.answered(status),
        Err(failure) => counted.failed(failure.kind()),
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("overflow")]
pub(super) struct Overflow;

#[derive(Debug, Clone, Copy)]
enum Of {
    Requests,
    Pending,
    Retries,
}

/// Counts one for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted {
    breaker: Arc<Breaker>,
    of: Of,
}

/// A request's place, to be kept until its response has ended. The default takes none.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    _request: Option<Counted>,
    _connection: Option<OwnedSemaphorePermit>,
}

impl Breakers {
    /// What goes to clusters is counted there.
    pub fn new(clusters: ClusterMetrics) -> Self {
        Self { clusters, ..Self::default() }
    }

    /// What `pod` has on its way to `cluster`. Other limits than before count anew.
    pub(super) fn of(
        &self,
        pod: &WorkloadUid,
        cluster: &ClusterName,
        breakers: &CircuitBreakers,
        high: bool,
    ) -> Arc<Breaker> {
        let limits = if high { breakers.high } else { breakers.default };
        let place = usize::from(high);
        let known = |pods: &Pods| {
            let known = pods.get(pod)?.get(cluster)?.get(place)?.as_ref()?;
            (known.limits == limits).then(|| Arc::clone(known))
        };
        if let Some(known) = known(&self.pods.load()) {
            return known;
        }
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pods.load_full();
        if let Some(known) = known(&before) {
            return known;
        }
        let breaker = Arc::new(Breaker::new(limits, self.clusters.of(cluster)));
        let mut of_pod = before.get(pod).map(|known| OfPod::clone(known)).unwrap_or_default();
        of_pod.entry(cluster.clone()).or_default()[place] = Some(Arc::clone(&breaker));
        let mut pods = Pods::clone(&before);
        pods.insert(pod.clone(), Arc::new(of_pod));
        self.pods.store(Arc::new(pods));
        drop(writing);
        breaker
    }

    /// Forgets those that nothing is on its way by. Call it with every new snapshot. A
    /// request that finds one just then counts by itself alone.
    pub fn forget_idle(&self) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pods.load_full();
        let in_use = |breakers: &[Option<Arc<Breaker>>; 2]| {
            breakers.iter().flatten().any(|breaker| Arc::strong_count(breaker) > 1)
        };
        let pods = before.iter().filter_map(|(pod, of_pod)| {
            // Told apart before anything is copied: a copy counts as a use.
            let kept: Vec<_> = of_pod.iter().filter(|(_, breakers)| in_use(breakers)).collect();
            let kept = match kept.len() {
                0 => return None,
                all if all == of_pod.len() => Arc::clone(of_pod),
                _ => Arc::new(
                    kept.into_iter().map(|(name, of)| (name.clone(), of.clone())).collect(),
                ),
            };
            Some((pod.clone(), kept))
        });
        self.pods.store(Arc::new(pods.collect()));
        drop(writing);
    }

    /// Every breaker, as it is now.
    pub fn states(&self) -> Vec<(ClusterName, BreakerState)> {
        let pods = self.pods.load();
        let of_pods = pods.values().flat_map(|of_pod| of_pod.iter());
        let states = of_pods.flat_map(|(cluster, breakers)| {
            let by_priority = [false, true].into_iter().zip(breakers);
            by_priority.filter_map(|(high, breaker)| {
                Some((cluster.clone(), breaker.as_ref()?.state(high)))
            })
        });
        states.collect()
    }
}

impl Breaker {
    fn new(limits: Thresholds, counted: Arc<OfCluster>) -> Self {
        // As Envoy: one connection may always be had.
        let connections = usize::try_from(limits.max_connections.max(1)).unwrap_or(usize::MAX);
        Self {
            counted,
            limits,
            requests: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            retries: AtomicU32::new(0),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
        }
    }

    fn state(&self, high: bool) -> BreakerState {
        let Thresholds { max_connections, max_pending_requests, max_requests, .. } = self.limits;
        let max = [max_connections.max(1), max_pending_requests, max_requests, self.retries_max()];
        let free = u64::try_from(self.connections.available_permits()).unwrap_or(u64::MAX);
        let max = max.map(u64::from);
        let now = |of| u64::from(self.counter(of).load(Ordering::Relaxed));
        let connections = max[0].saturating_sub(free);
        let used = [connections, now(Of::Pending), now(Of::Requests), now(Of::Retries)];
        BreakerState { high, used, max }
    }

    fn counter(&self, of: Of) -> &AtomicU32 {
        match of {
            Of::Requests => &self.requests,
            Of::Pending => &self.pending,
            Of::Retries => &self.retries,
        }
    }

    fn count(self: &Arc<Self>, of: Of, max: u32) -> Result<Counted, Overflow> {
        let more = |now: u32| (now < max).then_some(now + 1);
        let counted = self.counter(of).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| Overflow)?;
        Ok(Counted { breaker: Arc::clone(self), of })
    }

    /// Waits for a place, or is told that too many wait already.
    pub(super) async fn admit(
        self: &Arc<Self>,
        protocol: HttpProtocol,
    ) -> Result<Admitted, Overflow> {
        let connection = match protocol {
            HttpProtocol::Http2 => None,
            HttpProtocol::Http1 => {
                let connections = Arc::clone(&self.connections);
                match Arc::clone(&connections).try_acquire_owned() {
                    Ok(free) => Some(free),
                    Err(_) => {
                        let _pending = self.pending()?;
                        Some(connections.acquire_owned().await.map_err(|_| Overflow)?)
                    }
                }
            }
        };
        let request = self.count(Of::Requests, self.limits.max_requests)?;
        Ok(Admitted { _request: Some(request), _connection: connection })
    }

    /// While a request waits for a connection.
    pub(super) fn pending(self: &Arc<Self>) -> Result<Counted, Overflow> {
        self.count(Of::Pending, self.limits.max_pending_requests)
    }

    /// While a request is sent again.
    pub(super) fn retry(self: &Arc<Self>) -> Result<Counted, Overflow> {
        self.count(Of::Retries, self.retries_max()).inspect_err(|_| self.counted.retry_refused())
    }

    fn retries_max(&self) -> u32 {
        let Some(budget) = self.limits.retry_budget else { return self.limits.max_retries };
        let requests = self.requests.load(Ordering::Relaxed);
        let pending = self.pending.load(Ordering::Relaxed);
        let active = f64::from(requests) + f64::from(pending);
        // Whole, and not negative: percentages are checked.
        let part = (active * budget.percent / 100.0) as u32;
        part.max(budget.min_concurrency)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.breaker.counter(self.of).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::cluster::RetryBudget;

    fn limits(default: Thresholds) -> CircuitBreakers {
        CircuitBreakers { default, ..CircuitBreakers::default() }
    }

    fn breaker(breakers: &Breakers, pod: &str, limits: &CircuitBreakers) -> Arc<Breaker> {
        breakers.of(&WorkloadUid(pod.into()), &ClusterName("c".into()), limits, false)
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_waited_for_in_a_bounded_queue() {
        let breakers = Breakers::default();
        let thresholds =
            Thresholds { max_connections: 1, max_pending_requests: 1, ..Thresholds::default() };
        let breaker = breaker(&breakers, "p", &limits(thresholds));
        let first = breaker.admit(HttpProtocol::Http1).await.unwrap();
        let waiting = tokio::spawn({
            let breaker = Arc::clone(&breaker);
            async move { breaker.admit(HttpProtocol::Http1).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(breaker.admit(HttpProtocol::Http1).await.unwrap_err(), Overflow);
        // Streams take no connection of their own.
        breaker.admit(HttpProtocol::Http2).await.unwrap();
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert_eq!(breaker.pending.load(Ordering::Relaxed), 0);
        drop(second);
        breaker.admit(HttpProtocol::Http1).await.unwrap();
    }

    #[tokio::test]
    async fn requests_are_bounded_and_each_pod_has_its_own() {
        let breakers = Breakers::default();
        let limits = limits(Thresholds { max_requests: 1, ..Thresholds::default() });
        let one = breaker(&breakers, "one", &limits);
        let held = one.admit(HttpProtocol::Http2).await.unwrap();
        assert_eq!(one.admit(HttpProtocol::Http2).await.unwrap_err(), Overflow);
        let other = breaker(&breakers, "other", &limits);
        other.admit(HttpProtocol::Http2).await.unwrap();
        let high = breakers.of(&WorkloadUid("one".into()), &ClusterName("c".into()), &limits, true);
        high.admit(HttpProtocol::Http2).await.unwrap();
        drop(held);
        one.admit(HttpProtocol::Http2).await.unwrap();
    }

    #[test]
    fn what_is_on_its_way_counts_across_snapshots_and_nothing_else_is_kept() {
        let breakers = Breakers::default();
        let limits = limits(Thresholds { max_retries: 1, ..Thresholds::default() });
        let held = breaker(&breakers, "p", &limits).retry().unwrap();
        breakers.forget_idle();
        assert_eq!(breaker(&breakers, "p", &limits).retry().unwrap_err(), Overflow);
        drop(held);
        breakers.forget_idle();
        assert!(breakers.pods.load().is_empty());
    }

    #[tokio::test]
    async fn a_budget_is_a_share_of_what_is_on_its_way() {
        let breakers = Breakers::default();
        let budget = RetryBudget { percent: 50.0, min_concurrency: 1 };
        let limits = limits(Thresholds {
            retry_budget: Some(budget),
            max_retries: 0,
            ..Thresholds::default()
        });
        let breaker = breaker(&breakers, "p", &limits);
        let first = breaker.retry().unwrap();
        assert_eq!(breaker.retry().unwrap_err(), Overflow);
        let mut requests = Vec::new();
        for _ in 0..4 {
            requests.push(breaker.admit(HttpProtocol::Http2).await.unwrap());
        }
        let second = breaker.retry().unwrap();
        assert_eq!(breaker.retry().unwrap_err(), Overflow);
        drop((first, second));
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_told() {
        let breakers = Breakers::default();
        let thresholds = Thresholds {
            max_connections: 7,
            max_requests: 3,
            max_retries: 2,
            ..Thresholds::default()
        };
        let breaker = breaker(&breakers, "p", &limits(thresholds));
        let told = || match &breakers.states()[..] {
            [(_, state)] => (state.used, state.max),
            other => panic!("{other:?}"),
        };
        let max = [7, u64::from(thresholds.max_pending_requests), 3, 2];
        assert_eq!(told(), ([0; 4], max));
        let held = breaker.admit(HttpProtocol::Http1).await.unwrap();
        let more = (breaker.admit(HttpProtocol::Http2).await.unwrap(), breaker.retry().unwrap());
        let pending = breaker.pending().unwrap();
        assert_eq!(told(), ([1, 1, 2, 1], max));
        drop((held, more, pending));
        assert_eq!(told(), ([0; 4], max));
    }
}
