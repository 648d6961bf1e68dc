//! What is known of endpoints beside their configuration.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU32},
};

use super::outlier;
use crate::model::cluster::{Endpoint, Health};

/// A cluster's, by address.
pub(super) type Hosts = HashMap<SocketAddr, Arc<HostState>>;

/// One endpoint's, for as long as its cluster has it.
#[derive(Debug, Default)]
pub(super) struct HostState {
    /// How much is in flight to it.
    pub(super) active: AtomicU32,
    pub(super) outlier: outlier::Monitor,
}

impl HostState {
    /// By configuration, and by what was seen since.
    pub(super) fn health(&self, endpoint: &Endpoint) -> Health {
        match self.outlier.is_ejected() {
            true => Health::Unhealthy,
            false => endpoint.health,
        }
    }
}
