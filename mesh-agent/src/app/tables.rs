//! Tables from hashes to endpoints are made here, off the path of requests.

use std::sync::Arc;

use tokio::{sync::Notify, task};

use super::Agent;
use crate::{proxy::Dataplane, route::Balancers};

/// Balancers whose tables `behind` is notified to make.
pub(super) fn balancers(behind: &Arc<Notify>) -> Balancers {
    let behind = Arc::clone(behind);
    Balancers::new(move || behind.notify_one())
}

/// Has each snapshot wait for the tables it needs; the one before serves meanwhile.
pub(super) fn before_each(dataplane: &Dataplane) {
    let balancers = Arc::clone(&dataplane.balancers);
    dataplane.snapshot.make_ready(move |snapshot| {
        let due = balancers.due(snapshot);
        if !due.is_empty() {
            // For large ones seconds, in which this thread's other tasks go on elsewhere.
            task::block_in_place(|| balancers.prepare(&due, &mut |below| random(below)));
        }
    });
}

/// Keeps tables in step with snapshots and endpoints' health, for as long as the agent runs.
pub(super) async fn follow(agent: Arc<Agent>, behind: Arc<Notify>) {
    let dataplane = &agent.dataplane;
    let mut changes = dataplane.snapshot.changes();
    loop {
        changes.borrow_and_update();
        let due = dataplane.balancers.due(&dataplane.snapshot.load());
        if !due.is_empty() {
            let balancers = Arc::clone(&dataplane.balancers);
            let made = task::spawn_blocking(move || {
                balancers.refresh(&due, &mut |below| random(below));
            });
            if let Err(error) = made.await {
                tracing::error!(%error, "tables of hashes were not made");
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = behind.notified() => {}
        }
    }
}

fn random(below: u32) -> u32 {
    rand::random_range(0..below)
}
