//! Extensions' configurations that arrive by themselves.

use std::sync::Arc;

use serde::Serialize;

use super::filter::HttpFilter;

/// The configuration of an HTTP filter, by the name it is asked for.
///
/// Spec: `envoy.config.core.v3.TypedExtensionConfig`.
#[derive(Debug, Clone, Serialize)]
pub struct ExtensionConfig {
    pub name: Arc<str>,
    /// The full name of the filter's configuration message.
    pub type_name: Arc<str>,
    pub filter: HttpFilter,
}

/// A filter's place in a chain, for a configuration that arrives by itself.
///
/// Spec: `envoy.config.core.v3.ExtensionConfigSource`.
#[derive(Debug, Clone, Serialize)]
pub struct DiscoveredFilter {
    /// The resource's name, which is the filter's.
    pub name: Arc<str>,
    /// The types that are taken, by full name; not empty.
    pub type_names: Vec<Arc<str>>,
    /// In force while there is nothing of a type that is taken.
    pub default_config: Option<Arc<ExtensionConfig>>,
    /// Whether its listener waits for the first answer.
    pub warms: bool,
}

impl DiscoveredFilter {
    /// Whether a configuration of that type is taken.
    pub fn takes(&self, type_name: &str) -> bool {
        self.type_names.iter().any(|known| &**known == type_name)
    }

    /// What is in force where `delivered` is what there is of that name. `None`: nothing,
    /// and whoever needs the filter can't be served.
    pub fn config<'a>(
        &'a self,
        delivered: Option<&'a ExtensionConfig>,
    ) -> Option<&'a ExtensionConfig> {
        let fits = |config: &&ExtensionConfig| self.takes(&config.type_name);
        delivered.filter(fits).or(self.default_config.as_deref())
    }
}
