//! From a route to the one cluster that a request goes to.
//!
//! Spec: `RouteAction.cluster_specifier` in
//! `envoy/config/route/v3/route_components.proto`.

use std::borrow::Cow;

use http::request::Parts;

use crate::{
    model::{
        cluster::ClusterName,
        route::{Clusters, RouteCluster, RouteClusterName, WeightedClusters},
        runtime::Runtime,
    },
    policy::matcher::first_value,
};

/// A request's cluster.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    pub cluster: Cow<'a, ClusterName>,
    /// What is said for this one of several clusters.
    pub entry: Option<&'a RouteCluster>,
}

/// The cluster that a request goes to; `None` where none has a weight. `random` is the
/// one for the whole request, uniform over all values.
pub fn choose<'a>(
    clusters: &'a Clusters,
    head: &Parts,
    runtime: &Runtime,
    random: u64,
) -> Option<Chosen<'a>> {
    match clusters {
        Clusters::One(name) => Some(Chosen { cluster: Cow::Borrowed(name), entry: None }),
        Clusters::Header(header) => {
            Some(Chosen { cluster: Cow::Owned(named(header, head)), entry: None })
        }
        Clusters::Weighted(weighted) => {
            let entry = weighted_entry(weighted, head, runtime, random)?;
            let cluster = match &entry.cluster {
                RouteClusterName::Cluster(name) => Cow::Borrowed(name),
                RouteClusterName::Header(header) => Cow::Owned(named(header, head)),
            };
            Some(Chosen { cluster, entry: Some(entry) })
        }
    }
}

/// The cluster a request names itself. One that names none is for a cluster that is not
/// there, as in Envoy.
fn named(header: &str, head: &Parts) -> ClusterName {
    let value = first_value(header, head).and_then(|value| std::str::from_utf8(value).ok());
    ClusterName(value.unwrap_or_default().into())
}

fn weighted_entry<'a>(
    weighted: &'a WeightedClusters,
    head: &Parts,
    runtime: &Runtime,
    random: u64,
) -> Option<&'a RouteCluster> {
    let weight = |entry: &RouteCluster| match (&weighted.runtime_key_prefix, &entry.cluster) {
        (Some(prefix), RouteClusterName::Cluster(name)) => {
            let weight = runtime.integer(&format!("{prefix}.{name}"), entry.weight.into());
            weight.min(u32::MAX.into())
        }
        _ => entry.weight.into(),
    };
    let total: u64 = weighted.entries.iter().map(weight).sum();
    let random = weighted
        .random_header
        .as_deref()
        .and_then(|header| {
            std::str::from_utf8(first_value(header, head)?).ok()?.parse::<u64>().ok()
        })
        .unwrap_or(random);
    let mut left = random.checked_rem(total)?;
    weighted.entries.iter().find(|entry| match left.checked_sub(weight(entry)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests;
