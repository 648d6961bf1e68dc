//! What filters remember from one request to the next.
//!
//! Each pod has its own, as it had with a proxy of its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{super::held::Share, fault, jwks::Fetched, local_rate_limit::Limiter};
use crate::{
    model::{
        captured::Pod,
        cluster::ClusterName,
        filter::{LocalRateLimit, TokenBucket},
        jwt_authn::HttpUri,
        listener::{ConnectionLimit, ConnectionRateLimit},
        workload::WorkloadUid,
    },
    proxy::{network_filters::Population, token_bucket::Bucket},
};

type Pods = HashMap<WorkloadUid, Arc<OfPod>>;

/// All pods'. Requests read the table without a lock.
#[derive(Debug, Default)]
pub struct FilterMemory {
    pods: ArcSwap<Pods>,
    /// Who changes the table.
    writing: Mutex<()>,
}

#[derive(Debug, Clone, Default)]
struct OfPod {
    pod: Weak<Pod>,
    /// By the connection manager's `stat_prefix`, as Envoy counts them.
    faults: HashMap<Arc<str>, fault::Active>,
    /// By cluster, host and path; there are few.
    jwks: Vec<(ClusterName, String, String, Arc<Fetched>)>,
    /// By where the configuration is, which nothing else can be as long as it is known here:
    /// two that say the same are two.
    limiters: HashMap<usize, (Weak<LocalRateLimit>, Arc<Limiter>)>,
    /// As `limiters`, of network filters.
    populations: HashMap<usize, (Weak<ConnectionLimit>, Arc<Population>)>,
    rates: HashMap<usize, (Weak<ConnectionRateLimit>, Arc<Bucket>)>,
    /// Those of `rates` that several may use, by key and measure.
    shared: HashMap<(Arc<str>, TokenBucket), Weak<Bucket>>,
    /// What is kept of bodies.
    bodies: Option<Share>,
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

