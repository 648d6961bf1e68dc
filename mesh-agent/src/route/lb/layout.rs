//! An assignment's endpoints, put together by who takes which share of the traffic.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    hosts::Standing,
    priority::{Count, Level, Share, distribute},
    zones::{self, Around, Senders, Split},
};
use crate::model::cluster::{
    Balancing, Cluster, Discovery, Endpoint, Health, LbPolicy, LoadAssignment, Locality, Place,
};

/// Locality weights are compared as whole numbers up to this.
const WEIGHT_MAX: u128 = 1 << 30;

/// The sum of weights that the kernel is told, where priorities or localities share.
const KERNEL_TOTAL: u128 = 1_000_000_000;

/// Which endpoints of a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Healthy,
    Degraded,
    /// In panic.
    All,
}

/// What takes one share of the traffic.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) priority: u32,
    pub(super) kind: Kind,
    /// The shares of all parts add up to 100.
    pub(super) percent: u32,
    /// One, unless localities share by weight or by zone; none, and its share is refused, where
    /// nobody may take it.
    pub(super) groups: Vec<Group<'a>>,
}

/// Endpoints among which the cluster's policy chooses.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// `None` for all localities together.
    pub(super) place: Option<&'a Place>,
    /// Relative to its part's others.
    pub(super) weight: u32,
    /// Without any its share is refused.
    pub(super) endpoints: Vec<&'a Arc<Endpoint>>,
}

/// Says how an endpoint is.
type StandingOf<'h> = &'h dyn Fn(&Endpoint) -> Standing;

/// Who takes which share, the highest priority first.
pub(super) fn layout<'a>(
    assignment: &'a LoadAssignment,
    balancing: &Balancing,
    senders: Option<&Senders>,
    standing: StandingOf<'_>,
) -> Vec<Part<'a>> {
    let factor = assignment.overprovisioning_factor;
    let mut parts = Vec::new();
    for (priority, localities, Share { healthy, degraded, panic }) in
        priorities(assignment, balancing, standing)
    {
        let healthy_kind = if panic { Kind::All } else { Kind::Healthy };
        // In panic both shares go to the same endpoints.
        let taken = match panic {
            true => [(Kind::All, healthy + degraded), (Kind::Degraded, 0)],
            false => [(healthy_kind, healthy), (Kind::Degraded, degraded)],
        };
        for (kind, percent) in taken.into_iter().filter(|(_, percent)| *percent > 0) {
            let groups = match kind {
                Kind::All if balancing.fail_traffic_on_panic => Vec::new(),
                _ => {
                    // Zones count at the highest priority only.
                    let senders = senders.filter(|_| priority == 0);
                    groups(&localities, kind, factor, (balancing, senders), standing)
                }
            };
            parts.push(Part { priority, kind, percent, groups });
        }
    }
    parts
}

/// Whether a priority is in panic.
pub(super) fn panics(
    assignment: &LoadAssignment,
    balancing: &Balancing,
    standing: StandingOf<'_>,
) -> bool {
    priorities(assignment, balancing, standing).any(|(.., share)| share.panic)
}

/// Each priority with its localities and its share, the highest first.
fn priorities<'a>(
    assignment: &'a LoadAssignment,
    balancing: &Balancing,
    standing: StandingOf<'_>,
) -> impl Iterator<Item = (u32, Vec<&'a Locality>, Share)> {
    let mut priorities: BTreeMap<u32, Vec<&Locality>> = BTreeMap::new();
    for locality in &assignment.localities {
        priorities.entry(locality.priority).or_default().push(locality);
    }
    let weighted = assignment.weighted_priority_health;
    let levels: Vec<_> =
        priorities.values().map(|localities| level(localities, weighted, standing)).collect();
    let factor = assignment.overprovisioning_factor;
    let shares = distribute(&levels, factor, balancing.panic_threshold);
    let priorities = priorities.into_iter().zip(shares);
    priorities.map(|((priority, localities), share)| (priority, localities, share))
}

fn level(localities: &[&Locality], weighted: bool, standing: StandingOf<'_>) -> Level {
    let mut level = Level::default();
    for endpoint in localities.iter().flat_map(|locality| &locality.endpoints) {
        let Standing { health, counts: true } = standing(endpoint) else { continue };
        let add = |count: &mut Count, by: u64| {
            count.total += by;
            match health {
                Health::Healthy => count.healthy += by,
                Health::Degraded => count.degraded += by,
                Health::Unhealthy => {}
            }
        };
        add(&mut level.endpoints, 1);
        add(&mut level.health, if weighted { u64::from(endpoint.weight) } else { 1 });
    }
    level
}

fn is_of(kind: Kind, health: Health) -> bool {
    match kind {
        Kind::Healthy => health == Health::Healthy,
        Kind::Degraded => health == Health::Degraded,
        Kind::All => true,
    }
}

