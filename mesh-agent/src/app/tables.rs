//! Tables from hashes to endpoints are made here, off the path of requests.

use std::{collections::BTreeSet, sync::Arc};

use tokio::{sync::Notify, task};

use super::Agent;
use crate::{model::budget::Budget, proxy::Dataplane, route::Balancers};

/// Balancers whose tables `behind` is notified to make.
pub(super) fn balancers(behind: &Arc<Notify>) -> Balancers {
    let behind = Arc::clone(behind);
    Balancers::new(move || behind.notify_one())
}

/// Has each snapshot wait for the tables it needs; the one before serves meanwhile.
pub(super) fn before_each(dataplane: &Dataplane) {
    let balancers = Arc::clone(&dataplane.balancers);
    dataplane.snapshot.make_ready(move |snapshot| {
        balancers.look_around(snapshot, &mut |below| random(below));
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
    let mut told = Told::default();
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
        Budget::all().into_iter().for_each(|account| _ = told.look(account));
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = behind.notified() => {}
        }
    }
}

/// Of which accounts an operator was told that they are filling.
#[derive(Default)]
struct Told(BTreeSet<&'static str>);

impl Told {
    /// Whether that was told now.
    fn look(&mut self, account: &Budget) -> bool {
        if !account.is_filling() {
            // One that goes up and down at the brink is told of once.
            if account.used_bytes() < account.max_bytes() / 2 {
                self.0.remove(account.name());
            }
            return false;
        }
        let new = self.0.insert(account.name());
        if new {
            tracing::warn!(
                account = account.name(),
                used_bytes = account.used_bytes(),
                max_bytes = account.max_bytes(),
                "an account of memory is more than 80 % full: what does not fit is refused"
            );
        }
        new
    }
}

fn random(below: u32) -> u32 {
    rand::random_range(0..below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_an_account_fills_is_told_once_each_time() {
        static ACCOUNT: Budget = Budget::new("test", 100);
        let mut told = Told::default();
        let some = ACCOUNT.take(79).unwrap();
        assert!(!told.look(&ACCOUNT));
        let more = ACCOUNT.take(1).unwrap();
        assert!(told.look(&ACCOUNT));
        assert!(!told.look(&ACCOUNT));
        drop(more);
        assert!(!told.look(&ACCOUNT));
        let more = ACCOUNT.take(21).unwrap();
        assert!(!told.look(&ACCOUNT), "it was told, and was never half empty since");
        drop((some, more));
        assert!(!told.look(&ACCOUNT));
        let _all = ACCOUNT.take(100).unwrap();
        assert!(told.look(&ACCOUNT));
    }
}
