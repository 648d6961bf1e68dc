//! Extensions' configurations that arrive by themselves.

use std::sync::Arc;

use serde::Serialize;

use super::listener::HttpFilter;

/// The configuration of an HTTP filter, by the name it is asked for.
///
/// Spec: `envoy.config.core.v3.TypedExtensionConfig`.
#[derive(Debug, Clone, Serialize)]
pub struct ExtensionConfig {
    pub name: Arc<str>,
    /// The full name of the filter's configuration message.
    pub type_name: Arc<str>,
    /// `None`: the filter does nothing, as an RBAC without rules.
    pub filter: Option<HttpFilter>,
}
