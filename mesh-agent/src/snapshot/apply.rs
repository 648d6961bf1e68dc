//! From delivered resources to a snapshot, or to the reasons why not.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    hash::Hash,
    sync::Arc,
    time::SystemTime,
};

use super::{
    tables::{HostGroup, Snapshot, Table},
    workloads::AssignmentOwner,
};
use crate::model::{
    cluster::{Cluster, ClusterName, Discovery, LoadAssignment},
    extension::ExtensionConfig,
    listener::{FilterChain, Listener, RouteSource, TerminalFilter},
    route::{RouteConfiguration, VirtualHost},
    runtime::RuntimeLayer,
    scope::{Scope, ScopeRoutes, ScopeTable},
    secret::Secret,
};

/// A whole configuration as a source delivers it.
#[derive(Debug, Default, Clone)]
pub struct Resources {
    pub listeners: Vec<Listener>,
    pub routes: Vec<RouteConfiguration>,
    pub clusters: Vec<Cluster>,
    /// By `cluster_name`.
    pub assignments: Vec<(Arc<str>, LoadAssignment)>,
    pub secrets: Vec<Secret>,
    /// Layers by name.
    pub runtime: Vec<(Arc<str>, RuntimeLayer)>,
    pub extension_configs: Vec<ExtensionConfig>,
    /// By `<route configuration>/<host>`.
    pub virtual_hosts: Vec<(Arc<str>, VirtualHost)>,
    pub scopes: Vec<Scope>,
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

/// What a source says has changed; all else stays as it is.
#[derive(Debug, Default, Clone)]
pub struct Changes {
    /// New resources, and new versions of known ones.
    pub updated: Resources,
    pub removed: Removed,
}

/// Resources that are no more, by name. Names that aren't known do no harm.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Removed {
    pub listeners: Vec<Arc<str>>,
    pub routes: Vec<Arc<str>>,
    pub clusters: Vec<ClusterName>,
    pub assignments: Vec<Arc<str>>,
    pub secrets: Vec<Arc<str>>,
    pub runtime: Vec<Arc<str>>,
    pub extension_configs: Vec<Arc<str>>,
    pub virtual_hosts: Vec<Arc<str>>,
    pub scopes: Vec<Arc<str>>,
}

/// Whether a whole configuration is one: every reference leads somewhere, that to a cluster
/// as well unless `validate_clusters` is turned off, and nothing clashes.
///
/// # Errors
/// What [`SnapshotCell::replace`](super::SnapshotCell::replace) would say, and every name of
/// a cluster that is not there.
pub fn check(resources: Resources) -> Result<(), Vec<RejectedResource>> {
    let changes = Changes { updated: resources, removed: Removed::default() };
    let rejected = Rejections { validates_clusters: true, ..Rejections::default() };
    let (base, at) = (Snapshot::default(), SystemTime::UNIX_EPOCH);
    build_with(rejected, &base, changes, String::new(), at).map(drop)
}

/// The snapshot after `base`. Only tables that change are copied, and only references
/// from and to what changes are followed.
pub(super) fn build(
    base: &Snapshot,
    changes: Changes,
    label: String,
    applied_at: SystemTime,
) -> Result<Snapshot, Vec<RejectedResource>> {
    build_with(Rejections::default(), base, changes, label, applied_at)
}

