//! Why capture could not start, or a pod could not be enrolled.
#![forbid(unsafe_code)]

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

use super::netns::NetnsError;
use crate::model::workload::WorkloadUid;

/// Why capture could not start, stop, or read its maps.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// No cgroup v2 hierarchy is mounted.
    #[error("no cgroup v2 mount in /proc/self/mountinfo: mount one, or set the cgroup root")]
    NoCgroup2,
    /// A file or directory could not be used.
    #[error("cannot {act} {path}")]
    File { act: &'static str, path: PathBuf, source: io::Error },
    /// Programs are attached to a directory of cgroup v2.
    #[error("{0} is no directory of cgroup v2: see --cgroup-root")]
    NotCgroup2(PathBuf),
    /// Another agent holds the state directory.
    #[error("another agent uses the state directory {0}: give each agent its own")]
    InUse(PathBuf),
    /// Another agent, with a state directory of its own, holds the pins.
    #[error("another agent uses what is pinned in {0}: give each its own --instance or --bpffs")]
    PinsInUse(PathBuf),
    /// The instance name cannot name a directory.
    #[error("`{0}` is not an instance name: use letters, digits, `.`, `-`, `_`")]
    Instance(String),
    /// The kernel refused the object or one of its maps.
    #[error("the kernel refused the BPF object")]
    Load(#[source] Box<EbpfError>),
    /// The embedded object is of other sources than the agent.
    #[error(
        "the BPF object was built with ABI version {found}, this agent has {expected}: build it \
         anew with `cargo xtask ebpf`, then the agent"
    )]
    Object { found: String, expected: u32 },
    /// The embedded object lacks a program or map of this name.
    #[error(
        "the BPF object has no `{0}`: it is older than the agent; build it anew with `cargo xtask \
         ebpf`, then the agent"
    )]
    Missing(&'static str),
    /// The kernel refused a program; the source carries the verifier's log.
    #[error("program {program} was refused")]
    Program { program: &'static str, source: Box<ProgramError> },
    /// A link could not be pinned.
    #[error("cannot pin {path}")]
    Pin { path: PathBuf, source: PinError },
    /// A link could not be made, read or updated.
    #[error("link of {program}")]
    Link { program: String, source: io::Error },
    /// A map could not be read or written.
    #[error("map {map}")]
    Map { map: &'static str, source: MapError },
    /// A thread of capture's own could not be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// A map has no room left.
    #[error("map {map} is full ({capacity} entries): raise its capacity")]
    MapFull { map: &'static str, capacity: u32 },
    /// The pinned maps are of another version although their directory says otherwise.
    #[error(
        "pinned maps in {path} have ABI version {found}, this agent has {expected}: remove them"
    )]
    Abi { path: PathBuf, found: u32, expected: u32 },
    /// Pinned maps of this version are laid out as another build had them.
    #[error(
        "pinned map {path} has keys and values of {found:?} bytes where this agent's have \
         {expected:?}, though both say ABI version {version}: another build made it. Run that \
         one, or remove the directory of the map: enrolled pods' connections are refused until \
         this agent is up"
    )]
    Layout { path: PathBuf, found: (u32, u32), expected: (u32, u32), version: u32 },
    /// The guard reads Ethernet headers.
    #[error("interface {0} of the pod is not Ethernet: the guard cannot work there")]
    Interface(String),
    /// Each interface costs the agent descriptors, and whoever is root in a pod can make them.
    #[error("the pod has {0} interfaces: those beyond the first {most} have no guard", most = super::guard::MOST_INTERFACES)]
    Interfaces(usize),
    /// A record of an enrolled pod cannot be read or written.
    #[error("pod record {path}")]
    Record { path: PathBuf, source: serde_json::Error },
}

/// Why a pod could not be enrolled or un-enrolled. Nothing of the attempt remains.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The UID cannot name a file.
    #[error("`{0}` is not a workload UID: use up to 128 letters, digits, `.`, `-`, `_`")]
    Uid(String),
    /// This workload is enrolled already.
    #[error("workload {0} is enrolled already")]
    AlreadyEnrolled(WorkloadUid),
    /// No such workload is enrolled.
    #[error("workload {0} is not enrolled")]
    NotEnrolled(WorkloadUid),
    /// Another workload lives in the same namespace.
    #[error("workload {uid}: its network namespace belongs to workload {other}")]
    NetnsInUse { uid: WorkloadUid, other: WorkloadUid },
    /// The pod shares the agent's own network namespace.
    #[error("workload {0} uses the node's network namespace, which cannot be captured")]
    HostNetwork(WorkloadUid),
    /// The pod has no address that peers could dial.
    #[error("workload {0}: its network namespace has no address but loopback and link-local ones")]
    NoAddress(WorkloadUid),
    /// The namespace could not be entered or read.
    #[error("workload {uid}")]
    Netns { uid: WorkloadUid, source: NetnsError },
    /// The kernel does not take a listener's socket storage.
    #[error("workload {uid}: cannot vouch for the agent's listeners")]
    Vouch { uid: WorkloadUid, source: io::Error },
    /// Its interfaces could not be watched.
    #[error("workload {uid}: cannot watch the pod's interfaces")]
    Watch { uid: WorkloadUid, source: io::Error },
    /// A listener could not be opened inside the pod.
    #[error(
        "workload {uid}: cannot listen on {address} inside the pod{}",
        if source.kind() == io::ErrorKind::AddrNotAvailable { " (is `lo` up there?)" } else { "" }
    )]
    Listen { uid: WorkloadUid, address: std::net::SocketAddr, source: io::Error },
    /// Routes or rules could not be set inside the pod.
    #[error("workload {uid}: cannot set {what} inside the pod")]
    Routing { uid: WorkloadUid, what: &'static str, source: Box<rtnetlink::Error> },
    /// A sysctl could not be set inside the pod.
    #[error("workload {uid}: cannot set {name} inside the pod")]
    Sysctl { uid: WorkloadUid, name: &'static str, source: io::Error },
    /// The kernel's side failed.
    #[error("workload {uid}")]
    Kernel { uid: WorkloadUid, source: Box<CaptureError> },
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Without the verifier's listing of the program: its last line says what it refused.
pub(super) fn brief(error: &str) -> String {
    let Some((before, listing)) = error.split_once("Verifier output:") else {
        return error.to_owned();
    };
    let summary = |line: &&str| line.starts_with("verification time");
    let reason = listing.lines().map(str::trim).take_while(|line| !summary(line)).last();
    format!("{}: {}", before.trim().trim_end_matches(['.', ':']), reason.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_program_is_told_by_the_verifiers_last_word() {
        let refused = "the BPF_PROG_LOAD syscall returned Permission denied. Verifier output: \
                       0: (bf) r6 = r1\n21: (61) r3 = *(u32 *)(r6 +64)\n\
                       invalid bpf_context access off=64 size=4\nverification time 37 usec\n\
                       stack depth 64\n";
        assert_eq!(
            brief(refused),
            "the BPF_PROG_LOAD syscall returned Permission denied: \
             invalid bpf_context access off=64 size=4"
        );
        assert_eq!(brief("no such file"), "no such file");
    }
}