fn groups<'a>(
    localities: &[&'a Locality],
    kind: Kind,
    factor: u32,
    (balancing, senders): (&Balancing, Option<&Senders>),
    standing: StandingOf<'_>,
) -> Vec<Group<'a>> {
    let of = |locality: &&'a Locality| -> Vec<&'a Arc<Endpoint>> {
        locality
            .endpoints
            .iter()
            .filter(|endpoint| is_of(kind, standing(endpoint).health))
            .collect()
    };
    if balancing.locality_weighted && kind != Kind::All {
        let mut groups: Vec<_> = localities
            .iter()
            .map(|locality| (locality, of(locality)))
            .map(|(locality, endpoints)| {
                (locality, effective(locality, &endpoints, factor, standing), endpoints)
            })
            .filter(|(_, weight, _)| *weight > 0)
            .collect();
        if !groups.is_empty() {
            let groups = groups
                .drain(..)
                .map(|(locality, weight, endpoints)| (Some(&locality.place), weight, endpoints));
            return scaled(groups.collect());
        }
        // No locality has a weight: as without.
    }
    let endpoints: Vec<_> = localities.iter().flat_map(of).collect();
    let inhabited: Vec<_> =
        localities.iter().copied().filter(|of| !of.endpoints.is_empty()).collect();
    let split =
        senders.and_then(|senders| zones::split(senders, balancing, &inhabited, kind, standing));
    if let Some(Split { anywhere, nowhere, places }) = split {
        let mut groups = vec![(None, anywhere, endpoints), (None, nowhere, Vec::new())];
        let places = inhabited.iter().zip(places);
        groups
            .extend(places.map(|(locality, weight)| (Some(&locality.place), weight, of(locality))));
        groups.retain(|(_, weight, _)| *weight > 0);
        return scaled(groups);
    }
    if endpoints.is_empty() {
        return Vec::new();
    }
    vec![Group { place: None, weight: 1, endpoints }]
}

/// What is to be a [`Group`].
type Weighed<'a> = (Option<&'a Place>, u128, Vec<&'a Arc<Endpoint>>);

/// Groups by weights that may be large.
fn scaled(groups: Vec<Weighed<'_>>) -> Vec<Group<'_>> {
    let largest = groups.iter().map(|(_, weight, _)| *weight).max().unwrap_or(1).max(1);
    let group = |(place, weight, endpoints): (_, u128, _)| {
        let weight = (weight * WEIGHT_MAX / largest).max(1);
        Group { place, weight: u32::try_from(weight).unwrap_or(u32::MAX), endpoints }
    };
    groups.into_iter().map(group).collect()
}

/// A locality's weight, less where fewer of its endpoints are available than it was
/// given more of.
///
/// Spec: Envoy, "Locality weighted load balancing".
fn effective(
    locality: &Locality,
    available: &[&Arc<Endpoint>],
    factor: u32,
    standing: StandingOf<'_>,
) -> u128 {
    let counted = locality.endpoints.iter().filter(|endpoint| standing(endpoint).counts);
    let all = 100 * counted.count() as u128;
    let borne = (u128::from(factor) * available.len() as u128).min(all);
    ((u128::from(locality.weight) * borne) << 32).checked_div(all).unwrap_or(0)
}

/// The endpoints that take traffic and how much, relative to each other, for who picks
/// by weight alone. `None`: by weight alone it can't be said, or nobody takes it.
pub fn shares(
    cluster: &Cluster,
    assignment: &LoadAssignment,
    around: &Around,
) -> Option<Vec<(Arc<Endpoint>, u32)>> {
    if cluster.lb_policy.is_by_hash()
        || cluster.monitoring.is_on()
        || matches!(cluster.discovery, Discovery::Dns(_))
        || cluster.balancing.slow_start.is_some()
        || cluster.balancing.subsets.is_some()
        || !assignment.drop_overloads.is_empty()
        || assignment.stale_at.is_some()
    {
        return None;
    }
    let senders = around.senders_to(assignment)?;
    let parts = layout(assignment, &cluster.balancing, senders, &Standing::configured);
    let weight = |endpoint: &Endpoint| match cluster.lb_policy {
        LbPolicy::Random => 1,
        _ => endpoint.weight.max(1),
    };
    let alone = matches!(&parts[..], [part] if part.groups.len() == 1);
    let mut shares = Vec::new();
    for part in &parts {
        if part.groups.iter().any(|group| group.endpoints.is_empty()) || part.groups.is_empty() {
            return None;
        }
        let groups: u128 = part.groups.iter().map(|group| u128::from(group.weight)).sum();
        for group in &part.groups {
            let total: u128 = group.endpoints.iter().map(|e| u128::from(weight(e))).sum();
            for endpoint in &group.endpoints {
                let own = weight(endpoint);
                let of_all = u128::from(part.percent) * u128::from(group.weight) * u128::from(own);
                let scaled = of_all * (KERNEL_TOTAL / 100) / (groups * total).max(1);
                let scaled = u32::try_from(scaled.max(1)).unwrap_or(u32::MAX);
                shares.push((Arc::clone(endpoint), if alone { own } else { scaled }));
            }
        }
    }
    (!shares.is_empty()).then_some(shares)
}

#[cfg(test)]
mod tests;
