//! Scoped routes: which route configuration a request's headers lead to.
//!
//! Spec: `envoy/config/route/v3/scoped_route.proto`, `ScopedRoutes` in
//! `envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;

use super::route::RouteConfiguration;

/// What a scope is found by: one text for each fragment of the key builder.
pub type ScopeKey = Vec<String>;

/// How a connection manager's requests find their route configuration.
#[derive(Debug, Clone, Serialize)]
pub struct ScopedRoutes {
    pub name: Arc<str>,
    /// Never empty. A request that lacks one of them has no key, and no scope.
    pub fragments: Vec<KeyFragment>,
    pub scopes: ScopeSource,
}

/// Where the scopes are.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeSource {
    Inline(Arc<ScopeTable>),
    /// All that are delivered by SRDS.
    Srds,
}

/// One fragment of a key, taken from a header's first value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyFragment {
    /// Lower case; may be a pseudo-header.
    pub header: String,
    /// Parts the value into elements; empty: the whole value is the one element.
    pub separator: String,
    pub extract: Extract,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// The element at this place, from 0.
    Index(u32),
    /// The value of the first element `<key><separator><value>`. Neither is empty.
    Element { separator: String, key: String },
}

#[derive(Debug, Clone, Serialize)]
pub struct Scope {
    pub name: Arc<str>,
    /// Never empty; unique among its connection manager's, or all that are delivered.
    pub key: ScopeKey,
    pub routes: ScopeRoutes,
    /// Whether its routes are asked for at the first request.
    pub on_demand: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeRoutes {
    Inline(Arc<RouteConfiguration>),
    /// The name of a `RouteConfiguration` delivered by RDS.
    Rds(Arc<str>),
}

impl Scope {
    /// The route configuration it leads to by name.
    pub fn route_name(&self) -> Option<&Arc<str>> {
        match &self.routes {
            ScopeRoutes::Rds(name) => Some(name),
            ScopeRoutes::Inline(_) => None,
        }
    }

    /// The same, where it has to be there before the scope is.
    pub fn needed_route_name(&self) -> Option<&Arc<str>> {
        self.route_name().filter(|_| !self.on_demand)
    }

    pub fn inline(&self) -> Option<&Arc<RouteConfiguration>> {
        match &self.routes {
            ScopeRoutes::Inline(routes) => Some(routes),
            ScopeRoutes::Rds(_) => None,
        }
    }
}

/// Scopes, found by name or by key.
#[derive(Debug, Clone, Default)]
pub struct ScopeTable {
    by_name: BTreeMap<Arc<str>, Arc<Scope>>,
    by_key: HashMap<ScopeKey, Arc<Scope>>,
}

impl ScopeTable {
    /// Adds a scope.
    ///
    /// # Errors
    /// The scope that already has this name or key.
    pub fn insert(&mut self, scope: Arc<Scope>) -> Result<(), Arc<Scope>> {
        let clash = self.by_name.get(&scope.name).or_else(|| self.by_key.get(&scope.key));
        if let Some(clash) = clash {
            return Err(Arc::clone(clash));
        }
        self.by_key.insert(scope.key.clone(), Arc::clone(&scope));
        self.by_name.insert(Arc::clone(&scope.name), scope);
        Ok(())
    }

    /// Takes a scope out, if it is there.
    pub fn remove(&mut self, name: &str) {
        if let Some(scope) = self.by_name.remove(name) {
            self.by_key.remove(&scope.key);
        }
    }

    pub fn find(&self, key: &ScopeKey) -> Option<&Arc<Scope>> {
        self.by_key.get(key)
    }

    /// Every scope, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Scope>> {
        self.by_name.values()
    }
}

impl Serialize for ScopeTable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.by_name)
    }
}
