//! The state of one cluster's load balancer.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::{
    candidates::Candidates,
    health::{self, CheckResult, Transition},
    hosts::{HostState, Hosts, Standing},
    outlier::{Detector, Outcome},
    zones::{Overrides, Senders},
};
use crate::{
    model::cluster::{
        Cluster, Endpoint, HealthCheck, LoadAssignment, LocalCluster, OutlierDetection,
    },
    observe::{log_limit::LogLimit, metrics::EndpointStates},
};

static SHORT: LogLimit = LogLimit::new();

#[derive(Debug, Default)]
pub(super) struct ClusterBalancer {
    /// Where in its first rotation to begin.
    start: u32,
    candidates: ArcSwapOption<Candidates>,
    /// Of a configuration that is about to be in force, where making them takes its time.
    next: ArcSwapOption<Candidates>,
    behind: Option<Behind>,
    hosts: Mutex<Hosts>,
    /// Grows with each change of an endpoint's health.
    health_version: AtomicU64,
    detector: Detector,
    /// Whether there ever was traffic.
    used: AtomicBool,
}

/// Wakes who makes tables anew.
#[derive(Clone)]
pub(super) struct Behind(pub(super) Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Behind")
    }
}

impl ClusterBalancer {
    /// Without `behind` tables are made by who first asks for them.
    pub(super) fn new(start: u32, behind: Option<Behind>) -> Self {
        Self { start, behind, ..Self::default() }
    }

    pub(super) fn candidates(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        senders: Option<&Arc<Senders>>,
        now: Instant,
    ) -> Arc<Candidates> {
        // Tables of hashes know no zones, as Envoy's.
        let senders = senders.filter(|_| !cluster.lb_policy.is_by_hash());
        let old = self.candidates.load_full();
        // Before anybody's health is looked at: what changes meanwhile is seen next time.
        let health_version = self.health_version.load(Ordering::Acquire);
        if let Some(old) = &old
            && old.are_of(cluster, assignment, senders, health_version)
        {
            return Arc::clone(old);
        }
        if cluster.lb_policy.is_by_hash()
            && let Some(serving) = self.meanwhile(cluster, assignment, old.as_ref())
        {
            return serving;
        }
        let new = Arc::new(self.make(cluster, assignment, senders, old.as_deref(), now));
        self.candidates.store(Some(Arc::clone(&new)));
        new
    }

    /// Those that serve until tables are made anew by somebody else.
    fn meanwhile(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        old: Option<&Arc<Candidates>>,
    ) -> Option<Arc<Candidates>> {
        let Behind(wake) = self.behind.as_ref()?;
        let next = self.next.load_full().filter(|next| next.are_for(cluster, assignment));
        if let Some(next) = next {
            self.put(&next);
            wake();
            return Some(next);
        }
        let old = old.filter(|old| old.are_by_hash())?;
        wake();
        Some(Arc::clone(old))
    }

    /// What was next is in force.
    fn put(&self, next: &Arc<Candidates>) {
        self.candidates.store(Some(Arc::clone(next)));
        self.next.compare_and_swap(next, None);
    }

    /// Takes no lock while tables are made.
    fn make(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        senders: Option<&Arc<Senders>>,
        old: Option<&Candidates>,
        now: Instant,
    ) -> Candidates {
        let health_version = self.health_version.load(Ordering::Acquire);
        let mut hosts = self.hosts();
        let key = (cluster, assignment, health_version);
        let mut new = Candidates::new(key, senders, &mut hosts, old, self.start, now);
        drop(hosts);
        if !new.make_tables(cluster)
            && let Some(suppressed) = SHORT.allows()
        {
            tracing::warn!(
                cluster = %cluster.name,
                suppressed,
                "no room for all of a cluster's hash tables, as large as weights, priorities \
                 and subsets ask for: requests go by smaller ones, or by none"
            );
        }
        new
    }

    /// Whether there is something to make for this configuration, or to put in force.
    pub(super) fn is_behind(&self, cluster: &Cluster, assignment: &Arc<LoadAssignment>) -> bool {
        let health_version = self.health_version.load(Ordering::Acquire);
        let candidates = self.candidates.load();
        !candidates
            .as_ref()
            .is_some_and(|now| now.are_of(cluster, assignment, None, health_version))
    }

    /// Makes candidates of a configuration that is about to be in force.
    pub(super) fn prepare(&self, cluster: &Cluster, assignment: &Arc<LoadAssignment>) {
        let next = self.next.load();
        if next.as_ref().is_some_and(|next| next.are_for(cluster, assignment)) {
            return;
        }
        let old = self.candidates.load_full();
        let next = self.make(cluster, assignment, None, old.as_deref(), Instant::now());
        self.next.store(Some(Arc::new(next)));
    }

