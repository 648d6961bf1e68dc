//! Who may be picked, made once per assignment.

use std::{
    collections::HashMap,
    iter,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    hashing::{self, Room, Table},
    hosts::{HostState, Hosts, Standing},
    layout::{self, Kind, layout},
    random_below,
    round_robin::Rotation,
    schedule::Schedule,
    subsets::{Asked, SubsetTable},
    zones::Senders,
};
use crate::{
    model::{
        cluster::{Balancing, Cluster, Endpoint, Health, LbPolicy, LoadAssignment, Place},
        runtime::Runtime,
        socket_match::Labels,
    },
    observe::metrics::EndpointStates,
};

/// When and by which values something is picked.
#[derive(Clone, Copy)]
pub(in crate::route) struct At<'a> {
    pub(in crate::route) now: Instant,
    pub(in crate::route) runtime: &'a Runtime,
}

/// The endpoints of one load assignment that take traffic.
#[derive(Debug)]
pub(super) struct Candidates {
    /// What these were made from; the same assignment is the same value.
    assignment: Arc<LoadAssignment>,
    balancing: Balancing,
    policy: LbPolicy,
    health_version: u64,
    /// Where traffic comes from, if that matters.
    senders: Option<Arc<Senders>>,
    /// Of the assignment's endpoints, whether they take traffic or not.
    all: Vec<Arc<HostState>>,
    whole: Pickable,
    subsets: Option<SubsetTable>,
}

/// Endpoints that one is picked from: of the whole assignment, or of a subset.
#[derive(Debug)]
pub(super) struct Pickable {
    parts: Vec<Part>,
}

/// What takes `percent` of the traffic.
#[derive(Debug)]
struct Part {
    priority: u32,
    kind: Kind,
    percent: u32,
    sets: Vec<HostSet>,
    /// Of the sets.
    weights: Vec<u32>,
    rotation: Arc<Rotation>,
    /// Where the policy goes by hash, and there was room.
    table: Option<Arc<Table>>,
}

/// Endpoints among which the cluster's policy chooses.
#[derive(Debug)]
pub(super) struct HostSet {
    place: Option<Place>,
    pub(super) hosts: Vec<Host>,
    pub(super) rotation: Arc<Rotation>,
    /// Where weights change with time or load.
    schedule: Option<Arc<Schedule>>,
    by_load: bool,
    /// Whether that goes by load, all the time.
    uneven: bool,
    /// When its last host is as good as any other.
    slow_until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Host {
    /// Of one that is well.
    pub(super) well_since: Option<Instant>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) state: Arc<HostState>,
}

impl Candidates {
    /// Of `assignment`; what nothing changed in since `old` goes on where it was, the
    /// rest begins at `start`. Tables that there are not yet are made by
    /// [`Candidates::make_tables`].
    pub(super) fn new(
        (cluster, assignment, health_version): (&Cluster, &Arc<LoadAssignment>, u64),
        senders: Option<&Arc<Senders>>,
        hosts: &mut Hosts,
        old: Option<&Self>,
        start: u32,
        now: Instant,
    ) -> Self {
        let balancing = &cluster.balancing;
        let checks = cluster.monitoring.health_check.is_some();
        let all: Vec<_> = assignment
            .endpoints()
            .map(|endpoint| {
                let new = !hosts.contains_key(&endpoint.address);
                let state = hosts.entry(endpoint.address).or_default();
                let disabled = endpoint.check.as_ref().is_some_and(|check| check.disabled);
                state.checked.set(checks && !disabled, new);
                Arc::clone(state)
            })
            .collect();
        let hosts = &*hosts;
        let ignore_new = balancing.ignore_new_hosts;
        let standing = |endpoint: &Endpoint| match hosts.get(&endpoint.address) {
            Some(state) => state.standing(endpoint, ignore_new),
            None => Standing::configured(endpoint),
        };
        let same_policy = old.is_some_and(|old| old.policy == cluster.lb_policy);
        let from = senders.map(|senders| &**senders);
        let standing = &standing;
        let mut shown = Shown { hosts, standing, cluster, senders: from, start, now, same_policy };
        let mut make = |part: &LoadAssignment, old: Option<&Pickable>| shown.pickable(part, old);
        let whole = make(assignment, old.map(|old| &old.whole));
        let subsets = balancing.subsets.as_ref().map(|config| {
            let old = old.and_then(|old| old.subsets.as_ref());
            SubsetTable::new(config, assignment, old, make)
        });
        let (assignment, policy) = (Arc::clone(assignment), cluster.lb_policy);
        let balancing = balancing.clone();
        let senders = senders.map(Arc::clone);
        Self { assignment, balancing, policy, health_version, senders, all, whole, subsets }
    }

