//! From a request head to its scope, and to the route configuration it leads to.
//!
//! Spec: `ScopedRoutes` in
//! `envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto`.

use std::sync::Arc;

use http::request::Parts;

use crate::{
    model::{
        route::RouteConfiguration,
        scope::{Extract, KeyFragment, ScopeKey, ScopeRoutes},
    },
    policy::matcher::first_value,
    snapshot::RouteTable,
};

/// A request has no route configuration: it is answered 404. Envoy's response flag: NR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoScope {
    /// Its headers make no key, or one that no scope has.
    #[error("scoped routes `{scoped}` have no scope for the request")]
    Unknown { scoped: Arc<str> },
    /// Its scope's routes are not there: they are asked for at the first request.
    #[error("scope `{scope}` has no route configuration `{routes}` yet")]
    Routes { scope: Arc<str>, routes: Arc<str> },
}

/// The route configuration that is for a request.
///
/// # Errors
/// [`NoScope`], where each request finds its own.
pub fn configuration_for(
    table: &RouteTable,
    head: &Parts,
) -> Result<Arc<RouteConfiguration>, NoScope> {
    let (scoped, scopes, routes) = match table {
        RouteTable::One(configuration) => return Ok(Arc::clone(configuration)),
        RouteTable::Scoped { scoped, scopes, routes } => (scoped, scopes, routes),
    };
    let scope = scope_key(&scoped.fragments, head).and_then(|key| scopes.find(&key));
    let scope = scope.ok_or_else(|| NoScope::Unknown { scoped: Arc::clone(&scoped.name) })?;
    match &scope.routes {
        ScopeRoutes::Inline(configuration) => Ok(Arc::clone(configuration)),
        ScopeRoutes::Rds(name) => routes.get(name).cloned().ok_or_else(|| NoScope::Routes {
            scope: Arc::clone(&scope.name),
            routes: Arc::clone(name),
        }),
    }
}

/// `None`: a fragment is missing.
fn scope_key(fragments: &[KeyFragment], head: &Parts) -> Option<ScopeKey> {
    fragments.iter().map(|fragment| extract(fragment, head)).collect()
}

fn extract(fragment: &KeyFragment, head: &Parts) -> Option<String> {
    let KeyFragment { header, separator, extract } = fragment;
    let value = std::str::from_utf8(first_value(header, head)?).ok()?;
    let whole = || std::iter::once(value).filter(|_| separator.is_empty());
    let parts = value.split(separator.as_str()).filter(|_| !separator.is_empty());
    let mut elements = whole().chain(parts);
    let found = match extract {
        Extract::Index(at) => elements.nth(usize::try_from(*at).ok()?)?,
        Extract::Element { separator, key } => elements.find_map(|element| {
            let (name, value) = element.split_once(separator.as_str()).unwrap_or((element, ""));
            (name == key).then_some(value)
        })?,
    };
    Some(found.to_owned())
}

#[cfg(test)]
mod tests;