    /// What requests of `pod` may keep of their bodies.
    pub(in crate::proxy::http) fn bodies(&self, pod: &Arc<Pod>) -> Share {
        self.find(
            pod,
            |of_pod| of_pod.bodies.clone(),
            |of_pod| of_pod.bodies.get_or_insert_default().clone(),
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

    /// The connections of `pod` that are counted by that configuration.
    pub(in crate::proxy) fn population(
        &self,
        pod: &Arc<Pod>,
        config: &Arc<ConnectionLimit>,
    ) -> Arc<Population> {
        let key = Arc::as_ptr(config).addr();
        let new = || (Arc::downgrade(config), Arc::default());
        self.find(
            pod,
            |of_pod| of_pod.populations.get(&key).map(|(_, living)| Arc::clone(living)),
            |of_pod| Arc::clone(&of_pod.populations.entry(key).or_insert_with(new).1),
        )
    }

    /// The bucket of `pod`'s connections for that configuration.
    pub(in crate::proxy) fn rate(
        &self,
        pod: &Arc<Pod>,
        config: &Arc<ConnectionRateLimit>,
        now: Instant,
    ) -> Arc<Bucket> {
        let key = Arc::as_ptr(config).addr();
        self.find(
            pod,
            |of_pod| of_pod.rates.get(&key).map(|(_, bucket)| Arc::clone(bucket)),
            |of_pod| {
                let ConnectionRateLimit { bucket: measure, share_key, .. } = &**config;
                let by = (Arc::clone(share_key), *measure);
                let shared = of_pod.shared.get(&by).and_then(Weak::upgrade);
                let bucket = shared.unwrap_or_else(|| Arc::new(Bucket::new(*measure, now)));
                if !share_key.is_empty() {
                    of_pod.shared.insert(by, Arc::downgrade(&bucket));
                }
                of_pod.rates.insert(key, (Arc::downgrade(config), Arc::clone(&bucket)));
                bucket
            },
        )
    }

    /// The keys that `pod` has fetched from there.
    pub(super) fn jwks(&self, pod: &Arc<Pod>, uri: &HttpUri) -> Arc<Fetched> {
        let HttpUri { cluster, authority, path, timeout: _ } = uri;
        self.find(
            pod,
            |of_pod| {
                let mut all = of_pod.jwks.iter();
                let own = all.find(|(c, a, p, _)| (c, a, p) == (cluster, authority, path));
                own.map(|(.., fetched)| Arc::clone(fetched))
            },
            |of_pod| {
                let new = Arc::<Fetched>::default();
                let (cluster, authority) = (cluster.clone(), authority.clone());
                of_pod.jwks.push((cluster, authority, path.clone(), Arc::clone(&new)));
                new
            },
        )
    }

    fn find<T>(
        &self,
        pod: &Arc<Pod>,
        known: impl Fn(&OfPod) -> Option<T>,
        new: impl FnOnce(&mut OfPod) -> T,
    ) -> T {
        let uid = &pod.workload.uid;
        if let Some(known) = self.pods.load().get(uid).and_then(|of_pod| known(of_pod)) {
            return known;
        }
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pods.load_full();
        if let Some(known) = before.get(uid).and_then(|of_pod| known(of_pod)) {
            return known;
        }
        let mut of_pod = before.get(uid).map(|known| OfPod::clone(known)).unwrap_or_default();
        of_pod.pod = Arc::downgrade(pod);
        let new = new(&mut of_pod);
        let mut pods = Pods::clone(&before);
        pods.insert(uid.clone(), Arc::new(of_pod));
        self.pods.store(Arc::new(pods));
        drop(writing);
        new
    }

    /// Forgets what nobody uses. Call it with every new snapshot.
    pub fn forget_idle(&self) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.pods.load_full();
        let living = before.iter().filter(|(_, of_pod)| of_pod.pod.strong_count() > 0);
        let pods = living.map(|(uid, of_pod)| {
            let OfPod { pod, faults, jwks, limiters, populations, rates, shared, bodies } =
                &**of_pod;
            // Told apart before anything is copied: a copy counts as a use.
            let bodies_in_use = bodies.as_ref().is_some_and(Share::is_shared);
            let faults = faults.iter().filter(|(_, active)| Arc::strong_count(active) > 1);
            let jwks =
                jwks.iter().filter(|(.., jwks)| Arc::strong_count(jwks) > 1 || !jwks.is_stale());
            let limiters = limiters.iter().filter(|(_, (config, _))| config.strong_count() > 0);
            let populations = populations.iter().filter(|(_, (of, _))| of.strong_count() > 0);
            let rates = rates.iter().filter(|(_, (config, _))| config.strong_count() > 0);
            let shared = shared.iter().filter(|(_, bucket)| bucket.strong_count() > 0);
            let kept = OfPod {
                pod: Weak::clone(pod),
                faults: faults
                    .map(|(prefix, active)| (Arc::clone(prefix), Arc::clone(active)))
                    .collect(),
                jwks: jwks.cloned().collect(),
                limiters: limiters.map(|(key, kept)| (*key, kept.clone())).collect(),
                populations: populations.map(|(key, kept)| (*key, kept.clone())).collect(),
                rates: rates.map(|(key, kept)| (*key, kept.clone())).collect(),
                shared: shared.map(|(key, kept)| (key.clone(), Weak::clone(kept))).collect(),
                bodies: bodies.clone().filter(|_| bodies_in_use),
            };
            (uid.clone(), Arc::new(kept))
        });
        self.pods.store(Arc::new(pods.collect()));
        drop(writing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::workload::MtlsMode, policy::fixtures::pod};

    #[test]
    fn what_is_in_use_is_kept_and_the_rest_goes() {
        let (memory, pod) = (FilterMemory::default(), pod(MtlsMode::Strict));
        let used = memory.faults(&pod, "used");
        drop(memory.faults(&pod, "idle"));
        assert!(Arc::ptr_eq(&used, &memory.faults(&pod, "used")));
        memory.forget_idle();
        let left = || {
            let pods = memory.pods.load();
            pods.get(&pod.workload.uid).map(|of_pod| of_pod.faults.len())
        };
        assert_eq!(left(), Some(1));
        assert!(Arc::ptr_eq(&used, &memory.faults(&pod, "used")));
        let uri = |path: &str| HttpUri {
            cluster: ClusterName("keys".into()),
            authority: "keys.test".to_owned(),
            path: path.to_owned(),
            timeout: std::time::Duration::from_secs(1),
        };
        let one = memory.jwks(&pod, &uri("/one"));
        assert!(Arc::ptr_eq(&one, &memory.jwks(&pod, &uri("/one"))));
        assert!(!Arc::ptr_eq(&one, &memory.jwks(&pod, &uri("/two"))));
        let uid = pod.workload.uid.clone();
        drop(pod);
        memory.forget_idle();
        assert!(memory.pods.load().get(&uid).is_none(), "its pod is gone");
    }
}
