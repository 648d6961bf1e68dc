//! Load balancing: one endpoint of a cluster, by its policy.
//!
//! [`Balancers`] holds what outlives a snapshot: the position in each cluster's
//! rotation and how much is in flight to each endpoint. Picking takes a read lock on
//! the table of clusters, and for weighted round robin a short mutex; no lock is
//! held afterwards.
//!
//! Which endpoints take traffic is worked out once per assignment, as Envoy does:
//! [`priority`] says which priority takes how much, [`layout`] which endpoints that means.

mod candidates;
mod hashing;
mod layout;
mod least_request;
mod priority;
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

use self::candidates::{Active, Candidates, Host};
pub use self::{hashing::xx_hash, layout::shares};
use crate::{
    model::cluster::{Cluster, ClusterName, DropOverload, Endpoint, LbPolicy, LoadAssignment},
    snapshot::Snapshot,
};

/// What a connection or request asks of the endpoint that is chosen for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice<'a> {
    /// Rather not these.
    pub avoid: &'a [SocketAddr],
    /// How often another is asked for in place of one to avoid.
    pub reselections: u32,
    /// Who it goes to, where the policy goes by that; without it, at random.
    pub hash: Option<u64>,
}

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
        choice: Choice<'_>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<(Arc<Endpoint>, LoadGuard)> {
        let balancer = self.balancer(&cluster.name, random);
        let candidates = balancer.candidates(cluster, assignment);
        let mut picked = None;
        // As Envoy: if all choices are to be avoided, the last one stands.
        let by_hash = cluster.lb_policy.is_by_hash();
        let hash = by_hash.then(|| choice.hash.unwrap_or_else(|| random_hash(random)));
        for attempt in 0..=choice.reselections {
            let host = match hash {
                Some(hash) => candidates.by_hash(hash, attempt)?,
                None => Self::pick_once(cluster, &candidates, random)?,
            };
            let avoided = choice.avoid.contains(&host.endpoint.address);
            picked = Some(host);
            if !avoided {
                break;
            }
        }
        let host = picked?;
        Some((Arc::clone(&host.endpoint), LoadGuard::new(&host.active)))
    }

    fn pick_once<'a>(
        cluster: &Cluster,
        candidates: &'a Candidates,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<&'a Host> {
        let set = candidates.host_set(random)?;
        let index = match cluster.lb_policy {
            LbPolicy::RoundRobin => set.rotation.next(),
            LbPolicy::LeastRequest { choice_count } => {
                least_request::pick(set, choice_count, random)
            }
            LbPolicy::Random => random_below(set.hosts.len() as u64, random)
                .and_then(|index| usize::try_from(index).ok()),
            // By their table.
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => None,
        };
        set.hosts.get(index?)
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
            match cluster.and_then(|cluster| Some((cluster, snapshot.assignment(cluster)?))) {
                Some((cluster, assignment)) => {
                    balancer.candidates(cluster, &assignment);
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
    active: Mutex<Active>,
}

impl ClusterBalancer {
    fn candidates(&self, cluster: &Cluster, assignment: &Arc<LoadAssignment>) -> Arc<Candidates> {
        let old = self.candidates.load_full();
        if let Some(old) = &old
            && old.are_of(cluster, assignment)
        {
            return Arc::clone(old);
        }
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Candidates::new(cluster, assignment, &mut active, old.as_deref(), self.start);
        drop(active);
        let new = Arc::new(new);
        self.candidates.store(Some(Arc::clone(&new)));
        new
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

/// Which of an assignment's `drop_overloads` drops this connection or request, if one does.
pub(super) fn dropped<'a>(
    assignment: &'a LoadAssignment,
    random: &mut impl FnMut(u32) -> u32,
) -> Option<&'a DropOverload> {
    assignment.drop_overloads.iter().find(|drop| {
        drop.is_unconditional()
            || drop.per_million > 0 && random(DropOverload::ALL) < drop.per_million
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

fn random_hash(random: &mut impl FnMut(u32) -> u32) -> u64 {
    u64::from(random(u32::MAX)) << 32 | u64::from(random(u32::MAX))
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