fn build_with(
    mut rejected: Rejections,
    base: &Snapshot,
    changes: Changes,
    label: String,
    applied_at: SystemTime,
) -> Result<Snapshot, Vec<RejectedResource>> {
    let Changes { updated, removed } = changes;

    let mut secrets = Arc::clone(&base.secrets);
    remove(&mut secrets, &removed.secrets);
    let named = updated.secrets.into_iter().map(|s| (Arc::clone(&s.name), Arc::new(s))).collect();
    rejected.insert("secrets", &mut secrets, named);

    let mut runtime_layers = Arc::clone(&base.runtime_layers);
    remove(&mut runtime_layers, &removed.runtime);
    let named = updated.runtime.into_iter().map(|(name, layer)| (name, Arc::new(layer))).collect();
    rejected.insert("runtime", &mut runtime_layers, named);

    let mut extension_configs = Arc::clone(&base.extension_configs);
    remove(&mut extension_configs, &removed.extension_configs);
    let named = updated.extension_configs.into_iter();
    let named = named.map(|e| (Arc::clone(&e.name), Arc::new(e))).collect();
    rejected.insert("extension_configs", &mut extension_configs, named);

    let restocked = updated.assignments.iter().map(|(name, _)| name);
    let restocked: HashSet<_> = restocked.chain(&removed.assignments).cloned().collect();
    let mut assignments = Arc::clone(&base.assignments);
    remove(&mut assignments, &removed.assignments);
    let named = updated.assignments.into_iter().map(|(name, a)| (name, Arc::new(a))).collect();
    rejected.insert("endpoints", &mut assignments, named);

    let moved = updated.clusters.iter().map(|cluster| &cluster.name);
    let moved: HashSet<_> = moved.chain(&removed.clusters).cloned().collect();
    let mut clusters = Arc::clone(&base.clusters);
    remove(&mut clusters, &removed.clusters);
    let changed: Vec<_> = updated.clusters.into_iter().map(Arc::new).collect();
    let named = changed.iter().map(|c| (c.name.clone(), Arc::clone(c))).collect();
    rejected.insert("clusters", &mut clusters, named);
    if removed.assignments.is_empty() {
        changed.iter().for_each(|cluster| rejected.check_assignment(cluster, &assignments));
    } else {
        clusters.values().for_each(|cluster| rejected.check_assignment(cluster, &assignments));
    }

    let mut virtual_hosts = Arc::clone(&base.virtual_hosts);
    let grown = regroup(&mut virtual_hosts, updated.virtual_hosts, &removed.virtual_hosts);
    let mut routes = Arc::clone(&base.routes);
    remove(&mut routes, &removed.routes);
    let mut changed = updated.routes;
    // Whose discovered hosts have changed, and nothing else.
    let others = grown.iter().filter(|name| changed.iter().all(|routes| routes.name != **name));
    let others: Vec<_> = others.filter_map(|name| routes.get(name)).collect();
    changed.extend(others.into_iter().map(|routes| RouteConfiguration::clone(routes)));
    let completed = changed.into_iter().map(|mut routes| {
        let hosts = virtual_hosts.get(&routes.name).filter(|_| routes.vhds);
        routes.discovered = hosts.into_iter().flat_map(|hosts| hosts.values().cloned()).collect();
        Arc::new(routes)
    });
    let changed: Vec<_> = completed.collect();
    let named = changed.iter().map(|r| (Arc::clone(&r.name), Arc::clone(r))).collect();
    rejected.insert("routes", &mut routes, named);
    for configuration in &changed {
        let path = format!("routes[{}]", configuration.name);
        rejected.check_routes(&path, configuration, &clusters);
    }

    let mut scopes = Arc::clone(&base.scopes);
    rejected.put_scopes(&mut scopes, updated.scopes, &removed.scopes);
    if !Arc::ptr_eq(&scopes, &base.scopes)
        || !removed.routes.is_empty()
        || !removed.clusters.is_empty()
    {
        scopes.iter().for_each(|scope| rejected.check_scope("", scope, &clusters, &routes));
    }

    let mut listeners = Arc::clone(&base.listeners);
    let changed: Vec<_> = updated.listeners.into_iter().map(Arc::new).collect();
    if !removed.listeners.is_empty() || !changed.is_empty() {
        let table = Arc::make_mut(&mut listeners);
        for name in removed.listeners.iter().chain(changed.iter().map(|listener| &listener.name)) {
            table.remove(name);
        }
        if !removed.routes.is_empty() {
            table.iter().for_each(|l| rejected.check_listener(l, &clusters, &routes));
        }
        for listener in changed {
            rejected.check_listener(&listener, &clusters, &routes);
            if let Err(clash) = table.insert(Arc::clone(&listener)) {
                let both = listener.use_original_dst && clash.use_original_dst;
                let both = if both { ", or use_original_dst" } else { "" };
                rejected.push(
                    format!("listeners[{}]", listener.name),
                    format!(
                        "its name, or its direction and address {}{both}, is already taken by \
                         listener `{}`",
                        listener.address, clash.name
                    ),
                );
            }
        }
    } else if !removed.routes.is_empty() {
        listeners.iter().for_each(|l| rejected.check_listener(l, &clusters, &routes));
    }

    if !rejected.found.is_empty() {
        return Err(rejected.found);
    }
    let runtime = match Arc::ptr_eq(&runtime_layers, &base.runtime_layers) {
        true => Arc::clone(&base.runtime),
        false => Arc::new(base.layered_runtime.with(&runtime_layers)),
    };
    let mut workloads = Arc::clone(&base.workloads);
    if !moved.is_empty() || !restocked.is_empty() {
        let table = Arc::make_mut(&mut workloads);
        for name in &moved {
            let inline = |of: &Table<ClusterName, Arc<Cluster>>| inline(of.get(name)?);
            let owner = AssignmentOwner::Cluster(name.clone());
            table.replace(&owner, inline(&base.clusters).as_ref(), inline(&clusters).as_ref());
        }
        for name in &restocked {
            let owner = AssignmentOwner::Assignment(Arc::clone(name));
            table.replace(&owner, base.assignments.get(name), assignments.get(name));
        }
    }
    Ok(Snapshot {
        version: base.version + 1,
        label,
        applied_at,
        listeners,
        routes,
        clusters,
        assignments,
        secrets,
        runtime,
        runtime_layers,
        layered_runtime: Arc::clone(&base.layered_runtime),
        local_cluster: base.local_cluster.clone(),
        extension_configs,
        virtual_hosts,
        scopes,
        workloads,
    })
}

