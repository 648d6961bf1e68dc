//! What a connection manager's requests are routed by.

use std::sync::Arc;

use super::tables::{Snapshot, Table};
use crate::model::{
    listener::RouteSource,
    route::RouteConfiguration,
    scope::{ScopeSource, ScopeTable, ScopedRoutes},
};

/// One route configuration for all requests, or what each request finds its own by.
#[derive(Debug, Clone)]
pub enum RouteTable {
    One(Arc<RouteConfiguration>),
    Scoped {
        scoped: Arc<ScopedRoutes>,
        scopes: Arc<ScopeTable>,
        routes: Arc<Table<Arc<str>, Arc<RouteConfiguration>>>,
    },
}

impl Snapshot {
    /// What a connection manager's requests are routed by. `None`: its route
    /// configuration is not there, which is only before any configuration.
    pub fn routes(&self, source: &RouteSource) -> Option<RouteTable> {
        match source {
            RouteSource::Inline(routes) => Some(RouteTable::One(Arc::clone(routes))),
            RouteSource::Rds(name) => self.routes.get(name).cloned().map(RouteTable::One),
            RouteSource::Scoped(scoped) => {
                let scopes = match &scoped.scopes {
                    ScopeSource::Inline(scopes) => Arc::clone(scopes),
                    ScopeSource::Srds => Arc::clone(&self.scopes),
                };
                let (scoped, routes) = (Arc::clone(scoped), Arc::clone(&self.routes));
                Some(RouteTable::Scoped { scoped, scopes, routes })
            }
        }
    }
}
