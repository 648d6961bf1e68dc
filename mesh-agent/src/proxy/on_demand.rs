//! What a request needs and the configuration does not have is asked for, while the
//! request waits: route configurations by the request's scope, virtual hosts by its host,
//! clusters by the route's.
//!
//! Names come from clients, so all of it is bounded: requests that wait, names that are
//! asked for, and the time. A name that is not to be had is forgotten with the last
//! request that waits for it; of those that were found, the one asked for longest ago
//! makes room.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time};

use crate::{
    model::workload::WorkloadUid,
    observe::metrics::Metrics,
    snapshot::{Snapshot, SnapshotCell},
};

/// Requests that may wait at a time: in all, and of one pod, so that its flood leaves room
/// for its neighbours.
const HELD_MAX: usize = 1024;
const HELD_OF_POD_MAX: usize = 256;

/// Names that may be asked for at a time, found ones included.
const NAMES_MAX: usize = 4096;

/// The longest name that is asked for, in bytes.
const NAME_MAX_BYTES: usize = 1024;

/// What a request may ask for, by the name it goes by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sought {
    Cluster(Arc<str>),
    /// `<route configuration>/<host>`
    VirtualHost(Arc<str>),
    /// A scope's.
    Routes(Arc<str>),
}

impl Sought {
    fn name(&self) -> &str {
        match self {
            Self::Cluster(name) | Self::VirtualHost(name) | Self::Routes(name) => name,
        }
    }

    /// For a metric's label.
    fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "clusters",
            Self::VirtualHost(_) => "virtual_hosts",
            Self::Routes(_) => "routes",
        }
    }
}

/// Where names are asked for. Implemented in `app` over the source of configuration.
pub trait Discovery: Send + Sync {
    /// Asks until [`Discovery::unwant`]; what comes is in the snapshot.
    fn want(&self, sought: &Sought);

    /// No longer asks.
    fn unwant(&self, sought: &Sought);
}

/// Why a request does not get what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The source has no such thing, or is none that could be asked.
    Absent,
    /// It was not there in time.
    Late,
    /// Too much is being asked for already.
    Full,
}

impl Unavailable {
    /// For a metric's label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Late => "timeout",
            Self::Full => "overflow",
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "the control plane does not have it",
            Self::Late => "it did not come in time",
            Self::Full => "too much is being asked for already",
        })
    }
}

/// The names that are asked for, and who waits for them.
pub struct OnDemand {
    /// `None` where configuration comes from a source that can't be asked.
    discovery: Option<Arc<dyn Discovery>>,
    snapshots: Arc<SnapshotCell>,
    metrics: Metrics,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    names: HashMap<Sought, Entry>,
    held: usize,
    /// By pod; no zeroes.
    held_of: HashMap<WorkloadUid, usize>,
    /// Counts lookups: the clock of "longest ago".
    clock: u64,
}

struct Entry {
    waiters: usize,
    /// Whether the source has answered.
    answered: watch::Sender<bool>,
    asked_at: u64,
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand")
            .field("can_ask", &self.discovery.is_some())
            .finish_non_exhaustive()
    }
}

impl OnDemand {
    /// Asks by `discovery`, and looks for what comes in `snapshots`.
    pub fn new(
        discovery: Option<Arc<dyn Discovery>>,
        snapshots: Arc<SnapshotCell>,
        metrics: Metrics,
    ) -> Self {
        Self { discovery, snapshots, metrics, table: Mutex::default() }
    }

    /// The source has delivered these, or does not have them; snapshots with what it
    /// delivered are in force.
    pub fn answered(&self, answered: &[Sought]) {
        let table = self.table();
        for sought in answered {
            if let Some(entry) = table.names.get(sought) {
                entry.answered.send_replace(true);
            }
        }
    }