/// The endpoints that a cluster has by itself.
fn inline(cluster: &Arc<Cluster>) -> Option<Arc<LoadAssignment>> {
    match &cluster.discovery {
        Discovery::Static(assignment) => Some(Arc::clone(assignment)),
        Discovery::Eds { .. } | Discovery::Dns(_) | Discovery::OriginalDestination => None,
    }
}

/// What resources are kept in.
trait Entries<K, V>: Clone {
    fn has(&self, key: &K) -> bool;
    fn put(&mut self, key: K, value: V);
    fn take(&mut self, key: &K);
}

impl<K: Clone + Eq + Hash, V: Clone> Entries<K, V> for HashMap<K, V> {
    fn has(&self, key: &K) -> bool {
        self.contains_key(key)
    }

    fn put(&mut self, key: K, value: V) {
        self.insert(key, value);
    }

    fn take(&mut self, key: &K) {
        self.remove(key);
    }
}

impl<K: Eq + Hash, V> Entries<K, V> for Table<K, V> {
    fn has(&self, key: &K) -> bool {
        self.contains_key(key)
    }

    fn put(&mut self, key: K, value: V) {
        self.insert_mut(key, value);
    }

    fn take(&mut self, key: &K) {
        self.remove_mut(key);
    }
}

fn remove<K, V>(table: &mut Arc<impl Entries<K, V>>, names: &[K]) {
    if names.iter().any(|name| table.has(name)) {
        let table = Arc::make_mut(table);
        names.iter().for_each(|name| table.take(name));
    }
}

/// Takes virtual hosts out and in, each with those of its route configuration; says
/// which of these are concerned.
fn regroup(
    groups: &mut Arc<Table<Arc<str>, Arc<HostGroup>>>,
    updated: Vec<(Arc<str>, VirtualHost)>,
    removed: &[Arc<str>],
) -> BTreeSet<Arc<str>> {
    let changes = removed.iter().map(|name| (Arc::clone(name), None));
    let changes = changes.chain(updated.into_iter().map(|(name, host)| (name, Some(host))));
    let mut concerned = BTreeSet::new();
    for (name, host) in changes {
        let (configuration, _) = name.rsplit_once('/').unwrap_or_default();
        let configuration: Arc<str> = configuration.into();
        let table = Arc::make_mut(groups);
        if !table.contains_key(&configuration) {
            table.insert_mut(Arc::clone(&configuration), Arc::default());
        }
        if let Some(group) = table.get_mut(&configuration) {
            let group = Arc::make_mut(group);
            match host {
                Some(host) => _ = group.insert(name, Arc::new(host)),
                None => _ = group.remove(&name),
            }
            if group.is_empty() {
                table.remove_mut(&configuration);
            }
        }
        concerned.insert(configuration);
    }
    concerned
}

#[derive(Default)]
struct Rejections {
    found: Vec<RejectedResource>,
    /// Whether a cluster that is named has to be there. A control plane may take it away
    /// while something leads to it, or name it before it is there: what leads there fails.
    validates_clusters: bool,
}

impl Rejections {
    fn push(&mut self, path: String, reason: impl Into<String>) {
        self.found.push(RejectedResource { path, reason: reason.into() });
    }

    /// Puts resources into a table, which is copied only if there are any.
    fn insert<K: Clone + Eq + Hash + fmt::Display, V>(
        &mut self,
        kind: &str,
        table: &mut Arc<impl Entries<K, V>>,
        resources: Vec<(K, V)>,
    ) {
        if resources.is_empty() {
            return;
        }
        let mut seen = HashSet::with_capacity(resources.len());
        let table = Arc::make_mut(table);
        for (name, resource) in resources {
            if !seen.insert(name.clone()) {
                self.push(format!("{kind}[{name}]"), "this name is given twice");
            }
            table.put(name, resource);
        }
    }

