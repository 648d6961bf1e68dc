//! Load balancing: one endpoint of a cluster, by its policy.
//!
//! [`Balancers`] holds what outlives a snapshot: the position in each cluster's
//! rotation, how much is in flight to each endpoint, and how it has done. Picking takes no
//! lock but, for weighted round robin, a short mutex.
//!
//! Which endpoints take traffic is worked out once per assignment and change of anybody's
//! health, as Envoy does:
//! [`priority`] says which priority takes how much, [`layout`] which endpoints that means.

mod balancer;
mod candidates;
mod hashing;
mod health;
mod hosts;
mod layout;
mod least_request;
mod outlier;
mod priority;
mod round_robin;
mod schedule;
mod subsets;
mod surroundings;
mod zones;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

pub(super) use self::candidates::At;
use self::{
    balancer::{Behind, ClusterBalancer},
    candidates::{Host, Pickable},
    surroundings::Surroundings,
};
pub use self::{
    balancer::{LoadGuard, Reporter},
    hashing::xx_hash,
    health::{CheckResult, below},
    layout::shares,
    outlier::Outcome,
    zones::Around,
};
use crate::{
    model::{
        cluster::{
            Cluster, ClusterName, DropOverload, Endpoint, HealthCheck, LbPolicy, LoadAssignment,
        },
        socket_match::Labels,
    },
    observe::metrics::EndpointStates,
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
    /// The labels of those it may go to, where the cluster has subsets.
    pub subset: Option<&'a Labels>,
    /// This one before all others, whatever policy and subsets say.
    pub wanted: Option<WantedHost>,
}

/// An endpoint that is asked for by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedHost {
    /// `None`: no endpoint has it.
    pub address: Option<SocketAddr>,
    /// No other will do.
    pub strict: bool,
}

/// The state of every cluster's load balancer. One per agent, shared by all.
#[derive(Debug, Default)]
pub struct Balancers {
    clusters: ArcSwap<Table>,
    /// Who changes the table.
    writing: Mutex<()>,
    /// Who makes tables of hashes: one at a time, so that there is never more than one that
    /// is not in force yet beside one that is. No request waits for it.
    making: Mutex<()>,
    surroundings: Surroundings,
    behind: Option<Behind>,
}

/// A cluster whose tables of hashes are to be made.
pub type Due = (Arc<Cluster>, Arc<LoadAssignment>);

type Table = HashMap<ClusterName, Arc<ClusterBalancer>>;

impl Balancers {
    /// `behind` is called when tables of hashes are to be made anew, by
    /// [`Balancers::refresh`]: those of before serve until then.
    pub fn new(behind: impl Fn() + Send + Sync + 'static) -> Self {
        Self { behind: Some(Behind(Arc::new(behind))), ..Self::default() }
    }

    /// The clusters whose tables of hashes are not as `snapshot` wants them.
    pub fn due(&self, snapshot: &Snapshot) -> Vec<Due> {
        let known = self.clusters.load();
        let by_hash = snapshot.clusters.values().filter(|cluster| cluster.lb_policy.is_by_hash());
        let due = by_hash.filter_map(|cluster| {
            let assignment = snapshot.assignment(cluster)?;
            let is_known = known.get(&cluster.name);
            let behind = is_known.is_none_or(|of| of.is_behind(cluster, &assignment));
            behind.then(|| (Arc::clone(cluster), assignment))
        });
        due.collect()
    }

    /// Makes the tables of what is about to be in force. May take seconds.
    pub fn prepare(&self, due: &[Due], random: &mut impl FnMut(u32) -> u32) {
        self.each_due(due, random, ClusterBalancer::prepare);
    }

    /// Makes the tables of what is in force, and has requests go by them. May take seconds.
    pub fn refresh(&self, due: &[Due], random: &mut impl FnMut(u32) -> u32) {
        self.each_due(due, random, ClusterBalancer::refresh);
    }

    fn each_due(
        &self,
        due: &[Due],
        random: &mut impl FnMut(u32) -> u32,
        make: fn(&ClusterBalancer, &Cluster, &Arc<LoadAssignment>),
    ) {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        self.enter(due.iter().map(|(cluster, _)| &cluster.name), random);
        let known = self.clusters.load_full();
        for (cluster, assignment) in due {
            if let Some(balancer) = known.get(&cluster.name) {
                make(balancer, cluster, assignment);
            }
        }
        drop(making);
    }

    /// Finds out where traffic comes from, for zone-aware routing. Call it with every new
    /// snapshot, before that is in force.
    pub fn look_around(&self, snapshot: &Snapshot, random: &mut impl FnMut(u32) -> u32) {
        self.surroundings.look(snapshot, |name| self.balancer(name, random));
    }

    /// An endpoint of `cluster`, and the guard that counts it as busy.
    pub(super) fn pick(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        choice: Choice<'_>,
        at: At<'_>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<(Arc<Endpoint>, LoadGuard)> {
        let balancer = self.balancer(&cluster.name, random);
        balancer.used();
        let candidates = balancer.candidates(
            cluster,
            assignment,
            self.surroundings.senders(at.now).as_ref(),
            at.now,
        );
        if let Some(wanted) = choice.wanted {
            let found = wanted.address.and_then(|address| candidates.at(address));
            match found {
                Some((endpoint, state)) => {
                    let load = LoadGuard::new(state, balancer, cluster);
                    return Some((Arc::clone(endpoint), load));
                }
                None if wanted.strict => return None,
                None => {}
            }
        }
        let mut chosen = None;
        let mut ask = |pickable| {
            chosen = Self::choose(cluster, pickable, choice, at, random);
            chosen.is_some()
        };
        candidates.asked(cluster, choice.subset, &mut ask);
        let host = chosen?;
        let load = LoadGuard::new(&host.state, balancer, cluster);
        Some((Arc::clone(&host.endpoint), load))
    }

