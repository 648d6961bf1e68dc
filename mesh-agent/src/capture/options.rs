//! What an operator decides: where capture works, which pods, what it leaves alone.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    guard::{GuardAttachment, GuardMode},
    maps::MapCapacities,
    netns::NetnsRef,
};
use crate::model::{
    agent_down::AgentDown,
    identity::Identity,
    redirect::RedirectMode,
    splice::SpliceMode,
    workload::{MtlsMode, WorkloadUid},
};

/// Where capture works, and how.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Whose sockets are captured; `None`: the cgroup v2 root.
    pub cgroup_root: Option<PathBuf>,
    /// Where programs, maps and links are pinned; a BPF filesystem is mounted if there is none.
    pub bpffs: PathBuf,
    /// Tells several agents on one kernel apart.
    pub instance: String,
    /// Where enrolled pods are recorded; one agent at a time.
    pub state_dir: PathBuf,
    /// What is not captured, for all pods.
    pub exclusions: Exclusions,
    /// Whether programs log what they decide (through `log`, target `mesh_ebpf`).
    pub bpf_log: bool,
    /// Whether connections between pods of this node may go without the agent.
    pub kernel_path: bool,
    /// Whether what capture did not take is dropped on the pods' interfaces.
    pub guard: GuardMode,
    /// How the guard is attached.
    pub guard_attachment: GuardAttachment,
    /// Whether packets of the kernel path go straight from pod to pod.
    pub redirect_peer: RedirectMode,
    /// Whether the guard drops what is not TCP, but for ARP, ICMP, IGMP, DHCP and DNS.
    pub drop_non_tcp: bool,
    /// Directories of cgroups whose processes may probe the node's pods in plaintext.
    pub probe_cgroups: Vec<PathBuf>,
    /// Whether those hand each other their data past TCP.
    pub splice: SpliceMode,
    /// Whether the kernel path goes on without the agent.
    pub agent_down: AgentDown,
    /// After how long without a sign of life the programs take the agent for dead; `None`:
    /// never.
    pub hung_after: Option<Duration>,
    /// How many entries the maps hold.
    pub capacities: MapCapacities,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            cgroup_root: None,
            bpffs: PathBuf::from("/sys/fs/bpf/mesh"),
            instance: "default".to_owned(),
            state_dir: PathBuf::from("/var/lib/mesh"),
            exclusions: Exclusions::default(),
            bpf_log: false,
            kernel_path: true,
            guard: GuardMode::default(),
            guard_attachment: GuardAttachment::default(),
            redirect_peer: RedirectMode::default(),
            drop_non_tcp: false,
            probe_cgroups: Vec::new(),
            splice: SpliceMode::default(),
            agent_down: AgentDown::default(),
            hung_after: Some(Duration::from_secs(15)),
            capacities: MapCapacities::default(),
        }
    }
}

/// Connections that capture leaves alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exclusions {
    /// Destination ports of connections that the pod opens.
    pub outbound_ports: Vec<u16>,
    /// Destination networks of connections that the pod opens.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of the pod that are reached without the agent.
    pub inbound_ports: Vec<u16>,
}

impl Exclusions {
    /// What either excludes.
    #[must_use]
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.outbound_ports.extend(&other.outbound_ports);
        union.outbound_cidrs.extend(&other.outbound_cidrs);
        union.inbound_ports.extend(&other.inbound_ports);
        union
    }
}

/// A pod to enrol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollPod {
    pub uid: WorkloadUid,
    pub name: String,
    pub identity: Identity,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub mtls: MtlsMode,
    /// In place of the agent's own.
    #[serde(default)]
    pub redirect_peer: Option<RedirectMode>,
    pub netns: NetnsRef,
    /// In place of the agent's own.
    #[serde(default)]
    pub splice: Option<SpliceMode>,
    /// In place of the agent's own.
    #[serde(default)]
    pub agent_down: Option<AgentDown>,
    /// Beside the node's own.
    #[serde(default)]
    pub exclusions: Exclusions,
}
