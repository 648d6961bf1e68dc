//! The configuration in force, resource by resource.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{
    XdsView,
    api::{RejectedConfig, SnapshotView, Timestamp},
};
use crate::{
    model::{
        cluster::{Cluster, Discovery, LoadAssignment},
        extension::ExtensionConfig,
        listener::Listener,
        route::RouteConfiguration,
        runtime::{Runtime, RuntimeLayer, RuntimeValue},
        scope::ScopeTable,
        secret::Secret,
    },
    snapshot::Snapshot,
    source::{Version, Versions},
};

/// Every resource by name, with the version it belongs to.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigDump {
    pub version: u64,
    pub label: String,
    pub applied_at: Option<Timestamp>,
    /// The last configuration that was refused, and why.
    pub last_rejected: Option<RejectedConfig>,
    /// The connection to the control plane, where that is the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xds: Option<XdsView>,
    /// By type and name, as the tables below.
    pub versions: BTreeMap<&'static str, BTreeMap<Arc<str>, VersionView>>,
    pub listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    pub routes: BTreeMap<Arc<str>, Arc<RouteConfiguration>>,
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// By the name they are delivered under.
    pub endpoints: BTreeMap<Arc<str>, Arc<LoadAssignment>>,
    /// Without their keys.
    pub secrets: BTreeMap<Arc<str>, Arc<Secret>>,
    pub runtime: RuntimeView,
    pub extension_configs: BTreeMap<Arc<str>, Arc<ExtensionConfig>>,
    /// By name; those that are written in listeners are there.
    pub scoped_routes: Arc<ScopeTable>,
}

impl ConfigDump {
    /// Shares the snapshot's resources; copies none.
    pub fn of(snapshot: &Snapshot, last_rejected: Option<RejectedConfig>) -> Self {
        fn named<T>((name, value): (&Arc<str>, &Arc<T>)) -> (Arc<str>, Arc<T>) {
            (Arc::clone(name), Arc::clone(value))
        }
        Self {
            version: snapshot.version,
            label: snapshot.label.clone(),
            applied_at: applied_at(snapshot),
            last_rejected,
            xds: None,
            versions: BTreeMap::new(),
            listeners: snapshot
                .listeners
                .iter()
                .map(|listener| (Arc::clone(&listener.name), Arc::clone(listener)))
                .collect(),
            routes: snapshot.routes.iter().map(named).collect(),
            clusters: snapshot
                .clusters
                .iter()
                .map(|(name, cluster)| (Arc::clone(&name.0), Arc::clone(cluster)))
                .collect(),
            endpoints: snapshot.assignments.iter().map(named).collect(),
            secrets: snapshot.secrets.iter().map(named).collect(),
            runtime: RuntimeView::of(&snapshot.runtime),
            extension_configs: snapshot.extension_configs.iter().map(named).collect(),
            scoped_routes: Arc::clone(&snapshot.scopes),
        }
    }
}

/// One resource's version, as Envoy's `/config_dump` has it.
///
/// Spec: `envoy/admin/v3/config_dump.proto` (`version_info`, `last_updated`).
#[derive(Debug, Clone, Serialize)]
pub struct VersionView {
    /// What its source calls it; empty where it has no name for it.
    pub version_info: Arc<str>,
    /// When it was applied.
    pub last_updated: Timestamp,
}

impl VersionView {
    /// Every resource's, by type and name.
    pub fn all(versions: &Versions) -> BTreeMap<&'static str, BTreeMap<Arc<str>, Self>> {
        let of_kind = versions.iter().map(|(kind, of)| {
            let views = of.map(|(name, Version { name: version_info, updated_at })| {
                let version_info = Arc::clone(version_info);
                let last_updated = (*updated_at).into();
                (Arc::clone(name), Self { version_info, last_updated })
            });
            (kind, views.collect())
        });
        of_kind.collect()
    }
}

/// The runtime: its layers, and which of them says what.
#[derive(Debug, Clone, Serialize)]
pub struct RuntimeView {
    /// From the first to the last, which goes before the others.
    pub layers: Vec<RuntimeLayerView>,
    /// The values in force, by key.
    pub entries: BTreeMap<String, RuntimeEntryView>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RuntimeLayerView {
    pub name: Arc<str>,
    pub values: Arc<RuntimeLayer>,
}

#[derive(Debug, Clone, Serialize)]
pub struct RuntimeEntryView {
    pub value: RuntimeValue,
    /// The layer it is from.
    pub layer: Arc<str>,
}

impl RuntimeView {
    fn of(runtime: &Runtime) -> Self {
        let layers = runtime.layers.iter();
        let layers = layers.map(|(name, values)| RuntimeLayerView {
            name: Arc::clone(name),
            values: Arc::clone(values),
        });
        let mut entries = BTreeMap::new();
        for (layer, values) in &runtime.layers {
            for (key, value) in &values.values {
                let (layer, value) = (Arc::clone(layer), value.clone());
                entries.insert(key.clone(), RuntimeEntryView { value, layer });
            }
        }
        Self { layers: layers.collect(), entries }
    }
}

impl From<&Snapshot> for SnapshotView {
    fn from(snapshot: &Snapshot) -> Self {
        let in_clusters = snapshot.clusters.values().map(|cluster| match &cluster.discovery {
            Discovery::Static(assignment) => assignment.endpoints().count(),
            Discovery::Dns(dns) => dns.template.endpoints().count(),
            Discovery::Eds { .. } | Discovery::OriginalDestination => 0,
        });
        let by_eds = snapshot.assignments.values().map(|assignment| assignment.endpoints().count());
        Self {
            version: snapshot.version,
            label: snapshot.label.clone(),
            applied_at: applied_at(snapshot),
            listeners: snapshot.listeners.len(),
            routes: snapshot.routes.size(),
            clusters: snapshot.clusters.size(),
            endpoints: in_clusters.chain(by_eds).sum(),
        }
    }
}

fn applied_at(snapshot: &Snapshot) -> Option<Timestamp> {
    (snapshot.version > 0).then(|| snapshot.applied_at.into())
}
