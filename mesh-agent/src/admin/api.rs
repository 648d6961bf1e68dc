//! What the admin server answers, as JSON; the `cli` reads the same types.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::SystemTime,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::XdsView;
use crate::{
    model::{
        agent_down::AgentDown,
        identity::Identity,
        splice::{SelfTest, SpliceMode},
        workload::{MtlsMode, WorkloadUid},
    },
    observe::connections::ConnectionEntry,
};

/// A point in time, RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Seconds from `self` until `later`; negative where that is earlier.
    pub fn seconds_until(self, later: Self) -> i64 {
        (later.0 - self.0).whole_seconds()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(at: SystemTime) -> Self {
        let at = OffsetDateTime::from(at);
        Self(at.replace_nanosecond(u32::from(at.millisecond()) * 1_000_000).unwrap_or(at))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(s, &Rfc3339).map(Self)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    pub error: String,
}

/// Whether the agent can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; empty where ready.
    pub reasons: Vec<String>,
    /// What is not as it should be, although the agent does its work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Readiness {
    /// Ready where there is no reason not to be.
    pub fn from_reasons(reasons: Vec<String>) -> Self {
        Self { ready: reasons.is_empty(), reasons, notes: Vec::new() }
    }
}

/// A configuration that was delivered and refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedConfig {
    pub at: Timestamp,
    /// One `<path>: <reason>` for each resource or file.
    pub reasons: Vec<String>,
}

/// One enrolled pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    pub uid: WorkloadUid,
    pub name: String,
    pub identity: Identity,
    pub addresses: Vec<IpAddr>,
    pub mtls: MtlsMode,
    /// As it was given: a path, or `pid 123`.
    pub netns: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether new connections are captured.
    pub captured: bool,
    /// Live connections.
    pub connections: usize,
    pub enrolled_at: Timestamp,
}

/// The configuration in force, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// 0: none was applied yet.
    pub version: u64,
    pub label: String,
    pub applied_at: Option<Timestamp>,
    pub listeners: usize,
    pub routes: usize,
    pub clusters: usize,
    pub endpoints: usize,
}

/// One workload certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    pub identity: Identity,
    pub serial: Option<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    /// What the last attempt to fetch it said; `None` where it succeeded.
    pub last_error: Option<String>,
}

/// The HBONE pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HboneView {
    pub connections: usize,
    pub streams: usize,
}

/// Connections between pods of this node that need nothing of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPathView {
    /// Why none goes that way; `None` where they do.
    pub off: Option<String>,
    /// Services, once for each pod that may dial them so.
    pub services: usize,
    /// Live.
    pub connections: usize,
    #[serde(default)]
    pub splice: SpliceView,
    /// What becomes of new ones while no agent is there; workloads may have their own.
    #[serde(default)]
    pub agent_down: AgentDown,
}

/// Whether sockets of the kernel path hand each other their data past TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpliceView {
    /// The agent's; workloads may have their own.
    pub mode: SpliceMode,
    /// Why those of workloads without a mode of their own do not.
    pub off: Option<String>,
    /// The same for applications with the agent.
    #[serde(default)]
    pub agent_off: Option<String>,
}

/// A pod that something is missing on, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingView {
    pub pod: String,
    pub why: String,
}

/// How full a map of the kernel's is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapView {
    pub map: String,
    pub entries: u32,
    pub capacity: u32,
    /// The capacity that the settings ask for; a pinned map keeps the one it has.
    pub wanted: u32,
}

/// How often the kernel programs decided so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictView {
    pub verdict: String,
    pub count: u64,
}

/// The agent in one page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    pub version: String,
    pub node: String,
    pub instance: String,
    pub trust_domain: String,
    pub started_at: Timestamp,
    pub uptime_seconds: u64,
    pub readiness: Readiness,
    pub draining: bool,
    pub snapshot: SnapshotView,
    pub last_rejected: Option<RejectedConfig>,
    /// The connection to the control plane, where that is the source.
    #[serde(default)]
    pub xds: Option<XdsView>,
    pub certificates: Vec<CertificateView>,
    pub pods: usize,
    pub connections: usize,
    pub hbone: HboneView,
    #[serde(default)]
    pub kernel_path: KernelPathView,
    /// Pods without a guard on their interfaces.
    #[serde(default)]
    pub unguarded: Vec<MissingView>,
    /// Pods whose packets of the kernel path are not handed straight in.
    #[serde(default)]
    pub not_redirected: Vec<MissingView>,
    /// Pods none of whose connections take the kernel path, for no guard could be outside them.
    #[serde(default)]
    pub off_kernel_path: Vec<MissingView>,
    /// What the kernel was found to do; `None` until it was tried.
    #[serde(default)]
    pub self_test: Option<SelfTest>,
    /// The kernel's maps that can be full.
    #[serde(default)]
    pub maps: Vec<MapView>,
    pub bpf: Vec<VerdictView>,
}

/// One live connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionView {
    pub id: u64,
    pub started_at: Timestamp,
    /// `inbound`, `outbound` or `gateway`.
    pub direction: String,
    pub protocol: String,
    /// The pod of this node.
    pub workload: WorkloadUid,
    pub source: SocketAddr,
    pub source_identity: Option<Identity>,
    pub original_destination: SocketAddr,
    pub destination_identity: Option<Identity>,
    pub cluster: Option<String>,
    pub upstream: Option<SocketAddr>,
    pub connection_security_policy: String,
    /// `proxy`, or `kernel` where the agent only watches.
    #[serde(default)]
    pub path: String,
    /// The policy that decided; `None` where no rule applied.
    pub policy: Option<String>,
    /// From the downstream.
    pub bytes_received: u64,
    /// To the downstream.
    pub bytes_sent: u64,
}

impl From<ConnectionEntry> for ConnectionView {
    fn from(entry: ConnectionEntry) -> Self {
        let ConnectionEntry { id, started, info, progress, sent_bytes, received_bytes } = entry;
        Self {
            id,
            started_at: started.into(),
            direction: info.direction.as_str().to_owned(),
            protocol: progress.protocol.to_string(),
            workload: info.workload,
            source: info.source,
            source_identity: info.source_identity,
            original_destination: info.original_destination,
            destination_identity: progress.destination_identity.or(info.destination_identity),
            cluster: progress.cluster.map(|name| name.to_string()),
            upstream: progress.upstream,
            connection_security_policy: progress.security.unwrap_or(info.security).to_string(),
            path: if progress.kernel_path { "kernel" } else { "proxy" }.to_owned(),
            policy: progress.policy.map(|name| name.to_string()),
            bytes_received: received_bytes,
            bytes_sent: sent_bytes,
        }
    }
}
