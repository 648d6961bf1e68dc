//! Endpoints' health as time goes by: ejections that end, success rates that are compared.

use std::{sync::Arc, time::Instant};

use tokio::time;

use super::Agent;

/// Until there are no more snapshots.
pub(super) async fn follow(agent: Arc<Agent>) {
    let dataplane = &agent.dataplane;
    let random = &mut |below| rand::random_range(0..below);
    let mut changes = dataplane.snapshot.changes();
    loop {
        changes.borrow_and_update();
        dataplane.balancers.monitor(&dataplane.snapshot.load(), random, Instant::now());
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
