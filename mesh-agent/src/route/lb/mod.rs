//! Load balancing: one endpoint of a cluster, by its policy.
//!
//! [`Balancers`] holds what outlives a snapshot: the position in each cluster's
//! rotation and how much is in flight to each endpoint. Picking takes a read lock on
//! the table of clusters, and for weighted round robin a short mutex; no lock is
//! held afterwards.
//!
//! Which endpoints take traffic: the healthy ones; where there are none, the
//! degraded ones; and all of them in panic, when healthy and degraded ones together
//! are fewer than half (Envoy's `healthy_panic_threshold` of 50 %). Unlike Envoy,
//! traffic does not shift to degraded endpoints by degrees.

mod least_request;
mod round_robin;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use self::round_robin::Rotation;
use crate::{
    model::cluster::{Cluster, ClusterName, Endpoint, Health, LbPolicy, LoadAssignment},
    snapshot::Snapshot,
};

/// Healthy and degraded endpoints below this share, in percent: panic.
const PANIC_THRESHOLD_PERCENT: usize = 50;

/// The state of every cluster's load balancer. One per agent, shared by all.
#[derive(Debug, Default)]
pub struct Balancers {
    clusters: RwLock<HashMap<ClusterName, Arc<ClusterBalancer>>>,
}

impl Balancers {
    /// An endpoint of `cluster`, and the guard that counts it as busy.
    pub(super) fn pick(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<(Arc<Endpoint>, LoadGuard)> {
        let balancer = self.balancer(&cluster.name, random);
        let candidates = balancer.candidates(assignment);
        let index = match cluster.lb_policy {
            LbPolicy::RoundRobin => candidates.rotation.next(),
            LbPolicy::LeastRequest { choice_count } => {
                least_request::pick(&candidates, choice_count, random)
            }
        };
        let host = candidates.hosts.get(index?)?;
        Some((Arc::clone(&host.endpoint), LoadGuard::new(&host.active)))
    }

    /// How much is in flight to an endpoint.
    pub fn active(&self, cluster: &ClusterName, endpoint: SocketAddr) -> u32 {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters.get(cluster).map_or(0, |balancer| balancer.active(endpoint))
    }

    /// Forgets clusters and endpoints that `snapshot` does not have. Call it with
    /// every new snapshot; what is in flight to them still ends as it should.
    pub fn retain(&self, snapshot: &Snapshot) {
        let mut clusters = self.clusters.write().unwrap_or_else(PoisonError::into_inner);
        clusters.retain(|name, balancer| {
            let cluster = snapshot.cluster(name);
            match cluster.and_then(|cluster| snapshot.assignment(cluster)) {
                Some(assignment) => {
                    balancer.candidates(&assignment);
                    balancer.forget_idle();
                    true
                }
                None => false,
            }
        });
    }

    fn balancer(
        &self,
        name: &ClusterName,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Arc<ClusterBalancer> {
        let known = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(balancer) = known.get(name) {
            return Arc::clone(balancer);
        }
        drop(known);
        // Agents that start together must not all begin with the same endpoint.
        let start = random(u32::MAX);
        let mut clusters = self.clusters.write().unwrap_or_else(PoisonError::into_inner);
        let balancer = clusters
            .entry(name.clone())
            .or_insert_with(|| Arc::new(ClusterBalancer { start, ..ClusterBalancer::default() }));
        Arc::clone(balancer)
    }
}

/// One cluster's.
#[derive(Debug, Default)]
struct ClusterBalancer {
    /// Where in its first rotation to begin.
    start: u32,
    candidates: ArcSwapOption<Candidates>,
    active: Mutex<HashMap<SocketAddr, Arc<AtomicU32>>>,
}

/// The endpoints of one load assignment that take traffic.
#[derive(Debug)]
struct Candidates {
    /// What these were made from; the same assignment is the same value.
    assignment: Arc<LoadAssignment>,
    hosts: Vec<Host>,
    /// The hosts' weights summed up to and including each.
    cumulative_weights: Vec<u64>,
    rotation: Arc<Rotation>,
}

#[derive(Debug)]
struct Host {
    endpoint: Arc<Endpoint>,
    active: Arc<AtomicU32>,
}

impl ClusterBalancer {
    fn candidates(&self, assignment: &Arc<LoadAssignment>) -> Arc<Candidates> {
        let old = self.candidates.load_full();
        if let Some(old) = &old
            && Arc::ptr_eq(&old.assignment, assignment)
        {
            return Arc::clone(old);
        }
        let new = Arc::new(self.prepare(assignment, old.as_deref()));
        self.candidates.store(Some(Arc::clone(&new)));
        new
    }

    fn prepare(&self, assignment: &Arc<LoadAssignment>, old: Option<&Candidates>) -> Candidates {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts: Vec<Host> = eligible(assignment)
            .map(|endpoint| Host {
                endpoint: Arc::clone(endpoint),
                active: Arc::clone(active.entry(endpoint.address).or_default()),
            })
            .collect();
        drop(active);
        let key = |host: &Host| (host.endpoint.address, host.endpoint.weight);
        let rotation = match old {
            // A new snapshot in which nothing changed here goes on where it was.
            Some(old) if old.hosts.iter().map(key).eq(hosts.iter().map(key)) => {
                Arc::clone(&old.rotation)
            }
            _ => {
                let weights = hosts.iter().map(|host| host.endpoint.weight);
                Arc::new(Rotation::new(weights, self.start))
            }
        };
        let cumulative_weights = hosts
            .iter()
            .scan(0, |sum, host| {
                *sum += u64::from(host.endpoint.weight.max(1));
                Some(*sum)
            })
            .collect();
        Candidates { assignment: Arc::clone(assignment), hosts, cumulative_weights, rotation }
    }

    fn active(&self, endpoint: SocketAddr) -> u32 {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.get(&endpoint).map_or(0, |active| active.load(Ordering::Relaxed))
    }

    /// Forgets the counters that neither a candidate nor a guard holds.
    fn forget_idle(&self) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.retain(|_, active| Arc::strong_count(active) > 1);
    }
}

/// The endpoints of an assignment that take traffic now.
pub fn eligible(assignment: &LoadAssignment) -> impl Iterator<Item = &Arc<Endpoint>> {
    let count = |health| assignment.endpoints.iter().filter(|e| e.health == health).count();
    let (healthy, degraded) = (count(Health::Healthy), count(Health::Degraded));
    let panic = (healthy + degraded) * 100 < assignment.endpoints.len() * PANIC_THRESHOLD_PERCENT;
    assignment.endpoints.iter().filter(move |endpoint| {
        panic
            || match endpoint.health {
                Health::Healthy => true,
                Health::Degraded => healthy == 0,
                Health::Unhealthy => false,
            }
    })
}

/// Counts one connection or request to an endpoint, from the choice until it is dropped.
#[derive(Debug, Default)]
pub struct LoadGuard(Option<Arc<AtomicU32>>);

impl LoadGuard {
    fn new(active: &Arc<AtomicU32>) -> Self {
        active.fetch_add(1, Ordering::Relaxed);
        Self(Some(Arc::clone(active)))
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if let Some(active) = &self.0 {
            active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A random number below `bound`, `None` for 0; from two draws where one is too small.
pub(super) fn random_below(bound: u64, random: &mut impl FnMut(u32) -> u32) -> Option<u64> {
    let last = bound.checked_sub(1)?;
    let drawn = match u32::try_from(bound) {
        Ok(bound) => u64::from(random(bound)),
        Err(_) => {
            let (high, low) = (u64::from(random(u32::MAX)), u64::from(random(u32::MAX)));
            (high << 32 | low) % bound
        }
    };
    Some(drawn.min(last))
}

#[cfg(test)]
mod tests;