    fn choose<'a>(
        cluster: &Cluster,
        pickable: &'a Pickable,
        choice: Choice<'_>,
        at: At<'_>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<&'a Host> {
        let mut picked = None;
        // As Envoy: if all choices are to be avoided, the last one stands.
        let by_hash = cluster.lb_policy.is_by_hash();
        let hash = by_hash.then(|| choice.hash.unwrap_or_else(|| random_hash(random)));
        for attempt in 0..=choice.reselections {
            let host = match hash {
                Some(hash) => pickable.by_hash(hash, attempt)?,
                None => Self::pick_once(cluster, pickable, at, random)?,
            };
            let avoided = choice.avoid.contains(&host.endpoint.address);
            picked = Some(host);
            if !avoided {
                break;
            }
        }
        picked
    }

    fn pick_once<'a>(
        cluster: &Cluster,
        pickable: &'a Pickable,
        at: At<'_>,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<&'a Host> {
        let set = pickable.host_set(random)?;
        if let Some(index) = set.scheduled(&cluster.balancing, at) {
            return set.hosts.get(index);
        }
        let index = match cluster.lb_policy {
            LbPolicy::RoundRobin => set.rotation.next(),
            LbPolicy::LeastRequestFullScan => least_request::scan(set, random),
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
        self.clusters.load().get(cluster).map_or(0, |balancer| balancer.active(endpoint))
    }

    /// How the endpoints are of clusters that have had traffic or are monitored.
    pub fn states(&self) -> Vec<(ClusterName, EndpointStates)> {
        let clusters = self.clusters.load();
        let states = clusters.iter();
        states.filter_map(|(name, balancer)| Some((name.clone(), balancer.states()?))).collect()
    }

    /// Forgets clusters and endpoints that `snapshot` does not have. Call it with
    /// every new snapshot; what is in flight to them still ends as it should.
    pub fn retain(&self, snapshot: &Snapshot) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut clusters) = (Instant::now(), Table::clone(&self.clusters.load()));
        let senders = self.surroundings.senders(now);
        clusters.retain(|name, balancer| {
            let cluster = snapshot.cluster(name);
            match cluster.and_then(|cluster| Some((cluster, snapshot.assignment(cluster)?))) {
                Some((cluster, assignment)) => {
                    balancer.candidates(cluster, &assignment, senders.as_ref(), now);
                    balancer.forget_idle();
                    true
                }
                None => false,
            }
        });
        self.clusters.store(Arc::new(clusters));
        drop(writing);
    }

    /// Begins to monitor what `snapshot` wants monitored. Call it with every new snapshot,
    /// before [`Balancers::sweep`].
    pub fn monitor(&self, snapshot: &Snapshot, random: &mut impl FnMut(u32) -> u32, now: Instant) {
        let known = self.clusters.load_full();
        let senders = self.surroundings.senders(now);
        for cluster in snapshot.clusters.values() {
            let Some(assignment) = snapshot.assignment(cluster) else { continue };
            let balancer = match known.get(&cluster.name) {
                Some(balancer) => Arc::clone(balancer),
                None if !cluster.monitoring.is_on() => continue,
                None => self.balancer(&cluster.name, random),
            };
            balancer.configure(cluster, &assignment, senders.as_ref(), now);
        }
        // The local cluster's endpoints may be monitored by now.
        self.look_around(snapshot, random);
    }

    /// Takes note of how a health check went, and says how long until the next one; `None`:
    /// there is no such endpoint to be checked any more.
    pub fn checked(
        &self,
        (cluster, endpoint): (&ClusterName, SocketAddr),
        check: &HealthCheck,
        result: CheckResult,
        now: Instant,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Option<Duration> {
        let balancer = Arc::clone(self.clusters.load().get(cluster)?);
        balancer.checked(endpoint, check, result, now, random)
    }

    /// Whether an endpoint has failed its health checks.
    pub fn has_failed(&self, cluster: &ClusterName, endpoint: SocketAddr) -> bool {
        self.clusters.load().get(cluster).is_some_and(|balancer| balancer.has_failed(endpoint))
    }

    /// Does for every cluster what is due, and says when there is more to do.
    pub fn sweep(&self, now: Instant, random: &mut impl FnMut(u32) -> u32) -> Option<Instant> {
        let clusters = self.clusters.load_full();
        clusters.values().filter_map(|balancer| balancer.sweep(now, random)).min()
    }

    fn balancer(
        &self,
        name: &ClusterName,
        random: &mut impl FnMut(u32) -> u32,
    ) -> Arc<ClusterBalancer> {
        if let Some(balancer) = self.clusters.load().get(name) {
            return Arc::clone(balancer);
        }
        self.enter([name], random);
        // Unless it was forgotten at once.
        let known = self.clusters.load();
        known.get(name).map(Arc::clone).unwrap_or_default()
    }

    /// Makes balancers of those that have none.
    fn enter<'a>(
        &self,
        names: impl IntoIterator<Item = &'a ClusterName>,
        random: &mut impl FnMut(u32) -> u32,
    ) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.clusters.load_full();
        let mut names = names.into_iter().filter(|name| !known.contains_key(*name)).peekable();
        if names.peek().is_some() {
            let mut clusters = Table::clone(&known);
            for name in names {
                // Agents that start together must not all begin with the same endpoint.
                let balancer = ClusterBalancer::new(random(u32::MAX), self.behind.clone());
                clusters.insert(name.clone(), Arc::new(balancer));
            }
            self.clusters.store(Arc::new(clusters));
        }
        drop(writing);
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
