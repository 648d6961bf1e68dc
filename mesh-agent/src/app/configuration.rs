//! The one writer of snapshots.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time};

use super::{Agent, memory};
use crate::{
    admin::{RejectedConfig, Timestamp},
    model::{
        cluster::{Discovery, Tunnel},
        identity::Identity,
    },
    snapshot::{RejectedResource, Snapshot},
    source::{Delivery, Update},
    transport::hbone::HBONE_PORT,
};

/// Without an update for this long, the source has let go of what it read with.
const SETTLED: Duration = Duration::from_secs(10);

/// Applies what the source delivers, in order, until it delivers no more.
pub(super) async fn follow(agent: Arc<Agent>, mut updates: mpsc::Receiver<Update>) {
    let mut read = false;
    loop {
        match time::timeout(SETTLED, updates.recv()).await {
            Ok(Some(Update::Resources(Delivery { resources, label }))) => {
                agent.apply(resources, label);
                read = true;
            }
            Ok(Some(Update::Rejected(reasons))) => {
                agent.reject(&reasons);
                read = true;
            }
            Ok(None) => return,
            Err(_) => {
                if std::mem::take(&mut read) {
                    memory::release();
                }
            }
        }
    }
}

impl Agent {
    fn apply(&self, resources: crate::snapshot::Resources, label: String) {
        let dataplane = &self.dataplane;
        let version = match dataplane.snapshot.replace(resources, label.clone()) {
            Ok(version) => version,
            Err(reasons) => return self.reject(&reasons),
        };
        let snapshot = dataplane.snapshot.load();
        *self.last_rejected() = None;
        dataplane.metrics.config_applied(version);
        dataplane.balancers.retain(&snapshot);
        let reachable = Reachable::by(&snapshot);
        dataplane
            .connector
            .hbone
            .retain(|key| reachable.tunnels.contains(&(key.tunnel, key.identity.clone())));
        // Connections to local applications belong to their clients, not to endpoints.
        dataplane
            .http
            .pool
            .retain(|key| key.client.is_some() || reachable.endpoints.contains(&key.address));
        tracing::info!(
            version,
            label,
            listeners = snapshot.listeners.len(),
            "configuration applied"
        );
    }

    fn reject(&self, reasons: &[RejectedResource]) {
        let in_force = self.dataplane.snapshot.load().version;
        for reason in reasons {
            tracing::error!(in_force, "configuration refused: {reason}");
        }
        self.dataplane.metrics.config_rejected();
        *self.last_rejected() = Some(RejectedConfig {
            at: Timestamp::now(),
            reasons: reasons.iter().map(ToString::to_string).collect(),
        });
    }
}

/// Where a snapshot's endpoints are.
#[derive(Default)]
struct Reachable {
    endpoints: HashSet<SocketAddr>,
    tunnels: HashSet<(SocketAddr, Identity)>,
}

impl Reachable {
    fn by(snapshot: &Snapshot) -> Self {
        let mut reachable = Self::default();
        let inline = snapshot.clusters.values().filter_map(|cluster| match &cluster.discovery {
            Discovery::Static(assignment) => Some(assignment),
            Discovery::Eds { .. } | Discovery::OriginalDestination => None,
        });
        let endpoints = inline.chain(snapshot.assignments.values()).flat_map(|a| &a.endpoints);
        for endpoint in endpoints {
            reachable.endpoints.insert(endpoint.address);
            if let Tunnel::Hbone { identity, .. } = &endpoint.tunnel {
                let tunnel = SocketAddr::new(endpoint.address.ip(), HBONE_PORT);
                reachable.tunnels.insert((tunnel, identity.clone()));
            }
        }
        reachable
    }
}
