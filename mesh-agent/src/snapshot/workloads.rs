//! Where the mesh's endpoints are, by address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::tables::Table;
use crate::model::{
    cluster::{Endpoint, LoadAssignment, Tunnel},
    identity::Identity,
};

/// Endpoints of every assignment by IP address: who is to be found where, for connections
/// that ask for a workload and not for a service.
#[derive(Debug, Default, Clone)]
pub struct WorkloadTable {
    by_ip: Table<IpAddr, Vec<Arc<Endpoint>>>,
}

impl WorkloadTable {
    /// Takes one version of an assignment out and the next in.
    pub(super) fn replace(
        &mut self,
        before: Option<&Arc<LoadAssignment>>,
        after: Option<&Arc<LoadAssignment>>,
    ) {
        for endpoint in before.iter().flat_map(|assignment| assignment.endpoints()) {
            let ip = endpoint.address.ip().to_canonical();
            let Some(there) = self.by_ip.get_mut(&ip) else { continue };
            if let Some(at) = there.iter().position(|other| Arc::ptr_eq(other, endpoint)) {
                there.swap_remove(at);
            }
            if there.is_empty() {
                self.by_ip.remove_mut(&ip);
            }
        }
        for endpoint in after.iter().flat_map(|assignment| assignment.endpoints()) {
            let ip = endpoint.address.ip().to_canonical();
            match self.by_ip.get_mut(&ip) {
                Some(there) => there.push(Arc::clone(endpoint)),
                None => self.by_ip.insert_mut(ip, vec![Arc::clone(endpoint)]),
            }
        }
    }

    /// The tunnel to the workload at `address`. An endpoint of exactly this address
    /// decides; else any of the workload's, for all of its ports are in the mesh.
    /// `None` where no workload of the mesh is known there, or one says that this
    /// port is reached in the clear.
    pub fn tunnel(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let is_tunnel = |endpoint: &&Arc<Endpoint>| endpoint.tunnel != Tunnel::Direct;
        let endpoints = self.at(address.ip());
        let mut exact = endpoints.iter().filter(|e| e.address.port() == address.port()).peekable();
        if exact.peek().is_some() {
            return exact.find(is_tunnel).map(Arc::clone);
        }
        let other = endpoints.iter().find(is_tunnel)?;
        Some(Arc::new(Endpoint { address, ..Endpoint::clone(other) }))
    }

    /// Whether there is an endpoint of exactly this address.
    pub fn has(&self, address: SocketAddr) -> bool {
        self.at(address.ip()).iter().any(|endpoint| endpoint.address == address)
    }

    /// Whether a workload at `ip` is to be reached by HBONE as `identity`.
    pub fn has_tunnel(&self, ip: IpAddr, identity: &Identity) -> bool {
        let is_it = |endpoint: &Arc<Endpoint>| match &endpoint.tunnel {
            Tunnel::Hbone { identity: expected, .. } => expected == identity,
            Tunnel::Direct => false,
        };
        self.at(ip).iter().any(is_it)
    }

    fn at(&self, ip: IpAddr) -> &[Arc<Endpoint>] {
        self.by_ip.get(&ip.to_canonical()).map_or(&[], Vec::as_slice)
    }
}