    /// Makes what is missing of tables, which may take seconds; says whether there was room
    /// for all that is asked for.
    pub(super) fn make_tables(&mut self, cluster: &Cluster) -> bool {
        if !cluster.lb_policy.is_by_hash() {
            return true;
        }
        let mut room = Room::new(cluster.table_space.as_deref());
        let subsets = self.subsets.iter_mut().flat_map(SubsetTable::pickables);
        let mut parts: Vec<_> =
            iter::once(&mut self.whole).chain(subsets).flat_map(|of| &mut of.parts).collect();
        parts.iter().filter_map(|part| part.table.as_ref()).for_each(|table| room.keep(table));
        for part in parts.iter_mut().filter(|part| part.table.is_none()) {
            let table = Table::new(cluster.lb_policy, &part.sets, &part.weights, &mut room);
            part.table = table.map(Arc::new);
        }
        !room.short
    }

    /// Has those asked, one after the other, who may take what asks for these labels, until
    /// one does.
    pub(super) fn asked<'a>(
        &'a self,
        cluster: &Cluster,
        labels: Option<&Labels>,
        ask: &mut impl FnMut(&'a Pickable) -> bool,
    ) {
        let (Some(subsets), Some(config)) = (&self.subsets, &cluster.balancing.subsets) else {
            ask(&self.whole);
            return;
        };
        let asked = subsets.asked(config, &self.whole, labels);
        for pickable in asked.into_iter().flat_map(|Asked(asked)| asked).flatten() {
            if ask(pickable) {
                return;
            }
        }
    }

    /// The endpoint of that address, unless it is not well.
    pub(super) fn at(&self, address: SocketAddr) -> Option<(&Arc<Endpoint>, &Arc<HostState>)> {
        let mut all = self.assignment.endpoints().zip(&self.all);
        let found = all.find(|(endpoint, _)| endpoint.address == address)?;
        let (endpoint, state) = found;
        (state.standing(endpoint, false).health != Health::Unhealthy).then_some(found)
    }

    /// How all endpoints are, whether they take traffic or not.
    pub(super) fn states(&self) -> EndpointStates {
        let mut states = EndpointStates::default();
        for (endpoint, state) in self.assignment.endpoints().zip(&self.all) {
            match state.standing(endpoint, false).health {
                Health::Healthy => states.healthy += 1,
                Health::Degraded => states.degraded += 1,
                Health::Unhealthy => states.unhealthy += 1,
            }
            states.ejected += u64::from(state.outlier.is_ejected());
        }
        states
    }

    /// Whether a priority's traffic goes to all of its endpoints.
    pub(super) fn in_panic(&self, hosts: &Hosts) -> bool {
        let ignore_new = self.balancing.ignore_new_hosts;
        layout::panics(&self.assignment, &self.balancing, &|endpoint| match hosts
            .get(&endpoint.address)
        {
            Some(state) => state.standing(endpoint, ignore_new),
            None => Standing::configured(endpoint),
        })
    }

    /// The state of every endpoint of the assignment.
    pub(super) fn all(&self) -> &[Arc<HostState>] {
        &self.all
    }

