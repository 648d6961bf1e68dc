//! What filters remember from one request to the next.
//!
//! Each pod has its own, as it had with a proxy of its own.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Instant,
};

use super::{fault, jwks::Fetched, local_rate_limit::Limiter};
use crate::model::{
    captured::Pod, cluster::ClusterName, filter::LocalRateLimit, jwt_authn::HttpUri,
    workload::WorkloadUid,
};

/// All pods'.
#[derive(Debug, Default)]
pub struct FilterMemory {
    pods: RwLock<HashMap<WorkloadUid, OfPod>>,
}

#[derive(Debug)]
struct OfPod {
    pod: Weak<Pod>,
    /// By the connection manager's `stat_prefix`, as Envoy counts them.
    faults: HashMap<Arc<str>, fault::Active>,
    /// By cluster, host and path.
    jwks: HashMap<(ClusterName, String, String), Arc<Fetched>>,
    /// By where the configuration is, which nothing else can be as long as it is known here:
    /// two that say the same are two.
    limiters: HashMap<usize, (Weak<LocalRateLimit>, Arc<Limiter>)>,
}

impl FilterMemory {
    /// The faults in hand of `pod`, of connection managers with that prefix.
    pub(in crate::proxy::http) fn faults(&self, pod: &Arc<Pod>, prefix: &str) -> fault::Active {
        self.find(
            pod,
            |of_pod| of_pod.faults.get(prefix).map(Arc::clone),
            |of_pod| Arc::clone(of_pod.faults.entry(prefix.into()).or_default()),
        )
    }

    /// The buckets of `pod` for that configuration.
    pub(in crate::proxy::http) fn limiter(
        &self,
        pod: &Arc<Pod>,
        config: &Arc<LocalRateLimit>,
        now: Instant,
    ) -> Arc<Limiter> {
        let key = Arc::as_ptr(config).addr();
        let new = || (Arc::downgrade(config), Arc::new(Limiter::new(config, now)));
        self.find(
            pod,
            |of_pod| of_pod.limiters.get(&key).map(|(_, limiter)| Arc::clone(limiter)),
            |of_pod| Arc::clone(&of_pod.limiters.entry(key).or_insert_with(new).1),
        )
    }

    /// The keys that `pod` has fetched from there.
    pub(super) fn jwks(&self, pod: &Arc<Pod>, uri: &HttpUri) -> Arc<Fetched> {
        let key = (uri.cluster.clone(), uri.authority.clone(), uri.path.clone());
        self.find(
            pod,
            |of_pod| of_pod.jwks.get(&key).map(Arc::clone),
            |of_pod| Arc::clone(of_pod.jwks.entry(key.clone()).or_default()),
        )
    }

    fn find<T>(
        &self,
        pod: &Arc<Pod>,
        known: impl FnOnce(&OfPod) -> Option<T>,
        new: impl FnOnce(&mut OfPod) -> T,
    ) -> T {
        let uid = &pod.workload.uid;
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pods.get(uid).and_then(known) {
            return known;
        }
        drop(pods);
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let of_pod = pods.entry(uid.clone()).or_insert_with(|| OfPod {
            pod: Weak::new(),
            faults: HashMap::new(),
            jwks: HashMap::new(),
            limiters: HashMap::new(),
        });
        of_pod.pod = Arc::downgrade(pod);
        new(of_pod)
    }

    /// Forgets what nobody uses. Call it with every new snapshot.
    pub fn forget_idle(&self) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, of_pod| {
            of_pod.faults.retain(|_, active| Arc::strong_count(active) > 1);
            of_pod.jwks.retain(|_, jwks| Arc::strong_count(jwks) > 1 || !jwks.is_stale());
            of_pod.limiters.retain(|_, (config, _)| config.strong_count() > 0);
            of_pod.pod.strong_count() > 0
        });
    }
}
