//! What the kernel may decide by itself, and what it did: `proxy` compiles the plan,
//! `capture` writes it to the kernel's maps.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use super::workload::WorkloadUid;

/// Every connection that the kernel may take from one pod of this node straight to
/// another. What is not in it goes to the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelPlan {
    pub services: Vec<KernelService>,
    /// For how long the certificates of those that are in it are valid.
    pub proven_for: HashMap<WorkloadUid, Duration>,
}

/// A service as one pod may reach it. Policy lets the pod connect to every backend,
/// and there is nothing to be done on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelService {
    /// The pod that dials.
    pub source: WorkloadUid,
    /// What it dials.
    pub address: SocketAddr,
    /// All that may take traffic; one is picked by weight. Not more than
    /// [`mesh_common::abi::MAX_BACKENDS`].
    pub backends: Vec<KernelBackend>,
}

/// An endpoint on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelBackend {
    pub workload: WorkloadUid,
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelPeer {
    Enrolled(WorkloadUid),
    /// A pod that an earlier agent enrolled and this one has not taken over yet.
    Waiting,
    /// Not enrolled any more.
    Gone,
}

/// A connection that the kernel took from pod to pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelConnection {
    /// Names the client's socket until reboot.
    pub socket_cookie: u64,
    /// Names the client's network namespace until reboot.
    pub source_netns: u64,
    /// The same of the server's.
    pub destination_netns: u64,
    pub source_pod: KernelPeer,
    pub destination_pod: KernelPeer,
    pub source: SocketAddr,
    /// What the application asked for.
    pub original_destination: SocketAddr,
    /// Where the kernel sent it.
    pub destination: SocketAddr,
    /// Since its SYN left.
    pub age: Duration,
    /// Whether its packets reach both pods without leaving the node.
    pub on_path: bool,
    pub established: bool,
    /// Whether the destination's programs saw it come in. An established connection
    /// that they did not see went somewhere else.
    pub seen: bool,
}

/// How much went over a connection, and how well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelTraffic {
    /// From client to server.
    pub received_bytes: u64,
    /// From server to client.
    pub sent_bytes: u64,
    pub round_trip: Duration,
    pub retransmits: u32,
    /// Since data last went either way.
    pub idle: Duration,
}

/// What the kernel tells about one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    Established(KernelConnection),
    Closed {
        connection: KernelConnection,
        traffic: KernelTraffic,
        /// Ended by a reset or an abort, not by FIN.
        aborted: bool,
    },
}
