//! Endpoints' health as time goes by: ejections that end, success rates that are compared,
//! checks.

use std::{sync::Arc, time::Instant};

use tokio::time;

use super::Agent;
use crate::proxy::health::HealthChecks;

/// Until there are no more snapshots.
pub(super) async fn follow(agent: Arc<Agent>) {
    let dataplane = &agent.dataplane;
    let random = &mut |below| rand::random_range(0..below);
    let mut changes = dataplane.snapshot.changes();
    let mut checks = HealthChecks::new(Arc::clone(dataplane));
    loop {
        changes.borrow_and_update();
        let snapshot = dataplane.snapshot.load();
        dataplane.balancers.monitor(&snapshot, random, Instant::now());
        checks.follow(&snapshot);
        drop(snapshot);
        loop {
            let due = dataplane.balancers.sweep(Instant::now(), random);
            let due = async {
                match due {
                    Some(due) => time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = due => {}
            }
        }
    }
}