    fn check_assignment(
        &mut self,
        cluster: &Cluster,
        assignments: &Table<Arc<str>, Arc<LoadAssignment>>,
    ) {
        if let Some(name) = cluster.assignment_name().filter(|n| !assignments.contains_key(*n)) {
            self.push(
                format!("clusters[{}].eds_cluster_config", cluster.name),
                format!("there is no ClusterLoadAssignment `{name}`"),
            );
        }
    }

    fn check_clusters<'a>(
        &mut self,
        path: &str,
        named: impl IntoIterator<Item = &'a ClusterName>,
        clusters: &Table<ClusterName, Arc<Cluster>>,
    ) {
        for cluster in named {
            if self.validates_clusters && !clusters.contains_key(cluster) {
                self.push(path.to_owned(), format!("there is no cluster `{cluster}`"));
            }
        }
    }

    fn check_routes(
        &mut self,
        path: &str,
        configuration: &RouteConfiguration,
        clusters: &Table<ClusterName, Arc<Cluster>>,
    ) {
        if configuration.validate_clusters == Some(false) {
            return;
        }
        // A discovered host is not worth the refusal of all.
        for host in &configuration.virtual_hosts {
            for (i, route) in host.routes.iter().enumerate() {
                let path = format!("{path}.virtual_hosts[{}].routes[{i}].route", host.name);
                self.check_clusters(&path, route.clusters(), clusters);
            }
        }
    }

    fn check_listener(
        &mut self,
        listener: &Listener,
        clusters: &Table<ClusterName, Arc<Cluster>>,
        routes: &Table<Arc<str>, Arc<RouteConfiguration>>,
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

    /// Takes scopes out, and puts others in: all names and keys of before are free first.
    fn put_scopes(
        &mut self,
        table: &mut Arc<ScopeTable>,
        updated: Vec<Scope>,
        removed: &[Arc<str>],
    ) {
        if updated.is_empty() && removed.is_empty() {
            return;
        }
        let table = Arc::make_mut(table);
        let names = removed.iter().chain(updated.iter().map(|scope| &scope.name));
        names.for_each(|name| table.remove(name));
        for scope in updated {
            let path = format!("scoped_routes[{}]", scope.name);
            if let Err(clash) = table.insert(Arc::new(scope)) {
                self.push(path, format!("its name or key is that of scope `{}`", clash.name));
            }
        }
    }

    fn check_scope(
        &mut self,
        holder: &str,
        scope: &Scope,
        clusters: &Table<ClusterName, Arc<Cluster>>,
        routes: &Table<Arc<str>, Arc<RouteConfiguration>>,
    ) {
        let path = || format!("{holder}scoped_routes[{}]", scope.name);
        match &scope.routes {
            ScopeRoutes::Inline(configuration) => {
                self.check_routes(
                    &format!("{}.route_configuration", path()),
                    configuration,
                    clusters,
                );
            }
            ScopeRoutes::Rds(name) if !scope.on_demand && !routes.contains_key(name) => {
                let reason = format!("there is no RouteConfiguration `{name}`");
                self.push(format!("{}.route_configuration_name", path()), reason);
            }
            ScopeRoutes::Rds(_) => {}
        }
    }

    fn check_chain(
        &mut self,
        path: &str,
        chain: &FilterChain,
        clusters: &Table<ClusterName, Arc<Cluster>>,
        routes: &Table<Arc<str>, Arc<RouteConfiguration>>,
    ) {
        let path = format!("{path}.filters[{}]", chain.filters.len());
        match &chain.terminal {
            TerminalFilter::TcpProxy(tcp) => {
                let named = tcp.clusters.iter().map(|entry| &entry.cluster);
                self.check_clusters(&path, named, clusters);
            }
            TerminalFilter::Http(http) => match &http.routes {
                RouteSource::Inline(configuration) => {
                    self.check_routes(&format!("{path}.route_config"), configuration, clusters);
                }
                RouteSource::Rds(name) if !routes.contains_key(name) => {
                    let reason = format!("there is no RouteConfiguration `{name}`");
                    self.push(format!("{path}.rds.route_config_name"), reason);
                }
                RouteSource::Rds(_) => {}
                RouteSource::Scoped(_) => {
                    let own = http.routes.own_scopes().into_iter().flat_map(ScopeTable::iter);
                    own.for_each(|s| self.check_scope(&format!("{path}."), s, clusters, routes));
                }
            },
        }
    }
}
