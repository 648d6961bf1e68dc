//! A connection that capture handed to the agent, before anything was decided.

use std::{net::SocketAddr, sync::Arc};

use super::{identity::Identity, socket::PodSockets, workload::Workload};

/// An enrolled pod: who it is, and how to make sockets in its namespace.
#[derive(Debug)]
pub struct Pod {
    pub workload: Workload,
    pub sockets: Arc<dyn PodSockets>,
}

/// How an inbound connection reached the destination workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPeer {
    /// Through HBONE: the TLS handshake proved this identity.
    Mtls(Identity),
    /// As plaintext from the wire: nobody vouches for it.
    Plaintext,
}

impl InboundPeer {
    /// The proven identity, if there is one.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Mtls(identity) => Some(identity),
            Self::Plaintext => None,
        }
    }
}

/// A connection that a local pod opened.
#[derive(Debug, Clone)]
pub struct CapturedOutbound {
    /// The pod that dialled: its identity is the connection's source identity.
    pub pod: Arc<Pod>,
    /// The application's own address.
    pub source: SocketAddr,
    /// What the application asked for, before eBPF rewrote it. IPv4-mapped IPv6
    /// is shown as IPv4.
    pub original_destination: SocketAddr,
}

/// A connection that arrived for a local pod.
#[derive(Debug, Clone)]
pub struct CapturedInbound {
    /// The destination workload.
    pub pod: Arc<Pod>,
    /// Where the packets came from; with HBONE, where the TLS connection came from.
    pub source: SocketAddr,
    /// The address and port the peer asked for: with HBONE the `:authority`.
    pub original_destination: SocketAddr,
    pub peer: InboundPeer,
}
