//! The state of one cluster's load balancer.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwapOption;

use super::{
    candidates::Candidates,
    hosts::{HostState, Hosts},
    outlier::{Detector, Outcome},
};
use crate::model::cluster::{Cluster, LoadAssignment, OutlierDetection};

#[derive(Debug, Default)]
pub(super) struct ClusterBalancer {
    /// Where in its first rotation to begin.
    start: u32,
    candidates: ArcSwapOption<Candidates>,
    hosts: Mutex<Hosts>,
    /// Grows with each change of an endpoint's health.
    health_version: AtomicU64,
    detector: Detector,
}

impl ClusterBalancer {
    pub(super) fn new(start: u32) -> Self {
        Self { start, ..Self::default() }
    }

    pub(super) fn candidates(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
    ) -> Arc<Candidates> {
        let old = self.candidates.load_full();
        // Before anybody's health is looked at: what changes meanwhile is seen next time.
        let health_version = self.health_version.load(Ordering::Acquire);
        if let Some(old) = &old
            && old.are_of(cluster, assignment, health_version)
        {
            return Arc::clone(old);
        }
        let mut hosts = self.hosts();
        let new = Candidates::new(
            (cluster, assignment, health_version),
            &mut hosts,
            old.as_deref(),
            self.start,
        );
        drop(hosts);
        let new = Arc::new(new);
        self.candidates.store(Some(Arc::clone(&new)));
        new
    }

    /// The cluster and its endpoints are these from now on.
    pub(super) fn configure(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        now: Instant,
    ) {
        let candidates = self.candidates(cluster, assignment);
        let detection = cluster.monitoring.outlier_detection.as_ref();
        if self.detector.configure(detection, candidates.all(), now) {
            self.health_changed();
        }
    }

    /// Does what is due, and says when there is more to do.
    pub(super) fn sweep(
        &self,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<Instant> {
        let candidates = self.candidates.load();
        let hosts = candidates.as_ref().map_or(&[][..], |candidates| candidates.all());
        if self.detector.sweep(hosts, now, random) {
            self.health_changed();
        }
        self.detector.due()
    }

    /// Takes note of how it went at an endpoint.
    pub(super) fn report(
        &self,
        config: &Arc<OutlierDetection>,
        host: &HostState,
        outcome: Outcome,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) {
        let hosts = || match &*self.candidates.load() {
            Some(candidates) => candidates.all().to_vec(),
            None => Vec::new(),
        };
        if self.detector.report(config, host, hosts, outcome, now, random) {
            self.health_changed();
        }
    }

    pub(super) fn active(&self, endpoint: SocketAddr) -> u32 {
        self.hosts().get(&endpoint).map_or(0, |host| host.active.load(Ordering::Relaxed))
    }

    /// Forgets those that neither a candidate nor a guard holds.
    pub(super) fn forget_idle(&self) {
        self.hosts().retain(|_, host| Arc::strong_count(host) > 1);
    }

    fn health_changed(&self) {
        self.health_version.fetch_add(1, Ordering::Release);
    }

    pub(super) fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one connection or request to an endpoint, from the choice until it is dropped.
#[derive(Debug, Default)]
pub struct LoadGuard(Option<Held>);

#[derive(Debug)]
struct Held {
    host: Arc<HostState>,
    detection: Option<(Arc<ClusterBalancer>, Arc<OutlierDetection>)>,
}

/// Where to tell how it went; outlives what is in flight.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<(Arc<HostState>, Arc<ClusterBalancer>, Arc<OutlierDetection>)>);

impl LoadGuard {
    pub(super) fn new(
        host: &Arc<HostState>,
        balancer: Arc<ClusterBalancer>,
        cluster: &Cluster,
    ) -> Self {
        host.active.fetch_add(1, Ordering::Relaxed);
        let detection = cluster.monitoring.outlier_detection.as_ref();
        let detection = detection.map(|config| (balancer, Arc::clone(config)));
        Self(Some(Held { host: Arc::clone(host), detection }))
    }

    /// For what becomes of it.
    pub fn reporter(&self) -> Reporter {
        let held = self.0.as_ref();
        Reporter(held.and_then(|Held { host, detection }| {
            let (balancer, config) = detection.as_ref()?;
            Some((Arc::clone(host), Arc::clone(balancer), Arc::clone(config)))
        }))
    }
}

impl Reporter {
    /// How it went at the endpoint.
    pub fn report(&self, outcome: Outcome, now: Instant, random: &mut impl FnMut(u32) -> u32) {
        if let Some((host, balancer, config)) = &self.0 {
            balancer.report(config, host, outcome, now, random);
        }
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if let Some(Held { host, .. }) = &self.0 {
            host.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
