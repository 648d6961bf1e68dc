//! Live connections are judged again whenever the configuration changes.

use super::Dataplane;
use crate::policy::{Permit, Revoked};

/// Resolves when policy no longer lets the connection live. `permit` was made of
/// snapshot `version`; what has changed since then counts too.
pub(super) async fn revoked(dataplane: &Dataplane, mut permit: Permit, version: u64) -> Revoked {
    let mut changes = dataplane.snapshot.changes();
    if *changes.borrow() != version {
        changes.mark_changed();
    }
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        let policy = dataplane.options.outbound_policy;
        match permit.rejudge(&dataplane.snapshot.load(), policy) {
            Ok(renewed) => permit = renewed,
            Err(revoked) => return revoked,
        }
    }
}
