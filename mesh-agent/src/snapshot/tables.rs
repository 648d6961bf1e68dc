//! A snapshot's tables and the look-ups the data path makes in them.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use rpds::HashTrieMapSync;

use super::workloads::WorkloadTable;
use crate::model::{
    cluster::{Cluster, ClusterName, Discovery, LoadAssignment, LocalCluster},
    extension::{DiscoveredFilter, ExtensionConfig},
    listener::{Direction, Listener},
    route::{RouteConfiguration, VirtualHost},
    runtime::{LayeredRuntime, Runtime, RuntimeLayer},
    scope::ScopeTable,
    secret::Secret,
};

/// A table of which there may be very many entries: a new version shares all that has not
/// changed with the one before, so that a change costs by its own size.
pub type Table<K, V> = HashTrieMapSync<K, V>;

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
    pub routes: Arc<Table<Arc<str>, Arc<RouteConfiguration>>>,
    pub clusters: Arc<Table<ClusterName, Arc<Cluster>>>,
    pub assignments: Arc<Table<Arc<str>, Arc<LoadAssignment>>>,
    /// What is not there yet, though a cluster names it: who needs it fails closed.
    pub secrets: Arc<HashMap<Arc<str>, Arc<Secret>>>,
    /// Layers as they are delivered, by name.
    pub runtime_layers: Arc<HashMap<Arc<str>, Arc<RuntimeLayer>>>,
    /// Which layers there are, and which goes before which; the same for all versions.
    pub(super) layered_runtime: Arc<LayeredRuntime>,
    /// Where traffic comes from, if that is known; the same for all versions.
    pub local_cluster: Option<Arc<LocalCluster>>,
    /// The values in force, of all layers.
    pub runtime: Arc<Runtime>,
    /// What is not there, though a listener names it: who needs it fails closed.
    pub extension_configs: Arc<HashMap<Arc<str>, Arc<ExtensionConfig>>>,
    /// By the route configuration they belong to, which may not be there.
    pub virtual_hosts: Arc<Table<Arc<str>, Arc<HostGroup>>>,
    /// Those that are delivered by themselves.
    pub scopes: Arc<ScopeTable>,
    /// Where endpoints are to be found.
    pub workloads: Arc<WorkloadTable>,
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
            local_cluster: None,
            runtime: Arc::default(),
            extension_configs: Arc::default(),
            virtual_hosts: Arc::default(),
            scopes: Arc::default(),
            workloads: Arc::default(),
        }
    }
}

impl Snapshot {
    /// The cluster of that name.
    pub fn cluster(&self, name: &ClusterName) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// A cluster's endpoints; `None` for an original-destination cluster.
    pub fn assignment(&self, cluster: &Cluster) -> Option<Arc<LoadAssignment>> {
        match &cluster.discovery {
            Discovery::Static(assignment) => Some(Arc::clone(assignment)),
            Discovery::Eds { service_name } => self.assignments.get(service_name).map(Arc::clone),
            Discovery::Dns(dns) => self.assignments.get(&dns.assignment).map(Arc::clone),
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

/// Listeners, found by name or by the address they are for.
#[derive(Debug, Default, Clone)]
pub struct ListenerTable {
    by_name: Table<Arc<str>, Arc<Listener>>,
    by_address: Table<(Direction, SocketAddr), Arc<Listener>>,
}

impl ListenerTable {
    /// Adds a listener.
    ///
    /// # Errors
    /// The listener that already has this name, or this direction and address.
    pub(super) fn insert(&mut self, listener: Arc<Listener>) -> Result<(), Arc<Listener>> {
        let mut taken = keys(&listener).filter_map(|key| self.by_address.get(&key));
        if let Some(clash) = self.by_name.get(&listener.name).or_else(|| taken.next()) {
            return Err(Arc::clone(clash));
        }
        self.by_name.insert_mut(Arc::clone(&listener.name), Arc::clone(&listener));
        for key in keys(&listener) {
            self.by_address.insert_mut(key, Arc::clone(&listener));
        }
        Ok(())
    }

    /// Takes a listener out, if it is there.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(listener) = self.by_name.get(name) {
            keys(listener).for_each(|key| _ = self.by_address.remove_mut(&key));
            self.by_name.remove_mut(name);
        }
    }

    /// The listener for a connection: its exact address first, then the
    /// unspecified address of its family with its port, then the one that says
    /// `use_original_dst`.
    pub fn select(&self, direction: Direction, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let any = SocketAddr::new(unspecified(destination.ip()), destination.port());
        [destination, any, anywhere(destination.ip())]
            .into_iter()
            .find_map(|address| self.by_address.get(&(direction, address)))
    }

    /// Every listener, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.by_name.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// What a listener is found by, beside its name.
fn keys(listener: &Listener) -> impl Iterator<Item = (Direction, SocketAddr)> {
    let Listener { direction, address, use_original_dst, .. } = *listener;
    let besides = use_original_dst.then(|| anywhere(address.ip()));
    iter::once(address).chain(besides).map(move |address| (direction, address))
}

fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Stands for every destination of a family: nothing is sent to port 0.
fn anywhere(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(unspecified(ip), 0)
}
