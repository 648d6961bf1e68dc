//! Where traffic comes from, kept in step with the configuration and the health of the
//! local cluster's endpoints.

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwapOption;

use super::{
    balancer::ClusterBalancer,
    zones::{self, Overrides, Senders},
};
use crate::{
    model::cluster::{Cluster, ClusterName, LoadAssignment, LocalCluster},
    snapshot::Snapshot,
};

/// What was seen of the local cluster; nothing where none is known.
#[derive(Debug, Default)]
pub(super) struct Surroundings(ArcSwapOption<Seen>);

#[derive(Debug)]
struct Seen {
    local: Arc<LocalCluster>,
    cluster: Arc<Cluster>,
    assignment: Arc<LoadAssignment>,
    balancer: Arc<ClusterBalancer>,
    overrides: Overrides,
    /// What `senders` were made at.
    health_version: u64,
    senders: Option<Arc<Senders>>,
}

impl Surroundings {
    /// Looks for the local cluster in `snapshot`; `balancer` knows clusters' endpoints.
    pub(super) fn look(
        &self,
        snapshot: &Snapshot,
        balancer: impl FnOnce(&ClusterName) -> Arc<ClusterBalancer>,
    ) {
        let Some(local) = &snapshot.local_cluster else { return };
        let old = self.0.load_full();
        let found = zones::found(local, snapshot).map(|(cluster, assignment)| {
            let seen = Seen {
                local: Arc::clone(local),
                cluster: Arc::clone(cluster),
                assignment,
                balancer: balancer(&local.name),
                overrides: Overrides::of(&snapshot.runtime),
                health_version: 0,
                senders: old.and_then(|old| old.senders.clone()),
            };
            Arc::new(seen.again())
        });
        self.0.store(found);
    }

    /// Who sends traffic now, if that is known. The same value while nothing has changed.
    pub(super) fn senders(&self, now: Instant) -> Option<Arc<Senders>> {
        let seen = self.0.load();
        let seen = seen.as_ref()?;
        if seen.assignment.stale_at.is_some_and(|stale| stale <= now) {
            return None;
        }
        if seen.health_version == seen.balancer.health_version() {
            return seen.senders.clone();
        }
        let new = Arc::new(seen.again());
        let senders = new.senders.clone();
        // Unless there is another configuration by now.
        self.0.compare_and_swap(seen, Some(new));
        senders
    }
}

impl Seen {
    /// As its endpoints are now.
    fn again(&self) -> Self {
        // Before anybody's health is looked at: what changes meanwhile is seen next time.
        let health_version = self.balancer.health_version();
        let of = (&*self.local, &*self.cluster);
        let senders = self.balancer.senders(of, &self.assignment, self.overrides);
        let senders = senders.map(|senders| match &self.senders {
            Some(old) if **old == senders => Arc::clone(old),
            _ => Arc::new(senders),
        });
        Self {
            local: Arc::clone(&self.local),
            cluster: Arc::clone(&self.cluster),
            assignment: Arc::clone(&self.assignment),
            balancer: Arc::clone(&self.balancer),
            overrides: self.overrides,
            health_version,
            senders,
        }
    }
}
