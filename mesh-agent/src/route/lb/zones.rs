//! Zone-aware routing: traffic stays in the zone it comes from, as far as the endpoints
//! there can bear it; what they can't goes where endpoints are left over.
//!
//! Spec: Envoy, "Zone aware routing".

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{hosts::Standing, layout::Kind};
use crate::{
    model::{
        cluster::{
            Balancing, Cluster, Discovery, Endpoint, Health, LoadAssignment, LocalCluster,
            Locality, Place, ZoneAware,
        },
        runtime::Runtime,
    },
    snapshot::Snapshot,
};

/// What percentages are of, so that they are as coarse as Envoy's.
const WHOLE: u64 = 10_000;

const ENABLED: &str = "upstream.zone_routing.enabled";
const MIN_CLUSTER_SIZE: &str = "upstream.zone_routing.min_cluster_size";
const FORCE_LOCAL_ZONE: &str = "upstream.zone_routing.force_local_zone.min_size";

/// Who sends traffic as this node does: the endpoints of the local cluster, some of which
/// are where this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Senders {
    /// Where this node is.
    place: Place,
    /// Where any of them are, well or not.
    places: usize,
    /// Those that are well.
    healthy: BTreeMap<Place, Size>,
    /// Healthy or degraded, and those that count at all.
    available: (u64, u64),
    overrides: Overrides,
}

/// What the runtime says in place of clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Overrides {
    enabled: Option<u64>,
    min_cluster_size: Option<u64>,
    force_local_zone: Option<u32>,
}

impl Overrides {
    pub(super) fn of(runtime: &Runtime) -> Self {
        let number = |key| runtime.value(key).map(|_| runtime.integer(key, u64::MAX));
        let number = |key| number(key).filter(|number| *number != u64::MAX);
        let least = number(FORCE_LOCAL_ZONE).filter(|least| *least > 0);
        Self {
            enabled: number(ENABLED),
            min_cluster_size: number(MIN_CLUSTER_SIZE),
            force_local_zone: least.map(|least| u32::try_from(least).unwrap_or(u32::MAX)),
        }
    }
}

/// Endpoints that are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Size {
    number: u64,
    weight: u64,
}

impl Size {
    fn by(self, by_weight: bool) -> u64 {
        if by_weight { self.weight } else { self.number }
    }

    fn of(endpoints: &[Arc<Endpoint>], standing: &dyn Fn(&Endpoint) -> Standing) -> Self {
        let healthy = endpoints.iter().filter(|e| standing(e).health == Health::Healthy);
        healthy.fold(Self::default(), |size, endpoint| Self {
            number: size.number + 1,
            weight: size.weight + u64::from(endpoint.weight),
        })
    }
}

impl Senders {
    /// `None`: none of them are where this node is, so that nobody can say how much comes
    /// from there.
    pub(super) fn new(
        local: &LocalCluster,
        assignment: &LoadAssignment,
        overrides: Overrides,
        standing: &dyn Fn(&Endpoint) -> Standing,
    ) -> Option<Self> {
        let place = local.place.clone()?;
        let first = |locality: &&Locality| locality.priority == 0 && !locality.endpoints.is_empty();
        let localities: Vec<_> = assignment.localities.iter().filter(first).collect();
        let places: BTreeSet<_> = localities.iter().map(|locality| &locality.place).collect();
        if !places.contains(&place) {
            return None;
        }
        let sizes = localities.iter().map(|of| (&of.place, Size::of(&of.endpoints, standing)));
        let sizes = sizes.filter(|(_, size)| size.number > 0);
        let healthy = sizes.map(|(place, size)| (place.clone(), size)).collect();
        let standings = localities.iter().flat_map(|of| &of.endpoints).map(|e| standing(e));
        let available =
            standings.fold((0, 0), |(available, counted), Standing { health, counts }| {
                (available + u64::from(health != Health::Unhealthy), counted + u64::from(counts))
            });
        Some(Self { place, places: places.len(), healthy, available, overrides })
    }

    /// Whether so few of them are well that where they are says nothing.
    fn panics(&self, threshold: u8) -> bool {
        let (available, counted) = self.available;
        // None that counts are none that are available.
        available * 100 < u64::from(threshold) * counted.max(1)
    }
}

/// Where traffic comes from, as a configuration alone says.
#[derive(Debug)]
pub struct Around(Known);

#[derive(Debug)]
enum Known {
    /// `None`: that says nothing of where it should go.
    Fixed(Option<Senders>),
    /// It goes by what is found out meanwhile.
    Changing,
}

