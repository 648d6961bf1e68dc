//! Workloads: one running instance each, bound to a network namespace.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// Names one workload instance on a node; unique there, stable for its life.
/// In Kubernetes this is the pod's UID.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(pub Arc<str>);

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of plaintext that reaches a workload from outside its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MtlsMode {
    /// Only mutual TLS is let in; plaintext is reset. The default.
    #[default]
    Strict,
    /// Plaintext is let in too, judged by policy as a peer without identity.
    Permissive,
}

/// One enrolled workload of this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Workload {
    pub uid: WorkloadUid,
    /// The instance's name, for example `checkout-5d9c`.
    pub name: String,
    pub identity: Identity,
    /// Every address of the pod that peers may dial. Never empty once enrolled.
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub mtls: MtlsMode,
}

impl Workload {
    /// Whether `ip` is one of the pod's own addresses.
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}
