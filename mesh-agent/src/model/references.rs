//! Which resources name which others.

use std::sync::Arc;

use super::{
    cluster::{Cluster, ClusterName, Discovery},
    extension::DiscoveredFilter,
    filter::HttpFilter,
    listener::{FilterChain, HttpConnectionManager, Listener, RouteSource, TerminalFilter},
    route::{MirrorPolicy, OnDemandRoute, Route, RouteAction, RouteConfiguration, VirtualHost},
    scope::{Scope, ScopeSource, ScopeTable},
};

impl Cluster {
    /// The assignment it takes its endpoints from, if that is a resource of its own.
    pub fn assignment_name(&self) -> Option<&Arc<str>> {
        match &self.discovery {
            Discovery::Eds { service_name } => Some(service_name),
            Discovery::Static(_) | Discovery::Dns(_) | Discovery::OriginalDestination => None,
        }
    }

    /// Whether a private key is written in it.
    pub fn holds_private_key(&self) -> bool {
        self.all_tls().any(|tls| tls.settings.holds_private_key())
    }

    /// Every secret it takes.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.all_tls().flat_map(|tls| tls.settings.secret_names())
    }
}

impl RouteConfiguration {
    /// Every virtual host, its own first.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<VirtualHost>> {
        self.virtual_hosts.iter().chain(&self.discovered)
    }

    /// Every cluster of its own hosts that has to be there; one may come several times.
    pub fn cluster_names(&self) -> impl Iterator<Item = &ClusterName> {
        let needed = self.validate_clusters != Some(false);
        let hosts = needed.then_some(&self.virtual_hosts).into_iter().flatten();
        let mirrors = needed.then_some(&self.mirrors).into_iter().flatten();
        let mirrors = mirrors.filter_map(MirrorPolicy::cluster_name);
        hosts.flat_map(|host| host.cluster_names()).chain(mirrors)
    }
}

impl VirtualHost {
    /// Every cluster that has to be there; one may come several times.
    pub fn cluster_names(&self) -> impl Iterator<Item = &ClusterName> {
        let mirrors = self.mirrors.iter().filter_map(MirrorPolicy::cluster_name);
        self.routes.iter().flat_map(Route::clusters).chain(mirrors)
    }
}

impl Route {
    /// The clusters it names, and that are not asked for at the first request.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        let clusters = match (&self.action, self.on_demand) {
            (_, Some(OnDemandRoute { clusters: Some(_) })) => None,
            (RouteAction::Forward(forward), _) => Some(&forward.clusters),
            (RouteAction::Redirect(_) | RouteAction::DirectResponse(_), _) => None,
        };
        let mirrors = match &self.action {
            RouteAction::Forward(forward) => forward.mirrors.as_slice(),
            RouteAction::Redirect(_) | RouteAction::DirectResponse(_) => &[],
        };
        let mirrors = mirrors.iter().filter_map(MirrorPolicy::cluster_name);
        clusters.into_iter().flat_map(|clusters| clusters.names()).chain(mirrors)
    }
}

impl Scope {
    /// Every cluster that its own routes need; one may come several times.
    pub fn cluster_names(&self) -> impl Iterator<Item = &ClusterName> {
        self.inline().into_iter().flat_map(|routes| routes.cluster_names())
    }
}

impl RouteSource {
    fn rds_name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Rds(name) => Some(name),
            Self::Inline(_) | Self::Scoped(_) => None,
        }
    }

    /// The scopes that are written in it.
    pub fn own_scopes(&self) -> Option<&ScopeTable> {
        match self {
            Self::Scoped(scoped) => match &scoped.scopes {
                ScopeSource::Inline(scopes) => Some(scopes),
                ScopeSource::Srds => None,
            },
            Self::Inline(_) | Self::Rds(_) => None,
        }
    }

    fn takes_delivered_scopes(&self) -> bool {
        matches!(self, Self::Scoped(scoped) if matches!(scoped.scopes, ScopeSource::Srds))
    }
}

impl Listener {
    /// Every filter chain, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.filter_chains.iter().chain(&self.default_filter_chain).map(|chain| &**chain)
    }

    /// Whether a private key is written in it.
    pub fn holds_private_key(&self) -> bool {
        self.chains()
            .filter_map(|chain| chain.tls.as_ref())
            .any(|tls| tls.settings.holds_private_key())
    }

    /// Every secret it takes.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let tls = self.chains().filter_map(|chain| chain.tls.as_ref());
        tls.flat_map(|tls| tls.settings.secret_names())
    }

    fn managers(&self) -> impl Iterator<Item = &HttpConnectionManager> {
        self.chains().filter_map(|chain| match &chain.terminal {
            TerminalFilter::Http(http) => Some(&**http),
            TerminalFilter::TcpProxy(_) => None,
        })
    }

    /// Every route configuration it asks for by name; one may come several times.
    pub fn route_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.managers().flat_map(|http| {
            let scopes = http.routes.own_scopes().into_iter().flat_map(ScopeTable::iter);
            http.routes.rds_name().into_iter().chain(scopes.filter_map(|s| s.needed_route_name()))
        })
    }

    /// The clusters that have to be there before it takes effect: those of its own routes,
    /// unless these say otherwise.
    pub fn validated_cluster_names(&self) -> Vec<&ClusterName> {
        let mut names = Vec::new();
        for http in self.managers() {
            if let RouteSource::Inline(routes) = &http.routes
                && routes.validate_clusters != Some(false)
            {
                names.extend(routes.cluster_names());
            }
        }
        names
    }

    /// Whether a connection manager takes the scopes that are delivered.
    pub fn takes_delivered_scopes(&self) -> bool {
        self.managers().any(|http| http.routes.takes_delivered_scopes())
    }

    /// Every filter whose configuration is a resource of its own; one may come several
    /// times.
    pub fn discovered_filters(&self) -> impl Iterator<Item = &Arc<DiscoveredFilter>> {
        let filters = self.chains().flat_map(|chain| match &chain.terminal {
            TerminalFilter::Http(http) => http.http_filters.as_slice(),
            TerminalFilter::TcpProxy(_) => &[],
        });
        filters.filter_map(|place| match &place.filter {
            HttpFilter::Discovered(discovered) => Some(discovered),
            _ => None,
        })
    }

    /// Every cluster that it leads to without asking for routes by name.
    pub fn cluster_names(&self) -> Vec<&ClusterName> {
        let mut names = Vec::new();
        for chain in self.chains() {
            match &chain.terminal {
                TerminalFilter::TcpProxy(tcp) => {
                    names.extend(tcp.clusters.iter().map(|weighted| &weighted.cluster));
                }
                TerminalFilter::Http(http) => {
                    if let RouteSource::Inline(routes) = &http.routes {
                        names.extend(routes.cluster_names());
                    }
                    let scopes = http.routes.own_scopes().into_iter().flat_map(ScopeTable::iter);
                    names.extend(scopes.flat_map(|scope| scope.cluster_names()));
                    names.extend(http.http_filters.iter().flat_map(|f| f.filter.clusters()));
                    names.extend(http.tracing.iter().filter_map(|tracing| tracing.cluster()));
                }
            }
        }
        names
    }
}
