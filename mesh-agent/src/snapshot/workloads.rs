//! Where the mesh's endpoints are, by address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::tables::Table;
use crate::model::{
    cluster::{ClusterName, Endpoint, LoadAssignment, Tunnel},
    identity::Identity,
};

/// Endpoints of every assignment by IP address: who is to be found where, for connections
/// that ask for a workload and not for a service.
#[derive(Debug, Default, Clone)]
pub struct WorkloadTable {
    by_ip: Table<IpAddr, Vec<Here>>,
}

/// Where an assignment is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AssignmentOwner {
    /// In a cluster.
    Cluster(ClusterName),
    /// By itself, under this name.
    Assignment(Arc<str>),
}

#[derive(Debug, Clone)]
struct Here {
    endpoint: Arc<Endpoint>,
    owner: AssignmentOwner,
}

impl WorkloadTable {
    /// Takes one version of an assignment out and the next in.
    pub(super) fn replace(
        &mut self,
        owner: &AssignmentOwner,
        before: Option<&Arc<LoadAssignment>>,
        after: Option<&Arc<LoadAssignment>>,
    ) {
        for endpoint in before.iter().flat_map(|assignment| assignment.endpoints()) {
            let ip = endpoint.address.ip().to_canonical();
            let Some(there) = self.by_ip.get_mut(&ip) else { continue };
            if let Some(at) = there.iter().position(|other| Arc::ptr_eq(&other.endpoint, endpoint))
            {
                there.swap_remove(at);
            }
            if there.is_empty() {
                self.by_ip.remove_mut(&ip);
            }
        }
        for endpoint in after.iter().flat_map(|assignment| assignment.endpoints()) {
            let ip = endpoint.address.ip().to_canonical();
            let here = Here { endpoint: Arc::clone(endpoint), owner: owner.clone() };
            match self.by_ip.get_mut(&ip) {
                Some(there) => there.push(here),
                None => self.by_ip.insert_mut(ip, vec![here]),
            }
        }
    }

    /// The assignments with an endpoint at `ip`; one may come several times.
    pub fn owners(&self, ip: IpAddr) -> impl Iterator<Item = &AssignmentOwner> {
        let there = self.by_ip.get(&ip.to_canonical());
        there.into_iter().flatten().map(|here| &here.owner)
    }

    /// The tunnel to the workload at `address`. An endpoint of exactly this address
    /// decides; else any of the workload's, for all of its ports are in the mesh.
    /// `None` where no workload of the mesh is known there, or one says that this
    /// port is reached in the clear.
    pub fn tunnel(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let is_tunnel = |endpoint: &&Arc<Endpoint>| endpoint.tunnel != Tunnel::Direct;
        let exact = self.at(address.ip()).filter(|e| e.address.port() == address.port());
        let mut exact = exact.peekable();
        if exact.peek().is_some() {
            return exact.find(is_tunnel).map(Arc::clone);
        }
        let other = self.at(address.ip()).find(is_tunnel)?;
        Some(Arc::new(Endpoint { address, ..Endpoint::clone(other) }))
    }

    /// Whether there is an endpoint of exactly this address.
    pub fn has(&self, address: SocketAddr) -> bool {
        self.at(address.ip()).any(|endpoint| endpoint.address == address)
    }

    /// Whether a workload at `ip` is to be reached by HBONE as `identity`.
    pub fn has_tunnel(&self, ip: IpAddr, identity: &Identity) -> bool {
        let is_it = |endpoint: &Arc<Endpoint>| match &endpoint.tunnel {
            Tunnel::Hbone { identity: expected, .. } => expected == identity,
            Tunnel::Direct => false,
        };
        self.at(ip).any(is_it)
    }

    fn at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Endpoint>> {
        let there = self.by_ip.get(&ip.to_canonical());
        there.into_iter().flatten().map(|here| &here.endpoint)
    }
}
