//! What filters remember from one request to the next.
//!
//! Each pod has its own, as it had with a proxy of its own.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::{fault, jwks::Fetched};
use crate::model::{cluster::ClusterName, jwt_authn::HttpUri, workload::WorkloadUid};

/// All pods'.
#[derive(Debug, Default)]
pub struct FilterMemory {
    pods: RwLock<HashMap<WorkloadUid, OfPod>>,
}

#[derive(Debug, Default)]
struct OfPod {
    /// By the connection manager's `stat_prefix`, as Envoy counts them.
    faults: HashMap<Arc<str>, fault::Active>,
    /// By cluster, host and path.
    jwks: HashMap<(ClusterName, String, String), Arc<Fetched>>,
}

impl FilterMemory {
    /// The faults in hand of `pod`, of connection managers with that prefix.
    pub(in crate::proxy::http) fn faults(&self, pod: &WorkloadUid, prefix: &str) -> fault::Active {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pods.get(pod).and_then(|of_pod| of_pod.faults.get(prefix)) {
            return Arc::clone(known);
        }
        drop(pods);
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let faults = &mut pods.entry(pod.clone()).or_default().faults;
        Arc::clone(faults.entry(prefix.into()).or_default())
    }

    /// The keys that `pod` has fetched from there.
    pub(super) fn jwks(&self, pod: &WorkloadUid, uri: &HttpUri) -> Arc<Fetched> {
        let key = (uri.cluster.clone(), uri.authority.clone(), uri.path.clone());
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pods.get(pod).and_then(|of_pod| of_pod.jwks.get(&key)) {
            return Arc::clone(known);
        }
        drop(pods);
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pods.entry(pod.clone()).or_default().jwks.entry(key).or_default())
    }

    /// Forgets what nobody uses. Call it with every new snapshot.
    pub fn forget_idle(&self) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, of_pod| {
            of_pod.faults.retain(|_, active| Arc::strong_count(active) > 1);
            of_pod.jwks.retain(|_, jwks| Arc::strong_count(jwks) > 1 || !jwks.is_stale());
            !of_pod.faults.is_empty() || !of_pod.jwks.is_empty()
        });
    }
}