    /// Whether they would be made the same again.
    pub(super) fn are_of(
        &self,
        cluster: &Cluster,
        assignment: &Arc<LoadAssignment>,
        senders: Option<&Arc<Senders>>,
        health_version: u64,
    ) -> bool {
        let same_senders = match (&self.senders, senders) {
            (Some(of), Some(senders)) => Arc::ptr_eq(of, senders),
            (of, senders) => of.is_none() && senders.is_none(),
        };
        self.health_version == health_version && same_senders && self.are_for(cluster, assignment)
    }

    /// Whether they are of this configuration, whatever has become of anybody's health.
    pub(super) fn are_for(&self, cluster: &Cluster, assignment: &Arc<LoadAssignment>) -> bool {
        Arc::ptr_eq(&self.assignment, assignment)
            && self.balancing == cluster.balancing
            && self.policy == cluster.lb_policy
    }

    /// Whether they go by hash.
    pub(super) fn are_by_hash(&self) -> bool {
        self.policy.is_by_hash()
    }
}

impl Pickable {
    /// Whose share of the traffic a number below 100 is in.
    fn part(&self, mut drawn: u32) -> Option<&Part> {
        self.parts.iter().find(|part| match drawn.checked_sub(part.percent) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        })
    }

    /// The host of a hash; at another `attempt`, another one.
    pub(super) fn by_hash(&self, hash: u64, attempt: u32) -> Option<&Host> {
        let part = self.part(u32::try_from(hash % 100).ok()?)?;
        let (set, host) = match &part.table {
            Some(table) => table.pick(hash, attempt)?,
            None => hashing::pick_without_table(&part.sets, &part.weights, hash, attempt)?,
        };
        part.sets.get(set)?.hosts.get(host)
    }

    /// By priority and health, then by locality.
    pub(super) fn host_set(&self, random: &mut impl FnMut(u32) -> u32) -> Option<&HostSet> {
        let part = match &self.parts[..] {
            [only] => only,
            _ => self.part(u32::try_from(random_below(100, random)?).ok()?)?,
        };
        match &part.sets[..] {
            [only] => Some(only),
            sets => sets.get(part.rotation.next()?),
        }
    }
}

/// What candidates are made of.
struct Shown<'a> {
    hosts: &'a Hosts,
    standing: &'a dyn Fn(&Endpoint) -> Standing,
    cluster: &'a Cluster,
    senders: Option<&'a Senders>,
    start: u32,
    now: Instant,
    /// As before.
    same_policy: bool,
}

impl Shown<'_> {
    /// Of some of the endpoints; what nothing changed in since `old` goes on where it was.
    fn pickable(&mut self, assignment: &LoadAssignment, old: Option<&Pickable>) -> Pickable {
        let Self { hosts, standing, cluster, senders, start, now, same_policy } = *self;
        let mut balancing = cluster.balancing.clone();
        if let Some(subsets) = &balancing.subsets {
            balancing.locality_weighted &= subsets.locality_weight_aware;
        }
        let parts = layout(assignment, &balancing, senders, standing).into_iter().map(|part| {
            let before = old.and_then(|old| {
                let same = |old: &&Part| (old.priority, old.kind) == (part.priority, part.kind);
                old.parts.iter().find(same)
            });
            let weights: Vec<_> = part.groups.iter().map(|group| group.weight).collect();
            let mut known: HashMap<_, _> = before
                .into_iter()
                .flat_map(|part| &part.sets)
                .map(|set| (set.place.as_ref(), set))
                .collect();
            let sets = part.groups.into_iter().map(|group| {
                let hosts = group.endpoints.into_iter().map(|endpoint| {
                    let state = hosts.get(&endpoint.address).map(Arc::clone).unwrap_or_default();
                    let well = standing(endpoint).health == Health::Healthy;
                    let well_since = well.then(|| state.well_since(now));
                    Host { well_since, endpoint: Arc::clone(endpoint), state }
                });
                let old = known.remove(&group.place);
                HostSet::new(group.place, hosts.collect(), old, start, cluster)
            });
            let sets: Vec<_> = sets.collect();
            let rotation = match before {
                Some(old) if old.weights == weights => Arc::clone(&old.rotation),
                _ => Arc::new(Rotation::new(weights.iter().copied(), start)),
            };
            let (priority, kind, percent) = (part.priority, part.kind, part.percent);
            // The same hosts, weights and policy make the same table.
            let table = before.filter(|old| {
                let of_sets = old.sets.iter().map(|set| &set.rotation);
                same_policy
                    && Arc::ptr_eq(&old.rotation, &rotation)
                    && old.sets.len() == sets.len()
                    && of_sets.zip(&sets).all(|(old, set)| Arc::ptr_eq(old, &set.rotation))
            });
            let table = table.and_then(|old| old.table.clone());
            Part { priority, kind, percent, sets, weights, rotation, table }
        });
        Pickable { parts: parts.collect() }
    }
}

