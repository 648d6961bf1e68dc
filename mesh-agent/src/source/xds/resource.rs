//! The types of resources, and one resource of any of them.

use std::sync::Arc;

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster as PbCluster,
        core::v3::TypedExtensionConfig,
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener as PbListener,
        route::v3::{
            RouteConfiguration as PbRoutes, ScopedRouteConfiguration as PbScope,
            VirtualHost as PbVirtualHost,
        },
    },
    extensions::transport_sockets::tls::v3::Secret as PbSecret,
    service::runtime::v3::Runtime as PbRuntime,
};
use prost::Name as _;

use crate::{
    model::{
        cluster::{Cluster, ClusterName, LoadAssignment},
        extension::ExtensionConfig,
        listener::Listener,
        route::{RouteConfiguration, VirtualHost},
        runtime::RuntimeLayer,
        scope::{Scope, ScopeRoutes},
        secret::Secret,
    },
    snapshot::{Removed, Resources},
    source::xds::{downstream_tls, upstream_tls},
};

/// The type URLs [`decode_any`](super::decode_any) knows: LDS, RDS, CDS, EDS, SDS, RTDS,
/// ECDS, VHDS, SRDS.
pub const TYPE_URLS: [&str; 9] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
    "type.googleapis.com/envoy.service.runtime.v3.Runtime",
    "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
    "type.googleapis.com/envoy.config.route.v3.VirtualHost",
    "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
];

/// One decoded top-level resource.
#[derive(Debug, Clone)]
pub enum Resource {
    /// LDS
    Listener(Listener),
    /// RDS
    Routes(RouteConfiguration),
    /// CDS
    Cluster(Cluster),
    /// EDS, with its `cluster_name`.
    Endpoints(Arc<str>, LoadAssignment),
    /// SDS
    Secret(Secret),
    /// RTDS, by the layer's name.
    Runtime(Arc<str>, RuntimeLayer),
    /// ECDS
    ExtensionConfig(ExtensionConfig),
    /// VHDS, with the name it goes by: `<route configuration>/<host>`, which need not be
    /// the virtual host's own.
    VirtualHost(Arc<str>, VirtualHost),
    /// SRDS
    Scope(Scope),
}

impl Resource {
    /// Its type and name.
    pub(in crate::source) fn key(&self) -> (ResourceType, Arc<str>) {
        use ResourceType as Type;
        let (kind, name) = match self {
            Self::Listener(listener) => (Type::Listener, &listener.name),
            Self::Routes(routes) => (Type::Routes, &routes.name),
            Self::Cluster(cluster) => (Type::Cluster, &cluster.name.0),
            Self::Endpoints(name, _) => (Type::Endpoints, name),
            Self::Secret(secret) => (Type::Secret, &secret.name),
            Self::Runtime(name, _) => (Type::Runtime, name),
            Self::ExtensionConfig(extension) => (Type::ExtensionConfig, &extension.name),
            Self::VirtualHost(name, _) => (Type::VirtualHost, name),
            Self::Scope(scope) => (Type::Scope, &scope.name),
        };
        (kind, Arc::clone(name))
    }

    /// Adds the resource to a set.
    pub fn add_to(self, resources: &mut Resources) {
        match self {
            Self::Listener(listener) => resources.listeners.push(listener),
            Self::Routes(routes) => resources.routes.push(routes),
            Self::Cluster(cluster) => resources.clusters.push(cluster),
            Self::Endpoints(name, assignment) => resources.assignments.push((name, assignment)),
            Self::Secret(secret) => resources.secrets.push(secret),
            Self::Runtime(name, layer) => resources.runtime.push((name, layer)),
            Self::ExtensionConfig(extension) => resources.extension_configs.push(extension),
            Self::VirtualHost(name, host) => resources.virtual_hosts.push((name, host)),
            Self::Scope(scope) => resources.scopes.push(scope),
        }
    }

    /// As it was kept: a virtual host by the name it went by, routes without those of
    /// their clusters that were not to be had.
    pub(in crate::source) fn called(self, name: Option<String>) -> Self {
        match (self, name) {
            (Self::VirtualHost(_, host), Some(name)) => Self::VirtualHost(name.into(), host),
            (resource, _) => resource.with_what_there_is(),
        }
    }

