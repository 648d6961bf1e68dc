//! From delivered resources to a snapshot, or to the reasons why not.

use std::{collections::HashMap, fmt, sync::Arc, time::SystemTime};

use super::tables::{ListenerTable, Snapshot, WorkloadTable};
use crate::model::{
    cluster::{Cluster, ClusterName, Discovery, LoadAssignment},
    listener::{FilterChain, Listener, RouteSource, TerminalFilter, WeightedCluster},
    route::{RouteAction, RouteConfiguration},
};

/// A whole configuration as a source delivers it.
#[derive(Debug, Default, Clone)]
pub struct Resources {
    pub listeners: Vec<Listener>,
    pub routes: Vec<RouteConfiguration>,
    pub clusters: Vec<Cluster>,
    /// By `cluster_name`.
    pub assignments: Vec<(Arc<str>, LoadAssignment)>,
}

/// A resource that can't be honoured, and why: `<path>: <reason>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedResource {
    /// From the resource down: `listeners[web].filter_chains[0].filters[0].cluster`.
    pub path: String,
    pub reason: String,
}

impl fmt::Display for RejectedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

impl std::error::Error for RejectedResource {}

/// Whether a configuration could be applied: every reference leads somewhere and
/// nothing clashes.
///
/// # Errors
/// What [`SnapshotCell::replace`](super::SnapshotCell::replace) would say.
pub fn check(resources: Resources) -> Result<(), Vec<RejectedResource>> {
    build(resources, 0, String::new(), SystemTime::UNIX_EPOCH).map(drop)
}

pub(super) fn build(
    resources: Resources,
    version: u64,
    label: String,
    applied_at: SystemTime,
) -> Result<Snapshot, Vec<RejectedResource>> {
    let mut rejected = Rejections::default();

    let mut assignments = HashMap::new();
    for (name, assignment) in resources.assignments {
        if assignments.insert(Arc::clone(&name), Arc::new(assignment)).is_some() {
            rejected.push(format!("endpoints[{name}]"), "this name is given twice");
        }
    }
    let mut clusters = HashMap::new();
    for cluster in resources.clusters {
        if let Discovery::Eds { service_name } = &cluster.discovery
            && !assignments.contains_key(service_name)
        {
            rejected.push(
                format!("clusters[{}].eds_cluster_config", cluster.name),
                format!("there is no ClusterLoadAssignment `{service_name}`"),
            );
        }
        let name = cluster.name.clone();
        if clusters.insert(name.clone(), Arc::new(cluster)).is_some() {
            rejected.push(format!("clusters[{name}]"), "this name is given twice");
        }
    }
    let mut routes = HashMap::new();
    for configuration in resources.routes {
        let path = format!("routes[{}]", configuration.name);
        rejected.check_routes(&path, &configuration, &clusters);
        let name = Arc::clone(&configuration.name);
        if routes.insert(name, Arc::new(configuration)).is_some() {
            rejected.push(path, "this name is given twice");
        }
    }
    let mut listeners = ListenerTable::default();
    for listener in resources.listeners {
        let listener = Arc::new(listener);
        rejected.check_listener(&listener, &clusters, &routes);
        if let Err(clash) = listeners.insert(Arc::clone(&listener)) {
            rejected.push(
                format!("listeners[{}]", listener.name),
                format!(
                    "its name, or its direction and address {}, is already taken by listener `{}`",
                    listener.address, clash.name
                ),
            );
        }
    }

    if !rejected.0.is_empty() {
        return Err(rejected.0);
    }
    let mut workloads = WorkloadTable::default();
    for cluster in clusters.values() {
        let assignment = match &cluster.discovery {
            Discovery::Static(assignment) => Some(assignment),
            Discovery::Eds { service_name } => assignments.get(service_name),
            Discovery::OriginalDestination => None,
        };
        for endpoint in assignment.iter().flat_map(|assignment| &assignment.endpoints) {
            workloads.insert(endpoint);
        }
    }
    Ok(Snapshot {
        version,
        label,
        applied_at,
        listeners: Arc::new(listeners),
        routes: Arc::new(routes),
        clusters: Arc::new(clusters),
        assignments: Arc::new(assignments),
        workloads: Arc::new(workloads),
    })
}

#[derive(Default)]
struct Rejections(Vec<RejectedResource>);

impl Rejections {
    fn push(&mut self, path: String, reason: impl Into<String>) {
        self.0.push(RejectedResource { path, reason: reason.into() });
    }

    fn check_clusters(
        &mut self,
        path: &str,
        named: &[WeightedCluster],
        clusters: &HashMap<ClusterName, Arc<Cluster>>,
    ) {
        for WeightedCluster { cluster, .. } in named {
            if !clusters.contains_key(cluster) {
                self.push(path.to_owned(), format!("there is no cluster `{cluster}`"));
            }
        }
    }

    fn check_routes(
        &mut self,
        path: &str,
        configuration: &RouteConfiguration,
        clusters: &HashMap<ClusterName, Arc<Cluster>>,
    ) {
        for host in &configuration.virtual_hosts {
            for (i, route) in host.routes.iter().enumerate() {
                if let RouteAction::Forward(forward) = &route.action {
                    let path = format!("{path}.virtual_hosts[{}].routes[{i}].route", host.name);
                    self.check_clusters(&path, &forward.clusters, clusters);
                }
            }
        }
    }

    fn check_listener(
        &mut self,
        listener: &Listener,
        clusters: &HashMap<ClusterName, Arc<Cluster>>,
        routes: &HashMap<Arc<str>, Arc<RouteConfiguration>>,
    ) {
        let chains = listener.filter_chains.iter().enumerate();
        let chains = chains.map(|(i, chain)| (format!("filter_chains[{i}]"), chain));
        let default = listener.default_filter_chain.iter();
        let default = default.map(|chain| ("default_filter_chain".to_owned(), chain));
        for (place, chain) in chains.chain(default) {
            let path = format!("listeners[{}].{place}", listener.name);
            self.check_chain(&path, chain, clusters, routes);
        }
    }

    fn check_chain(
        &mut self,
        path: &str,
        chain: &FilterChain,
        clusters: &HashMap<ClusterName, Arc<Cluster>>,
        routes: &HashMap<Arc<str>, Arc<RouteConfiguration>>,
    ) {
        let path = format!("{path}.filters[{}]", chain.filters.len());
        match &chain.terminal {
            TerminalFilter::TcpProxy(tcp) => self.check_clusters(&path, &tcp.clusters, clusters),
            TerminalFilter::Http(http) => match &http.routes {
                RouteSource::Inline(configuration) => {
                    self.check_routes(&format!("{path}.route_config"), configuration, clusters);
                }
                RouteSource::Rds(name) if !routes.contains_key(name) => {
                    let reason = format!("there is no RouteConfiguration `{name}`");
                    self.push(format!("{path}.rds.route_config_name"), reason);
                }
                RouteSource::Rds(_) => {}
            },
        }
    }
}