impl HostSet {
    fn new(
        place: Option<&Place>,
        hosts: Vec<Host>,
        old: Option<&Self>,
        start: u32,
        cluster: &Cluster,
    ) -> Self {
        let key = |host: &Host| (host.endpoint.address, host.endpoint.weight);
        // A new snapshot in which nothing changed here goes on where it was.
        let old = old.filter(|old| old.hosts.iter().map(key).eq(hosts.iter().map(key)));
        let rotation = match old {
            Some(old) => Arc::clone(&old.rotation),
            None => Arc::new(Rotation::new(hosts.iter().map(|host| host.endpoint.weight), start)),
        };
        let by_load = cluster.lb_policy.is_by_load();
        let slow_start = match cluster.lb_policy {
            LbPolicy::RoundRobin => cluster.balancing.slow_start.as_ref(),
            _ if by_load => cluster.balancing.slow_start.as_ref(),
            _ => None,
        };
        let even = hosts.windows(2).all(|w| w[0].endpoint.weight == w[1].endpoint.weight);
        let uneven = by_load && !even;
        let schedule = (uneven || slow_start.is_some()).then(|| {
            let known = old.and_then(|old| old.schedule.as_ref());
            known.map(Arc::clone).unwrap_or_else(|| {
                let weights: Vec<_> =
                    hosts.iter().map(|host| f64::from(host.endpoint.weight)).collect();
                Arc::new(Schedule::new(&weights, start))
            })
        });
        let last = hosts.iter().filter_map(|host| host.well_since).max();
        let slow_until =
            slow_start.and_then(|slow| last.and_then(|last| last.checked_add(slow.window)));
        let place = place.cloned();
        Self { place, hosts, rotation, schedule, by_load, uneven, slow_until }
    }

    /// Whose turn it is, where that goes by weights that change.
    pub(super) fn scheduled(&self, balancing: &Balancing, at: At<'_>) -> Option<usize> {
        let slow = self.slow_until.is_some_and(|until| at.now <= until);
        if !self.uneven && !slow {
            return None;
        }
        let slow_start = balancing.slow_start.as_ref().filter(|_| slow);
        self.schedule.as_ref()?.next(|index| {
            let Some(host) = self.hosts.get(index) else { return 1.0 };
            let mut weight = f64::from(host.endpoint.weight);
            if let Some(bias) = self.by_load.then(|| bias(balancing, at.runtime)) {
                let active = host.state.active.load(Ordering::Relaxed);
                weight /= (f64::from(active) + 1.0).powf(bias);
            }
            match (slow_start, host.well_since) {
                (Some(slow_start), Some(since)) => {
                    let well_for = at.now.saturating_duration_since(since);
                    let aggression = at.runtime.double(&slow_start.aggression);
                    weight * slow_start.factor(well_for, aggression)
                }
                _ => weight,
            }
        })
    }
}

/// How much what is in flight counts.
fn bias(balancing: &Balancing, runtime: &Runtime) -> f64 {
    let bias = balancing.active_request_bias.as_ref().map_or(1.0, |bias| runtime.double(bias));
    // As Envoy.
    if bias >= 0.0 { bias } else { 1.0 }
}
