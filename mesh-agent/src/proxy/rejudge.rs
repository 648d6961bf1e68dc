//! Live connections are judged again whenever the configuration changes.
//!
//! What policy denies is cut at once. Where the listener or filter chain is gone, or is
//! another one in what holds for a connection's life, the connection drains, as Envoy's
//! do: no new requests but those that are on their way, and an end at the drain timeout.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Dataplane, Failure, failure};
use crate::{
    model::listener::TerminalFilter,
    policy::{FlowError, OutboundPolicy, Permit, Revoked},
    snapshot::Snapshot,
};

/// How a live connection stands under a snapshot.
pub(super) enum Standing {
    /// It lives on; this is its permit now.
    Holds(Permit),
    /// It drains. `None` where no listener or filter chain is for it.
    Drains(Option<Permit>),
    /// Policy no longer lets it live.
    Denied(Revoked),
}

/// Judges a connection, which began with the filter `began`, by `snapshot`.
pub(super) fn standing(
    permit: &Permit,
    began: Option<&TerminalFilter>,
    snapshot: &Snapshot,
    outbound_policy: OutboundPolicy,
) -> Standing {
    match permit.rejudge(snapshot, outbound_policy) {
        Ok(renewed) => match (began, renewed.flow().terminal()) {
            // It began before there was a listener for it.
            (None, _) => Standing::Holds(renewed),
            (Some(began), Some(now)) if began.carries_over_to(now) => Standing::Holds(renewed),
            (Some(_), _) => Standing::Drains(Some(renewed)),
        },
        Err(Revoked::Flow(
            FlowError::NoListener { .. }
            | FlowError::NoGateway { .. }
            | FlowError::NoFilterChain { .. }
            | FlowError::NotInspected { .. },
        )) => Standing::Drains(None),
        Err(revoked) => Standing::Denied(revoked),
    }
}

/// When a connection that drains must end; never, while it does not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DrainDeadline(Option<Instant>);

impl DrainDeadline {
    /// Begins to drain, unless it has.
    pub(super) fn begin(&mut self, timeout: Duration) {
        self.0.get_or_insert_with(|| Instant::now() + timeout);
    }

    /// Whether it is over.
    pub(super) fn is_over(self) -> bool {
        self.0.is_some_and(|at| at <= Instant::now())
    }

    async fn over(self) {
        match self.0 {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// Resolves when the connection must end now, and says why. `permit` was made of snapshot
/// `version`; what has changed since then counts too. `note` is told how the connection
/// stands after each change.
pub(super) async fn ended(
    dataplane: &Dataplane,
    mut permit: Permit,
    version: u64,
    mut note: impl FnMut(&Standing, &Snapshot),
) -> Failure {
    let mut changes = dataplane.snapshot.changes();
    if *changes.borrow() != version {
        changes.mark_changed();
    }
    let began = permit.flow().terminal().cloned();
    let mut drain = DrainDeadline::default();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = drain.over() => return failure::drained(),
        }
        let snapshot = dataplane.snapshot.load();
        let policy = dataplane.options.outbound_policy;
        let standing = standing(&permit, began.as_ref(), &snapshot, policy);
        note(&standing, &snapshot);
        match standing {
            Standing::Holds(renewed) => permit = renewed,
            Standing::Drains(renewed) => {
                permit = renewed.unwrap_or(permit);
                drain.begin(dataplane.options.drain_timeout);
            }
            Standing::Denied(revoked) => return failure::revoked(revoked),
        }
    }
}

#[cfg(test)]
mod tests;