    /// Routes that do without the clusters that are not to be had.
    pub(in crate::source) fn with_what_there_is(mut self) -> Self {
        match &mut self {
            Self::Routes(routes) => routes.validate_clusters = Some(false),
            Self::Scope(Scope { routes: ScopeRoutes::Inline(routes), .. }) => {
                Arc::make_mut(routes).validate_clusters = Some(false);
            }
            _ => {}
        }
        self
    }

    /// What of these, its own bytes, may be written to disk: a private key may not.
    pub(in crate::source) fn stored(&self, bytes: Arc<[u8]>) -> Option<Arc<[u8]>> {
        match self {
            Self::Secret(secret) if secret.holds_private_key() => None,
            Self::Cluster(cluster) if cluster.holds_private_key() => {
                upstream_tls::without_key(&bytes)
            }
            Self::Listener(listener) if listener.holds_private_key() => {
                downstream_tls::without_keys(&bytes)
            }
            _ => Some(bytes),
        }
    }
}

/// The types of resources, by full protobuf name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    Listener,
    Routes,
    Cluster,
    Endpoints,
    Secret,
    Runtime,
    ExtensionConfig,
    VirtualHost,
    Scope,
}

impl ResourceType {
    pub(in crate::source) const ALL: [Self; 9] = [
        Self::Listener,
        Self::Routes,
        Self::Cluster,
        Self::Endpoints,
        Self::Secret,
        Self::Runtime,
        Self::ExtensionConfig,
        Self::VirtualHost,
        Self::Scope,
    ];

    pub(in crate::source) fn full_name(self) -> String {
        match self {
            Self::Listener => PbListener::full_name(),
            Self::Routes => PbRoutes::full_name(),
            Self::Cluster => PbCluster::full_name(),
            Self::Endpoints => ClusterLoadAssignment::full_name(),
            Self::Secret => PbSecret::full_name(),
            Self::Runtime => PbRuntime::full_name(),
            Self::ExtensionConfig => TypedExtensionConfig::full_name(),
            Self::VirtualHost => PbVirtualHost::full_name(),
            Self::Scope => PbScope::full_name(),
        }
    }

    /// As it stands in an `Any`.
    pub(in crate::source) fn type_url(self) -> &'static str {
        let [listener, routes, cluster, endpoints, secret, runtime, extension, host, scope] =
            TYPE_URLS;
        match self {
            Self::Listener => listener,
            Self::Routes => routes,
            Self::Cluster => cluster,
            Self::Endpoints => endpoints,
            Self::Secret => secret,
            Self::Runtime => runtime,
            Self::ExtensionConfig => extension,
            Self::VirtualHost => host,
            Self::Scope => scope,
        }
    }

    /// What a rejection's path starts with.
    pub(in crate::source) fn table(self) -> &'static str {
        match self {
            Self::Listener => "listeners",
            Self::Routes => "routes",
            Self::Cluster => "clusters",
            Self::Endpoints => "endpoints",
            Self::Secret => "secrets",
            Self::Runtime => "runtime",
            Self::ExtensionConfig => "extension_configs",
            Self::VirtualHost => "virtual_hosts",
            Self::Scope => "scoped_routes",
        }
    }

    /// The field that names a resource of this type.
    pub(in crate::source) fn name_field(self) -> &'static str {
        match self {
            Self::Endpoints => "cluster_name",
            _ => "name",
        }
    }

    /// The same field as canonical JSON spells it.
    pub(in crate::source) fn json_name_field(self) -> &'static str {
        match self {
            Self::Endpoints => "clusterName",
            _ => "name",
        }
    }

    /// The type of that URL, whatever its prefix.
    pub(in crate::source) fn of_url(type_url: &str) -> Option<Self> {
        let name = type_url.rsplit('/').next()?;
        Self::ALL.into_iter().find(|known| known.full_name() == name)
    }

    /// Notes that the resource of that name is no more.
    pub(in crate::source) fn remove_from(self, removed: &mut Removed, name: Arc<str>) {
        match self {
            Self::Listener => removed.listeners.push(name),
            Self::Routes => removed.routes.push(name),
            Self::Cluster => removed.clusters.push(ClusterName(name)),
            Self::Endpoints => removed.assignments.push(name),
            Self::Secret => removed.secrets.push(name),
            Self::Runtime => removed.runtime.push(name),
            Self::ExtensionConfig => removed.extension_configs.push(name),
            Self::VirtualHost => removed.virtual_hosts.push(name),
            Self::Scope => removed.scopes.push(name),
        }
    }
}