    /// Has a request of the pod with that UID wait until a snapshot has it.
    ///
    /// # Errors
    /// Why it has not, after `patience` at the latest.
    pub(super) async fn obtain(
        &self,
        pod: &WorkloadUid,
        sought: &Sought,
        patience: Duration,
        there: impl Fn(&Snapshot) -> bool,
    ) -> Result<(), Unavailable> {
        let obtained = self.wait(pod, sought, patience, there).await;
        let result = obtained.err().map_or("found", Unavailable::as_str);
        self.metrics.on_demand(sought.kind(), result);
        obtained
    }

    async fn wait(
        &self,
        pod: &WorkloadUid,
        sought: &Sought,
        patience: Duration,
        there: impl Fn(&Snapshot) -> bool,
    ) -> Result<(), Unavailable> {
        let discovery = self.discovery.as_deref().ok_or(Unavailable::Absent)?;
        if sought.name().is_empty() || sought.name().len() > NAME_MAX_BYTES {
            return Err(Unavailable::Absent);
        }
        // Before the name is asked for: nothing that comes is missed.
        let mut changes = self.snapshots.changes();
        let (mut waiter, mut answered) = self.enter(discovery, pod, sought)?;
        let found = async {
            loop {
                let last = *answered.borrow_and_update();
                changes.borrow_and_update();
                if there(&self.snapshots.load()) {
                    return Ok(());
                }
                if last {
                    return Err(Unavailable::Absent);
                }
                tokio::select! {
                    Ok(()) = answered.changed() => {}
                    Ok(()) = changes.changed() => {}
                    // Neither is ever closed while we are here.
                    else => return Err(Unavailable::Absent),
                }
            }
        };
        let found = time::timeout(patience, found).await.unwrap_or(Err(Unavailable::Late));
        waiter.found = found.is_ok();
        found
    }

    /// Asks for a name, unless others have already.
    fn enter<'a>(
        &'a self,
        discovery: &'a dyn Discovery,
        pod: &'a WorkloadUid,
        sought: &'a Sought,
    ) -> Result<(Waiter<'a>, watch::Receiver<bool>), Unavailable> {
        let mut table = self.table();
        let held_of_pod = table.held_of.get(pod).copied().unwrap_or_default();
        if table.held >= HELD_MAX || held_of_pod >= HELD_OF_POD_MAX {
            return Err(Unavailable::Full);
        }
        if table.names.len() >= NAMES_MAX && !table.names.contains_key(sought) {
            let idle = table.names.iter().filter(|(_, entry)| entry.waiters == 0);
            let oldest = idle.min_by_key(|(_, entry)| entry.asked_at);
            let oldest = oldest.map(|(sought, _)| sought.clone()).ok_or(Unavailable::Full)?;
            discovery.unwant(&oldest);
            table.names.remove(&oldest);
        }
        table.held += 1;
        table.held_of.insert(pod.clone(), held_of_pod + 1);
        table.clock += 1;
        let asked_at = table.clock;
        let entry = table.names.entry(sought.clone()).or_insert_with(|| {
            discovery.want(sought);
            Entry { waiters: 0, answered: watch::Sender::new(false), asked_at }
        });
        entry.waiters += 1;
        entry.asked_at = asked_at;
        let answered = entry.answered.subscribe();
        self.metrics.on_demand_load(table.names.len(), table.held);
        Ok((Waiter { on_demand: self, discovery, pod, sought, found: false }, answered))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request that waits for a name.
struct Waiter<'a> {
    on_demand: &'a OnDemand,
    discovery: &'a dyn Discovery,
    pod: &'a WorkloadUid,
    sought: &'a Sought,
    found: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut table = self.on_demand.table();
        table.held -= 1;
        if let Some(held) = table.held_of.get_mut(self.pod) {
            *held -= 1;
            if *held == 0 {
                table.held_of.remove(self.pod);
            }
        }
        if let Some(entry) = table.names.get_mut(self.sought) {
            entry.waiters -= 1;
            if entry.waiters == 0 && !self.found {
                table.names.remove(self.sought);
                self.discovery.unwant(self.sought);
            }
        }
        self.on_demand.metrics.on_demand_load(table.names.len(), table.held);
    }
}

#[cfg(test)]
mod tests;
