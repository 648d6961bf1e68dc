//! What is known of endpoints beside their configuration.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::Instant,
};

use super::{health::Checked, outlier};
use crate::model::cluster::{Endpoint, Health};

/// A cluster's, by address.
pub(super) type Hosts = HashMap<SocketAddr, Arc<HostState>>;

/// One endpoint's, for as long as its cluster has it.
#[derive(Debug, Default)]
pub(super) struct HostState {
    /// How much is in flight to it.
    pub(super) active: AtomicU32,
    pub(super) outlier: outlier::Monitor,
    pub(super) checked: Checked,
    /// Since when it is well, if it was ever.
    well_since: Mutex<Option<Instant>>,
}

/// How an endpoint is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) health: Health,
    /// As one of its priority's endpoints.
    pub(super) counts: bool,
}

impl Standing {
    /// By configuration alone.
    pub(super) fn configured(endpoint: &Endpoint) -> Self {
        Self { health: endpoint.health, counts: true }
    }
}

impl HostState {
    /// Since when it is well: from now on, unless that is known.
    pub(super) fn well_since(&self, now: Instant) -> Instant {
        *self.lock_since().get_or_insert(now)
    }

    /// It is well again.
    pub(super) fn recovered(&self, now: Instant) {
        *self.lock_since() = Some(now);
    }

    fn lock_since(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.well_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By configuration, and by what was seen since.
    pub(super) fn standing(&self, endpoint: &Endpoint, ignore_new: bool) -> Standing {
        let ill = self.outlier.is_ejected() || self.checked.has_failed();
        let health = match endpoint.health {
            Health::Unhealthy => Health::Unhealthy,
            _ if ill => Health::Unhealthy,
            _ if self.checked.is_degraded() => Health::Degraded,
            configured => configured,
        };
        Standing { health, counts: self.checked.counts_for_panic(ignore_new) }
    }
}