impl Around {
    /// In this one.
    pub fn of(snapshot: &Snapshot) -> Self {
        let local = snapshot.local_cluster.as_deref();
        let local = local.and_then(|local| Some((local, found(local, snapshot)?)));
        let Some((local, (cluster, assignment))) = local else { return Self(Known::Fixed(None)) };
        if cluster.monitoring.is_on()
            || matches!(cluster.discovery, Discovery::Dns(_))
            || assignment.stale_at.is_some()
        {
            return Self(Known::Changing);
        }
        let overrides = Overrides::of(&snapshot.runtime);
        let senders = Senders::new(local, &assignment, overrides, &Standing::configured);
        Self(Known::Fixed(senders))
    }

    /// Who sends what goes to these endpoints. The outer `None`: nobody can say.
    pub(super) fn senders_to(&self, assignment: &LoadAssignment) -> Option<Option<&Senders>> {
        match &self.0 {
            Known::Fixed(senders) => Some(senders.as_ref()),
            Known::Changing => (assignment.localities.len() < 2).then_some(None),
        }
    }
}

/// The local cluster, and its endpoints.
pub(super) fn found<'a>(
    local: &LocalCluster,
    snapshot: &'a Snapshot,
) -> Option<(&'a Arc<Cluster>, Arc<LoadAssignment>)> {
    let cluster = snapshot.cluster(&local.name)?;
    Some((cluster, snapshot.assignment(cluster)?))
}

/// How one priority's traffic is split; all of these are relative to each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// To any endpoint, wherever it is.
    pub(super) anywhere: u128,
    /// To none: it is refused.
    pub(super) nowhere: u128,
    /// To each of the localities.
    pub(super) places: Vec<u128>,
}

/// How the traffic of the highest priority is split among its localities, each of which has
/// endpoints. `None`: not by where they are.
pub(super) fn split(
    senders: &Senders,
    balancing: &Balancing,
    localities: &[&Locality],
    kind: Kind,
    standing: &dyn Fn(&Endpoint) -> Standing,
) -> Option<Split> {
    let ZoneAware { routing_enabled, min_cluster_size, force_local_zone, by_weight } =
        balancing.zone_aware;
    let overrides = senders.overrides;
    let force = overrides.force_local_zone.or(force_local_zone);
    let min_cluster_size = overrides.min_cluster_size.unwrap_or(min_cluster_size);
    let enabled = overrides.enabled.unwrap_or(u64::from(routing_enabled)).min(100);
    if kind == Kind::All
        || localities.len() < 2
        || (senders.places < 2 && force.is_none())
        || enabled == 0
    {
        return None;
    }
    let sizes: Vec<_> = localities.iter().map(|of| Size::of(&of.endpoints, standing)).collect();
    if sizes.iter().map(|size| size.number).sum::<u64>() < min_cluster_size {
        return None;
    }
    if senders.panics(balancing.panic_threshold) {
        return balancing.fail_traffic_on_panic.then(|| Split {
            anywhere: u128::from(100 - enabled),
            nowhere: u128::from(enabled),
            places: vec![0; localities.len()],
        });
    }
    let here = localities.iter().position(|locality| locality.place == senders.place);
    let own = shares_of(
        localities.iter().zip(&sizes).map(|(locality, size)| {
            // Where nobody takes traffic, who sends some does not matter.
            let sending = senders.healthy.get(&locality.place).filter(|_| size.number > 0);
            sending.copied().unwrap_or_default().by(by_weight)
        }),
        senders.healthy.values().map(|size| size.by(by_weight)).sum(),
    );
    let all = sizes.iter().map(|size| size.by(by_weight)).sum();
    let taken = shares_of(sizes.iter().map(|size| size.by(by_weight)), all);
    let stays = here.map_or(0, |here| {
        let (own, taken, size) = (own[here], taken[here], sizes[here].number);
        let forced = force.is_some_and(|least| size >= u64::from(least));
        match own {
            _ if (taken > 0 && taken >= own) || forced => WHOLE,
            0 => 0,
            own => taken * WHOLE / own,
        }
    });
    let mut left: Vec<u64> =
        taken.iter().zip(&own).map(|(taken, own)| taken.saturating_sub(*own)).collect();
    if let Some(here) = here {
        left[here] = 0;
    }
    if left.iter().all(|left| *left == 0) {
        // By rounding alone; as Envoy, anywhere, the own one included.
        left.fill(1);
    }
    let total: u128 = left.iter().map(|left| u128::from(*left)).sum();
    let enabled = u128::from(enabled);
    let mut places: Vec<u128> =
        left.iter().map(|left| enabled * u128::from(WHOLE - stays) * u128::from(*left)).collect();
    if let Some(here) = here {
        places[here] += enabled * u128::from(stays) * total;
    }
    let anywhere = (100 - enabled) * u128::from(WHOLE) * total;
    Some(Split { anywhere, nowhere: 0, places })
}

fn shares_of(sizes: impl Iterator<Item = u64>, total: u64) -> Vec<u64> {
    sizes.map(|size| (size * WHOLE).checked_div(total).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests;
