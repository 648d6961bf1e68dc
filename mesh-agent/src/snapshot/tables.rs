//! A snapshot's tables and the look-ups the data path makes in them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use crate::model::{
    cluster::{Cluster, ClusterName, Discovery, Endpoint, LoadAssignment, Tunnel},
    extension::{DiscoveredFilter, ExtensionConfig},
    listener::{Direction, Listener},
    route::{RouteConfiguration, VirtualHost},
    runtime::{LayeredRuntime, Runtime, RuntimeLayer},
    scope::ScopeTable,
    secret::Secret,
};

/// Virtual hosts by the names they go by: `<route configuration>/<host>`.
pub type HostGroup = BTreeMap<Arc<str>, Arc<VirtualHost>>;

/// One version of the whole configuration; complete, and consistent in itself: every route
/// configuration and assignment that is named is there. A cluster need not be: what leads
/// to one that is not there fails.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts from 1; 0 is the empty snapshot before any configuration.
    pub version: u64,
    /// What the source calls this version.
    pub label: String,
    pub applied_at: SystemTime,
    pub listeners: Arc<ListenerTable>,
    pub routes: Arc<HashMap<Arc<str>, Arc<RouteConfiguration>>>,
    pub clusters: Arc<HashMap<ClusterName, Arc<Cluster>>>,
    pub assignments: Arc<HashMap<Arc<str>, Arc<LoadAssignment>>>,
    /// What is not there yet, though a cluster names it: who needs it fails closed.
    pub secrets: Arc<HashMap<Arc<str>, Arc<Secret>>>,
    /// Layers as they are delivered, by name.
    pub runtime_layers: Arc<HashMap<Arc<str>, Arc<RuntimeLayer>>>,
    /// Which layers there are, and which goes before which; the same for all versions.
    pub(super) layered_runtime: Arc<LayeredRuntime>,
    /// The values in force, of all layers.
    pub runtime: Arc<Runtime>,
    /// What is not there, though a listener names it: who needs it fails closed.
    pub extension_configs: Arc<HashMap<Arc<str>, Arc<ExtensionConfig>>>,
    /// By the route configuration they belong to, which may not be there.
    pub virtual_hosts: Arc<HashMap<Arc<str>, Arc<HostGroup>>>,
    /// Those that are delivered by themselves.
    pub scopes: Arc<ScopeTable>,
    /// Made when first asked for: a walk over all endpoints is not for every small change.
    pub(super) workloads: Arc<OnceLock<WorkloadTable>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            version: 0,
            label: String::new(),
            applied_at: SystemTime::UNIX_EPOCH,
            listeners: Arc::default(),
            routes: Arc::default(),
            clusters: Arc::default(),
            assignments: Arc::default(),
            secrets: Arc::default(),
            runtime_layers: Arc::default(),
            layered_runtime: Arc::default(),
            runtime: Arc::default(),
            extension_configs: Arc::default(),
            virtual_hosts: Arc::default(),
            scopes: Arc::default(),
            workloads: Arc::default(),
        }
    }
}

impl Snapshot {
    /// Where the mesh's workloads are to be found.
    pub fn workloads(&self) -> &WorkloadTable {
        self.workloads.get_or_init(|| WorkloadTable::of(&self.clusters, &self.assignments))
    }

    /// The cluster of that name.
    pub fn cluster(&self, name: &ClusterName) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// A cluster's endpoints; `None` for an original-destination cluster.
    pub fn assignment(&self, cluster: &Cluster) -> Option<Arc<LoadAssignment>> {
        match &cluster.discovery {
            Discovery::Static(assignment) => Some(Arc::clone(assignment)),
            Discovery::Eds { service_name } => self.assignments.get(service_name).map(Arc::clone),
            Discovery::OriginalDestination => None,
        }
    }

    /// What a filter that is configured by itself is told to do; `None` where that is not
    /// there.
    pub fn filter_config<'a>(
        &'a self,
        filter: &'a DiscoveredFilter,
    ) -> Option<&'a ExtensionConfig> {
        filter.config(self.extension_configs.get(&filter.name).map(|config| &**config))
    }
}

/// Endpoints of every cluster by IP address: who is to be found where, for connections
/// that ask for a workload and not for a service.
#[derive(Debug, Default)]
pub struct WorkloadTable {
    by_ip: HashMap<IpAddr, Vec<Arc<Endpoint>>>,
}

impl WorkloadTable {
    /// The endpoints of all clusters.
    fn of(
        clusters: &HashMap<ClusterName, Arc<Cluster>>,
        assignments: &HashMap<Arc<str>, Arc<LoadAssignment>>,
    ) -> Self {
        let mut by_ip: HashMap<IpAddr, Vec<Arc<Endpoint>>> = HashMap::new();
        for cluster in clusters.values() {
            let assignment = match &cluster.discovery {
                Discovery::Static(assignment) => Some(assignment),
                Discovery::Eds { service_name } => assignments.get(service_name),
                Discovery::OriginalDestination => None,
            };
            for endpoint in assignment.iter().flat_map(|assignment| assignment.endpoints()) {
                let endpoints = by_ip.entry(endpoint.address.ip().to_canonical()).or_default();
                endpoints.push(Arc::clone(endpoint));
            }
        }
        Self { by_ip }
    }

    /// The tunnel to the workload at `address`. An endpoint of exactly this address
    /// decides; else any of the workload's, for all of its ports are in the mesh.
    /// `None` where no workload of the mesh is known there, or one says that this
    /// port is reached in the clear.
    pub fn tunnel(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let is_tunnel = |endpoint: &&Arc<Endpoint>| endpoint.tunnel != Tunnel::Direct;
        let endpoints = self.by_ip.get(&address.ip())?;
        let mut exact = endpoints.iter().filter(|e| e.address.port() == address.port()).peekable();
        if exact.peek().is_some() {
            return exact.find(is_tunnel).map(Arc::clone);
        }
        let other = endpoints.iter().find(is_tunnel)?;
        Some(Arc::new(Endpoint { address, ..Endpoint::clone(other) }))
    }
}

/// Listeners, found by name or by the address they are for.
#[derive(Debug, Default, Clone)]
pub struct ListenerTable {
    by_name: HashMap<Arc<str>, Arc<Listener>>,
    by_address: HashMap<(Direction, SocketAddr), Arc<Listener>>,
}

impl ListenerTable {
    /// Adds a listener.
    ///
    /// # Errors
    /// The listener that already has this name, or this direction and address.
    pub(super) fn insert(&mut self, listener: Arc<Listener>) -> Result<(), Arc<Listener>> {
        let key = (listener.direction, listener.address);
        let clash = self.by_name.get(&listener.name).or_else(|| self.by_address.get(&key));
        if let Some(clash) = clash {
            return Err(Arc::clone(clash));
        }
        self.by_name.insert(Arc::clone(&listener.name), Arc::clone(&listener));
        self.by_address.insert(key, listener);
        Ok(())
    }

    /// Takes a listener out, if it is there.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(listener) = self.by_name.remove(name) {
            self.by_address.remove(&(listener.direction, listener.address));
        }
    }

    /// The listener for a connection: its exact address first, then the
    /// unspecified address of its family with its port.
    pub fn select(&self, direction: Direction, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let any = match destination.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.by_address
            .get(&(direction, destination))
            .or_else(|| self.by_address.get(&(direction, SocketAddr::new(any, destination.port()))))
    }

    /// Every listener, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.by_name.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}