    /// Puts candidates in force that are of the configuration in force, and as healthy as
    /// their endpoints are now.
    pub(super) fn refresh(&self, cluster: &Cluster, assignment: &Arc<LoadAssignment>) {
        let next = self.next.load_full().filter(|next| next.are_for(cluster, assignment));
        if let Some(next) = next {
            self.put(&next);
        }
        if self.is_behind(cluster, assignment) {
            let old = self.candidates.load_full();
            let new = self.make(cluster, assignment, None, old.as_deref(), Instant::now());
            self.candidates.store(Some(Arc::new(new)));
        }
    }

    /// The cluster and its endpoints are these from now on.
    pub(super) fn configure(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        senders: Option<&Arc<Senders>>,
        now: Instant,
    ) {
        let candidates = self.candidates(cluster, assignment, senders, now);
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

    /// Takes note of a health check, and says how long until the next one; `None`: the
    /// endpoint is not checked any more.
    pub(super) fn checked(
        &self,
        endpoint: SocketAddr,
        check: &HealthCheck,
        result: CheckResult,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<Duration> {
        let host = Arc::clone(self.hosts().get(&endpoint)?);
        if !host.checked.is_on() {
            return None;
        }
        let failed = host.checked.has_failed();
        let transition = host.checked.note(result, check);
        if failed && !host.checked.has_failed() {
            host.recovered(now);
        }
        let passed = matches!(result, CheckResult::Passed { .. });
        let well = passed && !host.checked.has_failed();
        let unejected = well && self.detector.passed(&host, now);
        if transition == Transition::Changed || unejected {
            self.health_changed();
        }
        let used = self.used.load(Ordering::Relaxed);
        Some(health::pause(check, passed, transition, used, random))
    }

    pub(super) fn has_failed(&self, endpoint: SocketAddr) -> bool {
        self.hosts().get(&endpoint).is_some_and(|host| host.checked.has_failed())
    }

    /// Grows with each change of an endpoint's health.
    pub(super) fn health_version(&self) -> u64 {
        self.health_version.load(Ordering::Acquire)
    }

    /// Those of its endpoints, as they are, that send traffic.
    pub(super) fn senders(
        &self,
        (local, cluster): (&LocalCluster, &Cluster),
        assignment: &LoadAssignment,
        overrides: Overrides,
    ) -> Option<Senders> {
        let hosts = self.hosts();
        let ignore_new = cluster.balancing.ignore_new_hosts;
        let standing = &|endpoint: &Endpoint| match hosts.get(&endpoint.address) {
            Some(state) => state.standing(endpoint, ignore_new),
            None => Standing::configured(endpoint),
        };
        Senders::new(local, assignment, overrides, standing)
    }

    /// How its endpoints are; `None`: nobody has asked for them yet.
    pub(super) fn states(&self) -> Option<EndpointStates> {
        let candidates = self.candidates.load_full()?;
        let states = candidates.states();
        let panic = candidates.in_panic(&self.hosts());
        Some(EndpointStates { panic, ejections: self.detector.counted(), ..states })
    }

    /// There is traffic.
    pub(super) fn used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
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
        if let Some(Behind(wake)) = &self.behind {
            wake();
        }
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
    /// Where somebody wants to know how it went.
    monitored: Option<(Arc<ClusterBalancer>, Option<Arc<OutlierDetection>>)>,
}

/// Where to tell how it went; outlives what is in flight.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<Monitored>);

#[derive(Debug, Clone)]
struct Monitored {
    host: Arc<HostState>,
    balancer: Arc<ClusterBalancer>,
    detection: Option<Arc<OutlierDetection>>,
}

impl LoadGuard {
    pub(super) fn new(
        host: &Arc<HostState>,
        balancer: Arc<ClusterBalancer>,
        cluster: &Cluster,
    ) -> Self {
        host.active.fetch_add(1, Ordering::Relaxed);
        let monitoring = &cluster.monitoring;
        let monitored =
            monitoring.is_on().then(|| (balancer, monitoring.outlier_detection.clone()));
        Self(Some(Held { host: Arc::clone(host), monitored }))
    }

    /// For what becomes of it.
    pub fn reporter(&self) -> Reporter {
        let held = self.0.as_ref();
        Reporter(held.and_then(|Held { host, monitored }| {
            let (balancer, detection) = monitored.as_ref()?;
            let (host, balancer) = (Arc::clone(host), Arc::clone(balancer));
            Some(Monitored { host, balancer, detection: detection.clone() })
        }))
    }
}

impl Reporter {
    /// How it went at the endpoint.
    pub fn report(&self, outcome: Outcome, now: Instant, random: &mut impl FnMut(u32) -> u32) {
        if let Some(Monitored { host, balancer, detection: Some(config) }) = &self.0 {
            balancer.report(config, host, outcome, now, random);
        }
    }

    /// The endpoint said that it is to be taken for unhealthy until it passes a check.
    pub fn fails_at_once(&self) {
        if let Some(Monitored { host, balancer, .. }) = &self.0
            && host.checked.fail_at_once()
        {
            balancer.health_changed();
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
