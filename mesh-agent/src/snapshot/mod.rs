//! The configuration in force: immutable snapshots behind one cell.
//!
//! One writer (`app`'s configuration task) applies what a source delivers; readers
//! load once per connection or request and see one version throughout. This room
//! must not know where resources came from.

#![forbid(unsafe_code)]

mod apply;
mod scopes;
mod tables;
mod workloads;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{cluster::LocalCluster, runtime::LayeredRuntime};

pub use apply::{Changes, RejectedResource, Removed, Resources, check};
pub use scopes::RouteTable;
pub use tables::{HostGroup, ListenerTable, Snapshot, Table};
pub use workloads::{AssignmentOwner, WorkloadTable};

/// The one place where the snapshot in force lives.
#[derive(Debug)]
pub struct SnapshotCell {
    current: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
    ready: OnceLock<Ready>,
}

/// What is done with each snapshot before it is in force.
struct Ready(Box<dyn Fn(&Snapshot) + Send + Sync>);

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ready")
    }
}

impl Default for SnapshotCell {
    fn default() -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::default()),
            version: watch::Sender::new(0),
            ready: OnceLock::new(),
        }
    }
}

impl SnapshotCell {
    /// Nothing yet but these layers of runtime values, and where traffic comes from.
    pub fn new(layers: LayeredRuntime, local_cluster: Option<LocalCluster>) -> Self {
        let runtime = Arc::new(layers.with(&HashMap::new()));
        let layered_runtime = Arc::new(layers);
        let local_cluster = local_cluster.map(Arc::new);
        let current = Snapshot { runtime, layered_runtime, local_cluster, ..Snapshot::default() };
        Self { current: ArcSwap::from_pointee(current), ..Self::default() }
    }

    /// Has `ready` called with each snapshot before it is in force; the last one serves
    /// until it returns. The first call counts.
    pub fn make_ready(&self, ready: impl Fn(&Snapshot) + Send + Sync + 'static) {
        _ = self.ready.set(Ready(Box::new(ready)));
    }

    /// The snapshot in force now. Hold it for as long as one decision chain lasts.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Wakes its holder whenever a new snapshot is in force; the value is its version.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Replaces the whole configuration, or leaves the last good one in force.
    ///
    /// `label` is what the source calls this version, shown in `config dump`.
    ///
    /// # Errors
    /// Every reference that leads nowhere and every clash, by resource and field.
    pub fn replace(
        &self,
        resources: Resources,
        label: String,
    ) -> Result<u64, Vec<RejectedResource>> {
        let current = self.current.load();
        let empty = Snapshot {
            version: current.version,
            runtime: Arc::new(current.layered_runtime.with(&HashMap::new())),
            layered_runtime: Arc::clone(&current.layered_runtime),
            local_cluster: current.local_cluster.clone(),
            ..Snapshot::default()
        };
        self.put(&empty, Changes { updated: resources, removed: Removed::default() }, label)
    }

    /// Applies what changed to the configuration in force, as a whole or not at all.
    /// Tables that nothing changes in are shared with the version before.
    ///
    /// # Errors
    /// As [`SnapshotCell::replace`], of what changed and of what named what is gone.
    pub fn update(&self, changes: Changes, label: String) -> Result<u64, Vec<RejectedResource>> {
        self.put(&self.current.load_full(), changes, label)
    }

    fn put(
        &self,
        base: &Snapshot,
        changes: Changes,
        label: String,
    ) -> Result<u64, Vec<RejectedResource>> {
        let snapshot = apply::build(base, changes, label, SystemTime::now())?;
        let version = snapshot.version;
        if let Some(Ready(ready)) = self.ready.get() {
            ready(&snapshot);
        }
        self.current.store(Arc::new(snapshot));
        self.version.send_replace(version);
        Ok(version)
    }
}

#[cfg(test)]
mod tests;
